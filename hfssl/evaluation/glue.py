"""GLUE: fine-tune an encoder on each task, and the same architecture from random initialisation beside it.

Paper: GLUE: A Multi-Task Benchmark and Analysis Platform, Wang et al., 2018 (https://huggingface.co/papers/1804.07461).

Protocol "glue", version 1. Stock `AutoModelForSequenceClassification`, with the learning rates, batch sizes, AdamW
(0.9, 0.98, 1e-6) and schedule (linear warm-up over 6 % of the steps, then linear to 0) of MosaicBERT's fine-tuning
(https://huggingface.co/papers/2312.17482). Departures from it: at most 128 tokens instead of 256; rows are shuffled,
with similar lengths in a batch; weight decay 0.1 × learning rate for RTE too (1.0 there), none on norms and biases;
3 epochs for QQP and QNLI (5 and 10), 10 for RTE (3); no task starts from the MNLI checkpoint; WNLI is here as well.

The score is that of the last epoch on the validation split: no epoch, seed or setting is chosen by looking at it. The
encoder and its random initialisation share everything else: rows, their order, hyper-parameters, seeds.
"""

import difflib
import hashlib
import json
import logging
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

import datasets
import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import (
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.trainer_callback import PrinterCallback

from .. import metrics
from ..training_args import choose_precision, use_all_cores
from .evaluator import EvaluationError, Evaluator, encoder_source
from .results import Result, command_line, read_json, versions, write_json, write_results
from .text_encoder import TextEncoder


logger = logging.getLogger(__name__)

HUB_DATASET = "nyu-mll/glue"
ENCODER, RANDOM_INIT = "encoder", "random_init"


@dataclass(frozen=True)
class GlueTask:
    """One task: its columns, its metrics, and the hyper-parameters that the protocol fixes for it."""

    sentences: tuple[str, ...]
    metrics: tuple[str, ...]
    learning_rate: float
    batch_size: int
    epochs: int
    # 1 is a regression
    num_labels: int = 2
    eval_splits: tuple[str, ...] = ("validation",)


TASKS = {
    "cola": GlueTask(("sentence",), ("matthews_correlation",), 5e-5, 32, 10),
    "sst2": GlueTask(("sentence",), ("accuracy",), 3e-5, 16, 3),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("accuracy", "f1"), 8e-5, 32, 10),
    "stsb": GlueTask(("sentence1", "sentence2"), ("pearsonr", "spearmanr"), 3e-5, 32, 10, num_labels=1),
    "qqp": GlueTask(("question1", "question2"), ("accuracy", "f1"), 3e-5, 16, 3),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("accuracy",),
        5e-5,
        48,
        3,
        num_labels=3,
        eval_splits=("validation_matched", "validation_mismatched"),
    ),
    "qnli": GlueTask(("question", "sentence"), ("accuracy",), 1e-5, 16, 3),
    "rte": GlueTask(("sentence1", "sentence2"), ("accuracy",), 1e-5, 16, 10),
    "wnli": GlueTask(("sentence1", "sentence2"), ("accuracy",), 1e-5, 16, 5),
}


