"""Characters with captions: image-text pairs whose every word can be seen, on every machine without a download.

Each character that one of the 16 Unicode fonts shipped with matplotlib (DejaVu and STIX) can draw, once in each of
them, in a colour and on a ground of its own; the caption says what it is: its name in Unicode, colours, weight, slant
and family. So a caption is true, two captions that differ differ in what is drawn, and what an encoder does not tell
apart can be named. Some combinations of a character and a colour, or of a character and a style, are never trained on:
whether they are found all the same shows that the parts were learned and not the pairs.
"""

import functools
import unicodedata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use
from ..cache import cached_columns
from .png import palette_png_files


# Part of the name of the cache: raise it when other images or captions are made than before.
FORMAT_VERSION = 1

FAMILIES = ("dejavu sans", "dejavu sans mono", "dejavu serif", "stix")
STYLES = ("regular", "bold", "italic", "bold italic")
# By family, in the order of the styles.
FONTS = (
    ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    ("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    ("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
)
# Of the character, and of what it stands on: red, green and blue, which vary a little.
INKS = {
    "black": (25, 25, 25), "red": (200, 35, 30), "orange": (225, 115, 20), "green": (30, 125, 50),
    "blue": (40, 75, 200), "purple": (120, 45, 160), "brown": (110, 65, 30), "pink": (220, 75, 155),
}  # fmt: skip
GROUNDS = {
    "white": (247, 247, 247), "yellow": (252, 240, 150), "grey": (212, 212, 212), "light blue": (190, 222, 250),
    "light green": (200, 242, 200),
}  # fmt: skip
VARIATION = 8
# The first word of a character's name, where it is one of these.
SCRIPTS = (
    "arabic", "armenian", "box", "braille", "canadian", "cyrillic", "georgian", "greek", "hebrew", "latin",
    "mathematical", "other",
)  # fmt: skip
# `{name}` and what else is said of a character, said in several ways.
CAPTIONS = (
    "{name}, {ink} on {ground}, {style} {family}",
    "{ink} {name} in {style} {family} on {ground}",
    "{style} {family} {name} in {ink} on {ground}",
    "on {ground}, {name} in {ink}, {family} {style}",
)
SPLITS = ("train", "test", "composition")

SIZE = 32
# Pixels an em, and from the middle.
FONT_SIZES, SHIFT = (20, 22, 24, 26), 3.0
# Shades between the ground and the character.
SHADES = 16
# One in so many is measured on: of all pairs, of the characters a style, of all pairs in a colour that their character
# has nowhere else.
ONE_IN = 16
# Of Unicode's categories those that leave ink: letters, numbers, punctuation, symbols.
_CATEGORIES = "LNPS"


class Characters(NamedTuple):
    """What is drawn: an entry for each pair. All but `code` are places in the tuples and dictionaries above."""

    code: np.ndarray
    family: np.ndarray
    style: np.ndarray
    ink: np.ndarray
    ground: np.ndarray
    split: np.ndarray


def characters(split: str) -> dict[str, list]:
    """The pairs of a split, and what each image shows.

    The drawing takes some seconds and is kept in `HF_HOME/hfssl`. It is the same in every run and, as long as
    matplotlib's fonts, FreeType and the Unicode of Python are, on every machine.

    Args:
        split (`str`):
            `"train"` (some 44,000 pairs), `"test"` (some 3,000, of characters that train has in other fonts) or
            `"composition"` (some 4,000, of characters in a colour, or in a style, that train never has them in).

    Returns:
        `dict[str, list]`: `image`, PNG files of 32 × 32 pixels; `caption`; `label`, the script; `color`, `ground`,
        `style` and `family`: places in `SCRIPTS`, `INKS`, `GROUNDS`, `STYLES` and `FAMILIES`.
    """
    import matplotlib
    import PIL
    from PIL import features

    drawn_with = f"mpl{matplotlib.__version__}-pil{PIL.__version__}-ft{features.version('freetype2')}"
    version = f"v{FORMAT_VERSION}-{drawn_with}-u{unicodedata.unidata_version}"
    return cached_columns(f"characters-{split}-{version}", lambda: _draw(split))


@functools.cache
def all_characters() -> Characters:
    """The pairs of all splits."""
    rows = [
        (code, family, style)
        for family, fonts in enumerate(FONTS)
        for style, font in enumerate(fonts)
        for code in _coverage(font)
    ]
    code, family, style = np.array(rows, np.int64).T
    draws = _draws(code, family, style, 4)
    of_code = _draws(code, np.full_like(code, -1), np.full_like(code, -1), 3)
    # the colour that train never has a character in, and the style
    own_ink = (of_code[:, 0] * len(INKS)).astype(int)
    own_style = np.where(of_code[:, 1] < len(STYLES) / ONE_IN, (of_code[:, 2] * len(STYLES)).astype(int), -1)
    ink = (own_ink + 1 + (draws[:, 0] * (len(INKS) - 1)).astype(int)) % len(INKS)
    ground = (draws[:, 1] * len(GROUNDS)).astype(int)
    chosen = (draws[:, 2] * ONE_IN).astype(int)
    split = np.where(chosen == 1, 1, np.where((chosen == 0) | (style == own_style), 2, 0))
    # what is measured has its character in train
    split = np.where(np.isin(code, code[split == 0]), split, 0)
    ink = np.where((split == 2) & (chosen == 0), own_ink, ink)
    return Characters(code, family, style, ink, ground, split)


def captions(of: Characters) -> list[str]:
    """What each image shows, in words."""
    inks, grounds = list(INKS), list(GROUNDS)
    way = (_draws(of.code, of.family, of.style, 4)[:, 3] * len(CAPTIONS)).astype(int)
    return [
        CAPTIONS[way[i]].format(
            name=_name(of.code[i]), ink=inks[of.ink[i]], ground=grounds[of.ground[i]], style=STYLES[of.style[i]],
            family=FAMILIES[of.family[i]],
        )
        for i in range(len(of.code))
    ]  # fmt: skip


def _draw(split: str) -> dict[str, list]:
    everything = all_characters()
    of = Characters(*(values[everything.split == SPLITS.index(split)] for values in everything))
    # size and place, and the colours
    draws = keyed.uniform(keyed.key(Use.EMBEDDED_CHARACTERS, of.code, of.family, of.style, np.arange(10, 20)[:, None]))
    sizes = np.array(FONT_SIZES)[(draws[0] * len(FONT_SIZES)).astype(int)]
    middles = SIZE / 2 + (2 * draws[1:3].T - 1) * SHIFT
    shares = np.stack([
        _glyph(FONTS[family][style], chr(code), int(size), *middle)
        for code, family, style, size, middle in zip(
            of.code, of.family, of.style, sizes, middles.tolist(), strict=True
        )
    ])  # fmt: skip
    vary = (2 * draws[3:9].T - 1) * VARIATION
    ink = np.array(list(INKS.values()))[of.ink] + vary[:, :3]
    ground = np.array(list(GROUNDS.values()))[of.ground] + vary[:, 3:]
    steps = np.linspace(0, 1, SHADES)[None, :, None]
    palettes = np.rint(ground[:, None] + (ink - ground)[:, None] * steps).clip(0, 255).astype(np.uint8)
    first = [_name(code).partition(" ")[0] for code in of.code]
    columns = {
        "image": palette_png_files(np.rint(shares * ((SHADES - 1) / 255)).astype(np.uint8), palettes),
        "caption": captions(of),
        "label": [SCRIPTS.index(word if word in SCRIPTS else "other") for word in first],
        "color": of.ink.tolist(), "ground": of.ground.tolist(), "style": of.style.tolist(),
        "family": of.family.tolist(),
    }  # fmt: skip
    there = np.flatnonzero(shares.max((1, 2)))  # a blank or two have a name as well
    return {name: [values[i] for i in there] for name, values in columns.items()}


def _draws(code: np.ndarray, family: np.ndarray, style: np.ndarray, number: int) -> np.ndarray:
    """Numbers of each pair in [0, 1): `(num_pairs, number)`."""
    keys = keyed.key(Use.EMBEDDED_CHARACTERS, *(part[:, None] for part in (code, family, style)), np.arange(number))
    return keyed.uniform(keys)


def _name(code: int) -> str:
    return unicodedata.name(chr(code)).lower()


def _path(font: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")


def _coverage(font: str) -> list[int]:
    """The characters of a font that have a name and leave ink."""
    from matplotlib.ft2font import FT2Font

    codes = sorted(FT2Font(str(_path(font))).get_charmap())
    return [
        code for code in codes if unicodedata.category(chr(code))[0] in _CATEGORIES and unicodedata.name(chr(code), "")
    ]


def _glyph(font: str, character: str, size: int, across: float, down: float) -> np.ndarray:
    """How much of each pixel a character covers, 0 to 255."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = _face(font, size).getbbox(character, anchor="mm")
    extent = max(right - left, bottom - top, 1)
    if extent > SIZE - 2:
        size = max(size * (SIZE - 2) // extent, 4)
        left, top, right, bottom = _face(font, size).getbbox(character, anchor="mm")
    # whole, and else where it was to stand
    across = min(max(across, 1 - left), SIZE - 1 - right)
    down = min(max(down, 1 - top), SIZE - 1 - bottom)
    image = Image.new("L", (SIZE, SIZE), 0)
    ImageDraw.Draw(image).text((across, down), character, font=_face(font, size), fill=255, anchor="mm")
    return np.asarray(image)


@functools.cache
def _face(font: str, size: int):
    from PIL import ImageFont

    return ImageFont.truetype(str(_path(font)), size)
