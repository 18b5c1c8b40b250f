"""DINO: give each crop of an image the class that a teacher gives the other crops, among classes that nobody named.

Paper: Emerging Properties in Self-Supervised Vision Transformers, Caron et al., 2021
(https://huggingface.co/papers/2104.14294). Reference code: https://github.com/facebookresearch/dino.

The student sees large and small crops, the teacher large ones only. What keeps both from giving every crop the same
class is that the teacher's logits are centred (against one class for all) and sharpened (against all classes for all).
Crops of one size go through the encoder together, all crops through the head together. What is exported is the
teacher's encoder.

Departures from the paper: the centre moves once an optimizer step, by all the logits of that step over all processes
and accumulation steps, so that the gradient does not depend on how a batch is cut. Batch norm (of the encoder, or of
the head with `projector_batch_norm`) and `centering="sinkhorn"` see one forward pass of all processes: 2 processes of
N images are still 1 of 2N, but 2 accumulation steps of N are not. As in the reference code, batch norm in the head
sees the student's large and small crops together; the teacher's uses the statistics of its own batch.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...functional.views import View, ViewPreset
from ...losses import cross_view_entropy, dino_loss
from ...modeling.branch import VisionBranch, crop_by_crop
from ...modeling.distributed import convert_batch_norm
from ...modeling.heads import DinoHead
from ...modeling.method import BenchmarkSettings, LearningRates, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.self_distillation import SelfDistillationMixin, check_self_distillation
from ...modeling.teacher import check_momentum
from ...modeling.vision import SSLVisionModel


# main_dino.py. PIL's blur, which it used, has no kernel size: as wide as sigma wants it.
_FIRST_VIEW = View(
    scale=(0.4, 1.0), interpolation="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8,
    grey_probability=0.2, blur_probability=1.0, blur_width=None,
)  # fmt: skip
_SECOND_VIEW = replace(_FIRST_VIEW, blur_probability=0.1, solarize_probability=0.2)
_LOCAL_VIEW = replace(_FIRST_VIEW, scale=(0.05, 0.4), blur_probability=0.5)


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    temperature, momentum = config.teacher_temperature_end, config.momentum_start
    constant = (
        f"all images have the same prototypes. With a loss at log({config.num_prototypes}) these are all of them: "
        f"lower `teacher_temperature_end={temperature:g}`; with a loss near 0 it is one of them: lower "
        f"`center_momentum={config.center_momentum:g}`, so that the centre follows, or pass `centering=sinkhorn`; and "
        "lower `--learning_rate`"
    )
    if config.centering == "sinkhorn":  # no prototype takes all images, and there is no centre to follow
        constant = (
            "the student gives every image all prototypes alike (its loss stays at "
            f"log({config.num_prototypes})): lower `teacher_temperature_end={temperature:g}` and `--learning_rate`, "
            f"or raise `momentum_start={momentum:g}`"
        )
    return {
        "constant": constant,
        "few directions": "a few prototypes take all images: freeze them for longer with a larger "
        f"`freeze_prototypes={config.freeze_prototypes:g}`, raise `momentum_start={momentum:g}`, or lower "
        "`--learning_rate`",
    }


METHOD = Method(
    title="DINO",
    modality="image",
    views=ViewPreset((_FIRST_VIEW, _SECOND_VIEW), local=_LOCAL_VIEW, num_local=8),
    learning_rates=LearningRates(lars=0.3, narrow=2e-3, wide=5e-4, checkpoint=1e-4),
    narrow_heads={"projector_hidden_dim": 512, "projector_output_dim": 128, "num_prototypes": 1024},
    # a digit is its brightness: recoloured, views of one are no more alike than two digits
    embedded_views={"digits": {"jitter": (0.0, 0.0, 0.0, 0.0), "solarize_probability": [0.0]}},
    collapse_hints=_collapse_hints,
    chance=lambda config, context: {"loss": math.log(config.num_prototypes)},
    benchmark=BenchmarkSettings(
        views={"local_crops": 6},  # as many as the transform of lightly makes by default
        short_config={
            "momentum_start": 0.99, "teacher_temperature_start": 0.02, "teacher_temperature_end": 0.02,
            "drop_path_rate": 0.0,
        },
        short_training={"weight_decay": 0.04, "weight_decay_end": 0.4, "max_grad_norm": 3.0},
        notes={
            "lightly": "lightly's heads of student and teacher begin with weights of their own, as in its example. "
            "Its loss multiplies probabilities at the precision of the run, ours in fp32."
        },
    ),
)  # fmt: skip


@strict
class DinoPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`DinoForPreTraining`]. The defaults are the paper's, for 300 epochs of ImageNet (Section 3 and
    appendix).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows and that takes crops of
            any size. ViT-B/16 when left out.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `3`):
            Linear layers of the head before its prototypes.
        projector_hidden_dim (`int`, *optional*, defaults to `2048`):
            Width of the head.
        projector_output_dim (`int`, *optional*, defaults to `256`):
            Size of a projection, which is normalised (the bottleneck).
        projector_batch_norm (`bool`, *optional*, defaults to `False`):
            Batch norm in the hidden layers of the head; the paper's head for ViTs has none. It makes the little by
            which a fresh ViT tells images apart as large as what all of them share, without which short runs stay
            where every prototype is as likely.
        num_prototypes (`int`, *optional*, defaults to `65536`):
            Classes (K).
        freeze_prototypes (`float`, *optional*, defaults to `0.0033`):
            Share of the run for which the prototypes stay as they are, in [0, 1]: 1 of 300 epochs.
        student_temperature (`float`, *optional*, defaults to `0.1`):
            Divisor of the student's logits (τ_s), above 0.
        teacher_temperature_start (`float`, *optional*, defaults to `0.04`):
            Divisor of the teacher's logits at the first step (τ_t), above 0.
        teacher_temperature_end (`float`, *optional*, defaults to `0.07`):
            Divisor of the teacher's logits after its warm-up. Lower it where the loss stays at that of chance.
        teacher_temperature_warmup (`float`, *optional*, defaults to `0.1`):
            Share of the run in which it rises along a line, in [0, 1]: 30 of 300 epochs.
        centering (`str`, *optional*, defaults to `"mean"`):
            What keeps one prototype from taking all images: mean subtracts the centre from the teacher's logits;
            sinkhorn gives each prototype the same share of the images of a step, as DINOv2 does.
        center_momentum (`float`, *optional*, defaults to `0.9`):
            Momentum of the centre (m), in [0, 1].
        momentum_start (`float`, *optional*, defaults to `0.996`):
            Momentum of the teacher at the first step (λ). The reference code advises 0.9995 for 256 images a step.
        momentum_end (`float`, *optional*, defaults to `1.0`):
            Momentum of the teacher at the last step. It rises along half a cosine.
        drop_path_rate (`float`, *optional*, defaults to `0.1`):
            Stochastic depth of the student's encoder, in [0, 1); what is dropped is not computed. None in the teacher.
        drop_path_rate_end (`float`, *optional*):
            Rate at the end of the run, in [0, 1), to which `drop_path_rate` goes along a line. Left out: it stays.
    """

    model_type = "hfssl_dino"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str | None = None
    projector_num_layers: int = 3
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 256
    projector_batch_norm: bool = False
    num_prototypes: int = 65536
    freeze_prototypes: float = 0.0033
    student_temperature: float = 0.1
    teacher_temperature_start: float = 0.04
    teacher_temperature_end: float = 0.07
    teacher_temperature_warmup: float = 0.1
    centering: Literal["mean", "sinkhorn"] = "mean"
    center_momentum: float = 0.9
    momentum_start: float = 0.996
    momentum_end: float = 1.0
    drop_path_rate: float = 0.1
    drop_path_rate_end: float | None = None

    def validate_schedules(self):
        check_self_distillation(self)

    def validate_momentum(self):
        check_momentum(self)

    def validate_projector(self):
        for name in ("projector_num_layers", "projector_hidden_dim", "projector_output_dim", "num_prototypes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class DinoOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Cross-entropy, mean over the batch and over all pairs of a teacher's and another student's crop.
            log(num_prototypes) is chance.
        student_logits (`torch.FloatTensor` of shape `(num_crops, batch_size, num_prototypes)`):
            Of the large crops, then of the small ones. Left out in training mode.
        teacher_logits (`torch.FloatTensor` of shape `(num_large_crops, batch_size, num_prototypes)`):
            Without gradient, and not centred. Left out in training mode.
    """

    loss: torch.FloatTensor | None = None
    student_logits: torch.FloatTensor | None = None
    teacher_logits: torch.FloatTensor | None = None


class DinoForPreTraining(SelfDistillationMixin, SSLVisionModel):
    config_class = DinoPreTrainingConfig
    method = METHOD
    base_model_prefix = "student"
    exported = "teacher"
    paper = {
        "title": "Emerging Properties in Self-Supervised Vision Transformers",
        "id": "2104.14294",
        "citation": "@inproceedings{caron2021emerging,\n  title = {Emerging Properties in Self-Supervised Vision "
        "Transformers},\n  author = {Caron, Mathilde and Touvron, Hugo and Misra, Ishan and J{\\'e}gou, Herv{\\'e} "
        "and Mairal, Julien and Bojanowski, Piotr and Joulin, Armand},\n  booktitle = {ICCV},\n  year = {2021}\n}",
    }

    def __init__(self, config: DinoPreTrainingConfig):
        super().__init__(config)
        self.student = VisionBranch(
            self.build_student_encoder(),
            DinoHead(
                feature_size(config.encoder_config, config.pooling), config.projector_hidden_dim,
                config.projector_output_dim, config.num_prototypes, config.projector_num_layers,
                config.projector_batch_norm,
            ),
            config.encoder_config,
            config.pooling,
        )  # fmt: skip
        convert_batch_norm(self)
        self.build_teacher()
        self.add_center("center", config.num_prototypes)
        self.post_init()

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        local_pixel_values: torch.FloatTensor | None = None,
        return_loss: bool = True,
    ) -> DinoOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_large_crops, num_channels, height, width)`):
                Large crops of each image, at least 2.
            local_pixel_values (`torch.FloatTensor` of shape
                `(batch_size, num_small_crops, num_channels, local_height, local_width)`, *optional*):
                Small crops of each image, which only the student sees.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        self.require_advanced()
        if pixel_values.ndim != 5 or pixel_values.shape[1] < 2:
            raise ValueError(
                "DINO compares at least 2 large crops of each image: `pixel_values` has shape "
                f"{tuple(pixel_values.shape)}, expected (batch_size, 2, num_channels, height, width). `Views` makes "
                "them."
            )
        batch_size = len(pixel_values)
        crops = [crop_by_crop(pixel_values)]
        with torch.no_grad():
            teacher_logits = self.teacher(*crops).unflatten(0, (-1, batch_size))
        if local_pixel_values is not None:
            crops.append(crop_by_crop(local_pixel_values))
        self.follow_schedules()
        student_logits = self.student(*crops).unflatten(0, (-1, batch_size))
        loss = self._loss(student_logits, teacher_logits)
        if self.training:
            self.add_logits("center", teacher_logits)
            return DinoOutput(loss=loss)
        return DinoOutput(loss=loss, student_logits=student_logits, teacher_logits=teacher_logits)

    def _loss(self, student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        temperature = self.config.student_temperature
        if self.config.centering == "mean":
            sharpness = self.teacher_temperature(student_logits.device)
            return dino_loss(student_logits, teacher_logits, self.center, temperature, sharpness)
        return cross_view_entropy(student_logits, self.equal_shares(teacher_logits), temperature)

    def target_margin(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """By how much the loss grows when the teacher is shown other images: `(batch_size,)`, the mean for each.

        A share of log(num_prototypes), the loss of chance. 0 where the prototypes of all images are the same. For
        models in evaluation mode.
        """
        output = self(batch["pixel_values"])
        others = self._loss(output.student_logits, output.teacher_logits.roll(1, dims=1))
        share = (others - output.loss) / math.log(self.config.num_prototypes)
        return share.expand(len(batch["pixel_values"]))
