"""Makes the targets of a method by a pass over the corpus, and puts them into its batches."""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
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
from ..data.sources.base import Damage
from ..data.stream import Block, ExactStream
from ..functional import keyed
from ..functional.keyed import Use
from ..modeling.base import evaluating
from ..modeling.corpus_targets import NO_TARGET, CorpusTargetsMixin, target_passes_due
from .arguments import SSLTrainingArguments


logger = logging.getLogger(__name__)

# In the output folder while they are made, and in each checkpoint.
FOLDER, FILE = "targets", "targets.npz"
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
        self._places, self._keys, self._columns = np.zeros((0, 4), np.int64), np.zeros(0, "S32"), {}
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
        is_made = broadcast_object_list([file.exists()])[0]
        if not is_made:
            seed = keyed.torch_seed(Use.TARGETS, self.args.seed, number)
            corpus = self._corpus_pass(folder / "features", seed, digest)
            missing = broadcast_object_list([corpus.missing() if is_main else None])[0]
            with evaluating(self.model), self.autocast():
                mine = deal(missing, self.args.process_index, self.args.world_size)
                corpus.run(mine, title=title, show_progress=is_main and not self.args.disable_tqdm)
            if is_main:
                corpus.wait()
                self._write(corpus.results(), file, seed)
                shutil.rmtree(folder / "features")
        while not file.exists():  # a barrier would give up at some time
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

        def prepare(samples: list) -> list[Damage | tuple[dict[str, Any], bool]]:
            keys = keyed.key(Use.TARGET_SAMPLE, seed, content_keys(samples))
            rows = self.stream.transform(Block({leading: samples}, keys, key=0))
            reasons, columns = dict(rows.bad), rows.columns
            prepared: list = [Damage(reasons.get(i, "nothing is left of it")) for i in range(len(samples))]
            for row, i in enumerate(rows.places[:, 2].tolist()):  # a block without places numbers its samples
                one = {name: values[row : row + 1] for name, values in columns.items()}
                prepared[i] = one, identity(samples[i]) not in exclude
            return prepared

        def features(prepared: list) -> ResultRows:
            parts, included = zip(*prepared, strict=True)
            made = self.model.corpus_features(self.stream.collate(_joined(parts)))
            columns = {name: tensor.cpu().numpy() for name, tensor in made.items()}
            return ResultRows({**columns, _INCLUDED: np.array(included)})

        return CorpusPass(
            self.stream.source, features, folder, identity={"seed": seed, "run": digest}, prepare_many=prepare,
            max_bad_fraction=self.stream.max_bad_fraction,
        )  # fmt: skip

    def _write(self, results: CorpusResults, file: Path, seed: int) -> None:
        included = results.to_numpy(_INCLUDED)
        features = {name: results.to_numpy(name)[included] for name in results.columns if name != _INCLUDED}
        columns, tensors = self.model.make_targets(features, seed % (1 << 31))
        temporary = file.with_name(f".{FILE}.tmp")
        _save(temporary, results.places[included], columns, tensors)
        os.replace(temporary, file)

    def _read(self, file: Path) -> dict[str, torch.Tensor]:
        """Take the targets in a file; returns the tensors of the model that belong to them."""
        parts = {"column": {}, "tensor": {}}
        with np.load(file) as arrays:
            self._places = arrays["places"]
            for name in arrays.files:
                kind, _, rest = name.partition(".")
                if kind in parts:
                    parts[kind][rest] = arrays[name]
        self._keys, self._columns = place_keys(self._places), parts["column"]
        return {name: torch.from_numpy(values) for name, values in parts["tensor"].items()}

    # -- batches and checkpoints ----------------------------------------------------------------------------------

    def of(self, places: np.ndarray) -> dict[str, torch.Tensor]:
        """The targets of samples by their places, of shape `(num_samples, 4)`. Where there is none, an
        integer is [`NO_TARGET`] and a float 0."""
        keys = place_keys(places)
        rows = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        missing = self._keys[rows] != keys
        found = {}
        for name, column in self._columns.items():
            values = column[rows]
            values[missing] = NO_TARGET if values.dtype.kind == "i" else 0
            found[name] = torch.from_numpy(values)
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


def _save(path: Path, places: np.ndarray, columns: dict[str, np.ndarray], tensors: dict[str, np.ndarray]) -> None:
    arrays = {f"column.{name}": values for name, values in columns.items()}
    arrays |= {f"tensor.{name}": values for name, values in tensors.items()}
    with path.open("wb") as file:
        np.savez(file, places=places, **arrays)
        file.flush()
        os.fsync(file.fileno())


def _joined(parts: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    """The columns of several samples as those of one block."""
    joined = {}
    for name, example in parts[0].items():
        values = [part[name] for part in parts]
        is_array = isinstance(example, np.ndarray)
        joined[name] = np.concatenate(values) if is_array else [row for rows in values for row in rows]
    return joined
