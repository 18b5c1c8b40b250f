"""SimCLR: find the other view of an image among the views of all other images of the batch.

Papers: A Simple Framework for Contrastive Learning of Visual Representations, Chen et al., 2020
(https://huggingface.co/papers/2002.05709); three layers in the projector as in SimCLRv2
(https://huggingface.co/papers/2006.10029) with `projector_num_layers=3`. Reference code:
https://github.com/google-research/simclr. With `decoupled` the loss is that of Decoupled Contrastive Learning, Yeh et
al., 2021 (https://huggingface.co/papers/2110.06848). With `nearest_neighbour_queue` the method is NNCLR: With a Little
Help from My Friends, Dwibedi et al., 2021 (https://huggingface.co/papers/2104.14548), in which the nearest neighbour
of a view among earlier images stands for it.

The batch is that of all processes: projections are gathered with their gradients, batch norm takes its statistics over
all of them, and 2 processes of N images have the loss and the gradient of 1 of 2N. Accumulation steps are batches of
their own, with fewer negatives: they are not one large batch.

Departures from the paper: the last batch norm of the projector has a shift; a Vision Transformer gives its CLS token
where a ResNet gives its average; in evaluation mode a batch is contrasted within its process.
"""

import math
from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...errors import UserError
from ...functional.views import View, ViewPreset
from ...losses import nearest_neighbours, nnclr_loss, nt_xent_loss
from ...modeling.contrast import ContrastMixin
from ...modeling.distributed import convert_batch_norm, gather_with_grad, rank, world_size
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, LossContext, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.queue import QueueMixin
from ...modeling.vision import SSLVisionModel, arranged, build_vision_encoder, image_features


# Appendix A. Its code crops with bicubic interpolation; bilinear is what most libraries made of it.
_VIEW = View(
    scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5
)


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    if config.nearest_neighbour_queue:
        return {
            "constant": "neighbours are the same for all images: lower `--learning_rate`, raise `--warmup_steps`, and "
            f"pass a longer `nearest_neighbour_queue={config.nearest_neighbour_queue}`",
            "few directions": "images have the same few neighbours: pass a longer "
            f"`nearest_neighbour_queue={config.nearest_neighbour_queue}`, or lower `--learning_rate`",
        }
    return {
        "constant": "negatives do not hold the views of different images apart: lower `--learning_rate`, raise "
        "`--warmup_steps`, and show it more images a step",
        "few directions": f"at `contrastive_temperature={config.contrastive_temperature:g}` an image is hardly told "
        "from its nearest neighbours: pass 0.1 to 0.5, or, if it is in this range already, lower `--learning_rate`",
    }


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    # of equal projections; random ones of size d lie about 1 / (2 d τ²) above
    if config.nearest_neighbour_queue:
        return {"loss": math.log(context.num_samples)}
    return {"loss": math.log(max(2 * context.num_samples - 1 - config.decoupled, 1))}


METHOD = Method(
    title="SimCLR",
    modality="image",
    # small images: half the strength of the jitter (appendix B.9)
    views=ViewPreset((_VIEW, _VIEW), small_jitter=(0.4, 0.4, 0.4, 0.1)),
    # LARS: the paper's. AdamW: that of DINO for ViTs (2104.14294), and twice as much for narrow encoders.
    learning_rates=LearningRates(lars=0.3, narrow=1e-3, wide=5e-4, checkpoint=1e-4),
    contrasts_batch=True,
    collapse_hints=_collapse_hints,
    chance=_chance,
    # the paper's temperature for CIFAR-10 (appendix B.9)
    benchmark=BenchmarkSettings(short_config={"contrastive_temperature": 0.5}),
)


