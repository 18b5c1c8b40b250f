"""`--help` answers from the sources, without importing torch, and says what the parser says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_process import ROOT, recipe_server

from hfssl import RecipeParser
from hfssl.cli.audio.presets import AUDIO_PRESETS
from hfssl.cli.declared import NOT_PLAIN, NotPlain, declared_parser, function_word
from hfssl.cli.image.choice import embedded_encoder
from hfssl.cli.image.encoders import AUTO, EMBEDDED_VIEWS, IMAGE_SIZE
from hfssl.cli.image.presets import VISION_PRESETS
from hfssl.methods import METHODS
from hfssl.modeling.contrast import ContrastMixin
from hfssl.modeling.method import NARROW_HEAD_WIDTH, width_of


RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py"))
# The recipe and the word of the command line that the flags of some depend on.
COMMANDS = [
    *((recipe, "") for recipe in RECIPES), ("benchmark", "mlm"), ("benchmark", "hubert"), ("benchmark", "views"), ("benchmark", "siglip"), ("simclr", "audio"),
]  # fmt: skip


def shown(parser: RecipeParser) -> tuple[str, str]:
    """What `--help` and `--help-all` show."""
    parser.prog = "recipe"
    short = parser.format_help()
    for action in parser._actions:
        action.help = getattr(action, "full_help", action.help)
    return short, parser.format_help()


@pytest.mark.parametrize("recipe, first_word", COMMANDS)
def test_the_sources_say_what_the_classes_say(recipe, first_word):
    declared = declared_parser(ROOT / "recipes" / f"{recipe}.py", first_word)
    from_source = RecipeParser(*declared.stand_ins(), **declared.options)
    assert from_source.is_plain()
    assert shown(from_source) == shown(RecipeParser(*declared.classes(), **declared.options))


@pytest.mark.parametrize(
    "recipe, words", [("mae", []), ("glue", []), ("benchmark", ["views"]), ("simclr", ["--modality", "audio"])]
)
def test_nothing_heavy_is_imported(recipe, words):
    code = f"""
import runpy, sys
sys.argv = ["recipes/{recipe}.py", *{words}, "--help"]
sys.modules["__main__"].__file__ = sys.argv[0]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
finally:
    heavy = {{"torch", "transformers", "datasets", "numpy", "accelerate"}} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stderr and done.stdout.startswith(f"usage: {recipe}.py")


@pytest.mark.parametrize("recipe", ["mae", "benchmark"])
def test_the_command_shows_it(recipe, tmp_path):
    done = recipe_server().run(tmp_path, "--help", script=f"recipes/{recipe}.py", COLUMNS=100)
    assert done.poll() == 0 and done.stdout.startswith(f"usage: {recipe}.py"), done.stderr


def write(folder: Path, defaults: str) -> Path:
    recipe = folder / "own.py"
    recipe.write_text(
        f'''"""A recipe."""
from dataclasses import dataclass
import torch

from hfssl.cli.command import command


@dataclass
class Own:
    number: int = 1
    threads: int = torch.get_num_threads()


@command
def main():
    from hfssl import RecipeParser

    print(RecipeParser(Own, description=__doc__, defaults={defaults}).parse())


if __name__ == "__main__":
    main()
'''
    )
    return recipe


def test_what_is_computed_is_not_guessed(tmp_path):
    """A recipe of one's own may compute a default: then the help imports what the recipe imports."""
    declared = declared_parser(write(tmp_path, "{}"))
    parser = RecipeParser(*declared.stand_ins(), **declared.options)
    assert not parser.is_plain() and parser._flags["threads"].default is NOT_PLAIN
    done = recipe_server().run(tmp_path / "log", "--help", script=str(tmp_path / "own.py"))
    assert re.search(r"--threads INT +\(default: \d+\)", done.stdout), done.stdout + done.stderr
    declared = declared_parser(write(tmp_path, "{'threads': 2}"))
    assert RecipeParser(*declared.stand_ins(), **declared.options).is_plain()
    with pytest.raises(NotPlain):
        declared_parser(write(tmp_path, "{'threads': torch.get_num_threads()}"))


