"""GLUE: fine-tune an encoder on each task, and the same architecture from random initialisation beside it.

Paper: GLUE: A Multi-Task Benchmark and Analysis Platform, Wang et al., 2018 (https://huggingface.co/papers/1804.07461).

Protocol "glue", version 1. Stock `AutoModelForSequenceClassification`, with the learning rates, batch sizes, AdamW
(0.9, 0.98, 1e-6) and schedule (linear warm-up over 6 % of the steps, then linear to 0) of MosaicBERT's fine-tuning
(https://huggingface.co/papers/2312.17482). Departures from it: at most 128 tokens instead of 256; rows are shuffled,
with similar lengths in a batch; weight decay 0.1 × learning rate for RTE too (1.0 there), none on norms and biases;
3 epochs for QQP and QNLI (5 and 10), 10 for RTE (3); no task starts from the MNLI checkpoint; WNLI is here as well.

The score is that of the last epoch on the validation split: no epoch, seed or setting is chosen by looking at it. The
encoder and its random initialisation share everything else: rows, their order, hyper-parameters, seeds. The classifier
of each task that stays is that of seed 0.
"""

import hashlib
import json
import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from transformers import DataCollatorWithPadding, PreTrainedModel, PreTrainedTokenizerBase

from ..machine import choose_precision, process_state, use_all_cores
from .cells import Cells, CellTrainer, training_arguments
from .classifier_folder import KEPT_SEED, save_classifier, write_classifier_card
from .evaluator import EvaluationError, Evaluator, encoder_source, name_of
from .glue_tasks import HUB_DATASET, TASKS, load_task, parse_tasks, subset, task_scores
from .probe_features import ENCODER, RANDOM_INIT
from .results import Result, command_line, versions, write_results
from .text.encoder import TextEncoder


logger = logging.getLogger(__name__)


@dataclass
class GlueEvaluator(Evaluator):
    r"""
    Fine-tunes on GLUE. The protocol stands at the top of the module; what is set here is recorded beside each figure.

    > Fine-tuning

    Args:
        task (`str`, *optional*, defaults to `"all"`):
            Tasks, separated by commas: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli; or `all`.
        dataset (`str`, *optional*, defaults to `"nyu-mll/glue"`):
            Hub id whose configurations are the tasks, or a folder that holds `<task>/train.parquet` and
            `<task>/validation.parquet`, or the folder of a single task.
        seeds (`int`, *optional*, defaults to `3`):
            Number of runs of each task, with seeds 0, 1, 2 …: mean and standard deviation are over these.
        max_train_samples (`int`, *optional*):
            Train on so many rows, the same for each seed and for the random initialisation.
        epochs (`float`, *optional*):
            Passes over the training rows, instead of the protocol's.
        learning_rate (`float`, *optional*):
            Peak learning rate, instead of the protocol's. Small encoders want a higher one.
        batch_size (`int`, *optional*):
            Rows per step over all processes, instead of the protocol's.
        max_length (`int`, *optional*, defaults to `128`):
            Tokens after which a row is cut off.
        precision (`str`, *optional*, defaults to `"auto"`):
            Autocast to bf16 or not; `auto` takes bf16 where the hardware computes in it.
        random_init (`bool`, *optional*, defaults to `True`):
            Train the same architecture from random initialisation as well.
        save_model (`bool`, *optional*, defaults to `True`):
            Keep the classifier that came of the encoder with seed 0, in model/<task>/ of the output folder.

    Example:

    ```python
    >>> evaluator = GlueEvaluator(task="sst2", max_train_samples=2000)
    >>> (result,) = evaluator("outputs/mlm", output_dir="outputs/glue-mlm")
    >>> result.metric, result.value, result.baselines["random_init"]
    ```
    """

    protocol: ClassVar[str] = "glue"
    version: ClassVar[int] = 1

    task: str = "all"
    dataset: str = HUB_DATASET
    seeds: int = 3
    max_train_samples: int | None = None
    epochs: float | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    max_length: int = 128
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    random_init: bool = True
    save_model: bool = True

    def __post_init__(self):
        self.tasks = parse_tasks(self.task)
        for name in ("seeds", "max_train_samples", "epochs", "learning_rate", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EvaluationError(f"`{name}` must be above 0, got {value}.")
        if self.max_length < 8:
            raise EvaluationError(f"`max_length` must be at least 8 tokens, got {self.max_length}.")
        num_processes = process_state().num_processes
        for batch_size in (self.batch_size or TASKS[task].batch_size for task in self.tasks):
            if batch_size % num_processes:
                raise EvaluationError(
                    f"A batch of {batch_size} rows cannot be dealt to {num_processes} processes evenly: "
                    "set --batch_size to a multiple, or launch another number of processes."
                )

    @property
    def primary_metric(self) -> str:
        return TASKS[self.tasks[0]].metrics[0] if len(self.tasks) == 1 else "glue_score"

    def score(self, results: list[Result]) -> float:
        """Mean over the tasks of the mean of a task's figures, as GLUE's own score."""
        by_task = {task: [result.value for result in results if result.task == task] for task in self.tasks}
        return fmean(fmean(values) for values in by_task.values() if values)

    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: PreTrainedTokenizerBase | None = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
        name: str | None = None,
    ) -> list[Result]:
        if os.environ.get("OMP_NUM_THREADS") == "1":  # perhaps by a launcher
            use_all_cores()
        name = name or name_of(encoder)
        with encoder_source(encoder, processor) as source:
            return _Run(self, source, name, output_dir, command or command_line()).all_tasks()


