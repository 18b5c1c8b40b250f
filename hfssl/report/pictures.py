"""Pictures and sounds of a result folder as parts of one page, which has to stay small."""

import base64
import io
from collections.abc import Sequence
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from pkgutil import iter_modules

from .. import evaluation
from .blocks import Picture, Players


# Bytes of a page that are for pictures and for sounds, and for each of both that explain an encoder.
PICTURES, SOUNDS = 1_600_000, 400_000
EXPLAINING = 400_000
# Largest side and quality of a picture that is too large; the next where that does not help.
_SMALLER = ((1400, 82), (1100, 70), (800, 55), (500, 40))


def captions() -> dict[str, str]:
    """What the pictures of each modality show, by the names of their files: `CAPTIONS` of what draws them."""
    found: dict[str, str] = {}
    for folder in iter_modules(evaluation.__path__):
        pictures = f"{evaluation.__name__}.{folder.name}.pictures"
        if folder.ispkg and find_spec(pictures) is not None:
            found = import_module(pictures).CAPTIONS | found
    return found


def embedded_pictures(
    pictures: Sequence[tuple[Path, str]], most: int | None = None
) -> tuple[dict[Path, Picture], list[str]]:
    """Pictures with what they show as parts of a page, by their paths, of `most` bytes together (`PICTURES`), and the
    names of those that cannot be."""
    left, sources = PICTURES if most is None else most, {}
    # small ones first: what they do not need is for the others
    for path, _ in sorted(pictures, key=lambda picture: picture[0].stat().st_size):
        sources[path] = _picture(path, left // (len(pictures) - len(sources)))
        left -= len(sources[path] or "")
    shown = {path: Picture(sources[path], caption) for path, caption in pictures if sources[path] is not None}
    return shown, [path.name for path, _ in pictures if sources[path] is None]


def _picture(path: Path, most: int) -> str | None:
    """A picture of at most so many bytes, as a `data:` address."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            kind = f"image/{(image.format or 'png').lower()}"
            if len(content) <= most * 3 // 4:
                return _address(kind, content)
            image = image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # what Pillow says of a damaged file
        return None
    for side, quality in _SMALLER:
        image.thumbnail((side, 3 * side))
        file = io.BytesIO()
        image.save(file, "WEBP", quality=quality, method=1)
        if len(file.getvalue()) <= most * 3 // 4:
            return _address("image/webp", file.getvalue())
    return None


def embedded_sounds(
    pages: Sequence[tuple[Path, str]], most: int | None = None
) -> tuple[dict[Path, Players], list[str]]:
    """The sounds of pages with players, with what they are, by their paths, of `most` bytes together (`SOUNDS`), and
    the names of the pages of which there are more than fit."""
    found, others, left = {}, [], SOUNDS if most is None else most
    # none of them takes all there is
    for number, (page, caption) in enumerate(pages):
        reader, rows, of_this = _PageReader(), [], left // (len(pages) - number)
        reader.feed(page.read_text(encoding="utf-8"))
        for name, source, said in reader.rows:
            source = _smaller_sound(source)
            if len(source) > of_this:
                others.append(page.name)
                break
            of_this -= len(source)
            left -= len(source)
            rows.append((name, source, said))
        if rows:
            found[page] = Players(rows, caption)
    return found, others


class _PageReader(HTMLParser):
    """Rows of a page of [`~hfssl.data.audio.contact_sheet.write_page`]: name, sound, and what is said of it."""

    def __init__(self):
        super().__init__()
        self.rows: list[tuple[str, str, str]] = []
        self._cells: list[str] = []
        self._source = ""

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self._cells, self._source = [], ""
        elif tag == "td":
            self._cells.append("")
        elif tag == "audio":
            self._source = dict(attrs).get("src") or ""

    def handle_data(self, data):
        if self._cells:
            self._cells[-1] += data

    def handle_endtag(self, tag):
        if tag == "tr" and self._source.startswith("data:audio/"):
            self.rows.append((self._cells[0], self._source, self._cells[-1]))
            self._cells = []


def _smaller_sound(source: str) -> str:
    """The same sound as MP3, where there is what makes one."""
    try:
        import soundfile

        sound, rate = soundfile.read(io.BytesIO(base64.b64decode(source.partition(",")[2])))
        file = io.BytesIO()
        soundfile.write(file, sound, rate, format="MP3")
    except (ImportError, ValueError, RuntimeError):  # an older libsndfile knows no MP3
        return source
    return _address("audio/mpeg", file.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
