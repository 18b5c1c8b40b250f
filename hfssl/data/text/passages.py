"""A few long texts as many passages, so that some of them can be held out.

Whoever trains on a book has one text or a few, and what is measured must not be trained on. Such texts are cut into
passages, each of which is a text from then on.
"""

import logging
from collections.abc import Iterator

import regex

from ..sources import MemorySource, Source
from ..sources.base import Damage


logger = logging.getLogger(__name__)

# Of fewer texts no tenth can be held out.
FEWEST_TEXTS = 10
# How many passages are wanted, and how many characters one has at least and at most. With less it would have hardly a
# context, with more there are enough of them anyway.
PASSAGES = 1000
SHORTEST, LONGEST = 200, 4000

# Where a passage ends rather, the best first: a paragraph, a line, a sentence, a word.
_ENDS = [regex.compile(end) for end in (r"\n\s*\n", r"\n", r"[.!?…]['\")\]»”’]*\s|[。！？।።]", r"\s")]
# Characters among which the last letter with its marks is looked for, where there is no other end.
_MARKS = 64
_CLUSTER = regex.compile(r"\X")


def in_passages(source: Source) -> Source:
    """The source itself, or the passages of its texts where these are fewer than [`FEWEST_TEXTS`] and long.

    Args:
        source ([`~hfssl.data.sources.Source`]):
            Of texts.
    """
    texts, bad = [], []
    for piece in range(len(source)):
        read = source.read(piece)
        texts += source.samples(read)
        bad += [Damage(f"{source.where(int(source.pieces[piece, 0]), row)}: {reason}") for row, reason in read.bad]
        if len(texts) >= FEWEST_TEXTS:
            return source
    length = min(max(sum(map(len, texts)) // PASSAGES, SHORTEST), LONGEST)
    passages = [passage for text in texts for passage in cut(text, length)]
    if len(passages) == len(texts) or len(source.inputs) > 1:
        return source
    logger.info(
        "%s: too few to hold some out. Cut into %s passages of about %d characters, which end with a paragraph, a "
        "line, a sentence or a word.",
        "1 text" if len(texts) == 1 else f"{len(texts)} texts", f"{len(passages):,}", length,
    )  # fmt: skip
    column = source.inputs[source.leading].column
    made = MemorySource([*passages, *bad], name=source.files[0], inputs=source.inputs, column=column)
    made.description = f"{source.description}, as {len(passages):,} passages"
    return made


def cut(text: str, length: int) -> Iterator[str]:
    """Passages of half to all of `length` characters, which together are the text."""
    start = 0
    while len(text) - start > length:
        end = start + _end(text[start : start + length])
        yield text[start:end]
        start = end
    yield text[start:]


def _end(window: str) -> int:
    for pattern in _ENDS:
        *_, last = (None, *pattern.finditer(window, len(window) // 2))
        if last is not None:
            return last.end()
    # what follows may belong to the last letter
    clusters = _CLUSTER.findall(window[-_MARKS:])
    return len(window) - len(clusters[-1]) if len(clusters) > 1 else len(window)
