"""What evaluators that train have in common: many short trainings, of which finished ones are not done again.

One training is a cell of a table: a task, a seed, an encoder or its random initialisation. It ends in scores, and
leaves nothing else behind, unless its model is asked for.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from ..machine import process_state, use_one_gpu
from .classifier_folder import is_saved
from .progress import Progress
from .results import read_json, write_json


logger = logging.getLogger(__name__)


class Cells:
    r"""
    Scores of finished trainings, kept in `cells.json`, so that an interrupted evaluation goes on where it stopped.

    Args:
        output_dir (`str` or `Path`, *optional*):
            Folder of the evaluation. Nothing is kept without.
        encoder (`str`):
            Name of what is evaluated, for who reads the file.
    """

    def __init__(self, output_dir: str | Path | None, encoder: str):
        self.path = Path(output_dir) / "cells.json" if output_dir is not None else None
        self.encoder = encoder
        self.is_main_process = process_state().is_main_process
        done = read_json(self.path, default={}) if self.path and self.is_main_process else {}
        # all processes have to agree on what is done
        (self.done,) = broadcast_object_list([done])

    def __contains__(self, key: str) -> bool:
        return key in self.done

    def forget_unless_saved(self, key: str, folder: Path | None) -> None:
        """Let a finished training be done again where its model is wanted in a folder, and is not there."""
        lost = self.is_main_process and folder is not None and key in self.done and not is_saved(folder, key)
        if broadcast_object_list([lost])[0]:
            del self.done[key]

    def run(
        self, key: str, train: Callable[[], dict[str, Any]], beside: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """The cell of a `key`, trained where it is not done: `metrics` that `train` returned, and `seconds` it took.

        The key has to change with everything that decides what comes out. What `train` puts into `beside` is kept too.
        """
        if key not in self.done:
            start = time.monotonic()
            metrics = train()
            seconds = round(time.monotonic() - start, 1)
            self.done[key] = {"metrics": metrics, "seconds": seconds, "encoder": self.encoder, **(beside or {})}
            if self.path and self.is_main_process:
                # another run may have written to the same file meanwhile
                write_json(self.path, read_json(self.path, default={}) | {key: self.done[key]})
        return self.done[key]


def training_arguments(scratch: str, precision: str, **settings: Any) -> TrainingArguments:
    r"""
    Arguments of a training that writes and says nothing.

    Args:
        scratch (`str`):
            Folder that Trainer wants and does not use.
        precision (`str`):
            `"fp32"`, or `"bf16"` for autocast to it.
        settings (`dict`, *optional*):
            Passed to [`~transformers.TrainingArguments`].
    """
    device = process_state().device.type
    args = TrainingArguments(
        output_dir=scratch,
        use_cpu=device == "cpu",
        bf16=precision == "bf16",
        # else the loss, a mean over rows, would be multiplied by the number of processes
        average_tokens_across_devices=False,
        dataloader_pin_memory=device == "cuda",
        save_strategy="no",
        logging_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    use_one_gpu(args)
    if precision == "fp32":
        # the launcher's own setting would win
        args.mixed_precision = "no"
    return args


class CellTrainer(Trainer):
    """Trains one cell, with a bar named `title` on a terminal; `then` is how many steps of others come after it."""

    def __init__(self, *args, title: str = "", then: int = 0, **kwargs):
        super().__init__(*args, callbacks=[_ProgressBar(title, then)], **kwargs)
        self.remove_callback(PrinterCallback)

    def logits_and_labels(self, rows: Dataset) -> tuple[np.ndarray, np.ndarray]:
        """Logits of some rows, of shape `(num_rows, num_labels)`, 0 where they are no numbers; and the labels."""
        output = self.predict(rows)
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        if not np.isfinite(logits).all():
            logger.warning("Training diverged: some predictions are no numbers, and count as 0.")
            logits = np.nan_to_num(logits, posinf=0.0, neginf=0.0)
        return logits, output.label_ids


class _ProgressBar(TrainerCallback):
    """Progress while a cell trains."""

    def __init__(self, title: str, then: int = 0):
        self.title, self.then = title, then

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = Progress(state.max_steps, self.title, " steps", self.then)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.done)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()
