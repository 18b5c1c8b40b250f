"""Barlow Twins: each dimension of a projection says the same of two views of an image, and no two say the same.

Paper: Barlow Twins: Self-Supervised Learning via Redundancy Reduction, Zbontar et al., 2021
(https://huggingface.co/papers/2103.03230). Reference code: https://github.com/facebookresearch/barlowtwins.

Correlations are those of the whole batch: sums over images go through all processes with their gradients, and so do
the statistics of batch norm, through which each view goes alone. 2 processes of N images have the loss and the
gradient of 1 of 2N.

Departures from the paper: its code sums the correlations over processes without the gradients that the others have
of them, so that its gradient is shorter by the number of processes (LARS adapts its steps to that, except those of
biases and norms). A Vision Transformer gives its CLS token where a ResNet gives its average; in evaluation mode a
batch is normalised within its process.
"""

from dataclasses import dataclass, replace

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...functional.views import View, ViewPreset
from ...losses import barlow_twins_terms
from ...modeling.branch import OneBranchModel, VisionBranch, check_two_views
from ...modeling.distributed import convert_batch_norm
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, LossContext, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.vision import build_vision_encoder


# Those of BYOL, in its code's main.py. PIL's blur has no kernel size: as wide as sigma wants it.
_FIRST_VIEW = View(
    scale=(0.08, 1.0), interpolation="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8,
    grey_probability=0.2, blur_probability=1.0, blur_width=None,
)  # fmt: skip
_SECOND_VIEW = replace(_FIRST_VIEW, blur_probability=0.1, solarize_probability=0.2)


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "the learning rate is too high for this model: lower `--learning_rate`, or raise `--warmup_steps`",
        "few directions": "dimensions repeat each other: raise "
        f"`redundancy_weight={config.redundancy_weight:g}`, show it more images a step, or lower `--learning_rate`",
        "views apart": "dimensions are told apart at the cost of what views have in common: lower "
        f"`redundancy_weight={config.redundancy_weight:g}`, make the views milder (`recipes/show_views.py` shows "
        "them), or train for longer",
    }


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    # of equal outputs, and nearly that of unrelated ones, which correlate by 1 / √num_samples
    size = float(config.projector_output_dim)
    return {"loss": size, "loss_invariance": size}


METHOD = Method(
    title="Barlow Twins",
    modality="image",
    views=ViewPreset((_FIRST_VIEW, _SECOND_VIEW)),
    learning_rates=LearningRates(lars=0.2, narrow=5e-4, narrow_convolutional=1e-3, wide=3e-4, checkpoint=1e-4),
    narrow_heads={"projector_hidden_dim": 1024, "projector_output_dim": 1024},
    # a digit is its brightness: recoloured, views of one are no more alike than two digits
    embedded_views={"digits": {"jitter": (0.0, 0.0, 0.0, 0.0), "solarize_probability": [0.0]}},
    contrasts_batch=True,
    collapse_hints=_collapse_hints,
    chance=_chance,
    benchmark=BenchmarkSettings(),
)


@strict
class BarlowTwinsPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`BarlowTwinsForPreTraining`]. The defaults are the paper's, for ImageNet (Section 2.2), its
    code's where they differ.

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows. ResNet-50 when left out.
        redundancy_weight (`float`, *optional*, defaults to `0.0051`):
            Weight of the correlations between dimensions (λ), at least 0. The paper says 0.005.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `3`):
            Linear layers of the projector.
        projector_hidden_dim (`int`, *optional*, defaults to `8192`):
            Width of the projector.
        projector_output_dim (`int`, *optional*, defaults to `8192`):
            Size of a projection. The larger, the better (figure 4); memory grows with its square.
    """

    model_type = "hfssl_barlow_twins"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    redundancy_weight: float = 0.0051
    pooling: str | None = None
    projector_num_layers: int = 3
    projector_hidden_dim: int = 8192
    projector_output_dim: int = 8192

    def validate_weight(self):
        if self.redundancy_weight < 0.0:
            raise ValueError(f"`redundancy_weight` must be at least 0, got {self.redundancy_weight}.")

    def validate_projector(self):
        for name in ("projector_num_layers", "projector_hidden_dim", "projector_output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class BarlowTwinsOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            `invariance + redundancy_weight * redundancy`, of the whole batch. projector_output_dim is chance.
        loss_terms (`dict[str, torch.FloatTensor]`):
            `invariance` and `redundancy`, without gradient.
        projections (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            Projection of each view, normalised dimension by dimension.
    """

    loss: torch.FloatTensor | None = None
    loss_terms: dict[str, torch.FloatTensor] | None = None
    projections: torch.FloatTensor | None = None


class BarlowTwinsForPreTraining(OneBranchModel):
    config_class = BarlowTwinsPreTrainingConfig
    method = METHOD
    loss_units = {"invariance": "squared correlations", "redundancy": "squared correlations"}
    paper = {
        "title": "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
        "id": "2103.03230",
        "citation": "@inproceedings{zbontar2021barlow,\n  title = {Barlow Twins: Self-Supervised Learning via "
        "Redundancy Reduction},\n  author = {Zbontar, Jure and Jing, Li and Misra, Ishan and LeCun, Yann and Deny, "
        "St{\\'e}phane},\n  booktitle = {ICML},\n  year = {2021}\n}",
    }

    def __init__(self, config: BarlowTwinsPreTrainingConfig):
        super().__init__(config)
        self.branch = VisionBranch(
            build_vision_encoder(config.encoder_config),
            # the last norm normalises over the batch as the loss does, and in evaluation mode by the training's
            MlpHead(
                feature_size(config.encoder_config, config.pooling), config.projector_hidden_dim,
                config.projector_output_dim, config.projector_num_layers, last_norm="plain",
            ),
            config.encoder_config,
            config.pooling,
        )  # fmt: skip
        convert_batch_norm(self)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, return_loss: bool = True) -> BarlowTwinsOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Two augmented views of each image.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        check_two_views(pixel_values, "Barlow Twins")
        self.require_several_images(len(pixel_values))
        z1, z2 = (self.branch(view) for view in pixel_values.unbind(1))
        terms = barlow_twins_terms(z1, z2, self.all_reduce)
        return BarlowTwinsOutput(**self.sum_terms(terms), projections=torch.stack([z1, z2], dim=1))
