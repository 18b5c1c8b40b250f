"""The fields of a class as flags: name, default, help and heading of each, and its value from the words of a user.

Types are those that a flag can say: numbers, text, paths, choices, lists of these, and mappings as JSON.
"""

import dataclasses
import difflib
import inspect
import json
import re
import sys
import types
from collections.abc import Container
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


# What people type for a flag, where a recipe has no flag of that name: the first of these that it has.
ALIASES = {
    "batch_size": ("per_device_train_batch_size", "train_batch_size"),
    "lr": ("learning_rate",),
    "steps": ("max_steps",),
    "workers": ("dataloader_num_workers",),
    "data": ("dataset",),
}

# Nothing heavy is imported here: `--help` reads the flags of classes that are not imported either (`declared.py`).
# So what a class is, the names of its bases say.


@dataclasses.dataclass
class Flag:
    """One field of a class, as a flag. `narrow` is its default for narrow encoders, where these have another one."""

    name: str
    owner: type
    kinds: list[Any]
    default: Any
    required: bool
    optional: bool
    help: str
    group: str
    hidden: bool
    narrow: Any = None

    def option_strings(self, taken: dict[str, Any]) -> list[str]:
        """What can be typed: `--name`, `--no_name` and aliases, where these are no flags of their own (`taken`)."""
        names = [self.name, f"no_{self.name}"] if self.kinds == [bool] else [self.name]
        names += [alias for alias in ALIASES if alias_of(alias, taken) == self.name]
        return [f"--{name}" for name in dict.fromkeys(names) if name == self.name or name not in taken]

    def convert(self, words: list[str]) -> Any:
        """The value of the words typed after the flag; a `ValueError` when they are none."""
        # `--report_to none` is a value of its own: there the default says so
        if self.optional and len(words) == 1 and words[0].lower() in ("none", "null") and self.default != "none":
            return None
        # a number that is left out is chosen
        if self.optional and words == ["auto"] and set(self.kinds) <= {int, float}:
            return None
        return _convert_first(self.kinds, words)

    @property
    def expected(self) -> str:
        """What a value may be, in words."""
        return " or ".join(dict.fromkeys(map(_describe, self.kinds))) + (" or none" if self.optional else "")

    @property
    def metavar(self) -> str:
        """What stands for the value in the help."""
        kind = float if {int, float} <= set(self.kinds) else self.kinds[0]
        if kind is bool:
            return "" if len(self.kinds) == 1 else "VALUE"
        if _is_choice(kind):
            choices = "{" + ",".join(_choices(kind)) + "}"
            return choices if len(choices) <= 40 else "NAME"
        if _is_list(kind):
            return "VALUE ..."
        return {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}.get(kind, "JSON")

    def help_text(self) -> str:
        """The help, and the default."""
        value = self.default
        if self.required:
            return f"{self.help} (required)".lstrip()
        if self.narrow is not None:
            return f"{self.help} (default: {self.narrow}, for wide encoders {value})".lstrip()
        if value is None or value == "":
            return self.help
        value = value.value if isinstance(value, Enum) else value
        shown = " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        return f"{self.help} (default: {shown.lower() if isinstance(value, bool) else shown})".lstrip()


def alias_of(name: str, flags: Container[str]) -> str:
    """The flag that a name stands for among the flags of a recipe; the name itself where it is none of the aliases."""
    if name in flags:
        return name
    return next((flag for flag in ALIASES.get(name, ()) if flag in flags), name)


