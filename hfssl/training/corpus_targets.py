"""Makes the targets of a method by a pass over the corpus, and puts them into its batches."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from ..data.corpus import CorpusPass, CorpusResults, ResultRows, deal
from ..data.corpus.columns import place_keys
from ..data.held_out import content_keys
from ..data.mixtures import parts_of
from ..data.sources import digest_of, identity
from ..data.sources.base import Damage, Empty
from ..data.stream import Block, ExactStream
from ..errors import UserError, first_line
from ..functional import keyed
from ..functional.keyed import Use
from ..modeling.base import evaluating
from ..modeling.corpus_targets import NO_TARGET, CorpusTargetsMixin, target_passes_due
from .arguments import SSLTrainingArguments


logger = logging.getLogger(__name__)

# In the output folder while they are made, and in each checkpoint.
FOLDER, FILE = "targets", "targets.npz"
# Beside it while they are made: why one of the processes cannot.
FAILURE = "failure.txt"
# For a folder that another machine has made to be seen here, in seconds: disks in a network are late.
SEEN_WITHIN = 60.0
# Of the samples in a pass, which ones targets may be made of.
_INCLUDED = "is_included"


class CorpusTargets(TrainerCallback):
    r"""
    The targets of a [`~hfssl.modeling.corpus_targets.CorpusTargetsMixin`]: a callback of [`SSLTrainer`].

    A pass over the data is that of `hfssl.data.corpus`: killed in the middle, it goes on with what is missing as soon
    as the run is at that step again. Held-out samples are no part of it.

    Args:
        model ([`CorpusTargetsMixin`]):
            The method.
        stream ([`ExactStream`]):
            Of the run: makes of a sample what the model takes. The views of a pass are the same for all processes.
        args ([`SSLTrainingArguments`]):
            The run.
        progress (`Callable[[], float]`):
            What share of it is done.
        autocast (`Callable[[], AbstractContextManager]`):
            The precision of its forward passes.
        settings (`Callable[[], dict[str, Any]]`):
            What makes it this run.
    """

    def __init__(
        self,
        model: CorpusTargetsMixin,
        stream: ExactStream,
        args: SSLTrainingArguments,
        progress: Callable[[], float],
        autocast: Callable[[], AbstractContextManager],
        settings: Callable[[], dict[str, Any]],
    ):
        self.model, self.stream, self.args = model, stream, args
        self.progress, self.autocast, self.settings = progress, autocast, settings
        self.folder = Path(args.output_dir) / FOLDER
        # those of today: places of samples, their keys, and the targets column by column
        self._places, self._keys = np.zeros((0, 4), np.int64), np.zeros(0, "S32")
        self._columns: dict[str, np.ndarray | Sequences] = {}
        stream.with_places = True

    # -- when -----------------------------------------------------------------------------------------------------

    def on_train_begin(self, args, state, control, **kwargs):
        self._make_if_due()

    def on_step_end(self, args, state, control, **kwargs):
        # before the next batch is fetched; a run that stops here makes them when it goes on
        if not control.should_training_stop:
            self._make_if_due()

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:  # each checkpoint has its own
            shutil.rmtree(self.folder, ignore_errors=True)

    def _make_if_due(self) -> None:
        due = target_passes_due(self.progress(), self.model.num_target_passes)
        if due > self.model.num_passes_made:
            self._make(due)

    # -- the pass -------------------------------------------------------------------------------------------------

    def _make(self, number: int) -> None:
        digest = self._digest()
        folder = self.folder / f"{number:04d}-{digest}"
        file = folder / FILE
        is_main, title = self.args.process_index == 0, f"Targets, {number} of {self.model.num_target_passes}"
        if is_main:
            for other in self.folder.glob("*"):
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FAILURE).unlink(missing_ok=True)
        is_made = broadcast_object_list([file.exists()])[0]
        _check_shared(folder, self.args.process_index)
        with _telling_others(folder, self.args.process_index):
            if not is_made:
                seed = keyed.torch_seed(Use.TARGETS, self.args.seed, number)
                corpus = self._corpus_pass(folder / "features", seed, digest)
                missing = broadcast_object_list([corpus.missing() if is_main else None])[0]
                with evaluating(self.model), self.autocast():
                    mine = deal(missing, self.args.process_index, self.args.world_size)
                    corpus.run(mine, title=title, show_progress=is_main and not self.args.disable_tqdm)
                if is_main:
                    corpus.wait(lambda: _raise_failure(folder))
                    self._write(corpus.results(), file, seed)
                    shutil.rmtree(folder / "features")
            while not file.exists():  # a barrier would give up at some time
                _raise_failure(folder)
                time.sleep(0.1)
        self.model.take_targets(self._read(file), number)
        logger.info("%s, of %s samples.", title, f"{len(self._keys):,}")

    def _digest(self) -> str:
        """Of weights, settings and data: features that others made, or of others, are of no use."""
        data = [part.source.fingerprint for part in parts_of(self.stream.source)]
        run = [self.settings(), data, digest_of(self.stream.exclude)]
        digest = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode())
        for tensor in self.model.state_dict().values():
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return broadcast_object_list([digest.hexdigest()[:16]])[0]

    def _corpus_pass(self, folder: Path, seed: int, digest: str) -> CorpusPass:
        leading, exclude = self.stream.source.leading, self.stream.exclude

        def prepare(samples: list) -> list[Damage | Empty | _Prepared]:
            keys = keyed.key(Use.TARGET_SAMPLE, seed, content_keys(samples))
            rows = self.stream.transform(Block({leading: samples}, keys, key=0))
            reasons, prepared = dict(rows.bad), []
            for i, mine in enumerate(_windows(rows.places, len(samples))):  # without places it numbers its samples
                if not len(mine):
                    prepared.append(Damage(reasons[i]) if i in reasons else Empty())
                    continue
                prepared.append(_Prepared(_rows(rows.columns, mine), len(mine), identity(samples[i]) not in exclude))
            return prepared

        def features(prepared: list[_Prepared]) -> ResultRows:
            windows = np.array([sample.num_windows for sample in prepared])
            columns = _joined([sample.columns for sample in prepared])
            total = int(windows.sum())
            whole = self.stream.collate_whole
            batches = [(np.arange(total), self.stream.collate(columns))] if whole is None else whole(columns)
            made: dict[str, Any] = {}
            for rows, batch in batches:
                for name, values in self.model.corpus_features(batch).items():
                    _put(made, name, rows, values, total)
            included = np.repeat([sample.is_included for sample in prepared], windows)
            return ResultRows({**made, _INCLUDED: included}, windows)

        return CorpusPass(
            self.stream.source, features, folder, identity={"seed": seed, "run": digest}, prepare_many=prepare,
            max_bad_fraction=self.stream.max_bad_fraction,
        )  # fmt: skip

    def _write(self, results: CorpusResults, file: Path, seed: int) -> None:
        included = results.to_numpy(_INCLUDED)
        features = {name: _chosen(results.to_numpy(name), included) for name in results.columns if name != _INCLUDED}
        made, tensors = self.model.make_targets(features, seed % (1 << 31))
        columns = {name: Sequences.of(rows) if isinstance(rows, list) else rows for name, rows in made.items()}
        temporary = file.with_name(f".{FILE}.tmp")
        _save(temporary, results.places[included], columns, tensors)
        os.replace(temporary, file)

    def _read(self, file: Path) -> dict[str, torch.Tensor]:
        """Take the targets in a file; returns the tensors of the model that belong to them."""
        parts: dict[str, dict[str, Any]] = {"column": {}, "offsets": {}, "tensor": {}}
        with np.load(file) as arrays:
            self._places = arrays["places"]
            for name in arrays.files:
                kind, _, rest = name.partition(".")
                if kind in parts:
                    parts[kind][rest] = arrays[name]
        self._keys, offsets = place_keys(self._places), parts["offsets"]
        self._columns = {
            name: Sequences(values, offsets[name]) if name in offsets else values
            for name, values in parts["column"].items()
        }
        return {name: torch.from_numpy(values) for name, values in parts["tensor"].items()}

    # -- batches and checkpoints ----------------------------------------------------------------------------------

    def of(self, places: np.ndarray) -> dict[str, torch.Tensor]:
        """The targets of samples by their places, of shape `(num_samples, 4)`. Where there is none, and behind the
        end of a sequence, an integer is [`NO_TARGET`] and a float 0."""
        keys = place_keys(places)
        rows = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        missing = self._keys[rows] != keys
        found = {}
        for name, column in self._columns.items():
            if isinstance(column, Sequences):
                values = column.padded(rows, missing)
            else:
                values = column[rows]
                values[missing] = _nothing(values.dtype)
            found[name] = torch.from_numpy(values.astype(np.int64) if values.dtype.kind in "iu" else values)
        return found

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of the stream, with their targets."""
        for batch in self.stream:
            places = batch.pop("places")
            yield {**batch, **self.of(places.numpy())}

    def save(self, checkpoint: Path) -> None:
        """Put the targets of today into a checkpoint, by which a run goes on."""
        _save(checkpoint / FILE, self._places, self._columns, {})

    def load(self, checkpoint: Path) -> None:
        """Go on with the targets of a checkpoint; what of the model belongs to them is among its weights."""
        if (checkpoint / FILE).exists():
            self._read(checkpoint / FILE)


