"""Features of a whole data set by a frozen encoder, kept as a table that any tool reads.

They are made by a [`~hfssl.data.corpus.CorpusPass`], so that the command can be killed and given again, and written as
parquet, npy or a `datasets` folder at the end. The data are not shuffled, and nothing but the encoder looks at them.
"""

import logging
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from accelerate.utils import broadcast_object_list
from datasets.table import InMemoryTable

from ..data.corpus import PLACE, CorpusPass, CorpusResults, ResultRows, deal
from ..data.mixtures import parts_of
from ..data.sources import Source
from ..machine import process_state
from ..modeling.base import evaluating
from .encoder_folder import trained_pooling
from .evaluator import EvaluationError
from .modality import modality_of_encoder
from .results import command_line, versions, write_json
from .sample_features import EmbedSettings, SampleFeatures


logger = logging.getLogger(__name__)

PARTS, PLACES, RECORD = "parts", "places.parquet", "embed.json"
# Rows that are written at once: a row group of the parquet file.
_ROWS_AT_ONCE = 8192


def load_embedder(encoder: str, settings: EmbedSettings) -> SampleFeatures:
    """The encoder, with the pooling that it was trained with where nothing else is asked for.

    Args:
        encoder (`str`):
            Folder or Hub id of a stock encoder, with its tokenizer or image processor.
        settings ([`~hfssl.evaluation.sample_features.EmbedSettings`]):
            How features are made.

    Raises:
        EvaluationError: where it cannot be loaded, or takes neither texts nor images.
    """
    modality = modality_of_encoder(encoder)
    if modality.sample_features is None:
        raise EvaluationError(f"Features of a whole data set are not there for the modality {modality.name!r} yet.")
    if settings.layer is not None and not modality.has_layers:
        raise EvaluationError(
            f"`--layer {settings.layer}` is for encoders of recordings, and this one takes {modality.name}s. Leave it "
            "out."
        )
    trained = trained_pooling(encoder)
    if settings.pooling is None:
        settings = replace(settings, pooling=trained)
    embedder = modality.sample_features(encoder, settings)
    how = ", as the encoder was trained" if embedder.pooling == trained else ""
    logger.info("Pooling: %s%s.", embedder.pooling, how)
    return embedder


@dataclass
class Embedded:
    """Features that are written.

    Args:
        path (`Path`):
            Where they are.
        num_rows, dim (`int`):
            How many, and how long each is.
        num_samples, num_damaged (`int`):
            Samples of the data, and how many of them are damaged and have no features.
    """

    path: Path
    num_rows: int
    dim: int
    num_samples: int
    num_damaged: int

    def summary(self) -> str:
        """What lies where, and how to read it."""
        folder = self.path.parent
        damaged = f" ({self.num_damaged:,} are damaged and left out)" if self.num_damaged else ""
        return (
            f"\n{self.num_rows:,} features of {self.dim} numbers, of {self.num_samples:,} samples{damaged}:\n"
            f"  {self.path}{_ABOUT[self.path.suffix]}\n  {folder / RECORD}  how they were made\n"
            f"  {folder / PARTS}/  the same, part by part: another --format is made of it; delete it when done\n"
            f"\n{self.snippet()}"
        )

    def load(self) -> tuple[np.ndarray, list[str]]:
        """The features, of shape `(num_rows, dim)`, and what each is of."""
        if self.path.suffix == ".npy":
            samples = pq.read_table(self.path.with_name(PLACES), columns=["sample"])
            return np.load(self.path, mmap_mode="r"), samples.column("sample").to_pylist()
        if self.path.is_dir():
            table = datasets.load_from_disk(str(self.path)).with_format("arrow")[:]
        else:
            table = pq.read_table(self.path, columns=["sample", "features"])
        features = table.column("features").combine_chunks().flatten().to_numpy().reshape(-1, self.dim)
        return features, table.column("sample").to_pylist()

    def places(self) -> np.ndarray:
        """Source, file and row of each feature, of shape `(num_rows, 3)`."""
        columns = list(PLACE[:3])
        if self.path.is_dir():
            table = datasets.load_from_disk(str(self.path)).select_columns(columns).with_format("arrow")[:]
        else:
            path = self.path if self.path.suffix == ".parquet" else self.path.with_name(PLACES)
            table = pq.read_table(path, columns=columns)
        return np.stack([table.column(name).to_numpy() for name in columns], axis=1)

    def snippet(self) -> str:
        """Python that reads the features."""
        return _SNIPPETS[self.path.suffix].format(path=self.path, places=self.path.with_name(PLACES), dim=self.dim)