def flags_of(cls: type) -> list[Flag]:
    """The flags of a class, those that `--help` shows first."""
    hints = _type_hints(cls)
    documented = _documented_arguments(cls)
    stock_args, is_config = _base(cls, "TrainingArguments"), is_a(cls, "PreTrainedConfig")
    is_args = stock_args is not None
    stock_fields = dataclasses.fields(stock_args) if is_args else ()
    stock = {field.name: field.metadata.get("help") or "" for field in stock_fields}
    groups = getattr(cls, "_help_fields", {})
    shown = [*groups, *(name for name in hints if name not in stock and name not in groups)]
    narrow_heads = _narrow_heads(cls) if is_config else {}
    flags = []
    for field in dataclasses.fields(cls):
        if not field.init or field.name not in hints:
            continue
        annotation = hints[field.name]
        kinds = _kinds(annotation)
        if not kinds:
            if field.name in stock:
                continue
            raise TypeError(f"`{cls.__name__}.{field.name}` has a type that no flag can have: {annotation}.")
        text, heading = documented.get(field.name, ("", None))
        heading = field.metadata.get("group") or heading
        hidden = is_args and field.name not in shown
        if hidden:
            group = f"TrainingArguments: {heading}" if heading else "TrainingArguments"
        elif is_args:
            group = groups.get(field.name, "Run")
        else:
            group = heading or ("Method" if is_config else cls.__name__)
        has_factory = field.default_factory is not dataclasses.MISSING
        default = field.default_factory() if has_factory else field.default
        flags.append(
            Flag(
                name=field.name,
                owner=cls,
                kinds=kinds,
                default=default,
                required=default is dataclasses.MISSING,
                optional=types.NoneType in get_args(annotation),
                help=_brief(text or field.metadata.get("help") or stock.get(field.name, "")),
                group=group,
                hidden=hidden,
                narrow=narrow_heads.get(field.name),
            )
        )
    order = {name: position for position, name in enumerate(shown)}
    return sorted(flags, key=lambda flag: order.get(flag.name, len(order))) if is_args else flags


def is_a(cls: Any, name: str) -> bool:
    """Whether a class is, or stands in for, a subclass of a class of transformers."""
    return _base(cls, name) is not None


def _base(cls: Any, name: str) -> type | None:
    bases = getattr(cls, "__mro__", ())
    return next((b for b in bases if b.__name__ == name and b.__module__.startswith("transformers.")), None)


def _narrow_heads(cls: type) -> dict[str, Any]:
    """Fields of a method's config that narrow encoders have otherwise, as the record of the method says."""
    if "_narrow_heads" in vars(cls):  # of a stand-in
        return cls._narrow_heads
    record = getattr(sys.modules.get(cls.__module__), "METHOD", None)
    return dict(record.narrow_heads) if record else {}


def _type_hints(cls: type) -> dict[str, Any]:
    """The types of a class's fields; of a config, only of those that classes outside transformers declare."""
    if not is_a(cls, "PreTrainedConfig"):
        return get_type_hints(cls)
    hints = {}
    for base in reversed(cls.__mro__):
        if is_a(base, "PreTrainedConfig") and not base.__module__.startswith("transformers."):
            hints |= inspect.get_annotations(base, eval_str=True)
    return hints


def _documented_arguments(cls: type) -> dict[str, tuple[str, str | None]]:
    """Text and heading of each name in the entries ``name (`type`, ...):`` in docstrings of a class and its bases."""
    documented = {}
    for base in reversed(cls.__mro__):
        names, heading, indent = [], None, 0
        for line in inspect.cleandoc(vars(base).get("__doc__") or "").splitlines():
            depth = len(line) - len(line.lstrip())
            if match := re.match(r" *> ([A-Z].*)", line):
                names, heading = [], match[1].strip()
            elif found := _entry(line):
                names, indent = found, depth
                documented |= dict.fromkeys(names, ("", heading))
            elif names and line.strip() and depth > indent:
                # in transformers the metadata say it too, and a subclass may have replaced them
                if base is not _base(cls, "TrainingArguments"):
                    text = f"{documented[names[0]][0]} {line.strip()}".strip()
                    documented |= dict.fromkeys(names, (text, heading))
            else:
                names = []
    return documented


def _entry(line: str) -> list[str]:
    """The names that a line of a docstring says the types of, as in ``start, end (`int`):``; none of another line."""
    line = line.strip()
    if not line.endswith("):") or "`" not in line:
        return []
    names, before = line[:-1], ""
    while names != before:  # brackets in brackets
        names, before = re.sub(r" ?\([^()]*\)", "", names), names
    return names.split(", ") if re.fullmatch(r"\w+(, \w+)*", names) else []


def _brief(text: str, length: int = 160) -> str:
    """The first sentence, as many more as fit, and what holds where the flag is left out: that is its default."""
    # in the help of a field a percent may be written as argparse wants it
    text = text.replace("%%", "%")
    # links, not what else is in brackets: a range, a list
    text = re.sub(r"\[`~?(?:\w+\.)*([^`\]]*)`\](?:\([^)]*\))?", r"\1", " ".join(text.split()))
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).replace("`", "")
    first, *others = re.split(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.) (?=[^a-z])", text)
    kept, fits = [first], True
    for sentence in others:
        fits = fits and len(" ".join([*kept, sentence])) <= length
        if fits or sentence.startswith("Left out"):
            kept.append(sentence)
    return " ".join(kept)


