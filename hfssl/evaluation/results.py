"""What an evaluation found: one record per figure, kept in `results.json` with all that is needed to get it again."""

import hashlib
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ..commands import this_command
from ..errors import UserError
from ..machine import fit_to_leave


_SECRETS = re.compile(r"hf_[A-Za-z0-9]{8,}")
_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "numpy")


@cache
def versions() -> dict[str, str]:
    """Versions of Python, of hfssl and of the packages that a figure depends on."""
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    for package in ("hfssl", *_PACKAGES):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            own = getattr(sys.modules.get(package), "__version__", None)
            if own:
                found[package] = own
    return found


@cache
def commit() -> str | None:
    """Commit of the checkout that hfssl runs from, with `-dirty` where files differ from it; `None` without one."""
    package = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str:
        command = ["git", "-C", str(package), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        # an environment may lie inside another project's checkout: that commit would say nothing about hfssl
        if Path(git("rev-parse", "--show-toplevel")).resolve() / package.name != package:
            return None
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def command_line() -> str:
    """The command of this process, without secrets and without the folders of this machine."""
    return fit_to_leave(without_secrets(shlex.join([*this_command(), *sys.argv[1:]])))


def without_secrets(text: str) -> str:
    """A text without the tokens of the Hub that stand in it."""
    return _SECRETS.sub("***", text)


@dataclass
class Result:
    r"""
    One figure of one protocol, beside its baselines.

    Args:
        protocol (`str`):
            Name of the protocol, such as `"glue"`.
        version (`int`):
            Version of the protocol. Figures of different versions are not comparable.
        model (`str`):
            Folder or Hub id of what was evaluated.
        task (`str`):
            What it was evaluated on.
        split (`str`):
            Split that `value` was measured on.
        metric (`str`):
            Name of the metric.
        value (`float`):
            Mean over the seeds. Fractions, not percentages.
        std (`float`, *optional*):
            Sample standard deviation over the seeds; `None` for a single one.
        seeds (`list[int]`):
            The seeds.
        per_seed (`list[float]`):
            The value of each seed, in that order.
        baselines (`dict[str, float]`):
            The same figure for `"random_init"`, `"majority"`, `"raw_input"` …
        baselines_std (`dict[str, float]`):
            Standard deviation of those baselines that have one.
        num_train (`int`), num_eval (`int`):
            Labelled rows that were trained and evaluated on.
        hyperparameters (`dict`):
            All that the protocol fixed or that was set.
        greater_is_better (`bool`, *optional*, defaults to `True`):
            Whether more is better.
        command (`str`, *optional*):
            The command that gives the figure.
        commit (`str`, *optional*):
            Commit of hfssl.
        versions (`dict[str, str]`, *optional*):
            Versions of what it ran on.
        encoder (`str`, *optional*):
            Digest of the weights that it is of, where it is a figure of the encoder in the same folder.
        details (`dict`, *optional*):
            What was chosen or found on the way, such as a regularisation chosen on train. Not part of what makes this
            experiment this experiment.
    """

    protocol: str
    version: int
    model: str
    task: str
    split: str
    metric: str
    value: float
    std: float | None
    seeds: list[int]
    per_seed: list[float]
    baselines: dict[str, float]
    baselines_std: dict[str, float]
    num_train: int
    num_eval: int
    hyperparameters: dict[str, Any]
    greater_is_better: bool = True
    command: str = field(default_factory=command_line)
    commit: str | None = field(default_factory=commit)
    versions: dict[str, str] = field(default_factory=lambda: dict(versions()))
    encoder: str | None = None
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_scores(
        cls,
        scores: Mapping[int, float],
        baselines: Mapping[str, float | Mapping[int, float]] | None = None,
        **fields: Any,
    ) -> "Result":
        """Make a result from the score of each seed; a baseline is one figure, or the score of each seed as well."""
        value, std = _mean_and_std(scores.values())
        figures, deviations = {}, {}
        for name, baseline in (baselines or {}).items():
            seeds = baseline if isinstance(baseline, Mapping) else {0: baseline}
            figures[name], deviation = _mean_and_std(seeds.values())
            if deviation is not None:
                deviations[name] = deviation
        return cls(
            value=value,
            std=std,
            seeds=list(scores),
            per_seed=list(scores.values()),
            baselines=figures,
            baselines_std=deviations,
            **fields,
        )


# Records that agree in all of these tell of the same experiment: the newer one replaces the older.
_IDENTITY = ("protocol", "version", "model", "task", "split", "metric", "num_train", "num_eval", "hyperparameters")


def write_results(path: str | Path, results: Iterable[Result]) -> list[dict]:
    """Merge results into a `results.json`, a list of records, and return the whole list.

    A record of the same experiment (protocol, model, task, data, hyper-parameters) is replaced, all others are kept.
    The file is replaced in one step, so that an interruption leaves the old one or the new one. It may leave this
    machine: of models in other folders it keeps the last part of the path, and tells them apart by `experiment`.
    """
    folder = Path(path).parent
    records = [_marked(record, folder) for record in read_results(path)]
    for result in results:
        new = _marked(asdict(result), folder)
        records = [record for record in records if record["experiment"] != new["experiment"]] + [new]
    write_json(path, records)
    return records


def read_results(path: str | Path) -> list[dict]:
    """The records of a `results.json`; none where there is no such file."""
    records = read_json(path, default=[])
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise UserError(f"{path} is not a list of results. Move it away, or name another output folder.")
    return records


def read_json(path: str | Path, default: Any) -> Any:
    """What a JSON file holds; `default` where there is no such file."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not valid JSON ({error}). Move it away, or name another output folder.") from None


def write_json(path: str | Path, content: Any):
    """Write a JSON file in one step: written beside, then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(_without_nan(content), file, indent=2, ensure_ascii=False, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def format_table(results: Iterable[Result]) -> str:
    """Results as a table for the terminal: one line per figure, the baselines in the columns after it."""
    results = list(results)
    names = list(dict.fromkeys(name for result in results for name in result.baselines))
    rows = [["task", "metric", "encoder", *(name.replace("_", " ") for name in names), "seeds", "train", "eval"]]
    for result in results:
        metric = result.metric if result.split in ("validation", "test") else f"{result.metric} ({result.split})"
        baselines = [_figure(result.baselines.get(name), result.baselines_std.get(name)) for name in names]
        counts = [str(len(result.seeds)), str(result.num_train), str(result.num_eval)]
        rows.append([result.task, metric, _figure(result.value, result.std), *baselines, *counts])
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as a table for the terminal; the first is its head."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _figure(value: float | None, std: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" + (f" ± {std:.3f}" if std is not None else "")


def _mean_and_std(values: Iterable[float]) -> tuple[float, float | None]:
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def _marked(record: dict, folder: Path) -> dict:
    """A record that may leave this machine, with a digest of what makes its experiment this one.

    A model in a folder counts by its place beside the folder of the results, in whatever way it was named.
    """
    model = record.get("model")
    if model and os.path.isdir(model):
        model = os.path.relpath(os.path.realpath(model), folder.resolve())
    identity = json.dumps(
        [model if name == "model" else record.get(name) for name in _IDENTITY], sort_keys=True, default=str
    )
    digest = hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
    return {"experiment": digest} | fit_to_leave(record)


def _without_nan(content: Any) -> Any:
    # `NaN` is not JSON: other programs could not read the file
    if isinstance(content, float) and not math.isfinite(content):
        return None
    if isinstance(content, Mapping):
        return {key: _without_nan(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_without_nan(value) for value in content]
    return content
