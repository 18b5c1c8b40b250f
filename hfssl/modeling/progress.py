"""How far a run is, as a part of the model that it trains: what follows a schedule, and what does not learn yet.

A model knows it from the trainer ([`ProgressMixin.after_optimizer_step`]) and is saved with it. One that is trained
without being told refuses to go on: it would look as if it learned.
"""

import weakref
from functools import cache

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from transformers import initialization as init

from ..errors import UserError


class StepsMixin:
    """A model that has to know of each optimizer step, in front of [`SSLPreTrainedModel`] among the bases of a method.

    In `forward`, call [`require_advanced`] first.
    """

    _has_moved = False

    @property
    def trained(self) -> nn.Module:
        """What an optimizer must not move without [`after_optimizer_step`]."""
        return self

    def waiting_parameters(self) -> list[nn.Parameter]:
        """Parameters among those of [`trained`] that do not learn yet.

        No optimizer gets to see their gradients, whatever loop calls its `step()` (a closure that makes them comes too
        late): it would decay and count also what has a gradient of 0. In the backward pass they have one all the
        same, for which DDP waits.
        """
        return []

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """Take note of a step. [`~hfssl.training.callbacks.MethodCallback`] calls it.

        Args:
            progress (`float`):
                Share of the run that is done with this step, in [0, 1].
        """
        if not 0.0 <= progress <= 1.0:
            raise ValueError(f"`progress` is the share of the run that is done, between 0 and 1, got {progress}.")
        self._has_moved = False

    @torch.compiler.disable
    def require_advanced(self) -> None:
        """Make sure that the model was told of each step since the last training forward.

        Raises:
            UserError: if an optimizer has trained it and `after_optimizer_step` was not called.
        """
        if not (self.training and torch.is_grad_enabled()):
            return
        if self._has_moved:
            raise UserError(
                f"{self._not_told()} With `Trainer` pass `callbacks=[hfssl.MethodCallback()]`; in a loop of your own "
                "call `model.after_optimizer_step(progress)` after each `optimizer.step()`."
            )
        _watch_optimizers()
        _TRAINED.add(self)

    def _not_told(self) -> str:
        return f"An optimizer has moved this {type(self).__name__}, and it was not told how far the run is."


class ProgressMixin(StepsMixin):
    """A model that changes with the run, in front of [`SSLPreTrainedModel`] among the bases of a method.

    In `__init__`, call [`track_progress`] before `self.post_init()`; in `forward`, call [`require_advanced`] first.
    """

    def track_progress(self) -> None:
        # how far the run is; float32, and read back from there, so that a resumed run has the same numbers
        self.register_buffer("schedule_position", torch.zeros(()))
        self._progress: float | None = None

    @property
    def progress(self) -> float:
        """How far the run is, in [0, 1], as of the last optimizer step."""
        if self._progress is None:
            self._progress = self.schedule_position.item()
        return self._progress

    def schedules(self, progress: float) -> dict[str, float]:
        """What changes during a run, by name, at a share `progress` of it."""
        return {}

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """Follow the run. [`~hfssl.training.callbacks.MethodCallback`] calls it."""
        super().after_optimizer_step(progress)
        self.schedule_position.fill_(progress)
        self._progress = float(np.float32(progress))

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        for buffer in self.buffers(recurse=False):
            init.zeros_(buffer)

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._progress = None


def not_trained(weight: torch.Tensor) -> torch.Tensor:
    """A parameter for a forward pass in which it is not to learn, with a gradient of 0.

    For a missing one DDP would wait, and the true one would count where all are clipped.
    """
    return weight.detach() + 0.0 * weight


# Models that are being trained. Versions of tensors do not show the steps of fused optimizers: only optimizers know.
_TRAINED: weakref.WeakSet[StepsMixin] = weakref.WeakSet()


@cache
def _watch_optimizers() -> None:
    register_optimizer_step_pre_hook(_hold_back)
    register_optimizer_step_post_hook(_note_step)


def _hold_back(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    if not any(model.waiting_parameters() for model in _TRAINED):
        return
    # only now, when processes and accumulation steps have added up their gradients
    for model in _trained_by(optimizer):
        for parameter in model.waiting_parameters():
            parameter.grad = None


def _note_step(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
    for model in _trained_by(optimizer):
        model._has_moved = True


def _trained_by(optimizer: torch.optim.Optimizer) -> list[StepsMixin]:
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return [model for model in _TRAINED if any(id(parameter) in held for parameter in model.trained.parameters())]