def _is_choice(kind: Any) -> bool:
    return get_origin(kind) is Literal or isinstance(kind, type) and issubclass(kind, Enum)


def _choices(kind: Any) -> dict[str, Any]:
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}
    return {str(choice.value): choice for choice in kind}


def _kinds(annotation: Any) -> list[Any]:
    """What a value may be, of that which a flag can say, in the order in which to try it."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    # an enum beside `str` lists the strings that the field takes
    has_enum = any(isinstance(kind, type) and issubclass(kind, Enum) for kind in members)
    kinds = [kind for kind in members if _is_kind(kind) and not (has_enum and kind is str)]
    # text takes any one word, a list any words
    return sorted(kinds, key=lambda kind: (kind is str) + 2 * _is_list(kind))


def _is_list(kind: Any) -> bool:
    return (get_origin(kind) or kind) in (list, tuple)


def _is_kind(kind: Any) -> bool:
    origin = get_origin(kind) or kind
    simple = origin in (bool, int, float, str, Path, list, tuple, dict) or _is_choice(kind)
    return simple or is_a(kind, "PreTrainedConfig")


def _describe(kind: Any) -> str:
    if _is_choice(kind):
        return "one of " + ", ".join(_choices(kind))
    if _is_list(kind):
        inner = [arg for arg in get_args(kind) if arg is not Ellipsis] or [str]
        return "several values, each " + " or ".join(
            dict.fromkeys(_describe(kind) for arg in inner for kind in _kinds(arg))
        )
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names.get(kind, "a mapping as JSON or a path to a JSON file")


def _convert_first(kinds: list[Any], words: list[str]) -> Any:
    """The words as the first kind that takes them."""
    reason = ValueError()
    for kind in kinds:
        try:
            return _convert_one(kind, words)
        except ValueError as error:
            reason = error
    raise reason


def _convert_one(kind: Any, words: list[str]) -> Any:
    if _is_list(kind):
        if len(words) == 1 and words[0].startswith("["):
            # not JSON: a word like [UNK]
            with suppress(json.JSONDecodeError):
                words = [word if isinstance(word, str) else json.dumps(word) for word in json.loads(words[0])]
        origin, inner = get_origin(kind) or kind, get_args(kind) or (str, ...)
        if set(inner) <= {int, float, Ellipsis}:
            # `0.2,1` and `0.2, 1` for `0.2 1`
            words = [part for word in words for part in word.split(",") if part]
        if origin is list or inner[-1] is Ellipsis:
            inner = inner[:1] * len(words)
        if len(inner) != len(words):
            raise ValueError(f"{len(inner)} of them")
        return origin(_convert_first(_kinds(each), [word]) for each, word in zip(inner, words, strict=True))
    if kind is bool and not words:
        return True
    if len(words) != 1:
        raise ValueError("quote a value that holds spaces" if words and kind in (str, Path) else "")
    return _convert_word(kind, words[0])


def _convert_word(kind: Any, word: str) -> Any:
    if _is_choice(kind) or kind is bool:
        names = _choices(kind) if kind is not bool else _BOOLEANS
        names = {name.lower(): value for name, value in names.items()}
        if word.lower() not in names:
            nearest = difflib.get_close_matches(word.lower(), names, n=1)
            raise ValueError(f"did you mean {nearest[0]}?" if nearest else "")
        return names[word.lower()]
    if kind in (str, Path):
        return kind(word)
    if kind in (int, float):
        return _number(kind, word)
    if not word.lstrip().startswith("{"):
        if not Path(word).is_file():
            raise ValueError("there is no such file")
        word = Path(word).read_text(encoding="utf-8")
    try:
        value = json.loads(word)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no mapping")
    return value


_BOOLEANS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


def _number(kind: type, word: str) -> int | float:
    try:
        # `--max_steps 1e6` is a whole number too
        number = kind(word) if kind is float or not re.search("[.eE]", word) else float(word)
    except ValueError:
        raise ValueError from None
    if number != number or kind is int and number != number // 1:
        raise ValueError
    return kind(number)
