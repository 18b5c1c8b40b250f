"""VICReg: projections of two views of an image agree, each of their dimensions varies, and no two vary together.

Paper: VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning, Bardes, Ponce and LeCun,
2021 (https://huggingface.co/papers/2105.04906). Reference code: https://github.com/facebookresearch/vicreg.

Variances and covariances are those of the whole batch: sums over images go through all processes with their gradients,
and so do the statistics of batch norm, through which each view goes alone. 2 processes of N images have the loss and
the gradient of 1 of 2N.

Departures from the paper: the variance term is halved, as in its code; a Vision Transformer gives its CLS token where
a ResNet gives its average; in evaluation mode statistics are those of a batch within its process.
"""

import math
from dataclasses import dataclass, replace

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...functional.views import View, ViewPreset
from ...losses import vicreg_terms
from ...modeling.branch import OneBranchModel, VisionBranch, check_two_views, with_unit_length
from ...modeling.distributed import convert_batch_norm
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, LossContext, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.vision import build_vision_encoder


# Appendix C.1 and augmentations.py. PIL's blur has no kernel size: as wide as sigma wants it.
_FIRST_VIEW = View(
    scale=(0.08, 1.0), interpolation="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8,
    grey_probability=0.2, blur_probability=1.0, blur_width=None,
)  # fmt: skip
_SECOND_VIEW = replace(_FIRST_VIEW, blur_probability=0.1, solarize_probability=0.2)


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    invariance, variance, covariance = (
        f"`{name}_weight={getattr(config, f'{name}_weight'):g}`" for name in ("invariance", "variance", "covariance")
    )
    return {
        "constant": f"that views agree counts for more than that images differ: raise {variance} to at least that of "
        f"{invariance}, or lower `--learning_rate`",
        "few directions": f"dimensions vary together: raise {covariance}, or lower `--learning_rate`",
        "views apart": f"that views agree counts for too little: raise {invariance}, make the views milder "
        "(`recipes/show_views.py` shows them), or train for longer",
    }


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    lack = 1.0 - math.sqrt(1e-4)  # of equal outputs
    return {"loss": config.variance_weight * lack, "loss_variance": lack}


METHOD = Method(
    title="VICReg",
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
class VicregPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`VicregForPreTraining`]. The defaults are the paper's, for ImageNet (Section 4.2).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows. ResNet-50 when left out.
        invariance_weight (`float`, *optional*, defaults to `25.0`):
            Weight of the distance between the views of an image (λ), at least 0.
        variance_weight (`float`, *optional*, defaults to `25.0`):
            Weight of what the standard deviations of the dimensions lack to 1 (μ), at least 0.
        covariance_weight (`float`, *optional*, defaults to `1.0`):
            Weight of the covariances of the dimensions (ν), at least 0.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `3`):
            Linear layers of the projector (the paper's expander).
        projector_hidden_dim (`int`, *optional*, defaults to `8192`):
            Width of the projector.
        projector_output_dim (`int`, *optional*, defaults to `8192`):
            Size of a projection. Memory grows with its square.
    """

    model_type = "hfssl_vicreg"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0
    pooling: str | None = None
    projector_num_layers: int = 3
    projector_hidden_dim: int = 8192
    projector_output_dim: int = 8192

    def validate_weights(self):
        for name in ("invariance_weight", "variance_weight", "covariance_weight"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")

    def validate_projector(self):
        for name in ("projector_num_layers", "projector_hidden_dim", "projector_output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class VicregOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            The terms, each times its weight: variance and covariance of the whole batch, invariance over the images
            of this process. `0.99 * variance_weight` is that of equal projections.
        loss_terms (`dict[str, torch.FloatTensor]`):
            `invariance`, `variance` and `covariance`, without gradient.
        projections (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            Projection of each view.
    """

    loss: torch.FloatTensor | None = None
    loss_terms: dict[str, torch.FloatTensor] | None = None
    projections: torch.FloatTensor | None = None


class VicregForPreTraining(OneBranchModel):
    config_class = VicregPreTrainingConfig
    method = METHOD
    loss_units = {
        "invariance": "squared distance", "variance": "lack of standard deviation", "covariance": "squared covariances"
    }  # fmt: skip
    paper = {
        "title": "VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised Learning",
        "id": "2105.04906",
        "citation": "@inproceedings{bardes2022vicreg,\n  title = {{VICReg}: Variance-Invariance-Covariance "
        "Regularization for Self-Supervised Learning},\n  author = {Bardes, Adrien and Ponce, Jean and LeCun, Yann},\n"
        "  booktitle = {ICLR},\n  year = {2022}\n}",
    }

    def __init__(self, config: VicregPreTrainingConfig):
        super().__init__(config)
        self.branch = VisionBranch(
            build_vision_encoder(config.encoder_config),
            MlpHead(
                feature_size(config.encoder_config, config.pooling), config.projector_hidden_dim,
                config.projector_output_dim, config.projector_num_layers,
            ),
            config.encoder_config,
            config.pooling,
        )  # fmt: skip
        convert_batch_norm(self)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, return_loss: bool = True) -> VicregOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Two augmented views of each image.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        check_two_views(pixel_values, "VICReg")
        self.require_several_images(len(pixel_values))
        z1, z2 = (self.branch(view) for view in pixel_values.unbind(1))
        terms = vicreg_terms(z1, z2, self.all_reduce)
        return VicregOutput(**self.sum_terms(terms), projections=torch.stack([z1, z2], dim=1))

    def compared_embeddings(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Projections of both views beside a number for how long 1 is: `(batch_size, 2, projector_output_dim + 1)`."""
        return with_unit_length(super().compared_embeddings(batch))
