"""What the features of texts look like: texts beside those that are near, and those that stand out."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..frozen import aligned_labels
from ..gallery import gallery_of
from ..probe_features import ProbeFeatures
from ..results import write_json


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

# What is in the files that are written beside features of texts.
CAPTIONS = {
    "neighbours.json": "Test texts, and the training texts with the nearest features.",
    "mistakes.json": "Test texts that k-NN takes for another class, with its share of the votes.",
    "outliers.json": "Test texts that are least like any training text to the encoder, by the cosine to the nearest.",
}
# Letters of a text that are shown, and texts of a kind.
_LETTERS, _MOST, _NEAREST = 160, 12, 3


def draw_pictures(
    encoder: Any, processor: Any, train: "LabelledData", test: "LabelledData", features: ProbeFeatures, folder: Path
) -> list[Path]:
    """Write `neighbours.json`, `mistakes.json` and `outliers.json` into `folder`, so far as there is something to
    see, and return their paths: sentences, each with lines of its own."""
    train_y, test_y = aligned_labels(train, test)
    names, found = [str(name) for name in train.class_names], gallery_of(features, train_y, test_y)

    def said(data: "LabelledData", row: int, labels: Any) -> str:
        return f"{shortened(data.samples[row])} ({names[labels[row]]})"

    listings = {
        "neighbours.json": [
            [said(test, row, test_y), [said(train, other, train_y) for other in others[:_NEAREST]]]
            for row, others in found.neighbours
        ],
        "mistakes.json": [
            [shortened(test.samples[row]), [f"{names[test_y[row]]}, taken for {names[other]} ({100 * share:.0f} %)"]]
            for row, other, share in found.mistakes[:_MOST]
        ],
        "outliers.json": [
            [said(test, row, test_y), [f"cosine {cosine:.2f}"]] for row, cosine in found.outliers[:_MOST]
        ],
    }
    paths = []
    for name, rows in listings.items():
        if rows:
            paths.append(folder / name)
            write_json(paths[-1], rows)
    return paths


def shortened(text: str, letters: int = _LETTERS) -> str:
    """A text of at most so many letters, in one line."""
    text = " ".join(text[: 4 * letters].split())
    return textwrap.shorten(text, letters, placeholder=" …") if " " in text[:letters] else text[:letters]