@dataclass
class GlueEvaluator(Evaluator):
    r"""
    Fine-tunes on GLUE. The protocol stands at the top of the module; what is set here is recorded beside each figure.

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

    def __post_init__(self):
        self.tasks = parse_tasks(self.task)
        for name in ("seeds", "max_train_samples", "epochs", "learning_rate", "batch_size"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EvaluationError(f"`{name}` must be above 0, got {value}.")
        if self.max_length < 8:
            raise EvaluationError(f"`max_length` must be at least 8 tokens, got {self.max_length}.")

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
    ) -> list[Result]:
        if os.environ.get("OMP_NUM_THREADS") == "1":  # perhaps by a launcher
            use_all_cores()
        name = str(encoder) if isinstance(encoder, (str, Path)) else encoder.name_or_path or type(encoder).__name__
        with encoder_source(encoder, processor) as source:
            return _Run(self, source, name, output_dir, command or command_line()).all_tasks()


def parse_tasks(text: str) -> list[str]:
    """Names of tasks from `"a,b,c"` or `"all"`."""
    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return list(TASKS)
    for name in names:
        if name not in TASKS:
            # GLUE writes SST-2 and STS-B
            known = {"".join(filter(str.isalnum, known)): known for known in TASKS}
            nearest = difflib.get_close_matches("".join(filter(str.isalnum, name)), known, n=1)
            hint = f' Did you mean "{known[nearest[0]]}"?' if nearest else ""
            raise EvaluationError(f'There is no GLUE task "{name}"; there are {", ".join(TASKS)}, and all.{hint}')
    if not names:
        raise EvaluationError(f"No task is named; there are {', '.join(TASKS)}, and all.")
    return list(dict.fromkeys(names))


# Data


def load_task(dataset: str, task: str) -> dict[str, datasets.Dataset]:
    """The training split and the evaluation splits of a task, with labels checked."""
    splits = ("train", *TASKS[task].eval_splits)
    if Path(dataset).is_dir():
        where = _task_folder(Path(dataset), task, splits)
        rows = {split: _read_split(where, split) for split in splits}
    elif dataset.startswith((".", "/", "~")) or dataset.count("/") != 1:
        raise EvaluationError(f"There is no dataset folder {dataset}, and a Hub id would be of the form owner/name.")
    else:
        where = f"{dataset} ({task})"
        try:
            rows = {split: datasets.load_dataset(dataset, task, split=split) for split in splits}
        except Exception as error:  # the Hub's clients have no common class for what can go wrong
            reason = str(error).strip().split("\n")[0]
            raise EvaluationError(
                f'Cannot read the task "{task}" of {dataset} from the Hub ({type(error).__name__}: {reason}). '
                "Without the Hub, pass a folder: --dataset <folder>."
            ) from error
    for split, data in rows.items():
        _check_rows(data, TASKS[task], f"{where}, split {split},")
    return rows


def _split_files(folder: Path, split: str) -> list[Path]:
    files = [path for pattern in (f"{split}.*", f"{split}-*-of-*.*") for path in sorted(folder.glob(pattern))]
    return [path for path in files if path.suffix in _READERS]


_READERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".arrow": "arrow"}


def _task_folder(folder: Path, task: str, splits: tuple[str, ...]) -> Path:
    where = folder / task
    is_one_task = not any(path.is_dir() and path.name in TASKS for path in folder.iterdir())
    # `glue/cola` is not SST-2, although its columns would fit
    if is_one_task and (folder.name == task or folder.name not in TASKS):
        where = folder
    if all(_split_files(where, split) for split in splits):
        return where
    wanted = " and ".join(f"{where / split}.parquet" for split in splits)
    there = ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"
    raise EvaluationError(f'The task "{task}" needs {wanted} (or .jsonl, .csv, .arrow); {folder} holds {there}.')


def _read_split(folder: Path, split: str) -> datasets.Dataset:
    files = _split_files(folder, split)
    try:
        return datasets.load_dataset(
            _READERS[files[0].suffix], data_files={split: [str(path) for path in files]}, split=split
        )
    except Exception as error:  # whatever pyarrow or the csv reader finds in a damaged file
        raise EvaluationError(f"Cannot read {files[0]}: {error.__cause__ or error}") from error


def _check_rows(data: datasets.Dataset, task: GlueTask, where: str):
    missing = [name for name in (*task.sentences, "label") if name not in data.column_names]
    if missing:
        raise EvaluationError(f"{where} has no column {', '.join(missing)}; it has {', '.join(data.column_names)}.")
    if not len(data):
        raise EvaluationError(f"{where} has no rows.")
    try:
        labels = np.asarray(data["label"][:], dtype=np.float64)
    except (TypeError, ValueError):
        raise EvaluationError(f"{where} has labels that are no numbers, such as {data['label'][0]!r}.") from None
    if task.num_labels == 1:
        wrong, expected = ~np.isfinite(labels), "a number"
    else:
        wrong, expected = ~np.isin(labels, range(task.num_labels)), f"a whole number from 0 to {task.num_labels - 1}"
    if wrong.any():
        hint = " -1 stands for a label that is withheld." if (labels[wrong] == -1).all() else ""
        raise EvaluationError(
            f"{where} lacks labels: {wrong.sum()} of {len(labels)} rows have {labels[wrong][0]:g} instead of "
            f"{expected}.{hint}"
        )
    for name in task.sentences:
        if any(not isinstance(text, str) for text in data[name]):
            raise EvaluationError(f"{where} has rows whose {name} is no text.")


def _subset(data: datasets.Dataset, size: int | None) -> datasets.Dataset:
    """`size` random rows, always the same; those of a smaller subset are among those of a larger one."""
    if size is None or size >= len(data):
        return data
    return data.select(np.sort(np.random.default_rng(0).permutation(len(data))[:size]))


# One evaluation


@dataclass
class _TaskData:
    train: datasets.Dataset
    eval: dict[str, datasets.Dataset]
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
        self.state = PartialState()
        self.output_dir = Path(output_dir) if output_dir is not None else None
        self.precision = choose_precision(settings.precision)
        # on a CPU, the backward of SDPA is the slower one at such lengths
        self.attention = "eager" if self.state.device.type == "cpu" else None
        self.encoder = TextEncoder(source, settings.max_length)
        self.digests = {kind: self.encoder.digest(kind == RANDOM_INIT) for kind in (ENCODER, RANDOM_INIT)}
        self.cells = read_json(self.cells_path, default={}) if self.output_dir else {}
        # before the first write: all processes agree on what is done
        self.state.wait_for_everyone()
        self.tokens_done, self.seconds_done = 0.0, 0.0

    @property
    def cells_path(self) -> Path:
        return self.output_dir / "cells.json"

    def all_tasks(self) -> list[Result]:
        settings = self.settings
        # all of them at once: what is missing shows before hours of training, not after
        self.data = {task: self._prepare(task) for task in settings.tasks}
        kinds = [ENCODER, RANDOM_INIT] if settings.random_init else [ENCODER]
        todo = [(task, seed, kind) for task in settings.tasks for seed in range(settings.seeds) for kind in kinds]
        cells = {cell: self._key(*cell) for cell in todo}
        kept = sum(key in self.cells for key in cells.values())
        if kept:
            logger.info("%d of %d cells are done already, see %s", kept, len(cells), self.cells_path)
        results = []
        for task in settings.tasks:
            for cell in [cell for cell in todo if cell[0] == task]:
                if cells[cell] not in self.cells:
                    left = [other for other in todo[todo.index(cell) + 1 :] if cells[other] not in self.cells]
                    self._run_cell(cell, cells[cell], left, f"[{todo.index(cell) + 1}/{len(todo)}]")
            found = {
                kind: {seed: self.cells[cells[task, seed, kind]]["metrics"] for seed in range(settings.seeds)}
                for kind in kinds
            }
            results += self._results(task, found)
            if self.output_dir and self.state.is_main_process:
                write_results(self.output_dir / "results.json", results)
        return results

    def _prepare(self, name: str) -> _TaskData:
        task = TASKS[name]
        splits = load_task(self.settings.dataset, name)
        splits["train"] = _subset(splits["train"], self.settings.max_train_samples)
        if len(task.sentences) == 2:
            self.encoder.warn_of_joined_pairs()
        majority = {}
        labels = np.asarray(splits["train"]["label"][:])
        constant = labels.mean() if task.num_labels == 1 else np.bincount(labels.astype(int)).argmax()
        for split in task.eval_splits:
            references = np.asarray(splits[split]["label"][:])
            majority[split] = _scores(task, np.full_like(references, constant), references)
        encoded = {
            split: self.encoder.encode(rows, task.sentences, regression=task.num_labels == 1)
            for split, rows in splits.items()
        }
        return _TaskData(encoded.pop("train"), encoded, majority=majority)

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
        task, seed, kind = cell
        start = time.monotonic()
        scores = self._train(task, seed, kind)
        seconds = time.monotonic() - start
        self.cells[key] = {"metrics": scores, "seconds": round(seconds, 1), "encoder": self.name}
        if self.output_dir and self.state.is_main_process:
            # another run may have written to the same file meanwhile
            write_json(self.cells_path, read_json(self.cells_path, default={}) | {key: self.cells[key]})
        self.tokens_done += self._num_tokens(task)
        self.seconds_done += seconds
        remaining = self.seconds_done / self.tokens_done * sum(self._num_tokens(other[0]) for other in left)
        figures = ", ".join(
            f"{metric} {value:.3f}" + (f" ({split})" if len(scores) > 1 else "")
            for split, values in scores.items()
            for metric, value in values.items()
        )
        left = f" · {_duration(remaining)} left" if left else ""
        logger.info("%s %s: %s · %s%s", position, _title(*cell), figures, _duration(seconds), left)

    def _num_tokens(self, task: str) -> float:
        return self.data[task].num_tokens(self.settings.epochs or TASKS[task].epochs)

    def _train(self, name: str, seed: int, kind: str) -> dict[str, dict[str, float]]:
        task, data = TASKS[name], self.data[name]
        chosen = self.hyperparameters(name)
        num_processes = self.state.num_processes
        if chosen["batch_size"] % num_processes:
            raise EvaluationError(
                f"A batch of {chosen['batch_size']} rows cannot be dealt to {num_processes} processes evenly: "
                "set --batch_size to a multiple, or launch another number of processes."
            )
        kwargs = {"attn_implementation": self.attention} if self.attention else {}
        model = self.encoder.load(task.num_labels, seed, kind == RANDOM_INIT, **kwargs)
        with tempfile.TemporaryDirectory() as scratch:
            args = TrainingArguments(
                output_dir=scratch,
                use_cpu=self.state.device.type == "cpu",
                per_device_train_batch_size=chosen["batch_size"] // num_processes,
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
                bf16=self.precision == "bf16",
                seed=seed,
                train_sampling_strategy="group_by_length",
                # else the loss, a mean over rows, would be multiplied by the number of processes
                average_tokens_across_devices=False,
                dataloader_pin_memory=self.state.device.type == "cuda",
                save_strategy="no",
                logging_strategy="no",
                eval_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            if self.precision == "fp32":
                # the launcher's own setting would win
                args.mixed_precision = "no"
            trainer = _CellTrainer(
                model,
                args,
                train_dataset=data.train,
                data_collator=DataCollatorWithPadding(self.encoder.tokenizer),
                processing_class=self.encoder.tokenizer,
                callbacks=[_ProgressBar(_title(name, seed, kind))],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            return {split: self._evaluate(trainer, task, rows) for split, rows in data.eval.items()}

    def _evaluate(self, trainer: Trainer, task: GlueTask, rows: datasets.Dataset) -> dict[str, float]:
        output = trainer.predict(rows)
        logits = output.predictions[0] if isinstance(output.predictions, tuple) else output.predictions
        if not np.isfinite(logits).all():
            logger.warning("Training diverged: some predictions are no numbers, and count as 0.")
            logits = np.nan_to_num(logits, posinf=0.0, neginf=0.0)
        predictions = logits.squeeze(-1) if task.num_labels == 1 else logits.argmax(-1)
        return _scores(task, predictions, output.label_ids)

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


class _CellTrainer(Trainer):
    def _get_train_sampler(self, train_dataset: datasets.Dataset | None = None) -> torch.utils.data.Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        # Trainer takes the order from torch's global generator, which dropout advances by what a process has seen:
        # processes would disagree on the order from the second epoch on, and encoder and baseline would differ in it.
        sampler.generator = torch.Generator().manual_seed(self.args.seed)
        return sampler


class _ProgressBar(TrainerCallback):
    """A bar while a cell trains, on a terminal only."""

    def __init__(self, title: str):
        self.title = title

    def on_train_begin(self, args, state, control, **kwargs):
        shown = None if state.is_world_process_zero else True
        self.bar = tqdm(total=state.max_steps, desc=self.title, leave=False, disable=shown)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


def _scores(task: GlueTask, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    scores = {}
    for metric in task.metrics:
        scores |= metrics.load(metric).compute(predictions=predictions, references=references)
    return scores


def _title(task: str, seed: int, kind: str) -> str:
    return f"{task}, seed {seed}, {kind.replace('_', ' ')}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