@strict
class SimclrPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`SimclrForPreTraining`]. The defaults are the paper's, for ImageNet (Section 2.2, table 5).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows, or one for spectrograms
            such as AST. ResNet-50 when left out.
        contrastive_temperature (`float`, *optional*, defaults to `0.1`):
            Divisor of the cosine similarities (τ), above 0. The paper takes 0.5 for CIFAR-10.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `2`):
            Linear layers of the projector.
        projector_hidden_dim (`int`, *optional*):
            Width of the projector. Left out: that of the feature.
        projector_output_dim (`int`, *optional*, defaults to `128`):
            Size of a projection.
        decoupled (`bool`, *optional*, defaults to `False`):
            Leave the other view of an image out of the denominator (DCL), for small batches.
        nearest_neighbour_queue (`int`, *optional*, defaults to `0`):
            Projections of earlier images among which each view looks for its nearest neighbour, which then has to find
            the other view (NNCLR). The paper has 98304, and `projector_num_layers=3`, `projector_output_dim=256`.
        predictor_hidden_dim (`int`, *optional*):
            Width of the two layers that predict a neighbour from a projection, 0 for none. Left out: 4096, as in the
            paper, where there is a queue.
    """

    model_type = "hfssl_simclr"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    contrastive_temperature: float = 0.1
    pooling: str | None = None
    projector_num_layers: int = 2
    projector_hidden_dim: int | None = None
    projector_output_dim: int = 128
    decoupled: bool = False
    nearest_neighbour_queue: int = 0
    predictor_hidden_dim: int | None = None

    def validate_neighbours(self):
        if self.nearest_neighbour_queue < 0:
            raise ValueError(
                f"`nearest_neighbour_queue` is a number of projections, got {self.nearest_neighbour_queue}. 0 is none."
            )
        if (self.predictor_hidden_dim or 0) < 0:
            raise ValueError(f"`predictor_hidden_dim` must be at least 0, got {self.predictor_hidden_dim}.")
        if self.nearest_neighbour_queue and self.decoupled:
            raise ValueError(
                f"`decoupled` is for views that look for each other, and with "
                f"`nearest_neighbour_queue={self.nearest_neighbour_queue}` their neighbours do. Leave one of them out."
            )
        if self.predictor_hidden_dim and not self.nearest_neighbour_queue:
            raise ValueError(
                f"`predictor_hidden_dim={self.predictor_hidden_dim}` is for predicting neighbours. Pass a "
                "`nearest_neighbour_queue` too, or leave it out."
            )

    def validate_temperature(self):
        if not self.contrastive_temperature > 0.0:
            raise ValueError(f"`contrastive_temperature` must be above 0, got {self.contrastive_temperature}.")

    def validate_projector(self):
        for name in ("projector_num_layers", "projector_hidden_dim", "projector_output_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class SimclrOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean over the views of this process. log(2 * images of all processes - 1) is chance, decoupled one less,
            and with neighbours log(images of all processes).
        projections (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            Projection of each view, not normalised.
    """

    loss: torch.FloatTensor | None = None
    projections: torch.FloatTensor | None = None


