"""Words of scripts that put no spaces between them, for whole-word masking.

The pre-tokenizer of a tokenizer finds words by spaces. Of Chinese, Japanese, Thai, Lao, Khmer or Burmese it makes one
word of a whole sentence (SentencePiece, byte-level BPE) or one of each sign (BERT). Here a segmenter finds them where
one is installed (`pip install "hfssl[scripts]"`), as whole-word masking of Chinese BERT does
(https://huggingface.co/papers/1906.08101); else each letter with its marks counts as a word.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib import import_module, metadata

import numpy as np
import regex


_SIGNS = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}"
_OTHERS = (
    r"\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Yi}\p{Javanese}\p{Balinese}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}"
    r"\p{Tai_Viet}"
)
# Inside a class of characters of `regex`: what is written without spaces between words.
SPACELESS = rf"{_SIGNS}{_OTHERS}\p{{Thai}}"
# Of one script, and not longer than segmenters are quick with.
_STRETCH = regex.compile(
    rf"(?P<signs>[{_SIGNS}][{_SIGNS}\p{{M}}ー]{{0,999}})|(?P<thai>[\p{{Thai}}]{{1,1000}})|(?P<others>[{_OTHERS}]{{1,1000}})"
)
# All these scripts lie here, and little of others: ten times as fast to look for.
_MAY_HAVE_STRETCHES = re.compile("[\u0e00-\u1fff\u2e80-\U0010ffff]")
_KANA = regex.compile(r"[\p{Hiragana}\p{Katakana}]")
_CLUSTER = regex.compile(r"\X")

CLUSTERS = "letters with their marks"
Segmenter = Callable[[str], list[str]]


def _fugashi() -> Segmenter:
    tagger = import_module("fugashi").Tagger()  # fails without a dictionary
    return lambda text: [word.surface for word in tagger(text)]


def _pythainlp() -> Segmenter:
    word_tokenize = import_module("pythainlp").word_tokenize
    return lambda text: word_tokenize(text, engine="newmm-safe")


def _budoux(name: str) -> Segmenter:
    return getattr(import_module("budoux"), f"load_default_{name}_parser")().parse


# Of each language, the best first: (package, how its segmenter is made).
_SEGMENTERS: dict[str, tuple[tuple[str, Callable[[], Segmenter]], ...]] = {
    "Chinese": (("budoux", lambda: _budoux("simplified_chinese")),),
    "Japanese": (("fugashi", _fugashi), ("budoux", lambda: _budoux("japanese"))),
    "Thai": (("pythainlp", _pythainlp), ("budoux", lambda: _budoux("thai"))),
}


@cache
def _made(language: str, package: str) -> Segmenter:
    return dict(_SEGMENTERS[language])[package]()


@cache
def _installed(language: str) -> str:
    """The package that segments a language here, or [`CLUSTERS`]."""
    for package, _ in _SEGMENTERS.get(language, ()):
        try:
            _made(language, package)
        except Exception:  # not installed, or without its dictionary, which shows itself in many ways
            continue
        return package
    return CLUSTERS


class WordSegmenter:
    """Finds the words in stretches of text without spaces.

    Args:
        packages (`Mapping[str, str]`, *optional*):
            Of each language, the package that segments it. Languages that are not named are taken apart into letters
            with their marks. Left out: what is installed.
    """

    def __init__(self, packages: Mapping[str, str] | None = None):
        self.packages = packages

    @classmethod
    def for_texts(cls, texts: Iterable[str]) -> "WordSegmenter":
        """Of the languages that some texts have, what is installed here."""
        languages = {language for text in texts for language, _ in _stretches(text)}
        return cls({language: _installed(language) for language in sorted(languages)})

    def __call__(self, text: str) -> np.ndarray | None:
        """Of each character the number of its word, -1 outside the stretches; `None` for a text without any."""
        numbers, word = None, 0
        for language, stretch in _stretches(text):
            if numbers is None:
                numbers = np.full(len(text), -1, np.int64)
            lengths = np.fromiter(map(len, self._words(language, stretch[0])), np.int64)
            numbers[stretch.start() : stretch.end()] = word + np.repeat(np.arange(len(lengths)), lengths)
            word += len(lengths)
        return numbers

    def _words(self, language: str, stretch: str) -> list[str]:
        package = _installed(language) if self.packages is None else self.packages.get(language, CLUSTERS)
        if package != CLUSTERS:
            words = _made(language, package)(stretch)
            if "".join(words) == stretch:  # a dictionary may write a sign in another way
                return words
        return _CLUSTER.findall(stretch)

    @property
    def more_can_be_installed(self) -> bool:
        """Whether there is a segmenter for a language that is taken apart into letters."""
        return any(
            package == CLUSTERS and language in _SEGMENTERS for language, package in (self.packages or {}).items()
        )

    def __str__(self) -> str:
        """Such as `Chinese by budoux 0.7.0, Lao by letters with their marks`; "" where nothing needs it."""
        packages = (self.packages or {}).items()
        return ", ".join(f"{language} by {_with_version(package)}" for language, package in packages)


def _stretches(text: str):
    """`(language, match)` of each stretch of a script without spaces."""
    if _MAY_HAVE_STRETCHES.search(text) is None:
        return
    japanese = None
    for stretch in _STRETCH.finditer(text):
        if stretch.lastgroup == "signs":
            if japanese is None:
                japanese = _KANA.search(text) is not None
            yield "Japanese" if japanese else "Chinese", stretch
        else:
            yield "Thai" if stretch.lastgroup == "thai" else "other scripts", stretch


def _with_version(package: str) -> str:
    return package if package == CLUSTERS else f"{package} {metadata.version(package)}"
