"""From a source of recordings to the stream of a run: batches of so many seconds, of about the same length."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...functional.keyed import Use
from ...modeling.filter_banks import SAMPLING_RATE
from ..held_out import pieces_all_over
from ..mixtures import parts_of, stream_class
from ..sources import DataError, Source
from ..stream import ExactStream
from .collate import AudioCollator, CutCollator, WholeCollator
from .decode import DamagedAudio, audio_header
from .rows import AudioFormat, AudioRows


logger = logging.getLogger(__name__)

# Recordings whose headers are looked at to know how long they are.
LENGTHS_SAMPLE = 64
# Batches in a block: of the recordings of a block those of about the same length share a batch. More of them fill
# their batches better, and are more memory and a longer resume. A second of sound is 64 kB, and a process holds two
# blocks of each of its lanes: 0.5 GB for 8 lanes and batches of 32 s. Of 1,000 captions of 0.4 to 11 s (median 1.1 s),
# with less than 5 % padding, batches of 32 s hold 28 s; 17 s where a block has 8 of them.
BATCHES_A_BLOCK = 16


def recordings(source: Source, number: int) -> Iterator[tuple[str, bytes]]:
    """Names and encoded recordings from all over a source, at most so many."""
    for piece in pieces_all_over(source, Use.STATISTICS_SAMPLE).tolist():
        read, file = source.read(piece), int(source.pieces[piece, 0])
        for row, sample in zip(read.rows.tolist(), source.samples(read), strict=True):
            yield source.where(file, row), sample
            number -= 1
            if not number:
                return


def mean_seconds(source: Source) -> float:
    """How long a recording of a source is in the mean, judged by the headers of some.

    Raises:
        DataError: if none of them can be read.
    """
    mean, weight, reason = 0.0, 0.0, "there is none"
    for part in parts_of(source):
        of_part: list[float] = []
        for name, sample in recordings(part.source, LENGTHS_SAMPLE):
            try:
                of_part.append(audio_header(sample).seconds)
            except DamagedAudio as error:
                reason = f"{name}: {error}"
        if of_part:
            mean, weight = mean + part.share * float(np.mean(of_part)), weight + part.share
    if mean <= 0:
        raise DataError(
            f"No recording of {source.description} can be read ({reason}). Pass other data, or another "
            "`--audio_column`."
        )
    return mean / weight


def audio_stream(
    source: Source,
    format: AudioFormat,
    batch_seconds: float,
    *,
    batches_a_block: int = BATCHES_A_BLOCK,
    **options: Any,
) -> ExactStream:
    """The stream of a run over recordings.

    Args:
        source ([`~hfssl.data.sources.Source`]):
            What to read.
        format ([`~hfssl.data.audio.rows.AudioFormat`]):
            What encoder and method want of a row.
        batch_seconds (`float`):
            Sound in a batch, on this process, padding included.
        batches_a_block (`int`, *optional*):
            How many batches the recordings of a block make.
        options (`dict`, *optional*):
            Arguments of [`~hfssl.data.stream.ExactStream`]: `seed`, `rank`, `world_size`, `lanes`, `num_workers`,
            `exclude`, `max_bad_fraction`.

    Raises:
        DataError: if a window may be longer than a batch.
    """
    if batch_seconds < format.max_seconds:
        raise DataError(
            f"A batch of {batch_seconds:g} s (`--batch_seconds`) holds no recording of {format.max_seconds:g} s, the "
            "longest that is not cut (`--max_seconds`). Pass more of the former, or less of the latter."
        )
    seconds = mean_seconds(source)
    per_piece = seconds * max(source.num_rows, 1) / len(source)
    cost = round(batch_seconds * SAMPLING_RATE)
    if format.is_cut:
        logger.info(
            "Recordings are cut to the shortest of their batch: the first layer of the %s has group norm, and padding "
            "would change its features. With layer norm (`feat_extract_norm=layer`) nothing is lost.",
            format.encoder.model_type,
        )
    return stream_class(source)(
        source,
        AudioRows(format),
        CutCollator(format) if format.is_cut else AudioCollator(),
        1,
        batch_cost=cost,
        block_cost=batches_a_block * batch_seconds,
        piece_cost=per_piece,
        collate_whole=WholeCollator(format, cost),
        **options,
    )
