import sys
import textwrap
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from huggingface_hub.dataclasses import strict
from recipe_process import recipe_server
from transformers import AutoConfig, PreTrainedConfig, TrainingArguments
from transformers.configuration_utils import SubConfigSpec
from transformers.trainer_utils import SaveStrategy

from hfssl.cli.flags import flags_of
from hfssl.cli.parser import RecipeParser


class Pooling(Enum):
    MEAN = "mean"
    FIRST = "cls"


@dataclass
class Recipe:
    r"""
    What is trained on what.

    > Data

    Args:
        dataset (`str`, *optional*):
            A Hub id, e.g. org/data, or a [`~hfssl.data.Source`]; 100 % of `it`. Left out: the
            embedded corpus. A third sentence is there only for those who read the docstring, and so long that the
            help would no longer be brief.
        max_length (`int`, *optional*, defaults to `128`):
            Tokens a row.

    > Text

    Args:
        packing (`bool`, *optional*, defaults to `True`):
            Several documents a row.
        streaming (`bool`, *optional*, defaults to `False`):
            Read in place.
        scale (`tuple[float, float]`, *optional*, defaults to `(0.2, 1.0)`):
            Shares in [0, 1], see [the paper](https://huggingface.co/papers/2002.05709).
        limit (`int` or `float`, *optional*):
            Rows, or seconds, of a document. What does not fit in here, for it is long, longer than what is brief can
            ever be, longer even than two lines of a docstring, is not shown. Left out: no limit. Nor is this.
    """

    dataset: str | None = None
    max_length: int = 128
    packing: bool = True
    streaming: bool = False
    precision: Literal["auto", "bf16"] = field(default="auto", metadata={"help": "Number format.", "group": "Speed"})
    pooling: Pooling = Pooling.MEAN
    layers: list[int] = field(default_factory=lambda: [1, 2])
    scale: tuple[float, float] = (0.2, 1.0)
    kernels: list[list[int]] | None = None
    folder: Path | None = None
    limit: int | float | None = None


@strict
class BaseConfig(PreTrainedConfig):
    shared: int = 1


@strict
class MethodConfig(BaseConfig):
    r"""
    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train.
        mask_ratio (`float`, *optional*, defaults to `0.15`):
            Share of the tokens that are masked.
    """

    model_type = "hfssl_parser_test"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    encoder_config: dict | PreTrainedConfig | None = None
    mask_ratio: float = 0.15


@dataclass
class Arguments(TrainingArguments):
    r"""
    Args:
        max_tokens (`int`, *optional*):
            Length in tokens.
        seed (`int`, *optional*, defaults to `42`):
            Documented anew.
    """

    _help_fields: ClassVar[dict[str, str]] = dict.fromkeys(
        ("seed", "learning_rate", "warmup_steps", "max_grad_norm"), "Run"
    )

    max_tokens: int | None = None
    max_grad_norm: float = 2.0
    warmup_steps: float = field(default=0.06, metadata={"help": "A share of all steps."})

    def __post_init__(self):
        if self.max_tokens == 0:
            raise ValueError("`--max_tokens` must be\n positive, got 0.")
        super().__post_init__()


@dataclass
class Required:
    encoder: str = field(metadata={"help": "Folder of the encoder."})


def parse(*argv):
    return RecipeParser(Recipe, MethodConfig, Arguments, prog="recipe.py", defaults={"use_cpu": True}).parse(argv)


@pytest.fixture
def fails(capsys):
    def check(*argv, parse=parse):
        with pytest.raises(SystemExit) as exit:
            parse(*argv)
        captured = capsys.readouterr()
        assert exit.value.code == 2 and captured.out == ""
        assert captured.err.count("\n") == 1, captured.err
        return captured.err.removeprefix("recipe.py: error: ").strip()

    return check


@pytest.fixture
def write_yaml(tmp_path):
    def write(text):
        path = tmp_path / "x.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return path

    return write


def test_without_flags_everything_has_its_default():
    recipe, config, args = parse()
    assert recipe == Recipe()
    assert config == {"shared": 1, "encoder_config": None, "mask_ratio": 0.15}
    assert MethodConfig(**config).mask_ratio == 0.15
    assert type(args) is Arguments and args.seed == 42 and args.warmup_steps == 0.06
    assert args.use_cpu


