"""How contenders of a benchmark train: a trainer that tells its pace, and the shortest loop that does the same."""

import dataclasses
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from ..data.blocks import made
from .base import Pace, count_flops, num_positions


# Of any trainer: nothing but training.
NOTHING_BESIDE = {
    "report_to": "none", "logging_strategy": "no", "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True,
}  # fmt: skip


def plain_run(arguments: Any) -> Any:
    """What a model of a benchmark (`seed`, `learning_rate`, `batch_size`) is built for, where nothing is trained."""
    from ..training.arguments import SSLTrainingArguments

    fields = dataclasses.fields(SSLTrainingArguments)
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    run = {
        "seed": arguments.seed, "learning_rate": arguments.learning_rate, "optim": "adamw", "bf16": False,
        "fp16": False, "per_device_train_batch_size": arguments.batch_size, "world_size": 1,
        "global_batch_size": arguments.batch_size, "compared_at_once": arguments.batch_size,
        "device": torch.device("cpu"), "continued_from": None,
    }  # fmt: skip
    return SimpleNamespace(**defaults | run)


class Timed:
    """What is added to either trainer, the same for both: it tells `pace` of batches and steps and changes nothing.

    Args:
        pace ([`~hfssl.benchmarks.base.Pace`]):
            Of this contender.
        num_items (`Callable[[dict], torch.Tensor | int]`):
            What a batch counts as: its tokens that are not padding, or its images.
        args, kwargs:
            Of the trainer.
    """

    def __init__(self, pace: Pace, num_items: Callable[[dict[str, torch.Tensor]], Any], *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.pace, self.num_items = pace, num_items
        self.add_callback(_steps_to(self))

    def get_batch_samples(self, *args, **kwargs):
        begin, mark = time.perf_counter(), self.pace.mark()
        batches, num_items = super().get_batch_samples(*args, **kwargs)
        seconds, marks = time.perf_counter() - begin, (mark, self.pace.mark())
        self.loss = 0.0
        for batch in batches:
            self.batch = batch = made(batch)
            self.pace.fetched(seconds, self.num_items(batch), num_positions(batch), marks)
            seconds, marks = 0.0, (None, None)
        return batches, num_items

    def training_step(self, *args, **kwargs):
        # of a step of several batches each gives its share
        loss = super().training_step(*args, **kwargs)
        self.loss = self.loss + loss
        return loss

    def flops(self) -> float:
        """FLOPs for each position of the last batch."""
        return count_flops(self.accelerator.unwrap_model(self.model), self._prepare_inputs(self.batch))


def _steps_to(trainer: Any) -> Any:
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            trainer.pace.stepped(trainer.loss)

    return Steps()


def train_bare_loop(
    pace: Pace, num_items: Callable[[dict[str, torch.Tensor]], Any], model: Any, args: Any, stream: Any
) -> float:
    """Train a model of ours on a stream of ours without any trainer, and return the FLOPs of a position."""
    from transformers import get_linear_schedule_with_warmup

    model.to(args.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    decayed, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(args.adam_beta1, args.adam_beta2),
        eps=args.adam_epsilon,
        fused=True,
    )
    schedule = get_linear_schedule_with_warmup(optimizer, int(args.warmup_steps), pace.num_steps)
    advance = getattr(model, "after_optimizer_step", None)
    batches = iter(stream)
    for step in range(pace.num_steps):
        begin = time.perf_counter()
        batch = next(batches)
        seconds = time.perf_counter() - begin
        pace.fetched(seconds, num_items(batch), num_positions(batch))
        batch = {name: tensor.to(args.device) for name, tensor in batch.items()}
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
        optimizer.step()
        if advance is not None:
            advance((step + 1) / pace.num_steps)
        schedule.step()
        optimizer.zero_grad()
        pace.stepped(loss)
    return count_flops(model, batch)
