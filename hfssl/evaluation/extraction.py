"""Features of encoded samples: made in one pass over them, shared by processes, kept on disk.

Samples are decoded in threads while the encoder works on those before. What is on disk is found again by its content:
samples, what makes the features, and how they are read.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch.distributed as dist
from accelerate.utils import broadcast_object_list

from ..machine import local_world_size, num_cores, process_state
from .evaluator import EvaluationError
from .feature_files import digest as make_digest
from .feature_files import read_features, write_features
from .progress import Progress


if TYPE_CHECKING:
    from ..data.labelled import LabelledData

logger = logging.getLogger(__name__)

# A change that changes features: what older versions left on disk is not used any more.
_VERSION = 2
# share of the samples that may be damaged
MAX_BAD_FRACTION = 0.01
# damaged samples that a message names
_MOST_NAMED = 30


class Extractor(Protocol):
    """Makes features of decoded samples; `digest` names all that they depend on."""

    digest: str

    def __call__(self, samples: list) -> np.ndarray:
        """Decoded samples to features of shape `(len(samples), dim)`."""


class Reader(Protocol):
    """How the samples of a modality are decoded.

    Attributes:
        samples, blank_words (`str`):
            Several of them, and what a damaged one is to every encoder: `"images"`, `"black"`.
        blank:
            That, decoded.
        key (`tuple`):
            Of how they are decoded, what changes the features.
    """

    samples: str
    blank_words: str
    blank: Any
    key: tuple

    def batches(self, samples: Sequence[bytes], starts: Sequence[int], batch_size: int) -> Iterator[list]:
        """Decoded samples from each start on, `None` for a damaged one; see [`in_threads`]."""

    def damage(self, sample: bytes) -> str | None:
        """What is wrong with a sample."""


def extract(
    data: "LabelledData",
    extractors: Mapping[str, Extractor],
    reader: Reader,
    *,
    batch_size: int = 256,
    cache_dir: str | Path | None = None,
    title: str | None = None,
) -> dict[str, np.ndarray]:
    """Features of all samples by each extractor, with one pass over the samples for those that are not on disk."""
    paths = {name: _cache_path(cache_dir, data, extractor, reader) for name, extractor in extractors.items()}
    is_main = process_state().is_main_process
    # the main process alone looks: another one may be on a machine that does not see the folder
    found = {name: read_features(path, len(data.samples)) for name, path in paths.items()} if is_main else {}
    (found,) = broadcast_object_list([found])
    missing = {name: extractor for name, extractor in extractors.items() if found[name] is None}
    if missing:
        for name, features in _extract(data, missing, reader, batch_size, title or reader.samples).items():
            if not np.isfinite(features).all():
                raise EvaluationError(
                    f"The features of {name} hold values that are no numbers: its training diverged, so take an "
                    "earlier checkpoint."
                )
            found[name] = features
            if is_main and paths[name] is not None:
                write_features(paths[name], features)
    return {name: found[name] for name in extractors}


def _extract(
    data: "LabelledData", extractors: Mapping[str, Extractor], reader: Reader, batch_size: int, title: str
) -> dict[str, np.ndarray]:
    state = process_state()
    starts = range(0, len(data.samples), batch_size)
    mine = starts[state.process_index :: state.num_processes]
    parts, bad = {}, []
    bar = Progress(len(data.samples), f"Features of {title}", f" {reader.samples}")
    with bar:
        for start, samples in zip(mine, reader.batches(data.samples, mine, batch_size), strict=True):
            bad += [start + i for i, sample in enumerate(samples) if sample is None]
            samples = [reader.blank if sample is None else sample for sample in samples]
            parts[start] = {name: extractor(samples) for name, extractor in extractors.items()}
            bar.update(len(samples) * state.num_processes)
    parts, bad = _gathered(parts, bad)
    check_damage(data.samples, bad, data.name, reader)
    return {
        name: np.concatenate([parts[start][name] for start in starts]).astype(np.float32, copy=False)
        for name in extractors
    }


def _gathered(parts: dict[int, Any], bad: list[int]) -> tuple[dict[int, Any], list[int]]:
    if process_state().num_processes == 1:
        return parts, bad
    shares: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shares, (parts, bad))
    parts = {start: part for share, _ in shares for start, part in share.items()}
    return parts, sorted(row for _, rows in shares for row in rows)


def check_damage(
    samples: Sequence[bytes],
    bad: Sequence[int],
    name: str,
    reader: Reader,
    max_bad_fraction: float = MAX_BAD_FRACTION,
    are: str | None = None,
) -> None:
    """Say which samples cannot be decoded, and why.

    Args:
        samples (`Sequence[bytes]`):
            All of them.
        bad (`Sequence[int]`):
            Which are damaged.
        name (`str`):
            Of the data.
        reader ([`Reader`]):
            That has tried.
        max_bad_fraction (`float`, *optional*):
            Share of them that is borne.
        are (`str`, *optional*):
            What they are from here on. Left out: what a blank sample is, to every encoder.

    Raises:
        EvaluationError: if they are more than that, and more than one.
    """
    if len(bad) > max(1, max_bad_fraction * len(samples)):
        raise EvaluationError(
            f"{len(bad):,} of the {len(samples):,} {reader.samples} of {name} cannot be decoded: remove or replace "
            f"{_damage(samples, bad, reader)}."
        )
    if bad:
        logger.warning(
            "%d of the %s of %s cannot be decoded, and are %s: %s.", len(bad), reader.samples, name,
            are or f"{reader.blank_words} to every encoder", _damage(samples, bad, reader),
        )  # fmt: skip


def _damage(samples: Sequence[bytes], bad: Sequence[int], reader: Reader) -> str:
    """Name damaged samples, and say what is wrong with each; of very many, how many more they are."""
    from ..data.labelled import LazySamples

    is_lazy = isinstance(samples, LazySamples)
    named = []
    for row in bad[:_MOST_NAMED]:
        name = samples.where(row) if is_lazy else f"{reader.samples.removesuffix('s')} {row:,}"
        reason = reader.damage(samples[row])
        named.append(f"{name} ({reason})" if reason else name)
    return ", ".join(named) + (f", and {len(bad) - len(named):,} more" if len(bad) > len(named) else "")


def in_threads(
    decode: Callable[[bytes], Any], samples: Sequence[bytes], starts: Sequence[int], batch_size: int
) -> Iterator[list]:
    """What `decode` makes of the samples from each start on. The batch after the one that is handed out is decoded
    meanwhile."""
    with ThreadPoolExecutor(max(1, num_cores() // local_world_size())) as pool:
        batches: deque = deque()
        for start in starts:
            rows = range(start, min(start + batch_size, len(samples)))
            # bytes are read here: a file may have one position only
            batches.append([pool.submit(decode, samples[row]) for row in rows])
            if len(batches) == 2:
                yield [job.result() for job in batches.popleft()]
        while batches:
            yield [job.result() for job in batches.popleft()]


def _cache_path(
    cache_dir: str | Path | None, data: "LabelledData", extractor: Extractor, reader: Reader
) -> Path | None:
    if cache_dir is None:
        return None
    name = make_digest(_VERSION, data.fingerprint, len(data.samples), extractor.digest, *reader.key)[:32]
    return Path(cache_dir) / f"{name}.npy"