class SimclrForPreTraining(QueueMixin, ContrastMixin, SSLVisionModel):
    config_class = SimclrPreTrainingConfig
    method = METHOD
    base_model_prefix = "encoder"
    takes_spectrograms = True
    paper = {
        "title": "A Simple Framework for Contrastive Learning of Visual Representations",
        "id": "2002.05709",
        "citation": "@inproceedings{chen2020simple,\n  title = {A Simple Framework for Contrastive Learning of Visual "
        "Representations},\n  author = {Chen, Ting and Kornblith, Simon and Norouzi, Mohammad and Hinton, Geoffrey},\n"
        "  booktitle = {ICML},\n  year = {2020}\n}",
    }

    def __init__(self, config: SimclrPreTrainingConfig):
        super().__init__(config)
        self.encoder = build_vision_encoder(config.encoder_config, spectrograms=True)
        self.main_input_name = self.encoder.main_input_name
        dim = feature_size(config.encoder_config, config.pooling)
        self.projector = MlpHead(
            dim, config.projector_hidden_dim or dim, config.projector_output_dim, config.projector_num_layers,
            last_norm="affine",
        )  # fmt: skip
        self.build_queue(config.nearest_neighbour_queue, config.projector_output_dim)
        hidden = 4096 if config.predictor_hidden_dim is None else config.predictor_hidden_dim
        self.predictor = None
        if self.has_queue and hidden:
            self.predictor = MlpHead(config.projector_output_dim, hidden, config.projector_output_dim, bias=True)
        convert_batch_norm(self)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        return_loss: bool = True,
    ) -> SimclrOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`, *optional*):
                Two augmented views of each image.
            input_values (`torch.FloatTensor` of shape `(batch_size, 2, num_frames, num_mel_bins)`, *optional*):
                Instead, for an encoder of spectrograms: those of two views of each recording.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        return self.compare(pixel_values=pixel_values, input_values=input_values)

    def embed(self, **inputs: torch.Tensor | None) -> dict[str, torch.Tensor]:
        views = self._views(inputs)
        images = views.flatten(0, 1)  # image 0 view 0, image 0 view 1, image 1 view 0 ...
        images = arranged(self.encoder, images)
        features = image_features(self.encoder, images, self.config.pooling)
        return {"projections": self.projector(features).unflatten(0, (len(views), 2))}

    def contrast(self, embeddings: dict[str, torch.Tensor]) -> SimclrOutput:
        projections = embeddings["projections"]
        if self.has_queue:
            return SimclrOutput(loss=self._loss_of_neighbours(projections), projections=projections)
        z1, z2 = projections.unbind(1)
        negatives = {}
        if self.training and world_size() > 1:
            all_projections = gather_with_grad(projections)
            negatives = {
                "all_z1": all_projections[:, 0], "all_z2": all_projections[:, 1], "first": rank() * len(z1),
            }  # fmt: skip
        loss = nt_xent_loss(
            z1, z2, self.config.contrastive_temperature, **negatives, decoupled=self.config.decoupled
        )  # fmt: skip
        return SimclrOutput(loss=loss, projections=projections)

    def _views(self, given: dict[str, torch.Tensor | None]) -> torch.Tensor:
        """What the encoder takes of what was given, two views of each sample."""
        name = self.main_input_name
        views, others = given.pop(name), [other for other, value in given.items() if value is not None]
        of_what, shape, maker = "image", "num_channels, height, width", "Views"
        if name == "input_values":
            of_what, shape, maker = "recording", "num_frames, num_mel_bins", "AudioViews"
        number = 2 + shape.count(",") + 1
        if views is None or others or views.ndim != number or views.shape[1] != 2:
            has = f"`{others[0]}`" if others else "nothing"
            found = f"the batch has {has}" if views is None or others else f"`{name}` has shape {tuple(views.shape)}"
            raise ValueError(
                f"SimCLR compares 2 views of each {of_what}: {found}, expected `{name}` of shape "
                f"(batch_size, 2, {shape}). `{maker}` makes them."
            )
        if self.training and len(views) * world_size() == 1:
            raise UserError(
                "SimCLR contrasts an image with the others of its batch, and its batch norm needs them too, but the "
                "batch has 1 image. Pass a larger `--per_device_train_batch_size`: the larger, the better."
            )
        return views

    def _loss_of_neighbours(self, projections: torch.Tensor) -> torch.Tensor:
        """NNCLR, of projections `(batch_size, 2, projector_output_dim)`."""
        batch_size = len(projections)
        neighbours = nearest_neighbours(projections.flatten(0, 1), self.queue).unflatten(0, (batch_size, 2))
        predictions = projections
        if self.predictor is not None:
            predictions = self.predictor(projections.flatten(0, 1)).unflatten(0, (batch_size, 2))
        first, new = 0, projections[:, 0].detach()
        if self.training and world_size() > 1:
            predictions, new, first = gather_with_grad(predictions), gather_with_grad(new), rank() * batch_size
        self.enqueue(new)
        temperature = self.config.contrastive_temperature
        return nnclr_loss(*neighbours.unbind(1), *predictions.unbind(1), temperature, first)

    def compared_embeddings(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Projections of both views, `(batch_size, 2, projector_output_dim)`."""
        return self(**{self.main_input_name: batch[self.main_input_name]}).projections
