"""DINOv2: DINO of images, and iBOT of masked patches, by one teacher; and features that keep their distance (KoLeo).

Papers: DINOv2: Learning Robust Visual Features without Supervision, Oquab et al., 2023
(https://huggingface.co/papers/2304.07193); iBOT: Image BERT Pre-Training with Online Tokenizer, Zhou et al., 2021
(https://huggingface.co/papers/2111.07832), which is this one without KoLeo (`recipes/configs/ibot_imagenet.yaml`).
Reference code: https://github.com/facebookresearch/dinov2.

Blocks of patches of half of the large crops are masked for the student. It says of a crop which prototypes the teacher
gives the other crops of the image, and of a masked patch which ones the teacher gives this patch, which it sees. Both
go through the head together; by `patch_head="separate"` patches have one of their own. What is exported is the
teacher's encoder.

Departures from the reference code: masks are drawn for each image by itself, one of its two large crops at a ratio of
its own: the code shares out ratios over the crops of a batch, so that masks would depend on how it is cut. Where no
more blocks fit, single patches are masked, so that it is as many as were drawn. The centres move once an optimizer
step, each by the mean of all the logits of that step over all processes and accumulation steps. Without small crops
the loss of crops is the mean over the pairs that there are. Sinkhorn's shares (of all processes), batch norm in the
head (likewise) and KoLeo (of one process, as in the code) are those of one forward pass: with them accumulation steps
are not one larger batch. An encoder without a mask token of its own, such as a ViT, gets one that lies beside it.
Prototypes have the length 1, as in DINO, where the code trains their lengths too (`weight_g`). While they wait, their
gradient neither counts in the norm by which all are clipped nor in Adam's moments; the code sets their rate to 0. It
clips encoder and heads each by a norm of its own, here there is one of all. Of DINOv3 there is Gram
anchoring (`gram_weight`), whose teacher may get its crops enlarged (`gram_image_size`): the code cuts them out of the
image again, which shows more.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...errors import UserError
from ...functional.views import View, ViewPreset
from ...losses import at_least_float32, cross_view_entropy, ibot_loss, koleo_loss
from ...modeling.branch import crop_by_crop
from ...modeling.distributed import convert_batch_norm
from ...modeling.gram import GramMixin, check_gram
from ...modeling.heads import DinoHead
from ...modeling.masked_branch import MaskedBranch, has_mask_token, mask_of, takes_masked_patches
from ...modeling.method import BenchmarkSettings, LearningRates, LossContext, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.self_distillation import SelfDistillationMixin, check_self_distillation
from ...modeling.teacher import check_momentum
from ...modeling.trial import patch_size_of
from ...modeling.vision import SSLVisionModel, side, unpatchify


# data/augmentations.py and configs/ssl_default_config.yaml
_FIRST_VIEW = View(
    scale=(0.32, 1.0), interpolation="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8,
    grey_probability=0.2, blur_probability=1.0, blur_width=None,
)  # fmt: skip
_SECOND_VIEW = replace(_FIRST_VIEW, blur_probability=0.1, solarize_probability=0.2)
_LOCAL_VIEW = replace(_FIRST_VIEW, scale=(0.05, 0.32), blur_probability=0.5)


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    temperature, momentum = config.teacher_temperature_end, config.momentum_start
    hints = (
        f"lower `teacher_temperature_end={temperature:g}` and `--learning_rate`, or raise "
        f"`momentum_start={momentum:g}`"
    )
    if config.centering == "mean":
        hints += "; where one prototype takes all images, pass `centering=sinkhorn`"
    return {
        "constant": f"all images have the same prototypes: {hints}",
        "few directions": "a few prototypes take all images: freeze them for longer with a larger "
        f"`freeze_prototypes={config.freeze_prototypes:g}`, raise `koleo_weight={config.koleo_weight:g}` or "
        f"`momentum_start={momentum:g}`, or lower `--learning_rate`",
    }


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    # half of the large crops have masked patches
    levels = {"dino": math.log(config.num_prototypes), "ibot": 0.5 * math.log(config.num_patch_prototypes)}
    total = sum(getattr(config, f"{name}_weight") * level for name, level in levels.items())
    chance = {f"loss_{name}": level for name, level in levels.items()}
    # how far features lie apart that say nothing is no one's to say
    return chance if config.koleo_weight else chance | {"loss": total}


METHOD = Method(
    title="DINOv2",
    modality="image",
    views=ViewPreset((_FIRST_VIEW, _SECOND_VIEW), local=_LOCAL_VIEW, num_local=8, mask_ratio=(0.1, 0.5)),
    learning_rates=LearningRates(lars=0.3, narrow=2e-3, wide=5e-4, checkpoint=5e-5),
    narrow_heads={"projector_hidden_dim": 512, "projector_output_dim": 128, "num_prototypes": 1024},
    # what a checkpoint knows is changed slowly, and not before its new heads say something
    continued={"pooling": None, "projector_batch_norm": False, "momentum_start": 0.999, "freeze_encoder": 0.1},
    # of ssl_default_config.yaml
    continued_training={"layer_decay": 0.9, "patch_embed_rate": 0.2},
    # a digit is its brightness; of letters half is ground, whose lightness equal shares of prototypes would make count
    embedded_views={
        "digits": {"jitter": (0.0,) * 4, "solarize_probability": [0.0]}, "letters": {"jitter": (0.8, 0.8, 0.0, 0.0)},
    },  # fmt: skip
    collapse_hints=_collapse_hints,
    chance=_chance,
    benchmark=BenchmarkSettings(
        views={"local_crops": 6},  # as DINO's
        short_config={
            "momentum_start": 0.99, "teacher_temperature_start": 0.02, "teacher_temperature_end": 0.02,
            "drop_path_rate": 0.0,
        },
        short_training={"weight_decay": 0.04, "weight_decay_end": 0.4, "max_grad_norm": 3.0},
        notes={
            "lightly": "lightly's heads of student and teacher begin with weights of their own, as in its example, "
            "and their prototypes have a gain that learns. Its masks are drawn for the batch, not for each image."
        },
    ),
)  # fmt: skip


@strict
class Dinov2PreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`Dinov2ForPreTraining`]. The defaults are those of the reference code, for 100 epochs of ImageNet
    (`ssl_default_config.yaml` and `train/vitl16_short.yaml`).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: dinov2, dinov2_with_registers, dinov3_vit, vit or another model of patches that
            [`~transformers.AutoModel`] knows and that takes crops of any size. ViT-B/16 when left out.
        pooling (`str`, *optional*):
            The feature of a crop that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has
            such a token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `3`):
            Linear layers of the head before its prototypes.
        projector_hidden_dim (`int`, *optional*, defaults to `2048`):
            Width of the head.
        projector_output_dim (`int`, *optional*, defaults to `256`):
            Size of a projection, which is normalised (the bottleneck).
        projector_batch_norm (`bool`, *optional*, defaults to `False`):
            Batch norm in the hidden layers of the head; the paper's has none. It makes the little by which a fresh ViT
            tells images apart as large as what all of them share, without which short runs stay where every prototype
            is as likely.
        num_prototypes (`int`, *optional*, defaults to `65536`):
            Classes (K).
        patch_head (`str`, *optional*, defaults to `"shared"`):
            Which head patches go through: shared, that of the crops; or separate, as in the longer runs of the paper.
        patch_projector_output_dim, patch_num_prototypes (`int`, *optional*):
            Of a separate head. Left out: those of the other.
        freeze_prototypes (`float`, *optional*, defaults to `0.01`):
            Share of the run for which the prototypes stay as they are, in [0, 1]: 1 of 100 epochs.
        freeze_encoder (`float`, *optional*, defaults to `0.0`):
            Share of the run for which only the heads learn, in [0, 1], and the encoder stays as it is: to continue a
            checkpoint, whose heads nobody publishes. Fresh ones would pull it away from what it knows. 0.1 of a
            checkpoint that is continued by the recipe.
        student_temperature (`float`, *optional*, defaults to `0.1`):
            Divisor of the student's logits, above 0.
        teacher_temperature_start (`float`, *optional*, defaults to `0.04`):
            Divisor of the teacher's logits at the first step, above 0.
        teacher_temperature_end (`float`, *optional*, defaults to `0.07`):
            Divisor of the teacher's logits after its warm-up. Lower it where the loss stays at that of chance.
        teacher_temperature_warmup (`float`, *optional*, defaults to `0.3`):
            Share of the run in which it rises along a line, in [0, 1]: 30 of 100 epochs.
        centering (`str`, *optional*, defaults to `"mean"`):
            What keeps one prototype from taking everything: mean subtracts a centre from the teacher's logits, one for
            crops and one for patches; sinkhorn gives each prototype the same share of the crops, and of the masked
            patches, of a step, as the longer runs of the paper do.
        center_momentum (`float`, *optional*, defaults to `0.9`):
            Momentum of the centres, in [0, 1].
        momentum_start (`float`, *optional*, defaults to `0.992`):
            Momentum of the teacher at the first step.
        momentum_end (`float`, *optional*, defaults to `1.0`):
            Momentum of the teacher at the last step. It rises along half a cosine.
        drop_path_rate (`float`, *optional*, defaults to `0.3`):
            Stochastic depth of the student's encoder, in [0, 1); what is dropped is not computed. None in the teacher.
        drop_path_rate_end (`float`, *optional*):
            Rate at the end of the run, in [0, 1), to which `drop_path_rate` goes along a line. Left out: it stays.
        dino_weight, ibot_weight (`float`, *optional*, default to `1.0`):
            Weights of the loss of crops and of that of masked patches.
        koleo_weight (`float`, *optional*, defaults to `0.1`):
            Weight of the spread of the features of each large crop within a batch. 0 leaves it out.
        gram_weight (`float`, *optional*, defaults to `0.0`):
            Weight of Gram anchoring (DINOv3): patches of large crops stay as similar to each other as an earlier
            teacher finds them. 0 leaves it out.
        gram_teacher (`str`, *optional*):
            That teacher: folder or Hub id of a checkpoint of the same encoder, such as the result of an earlier run.
            Left out: the run's own teacher, as it is at `gram_teacher_at`.
        gram_teacher_at (`float`, *optional*, defaults to `0.2`):
            Share of the run after which its own teacher is kept for this, in [0, 1].
        gram_start (`float`, *optional*, defaults to `0.5`):
            Share of the run from which on patches are anchored, in [0, 1].
        gram_image_size (`int`, *optional*):
            Height and width to which crops are enlarged for that teacher, whose patches are then reduced to those of
            the student. Left out: as they are.
    """

    model_type = "hfssl_dinov2"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str | None = None
    projector_num_layers: int = 3
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 256
    projector_batch_norm: bool = False
    num_prototypes: int = 65536
    patch_head: Literal["shared", "separate"] = "shared"
    patch_projector_output_dim: int | None = None
    patch_num_prototypes: int | None = None
    freeze_prototypes: float = 0.01
    freeze_encoder: float = 0.0
    student_temperature: float = 0.1
    teacher_temperature_start: float = 0.04
    teacher_temperature_end: float = 0.07
    teacher_temperature_warmup: float = 0.3
    centering: Literal["mean", "sinkhorn"] = "mean"
    center_momentum: float = 0.9
    momentum_start: float = 0.992
    momentum_end: float = 1.0
    drop_path_rate: float = 0.3
    drop_path_rate_end: float | None = None
    dino_weight: float = 1.0
    ibot_weight: float = 1.0
    koleo_weight: float = 0.1
    gram_weight: float = 0.0
    gram_teacher: str | None = None
    gram_teacher_at: float = 0.2
    gram_start: float = 0.5
    gram_image_size: int | None = None

    def validate_encoder(self):
        if not takes_masked_patches(self.encoder_config):
            raise ValueError(
                f"DINOv2 masks patches and wants them back one by one, which a {self.encoder_config.model_type} does "
                "not give. Choose a vit (such as vit-mini-patch4 or vit-small-patch16), a dinov2 or a dinov3_vit, or "
                "another method, such as dino."
            )

    def validate_schedules(self):
        check_self_distillation(self)
        if not 0.0 <= self.freeze_encoder <= 1.0:
            raise ValueError(f"`freeze_encoder` must be between 0 and 1, got {self.freeze_encoder}.")

    def validate_momentum(self):
        check_momentum(self)

    def validate_projector(self):
        for name in ("projector_num_layers", "projector_hidden_dim", "projector_output_dim", "num_prototypes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("patch_projector_output_dim", "patch_num_prototypes"):
            value = getattr(self, name)
            if value is not None and self.patch_head == "shared":
                raise ValueError(
                    f"`{name}={value}` is of a head for patches alone, and here they share that of the crops. Leave "
                    "it out, or pass `patch_head=separate`."
                )
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")

    def validate_gram(self):
        check_gram(self)

    def validate_weights(self):
        for name in ("dino_weight", "ibot_weight", "koleo_weight"):
            if getattr(self, name) < 0.0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)

    @property
    def num_patch_prototypes(self) -> int:
        """Prototypes of patches, in whichever head they are."""
        return self.patch_num_prototypes or self.num_prototypes


