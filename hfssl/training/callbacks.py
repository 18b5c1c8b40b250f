"""What happens beside the training step: progress for a person, safe interruption, the method's own schedule."""

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm.auto import tqdm
from transformers import TrainerCallback

from ..errors import UserError
from ..functional.schedules import cosine


logger = logging.getLogger(__name__)


class _OneStepLate:
    """A number that the processes of a run agree on. It travels between CPUs while a step is computed and arrives one
    step later, so that no process and no GPU waits for it.

    Args:
        send (`Callable`):
            Begins to make a tensor the same in all processes: called with it, a group and `async_op=True`.
        before (`float`, *optional*, defaults to `0.0`):
            What is agreed on before the first number has arrived.
    """

    def __init__(self, send: Callable, before: float = 0.0):
        self.send, self.agreed = send, before
        self._group = None
        self._pending = None

    def begin(self, args) -> None:
        if args.world_size > 1:
            self._group = dist.new_group(backend="gloo")

    def exchange(self, mine: float, args) -> float:
        """Send the number of this process, and return what was agreed on of those before; alone, one's own."""
        if args.world_size == 1:
            return mine
        self.end()
        tensor = torch.tensor(mine, dtype=torch.float64)
        self._pending = (tensor, self.send(tensor, group=self._group, async_op=True))
        return self.agreed

    def end(self) -> None:
        """Take in what is still on its way."""
        if self._pending is not None:
            tensor, work = self._pending
            work.wait()
            self.agreed, self._pending = tensor.item(), None


class BudgetClock(TrainerCallback):
    """Ends a run when its budget of wall-clock time is used up, and says how much of it is.

    Counted is the time from the beginning of the first step to the end of the last: steps, waiting for data,
    evaluations and checkpoints in between. What comes before (opening data, the measurement before training) and after
    (the last evaluation and checkpoint, the export) is not. A resumed run goes on with the seconds of its checkpoint.

    Processes agree on the seconds of rank 0, one step late.

    Args:
        budget (`float`):
            Seconds of training.
        now (`Callable[[], float]`, *optional*, defaults to `time.monotonic`):
            The clock on the wall.
    """

    def __init__(self, budget: float, now: Callable[[], float] = time.monotonic):
        self.budget, self.now = budget, now
        self.seconds = 0.0  # as agreed on at the last step
        self.evaluations_apart = 1  # of those that are due, one in so many is made
        self._begin: float | None = None
        self._agreement: _OneStepLate | None = None

    @property
    def progress(self) -> float:
        """Share of the budget that is used up, in [0, 1]. The step that reaches 1 is the last one."""
        return min(self.seconds / self.budget, 1.0)

    def elapsed(self) -> float:
        """Seconds trained so far, by the clock of this process: what a checkpoint keeps."""
        return self.seconds if self._begin is None else self.now() - self._begin

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin = None
        self._agreement = _OneStepLate(partial(dist.broadcast, src=0), self.seconds)
        self._agreement.begin(args)

    def on_step_begin(self, args, state, control, **kwargs):
        if self._begin is None:
            self._begin = self.now() - self.seconds

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        # before the step, because the learning rate and the method's schedule of this step's end follow it
        self._before, self.seconds = self.seconds, self._agreement.exchange(self.elapsed(), args)

    def on_step_end(self, args, state, control, **kwargs):
        over = self.seconds >= self.budget
        # shares of the run, which Trainer makes shares of `max_steps`, are shares of the budget
        control.should_log |= self._passed(args.logging_steps)
        control.should_evaluate |= args.eval_strategy == "steps" and (
            over or self._passed(args.eval_steps, self.evaluations_apart)
        )
        control.should_save |= args.save_strategy == "steps" and (over or self._passed(args.save_steps))
        control.should_training_stop |= over

    def _passed(self, share: float | None, number: int = 1) -> bool:
        if not share or share >= 1:
            return False
        share *= number
        return int(self.seconds / self.budget / share) > int(self._before / self.budget / share)

    def on_train_end(self, args, state, control, **kwargs):
        self._begin = None
        self._agreement.end()


