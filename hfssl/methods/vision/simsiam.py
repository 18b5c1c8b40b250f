"""SimSiam: predict the projection of one view of an image from another view, with neither negatives nor a teacher.

Paper: Exploring Simple Siamese Representation Learning, Chen and He, 2020 (https://huggingface.co/papers/2011.10566).
Reference code: https://github.com/facebookresearch/simsiam.

Both views go through the same encoder and projector. What keeps all images from getting one projection is that no
gradient reaches the projection that is predicted, and a predictor that is always near to its best: its learning rate
does not fall with that of the others. Each view goes through batch norm alone, and batch norm sees that view of all
processes: 2 processes of N images have the loss and the gradient of 1 of 2N.

Departures from the paper: a Vision Transformer gives its CLS token where a ResNet gives its average; weights of the
heads are drawn as torch draws them.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...functional.views import View, ViewPreset
from ...losses import simsiam_loss
from ...modeling.branch import OneBranchModel, VisionBranch, check_two_views
from ...modeling.distributed import convert_batch_norm
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, Method, no_chance
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.vision import build_vision_encoder


# Those of MoCo v2 (appendix A, and main_simsiam.py). PIL's blur has no kernel size: as wide as sigma wants it.
_VIEW = View(
    scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1), jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5,
    blur_width=None,
)  # fmt: skip


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    predictor = (
        ""
        if config.constant_predictor_rate
        else ", and pass `--constant_predictor_rate true`, so that the predictor keeps up until the end"
    )
    return {
        "constant": "the predictor is not near its best any more, and what is predicted is the same for all images: "
        f"lower `--learning_rate`{predictor}",
        "few directions": "the predictor cannot keep up with the projector: lower `--learning_rate`, make the views "
        f"milder, and show it more images a step for its batch norm{predictor}",
    }


METHOD = Method(
    title="SimSiam",
    modality="image",
    views=ViewPreset((_VIEW, _VIEW)),
    # LARS is not in the paper: that of BYOL, whose loss has twice the gradient, which LARS does not see
    learning_rates=LearningRates(
        lars=0.2, sgd=0.05, narrow=3e-4, narrow_convolutional=1e-3, wide=1.5e-4, checkpoint=1e-4
    ),
    narrow_heads={"projector_hidden_dim": 1024, "projector_output_dim": 512, "predictor_hidden_dim": 128},
    # a digit is its brightness: recoloured, views of one are no more alike than two digits
    embedded_views={"digits": {"jitter": (0.0, 0.0, 0.0, 0.0)}},
    collapse_hints=_collapse_hints,
    chance=no_chance,  # equal outputs have the best loss there is
    benchmark=BenchmarkSettings(config={"constant_predictor_rate": False}),  # lightly's example has one rate
)


@strict
class SimsiamPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`SimsiamForPreTraining`]. The defaults are the paper's, for ImageNet (Section 3).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows. ResNet-50 when left out.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `3`):
            Linear layers of the projector. The paper takes 2 for CIFAR-10.
        projector_hidden_dim (`int`, *optional*, defaults to `2048`):
            Width of the projector.
        projector_output_dim (`int`, *optional*, defaults to `2048`):
            Size of a projection and of a prediction.
        predictor_hidden_dim (`int`, *optional*, defaults to `512`):
            Width of the predictor, which has two layers: a bottleneck of a quarter of the projection.
        constant_predictor_rate (`bool`, *optional*, defaults to `True`):
            Whether the learning rate of the predictor stays at its peak from the first step to the last. The paper
            finds 68.1 % with it and 67.7 % without (table 1).
    """

    model_type = "hfssl_simsiam"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str | None = None
    projector_num_layers: int = 3
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 2048
    predictor_hidden_dim: int = 512
    constant_predictor_rate: bool = True

    def validate_heads(self):
        for name in (
            "projector_num_layers", "projector_hidden_dim", "projector_output_dim", "predictor_hidden_dim"
        ):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class SimsiamOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Minus the mean cosine similarity over the batch and both views; -1 is perfect, 0 is orthogonal.
        predictions (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            Prediction from each view, not normalised.
        projections (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            Projection of each view, not normalised, without gradient.
    """

    loss: torch.FloatTensor | None = None
    predictions: torch.FloatTensor | None = None
    projections: torch.FloatTensor | None = None


class SimsiamForPreTraining(OneBranchModel):
    config_class = SimsiamPreTrainingConfig
    method = METHOD
    paper = {
        "title": "Exploring Simple Siamese Representation Learning",
        "id": "2011.10566",
        "citation": "@inproceedings{chen2021exploring,\n  title = {Exploring Simple Siamese Representation "
        "Learning},\n  author = {Chen, Xinlei and He, Kaiming},\n  booktitle = {CVPR},\n  year = {2021}\n}",
    }

    def __init__(self, config: SimsiamPreTrainingConfig):
        super().__init__(config)
        output = config.projector_output_dim
        self.branch = VisionBranch(
            build_vision_encoder(config.encoder_config),
            MlpHead(
                feature_size(config.encoder_config, config.pooling), config.projector_hidden_dim, output,
                config.projector_num_layers, last_norm="plain",
            ),
            config.encoder_config,
            config.pooling,
        )  # fmt: skip
        self.predictor = MlpHead(output, config.predictor_hidden_dim, output, bias=True)
        convert_batch_norm(self)
        if config.constant_predictor_rate:
            self.constant_rate = ("predictor.",)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, return_loss: bool = True) -> SimsiamOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Two augmented views of each image.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        check_two_views(pixel_values, "SimSiam")
        self.require_several_images(len(pixel_values))
        projections = [self.branch(view) for view in pixel_values.unbind(1)]
        predictions = torch.stack([self.predictor(z) for z in projections], dim=1)
        targets = torch.stack(projections, dim=1).detach()
        return SimsiamOutput(loss=simsiam_loss(predictions, targets), predictions=predictions, projections=targets)
