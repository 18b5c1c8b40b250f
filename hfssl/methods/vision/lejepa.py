"""LeJEPA: all views of an image predict the mean of the large ones, and projections are spread like normal numbers.

Paper: LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics, Balestriero and LeCun, 2025
(https://huggingface.co/papers/2511.08544). Reference code: https://github.com/rbalestr-lab/lejepa.

There is no teacher, no gradient that stops and no schedule, and one trade-off. The spread of each view is looked at
along directions that are drawn anew for each optimizer step, from the number of that step: they are the same in all
processes and after a resume. Statistics are those of the whole batch: sums over images go through all processes with
their gradients, and so do the statistics of batch norm. 2 processes of N images have the loss and the gradient of 1 of
2N. Crops of one size go through the encoder together, all crops through the projector together.

Departures from the paper: the integral is that of its code, from -3 to 3; encoders have no stochastic depth; in
evaluation mode directions are always the same, and statistics those of a batch within its process.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...functional import keyed
from ...functional.keyed import Use
from ...functional.views import View, ViewPreset
from ...losses import lejepa_terms, sigreg_loss
from ...modeling.branch import OneBranchModel, VisionBranch, crop_by_crop, with_unit_length
from ...modeling.distributed import convert_batch_norm
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, LossContext, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.progress import ProgressMixin
from ...modeling.vision import build_vision_encoder


# README of the code. The blur has a kernel of 7 pixels in its example; here it is as wide as sigma wants it.
_LARGE_VIEW = View(
    scale=(0.3, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5,
    blur_width=None, solarize_probability=0.2,
)  # fmt: skip
_SMALL_VIEW = View(
    size=98, scale=(0.05, 0.3), jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8, grey_probability=0.2,
    blur_probability=0.5, blur_width=None, solarize_probability=0.2,
)  # fmt: skip


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    weight = f"`sigreg_weight={config.sigreg_weight:g}`"
    return {
        "constant": f"that views agree counts for more than that images differ: raise {weight} (the paper takes 0.01 "
        "to 0.1), show it more images a step, or lower `--learning_rate`",
        "few directions": f"some directions are not looked at enough: raise {weight} or "
        f"`num_directions={config.num_directions}`, or lower `--learning_rate`",
        "views apart": f"that views agree counts for too little: lower {weight}, make the views milder "
        "(`recipes/show_views.py` shows them), or train for longer",
    }


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    # of outputs that are all 0; the statistic grows with the samples
    sigreg = context.num_samples * sigreg_loss(torch.zeros(1, 1), torch.ones(1, 1)).item()
    return {"loss": config.sigreg_weight * sigreg, "loss_sigreg": sigreg}


METHOD = Method(
    title="LeJEPA",
    modality="image",
    views=ViewPreset((_LARGE_VIEW, _LARGE_VIEW), local=_SMALL_VIEW, num_local=6),
    learning_rates=LearningRates(narrow=1e-3, wide=5e-4, checkpoint=1e-4),
    narrow_heads={"projector_hidden_dim": 512, "num_directions": 256},
    # a digit is its brightness: recoloured, views of one are no more alike than two digits
    embedded_views={"digits": {"jitter": (0.0, 0.0, 0.0, 0.0), "solarize_probability": [0.0]}},
    contrasts_batch=True,
    collapse_hints=_collapse_hints,
    chance=_chance,
    benchmark=BenchmarkSettings(
        views={"local_crops": 6},
        notes={
            "lightly": "lightly has no views of its own for LeJEPA: they are those of its DINO, whose first large "
            "crop and small ones are never solarised."
        },
    ),
)


@strict
class LejepaPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`LejepaForPreTraining`]. The defaults are those that the paper and its code advise.

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows and that takes crops of
            any size. ViT-B/16 when left out.
        sigreg_weight (`float`, *optional*, defaults to `0.05`):
            Weight of the distance from normal numbers (λ), in [0, 1]; the distance of the views counts 1 - λ times.
        num_directions (`int`, *optional*, defaults to `1024`):
            Directions along which projections are looked at in a step.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `3`):
            Linear layers of the projector.
        projector_hidden_dim (`int`, *optional*, defaults to `2048`):
            Width of the projector.
        projector_output_dim (`int`, *optional*, defaults to `64`):
            Size of a projection.
    """

    model_type = "hfssl_lejepa"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    encoder_config: dict | PreTrainedConfig | None = None
    sigreg_weight: float = 0.05
    num_directions: int = 1024
    pooling: str | None = None
    projector_num_layers: int = 3
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 64

    @property
    def invariance_weight(self) -> float:
        """How much the distance of the views counts."""
        return 1.0 - self.sigreg_weight

    def validate_weight(self):
        if not 0.0 <= self.sigreg_weight <= 1.0:
            raise ValueError(f"`sigreg_weight` must be between 0 and 1, got {self.sigreg_weight}.")

    def validate_sizes(self):
        for name in ("num_directions", "projector_num_layers", "projector_hidden_dim", "projector_output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class LejepaOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            `(1 - sigreg_weight) * invariance + sigreg_weight * sigreg`.
        loss_terms (`dict[str, torch.FloatTensor]`):
            `invariance`, over the images of this process, and `sigreg`, of the whole batch; without gradient.
        projections (`torch.FloatTensor` of shape `(num_crops, batch_size, projector_output_dim)`):
            Of the large crops, then of the small ones.
    """

    loss: torch.FloatTensor | None = None
    loss_terms: dict[str, torch.FloatTensor] | None = None
    projections: torch.FloatTensor | None = None


class LejepaForPreTraining(ProgressMixin, OneBranchModel):
    config_class = LejepaPreTrainingConfig
    method = METHOD
    loss_units = {"invariance": "squared distance", "sigreg": "statistic of Epps and Pulley"}
    paper = {
        "title": "LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics",
        "id": "2511.08544",
        "citation": "@misc{balestriero2025lejepa,\n  title = {{LeJEPA}: Provable and Scalable Self-Supervised "
        "Learning Without the Heuristics},\n  author = {Balestriero, Randall and LeCun, Yann},\n  year = {2025},\n"
        "  eprint = {2511.08544},\n  archivePrefix = {arXiv}\n}",
    }

    def __init__(self, config: LejepaPreTrainingConfig):
        super().__init__(config)
        self.branch = VisionBranch(
            build_vision_encoder(config.encoder_config),
            MlpHead(
                feature_size(config.encoder_config, config.pooling), config.projector_hidden_dim,
                config.projector_output_dim, config.projector_num_layers, bias=True,
            ),
            config.encoder_config,
            config.pooling,
        )  # fmt: skip
        convert_batch_norm(self)
        # of the optimizer, by which directions are drawn; as a number too, which no GPU is waited for
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.long))
        self._num_steps: int | None = None
        self.track_progress()
        self.post_init()

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        local_pixel_values: torch.FloatTensor | None = None,
        return_loss: bool = True,
    ) -> LejepaOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_large_crops, num_channels, height, width)`):
                Large crops of each image, at least 2.
            local_pixel_values (`torch.FloatTensor` of shape
                `(batch_size, num_small_crops, num_channels, local_height, local_width)`, *optional*):
                Small crops of each image, which predict the mean of the large ones and are no part of it.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        self.require_advanced()
        if pixel_values.ndim != 5 or pixel_values.shape[1] < 2:
            raise ValueError(
                "LeJEPA compares at least 2 large crops of each image: `pixel_values` has shape "
                f"{tuple(pixel_values.shape)}, expected (batch_size, 2, num_channels, height, width). `Views` makes "
                "them."
            )
        batch_size, num_large = pixel_values.shape[:2]
        self.require_several_images(batch_size)
        crops = [crop_by_crop(each) for each in (pixel_values, local_pixel_values) if each is not None]
        projections = self.branch(*crops).unflatten(0, (-1, batch_size))
        terms = lejepa_terms(projections, self._directions(projections), num_large, self.all_reduce)
        return LejepaOutput(**self.sum_terms(terms), projections=projections)

    @torch.compiler.disable
    def _directions(self, like: torch.Tensor) -> torch.Tensor:
        """Unit vectors `(num_directions, projector_output_dim)` of the step that is under way."""
        if self._num_steps is None:
            self._num_steps = int(self.num_steps)
        number = 1 + self._num_steps if self.training else 0
        # on the CPU: devices draw other numbers
        generator = torch.Generator().manual_seed(keyed.torch_seed(Use.DIRECTIONS, number))
        size = self.config.num_directions, self.config.projector_output_dim
        return F.normalize(torch.randn(size, generator=generator).to(like.device, non_blocking=True), dim=-1)

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """Other directions for the next step. [`~hfssl.training.callbacks.MethodCallback`] calls it."""
        super().after_optimizer_step(progress)
        self.num_steps.add_(1)
        self._num_steps = None if self._num_steps is None else self._num_steps + 1

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._num_steps = None

    def compared_embeddings(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Projections of two large crops beside a number for how long 1 is: `(batch_size, 2, dim + 1)`."""
        return with_unit_length(super().compared_embeddings(batch))