def embed(
    embedder: SampleFeatures,
    source: Source,
    output_dir: str | Path,
    format: str = "parquet",
    max_bad_fraction: float = 0.01,
) -> Embedded | None:
    """Write the features of all samples of a source; every process of a run calls it.

    What is made is kept in `output_dir/parts/` as it comes: the same call goes on after a kill, and writes another
    format from there.

    Args:
        embedder ([`~hfssl.evaluation.sample_features.SampleFeatures`]):
            Of [`load_embedder`].
        source ([`~hfssl.data.sources.Source`]):
            The data.
        output_dir (`str` or `Path`):
            Where to; all processes must see it.
        format (`str`, *optional*, defaults to `"parquet"`):
            `"parquet"`: `features.parquet`. `"npy"`: `features.npy`, of shape `(num_rows, dim)`, and `places.parquet`.
            `"dataset"`: a folder `dataset` of `datasets.save_to_disk`. All have the columns of a place (source, file,
            row, window) and `sample`, which says it in words.
        max_bad_fraction (`float`, *optional*, defaults to `0.01`):
            Share of damaged samples above which it stops.

    Returns:
        [`Embedded`] in the main process, which waits for the others; `None` in these.

    Raises:
        EvaluationError: where there is nothing to embed, or the features are no numbers.
        DataError: where too much is damaged, or the folder holds other features.
    """
    if format not in _WRITERS:
        raise EvaluationError(f"The format is one of {', '.join(_WRITERS)}, got {format!r}.")
    state, output_dir = process_state(), Path(output_dir)

    def features(samples: list) -> ResultRows:
        made = embedder(samples)
        if not np.isfinite(made.columns["features"]).all():
            raise EvaluationError(
                "The features hold values that are no numbers: the training of the encoder diverged, so take an "
                "earlier checkpoint."
            )
        return made

    corpus = CorpusPass(
        source, features, output_dir / PARTS, identity=embedder.identity, prepare=embedder.prepare,
        batch_size=embedder.samples_at_once, max_bad_fraction=max_bad_fraction,
    )  # fmt: skip
    # one process looks for all: another one may look when the first part is finished already
    missing = broadcast_object_list([corpus.missing() if state.is_main_process else None])[0]
    with evaluating(embedder.model):
        mine = deal(missing, state.process_index, state.num_processes)
        corpus.run(mine, title="Features", show_progress=state.is_main_process)
    if not state.is_main_process:
        return None
    corpus.wait()
    results = corpus.results()
    if len(results) == 0:
        raise EvaluationError(
            f"{source.description} has nothing to embed: all of its {results.num_read:,} samples are empty or damaged."
        )
    path = output_dir / _NAMES[format]
    _WRITERS[format](results, source, path)
    made = Embedded(
        path, len(results), results.schema.field("features").type.list_size, results.num_read, results.num_bad
    )
    how = embedder.identity | {"digest": embedder.identity["encoder"], "encoder": embedder.model.name_or_path}
    record = {
        **how, "dim": made.dim, "data": source.description, "fingerprint": source.fingerprint, "rows": made.num_rows,
        "samples": made.num_samples, "damaged": made.num_damaged, "command": command_line(), "versions": versions(),
    }  # fmt: skip
    write_json(output_dir / RECORD, record)
    return made


# -- formats ------------------------------------------------------------------------------------------------------


def _named_tables(results: CorpusResults, source: Source) -> Iterator[pa.Table]:
    """The results with what each row is of, a run of rows at a time."""
    table, sources = results.to_table(), [part.source for part in parts_of(source)]
    for start in range(0, len(table), _ROWS_AT_ONCE):
        some = table.slice(start, _ROWS_AT_ONCE).combine_chunks()
        places = zip(*(some.column(name).to_pylist() for name in PLACE[:3]), strict=True)
        names = [sources[number].where(file, row) for number, file, row in places]
        yield some.append_column("sample", pa.array(names, pa.string()))


def _write_parquet(results: CorpusResults, source: Source, path: Path, columns: list[str] | None = None) -> None:
    with _aside(path) as temporary:
        writer = None
        for table in _named_tables(results, source):
            table = table.select(columns or ["sample", *PLACE, "features"])
            writer = writer or pq.ParquetWriter(temporary, table.schema)
            writer.write_table(table)
        writer.close()


def _write_npy(results: CorpusResults, source: Source, path: Path) -> None:
    shape = (len(results), results.schema.field("features").type.list_size)
    with _aside(path) as temporary:
        features = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        start = 0
        for _, columns in results:
            features[start : start + len(columns["features"])] = columns["features"]
            start += len(columns["features"])
        features.flush()
    _write_parquet(results, source, path.with_name(PLACES), ["sample", *PLACE])


def _write_dataset(results: CorpusResults, source: Source, path: Path) -> None:
    names = pa.chunked_array([table.column("sample").combine_chunks() for table in _named_tables(results, source)])
    table = results.to_table().append_column("sample", names).select(["sample", *PLACE, "features"])
    with _aside(path) as temporary:
        # the features are memory-mapped, not in memory
        datasets.Dataset(InMemoryTable(table)).save_to_disk(temporary)


_WRITERS = {"parquet": _write_parquet, "npy": _write_npy, "dataset": _write_dataset}
_NAMES = {"parquet": "features.parquet", "npy": "features.npy", "dataset": "dataset"}

# By the ending of what was written.
_ABOUT = {
    ".parquet": "  a row a vector: features, sample, and its place (source, file, row, window)",
    ".npy": f"  and {PLACES} beside it: sample and place (source, file, row, window) of each row",
    "": "/  a row a vector: features, sample, and its place (source, file, row, window)",
}
_SNIPPETS = {
    ".parquet": """import numpy as np
import pandas as pd

table = pd.read_parquet("{path}")
features = np.stack(table["features"])  # (num_rows, {dim})""",
    ".npy": """import numpy as np
import pandas as pd

features = np.load("{path}", mmap_mode="r")  # (num_rows, {dim})
samples = pd.read_parquet("{places}")["sample"]""",
    "": """from datasets import load_from_disk

dataset = load_from_disk("{path}").with_format("numpy")
features = dataset[:8]["features"]  # (8, {dim})""",
}


@contextmanager
def _aside(path: Path) -> Iterator[Path]:
    """Where to write a file or folder that gets its name when it is complete."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):  # of a process that was killed
        _remove(left)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    yield temporary
    if path.is_dir():
        _remove(path)
    os.replace(temporary, path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
