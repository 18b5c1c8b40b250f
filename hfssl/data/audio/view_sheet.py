"""A sheet to look at and to listen to: recordings, and the views of them that a method compares."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.filter_banks import HOP, SAMPLING_RATE
from ..stream import Block
from .contact_sheet import write_page
from .decode import decode_audio
from .views import NUM_VIEWS, AudioViews


def view_sheet(
    recordings: Sequence[bytes],
    views: AudioViews,
    path: str | Path,
    number: int = 6,
    *,
    names: Sequence[str] | None = None,
) -> int:
    """Draw a row for each recording, its spectrogram and its views, and write a page with players beside it.

    Args:
        recordings (`Sequence[bytes]`):
            Encoded; damaged, silent and too short ones are left out, of long ones the beginning is shown.
        views ([`AudioViews`]):
            Drawn as in a run, from keys of this sheet.
        path (`str` or `Path`):
            Of the picture, such as `"views.png"`; the page is `"views.html"` beside it, with the sound in it.
        number (`int`, *optional*, defaults to `6`):
            Rows, at most.
        names (`Sequence[str]`, *optional*):
            Of the recordings, for titles.

    Returns:
        `int`: how many recordings it shows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    # some cannot be shown; a view may have another recording under it
    some = list(recordings)[: 2 * number]
    made = views.rows(Block({"audio": some}, keyed.key(Use.CONTACT_SHEET_VIEWS, np.arange(len(some))), 0))
    kept, values = made.places[:number, 2].tolist(), made.columns["input_values"]
    figure, axes = plt.subplots(
        max(len(kept), 1), 1 + NUM_VIEWS, figsize=(3.6 * (1 + NUM_VIEWS), 1.5 * max(len(kept), 1) + 0.5), squeeze=False
    )
    rows = []
    for line, row, index in zip(axes, range(len(kept)), kept, strict=False):
        sound = decode_audio(some[index], SAMPLING_RATE)[: views.num_samples]
        name = names[index] if names is not None else f"recording {index + 1}"
        seconds, length = len(sound) / SAMPLING_RATE, views.num_frames * HOP / SAMPLING_RATE
        shown = [views.spectrogram(sound), *values[row]]
        titles = [f"{name}, {seconds:.2f} s", *(f"view {view + 1}" for view in range(NUM_VIEWS))]
        for axis, picture, title in zip(line, shown, titles, strict=True):
            # what the louder is of the recording, so that a view that was made softer is
            axis.imshow(
                picture.T, origin="lower", aspect="auto", extent=(0, length, 0, views.num_mel_bins), cmap="magma",
                vmin=shown[0].min(), vmax=shown[0].max(),
            )  # fmt: skip
            axis.set_title(title, fontsize=8)
            axis.tick_params(labelsize=6)
        rows.append((name, seconds, sound, []))
    figure.tight_layout()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    write_page(path, rows)
    return len(kept)
