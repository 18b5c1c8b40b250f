"""`recipes/configs/*.yaml`: what their comments say of a run is what its recipe makes of them."""

import re
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedConfig

from hfssl import RecipeParser, SSLTrainingArguments
from hfssl.cli.image.encoders import vision_encoder_config


RECIPES = Path(__file__).parents[2] / "recipes"
NAMES = sorted(path.stem for path in (RECIPES / "configs").glob("*.yaml"))
# those with the setting of a paper; the others are for a look
PAPERS = [name for name in NAMES if not name.endswith("_tiny")]
IMAGENETS = [name for name in PAPERS if name.endswith("_imagenet")]
IMAGENET = 1_281_167


@dataclass
class Config:
    """A yaml, and what its recipe makes of it with as many processes as its first line asks for."""

    head: str
    content: dict[str, Any]
    comments: dict[str, str]
    num_processes: int
    batch: int
    defaults: set[str]
    results: dict[type, Any]

    @property
    def args(self):
        return self.results[SSLTrainingArguments]


class Parsed(BaseException):
    """Ends a recipe behind its command line."""


@pytest.fixture
def load(monkeypatch):
    def build(name):
        path = RECIPES / "configs" / f"{name}.yaml"
        text = path.read_text()
        command, *head = re.findall(r"^# (.*)$", text, re.MULTILINE)
        launch = r"accelerate launch (?:--multi_gpu --num_processes (\d+) )?recipes/(\w+)\.py"
        num_processes, recipe = re.fullmatch(rf"{launch} --config recipes/configs/{name}\.yaml", command).groups()
        seen = {}

        def begin(self, *classes, defaults, **kwargs):
            seen["defaults"] = set(defaults)
            original_begin(self, *classes, defaults=defaults, **kwargs)

        def parse(self):
            seen["results"] = dict(zip(self.classes, original_parse(self), strict=True))
            raise Parsed

        original_begin, original_parse = RecipeParser.__init__, RecipeParser.parse
        with monkeypatch.context() as patch:
            patch.setattr(RecipeParser, "__init__", begin)
            patch.setattr(RecipeParser, "parse", parse)
            patch.setattr(SSLTrainingArguments, "world_size", int(num_processes or 1))
            patch.setattr(sys, "argv", [f"{recipe}.py", "--config", str(path), "--precision", "fp32"])
            with pytest.raises(Parsed):
                runpy.run_path(str(RECIPES / f"{recipe}.py"))["main"]()
            batch = seen["results"][SSLTrainingArguments].global_batch_size
        comments = dict(re.findall(r"^(\w+):.*?# (.*)$", text, re.MULTILINE))
        return Config(" ".join(head), yaml.safe_load(text), comments, int(num_processes or 1), batch, **seen)

    return build


@pytest.mark.parametrize("name", NAMES)
def test_its_recipe_takes_it(load, name):
    config = load(name)
    recipe = next(iter(config.results.values()))
    assert recipe.encoder == config.content["encoder"] and config.args.max_steps == config.content["max_steps"]
    if name in IMAGENETS:
        [(method, fields)] = [(c, values) for c, values in config.results.items() if issubclass(c, PreTrainedConfig)]
        method(**fields | {"encoder_config": vision_encoder_config(recipe.encoder)})


@pytest.mark.parametrize("name", PAPERS)
def test_its_comments_are_true(load, name):
    config = load(name)
    args, facts = config.args, []
    for key, comment in config.comments.items():
        value = getattr(args, key, config.content[key])
        for processes, number, unit in re.findall(r"with (\d+) processes: .* ([\d,]+) (\w+) a step", comment):
            each = config.content["max_length"] if unit == "tokens" else 1
            step = config.batch * each
            if unit == "seconds":
                step = value * config.num_processes * args.gradient_accumulation_steps
            facts += [(config.num_processes, int(processes)), (step, int(number.replace(",", "")))]
        for samples in re.findall(r"([\d,]+) samples", comment):
            facts.append((value * 16_000, int(samples.replace(",", ""))))
        for rate, batch in re.findall(r"([\d.e-]+) at (\d+) images", comment):
            facts += [(args.learning_rate, float(rate)), (config.batch, int(batch))]
        for passes in re.findall(r"(\d+) pass", comment):
            steps = value * args.max_steps if key == "freeze_prototypes" else value
            facts.append((steps * config.batch / IMAGENET, int(passes)))
        for billions in re.findall(r"(\d+) billion tokens", comment):
            facts.append((value * config.batch * config.content["max_length"] / 1e9, int(billions)))
    assert len(facts) >= (6 if name in IMAGENETS else 2)
    for found, said in facts:
        assert found == pytest.approx(said, rel=1e-3)


@pytest.mark.parametrize("name", IMAGENETS)
def test_reported_figures_are_of_as_many_passes_or_say_how_to_get_them(load, name):
    config = load(name)
    reported = re.findall(r"% .*?after (\d+) passes(?: \(--max_steps ([\d_]+))?", config.head)
    assert "Not run here." in config.head and any(not steps for _, steps in reported)
    for passes, steps in reported:
        steps = int(steps) if steps else config.args.max_steps
        assert steps * config.batch / IMAGENET == pytest.approx(int(passes), rel=1e-3)


@pytest.mark.parametrize("name", PAPERS)
def test_nothing_is_left_of_the_recipe_s_short_run(load, name):
    config = load(name)
    left = config.defaults - config.content.keys()
    assert left <= ({"adam_beta2", "adam_epsilon"} if config.args.optim in ("lars", "sgd") else set())


@pytest.mark.parametrize("name", PAPERS)
def test_each_checkpoint_has_a_verdict(load, name):
    args = load(name).args
    assert args.eval_steps == args.save_steps