def test_default_lists_are_not_shared():
    parser = RecipeParser(Recipe)
    parser.parse([])[0].layers.append(3)
    assert parser.parse([])[0].layers == [1, 2]


@pytest.mark.parametrize(
    "argv, name, expected",
    [
        (["--max_length", "1_000"], "max_length", 1000),
        (["--max-length=1e3"], "max_length", 1000),
        (["--packing"], "packing", True),
        (["--packing", "false"], "packing", False),
        (["--no_packing"], "packing", False),
        (["--no-packing"], "packing", False),
        (["--streaming", "yes"], "streaming", True),
        (["--streaming"], "streaming", True),
        (["--precision", "bf16"], "precision", "bf16"),
        (["--pooling", "cls"], "pooling", Pooling.FIRST),
        (["--layers", "3", "-4"], "layers", [3, -4]),
        (["--layers", "[3, 4]"], "layers", [3, 4]),
        (["--scale", "-1e-1", ".5"], "scale", (-0.1, 0.5)),
        (["--kernels", "[[1, 2], [3]]"], "kernels", [[1, 2], [3]]),
        (["--folder", "a b"], "folder", Path("a b")),
        (["--folder", "none"], "folder", None),
        (["--limit", "2"], "limit", 2),
        (["--limit", "2.5"], "limit", 2.5),
        (["--dataset", "None"], "dataset", None),
        (["--dataset=--odd"], "dataset", "--odd"),
        (["--dataset", "a=b-c_d"], "dataset", "a=b-c_d"),
        (["--dataset", "a", "--dataset", "b"], "dataset", "b"),
    ],
)
def test_values(argv, name, expected):
    (recipe,) = RecipeParser(Recipe).parse(argv)
    value = getattr(recipe, name)
    assert value == expected and type(value) is type(expected)


def test_flags_of_all_three():
    recipe, config, args = parse(
        "--mask-ratio", "1", "--learning-rate", "6e-4", "--weight_decay", "-1e-4", "--save_strategy", "no",
        "--max_steps", "100_000", "--report_to", "none", "--encoder_config", '{"hidden_size": 32}', "--shared", "2",
    )  # fmt: skip
    # `@strict` wants a float where the field is one
    assert config == {"shared": 2, "encoder_config": {"hidden_size": 32}, "mask_ratio": 1.0}
    assert isinstance(config["mask_ratio"], float)
    assert (args.learning_rate, args.weight_decay, args.max_steps) == (6e-4, -1e-4, 100_000)
    assert args.save_strategy == SaveStrategy.NO and args.report_to == []


def test_encoder_config_from_a_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "bert", "hidden_size": 32}')
    _, config, _ = parse("--encoder_config", str(path))
    assert config["encoder_config"] == {"model_type": "bert", "hidden_size": 32}


def test_given_are_the_flags_that_the_user_set(write_yaml):
    parser = RecipeParser(Recipe, MethodConfig, defaults={"max_length": 64})
    parser.parse(["--config", str(write_yaml("mask_ratio: 0.3\ndataset: null")), "--no_packing"])
    assert parser.given == {"mask_ratio", "packing"}