@dataclass
class Dinov2Output(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Sum of the terms, each times its weight.
        loss_terms (`dict[str, torch.FloatTensor]`):
            `dino`: cross-entropy, mean over the batch and over all pairs of a teacher's and another student's crop;
            log(num_prototypes) is chance. `ibot`: that of masked patches, mean over those of a large crop and over all
            large crops, masked or not. `koleo`: sum over the large crops of the logarithms of how near features lie.
            `gram`: squared difference of the similarities of patches, once they are anchored.
        student_logits (`torch.FloatTensor` of shape `(num_crops, batch_size, num_prototypes)`):
            Of the large crops, then of the small ones. Left out in training mode.
        teacher_logits (`torch.FloatTensor` of shape `(num_large_crops, batch_size, num_prototypes)`):
            Without gradient, and not centred. Left out in training mode.
    """

    loss: torch.FloatTensor | None = None
    loss_terms: dict[str, torch.FloatTensor] | None = None
    student_logits: torch.FloatTensor | None = None
    teacher_logits: torch.FloatTensor | None = None


class Dinov2Branch(MaskedBranch):
    """Encoder, head of crops, and head of patches where they have one of their own."""

    def __init__(self, encoder: nn.Module, config: Dinov2PreTrainingConfig):
        def head(input_dim: int, output_dim: int, num_prototypes: int) -> DinoHead:
            return DinoHead(
                input_dim, config.projector_hidden_dim, output_dim, num_prototypes, config.projector_num_layers,
                config.projector_batch_norm,
            )  # fmt: skip

        size = feature_size(config.encoder_config, config.pooling)
        projector = head(size, config.projector_output_dim, config.num_prototypes)
        super().__init__(encoder, projector, config.encoder_config, config.pooling)
        self.patch_projector: DinoHead | None = None
        if config.patch_head == "separate":
            output_dim = config.patch_projector_output_dim or config.projector_output_dim
            patch_size = feature_size(config.encoder_config, "mean")
            self.patch_projector = head(patch_size, output_dim, config.num_patch_prototypes)

    def project(
        self, features: torch.Tensor, patches: torch.Tensor, is_masked: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of crops and of patches, both through one head at once where they share it.

        What only fills up the patches, where `is_masked` is `False`, changes nothing of the others.
        """
        if self.patch_projector is not None:
            return self.projector(features), self.patch_projector(patches, is_masked)
        counts = torch.cat([is_masked.new_ones(len(features)), is_masked])
        logits = self.projector(torch.cat([features, patches]), counts)
        return logits[: len(features)], logits[len(features) :]


class Dinov2ForPreTraining(GramMixin, SelfDistillationMixin, SSLVisionModel):
    config_class = Dinov2PreTrainingConfig
    method = METHOD
    base_model_prefix = "student"
    exported = "teacher"
    loss_units = {"dino": "nats", "ibot": "nats", "gram": "squared cosine", "koleo": "minus log distance"}
    paper = {
        "title": "DINOv2: Learning Robust Visual Features without Supervision",
        "id": "2304.07193",
        "citation": "@article{oquab2024dinov2,\n  title = {{DINOv2}: Learning Robust Visual Features without "
        "Supervision},\n  author = {Oquab, Maxime and Darcet, Timoth{\\'e}e and Moutakanni, Th{\\'e}o and others},\n"
        "  journal = {Transactions on Machine Learning Research},\n  year = {2024}\n}",
    }

    def __init__(self, config: Dinov2PreTrainingConfig):
        super().__init__(config)
        self.uses_mask_token = has_mask_token(config.encoder_config)
        self.student = Dinov2Branch(self.build_student_encoder(), config)
        convert_batch_norm(self)
        self.build_teacher()
        self.build_gram_teacher()
        self.add_center("center", config.num_prototypes)
        self.add_center("patch_center", config.num_patch_prototypes)
        self._trains_encoder = True
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self):
        if self.student.mask_token is not None:
            init.zeros_(self.student.mask_token)
        super().initialize_weights()

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        local_pixel_values: torch.FloatTensor | None = None,
        masked_patches: torch.LongTensor | None = None,
        return_loss: bool = True,
    ) -> Dinov2Output:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_large_crops, num_channels, height, width)`):
                Large crops of each image, at least 2.
            local_pixel_values (`torch.FloatTensor` of shape
                `(batch_size, num_small_crops, num_channels, local_height, local_width)`, *optional*):
                Small crops of each image, which only the student sees.
            masked_patches (`torch.LongTensor` of shape `(batch_size, most)`, *optional*):
                Patches that the student does not see, counted through those of all large crops of an image, crop by
                crop; an image with fewer than the most ends in -1. None are masked when left out.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        self.require_advanced()
        if pixel_values.ndim != 5 or pixel_values.shape[1] < 2:
            raise ValueError(
                "DINOv2 compares at least 2 large crops of each image: `pixel_values` has shape "
                f"{tuple(pixel_values.shape)}, expected (batch_size, 2, num_channels, height, width). `Views` makes "
                "them."
            )
        batch_size, num_large = pixel_values.shape[:2]
        large = crop_by_crop(pixel_values)
        with torch.no_grad():
            teacher_outputs = self.teacher.encode(large)
            mask, places, image_index = self._masks(masked_patches, teacher_outputs, batch_size, num_large)
            is_masked = image_index < len(large)
            teacher_logits, teacher_patch_logits = self.teacher.project(
                self.teacher.pool(teacher_outputs), self.teacher.patches_at(teacher_outputs, places), is_masked
            )
            teacher_logits = teacher_logits.unflatten(0, (-1, batch_size))
            patch_targets = self._targets("patch_center", teacher_patch_logits, is_masked)
        self.follow_schedules()
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._trains_encoder):
            outputs = self.student.encode(large, bool_masked_pos=mask)
            features = large_features = self.student.pool(outputs)
            patches = self.student.patches_at(outputs, places)
            if local_pixel_values is not None:
                features = torch.cat([features, self.student.features(crop_by_crop(local_pixel_values))])
        if not self._trains_encoder:  # a gradient of 0, for which DDP waits
            features = features + 0.0 * sum(parameter.sum() for parameter in self.student.parameters_below_heads())
        student_logits, patch_logits = self.student.project(features, patches, is_masked)
        student_logits = student_logits.unflatten(0, (-1, batch_size))
        temperature = self.config.student_temperature
        terms = {
            "dino": self._dino_loss(student_logits, teacher_logits),
            "ibot": ibot_loss(patch_logits, patch_targets, image_index, len(large), temperature),
        }
        if (gram := self.gram_term(large, outputs)) is not None:
            terms["gram"] = gram
        if self.config.koleo_weight:
            terms["koleo"] = self._koleo_loss(large_features.unflatten(0, (-1, batch_size)))
        output = Dinov2Output(**self.sum_terms(terms))
        if self.training:
            self.add_logits("center", teacher_logits)
            self.add_logits("patch_center", teacher_patch_logits, is_masked)
        else:
            output.student_logits, output.teacher_logits = student_logits, teacher_logits
        return output

    def waiting_parameters(self) -> list[nn.Parameter]:
        waits = self.progress < self.config.freeze_encoder
        return super().waiting_parameters() + (self.student.parameters_below_heads() if waits else [])

    @torch.compiler.disable
    def follow_schedules(self) -> None:
        super().follow_schedules()
        self._trains_encoder = not (self.training and self.progress < self.config.freeze_encoder)

    def _masks(
        self, masked_patches: torch.Tensor | None, outputs: ModelOutput, batch_size: int, num_large: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Which patches of each large crop are masked, where they stand among those of all crops, and their crops.

        Returns:
            `torch.BoolTensor` of shape `(num_large * batch_size, num_patches)`, and two `torch.LongTensor` of shape
            `(batch_size * most,)`. What only fills up is the first patch, of the crop `num_large * batch_size`.
        """
        hidden = outputs.last_hidden_state
        num_patches = hidden.shape[1] - self.student.num_own
        if masked_patches is None:
            masked_patches = torch.full((batch_size, 1), -1, device=hidden.device)
        mask = crop_by_crop(mask_of(masked_patches, num_large, num_patches))
        is_masked, patch = masked_patches >= 0, masked_patches.long().clamp(min=0)
        crop = patch // num_patches * batch_size + torch.arange(batch_size, device=hidden.device)[:, None]
        places = crop * num_patches + patch % num_patches
        return mask, places.flatten(), crop.where(is_masked, num_large * batch_size).flatten()

    def hidden_pixels(self, batch: dict[str, torch.Tensor]) -> torch.BoolTensor:
        """Which pixels of its large crops the student does not see, `(batch_size, num_large_crops, height, width)`."""
        size = side(patch_size_of(self.config.encoder_config))
        num_large, height = batch["pixel_values"].shape[1], batch["pixel_values"].shape[-1]
        mask = mask_of(batch["masked_patches"], num_large, (height // size) ** 2)
        hidden = unpatchify(mask.flatten(0, 1)[..., None].expand(-1, -1, size**2), size)
        return hidden[:, 0].unflatten(0, (-1, num_large))

    def _targets(self, center: str, logits: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """The teacher's probabilities, kept apart by a centre or by equal shares."""
        if self.config.centering == "sinkhorn":
            return self.equal_shares(logits, counts)
        logits = at_least_float32(logits) - getattr(self, center)
        return F.softmax(logits / self.teacher_temperature(logits.device), dim=-1)

    def _dino_loss(self, student_logits: torch.Tensor, teacher_logits: torch.Tensor) -> torch.Tensor:
        targets = self._targets("center", teacher_logits)
        return cross_view_entropy(student_logits, targets, self.config.student_temperature)

    def _koleo_loss(self, features: torch.Tensor) -> torch.Tensor:
        if features.shape[1] > 1:
            return sum(koleo_loss(crop) for crop in features)
        if self.training:
            raise UserError(
                "KoLeo keeps the features of the images of a batch apart, and the batch of a process has 1. Pass a "
                "larger `--per_device_train_batch_size`, or `--koleo_weight 0`."
            )
        return features.sum() * 0.0

    def target_margin(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """By how much the loss of crops grows when the teacher sees other images, the mean for each, `(batch_size,)`.

        A share of log(num_prototypes), the loss of chance. 0 where the prototypes of all images are the same. For
        models in evaluation mode.
        """
        output = self(batch["pixel_values"])
        others = self._dino_loss(output.student_logits, output.teacher_logits.roll(1, dims=1))
        share = (others - output.loss_terms["dino"]) / math.log(self.config.num_prototypes)
        return share.expand(len(batch["pixel_values"]))