@dataclass
class _TaskData:
    train: datasets.Dataset
    eval: dict[str, datasets.Dataset]
    label_names: tuple[str, ...] = ()
    digest: str = ""
    majority: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self):
        digest = hashlib.sha256()
        for split in (self.train, *self.eval.values()):
            table = split.with_format("arrow")[:]
            for name in ("input_ids", "labels", "length"):
                values = table[name].combine_chunks()
                values = values.flatten() if name == "input_ids" else values
                digest.update(values.to_numpy(zero_copy_only=False).tobytes())
        self.digest = digest.hexdigest()

    def num_tokens(self, epochs: float) -> float:
        """Tokens of a cell, each counted by what it costs: a step forward and backward is three forwards."""
        return epochs * sum(self.train["length"]) + sum(sum(split["length"]) for split in self.eval.values()) / 3


class _Run:
    """The cells of one evaluation: task × seed × encoder or random initialisation. Finished ones stay on disk."""

    def __init__(self, settings: GlueEvaluator, source: str, name: str, output_dir: str | Path | None, command: str):
        self.settings = settings
        self.name = name
        self.command = command
        self.state = process_state()
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.precision = choose_precision(settings.precision)
        # on a CPU, the backward of SDPA is the slower one at such lengths
        self.attention = "eager" if self.state.device.type == "cpu" else None
        self.encoder = TextEncoder(source, settings.max_length)
        self.digests = {kind: self.encoder.digest(kind == RANDOM_INIT) for kind in (ENCODER, RANDOM_INIT)}
        self.cells = Cells(output_dir, name)
        self.tokens_done, self.seconds_done = 0.0, 0.0

    def all_tasks(self) -> list[Result]:
        settings = self.settings
        # all of them at once: what is missing shows before hours of training, not after
        self.data = {task: self._prepare(task) for task in settings.tasks}
        kinds = [ENCODER, RANDOM_INIT] if settings.random_init else [ENCODER]
        todo = [(task, seed, kind) for task in settings.tasks for seed in range(settings.seeds) for kind in kinds]
        cells = {cell: self._key(*cell) for cell in todo}
        kept = sum(key in self.cells for key in cells.values())
        if kept:
            logger.info("%d of %d cells are done already, see %s", kept, len(cells), self.cells.path)
        results = []
        for task in settings.tasks:
            for cell in [cell for cell in todo if cell[0] == task]:
                self.cells.forget_unless_saved(cells[cell], self._model_dir(*cell))
                if cells[cell] not in self.cells:
                    left = [other for other in todo[todo.index(cell) + 1 :] if cells[other] not in self.cells]
                    self._run_cell(cell, cells[cell], left, f"[{todo.index(cell) + 1}/{len(todo)}]")
            found = {
                kind: {seed: self.cells.done[cells[task, seed, kind]]["metrics"] for seed in range(settings.seeds)}
                for kind in kinds
            }
            of_task = self._results(task, found)
            results += of_task
            if self.output_dir and self.state.is_main_process:
                write_results(self.output_dir / "results.json", results)
                if settings.save_model:
                    folder = self._model_dir(task, KEPT_SEED, ENCODER)
                    write_classifier_card(folder, of_task, encoder=self.name, task="text-classification")
        return results

    def _prepare(self, name: str) -> _TaskData:
        task = TASKS[name]
        splits = load_task(self.settings.dataset, name)
        splits["train"] = subset(splits["train"], self.settings.max_train_samples)
        if len(task.sentences) == 2:
            self.encoder.warn_of_joined_pairs()
        majority = {}
        labels = np.asarray(splits["train"]["label"][:])
        constant = labels.mean() if task.num_labels == 1 else np.bincount(labels.astype(int)).argmax()
        for split in task.eval_splits:
            references = np.asarray(splits[split]["label"][:])
            majority[split] = task_scores(task, np.full_like(references, constant), references)
        feature = splits["train"].features["label"]
        named = isinstance(feature, datasets.ClassLabel) and feature.num_classes == task.num_labels
        encoded = {
            split: self.encoder.encode(rows, task.sentences, regression=task.num_labels == 1)
            for split, rows in splits.items()
        }
        return _TaskData(
            encoded.pop("train"), encoded, tuple(feature.names) if named else task.label_names, majority=majority
        )

    def hyperparameters(self, name: str) -> dict[str, Any]:
        settings, task = self.settings, TASKS[name]
        overridden = [
            flag
            for flag in ("epochs", "learning_rate", "batch_size")
            if getattr(settings, flag) not in (None, getattr(task, flag))
        ]
        return {
            "dataset": settings.dataset,
            "max_train_samples": settings.max_train_samples,
            "learning_rate": settings.learning_rate or task.learning_rate,
            "batch_size": settings.batch_size or task.batch_size,
            "epochs": settings.epochs or task.epochs,
            "overridden": overridden,
            "max_length": self.encoder.max_length,
            "optimizer": "adamw",
            "adam_betas": [0.9, 0.98],
            "adam_epsilon": 1e-6,
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
            "schedule": "linear",
            "warmup_ratio": 0.06,
            "precision": self.precision,
            "evaluated": "last epoch",
        }

    def _key(self, task: str, seed: int, kind: str) -> str:
        depends_on = {name: value for name, value in self.hyperparameters(task).items() if name != "dataset"}
        parts = [GlueEvaluator.version, depends_on, self.data[task].digest, self.digests[kind]]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
        return f"{task}/{kind}/seed-{seed}/{digest}"

    def _run_cell(self, cell: tuple[str, int, str], key: str, left: list[tuple[str, int, str]], position: str):
        done = self.cells.run(key, lambda: self._train(*cell))
        scores, seconds = done["metrics"], done["seconds"]
        self.tokens_done += self._num_tokens(cell[0])
        self.seconds_done += seconds
        remaining = self.seconds_done / self.tokens_done * sum(self._num_tokens(other[0]) for other in left)
        figures = ", ".join(
            f"{metric} {value:.3f}" + (f" ({split})" if len(scores) > 1 else "")
            for split, values in scores.items()
            for metric, value in values.items()
        )
        left = f" · {_duration(remaining)} left" if left else ""
        logger.info("%s %s: %s · %s%s", position, _title(*cell), figures, _duration(seconds), left)

    def _model_dir(self, task: str, seed: int, kind: str) -> Path | None:
        """Where the classifier of a training is to stay, if it is."""
        if not self.settings.save_model or self.output_dir is None or (seed, kind) != (KEPT_SEED, ENCODER):
            return None
        return self.output_dir / "model" / task

    def _num_tokens(self, task: str) -> float:
        return self.data[task].num_tokens(self.settings.epochs or TASKS[task].epochs)

    def _train(self, name: str, seed: int, kind: str) -> dict[str, dict[str, float]]:
        task, data = TASKS[name], self.data[name]
        chosen = self.hyperparameters(name)
        kwargs = {"attn_implementation": self.attention} if self.attention else {}
        model = self.encoder.load(data.label_names or task.num_labels, seed, kind == RANDOM_INIT, **kwargs)
        with tempfile.TemporaryDirectory() as scratch:
            args = training_arguments(
                scratch,
                self.precision,
                per_device_train_batch_size=chosen["batch_size"] // self.state.num_processes,
                per_device_eval_batch_size=64,
                num_train_epochs=chosen["epochs"],
                learning_rate=chosen["learning_rate"],
                lr_scheduler_type=chosen["schedule"],
                warmup_steps=chosen["warmup_ratio"],
                weight_decay=chosen["weight_decay"],
                adam_beta1=chosen["adam_betas"][0],
                adam_beta2=chosen["adam_betas"][1],
                adam_epsilon=chosen["adam_epsilon"],
                max_grad_norm=chosen["max_grad_norm"],
                seed=seed,
                train_sampling_strategy="group_by_length",
            )
            trainer = _LengthGroupedTrainer(
                model,
                args,
                train_dataset=data.train,
                data_collator=DataCollatorWithPadding(self.encoder.tokenizer),
                processing_class=self.encoder.tokenizer,
                title=_title(name, seed, kind),
            )
            trainer.train()
            figures = {}
            for split, rows in data.eval.items():
                logits, references = trainer.logits_and_labels(rows)
                predictions = logits.squeeze(-1) if task.num_labels == 1 else logits.argmax(-1)
                figures[split] = task_scores(task, predictions, references)
        folder = self._model_dir(name, seed, kind)
        if folder is not None and self.state.is_main_process:
            save_classifier(folder, model, self.encoder.tokenizer, self._key(name, seed, kind))
        return figures

    def _results(self, name: str, found: dict[str, dict[int, dict[str, dict[str, float]]]]) -> list[Result]:
        task, data = TASKS[name], self.data[name]
        results = []
        for split in task.eval_splits:
            for metric in task.metrics:
                scores = {
                    kind: {seed: metrics[split][metric] for seed, metrics in seeds.items()}
                    for kind, seeds in found.items()
                }
                baselines = {RANDOM_INIT: scores[RANDOM_INIT]} if RANDOM_INIT in scores else {}
                result = Result.from_scores(
                    scores[ENCODER],
                    baselines | {"majority": data.majority[split][metric]},
                    protocol=GlueEvaluator.protocol,
                    version=GlueEvaluator.version,
                    model=self.name,
                    task=name,
                    split=split,
                    metric=metric,
                    num_train=len(data.train),
                    num_eval=len(data.eval[split]),
                    hyperparameters=self.hyperparameters(name),
                    command=self.command,
                    versions=versions() | {"device": _device_name(self.state.device)},
                )
                results.append(result)
        return results


class _LengthGroupedTrainer(CellTrainer):
    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        # Trainer takes the order from torch's global generator, which dropout advances by what a process has seen:
        # processes would disagree on the order from the second epoch on, and encoder and baseline would differ in it.
        sampler.generator = torch.Generator().manual_seed(self.args.seed)
        return sampler


def _title(task: str, seed: int, kind: str) -> str:
    return f"{task}, seed {seed}, {kind.replace('_', ' ')}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