PRESETS = {**VISION_PRESETS, **AUDIO_PRESETS}


def of_recipe(recipe: str) -> RecipeParser:
    declared = declared_parser(ROOT / "recipes" / f"{recipe}.py")
    return RecipeParser(*declared.classes(), **declared.options)


@pytest.mark.parametrize("recipe", sorted(METHODS))
def test_where_the_result_goes_and_how_long_it_takes_stand_first(recipe):
    text = of_recipe(recipe).format_help()
    flags = re.findall(r"^  --(\w+)", text, re.M)
    assert flags[:5] == ["help", "config", "output_dir", "max_steps", "budget_minutes"]
    assert f"(default: outputs/{recipe})" in " ".join(text.split())


@pytest.mark.parametrize("recipe", sorted(METHODS))
def test_defaults_are_those_of_the_recipe_s_run(recipe):
    """With the encoder that it takes, whose heads may be narrower than those of the paper."""
    parser, record = of_recipe(recipe), METHODS[recipe].method
    default_encoder = parser._flags["encoder"].default
    if default_encoder == AUTO:  # the embedded letters'
        default_encoder = embedded_encoder(next(cls.kind for cls in parser.classes if hasattr(cls, "kind")))
    for name, value in record.narrow_heads.items():
        assert width_of(PRESETS[default_encoder]()) < NARROW_HEAD_WIDTH
        assert f"(default: {value}, for wide encoders" in parser._flags[name].help_text()


def test_the_size_of_images_is_that_of_a_run():
    said = of_recipe("simclr")._flags["image_size"].help
    assert f"{EMBEDDED_VIEWS['letters']['image_size']} for the embedded letters" in said
    assert f"vit-mini-patch4: {VISION_PRESETS['vit-mini-patch4']().image_size})" in said
    assert f", or {IMAGE_SIZE}" in said


@pytest.mark.parametrize("recipe", sorted(METHODS))
def test_no_flags_that_mean_nothing_to_the_method(recipe):
    flags, record = of_recipe(recipe)._flags, METHODS[recipe].method
    is_image = record.modality == "image"
    assert ("max_tokens" in flags) == (record.modality == "text")
    assert ("local_crops" in flags) == (is_image and record.views.local is not None)
    assert ("lowercase" in flags) == (recipe == "mlm")
    assert ("contrastive_batch_size" in flags) == issubclass(METHODS[recipe], ContrastMixin)


def test_a_flag_without_a_meaning_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        of_recipe("mae").parse(["--max-tokens", "5"])
    assert "--max_tokens has no meaning in " in capsys.readouterr().err


@pytest.mark.parametrize("recipe, first_word", [*COMMANDS, ("benchmark", "gpu"), ("benchmark", "scale")])
def test_each_flag_is_explained_under_a_heading_in_words(recipe, first_word):
    declared = declared_parser(ROOT / "recipes" / f"{recipe}.py", first_word)
    parser = RecipeParser(*declared.stand_ins(), **declared.options)
    flags = [flag for flag in parser._flags.values() if not flag.hidden]
    assert [flag.name for flag in flags if not flag.help] == []
    assert not {flag.group for flag in flags} & {cls.__name__ for cls in parser.classes if len(cls.__name__) > 10}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_percent_is_one(recipe):
    assert "%%" not in "".join(shown(of_recipe(recipe)))


def test_the_flags_are_those_of_the_command_that_is_named():
    declared = {
        word: declared_parser(ROOT / "recipes" / "benchmark.py", word)
        for word in ("mlm", "hubert", "views", "clip", "dino")
    }
    names = ["MlmBenchmark", "SpeechBenchmark", "ViewsBenchmark", "PairsBenchmark", "VisionBenchmark"]
    assert [each.names[0] for each in declared.values()] == names
    assert function_word(["mlm", "--json"]) == "mlm" and function_word([]) == ""
    for words in (
        ["--modality", "audio", "--help"], ["--max_steps", "3", "--modality=audio"],
        ["--modality", "image", "--modality", "audio"],
    ):  # fmt: skip
        assert function_word(words) == "audio"
