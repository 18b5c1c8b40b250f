"""A teacher that says which prototypes an image shows, as in DINO: what keeps them apart, and what follows a run.

What keeps student and teacher from giving everything the same prototype is that the teacher's logits are centred
(against one prototype for all) and sharpened (against all prototypes for all).
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from ..functional.schedules import linear
from ..losses import sinkhorn_targets
from .distributed import all_reduce_with_grad
from .drop_path import build_with_drop_path, drop_path_shares
from .heads import DinoHead
from .teacher import TeacherMixin


class SelfDistillationMixin(TeacherMixin):
    """[`TeacherMixin`] for students whose heads are [`~hfssl.modeling.heads.DinoHead`].

    Its config has `teacher_temperature_start`, `_end` and `_warmup`, `centering`, `center_momentum`,
    `freeze_prototypes`, `drop_path_rate` and `drop_path_rate_end`, see [`check_self_distillation`].

    In `__init__`, make the encoder by [`build_student_encoder`] and each centre by [`add_center`]; in `forward`, call
    [`follow_schedules`] before the student.
    """

    def build_student_encoder(self) -> PreTrainedModel:
        """A fresh encoder, whose stochastic depth follows the run."""
        config = self.config
        highest_rate = max(config.drop_path_rate, config.drop_path_rate_end or 0.0)
        encoder = build_with_drop_path(config.encoder_config, highest_rate)
        self._drop_path_shares: dict[nn.Module, float] = {}
        if config.drop_path_rate_end is not None and highest_rate > 0.0:
            self._drop_path_shares = drop_path_shares(encoder, highest_rate)
        # by the name of a centre: sum of the logits since the last optimizer step, and how many they were
        self._logit_sums: dict[str, torch.Tensor] = {}
        return encoder

    def add_center(self, name: str, num_prototypes: int) -> None:
        """A buffer for the running mean of a kind of the teacher's logits."""
        self.register_buffer(name, torch.zeros(num_prototypes))

    def schedules(self, progress: float) -> dict[str, float]:
        config = self.config
        warmup = config.teacher_temperature_warmup
        temperature = linear(
            config.teacher_temperature_start, config.teacher_temperature_end, progress / warmup if warmup else 1.0
        )
        rate_end = config.drop_path_rate if config.drop_path_rate_end is None else config.drop_path_rate_end
        return {
            **super().schedules(progress),
            "teacher_temperature": temperature,
            "drop_path_rate": linear(config.drop_path_rate, rate_end, progress),
        }

    @property
    def _student_heads(self) -> list[DinoHead]:
        return [part for part in self.student.children() if isinstance(part, DinoHead)]

    @property
    def _prototypes_wait(self) -> bool:
        return self.progress < self.config.freeze_prototypes

    def waiting_parameters(self) -> list[nn.Parameter]:
        return [head.prototypes.weight for head in self._student_heads] if self._prototypes_wait else []

    @torch.compiler.disable  # sets what changes only in the course of a run: a compiler would look at it in each step
    def follow_schedules(self) -> None:
        # here and not after the last step, so that a model that was just loaded does so too
        waits = self.training and self._prototypes_wait
        for head in self._student_heads:
            head.trains_prototypes = not waits
        rate = self.schedules(self.progress)["drop_path_rate"]
        for module, share in self._drop_path_shares.items():
            module.drop_prob = share * rate

    @torch.compiler.disable  # a number of another value would be compiled again in each step
    def teacher_temperature(self, device: torch.device) -> torch.Tensor:
        temperature = self.schedules(self.progress)["teacher_temperature"]
        return torch.full((), temperature, dtype=torch.float64, device=device)  # as exact as the number

    def equal_shares(self, logits: torch.Tensor, counts: torch.Tensor | None = None) -> torch.Tensor:
        """Targets by Sinkhorn's equal shares, over all processes; see [`~hfssl.losses.sinkhorn_targets`]."""
        # evaluation goes on in each process alone
        together = all_reduce_with_grad if self.training else None
        return sinkhorn_targets(logits, self.teacher_temperature(logits.device), all_reduce=together, counts=counts)

    @torch.compiler.disable
    def add_logits(self, center: str, logits: torch.Tensor, counts: torch.Tensor | None = None) -> None:
        """Logits `(..., num_prototypes)` of the teacher that the centre of this name is to follow.

        `counts` `(...)` is `True` for those that do; all do when left out. Nothing happens outside of training, nor
        where there is no centre in use.
        """
        if not (self.training and torch.is_grad_enabled() and self.config.centering == "mean"):
            return
        dtype = getattr(self, center).dtype
        if counts is None:
            counts = torch.ones(logits.shape[:-1], dtype=dtype, device=logits.device)
            total = logits.sum(tuple(range(logits.ndim - 1)), dtype=dtype)
        else:
            counts = counts.to(dtype)
            total = counts.flatten() @ logits.flatten(0, -2).to(dtype)
        # the sum and how many it is of, for one message
        total = torch.cat([total, counts.sum()[None]])
        self._logit_sums[center] = self._logit_sums[center] + total if center in self._logit_sums else total

    def compared_embeddings(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the student holds against its prototypes, of two large crops: `(batch_size, 2, dim)`."""
        views = batch["pixel_values"].unbind(1)[:2]
        return torch.stack([self.student.projector.layers(self.student.features(view)) for view in views], dim=1)

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        super().after_optimizer_step(progress)
        for name, total in self._logit_sums.items():
            total = all_reduce_with_grad(total)
            center = getattr(self, name)
            # where there were none, it stays
            mean = torch.where(total[-1] > 0, total[:-1] / total[-1].clamp(min=1.0), center)
            center.lerp_(mean, 1.0 - self.config.center_momentum)
        self._logit_sums = {}


def check_self_distillation(config: Any) -> None:
    """Refuse impossible temperatures and shares; for the `validate_…` methods of configs.

    Raises:
        ValueError: if one is out of its range.
    """
    for name in ("student_temperature", "teacher_temperature_start", "teacher_temperature_end"):
        if not getattr(config, name) > 0.0:
            raise ValueError(f"`{name}` must be above 0, got {getattr(config, name)}.")
    for name in ("freeze_prototypes", "teacher_temperature_warmup", "center_momentum"):
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(config, name)}.")
    for name in ("drop_path_rate", "drop_path_rate_end"):
        if not 0.0 <= (getattr(config, name) or 0.0) < 1.0:
            raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(config, name)}.")