def test_yaml(write_yaml):
    path = write_yaml("""
        # a comment
        dataset: 1.10           # text stays as it is written
        learning-rate: 6e-4     # text by YAML 1.1, a number to us
        max_steps: 100_000
        save_strategy: no       # false by YAML 1.1
        packing: false
        streaming: yes
        limit: null
        precision:
        layers: [3, 4]
        kernels: [[1, 2], [3]]
        encoder_config:
          model_type: bert
          layer_norm_eps: 1e-6
          tie_word_embeddings: false
          position_embedding_type: no
        max_length: 256
    """)
    recipe, config, args = parse("--max_length", "64", "--config", str(path))
    assert recipe == Recipe(
        dataset="1.10", packing=False, streaming=True, layers=[3, 4], kernels=[[1, 2], [3]], max_length=64
    )
    assert config["encoder_config"] == {
        "model_type": "bert",
        "layer_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "position_embedding_type": "no",
    }
    assert (args.learning_rate, args.max_steps, args.save_strategy) == (6e-4, 100_000, SaveStrategy.NO)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--learnin_rate", "1"], "unknown flag --learnin_rate. Did you mean --learning_rate?"),
        (["--qqqq"], "unknown flag --qqqq. --help-all lists what there is."),
        (["--max_len", "3"], "unknown flag --max_len. Did you mean --max_length?"),
        (["--max_length", "abc"], "--max_length expects a whole number, got 'abc'."),
        (["--max-length", "1.5"], "--max_length expects a whole number, got '1.5'."),
        (["--max_length", "inf"], "--max_length expects a whole number, got 'inf'."),
        (["--max_length", "none"], "--max_length expects a whole number, got 'none'."),
        (["--max_length"], "--max_length expects a whole number, got nothing."),
        (["--max_length", "1", "2"], "--max_length expects a whole number, got '1' '2'."),
        (["--mask_ratio", "nan"], "--mask_ratio expects a number, got 'nan'."),
        (["--dataset", "my", "file"], "--dataset expects text or none, got 'my' 'file' (quote a value"),
        (["--packing", "maybe"], "--packing expects true or false, got 'maybe'."),
        (["--no_packing", "maybe"], "--no_packing expects true or false, got 'maybe'."),
        (["--precision", "bf61"], "--precision expects one of auto, bf16, got 'bf61' (did you mean bf16?)."),
        (["--pooling", "x"], "--pooling expects one of mean, cls, got 'x'."),
        (["--layers", "1", "x"], "--layers expects several values, each a whole number, got '1' 'x'."),
        (["--scale", "1"], "--scale expects several values, each a number, got '1' (2 of them)."),
        (["--lr_scheduler_type", "cosin"], "got 'cosin' (did you mean cosine?)."),
        (
            ["--encoder_config", "no.json"],
            "--encoder_config expects a mapping as JSON or a path to a JSON file or none",
        ),
        (["--encoder_config", "no.json"], "got 'no.json' (there is no such file)."),
        (["--encoder_config", "{"], "got '{' (not valid JSON: "),
        (["--config"], "--config: expected one argument"),
        (
            ["run.yaml"],
            "expected a flag, which begins with two dashes, got 'run.yaml'. Did you mean --config run.yaml?",
        ),
        (["-x", "1"], "expected a flag, which begins with two dashes, got '-x'. See --help."),
        (["--config", "no.yaml"], "--config cannot read no.yaml: No such file or directory."),
        (["--max_tokens", "0"], "`--max_tokens` must be positive, got 0."),
        (["--bf16", "--fp16"], "At most one of fp16 and bf16 can be True"),
    ],
)
def test_errors_of_the_command_line(fails, argv, message):
    assert message in fails(*argv)


@pytest.mark.parametrize(
    "text, message",
    [
        ("max_length: 3\nlearnin_rate: 1", "{path}, line 2: unknown key learnin_rate. Did you mean learning_rate?"),
        ("config: y.yaml", "{path}, line 1: unknown key config."),
        ("max_length: [1, 2]", "{path}, line 1: max_length expects a whole number, got '1' '2'."),
        ("\nmax_length: {a: 1}", "{path}, line 2: max_length expects a whole number, got '{{\"a\": 1}}'."),
        ("max_length: 3\nmax-length: 4", "{path}, line 2: max_length is already set in line 1."),
        ("max_length: [1", "--config: {path} is not valid YAML (line 1): expected ',' or ']'"),
        (
            "encoder_config: {a: !!python/object:x 1}",
            "--config: {path} is not valid YAML (line 1): could not determine",
        ),
        ("- 1", "--config expects a yaml of the form `flag: value`, but {path} holds no such pair."),
        ("# nothing", "--config expects a yaml of the form `flag: value`, but {path} holds no such pair."),
    ],
)
def test_errors_of_the_yaml(fails, write_yaml, text, message):
    path = write_yaml(text)
    assert message.format(path=path) in fails("--config", str(path))


def test_value_in_the_yaml_is_checked_even_if_the_command_line_wins(fails, write_yaml):
    path = write_yaml("max_length: abc")
    assert "line 1: max_length expects" in fails("--config", str(path), "--max_length", "3")


def test_required_flag(fails, write_yaml):
    parser = RecipeParser(Required, prog="recipe.py")
    assert fails(parse=lambda: parser.parse([])) == "--encoder is required. Folder of the encoder."
    assert "unknown flag --encodr" in fails(parse=lambda: parser.parse(["--encodr", "x"]))
    assert parser.parse(["--config", str(write_yaml("encoder: x"))]) == (Required("x"),)