def _check_shared(folder: Path, process_index: int) -> None:
    """Refuse an output folder that the first process has made and this one does not see."""
    until = time.monotonic() + SEEN_WITHIN
    while not folder.exists():
        if time.monotonic() > until:
            raise UserError(
                f"Process {process_index} does not see {folder}, which process 0 has made: all processes share the "
                "work on the targets of this method by files. Pass an `--output_dir` on a disk that all machines see."
            )
        time.sleep(0.1)


@contextmanager
def _telling_others(folder: Path, process_index: int) -> Iterator[None]:
    """Leave word of what is raised, for those that wait for this process."""
    try:
        yield
    except BaseException as error:
        # the first word is the reason of the others
        with suppress(OSError), open(folder / FAILURE, "x", encoding="utf-8") as file:
            file.write(f"process {process_index} has ended with {type(error).__name__}: {first_line(error)}")
        raise


def _raise_failure(folder: Path) -> None:
    with suppress(FileNotFoundError):
        failure = (folder / FAILURE).read_text(encoding="utf-8")
        raise UserError(f"The targets cannot be made: {failure or 'another process has ended'}.")


@dataclass(frozen=True)
class Sequences:
    """Targets of which each row has a length of its own, one after another in one array.

    Args:
        values (`np.ndarray` of shape `(total_length, ...)`):
            All of them.
        offsets (`np.ndarray` of integers and shape `(num_rows + 1,)`):
            Where each begins, and the end of the last.
    """

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, rows: list[np.ndarray]) -> "Sequences":
        """Those of a list of rows."""
        offsets = np.cumsum([0, *map(len, rows)])
        return cls(np.concatenate(rows) if rows else np.zeros(0, np.int64), offsets)

    def padded(self, rows: np.ndarray, missing: np.ndarray) -> np.ndarray:
        """Some rows, filled up to the longest: `(len(rows), longest, ...)`. What is `missing` has no target."""
        starts = self.offsets[rows]
        lengths = np.where(missing, 0, self.offsets[rows + 1] - starts)
        there = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
        dtype = np.dtype(np.int64) if self.values.dtype.kind in "iu" else self.values.dtype
        values = np.full((*there.shape, *self.values.shape[1:]), _nothing(dtype), dtype)
        places = starts[:, None] + np.arange(there.shape[1])
        values[there] = self.values[places[there]]
        return values