class MethodCallback(TrainerCallback):
    """Tells the model after each optimizer step how far the run is: `model.after_optimizer_step(progress)`.

    [`SSLTrainer`] installs it; with a plain `Trainer` add it yourself. `progress` is in [0, 1]. Methods with a
    teacher, a temperature or a centre move them there; methods without define no such function.

    Args:
        clock ([`BudgetClock`], *optional*):
            What progress means where the run has a budget of time instead of steps.
    """

    def __init__(self, clock: BudgetClock | None = None):
        self.clock = clock

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        advance = getattr(_unwrap(model), "after_optimizer_step", None)
        if advance is not None:
            advance(self.clock.progress if self.clock else (state.global_step + 1) / state.max_steps)


class WeightDecaySchedule(TrainerCallback):
    """Takes the weight decay from that of the optimizer to `end`, along half a cosine, as DINO and I-JEPA do.

    Parameters without any (biases, weights of norms) stay without.

    Args:
        end (`float`):
            Weight decay at the end of the run.
        clock ([`BudgetClock`], *optional*):
            What progress means where the run has a budget of time instead of steps.
    """

    def __init__(self, end: float, clock: BudgetClock | None = None):
        self.end, self.clock = end, clock

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        progress = self.clock.progress if self.clock else state.global_step / state.max_steps
        for group in optimizer.param_groups:
            # in the group, and so in the checkpoint, as schedulers keep the first learning rate there
            start = group.setdefault("initial_weight_decay", group["weight_decay"])
            if start:
                group["weight_decay"] = cosine(start, self.end, progress)


def _unwrap(model):
    return model.module if hasattr(model, "module") else model


class ProgressBar(TrainerCallback):
    """Loss, tokens or images per second, time left: one line on a terminal, a line every half minute in a log file."""

    SECONDS_BETWEEN_LINES = 30.0
    # Steps after which it is known how long a run takes: the first is slower than the others.
    ESTIMATED_AFTER = 4
    # Seconds from which on a run is long enough for that to be said, and for what makes it shorter.
    WORTH_SAYING, LONG = 120.0, 3600.0

    def __init__(self, stream=None, clock: BudgetClock | None = None):
        self.stream = stream  # has `counts["units"]` of this process, and says in `unit` what these are
        self.clock = clock  # of a run with a budget of time
        self.bar = None
        self.loss = ""
        self.logged = 0

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero or args.disable_tqdm:
            return
        self.logged = state.global_step
        self.is_terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=self.clock.budget if self.clock else state.max_steps,
            initial=self._done(state),
            desc="training",
            unit="step",
            dynamic_ncols=True,
            file=sys.stderr if self.is_terminal else open(os.devnull, "w"),  # noqa: SIM115 - closed with the bar
            bar_format="{desc} {percentage:3.0f}%|{bar}| "
            + ("" if self.clock else "{n_fmt}/{total_fmt} ")
            + "[{elapsed}<{remaining}{postfix}]",
        )
        self.begin = self.last_line = self.first_end = time.monotonic()
        self.units_before = self._units()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is None:
            return
        if "loss" in logs:
            # what Trainer logs is the mean since the last time
            first, self.logged = self.logged + 1, state.global_step
            steps = f"step {first}" if first >= self.logged else f"mean of steps {first} to {self.logged}"
            self.loss = f", loss {logs['loss']:.3f} ({steps})"
        elif "eval_loss" in logs:
            kept = ("eval_loss", "eval_accuracy", "eval_knn_accuracy", "eval_knn_auroc")
            words = [f"{k.removeprefix('eval_').replace('_', ' ')} {logs[k]:.4f}" for k in kept if k in logs]
            if "eval_chance_loss" in logs:
                words[0] += f" (chance {logs['eval_chance_loss']:.4f})"
            self._line(f"step {state.global_step}: held-out {', '.join(words)}")

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is None:
            return
        now = time.monotonic()
        rate = (self._units() - self.units_before) * args.world_size / max(now - self.begin, 1e-9)
        words = self.loss
        if self.stream is not None:
            words += f", {rate:,.0f} {self.stream.unit}/s"
        step = f"step {state.global_step}"
        self.bar.set_postfix_str((step + words if self.clock else words).removeprefix(", "), refresh=False)
        self.bar.update(self._done(state) - self.bar.n)
        if not self.clock:
            self._estimate(state, now)
        if not self.is_terminal and now - self.last_line > self.SECONDS_BETWEEN_LINES:
            self.last_line = now
            if self.clock:
                left = self.bar.total - self._done(state)
            else:
                step += f"/{state.max_steps}"
                seconds_a_step = (now - self.begin) / max(state.global_step - self.bar.initial, 1)
                left = seconds_a_step * (state.max_steps - state.global_step)
            self._line(f"{step}{words}, {tqdm.format_interval(left)} left")

    def _estimate(self, state, now: float) -> None:
        """Say once how long the run takes, without its evaluations."""
        done = state.global_step - self.bar.initial
        if done == 1:
            self.first_end = now
        if done != self.ESTIMATED_AFTER:
            return
        seconds = (now - self.first_end) / (done - 1)
        left = seconds * (state.max_steps - state.global_step)
        if left > self.LONG or left > self.WORTH_SAYING and not self.is_terminal:
            text = f"{seconds:.2g} s a step: the run takes about {tqdm.format_interval(left)}"
            if left > self.LONG:
                steps = max(int(self.LONG / seconds), 1)
                text += (
                    f". An hour is `--max_steps {steps}` or `--budget_minutes 60`; smaller inputs, a smaller "
                    "`--encoder` or an accelerator make steps shorter"
                )
            self._line(text + ".")

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _done(self, state) -> float:
        return min(self.clock.seconds, self.clock.budget) if self.clock else state.global_step

    def _units(self) -> int:
        return self.stream.counts["units"] if self.stream is not None else 0

    def _line(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)
        sys.stderr.flush()


