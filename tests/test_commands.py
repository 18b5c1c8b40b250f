"""What `hfssl mlm` says of commands can be typed, as what `python recipes/mlm.py` says can."""

import re
import shlex
import sys
from pathlib import Path

import pytest
from recipe_process import ROOT

from hfssl import RecipeParser, commands
from hfssl.cli.declared import declared_parser, function_word


RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))


@pytest.fixture
def by_name(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hfssl mlm", "--seed", "1"])


def described(recipe: str) -> str:
    declared = declared_parser(ROOT / "recipes" / f"{recipe}.py")
    return RecipeParser(*declared.stand_ins(), **declared.options).description


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
        words = shlex.split(line.partition("-m ")[2] or line)[1:]
        assert words[0] in commands.recipes(), line
        # a remark may follow after a single space: words without dashes
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        declared = declared_parser(commands.recipes()[words[0]], function_word(words[1:]))
        options, as_in = RecipeParser(*declared.stand_ins(), **declared.options)._option_string_actions, set()
        if words[0] == "show_views":  # it takes the flags of another recipe as well
            method = words[words.index("--method") + 1] if "--method" in words else "simclr"
            other = declared_parser(commands.recipes()[method], function_word(words[1:]))
            as_in = set(RecipeParser(*other.stand_ins(), **other.options)._option_string_actions)
        assert set(flags) <= {*options, *as_in, "--help"}, line
        if "--config" in words:
            assert commands.find_config(words[words.index("--config") + 1]).is_file(), line


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
