"""What makes a function the command of a recipe: mistakes end in a sentence, and `--help` answers at once."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path

from ..errors import explained
from .declared import NotPlain, declared_parser, function_word
from .launcher import Launcher


HELP = frozenset(("-h", "--help", "--help-all", "--help_all"))


def command(main: Callable) -> Callable:
    """Let the `main` of a recipe be [`~hfssl.errors.explained`], also under a launcher; `--help` reads the sources."""
    explained_main = explained(main)

    @functools.wraps(main)
    def run(*args, **kwargs):
        if HELP & set(sys.argv[1:]):
            answer_from_source(Path(main.__code__.co_filename))
        launcher = Launcher()
        launcher.end_on_interrupt()
        try:
            return explained_main(*args, **kwargs)
        except SystemExit as stop:
            if stop.code:  # it has said why
                launcher.end()
            raise

    return run


def answer_from_source(recipe: Path) -> None:
    """Print what `--help` or `--help-all` shows and exit; return where that takes running the recipe."""
    from .parser import RecipeParser

    try:
        declared = declared_parser(recipe, function_word(sys.argv[1:]))
        parser = RecipeParser(*declared.stand_ins(), **declared.options)
    except (NotPlain, OSError, SyntaxError, NameError, TypeError, ValueError):
        return
    if parser.is_plain():
        parser.parse()
