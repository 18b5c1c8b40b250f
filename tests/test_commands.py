"""Commands that help texts and documents show can be typed, those of `hfssl mlm` as those of `python recipes/mlm.py`."""

import re
import shlex
import sys
import tomllib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
from recipe_process import ROOT

from hfssl import RecipeParser, commands
from hfssl.cli.declared import declared_parser, function_word, word_after


RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


# The recipe and the word of the command line that its flags depend on.
COMMANDS = [
    *((recipe, "") for recipe in RECIPES),
    *(("benchmark", word) for word in ("mlm", "hubert", "clip", "views", "gpu", "scale")), ("simclr", "audio"),
]  # fmt: skip


@pytest.fixture
def by_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hfssl mlm", "--seed", "1"])


@pytest.mark.parametrize(
    "words, flags",
    [
        (["outputs/mlm", "--seed", "1"], ["--encoder", "outputs/mlm", "--seed", "1"]),
        (["run.yaml", "--seed", "1"], ["--config", "run.yaml", "--seed", "1"]),
        (["run.yml"], ["--config", "run.yml"]),
        (["folder.yaml"], ["--encoder", "folder.yaml"]),
        (["--config", "run.yaml"], ["--config", "run.yaml"]),
        ([], []),
    ],
)
def test_what_may_stand_first(words, flags, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.yaml").mkdir()
    monkeypatch.setattr(sys, "argv", ["hfssl probe", *words])
    assert commands.first_named("encoder") == flags


def described(recipe: str) -> str:
    declared = declared_parser(ROOT / "recipes" / f"{recipe}.py")
    return RecipeParser(*declared.stand_ins(), **declared.options).description


@cache
def options_of(name: str, word: str = "", method: str = "simclr") -> set[str]:
    """What a recipe can be given, by the word of the command line that this depends on, and of `show_views.py` by the
    method whose flags it takes as well."""
    declared = declared_parser(commands.recipes()[name], word)
    options = set(RecipeParser(*declared.stand_ins(), **declared.options)._option_string_actions)
    return options | options_of(method, word) if name == "show_views" else options


def check(words: list[str]) -> None:
    """The recipe is there, it takes the flags, and the yaml is found."""
    name, *flags = words
    assert name in commands.recipes(), words
    # a remark may follow after a single space: words without dashes
    given = names_of(word for word in flags if word.startswith("--"))
    unknown = given - options_of(name, function_word(flags), word_after(flags, "--method", "simclr")) - {"--help"}
    assert not unknown, (words, unknown)
    config = word_after(flags, "--config")
    assert not config or commands.find_config(config).is_file(), words


def names_of(flags: Iterable[str]) -> set[str]:
    """Flags without values, as the parser has them."""
    return {"--" + re.split(r"[=|]", flag)[0].removeprefix("--").replace("-", "_") for flag in flags}


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_command_that_a_help_shows_can_be_typed(recipe, by_name):
    """It names a recipe, flags that this takes, and yamls that are found from anywhere."""
    text = described(recipe)
    for known in (f"{commands.REPOSITORY}/blob/main/recipes/README.md", str(commands.recipe_folder() / "configs")):
        text = text.replace(known, "")
    assert "recipes/" not in text
    usage = text.split("\n\n")[1]
    shown = re.findall(r"^ *((?:torchrun --nproc_per_node 2 -m )?hfssl .*?)(?:   .*)?$", usage, re.M)
    assert shown or "accelerate launch recipes/" not in (ROOT / "recipes" / f"{recipe}.py").read_text()
    for line in shown:
        check(shlex.split(line.partition("-m ")[2] or line)[1:])


def test_a_clone_says_what_is_written(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["recipes/mlm.py"])
    text = "accelerate launch recipes/mlm.py --config recipes/configs/mlm_base.yaml"
    assert commands.as_typed(text) == text
    assert commands.recipe_words("probe") == ["accelerate", "launch", "recipes/probe.py"]
    assert commands.this_command() == ["python", "recipes/mlm.py"]
    assert "recipes/configs/mlm_base.yaml" in commands.configs_of("mlm")


@pytest.mark.parametrize(
    "text, typed",
    [
        (
            "accelerate launch recipes/mlm.py --config recipes/configs/mlm_base.yaml",
            "hfssl mlm --config mlm_base.yaml",
        ),
        ("python recipes/show_views.py --method dino", "hfssl show_views --method dino"),
        ("torchrun --nproc_per_node 2 recipes/mlm.py", "torchrun --nproc_per_node 2 -m hfssl mlm"),
        (
            "accelerate launch --multi_gpu --num_processes 8 recipes/mae.py",
            "accelerate launch --multi_gpu --num_processes 8 -m hfssl mae",
        ),
        ("views (`recipes/show_views.py` shows them)", "views (`hfssl show_views` shows them)"),
        ("x recipes/mlm.py     a remark", "x hfssl mlm          a remark"),
        ("for others see recipes/configs.", f"for others see {ROOT / 'recipes' / 'configs'}."),
        ("/somewhere/recipes/mlm.py", "/somewhere/recipes/mlm.py"),
        ("a  table  of  columns", "a  table  of  columns"),
    ],
)
def test_what_the_command_says_instead(by_name, text, typed):
    assert commands.as_typed(text) == typed


def test_words_of_the_command(by_name):
    assert commands.recipe_words("probe") == ["hfssl", "probe"] and commands.this_command() == ["hfssl", "mlm"]
    assert commands.launched("mlm.py") == "-m hfssl mlm"
    assert "mlm_base.yaml" in commands.configs_of("mlm")


def test_a_file_of_one_s_own_goes_before_one_that_comes_with_hfssl(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = ROOT / "recipes" / "configs" / "mlm_tiny.yaml"
    assert commands.find_config("mlm_tiny.yaml") == own == commands.find_config("recipes/configs/mlm_tiny.yaml")
    # of another folder it is another file
    assert commands.find_config("mine/mlm_tiny.yaml") == Path("mine/mlm_tiny.yaml")
    Path("mlm_tiny.yaml").touch()
    assert commands.find_config("mlm_tiny.yaml") == Path("mlm_tiny.yaml")


DOCUMENTS = ("README.md", "recipes/README.md", ".github/CONTRIBUTING.md", ".github/CHANGELOG.md")


def code_of(text: str) -> list[str]:
    """What a document has as code: the lines of its blocks, and what stands between backticks in its paragraphs."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.S | re.M)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    lines = [line.partition(" # ")[0] for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [*lines, *(" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))]


def words_of(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # an apostrophe in a remark
        return command.split()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_command_of_a_document_can_be_typed(document, monkeypatch):
    """Recipes and flags are there, also flags that stand alone, which some recipe (or `show_structure.py`) takes."""
    monkeypatch.chdir(ROOT)
    pieces = [part for code in code_of((ROOT / document).read_text(encoding="utf-8")) for part in code.split(" && ")]
    anywhere = {"--help", "--names"}.union(*(options_of(name, word) for name, word in COMMANDS))
    shown = 0
    for code in pieces:
        if found := re.search(r"(?:^|[ /])(\w+)\.py(?= |$)|^hfssl (\w+)", code):
            name = found[1] or found[2]
            if name in RECIPES:
                check([name, *words_of(code[found.end() :])])
                shown += 1
        elif code.startswith("--"):
            unknown = names_of(word for word in words_of(code) if word.startswith("--")) - anywhere
            assert not unknown, (code, unknown)
    assert shown or "CONTRIBUTING" in document


@pytest.mark.parametrize("document", DOCUMENTS)
def test_each_file_that_a_document_names_is_there(document):
    text = (ROOT / document).read_text(encoding="utf-8")
    named = re.findall(r"(?<![\w/.>-])((?:hfssl|tests|recipes|\.ci|\.github)/[\w/.-]*\w|hfssl/[\w/]+/)", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert named
    missing = [name for name in named if not (ROOT / name).exists() and not (ROOT / f"{name}.py").exists()]
    missing += [link for link in links if not (ROOT / document).parent.joinpath(link).exists()]
    assert missing == []


def test_each_extra_that_is_named_can_be_installed():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    sources = [ROOT / document for document in DOCUMENTS]
    sources += [path for folder in ("hfssl", "recipes") for path in (ROOT / folder).rglob("*.py")]
    for path in sources:
        for named in re.findall(r"(?:hfssl|-e \"?\.)\[([a-z,]+)\]", path.read_text(encoding="utf-8")):
            assert set(named.split(",")) <= set(extras), (path, named)