def test_mistakes_of_the_author():
    @dataclass
    class Twin:
        max_length: int = 1

    @dataclass
    class Odd:
        thing: object = None

    with pytest.raises(ValueError, match="Recipe and Twin both declare `max_length`"):
        RecipeParser(Recipe, Twin)
    with pytest.raises(ValueError, match="`defaults` names `max_len`"):
        RecipeParser(Recipe, defaults={"max_len": 1})
    with pytest.raises(TypeError, match=r"Odd\.thing. has a type that no flag can have"):
        RecipeParser(Odd)


def help_text(flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    parser = RecipeParser(Recipe, MethodConfig, Arguments, description="Usage:\n    indented", defaults={"seed": 7})
    with pytest.raises(SystemExit) as exit:
        parser.parse([flag])
    assert exit.value.code == 0
    return capsys.readouterr().out


def test_help(capsys, monkeypatch):
    text = help_text("--help", capsys, monkeypatch)
    lines = {" ".join(line.split()) for line in text.splitlines()}
    headings = [line for line in text.splitlines() if line.endswith(":") and not line.startswith((" ", "Usage"))]
    assert headings == ["Help and settings:", "Run:", "Data:", "Text:", "Speed:", "Recipe:", "Method:"]
    assert "Usage:\n    indented" in text
    assert {
        "--dataset, --data TEXT A Hub id, e.g. org/data, or a Source; 100 % of it. Left out: the embedded corpus.",
        "--max_length INT Tokens a row. (default: 128)",
        "--packing, --no_packing Several documents a row. (default: true)",
        "--precision {auto,bf16} Number format. (default: auto)",
        "--scale VALUE ... Shares in [0, 1], see the paper. (default: 0.2 1.0)",
        "--limit NUMBER Rows, or seconds, of a document. Left out: no limit.",
        "--layers VALUE ... (default: 1 2)",
        "--mask_ratio NUMBER Share of the tokens that are masked. (default: 0.15)",
        "--encoder_config JSON Encoder to pre-train.",
        "--max_tokens INT Length in tokens.",
        "--seed INT Documented anew. (default: 7)",
        "--warmup_steps NUMBER A share of all steps. (default: 0.06)",
        # a new default without a new help
        "--max_grad_norm NUMBER Maximum gradient norm for gradient clipping. Set to 0 to disable. (default: 2.0)",
        "--learning_rate, --lr NUMBER The initial learning rate for the optimizer. (default: 5e-05)",
    } <= lines
    assert "weight_decay" not in text and "TrainingArguments" not in text
    # of a config the fields of hfssl, not those of transformers
    assert "--shared" in text and "--architectures" not in text


def test_help_all_adds_the_rest(capsys, monkeypatch):
    text = help_text("--help-all", capsys, monkeypatch)
    assert "TrainingArguments: Optimizer:" in text and "--weight_decay NUMBER" in text
    assert "--dataset, --data TEXT" in text and "--architectures" not in text
    assert text == help_text("--help_all", capsys, monkeypatch)


@pytest.mark.parametrize(
    "variables, speaks",
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "1", "LOCAL_RANK": "1"}, False),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
    ],
)
def test_only_the_main_process_speaks(capsys, monkeypatch, variables, speaks):
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    for argv, code in ((["--max_length", "x"], 2), (["--help"], 0)):
        with pytest.raises(SystemExit) as exit:
            RecipeParser(Recipe).parse(argv)
        captured = capsys.readouterr()
        assert exit.value.code == code
        assert bool(captured.out + captured.err) is speaks
    # the others wait, so that a launcher does not end the main process before it has spoken
    assert bool(waited) is not speaks


def test_command_line(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "recipes" / "mlm.py")])
    parser = RecipeParser(Recipe, Arguments)
    parser.parse(["--dataset", "a b", "--hub-token", "secret", "--max_tokens", "5", "--use_cpu"])
    assert parser.command_line() == "python recipes/mlm.py --dataset 'a b' --hub-token '***' --max_tokens 5 --use_cpu"
    parser.parse(["--hub_token=secret", "--run_name", "x-hf_abcdefghijklmnop", "--use_cpu"])
    assert parser.command_line() == "python recipes/mlm.py '--hub_token=***' --run_name 'x-***' --use_cpu"


