"""MoCo v3: find the teacher's projection of the other view of an image among those of all images of the batch.

Papers: An Empirical Study of Training Self-Supervised Vision Transformers, Chen, Xie and He, 2021
(https://huggingface.co/papers/2104.02057); the queue is that of Momentum Contrast, He et al., 2020
(https://huggingface.co/papers/1911.05722). Reference code: https://github.com/facebookresearch/moco-v3.

The student is the papers' query encoder, the teacher their key encoder. Keys are gathered from all processes, and
batch norm takes its statistics over all of them, each view alone: 2 processes of N images have the loss and the
gradient of 1 of 2N. What is exported is the student's encoder.

Departures from the papers: positions and weights of a Vision Transformer start as its own code draws them, and the
positions are learned; with a queue, the other images of the batch stay negatives beside it, the loss stays symmetric,
and the keys of both views enter.
"""

import math
from dataclasses import dataclass, replace

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...errors import UserError
from ...functional.views import View, ViewPreset
from ...losses import moco_v3_loss
from ...modeling.branch import VisionBranch, check_two_views
from ...modeling.contrast import ContrastMixin
from ...modeling.distributed import convert_batch_norm, gather_with_grad, rank, world_size
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, LossContext, Method
from ...modeling.pooling import check_pooling, feature_size, is_convolutional
from ...modeling.queue import QueueMixin
from ...modeling.teacher import TeacherMixin, check_momentum
from ...modeling.vision import SSLVisionModel, build_vision_encoder, frozen_patch_embed


# BYOL's views, and main_moco.py. PIL's blur, which it used, has no kernel size: as wide as sigma wants it.
_FIRST_VIEW = View(
    scale=(0.08, 1.0), interpolation="bilinear", jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8,
    grey_probability=0.2, blur_probability=1.0, blur_width=None,
)  # fmt: skip
_SECOND_VIEW = replace(_FIRST_VIEW, blur_probability=0.1, solarize_probability=0.2)


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "negatives do not hold the views of different images apart: lower `--learning_rate`, and keep "
        "`freeze_patch_embed` for Vision Transformers",
        "few directions": f"at `contrastive_temperature={config.contrastive_temperature:g}` an image is hardly told "
        "from its nearest neighbours: pass about 0.2, or, if it is that already, lower `--learning_rate`",
    }


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    return {"loss": 4 * config.contrastive_temperature * math.log(context.num_samples + config.queue_size)}


METHOD = Method(
    title="MoCo v3",
    modality="image",
    views=ViewPreset((_FIRST_VIEW, _SECOND_VIEW)),
    learning_rates=LearningRates(lars=0.3, narrow=3e-4, narrow_convolutional=1e-3, wide=1.5e-4, checkpoint=1e-4),
    narrow_heads={"projector_hidden_dim": 1024},
    # a digit is its brightness: recoloured, views of one are no more alike than two digits
    embedded_views={"digits": {"jitter": (0.0, 0.0, 0.0, 0.0), "solarize_probability": [0.0]}},
    contrasts_batch=True,
    collapse_hints=_collapse_hints,
    chance=_chance,
    benchmark=BenchmarkSettings(short_config={"momentum_start": 0.99}, against=()),
)


