"""Teachers: copies of a student that follow it by exponential moving average, and see no gradient.

A teacher is part of its model, so it is saved with it and is the same after a reload. It begins as the student is, is
in no optimizer, and moves when the trainer says how far the run is ([`TeacherMixin.after_optimizer_step`]). A model
whose student was trained while its teacher stood still refuses to go on: it would look as if it learned.
"""

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init

from ..errors import UserError
from ..functional.schedules import cosine
from .progress import ProgressMixin


class TeacherMixin(ProgressMixin):
    """A `student` and its `teacher`, in front of [`SSLPreTrainedModel`] among the bases of a method.

    In `__init__`, call [`build_teacher`] when `self.student` is complete and before `self.post_init()`; in `forward`,
    call [`require_advanced`] first. The student, and so the teacher, has an `encoder`.
    """

    # whose encoder is `model.encoder`, the one that is evaluated and exported: that of the paper
    exported = "student"

    student: nn.Module
    teacher: nn.Module

    def build_teacher(self) -> None:
        self.teacher = copy.deepcopy(self.student)
        self.track_progress()

    @property
    def trained(self) -> nn.Module:
        return self.student

    @property
    def encoder(self) -> PreTrainedModel:
        """The stock module that is evaluated and exported."""
        return getattr(self, self.exported).encoder

    @property
    def trained_encoders(self) -> list[PreTrainedModel]:
        return [self.student.encoder]

    @property
    def followers(self) -> list[PreTrainedModel]:
        return [self.teacher.encoder]

    def schedules(self, progress: float) -> dict[str, float]:
        config = self.config
        return super().schedules(progress) | {
            "teacher_momentum": cosine(config.momentum_start, config.momentum_end, progress)
        }

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """Move the teacher, and what else follows the run. [`~hfssl.training.callbacks.MethodCallback`] calls it."""
        super().after_optimizer_step(progress)
        self.update_teacher(self.schedules(progress)["teacher_momentum"])

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """`teacher = momentum * teacher + (1 - momentum) * student`, parameter by parameter.

        Statistics of batch norms are those of what the teacher itself has seen.

        Raises:
            UserError: if the parameters are in half precision, in which the teacher would not move.
        """
        teachers, students = list(self.teacher.parameters()), list(self.student.parameters())
        coarse = {p.dtype for p in teachers} - {torch.float32, torch.float64}
        if coarse:
            raise UserError(
                f"A teacher moves by {1 - momentum:g} of its distance to the student, which {coarse.pop()} rounds "
                "away. Keep the parameters in float32 and use autocast: `--precision bf16` or `--precision fp16`."
            )
        torch._foreach_lerp_(teachers, students, 1.0 - momentum)

    @torch.no_grad()
    def reset_teacher(self) -> None:
        """Make the teacher what the student is."""
        self.teacher.load_state_dict(self.student.state_dict())

    def _not_told(self) -> str:
        return f"An optimizer has moved the student of this {type(self).__name__}, and its teacher was not told."

    @classmethod
    def from_encoder(cls, name_or_path: str, image_size: int | None = None, **config: Any) -> "TeacherMixin":
        """Continue from a stock checkpoint, which student and teacher both begin as."""
        model = super().from_encoder(name_or_path, image_size, **config)
        if model.exported == "teacher":
            model.student.encoder.load_state_dict(model.encoder.state_dict())
        model.reset_teacher()
        return model

    def post_init(self):
        super().post_init()
        self.train(self.training)

    @torch.no_grad()
    def initialize_weights(self):
        # Runs on fresh models, whose heads get their weights after the copy was made, and for what a checkpoint lacks.
        # `init` leaves alone what was loaded: a checkpoint of a student alone gets a teacher that is equal to it.
        super().initialize_weights()
        student = self.student.state_dict(keep_vars=True)
        for name, tensor in self.teacher.state_dict(keep_vars=True).items():
            init.copy_(tensor, student[name])

    def train(self, mode: bool = True):
        super().train(mode)
        # no dropout, no drop path: its outputs are targets; but the statistics of the batch, as the student has them
        self.teacher.eval()
        for module in self.teacher.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train(mode)
        self.hold_statistics()
        return self

    def freeze(self) -> None:
        # `from_pretrained` makes new parameters, which all require gradients
        super().freeze()
        self.teacher.requires_grad_(False)


def check_momentum(config: Any) -> None:
    """Refuse an impossible momentum of the teacher; for the `validate_…` methods of configs.

    Raises:
        ValueError: unless it rises within [0, 1] and begins below 1.
    """
    if not 0.0 <= config.momentum_start <= config.momentum_end <= 1.0:
        raise ValueError(
            f"The teacher momentum must rise within [0, 1], got momentum_start={config.momentum_start} and "
            f"momentum_end={config.momentum_end}."
        )
    if config.momentum_start == 1.0:
        raise ValueError(
            f"With momentum_start={config.momentum_start} and momentum_end={config.momentum_end} the teacher would "
            "never move: lower `momentum_start`, or leave it out for the paper's."
        )