def test_as_a_script(tmp_path):
    script = tmp_path / "recipe.py"
    script.write_text(
        textwrap.dedent('''
        """What it does."""

        from __future__ import annotations

        from dataclasses import dataclass

        from hfssl.cli.parser import RecipeParser


        @dataclass
        class Recipe:
            size: int | None = 3

        if __name__ == "__main__":
            parser = RecipeParser(Recipe, description=__doc__)
            print(parser.parse(), parser.command_line())
        '''),
        encoding="utf-8",
    )

    good = recipe_server().run(tmp_path, "--size", 4, script=str(script))
    assert good.poll() == 0 and good.stdout.strip() == f"(Recipe(size=4),) python {script} --size 4"
    bad = recipe_server().run(tmp_path, "--size", "four", script=str(script))
    assert bad.poll() == 2 and bad.stdout == ""
    assert bad.stderr == "recipe.py: error: --size expects a whole number or none, got 'four'.\n"


# -- as people type ---------------------------------------------------------------------------------------------------


@dataclass
class OwnBatch:
    r"""
    Args:
        batch_size (`int`, *optional*, defaults to `7`):
            A flag of its own.
    """

    batch_size: int = 7


def test_aliases_stand_for_one_flag(write_yaml, fails):
    recipe, _, args = parse("--batch-size", "4", "--lr=1e-3", "--steps", "5", "--workers", "2", "--data", "org/x")
    assert (args.per_device_train_batch_size, args.learning_rate, args.max_steps) == (4, 1e-3, 5)
    assert args.dataloader_num_workers == 2 and recipe.dataset == "org/x"
    parser = RecipeParser(Recipe, Arguments, prog="recipe.py", defaults={"use_cpu": True})
    _, args = parser.parse(["--config", str(write_yaml("lr: 2e-3\nsteps: 9"))])
    assert (args.learning_rate, args.max_steps) == (2e-3, 9) and parser.given == {"learning_rate", "max_steps"}
    assert "learning_rate is already set in line 1" in fails("--config", str(write_yaml("lr: 2e-3\nlearning_rate: 1")))
    # what is a flag of its own stays one
    own, args = RecipeParser(OwnBatch, Arguments, defaults={"use_cpu": True}).parse(["--batch_size", "3"])
    assert own.batch_size == 3 and args.per_device_train_batch_size == 8
    assert "stated in steps: --max_steps" in fails("--epochs", "3")


@dataclass
class Length:
    r"""
    Args:
        steps, passes (`int` or `None`, *optional*, default to `9` and `1`):
            How long.
        start (`float`), end (`list[float] (two)`, *optional*):
            A span.
    """

    _one_of: ClassVar[dict[str, tuple[str, ...]]] = {"how long it is": ("steps", "passes")}

    steps: int | None = 9
    passes: int | None = None
    start: float = 0.0
    end: float = 1.0


def test_flags_that_share_a_line_of_the_docstring_share_its_help():
    assert {flag.name: flag.help for flag in flags_of(Length)} == {
        "steps": "How long.", "passes": "How long.", "start": "A span.", "end": "A span.",
    }  # fmt: skip


def test_of_flags_that_say_the_same_one_is_given(write_yaml, fails):
    def of(*argv):
        return RecipeParser(Length, prog="recipe.py").parse(argv)

    both = "both say how long it is. Leave out --passes to go by --steps, or --steps to go by --passes."
    assert f"--steps 5 and --passes 2 {both}" in fails("--passes", "2", "--steps", "5", parse=of)
    path = str(write_yaml("passes: 3\nsteps: 4"))
    assert f"--steps 4 and --passes 3 {both}" in fails("--config", path, parse=of)
    # the command line wins, also where the yaml says it by another name
    for argv, steps, passes in ((["--steps", "5"], 5, None), (["--passes", "5"], 9, 5)):
        [found] = of("--config", path, *argv)
        assert (found.steps, found.passes) == (steps, passes)
    assert of("--steps", "none", "--passes", "2")[0].passes == 2


def test_lists_of_numbers_may_have_commas():
    for words in (["0.2", "1"], ["0.2,1"], ["0.2,", "1"], ["[0.2, 1]"]):
        assert parse("--scale", *words)[0].scale == (0.2, 1.0)
    assert parse("--layers", "3,4,5")[0].layers == [3, 4, 5]
