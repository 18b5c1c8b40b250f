"""What `recipes/benchmark_stream.py` measures."""

import json
import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ..data.sources import open_source
from ..data.stream import ExactStream
from ..data.text.rows import TextCollator, TextRows
from ..data.text.tokenizer import train_tokenizer


WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "government",
    "number",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
    "issue",
    "side",
    "kind",
    "head",
    "house",
    "service",
    "friend",
    "father",
    "power",
]
NUM_FILES, BATCH_SIZE, EARLY_ROW = 1000, 32, 10_000

logger = logging.getLogger(__name__)


def make_rows(folder: Path, num_rows: int) -> None:
    """Write the made-up rows as one parquet, one jsonl and 1,000 jsonl files, unless they are there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    done = folder / f"{num_rows}.done"
    if done.exists():
        return
    (folder / "files").mkdir(parents=True, exist_ok=True)
    logger.info("Writing %s rows to %s.", f"{num_rows:,}", folder)
    rng = np.random.default_rng(0)
    per_file = -(-num_rows // NUM_FILES)
    with (
        pq.ParquetWriter(folder / "rows.parquet", pa.schema({"text": pa.string()})) as parquet,
        open(folder / "rows.jsonl", "w") as jsonl,
    ):
        written = 0
        for number in range(NUM_FILES):
            count = min(per_file, num_rows - written)
            lengths = rng.integers(4, 12, count)
            words = rng.integers(0, len(WORDS), int(lengths.sum()))
            ends = np.cumsum(lengths)
            texts = [
                f"{written + i} " + " ".join(WORDS[w] for w in words[end - length : end])
                for i, (length, end) in enumerate(zip(lengths, ends, strict=True))
            ]
            lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
            jsonl.write(lines)
            (folder / "files" / f"{number:04}.jsonl").write_text(lines)
            parquet.write_table(pa.table({"text": texts}))
            written += count
    done.touch()


def open_stream(path: str, workers: int) -> ExactStream:
    """The stream of a masked language model over `path`."""
    tokenizer = train_tokenizer([" ".join(WORDS), " ".join(map(str, range(1000)))] * 50, 1000)
    transform = TextRows(tokenizer, 128, masking={"mask_ratio": 0.15})
    return ExactStream(open_source(path), transform, TextCollator(0), BATCH_SIZE, num_workers=workers)


def read_rows(path: str, num_rows: int, workers: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Read `num_rows` samples: rate and memory of ten parts, the stream's states near row 10,000 and at the end."""
    return _in_fresh_process(_read_rows, path, num_rows, workers)


def _read_rows(path: str, num_rows: int, workers: int) -> tuple[list[dict[str, float]], dict[str, Any]]:
    stream = open_stream(path, workers)
    parts, states = [], {}
    process = psutil.Process()
    begin, rows_before = time.perf_counter(), 0
    for _ in stream:
        rows = stream.counts["samples_read"]
        if "early" not in states and rows >= min(EARLY_ROW, num_rows):
            states["early"] = stream.state_dict()
        if rows >= num_rows * (len(parts) + 1) / 10:
            memory = sum(p.memory_full_info().uss for p in [process, *process.children()]) / 1e6
            now = time.perf_counter()
            waste = 1 - stream.counts["units"] / (stream.counts["rows"] * 128)
            parts.append({"rows_per_s": (rows - rows_before) / (now - begin), "memory_mb": memory, "waste": waste})
            begin, rows_before = now, rows
        if rows >= num_rows:
            states["end"] = stream.state_dict()
            return parts, states
    return parts, states


def first_batch_seconds(path: str, workers: int, state: dict[str, Any]) -> float:
    """Seconds from opening the source to the first batch after `state`, median of three fresh processes."""
    return sorted(_in_fresh_process(_first_batch_seconds, path, workers, state) for _ in range(3))[1]


def _first_batch_seconds(path: str, workers: int, state: dict[str, Any]) -> float:
    tokenizer_first = open_stream(path, workers)  # training the tokenizer is no part of a resume: it is loaded there
    transform = tokenizer_first.transform
    begin = time.perf_counter()
    stream = ExactStream(open_source(path), transform, TextCollator(0), BATCH_SIZE, num_workers=workers)
    stream.load_state_dict(state)
    next(iter(stream))
    return time.perf_counter() - begin


def _in_fresh_process(function, *args):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, multiprocessing.get_start_method(), function, args))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def _send(sender, start_method: str, function, args) -> None:
    # a spawned process would spawn its own workers too, unlike a recipe
    multiprocessing.set_start_method(start_method, force=True)
    sender.send(function(*args))
