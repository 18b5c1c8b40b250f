"""What classes are called: their names and the sentences that they stand in, from files or from the labels."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...data.modality import modality
from ...errors import first_line
from ..evaluator import EvaluationError


TEMPLATES = ("a photo of a {}.",)
# What a word is, and up to how many letters it may be one that says nothing, such as "of".
_WORD, _SHORT = re.compile(r"\w+"), 3
# Of what comes with hfssl: nothing that is drawn there is called a photo in its caption.
_EMBEDDED_TEMPLATES = {"characters": ("{}",)}


@dataclass(frozen=True)
class Prompts:
    """Texts by which classes are found.

    Args:
        names (`tuple[tuple[str, ...], ...]`):
            Of each class one or several.
        templates (`tuple[str, ...]`, *optional*):
            Sentences with `{}` where a name stands.
    """

    names: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...] = TEMPLATES

    @property
    def texts(self) -> list[str]:
        """Every name of every class in every sentence."""
        return [template.replace("{}", name) for names in self.names for name in names for template in self.templates]

    @property
    def class_of(self) -> np.ndarray:
        """The class of each text."""
        return np.repeat(np.arange(len(self.names)), [len(names) * len(self.templates) for names in self.names])

    def never_said(self, captions: Iterable[str]) -> list[str]:
        """The classes of whose names no word stands in any of some captions, by their first names.

        Short words, such as "and", do not count where a name has others. In scripts without spaces a word is looked
        for within those of the captions.
        """
        said = {word for caption in captions for word in _words(caption)}
        run_together = "\n".join(word for word in said if not word.isascii())

        def is_said(name: str) -> bool:
            words = _words(name)
            telling = [word for word in words if len(word) > _SHORT or not word.isascii()] or words
            return any(word in said or not word.isascii() and word in run_together for word in telling)

        return [names[0] for names in self.names if not any(map(is_said, names))]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def read_prompts(
    class_names: Sequence[str],
    classes: str | Path | None = None,
    templates: str | Path | None = None,
    dataset: str | None = None,
) -> Prompts:
    """The prompts of a labelled data set.

    Args:
        class_names (`Sequence[str]`):
            The classes as the data have them.
        classes (`str` or `Path`, *optional*):
            A file with what they are called: a name a line, in the order of the classes; or a JSON object from each
            class, as the data have it, to a name or a list of names. Left out, they are called as in the data, with
            spaces for underscores.
        templates (`str` or `Path`, *optional*):
            A file with a sentence a line, with {} where the name stands. Left out: a photo of a {}.
        dataset (`str`, *optional*):
            What `--dataset` named. The name alone is the default for characters, which come with hfssl.

    Raises:
        EvaluationError: where a file cannot be read, or does not fit the classes.
    """
    names = tuple((str(name).replace("_", " "),) for name in class_names)
    if classes is not None:
        names = _read_classes(Path(classes), [str(name) for name in class_names])
    embedded = modality("image").embedded_set(dataset) if dataset is not None else None
    sentences = TEMPLATES if embedded is None else _EMBEDDED_TEMPLATES.get(embedded.name, TEMPLATES)
    if templates is not None:
        sentences = tuple(_lines(Path(templates)))
        if not sentences:
            raise EvaluationError(f"{templates} holds no sentence. Write one a line, such as: a photo of a {{}}.")
        without = next((line for line in sentences if "{}" not in line), None)
        if without is not None:
            raise EvaluationError(
                f"{templates} holds a sentence a line with {{}} where the name of a class stands, and {without!r} has "
                "none."
            )
    return Prompts(names, sentences)


def _read_classes(path: Path, class_names: list[str]) -> tuple[tuple[str, ...], ...]:
    if path.suffix != ".json":
        lines = _lines(path)
        if len(lines) != len(class_names):
            raise EvaluationError(
                f"{path} names {len(lines)} classes, a line each, and the data have {len(class_names)}: "
                f"{', '.join(class_names[:8])}{' …' if len(class_names) > 8 else ''}."
            )
        return tuple((line,) for line in lines)
    text = _text(path)
    try:
        named = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{path} is no JSON ({first_line(error)}).") from error
    if not isinstance(named, dict):
        raise EvaluationError(f"{path} is a JSON {type(named).__name__}: an object from class to names is needed.")
    missing = [name for name in class_names if not named.get(name)]
    if missing:
        raise EvaluationError(f"{path} has no name for {len(missing)} of the classes, such as {missing[0]!r}.")
    return tuple(
        (str(named[name]),) if not isinstance(named[name], list) else tuple(map(str, named[name]))
        for name in class_names
    )


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in _text(path).splitlines() if line.strip()]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read ({first_line(error)}).") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(
            f"{path} is not in UTF-8 (byte {error.start}). Save it so, e.g. with `iconv -f LATIN1 -t UTF-8`."
        ) from error