@strict
class MocoPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`MocoForPreTraining`]. The defaults are the paper's, for ViT-B/16 on ImageNet (Sections 3 and 4).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows. ViT-B/16 when left out.
        contrastive_temperature (`float`, *optional*, defaults to `0.2`):
            Divisor of the cosine similarities (τ), above 0. The paper takes 1.0 for ResNet-50.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `3`):
            Linear layers of the projector. The paper takes 2 for ResNet-50.
        predictor_num_layers (`int`, *optional*, defaults to `2`):
            Linear layers of the predictor. Its last batch norm is left out behind a convolutional encoder.
        projector_hidden_dim (`int`, *optional*, defaults to `4096`):
            Width of projector and predictor.
        projector_output_dim (`int`, *optional*, defaults to `256`):
            Size of a projection and of a prediction.
        momentum_start (`float`, *optional*, defaults to `0.99`):
            Momentum of the teacher at the first step (m).
        momentum_end (`float`, *optional*, defaults to `1.0`):
            Momentum of the teacher at the last step. It rises along half a cosine.
        freeze_patch_embed (`bool`, *optional*):
            Keep the projection of the patches as it was drawn, which makes the training of Vision Transformers stable
            (Section 4.2). Left out: for encoders of patches, not for convolutional ones.
        queue_size (`int`, *optional*, defaults to `0`):
            Keys of earlier batches that serve as negatives (K). MoCo v2 has 65536, for small batches; v3 has none.
    """

    model_type = "hfssl_moco"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    encoder_config: dict | PreTrainedConfig | None = None
    contrastive_temperature: float = 0.2
    pooling: str | None = None
    projector_num_layers: int = 3
    predictor_num_layers: int = 2
    projector_hidden_dim: int = 4096
    projector_output_dim: int = 256
    momentum_start: float = 0.99
    momentum_end: float = 1.0
    freeze_patch_embed: bool | None = None
    queue_size: int = 0

    def validate_temperature(self):
        if not self.contrastive_temperature > 0.0:
            raise ValueError(f"`contrastive_temperature` must be above 0, got {self.contrastive_temperature}.")

    def validate_momentum(self):
        check_momentum(self)

    def validate_projector(self):
        for name in ("projector_num_layers", "predictor_num_layers", "projector_hidden_dim", "projector_output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def validate_queue(self):
        if self.queue_size < 0:
            raise ValueError(f"`queue_size` is a number of keys, got {self.queue_size}. 0 is none.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class MocoOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Sum of both directions over the images of this process, times 2 * contrastive_temperature.
        student_predictions (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            Prediction from each view (queries), not normalised.
        teacher_projections (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            The teacher's projection of each view (keys), without gradient.
    """

    loss: torch.FloatTensor | None = None
    student_predictions: torch.FloatTensor | None = None
    teacher_projections: torch.FloatTensor | None = None


class MocoForPreTraining(QueueMixin, TeacherMixin, ContrastMixin, SSLVisionModel):
    config_class = MocoPreTrainingConfig
    method = METHOD
    base_model_prefix = "student"
    paper = {
        "title": "An Empirical Study of Training Self-Supervised Vision Transformers",
        "id": "2104.02057",
        "citation": "@inproceedings{chen2021empirical,\n  title = {An Empirical Study of Training Self-Supervised "
        "Vision Transformers},\n  author = {Chen, Xinlei and Xie, Saining and He, Kaiming},\n  booktitle = {ICCV},\n"
        "  year = {2021}\n}",
    }

    def __init__(self, config: MocoPreTrainingConfig):
        super().__init__(config)
        hidden, output = config.projector_hidden_dim, config.projector_output_dim
        convolutional = is_convolutional(config.encoder_config)
        self.student = VisionBranch(
            build_vision_encoder(config.encoder_config),
            MlpHead(
                feature_size(config.encoder_config, config.pooling), hidden, output, config.projector_num_layers,
                last_norm="plain",
            ),
            config.encoder_config,
            config.pooling,
        )  # fmt: skip
        self.predictor = MlpHead(
            output, hidden, output, config.predictor_num_layers, last_norm=None if convolutional else "plain"
        )
        convert_batch_norm(self)
        self.build_teacher()
        self.build_queue(config.queue_size, output)
        self.frozen = frozen_patch_embed(self, "student.encoder", config.freeze_patch_embed)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, return_loss: bool = True) -> MocoOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Two augmented views of each image.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        self.require_advanced()
        check_two_views(pixel_values, "MoCo")
        batch_size = len(pixel_values)
        if self.training and batch_size * world_size() == 1:
            raise UserError(
                "MoCo contrasts an image with the others of its batch, and its batch norm needs them too, but the "
                "batch has 1 image. Pass a larger `--per_device_train_batch_size`."
            )
        return self.compare(pixel_values=pixel_values)

    def embed(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        views = pixel_values.unbind(1)
        queries = torch.stack([self.predictor(self.student(view)) for view in views], dim=1)
        with torch.no_grad():
            keys = torch.stack([self.teacher(view) for view in views], dim=1)
        return {"queries": queries, "keys": keys}

    def contrast(self, embeddings: dict[str, torch.Tensor]) -> MocoOutput:
        queries, keys = embeddings["queries"], embeddings["keys"].detach()
        gathers = self.training and world_size() > 1
        with torch.no_grad():
            all_keys = gather_with_grad(keys) if gathers else keys
        loss = moco_v3_loss(
            *queries.unbind(1), *all_keys.unbind(1), self.config.contrastive_temperature,
            first=rank() * len(queries) if gathers else 0, queue=self.queue if self.has_queue else None,
        )  # fmt: skip
        self.enqueue(all_keys.flatten(0, 1))
        return MocoOutput(loss=loss, student_predictions=queries, teacher_projections=keys)

    def compared_embeddings(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The student's projections of both views, `(batch_size, 2, projector_output_dim)`."""
        return torch.stack([self.student(view) for view in batch["pixel_values"].unbind(1)], dim=1)
