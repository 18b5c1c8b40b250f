"""Embedded text: real text that is on every machine, without a download.

It is made of the docstrings of the Python standard library (modules, classes, functions; the files are parsed, never
imported) and of the language reference that `help()` shows (`pydoc_data/topics.py`).
"""

import ast
import hashlib
import inspect
import logging
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ..cache import cached_columns


logger = logging.getLogger(__name__)


# Part of the name of the cache: raise it when the same library gives other texts than before.
FORMAT_VERSION = 1


MIN_CHARACTERS = 40


PASSAGE_CHARACTERS = 2000


SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "lib2to3",
    "ensurepip",
}


def embedded_text(max_characters: int = 4_000_000) -> list[str]:
    """Docstrings and reference passages, without duplicates, in an order that is the same in every run.

    Collecting takes a few seconds; the result is kept in `HF_HOME/hfssl` for this build of Python.

    Args:
        max_characters (`int`, *optional*, defaults to 4,000,000):
            Stop after this many characters.

    Returns:
        `list[str]`: texts of at least 40 characters.
    """
    build = hashlib.sha256(f"{sys.version} {sysconfig.get_path('stdlib')}".encode()).hexdigest()[:8]
    version = ".".join(map(str, sys.version_info[:3]))
    name = f"embedded-{version}-{build}-v{FORMAT_VERSION}-{max_characters}"
    return cached_columns(name, lambda: {"text": collect(Path(sysconfig.get_path("stdlib")), max_characters)})["text"]


def collect(folder: Path, max_characters: int) -> list[str]:
    """The texts of a standard library that lies in `folder`."""
    texts: dict[str, None] = {}
    characters = 0
    for text in _candidates(folder):
        if len(text) < MIN_CHARACTERS or text in texts:
            continue
        characters += len(text)
        if characters > max_characters:
            break
        texts[text] = None
    return list(texts)


def _candidates(folder: Path) -> Iterator[str]:
    yield from _reference(folder / "pydoc_data" / "topics.py")
    for path in _modules(folder):
        try:
            yield from _docstrings(path.read_bytes())
        except (OSError, SyntaxError, ValueError, RecursionError):
            logger.debug("No docstrings from %s", path, exc_info=True)


def _modules(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in SKIPPED_FOLDERS)
        for name in sorted(names):
            if name.endswith(".py") and name != "topics.py":
                yield Path(parent, name)


def _docstrings(source: bytes) -> Iterator[str]:
    if b'"""' not in source and b"'''" not in source:
        return
    # Definitions hold statements only in their bodies, so the expressions need not be walked.
    waiting = [ast.parse(source)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node, clean=False)
            if text:
                yield inspect.cleandoc(text).strip()
        for name in ("body", "orelse", "finalbody", "handlers"):
            waiting += reversed(
                [child for child in getattr(node, name, ()) if isinstance(child, (ast.stmt, ast.excepthandler))]
            )


def _reference(path: Path) -> Iterator[str]:
    try:
        assignment = ast.parse(path.read_bytes()).body[-1]
        topics = ast.literal_eval(assignment.value)
        pages = [topics[name] for name in sorted(topics)]
    except (OSError, SyntaxError, ValueError, AttributeError, IndexError, TypeError):
        logger.debug("No language reference from %s", path, exc_info=True)
        return
    for page in pages:
        yield from map(inspect.cleandoc, passages(inspect.cleandoc(page)))


def passages(text: str, characters: int = PASSAGE_CHARACTERS) -> Iterator[str]:
    """Paragraphs of a text, joined to passages of at most so many characters. A longer paragraph stays whole."""
    passage = ""
    for paragraph in re.split(r"\n\s*\n", text):
        paragraph = paragraph.strip("\n").rstrip()
        if passage and len(passage) + 2 + len(paragraph) > characters:
            yield passage
            passage = ""
        passage = f"{passage}\n\n{paragraph}" if passage else paragraph
    if passage:
        yield passage


def load_embedded(split: str) -> tuple[str, dict[str, list], dict]:
    """The corpus as [`~hfssl.data.modality.EmbeddedData`] wants it."""
    import datasets

    version = ".".join(map(str, sys.version_info[:3]))
    name = f"embedded corpus (documentation of Python {version})"
    return name, {"text": embedded_text()}, {"text": datasets.Value("string")}
