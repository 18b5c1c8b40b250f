"""The commands of hfssl as they are typed: `accelerate launch recipes/mlm.py` of a clone, `hfssl mlm` once installed.

Texts name recipes as files of a clone; [`as_typed`] says them as this process was started. What tells is
`sys.argv[0]`: the path of a recipe, or `hfssl mlm` (`cli/main.py`).
"""

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


COMMAND = "hfssl"
REPOSITORY = "https://github.com/hfssl/hfssl"

_RECIPE = re.compile(
    r"(?:(?P<starter>accelerate launch|torchrun|python)(?P<options>(?: --\w+(?: \w+)?)*) )?"
    r"(?<![\w./])recipes/(?P<name>\w+)\.py"
)
_CONFIGS = re.compile(r"(?<![\w./])recipes/configs(?:/(?P<name>\w+\.yaml))?(?![\w/])")


def recipe_folder() -> Path:
    """Where the recipes lie: in the installed package, or beside it in a clone."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def recipes() -> dict[str, Path]:
    """The recipes by name."""
    return {path.stem: path for path in sorted(recipe_folder().glob("*.py"))}


def started_by_name() -> bool:
    """Whether this process is that of `hfssl mlm`, not of `python recipes/mlm.py`."""
    return _argv0().startswith(f"{COMMAND} ")


def _argv0() -> str:
    return (sys.argv or [""])[0]


def this_command() -> list[str]:
    """The words that started this process, without its flags and without a launcher."""
    return _argv0().split(" ") if started_by_name() else ["python", _argv0()]


def recipe_words(name: str, *starter: str) -> list[str]:
    """The words that start a recipe, as they started this process; `starter` is `accelerate launch` when left out."""
    if started_by_name():
        return [COMMAND, name]
    # beside the recipe that runs, from wherever it was called
    return [*(starter or ("accelerate", "launch")), str(Path(_argv0()).parent / f"{name}.py")]


def first_named(flag: str) -> list[str]:
    """The flags of this process, of which the values of `flag`, or a yaml of flags, may stand first without a name."""
    words = sys.argv[1:]
    if not words or words[0].startswith("-"):
        return words
    is_config = words[0].endswith((".yaml", ".yml")) and not Path(words[0]).is_dir()
    return ["--config" if is_config else f"--{flag}", *words]


def flag_words(flags: Mapping[str, Any]) -> list[str]:
    """Flags as they are typed; those that are `None` are left out."""
    return [word for name, value in flags.items() if value is not None for word in (f"--{name}", *_words(value))]


def _words(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [str(each) for each in value]
    if isinstance(value, bool):
        return [str(value).lower()]
    return [json.dumps(value) if isinstance(value, Mapping) else str(value)]


def launched(script: str) -> str:
    """What follows `torchrun --nproc_per_node 2` in place of this process; `script` is how its recipe is called."""
    return f"-m {_argv0()}" if started_by_name() else script


def configs_of(method: str) -> list[str]:
    """What `--config` can be given of the yamls that come with a method."""
    folder = (recipe_folder() if started_by_name() else Path(_argv0()).parent) / "configs"
    return [path.name if started_by_name() else str(path) for path in sorted(folder.glob(f"{method}_*.yaml"))]


def find_config(path: str) -> Path:
    """The file that `--config` names; one that comes with hfssl may be named from anywhere, without its folder."""
    given = Path(path)
    own = recipe_folder() / "configs" / given.name
    is_own = path in (given.name, f"recipes/configs/{given.name}") and own.is_file()
    return own if is_own and not given.exists() else given


def as_typed(text: str) -> str:
    """A text that names recipes as files of a clone, with the commands of this process; a remark keeps its column."""
    return "\n".join(map(_line_as_typed, text.split("\n"))) if started_by_name() else text


def _line_as_typed(line: str) -> str:
    said = _RECIPE.sub(_command_as_typed, line)
    # a yaml is found by its name; who looks for others needs the folder
    said = _CONFIGS.sub(lambda found: found["name"] or str(recipe_folder() / "configs"), said)
    said = said.replace("recipes/README.md", f"{REPOSITORY}/blob/main/recipes/README.md")
    shorter = " " * (len(line) - len(said))
    return re.sub(r"(?<=\S)  +(?=\S)", lambda gap: gap[0] + shorter, said, count=1)


def _command_as_typed(found: re.Match) -> str:
    starter, options, name = found["starter"], found["options"], found["name"]
    # one process needs no launcher
    if starter is None or not options:
        return f"{COMMAND} {name}"
    return f"{starter}{options} -m {COMMAND} {name}"