class StopOnSignal(TrainerCallback):
    """SIGTERM and SIGINT end the run after the current step, with a checkpoint; a second one ends it at once.

    Processes agree on the step: each tells the others, and all hear it one step later.
    """

    def __init__(self):
        self.received: str | None = None
        self.stopped = False
        self._previous = {}
        self._agreement = _OneStepLate(dist.all_reduce)

    def on_train_begin(self, args, state, control, **kwargs):
        self._agreement.begin(args)
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                self._previous[number] = signal.signal(number, self._receive)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                return

    def _receive(self, number, frame):
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number).name

    def on_step_end(self, args, state, control, **kwargs):
        anyone_received = self._agreement.exchange(float(self.received is not None), args) > 0
        if anyone_received and not control.should_training_stop:
            self.stopped = True
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._agreement.end()


class StopOnNonFiniteLoss(TrainerCallback):
    """A loss that is no number stops the run before it spoils a checkpoint."""

    def __init__(self, last_checkpoint):
        self.last_checkpoint = last_checkpoint

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is not None and not torch.isfinite(torch.tensor(loss)):
            raise _not_finite("loss is", state.global_step, logs.get("learning_rate"), self.last_checkpoint())


def check_finite(
    loss: torch.Tensor, model: torch.nn.Module, step: int, learning_rate: float, last_checkpoint: Path | None
) -> None:
    """Refuse to save a run whose loss or weights are no numbers any more.

    The loss of a step is that of the weights before it: where its gradient was none, only the weights tell.

    Raises:
        UserError: naming the checkpoint to go back to.
    """
    if not torch.isfinite(loss):
        raise _not_finite("loss is", step, learning_rate, last_checkpoint)
    # one answer for all: a GPU is waited for once
    if not torch.stack([parameter.isfinite().all() for parameter in model.parameters()]).all():
        raise _not_finite("weights are", step, learning_rate, last_checkpoint)


def _not_finite(what: str, step: int, learning_rate: float | None, checkpoint: Path | None) -> UserError:
    """The error of a run of which something is no number any more."""
    return UserError(
        f"The {what} not finite at step {step}, at a learning rate of {learning_rate:g}. "
        f"Last good checkpoint: {checkpoint or 'none yet'}. Begin a run in another `--output_dir` with a lower "
        "`--learning_rate`, more `--warmup_steps` or `--precision fp32`."
    )
