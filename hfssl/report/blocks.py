"""What a report is made of: plain data, which the template knows how to show. All of it but a drawing is escaped."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Facts:
    """Names with what they are."""

    kind: ClassVar[str] = "facts"
    rows: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Listing:
    """Sentences, each with lines of its own."""

    kind: ClassVar[str] = "listing"
    rows: Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Table:
    """A table, the first cell of a row being its head."""

    kind: ClassVar[str] = "table"
    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Bars:
    """A figure beside its baselines: name, value in words, and length of the bar as a share (`None`: no bar)."""

    kind: ClassVar[str] = "bars"
    title: str
    about: str
    rows: Sequence[tuple[str, str, float | None]]


@dataclass(frozen=True)
class Matrix:
    """Counts by true class (rows) and by what was said (columns)."""

    kind: ClassVar[str] = "matrix"
    caption: str
    names: Sequence[str]
    counts: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Drawing:
    """A picture made of lines and words, see [`~hfssl.report.svg.inline_svg`]."""

    kind: ClassVar[str] = "drawing"
    svg: Markup
    caption: str


@dataclass(frozen=True)
class Picture:
    """A picture of pixels, as a `data:` address."""

    kind: ClassVar[str] = "picture"
    source: str
    caption: str


@dataclass(frozen=True)
class Players:
    """Sounds to listen to: name, `data:` address and what is said of each."""

    kind: ClassVar[str] = "players"
    rows: Sequence[tuple[str, str, str]]
    caption: str = ""


@dataclass(frozen=True)
class Words:
    """Texts, piece by piece: of each its title, and by method its pieces with their strengths from -1 to 1."""

    kind: ClassVar[str] = "words"
    caption: str
    rows: Sequence[tuple[str, Sequence[tuple[str, Sequence[tuple[str, float]]]]]]


@dataclass(frozen=True)
class Code:
    """What can be copied."""

    kind: ClassVar[str] = "code"
    code: str


@dataclass(frozen=True)
class Folded:
    """What is shown when it is asked for."""

    kind: ClassVar[str] = "folded"
    title: str
    blocks: Sequence[Any]


@dataclass(frozen=True)
class Section:
    """A part of a report with a heading; `name` is that of its place in the page."""

    title: str
    blocks: Sequence[Any] = field(default_factory=tuple)

    @property
    def name(self) -> str:
        return "".join(letter if letter.isalnum() else "-" for letter in self.title.lower())
