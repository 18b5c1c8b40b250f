"""Letters: drawn images whose labels a network has to learn, on every machine without a download.

A capital letter in one of the 21 text fonts that matplotlib ships, in a random colour on a lighter random colour, in
place, size and slight rotation of its own. What sets two images apart at first sight, colour, place and size, is what
views take away: pixels and random networks hardly know a letter, a trained one does. Digits of scikit-learn are the
other way round, see [`~hfssl.data.image.digits`].
"""

import colorsys
import functools
from pathlib import Path

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use
from ..cache import cached_columns
from .png import png_files


# Part of the name of the cache: raise it when other images are drawn than before.
FORMAT_VERSION = 1

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FONTS = (
    *(f"DejaVu{family}" for family in (
        "Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique", "SansMono", "SansMono-Bold", "SansMono-Oblique",
        "SansMono-BoldOblique", "Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic",
    )),
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
    "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
# Sixths of the circle of hues, each around the colour that it is called by.
COLORS = ("red", "yellow", "green", "cyan", "blue", "magenta")
NUM_IMAGES = {"train": 10_000, "test": 2_000}

SIZE = 32
# A glyph is drawn once, as large as it gets, in the middle of a square of its own.
GLYPH_SIZE, FONT_SIZE = 64, 40
# Of the drawn glyph, so that a capital is about half to three quarters of the image high. A method without negatives
# that is shown letters of very different sizes learns the size.
SCALE = (0.55, 0.85)
# Degrees, and pixels from the middle.
ROTATION, SHIFT = 15.0, 4.0
# Pixels from the middle of a drawn glyph to its edge, about: letters are nearer to the middle where they are large.
REACH = 15.0
# Of the means of red, green and blue, in [0, 255].
LEAST_CONTRAST = 60.0


def letters(split: str) -> dict[str, list]:
    """The letters of a split, and what each image shows.

    The drawing takes some seconds and is kept in `HF_HOME/hfssl`. It is the same in every run and, as long as
    matplotlib's fonts and FreeType are, on every machine.

    Args:
        split (`str`):
            `"train"` (10,000 images) or `"test"` (2,000).

    Returns:
        `dict[str, list]`: `image`, PNG files of 32 × 32 pixels; `label`, 0 to 25, the letter; `font`, 0 to 20, and
        `color`, 0 to 5, that of the letter: places in `LETTERS`, `FONTS` and `COLORS`.
    """
    return cached_columns(f"letters-{split}-v{FORMAT_VERSION}-{drawn_with()}", lambda: _draw(split))


def drawn_with() -> str:
    """The versions on which the look of a letter depends, for the name of a cache."""
    import matplotlib
    import PIL
    from PIL import features

    return f"mpl{matplotlib.__version__}-pil{PIL.__version__}-ft{features.version('freetype2')}"


def _draw(split: str) -> dict[str, list]:
    number = NUM_IMAGES[split]
    draws = _draws(split, number, 12)
    label, font = (draws[:, 0] * len(LETTERS)).astype(int), (draws[:, 1] * len(FONTS)).astype(int)
    angle = np.deg2rad((2 * draws[:, 2] - 1) * ROTATION)
    scale = SCALE[0] + draws[:, 3] * (SCALE[1] - SCALE[0])
    shift = (2 * draws[:, 4:6] - 1) * np.minimum(SHIFT, SIZE / 2 - REACH * scale)[:, None]
    ink, paper = colors_of(draws[:, 6:9], draws[:, 9:12])
    shares = placed_letters(label, font, angle, scale, SIZE / 2 + shift, SIZE)[..., None]
    pixels = paper[:, None, None] + (ink - paper)[:, None, None] * (shares.astype(np.float32) / 255)
    hue = draws[:, 6] * len(COLORS)
    return {
        "image": png_files(np.rint(pixels).astype(np.uint8)), "label": label.tolist(), "font": font.tolist(),
        "color": (np.rint(hue).astype(int) % len(COLORS)).tolist(),
    }  # fmt: skip


def _draws(split: str, number: int, columns: int) -> np.ndarray:
    seed, rows = list(NUM_IMAGES).index(split), np.arange(number)[:, None]
    return keyed.uniform(keyed.key(Use.EMBEDDED_LETTERS, seed, rows, np.arange(columns)[None]))


def placed_letters(
    label: np.ndarray, font: np.ndarray, angle: np.ndarray, scale: np.ndarray, middle: np.ndarray, size: int
) -> np.ndarray:
    """How much of each pixel a letter covers, `uint8` of shape `(number, size, size)`.

    Args:
        label, font (`np.ndarray` of shape `(number,)`):
            Places in `LETTERS` and `FONTS`.
        angle, scale (`np.ndarray` of shape `(number,)`):
            Radians, and a share of the size in which letters are drawn.
        middle (`np.ndarray` of shape `(number, 2)`):
            Where the middle of each comes to lie, in pixels from the left and from above.
        size (`int`):
            Height and width of the images.
    """
    from PIL import Image

    # from a pixel of the image to one of the glyph: `Image.transform` asks where each comes from
    cos, sin = np.cos(angle) / scale, np.sin(angle) / scale
    across = GLYPH_SIZE / 2 - cos * middle[:, 0] - sin * middle[:, 1]
    down = GLYPH_SIZE / 2 + sin * middle[:, 0] - cos * middle[:, 1]
    affine = np.stack([cos, sin, across, -sin, cos, down], axis=1)
    resampling = Image.Resampling.BICUBIC
    glyphs = (_glyph(FONTS[font[i]], LETTERS[label[i]]) for i in range(len(label)))
    placed = (
        glyph.transform((size, size), Image.Transform.AFFINE, row, resampling).tobytes()
        for glyph, row in zip(glyphs, affine.tolist(), strict=True)
    )
    return np.frombuffer(b"".join(placed), np.uint8).reshape(len(label), size, size)


def colors_of(ink: np.ndarray, paper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the letter and of what it stands on, red, green and blue in [0, 255], from three numbers each in [0, 1).

    The letter is darker. Which of the two is darker would be the first thing that a method without negatives learns,
    and the last: no view takes it away.
    """
    inks = 255 * np.array([colorsys.hsv_to_rgb(h, 0.4 + 0.6 * s, 0.15 + 0.6 * v) for h, s, v in ink])
    papers = 255 * np.array([colorsys.hsv_to_rgb(h, 0.7 * s, 0.6 + 0.4 * v) for h, s, v in paper])
    # towards white where they are too near to each other, then the letter towards black
    missing = np.clip(LEAST_CONTRAST - papers.mean(1) + inks.mean(1), 0, None)[:, None]
    papers += (255 - papers) * np.clip(missing / (255.001 - papers.mean(1)[:, None]), 0, 1)
    missing = np.clip(LEAST_CONTRAST - papers.mean(1) + inks.mean(1), 0, None)[:, None]
    inks *= 1 - np.clip(missing / inks.mean(1)[:, None], 0, 1)
    return inks.astype(np.float32), papers.astype(np.float32)


@functools.cache
def _glyph(font: str, letter: str):
    import matplotlib
    from PIL import Image, ImageDraw

    image = Image.new("L", (GLYPH_SIZE, GLYPH_SIZE), 0)
    middle = (GLYPH_SIZE / 2, GLYPH_SIZE / 2)
    ImageDraw.Draw(image).text(middle, letter, font=_face(matplotlib.get_data_path(), font), fill=255, anchor="mm")
    return image


@functools.cache
def _face(folder: str, font: str):
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(folder, "fonts", "ttf", f"{font}.ttf")), FONT_SIZE)
