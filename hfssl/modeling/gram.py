"""Gram anchoring: patches stay as similar to each other as an earlier teacher finds them, while the features go on.

Paper: DINOv3, Siméoni et al., 2025 (https://huggingface.co/papers/2508.10104), Section 4. In long runs features of
whole images become better and those of patches worse; an encoder of before holds these.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.utils import ModelOutput

from ..errors import UserError, brief
from ..losses import gram_loss
from .branch import VisionBranch
from .pooling import num_own_tokens
from .trial import patch_size_of
from .vision import build_vision_encoder, load_vision_encoder, side


class GramMixin:
    """A student whose patches are anchored, in front of [`~hfssl.modeling.teacher.TeacherMixin`] among the bases.

    Its config has `gram_weight`, `gram_teacher`, `gram_teacher_at`, `gram_start` and `gram_image_size`, see
    [`check_gram`]. In `__init__`, call [`build_gram_teacher`] before `self.post_init()`; in `forward`, [`gram_term`].
    Who begins a run calls [`read_gram_teacher`]; else the first step of training does.

    The encoder that anchors is a part of the model, and saved with it: a run that goes on needs its folder no more.
    """

    gram_teacher: VisionBranch | None

    def build_gram_teacher(self) -> None:
        config, self.gram_teacher = self.config.encoder_config, None
        self._gram_is_set: bool | None = None
        if self.config.gram_weight:
            self.gram_teacher = VisionBranch(build_vision_encoder(config), nn.Identity(), config)
            # whether it is what it is to be
            self.register_buffer("gram_is_set", torch.zeros(()))

    def read_gram_teacher(self) -> None:
        """Take the weights of `config.gram_teacher`, where there is one.

        Raises:
            UserError: if it cannot be read, or is another encoder than the one that is trained.
        """
        if self.gram_teacher is not None and self.config.gram_teacher is not None:
            self._set_gram_teacher(_checkpoint(self.config.gram_teacher, self.config.encoder_config))

    def gram_term(self, pixel_values: torch.Tensor, outputs: ModelOutput) -> torch.Tensor | None:
        """The loss of some images, `None` while there is none.

        Args:
            pixel_values (`torch.Tensor` of shape `(n, num_channels, height, width)`):
                Images.
            outputs (`ModelOutput`):
                Of the student's encoder for them.
        """
        if self.gram_teacher is None or not self._anchors():
            return None
        num_own = num_own_tokens(self.config.encoder_config)
        student = outputs.last_hidden_state[:, num_own:]
        with torch.no_grad():
            size = self.config.gram_image_size
            if size is not None and size != pixel_values.shape[-1]:
                pixel_values = F.interpolate(pixel_values, (size, size), mode="bicubic", align_corners=False)
            teacher = self.gram_teacher.encode(pixel_values).last_hidden_state[:, num_own:]
            if teacher.shape[1] != student.shape[1]:
                sides = [int(patches.shape[1] ** 0.5) for patches in (teacher, student)]
                grid = teacher.mT.unflatten(2, (sides[0], sides[0]))
                grid = F.interpolate(grid, (sides[1], sides[1]), mode="bicubic", align_corners=False)
                teacher = grid.flatten(2).mT
        return gram_loss(student, teacher)

    @torch.compiler.disable  # looks at what changes in the course of a run
    def _anchors(self) -> bool:
        if self._gram_is_set is None:
            self._gram_is_set = bool(self.gram_is_set.item())
        if not self._gram_is_set and self.training:
            self.read_gram_teacher()
        return self._gram_is_set and self.progress >= self.config.gram_start

    @torch.no_grad()
    def _set_gram_teacher(self, state: dict[str, torch.Tensor]) -> None:
        try:
            self.gram_teacher.encoder.load_state_dict(state)
        except RuntimeError as error:
            raise UserError(
                f"`gram_teacher={self.config.gram_teacher}` has other weights than this "
                f"{self.config.encoder_config.model_type} ({' '.join(str(error).split())[:200]}). Pass a checkpoint "
                "of the encoder that is trained, or leave it out for the run's own teacher."
            ) from error
        self.gram_is_set.fill_(1.0)
        self._gram_is_set = True

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        super().after_optimizer_step(progress)
        if self.gram_teacher is None or self.config.gram_teacher is not None:
            return
        if self._gram_is_set is None:
            self._gram_is_set = bool(self.gram_is_set.item())
        if not self._gram_is_set and progress >= self.config.gram_teacher_at:
            self._set_gram_teacher(self.without_adapters().teacher.encoder.state_dict())

    def train(self, mode: bool = True):
        super().train(mode)
        if self.gram_teacher is not None:
            self.gram_teacher.eval()
        return self

    def freeze(self) -> None:
        super().freeze()
        if self.gram_teacher is not None:
            self.gram_teacher.requires_grad_(False)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._gram_is_set = None


def _checkpoint(name_or_path: str, config: Any) -> dict[str, torch.Tensor]:
    size = side(config.image_size) if getattr(config, "image_size", None) else None
    try:
        return load_vision_encoder(name_or_path, size).state_dict()
    except Exception as error:  # a damaged or foreign file shows itself in many ways
        raise UserError(
            f"`gram_teacher={name_or_path}` is no folder with an encoder of images, nor one that the Hub gave: "
            f"{brief(error)}. Pass a checkpoint of the encoder that is trained, or leave it out for the run's own "
            "teacher."
        ) from error


def check_gram(config: Any) -> None:
    """Refuse impossible settings; for the `validate_…` methods of configs.

    Raises:
        ValueError: if a number is out of its range, or says something of what is not used.
    """
    if config.gram_weight < 0.0:
        raise ValueError(f"`gram_weight` must be at least 0, got {config.gram_weight}.")
    for name in ("gram_start", "gram_teacher_at"):
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"`{name}` is a share of the run, between 0 and 1, got {getattr(config, name)}.")
    if config.gram_teacher is None and config.gram_start < config.gram_teacher_at:
        raise ValueError(
            f"Patches are anchored from `gram_start={config.gram_start}` of the run on, but the teacher that does it "
            f"is that of `gram_teacher_at={config.gram_teacher_at}`: lower this one, or raise the other."
        )
    if not config.gram_weight and (config.gram_teacher is not None or config.gram_image_size is not None):
        raise ValueError(
            "`gram_teacher` and `gram_image_size` mean nothing with `gram_weight=0`. Pass a weight, such as 1."
        )
    patch, size = patch_size_of(config.encoder_config), config.gram_image_size
    if size is not None and patch and (size < side(patch) or size % side(patch)):
        nearest = max(round(size / side(patch)), 1) * side(patch)
        raise ValueError(
            f"`gram_image_size={size}` is no multiple of the patches of {side(patch)} pixels. Pass {nearest}."
        )
