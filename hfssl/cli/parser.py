"""The command line of a recipe: its flags are the fields of dataclasses and of a method's config, also as a yaml."""

import argparse
import copy
import difflib
import json
import logging
import os
import re
import shlex
import sys
import textwrap
import time
from pathlib import Path
from typing import Any, NoReturn

import yaml
from huggingface_hub.errors import StrictDataclassError

from ..commands import as_typed, find_config, this_command
from .declared import NOT_PLAIN, declared_parser, function_word
from .flags import Flag, alias_of, flags_of, is_a


logger = logging.getLogger(__name__)

_SECRETS = re.compile(r"hf_[A-Za-z0-9]{8,}")
_SECRET_FLAGS = ("hub_token", "api_key", "password", "secret")


class RecipeParser(argparse.ArgumentParser):
    r"""
    Parser of a recipe's flags, which are the fields of the classes that it is given.

    A flag's help is the beginning of its entry in the docstring of the class, or `metadata["help"]` of the field;
    its heading is `metadata["group"]`, or the line `> Heading` above the entry in the docstring. A value comes from
    the command line, else from the yaml named by `--config`, else from `defaults`, else from the class. What a user
    can get wrong ends in one sentence on stderr and exit code 2. In a distributed launch only the main process speaks.

    Args:
        classes (`type`):
            What to parse, in the order in which [`~RecipeParser.parse`] returns it: a dataclass gives an instance, a
            [`~transformers.PreTrainedConfig`] a `dict` of the fields that it declares itself (the recipe adds the
            encoder and builds it), [`~transformers.TrainingArguments`] an instance. `--help` shows those of its fields
            that the class attribute `_help_fields` names, under the headings that it gives them, and those that a
            subclass adds; `--help-all` shows them all. Of the flags that a class attribute `_one_of` names together,
            under what they say, one is given at most.
        defaults (`dict`, *optional*):
            Defaults that differ from those of the classes, by the name of the field.
        unused (`tuple[str, ...]`, *optional*):
            Fields of the classes that mean nothing to this recipe: they are no flags of it, and refused as such.
        as_in (`Path`, *optional*):
            A recipe whose flags are taken as well, with its defaults, and whose results follow. The help names the
            recipe instead of showing them.
        kwargs (`dict`, *optional*):
            Passed to `argparse.ArgumentParser`, such as `description=__doc__`.

    Example:

    ```python
    parser = RecipeParser(MlmRecipe, MlmPreTrainingConfig, SSLTrainingArguments, description=__doc__)
    recipe, config, args = parser.parse()
    model = MlmForPreTraining(MlmPreTrainingConfig(**config))
    ```
    """

    def __init__(
        self,
        *classes: type,
        defaults: dict[str, Any] | None = None,
        unused: tuple[str, ...] = (),
        as_in: Path | None = None,
        **kwargs,
    ):
        kwargs = {"usage": "%(prog)s [--config FILE] [--flag VALUE ...]", "formatter_class": _HelpFormatter} | kwargs
        kwargs["description"] = as_typed(kwargs.get("description") or "")
        super().__init__(allow_abbrev=False, add_help=False, argument_default=argparse.SUPPRESS, **kwargs)
        self.classes = classes
        self.given: set[str] = set()
        # a value may be -1e-4: argparse knows only -1 and -0.1
        self._negative_number_matcher = re.compile(r"-\.?\d")
        self._flags: dict[str, Flag] = {}
        self._typed: list[str] = []
        own = classes
        if as_in is not None:
            other = declared_parser(as_in, function_word(sys.argv[1:]))
            self.classes = classes = (*classes, *other.classes())
            defaults = other.options.get("defaults", {}) | (defaults or {})
            unused = (*unused, *other.options.get("unused", ()))
        for flag in (flag for cls in classes for flag in flags_of(cls)):
            if flag.name in self._flags:
                owners = f"{self._flags[flag.name].owner.__name__} and {flag.owner.__name__}"
                raise ValueError(f"A recipe has one flag of a name, but {owners} both declare `{flag.name}`.")
            self._flags[flag.name] = flag
        self._unused = frozenset(unused)
        for name in unused:
            if self._flags.pop(name, None) is None:
                raise ValueError(f"`unused` names `{name}`, which is no flag of {[c.__name__ for c in classes]}.")
        for name, value in (defaults or {}).items():
            if name not in self._flags:
                raise ValueError(f"`defaults` names `{name}`, which is no flag of {[c.__name__ for c in classes]}.")
            flag = self._flags[name]
            flag.default, flag.required, flag.narrow = value, False, None
        self._add_arguments(own)

    def _add_arguments(self, own: tuple[type, ...]):
        options = self.add_argument_group("Help and settings")
        is_short = any(flag.hidden and flag.owner in own for flag in self._flags.values())
        options.add_argument("-h", "--help", action="help", help="Show this text.")
        options.add_argument(
            "--help_all", action=_HelpAllAction, nargs=0,
            help="Show all flags, also those of transformers that are rarely set." if is_short else argparse.SUPPRESS,
        )  # fmt: skip
        options.add_argument(
            "--config", metavar="FILE", help="A yaml whose keys are flags. What the command line gives as well, wins."
        )
        groups = {}
        # where the result goes and how long it takes stands first
        for flag in sorted(self._flags.values(), key=lambda flag: flag.group != "Run"):
            if flag.group not in groups:
                groups[flag.group] = self.add_argument_group(flag.group)
            action = groups[flag.group].add_argument(
                *flag.option_strings(taken=self._flags), dest=flag.name, action=_FlagAction, nargs="*"
            )
            full_help = as_typed(flag.help_text()).replace("%", "%%") if flag.owner in own else argparse.SUPPRESS
            action.metavar, action.full_help = flag.metavar, full_help
            action.help = argparse.SUPPRESS if flag.hidden else action.full_help

    def is_plain(self) -> bool:
        """Whether the default of each flag is known, of classes that were read from their sources."""
        return all(flag.default is not NOT_PLAIN for flag in self._flags.values())

    def parse(self, argv: list[str] | None = None) -> tuple[Any, ...]:
        r"""
        Parse the command line and the yaml that it names. Afterwards `parser.given` holds the names of the flags that
        the user set in either of them.

        Args:
            argv (`list[str]`, *optional*, defaults to `sys.argv[1:]`):
                The command line.

        Returns:
            `tuple`: one result per class, in the order of the classes.
        """
        self._typed = list(sys.argv[1:] if argv is None else argv)
        argv = [_underscored(token) for token in self._typed]
        for name in (token.partition("=")[0] for token in argv if token.startswith("--")):
            if name not in self._option_string_actions:
                self._refuse(name, f"unknown flag {name}.")
        namespace, stray = self.parse_known_args(argv)
        if stray:
            hint = f"Did you mean --config {stray[0]}?" if stray[0].endswith((".yaml", ".yml")) else "See --help."
            self.error(f"expected a flag, which begins with two dashes, got {stray[0]!r}. {hint}")
        given = vars(namespace)
        path = given.pop("config", None)
        of_yaml = {} if path is None else self._read_yaml(path)
        for says, names in self._one_of.items():
            typed, written = ([n for n in names if of.get(n) is not None] for of in (given, of_yaml))
            self._check_one(says, typed or written, given if typed else of_yaml)
            # what the command line gives, wins, whatever it is called in the yaml
            of_yaml = {name: value for name, value in of_yaml.items() if not typed or name not in names}
        given = of_yaml | given
        self.given = set(given)
        for flag in self._flags.values():
            if flag.required and flag.name not in given:
                self.error(f"--{flag.name} is required. {flag.help}".rstrip())
        return tuple(self._build(cls, given) for cls in self.classes)

    @property
    def _one_of(self) -> dict[str, tuple[str, ...]]:
        """By what they say, the flags of which one is given at most."""
        return {says: names for cls in self.classes for says, names in getattr(cls, "_one_of", {}).items()}

    def _check_one(self, says: str, names: list[str], given: dict[str, Any]) -> None:
        if len(names) > 1:
            (one, its), (other, that) = ((name, given[name]) for name in names[:2])
            self.error(
                f"--{one} {its} and --{other} {that} both say {says}. Leave out --{other} to go by --{one}, or "
                f"--{one} to go by --{other}."
            )

    def _build(self, cls: type, given: dict[str, Any]) -> Any:
        flags = [flag for flag in self._flags.values() if flag.owner is cls]
        values = {flag.name: given.get(flag.name, copy.copy(flag.default)) for flag in flags}
        if is_a(cls, "PreTrainedConfig"):
            return values
        try:
            return cls(**values)
        except (ValueError, OSError, ImportError, StrictDataclassError) as error:
            logger.debug("The error behind the message", exc_info=True)
            # `@strict` hides the sentence that a validator raised behind the name of the validator
            self.error(str(isinstance(error, StrictDataclassError) and error.__cause__ or error))

    def command_line(self) -> str:
        """The command as typed, without secrets and without the launcher, e.g. `python recipes/mlm.py --seed 1`."""
        *command, script = this_command()
        if Path(script).is_absolute() and Path(script).is_relative_to(Path.cwd()):
            script = str(Path(script).relative_to(Path.cwd()))
        words, hide_next = [], False
        for word in self._typed:
            name, equals, _ = _underscored(word).partition("=")
            is_flag = name.startswith("--")
            if hide_next and not is_flag:
                word = "***"
            hide_next = is_flag and name.endswith(_SECRET_FLAGS)
            words.append(f"{name}=***" if hide_next and equals else _SECRETS.sub("***", word))
        return shlex.join([*command, script, *words])

    def error(self, message: str) -> NoReturn:
        """Print one sentence to stderr and exit with code 2."""
        message = textwrap.shorten(as_typed(message), 1500, placeholder=" …")
        if not _is_main_process():
            # a launcher ends all processes when it sees one fail: leave the main process the time to speak
            time.sleep(10)
        self.exit(2, f"{self.prog}: error: {message}\n")

    def _print_message(self, message: str, file=None):
        if _is_main_process():
            super()._print_message(message, file)

    def _refuse(self, name: str, problem: str) -> NoReturn:
        if name.removeprefix("--").removeprefix("no_") in self._unused:
            self.error(f"{name} has no meaning in {self.prog}: leave it out, or take a recipe whose --help names it.")
        if name.removeprefix("--") == "epochs" and "max_steps" in self._flags:
            self.error(
                f"{problem} The length of this run is stated in steps: --max_steps is the passes times the samples of "
                "the data, divided by those of a step."
            )
        self.error(f"{problem} {self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        dashes = "--" if name.startswith("--") else ""
        known = [option.removeprefix("--") for option in self._option_string_actions]
        nearest = difflib.get_close_matches(name.removeprefix("--"), known, n=1)
        return f"Did you mean {dashes}{nearest[0]}?" if nearest else "--help-all lists what there is."

    def _read_yaml(self, path: str) -> dict[str, Any]:
        """Values are taken as written, not as YAML types them: `1.10`, `6e-4`, `no` mean what they mean as flags."""
        try:
            loader = _YamlLoader(find_config(path).read_text(encoding="utf-8"))
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                self.error(f"--config expects a yaml of the form `flag: value`, but {path} holds no such pair.")
            given, lines = {}, {}
            for key, value in node.value:
                where = f"{path}, line {key.start_mark.line + 1}"
                name = alias_of(str(key.value).removeprefix("--").replace("-", "_"), self._flags)
                if name not in self._flags:
                    self._refuse(name, f"{where}: unknown key {key.value}.")
                if name in lines:
                    self.error(f"{where}: {name} is already set in line {lines[name]}.")
                lines[name] = key.start_mark.line + 1
                if value.tag != "tag:yaml.org,2002:null":  # null: the default
                    given[name] = self._convert(name, loader.words(value), where=f"{where}: {name}")
            return given
        except OSError as error:
            self.error(f"--config cannot read {path}: {error.strerror}.")
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            mark = getattr(error, "problem_mark", None)
            line = f" (line {mark.line + 1})" if mark else ""
            self.error(f"--config: {path} is not valid YAML{line}: {getattr(error, 'problem', None) or error}.")

    def _convert(self, name: str, words: list[str], where: str) -> Any:
        flag = self._flags[name]
        try:
            return flag.convert(words)
        except (ValueError, OSError) as error:
            got = " ".join(repr(word) for word in words) or "nothing"
            self.error(f"{where} expects {flag.expected}, got {got}{f' ({error})' if str(error) else ''}.")


class _FlagAction(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        value = parser._convert(self.dest, values, where=option_string)
        setattr(namespace, self.dest, not value if option_string == f"--no_{self.dest}" else value)


class _HelpAllAction(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        for action in parser._actions:
            action.help = getattr(action, "full_help", action.help)
        parser.print_help()
        parser.exit()


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{"max_help_position": 34} | kwargs)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        # argparse would write `--seed [SEED ...]`: every flag takes a list of words here
        names = ", ".join(action.option_strings).replace("help_all", "help-all")
        return f"{names} {action.metavar}" if action.metavar else names


class _YamlLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that reads scalars as YAML 1.2 does: `6e-4` is a number, `no` and `on` are words."""

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in ("bool", "timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def words(self, node: yaml.Node) -> list[str]:
        """What one would type after the flag: scalars as written, mappings and nested lists as JSON."""
        if isinstance(node, yaml.ScalarNode):
            return [node.value]
        if isinstance(node, yaml.SequenceNode):
            return [
                child.value if isinstance(child, yaml.ScalarNode) else self.words_json(child) for child in node.value
            ]
        return [self.words_json(node)]

    def words_json(self, node: yaml.Node) -> str:
        return json.dumps(self.construct_object(node, deep=True), default=str)


_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:[tT]rue|[fF]alse)$"), list("tTfF"))
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _is_main_process() -> bool:
    return os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"


def _underscored(token: str) -> str:
    """`--learning-rate=1e-3` as `--learning_rate=1e-3`; a value is left as it is."""
    name, equals, value = token.partition("=")
    return name[:2] + name[2:].replace("-", "_") + equals + value if token.startswith("--") else token
