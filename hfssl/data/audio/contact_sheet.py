"""A sheet to look at and to listen to: what a method gets to hear of some recordings, and what it hides."""

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.filter_banks import HOP, SAMPLING_RATE
from ..stream import Block
from .rows import AudioFormat, AudioRows


_WINDOW = 400
# What is quieter than the loudest by so much (dB) is black.
_RANGE = 80.0


def contact_sheet(
    recordings: Sequence[bytes],
    format: AudioFormat,
    path: str | Path,
    number: int = 6,
    *,
    names: Sequence[str] | None = None,
    units: Callable[[np.ndarray], np.ndarray] | None = None,
) -> int:
    """Draw a row for each recording, waveform, spectrogram, hidden frames and units, and write a page with players.

    Args:
        recordings (`Sequence[bytes]`):
            Encoded; damaged, silent and too short ones are left out, long ones shown by their first window.
        format ([`AudioFormat`]):
            What encoder and method want: its masks are drawn as in a run, from keys of this sheet.
        path (`str` or `Path`):
            Of the picture, such as `"views.png"`; the page is `"views.html"` beside it, with the sound in it.
        number (`int`, *optional*, defaults to `6`):
            Rows, at most.
        names (`Sequence[str]`, *optional*):
            Of the recordings, for titles.
        units (`Callable[[np.ndarray], np.ndarray]`, *optional*):
            From what the encoder takes of a recording to the units of its frames, evenly over its length.

    Returns:
        `int`: how many recordings it shows.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = _shown(recordings, format, number)
    figure, axes = plt.subplots(max(len(shown), 1), 2, figsize=(11, 1.7 * max(len(shown), 1) + 0.5), squeeze=False)
    rows = []
    for (wave, spectrum), (index, sound, columns) in zip(axes, shown, strict=False):
        seconds = len(sound) / SAMPLING_RATE
        name = names[index] if names is not None else f"recording {index + 1}"
        wave.plot(np.arange(len(sound)) / SAMPLING_RATE, sound, linewidth=0.3)
        wave.set_title(f"{name}, {seconds:.2f} s", fontsize=8)
        spectrum.imshow(
            spectrogram(sound), origin="lower", aspect="auto", extent=(0, seconds, 0, SAMPLING_RATE / 2000),
            cmap="magma",
        )  # fmt: skip
        spectrum.set_ylabel("kHz", fontsize=6)
        said = []
        if "mask_time_indices" in columns:
            mask = columns["mask_time_indices"][0]
            for axis in (wave, spectrum):
                for begin, end in spans(mask):
                    step = format.hop / SAMPLING_RATE
                    axis.axvspan(begin * step, min(end * step, seconds), color="grey", alpha=0.5, linewidth=0)
            said.append(f"{mask.mean():.0%} of {len(mask)} frames hidden")
        if units is not None:
            found = np.asarray(units(columns[format.main_input][0]))
            strip = spectrum.inset_axes((0, 1.02, 1, 0.12))
            strip.imshow(found[None], aspect="auto", cmap="tab20", interpolation="nearest")
            strip.axis("off")
            said.append(f"units {' '.join(map(str, found.tolist()))}")
        for axis in (wave, spectrum):
            axis.set_xlim(0, seconds)
            axis.tick_params(labelsize=6)
        rows.append((name, seconds, sound, said))
    figure.tight_layout()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    write_page(path, rows)
    return len(shown)


def spectrogram(sound: np.ndarray) -> np.ndarray:
    """Loudness in dB below the loudest, `(num_bins, num_windows)`, in windows of 25 ms that are 10 ms apart."""
    padded = np.pad(sound, (0, max(_WINDOW - len(sound), 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::HOP] * np.hanning(_WINDOW)
    power = np.abs(np.fft.rfft(windows, 512)).T ** 2
    decibels = 10 * np.log10(power / max(power.max(), 1e-20) + 1e-20)
    return np.maximum(decibels, -_RANGE)


def spans(mask: np.ndarray) -> list[tuple[int, int]]:
    """The runs of `True` in a mask, as first and behind the last.

    Example:

    ```python
    >>> spans(np.array([True, True, False, True]))
    [(0, 2), (3, 4)]
    ```
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


def _shown(recordings: Sequence[bytes], format: AudioFormat, number: int) -> list[tuple[int, np.ndarray, dict]]:
    """Of each recording that is shown its number, its sound, and what a run makes of it."""
    maker, found = AudioRows(format), []
    keys = keyed.key(Use.CONTACT_SHEET_VIEWS, np.arange(len(recordings)))
    for index, recording in enumerate(recordings):
        if len(found) == number:
            break
        windows, _ = maker.decoded(Block({"audio": [recording]}, keys[index : index + 1], 0))
        if windows:
            sound = windows[0][2]
            key = keyed.key(Use.WINDOW, keys[index : index + 1], 0)
            found.append((index, sound, format.columns([sound], key, np.zeros(1, np.int64))))
    return found


def write_page(picture: Path, rows: list[tuple[str, float, np.ndarray, list[str]]]) -> None:
    """Write a page beside a picture, with a player for each row.

    Args:
        picture (`Path`):
            The page has its name, with the suffix `.html`, and shows it.
        rows (`list`):
            Name, seconds, sound, and what else is said of each.
    """
    import soundfile

    lines = [
        "<!doctype html>", '<meta charset="utf-8">', f"<title>{html.escape(picture.stem)}</title>",
        "<style>body { font: 15px sans-serif; margin: 2em; max-width: 72em } td { padding: .4em 1em .4em 0 } "
        "img { max-width: 100% }</style>",
        "<table>",
    ]  # fmt: skip
    for name, seconds, sound, said in rows:
        file = io.BytesIO()
        # as loud as each other: what is hardly there could not be heard
        loudest = max(float(np.abs(sound).max()), 1e-9)
        soundfile.write(file, 0.7 * sound / loudest, SAMPLING_RATE, format="WAV", subtype="PCM_16")
        source = base64.b64encode(file.getvalue()).decode()
        words = "; ".join([f"{seconds:.2f} s", *said])
        lines.append(
            f'<tr><td>{html.escape(name)}</td><td><audio controls src="data:audio/wav;base64,{source}"></audio></td>'
            f"<td>{html.escape(words)}</td></tr>"
        )
    lines += ["</table>", f'<img src="{html.escape(picture.name)}" alt="">', ""]
    picture.with_suffix(".html").write_text("\n".join(lines), encoding="utf-8")
