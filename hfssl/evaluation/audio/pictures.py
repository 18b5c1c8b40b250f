"""What the features of recordings look and sound like: what lies near to what, and what stands out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...modeling.filter_banks import SAMPLING_RATE
from ..frozen import aligned_labels
from ..gallery import gallery_of
from ..image.pictures import plot_feature_map
from ..probe_features import ProbeFeatures


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

# What is in the files that are written beside features of recordings.
CAPTIONS = {
    "layers.png": "What a linear probe of each layer, and of their weighted sum, knows of the labels.",
    "feature_map.png": "Features of the test recordings in two dimensions, a colour for each class.",
    "heard_neighbours.png": "Test recordings, each before the training recordings with the nearest features.",
    "heard_mistakes.png": "Test recordings that k-NN takes for another class, with its share of the votes.",
    "heard_outliers.png": "Test recordings that are least like any training recording to the encoder.",
}
# Of a recording so much is heard; recordings of a kind, and neighbours of one.
_SECONDS, _MOST, _QUERIES, _NEAREST = 4, 6, 3, 2


@dataclass
class Heard:
    """A recording to listen to.

    Args:
        name (`str`):
            What it is called.
        clip (`np.ndarray`):
            Its waveform.
        maps (`dict[str, np.ndarray]`, *optional*):
            By the name of a method, a number for each stretch of it.
    """

    name: str
    clip: np.ndarray
    maps: Mapping[str, np.ndarray] = field(default_factory=dict)


def draw_pictures(
    encoder: Any, processor: Any, train: "LabelledData", test: "LabelledData", features: ProbeFeatures, folder: Path
) -> list[Path]:
    """Write `feature_map.png`, and what can be heard of neighbours, mistakes and outliers, into `folder`; return the
    paths of the pictures."""
    from .encoder import AudioEncoder
    from .features import AudioReader

    folder.mkdir(parents=True, exist_ok=True)
    train_y, test_y = aligned_labels(train, test)
    names, paths = [str(name) for name in train.class_names], [folder / "feature_map.png"]
    plot_feature_map(features.test, test_y, names, paths[0])
    rate, found = AudioEncoder(encoder, processor).sampling_rate, gallery_of(features, train_y, test_y)
    reader = AudioReader(rate)

    def heard(data: "LabelledData", row: int, name: str) -> Heard:
        clip = reader.decode(data.samples[row])
        return Heard(name, (reader.blank if clip is None else clip)[: _SECONDS * rate])

    rows = {"heard_neighbours.png": [], "heard_mistakes.png": [], "heard_outliers.png": []}
    for row, others in found.neighbours[:_QUERIES]:
        rows["heard_neighbours.png"].append(heard(test, row, f"test: {names[test_y[row]]}"))
        for place, other in enumerate(others[:_NEAREST], start=1):
            rows["heard_neighbours.png"].append(heard(train, other, f"nearest {place}: {names[train_y[other]]}"))
    for row, other, share in found.mistakes[:_MOST]:
        name = f"{names[test_y[row]]}, taken for {names[other]} ({100 * share:.0f} %)"
        rows["heard_mistakes.png"].append(heard(test, row, name))
    for row, cosine in found.outliers[:_MOST]:
        rows["heard_outliers.png"].append(heard(test, row, f"{names[test_y[row]]}, cosine {cosine:.2f}"))
    for name, some in rows.items():
        if some:
            paths.append(folder / name)
            write_sounds(some, rate, paths[-1])
    return paths


def write_sounds(heard: Sequence[Heard], rate: int, path: Path) -> None:
    """Draw the spectrograms of recordings, with maps of them as lines, and write a page with players beside.

    Args:
        heard (`Sequence[Heard]`):
            What there is.
        rate (`int`):
            Of the waveforms.
        path (`Path`):
            Of the picture; the page has its name, with the suffix `.html`.
    """
    from matplotlib.figure import Figure

    from ...data.audio.contact_sheet import spectrogram, write_page
    from ...data.audio.decode import resampled

    has_maps = any(each.maps for each in heard)
    across = 1 if has_maps else min(3, len(heard))
    lines = -(-len(heard) // across)
    figure = Figure(figsize=(7.0, (1.5 if has_maps else 1.2) * lines + 0.3), layout="constrained")
    axes = figure.subplots(lines, across, squeeze=False).ravel()
    for axis in axes[len(heard) :]:
        axis.set_axis_off()
    sounds = []
    for axis, each in zip(axes, heard, strict=False):
        sound = resampled(each.clip, rate, SAMPLING_RATE)
        seconds = len(sound) / SAMPLING_RATE
        axis.imshow(
            spectrogram(sound), origin="lower", aspect="auto", extent=(0, seconds, 0, SAMPLING_RATE / 2000),
            cmap="gray_r",
        )  # fmt: skip
        axis.set_title(each.name, fontsize=7, parse_math=False)
        axis.tick_params(labelsize=6)
        sounds.append((each.name, seconds, sound, []))
        if each.maps:
            lines_of(each.maps, axis, seconds)
    figure.savefig(path, dpi=110)
    write_page(path, sounds)


def lines_of(maps: Mapping[str, np.ndarray], axis: Any, seconds: float) -> None:
    """Each map as a line over time, as a share of its largest number."""
    over = axis.twinx()
    for number, (name, values) in enumerate(maps.items()):
        edges = np.linspace(0, seconds, len(values) + 1)
        over.stairs(values / (np.abs(values).max() or 1.0), edges, color=f"C{number}", linewidth=1.2, label=name)
    over.axhline(0, color="0.5", linewidth=0.5)
    over.tick_params(labelsize=6)
    over.legend(fontsize=6, frameon=False, loc="upper right", ncols=len(maps))
