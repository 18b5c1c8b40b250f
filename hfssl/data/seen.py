"""What an encoder was trained on, as digests in its folder, so that who measures it can tell what is new to it."""

import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..errors import UserError
from ..functional.keyed import Use
from .held_out import pieces_all_over
from .mixtures import parts_of
from .sources import Source, identity
from .sources.base import content_bytes


logger = logging.getLogger(__name__)

SEEN = "seen.npy"
# Of larger data a sample from all over them, which takes seconds to read.
MOST_SAMPLES, MOST_BYTES = 50_000, 256 << 20


def write_seen(folder: str | Path, source: Source, exclude: frozenset[str | bytes] = frozenset()) -> None:
    """Keep digests of training samples, or of many of them, beside an encoder.

    Args:
        folder (`str` or `Path`):
            Of the encoder.
        source ([`~hfssl.data.sources.Source`]):
            What it was trained on.
        exclude (`frozenset`):
            The [`~hfssl.data.sources.identity`] of what was left out.
    """
    digests: set[int] = set()
    for part in parts_of(source):
        read_bytes, most = 0.0, len(digests) + max(round(part.share * MOST_SAMPLES), 1)
        for piece in pieces_all_over(part.source, Use.SEEN_SAMPLE).tolist():
            try:
                read = part.source.read(piece)
            except UserError as error:  # gone since it was trained on
                logger.debug("Not read: %s", error)
                break
            contents = (part.source.held_out_by(read.columns, i) for i in range(len(read.rows)))
            digests |= {_digest(content) for content in contents if content not in exclude}
            read_bytes += float(part.source.piece_bytes[piece])
            if len(digests) >= most or read_bytes > part.share * MOST_BYTES:
                break
    np.save(Path(folder) / SEEN, np.array(sorted(digests), np.uint64))


def num_seen(folder: str | Path, samples: Iterable) -> int:
    """How many samples are known to be among those that the encoder in a folder was trained on.

    One side of pairs lies in a folder of its own, below that which tells of both.
    """
    folder = Path(folder)
    path = next((path for path in (folder / SEEN, folder.parent / SEEN) if path.is_file()), None)
    if path is None or not folder.is_dir():
        return 0
    try:
        seen = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return 0
    return int(np.isin(np.array([_digest(identity(sample)) for sample in samples], np.uint64), seen).sum())


def _digest(content: str | bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content_bytes(content), digest_size=8).digest())
