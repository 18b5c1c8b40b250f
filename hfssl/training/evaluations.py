"""What a run measures while it trains, and how much of its time that may take."""

import logging
import math
import time
from typing import TYPE_CHECKING

import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from ..evaluation.chance import chance_levels
from .arguments import SSLTrainingArguments


if TYPE_CHECKING:
    from .callbacks import BudgetClock
    from .trainer import SSLTrainer

logger = logging.getLogger(__name__)


def measure_all(trainer: "SSLTrainer", prefix: str) -> dict[str, float]:
    """What the evaluators and the health monitor of a run find in its model as it is; names begin with `prefix`."""
    model = trainer.model_wrapped if trainer.is_in_train else trainer.model
    was_training = model.training
    model.eval()
    metrics = {}
    unwrapped = trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=True)
    terms = getattr(trainer.accelerator.unwrap_model(trainer.model), "loss_units", ())
    for evaluator in trainer.evaluators:
        with torch.no_grad(), trainer.compute_loss_context_manager():
            measured = evaluator.measure(unwrapped)
        term = getattr(evaluator, "loss_term", None)
        if term in terms:
            measured = {**measured, f"loss_{term}": measured["loss"]}
        metrics.update({f"{prefix}_{name}": value for name, value in measured.items()})
    metrics |= chance_levels(unwrapped, trainer.evaluators, trainer.args.compared_at_once, prefix)
    if trainer.health is not None:
        with trainer.compute_loss_context_manager():
            metrics |= trainer.health.check(
                unwrapped, trainer.state.global_step, trainer.state.log_history, trainer._progress(), metrics
            )
    model.train(was_training)
    return metrics


class EvaluationPace(TrainerCallback):
    """Makes evaluations rarer where they would take more than a tenth of the run, unless the user said how often.

    It is known at the first one that is due: what the one before training took (in a run that goes on, what this one
    takes), and how long a step takes. The main process decides. What is trained does not depend on it.

    Args:
        clock ([`~hfssl.training.callbacks.BudgetClock`], *optional*):
            Of a run with a budget of time.
    """

    # Of the time of the run, evaluations included.
    SHARE = 0.1
    # Seconds that all evaluations of a run may take, whatever share that is.
    LITTLE = 30.0

    def __init__(self, clock: "BudgetClock | None" = None):
        self.clock = clock
        self.taken: list[float] = []  # seconds of each evaluation so far
        self.is_decided = False

    def add(self, seconds: float) -> None:
        """An evaluation took so long."""
        self.taken.append(seconds)

    def on_train_begin(self, args, state, control, **kwargs):
        self.first_end: tuple[float, int] | None = None  # the first step is slower than the others
        self.within = 0.0
        planned = TrainerState()
        planned.compute_steps(args, state.max_steps)
        self.interval = planned.eval_steps
        by_default = args.eval_steps == SSLTrainingArguments.eval_steps and args.eval_strategy == "steps"
        is_stretched = self.clock is None and state.eval_steps != self.interval
        self.is_decided |= not by_default or args.early_stopping is not None or is_stretched

    def on_step_end(self, args, state, control, **kwargs):
        now = time.monotonic()
        if self.first_end is None:
            self.first_end = now, state.global_step
            self.evaluations_before = len(self.taken)
        elif control.should_evaluate and not self.is_decided and self.taken:
            factor = self._decide(state, now)
            # the one that is due is made later
            control.should_evaluate = factor == 1 or control.should_training_stop

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step and not self.is_decided and self.first_end is not None:
            self._decide(state, time.monotonic())

    def _decide(self, state, now: float) -> int:
        end, step = self.first_end
        steps = state.global_step - step
        if steps < 1:
            return 1
        self.is_decided = True
        a_step = (now - end - sum(self.taken[self.evaluations_before :])) / steps
        of_run, planned = a_step * state.max_steps, max(state.max_steps // self.interval, 1)
        if self.clock is not None:
            planned = round(1 / SSLTrainingArguments.eval_steps)
            of_run = (1 - self.SHARE) * self.clock.budget
        (factor,) = broadcast_object_list([how_much_rarer(min(self.taken), of_run, planned, self.SHARE, self.LITTLE)])
        if factor == 1:
            return 1
        share = 1 / (1 + of_run / (planned * min(self.taken)))
        often = f"{100 * factor / planned:.0f} % of the run"
        if self.clock is None:
            state.eval_steps = factor * self.interval
            often = f"{state.eval_steps:,} steps, instead of {self.interval:,}"
        else:
            self.clock.evaluations_apart = factor
        logger.info(
            "An evaluation takes %.1f s, and all would take %.0f %% of the run: there is one every %s. `--eval_steps "
            "N` makes one every N steps, however long it takes.",
            min(self.taken), 100 * share, often,
        )  # fmt: skip
        return factor


def how_much_rarer(seconds: float, of_run: float, planned: int, share: float, little: float) -> int:
    """By what whole factor evaluations must be rarer than planned to take at most a share of a run.

    Args:
        seconds (`float`):
            Of one evaluation.
        of_run (`float`):
            Seconds of training, without evaluations.
        planned (`int`):
            How many there would be.
        share (`float`):
            Of all the time, that of evaluations included.
        little (`float`):
            Seconds that they may take together in any case.
    """
    if planned * seconds <= little:
        return 1
    allowed = share / (1 - share) * of_run / seconds
    return min(max(math.ceil(planned / max(allowed, 1e-9)), 1), planned)
