"""The tasks of GLUE: what the protocol fixes for each, and its rows, from the Hub or from a folder, checked."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np

from . import metrics
from .evaluator import EvaluationError


HUB_DATASET = "nyu-mll/glue"


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
    # of what the numbers stand for, where the data do not say it; a regression has none
    label_names: tuple[str, ...] = ("not_entailment", "entailment")


TASKS = {
    "cola": GlueTask(
        ("sentence",), ("matthews_correlation",), 5e-5, 32, 10, label_names=("unacceptable", "acceptable")
    ),
    "sst2": GlueTask(("sentence",), ("accuracy",), 3e-5, 16, 3, label_names=("negative", "positive")),
    "mrpc": GlueTask(
        ("sentence1", "sentence2"), ("accuracy", "f1"), 8e-5, 32, 10, label_names=("not_equivalent", "equivalent")
    ),
    "stsb": GlueTask(
        ("sentence1", "sentence2"), ("pearsonr", "spearmanr"), 3e-5, 32, 10, num_labels=1, label_names=()
    ),
    "qqp": GlueTask(
        ("question1", "question2"), ("accuracy", "f1"), 3e-5, 16, 3, label_names=("not_duplicate", "duplicate")
    ),
    "mnli": GlueTask(
        ("premise", "hypothesis"),
        ("accuracy",),
        5e-5,
        48,
        3,
        num_labels=3,
        eval_splits=("validation_matched", "validation_mismatched"),
        label_names=("entailment", "neutral", "contradiction"),
    ),
    "qnli": GlueTask(
        ("question", "sentence"), ("accuracy",), 1e-5, 16, 3, label_names=("entailment", "not_entailment")
    ),
    "rte": GlueTask(
        ("sentence1", "sentence2"), ("accuracy",), 1e-5, 16, 10, label_names=("entailment", "not_entailment")
    ),
    "wnli": GlueTask(("sentence1", "sentence2"), ("accuracy",), 1e-5, 16, 5),
}


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


def subset(data: datasets.Dataset, size: int | None) -> datasets.Dataset:
    """`size` random rows, always the same; those of a smaller subset are among those of a larger one."""
    if size is None or size >= len(data):
        return data
    return data.select(np.sort(np.random.default_rng(0).permutation(len(data))[:size]))


def task_scores(task: GlueTask, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
    """The metrics of a task."""
    scores = {}
    for metric in task.metrics:
        scores |= metrics.load(metric).compute(predictions=predictions, references=references)
    return scores