@dataclass(frozen=True)
class _Prepared:
    """The rows of one sample, ready for the model."""

    columns: dict[str, Any]
    num_windows: int
    is_included: bool


def _nothing(dtype: np.dtype) -> int:
    return NO_TARGET if dtype.kind in "iu" else 0


def _windows(places: np.ndarray, num_samples: int) -> list[np.ndarray]:
    """Of each sample the rows that were made of it, by the number of the window."""
    order = np.lexsort((places[:, 3], places[:, 2]))
    rows = np.split(order, np.searchsorted(places[order, 2], np.arange(1, num_samples)))
    for mine in rows:
        if np.any(places[mine, 3] != np.arange(len(mine))):
            raise ValueError(f"The windows of a sample are numbered from 0 without a gap, got {places[mine, 3]}.")
    return rows


def _rows(columns: dict[str, Any], rows: np.ndarray) -> dict[str, Any]:
    return {name: _chosen(values, rows) for name, values in columns.items()}


def _chosen(values: np.ndarray | list, rows: np.ndarray) -> np.ndarray | list:
    """Some rows of a column, by their numbers or by a mask."""
    if isinstance(values, np.ndarray):
        return values[rows]
    return [values[i] for i in (np.flatnonzero(rows) if rows.dtype == bool else rows).tolist()]


def _put(made: dict[str, Any], name: str, rows: np.ndarray, values: torch.Tensor | list, total: int) -> None:
    """Features of some rows to where those of all are."""
    if isinstance(values, torch.Tensor):
        array = values.cpu().numpy()
        if name not in made:
            made[name] = np.empty((total, *array.shape[1:]), array.dtype)
        made[name][rows] = array
        return
    column = made.setdefault(name, [None] * total)
    for row, value in zip(rows.tolist(), values, strict=True):
        column[row] = value.cpu().numpy()


def _save(
    path: Path, places: np.ndarray, columns: dict[str, "np.ndarray | Sequences"], tensors: dict[str, np.ndarray]
) -> None:
    arrays = {}
    for name, column in columns.items():
        values = column.values if isinstance(column, Sequences) else column
        arrays[f"column.{name}"] = _narrowed(values)
        if isinstance(column, Sequences):
            arrays[f"offsets.{name}"] = column.offsets
    arrays |= {f"tensor.{name}": values for name, values in tensors.items()}
    with path.open("wb") as file:
        np.savez(file, places=places, **arrays)
        file.flush()
        os.fsync(file.fileno())


def _narrowed(values: np.ndarray) -> np.ndarray:
    """Integers in as few bytes as they need: the units of a thousand hours of speech lie in each checkpoint."""
    if values.dtype.kind not in "iu" or not values.size:
        return values
    kind = np.promote_types(np.min_scalar_type(int(values.min())), np.min_scalar_type(-int(values.max()) - 1))
    return values.astype(kind)


def _joined(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns of several samples as those of one block."""
    joined = {}
    for name, example in parts[0].items():
        values = [part[name] for part in parts]
        is_array = isinstance(example, np.ndarray)
        joined[name] = np.concatenate(values) if is_array else [row for rows in values for row in rows]
    return joined
