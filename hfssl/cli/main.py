"""The command `hfssl`: it runs a recipe by its name, `hfssl mlm --dataset my_texts/`, and lists what there is."""

import ast
import difflib
import os
import shutil
import sys
import textwrap
import types
from importlib import import_module
from pathlib import Path

from ..commands import COMMAND, REPOSITORY, recipes
from .command import HELP


# How the names of recipes begin that are neither for pre-training nor for an encoder, by what is said of them.
_OTHERS = {
    "pretrain": "All in one command",
    "benchmark": "Comparing",
    "compare": "Comparing",
    "show_": "Looking at views",
}


def main() -> None:
    """Do what the command line says.

    Raises:
        SystemExit: where there is no such recipe.
    """
    name, *flags = sys.argv[1:] or ["--help"]
    if name in HELP:
        return _say(listing())
    if name in ("--version", "-V"):
        return _say(f"{COMMAND} {import_module(COMMAND).__version__}")
    there, asked = recipes(), name.replace("-", "_")
    if asked not in there:
        nearest = difflib.get_close_matches(asked.strip("_").removesuffix(".py"), there, n=1)
        hint = f"Did you mean {nearest[0]}? " if nearest else ""
        where = "" if there else f" None came with this installation: clone {REPOSITORY}."
        _say(f"{COMMAND}: error: there is no recipe {name!r}. {hint}`{COMMAND}` alone lists them.{where}", sys.stderr)
        sys.exit(2)
    run(asked, there[asked], flags)


def run(name: str, path: Path, flags: list[str]) -> None:
    """Run a recipe as the main module of this process, as `python recipes/mlm.py` does."""
    if not HELP & set(flags):
        import_module(f"{COMMAND}.methods")  # it registers the methods with the Auto classes
    sys.argv = [f"{COMMAND} {name}", *flags]
    # without a `__spec__`, as that of a script: processes that a recipe starts find the file by it
    module = types.ModuleType("__main__")
    module.__file__ = str(path)
    sys.modules["__main__"] = module
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)


def listing() -> str:
    """The recipes, those that pre-train by what they train on, each with what its source says of it first."""
    families = {}
    for name, path in recipes().items():
        families.setdefault(_family(name), []).append((name, _first_paragraph(path)))
    width = min(shutil.get_terminal_size().columns, 120)
    column = max((len(name) for family in families.values() for name, _ in family), default=0) + 4
    lines = [f"usage: {COMMAND} RECIPE [--config FILE] [--flag VALUE ...]"]
    first = ("All", "Pre-training", "With")
    for family in sorted(families, key=lambda family: (not family.startswith(first), family)):
        lines += ["", f"{family}:"]
        for name, words in families[family]:
            lines += textwrap.wrap(
                words, width, initial_indent=f"  {name}".ljust(column), subsequent_indent=" " * column
            )
    return "\n".join(
        [
            *lines,
            "",
            f"`{COMMAND} mlm --help` shows the flags of a recipe, here of mlm. In several processes:",
            f"torchrun --nproc_per_node 2 -m {COMMAND} mlm, or accelerate launch -m {COMMAND} mlm.",
        ]
    )


def _family(name: str) -> str:
    for method in Path(__file__).parents[1].glob(f"methods/*/{name}.py"):
        return f"Pre-training, {method.parent.name}"
    return next((family for beginning, family in _OTHERS.items() if name.startswith(beginning)), "With an encoder")


def _first_paragraph(path: Path) -> str:
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return " ".join(doc.partition("\n\n")[0].split())


def _say(text: str, file=None) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes one
        (file or sys.stdout).write(f"{text}\n")
