"""Classes of flags as their source declares them, without importing it: what `--help` shows, at once.

torch and transformers take seconds to import, and a help text needs none of what they do. Of a class that is flags, it
needs name, docstring, types and defaults. [`Source.get`] makes a class of that much of a source: a stand-in, which
[`~hfssl.cli.flags.flags_of`] reads like the class itself. What is not plain in the source (a default that a function
of torch computes, classes that are chosen while a recipe runs) raises [`NotPlain`], and the help takes the long way.
"""

import ast
import builtins
import dataclasses
import runpy
import sys
import types
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any


# Packages whose sources are read. Of the standard library the modules themselves are taken.
READ = ("hfssl", "transformers")


class NotPlain(Exception):
    """What a source says follows only from running it."""


# A default that is not plain: no matter, as long as a subclass or a recipe states another.
NOT_PLAIN = object()


class Source:
    """The top level of a module, as its source has it.

    Args:
        name (`str`):
            Of the module.
        path (`Path`):
            Its source.
        is_package (`bool`, *optional*, defaults to `False`):
            Whether it is the `__init__.py` of a package.
    """

    def __init__(self, name: str, path: Path, is_package: bool = False):
        self.name = name
        self.package = name if is_package else name.rpartition(".")[0]
        self.tree = ast.parse(path.read_text(encoding="utf-8"))
        self.nodes: dict[str, ast.AST] = {}
        self.imports: dict[str, tuple[str, str | None]] = {}
        self.stars: list[str] = []
        self.values: dict[str, Any] = {"__doc__": ast.get_docstring(self.tree, clean=False), "__name__": name}
        self.add(self.tree.body)

    def add(self, statements: list[ast.stmt]) -> None:
        """Learn what some statements define and import, those under `if TYPE_CHECKING` included."""
        for node in statements:
            if isinstance(node, ast.ImportFrom):
                module = self._absolute(node)
                for alias in node.names:
                    if alias.name == "*":
                        self.stars.append(module)
                    else:
                        self.imports[alias.asname or alias.name] = (module, alias.name)
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports[alias.asname or alias.name.partition(".")[0]] = (
                        alias.name if alias.asname else alias.name.partition(".")[0], None,
                    )  # fmt: skip
            elif isinstance(node, ast.ClassDef):
                self.nodes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.nodes[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self.nodes[node.target.id] = node.value
            elif isinstance(node, ast.If) and ast.unparse(node.test).rpartition(".")[2] == "TYPE_CHECKING":
                self.add(node.body)

    def _absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parts = self.package.split(".")
        return ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])

    def get(self, name: str) -> Any:
        """The value of a name: a stand-in for a class, what a plain expression gives.

        Raises:
            NotPlain: where only running the module would tell.
        """
        if name not in self.values:
            self.values[name] = self._find(name)
        return self.values[name]

    def _find(self, name: str) -> Any:
        node = self.nodes.get(name)
        if isinstance(node, ast.ClassDef):
            return self._stand_in(node)
        if node is not None:
            return self.value(node)
        if name in self.imports:
            return _imported(*self.imports[name])
        for module in self.stars:
            other = source_of(module)
            if name in other.nodes or name in other.imports:
                return other.get(name)
        raise NotPlain(f"{name} in {self.name}")

    def value(self, node: ast.expr, own: dict[str, Any] | None = None) -> Any:
        """What an expression of literals, classes and plain names gives; `own` are the names of the class it is in."""
        if isinstance(node, ast.Constant):
            return node.value
        own = own or {}
        names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
        known = {name: own[name] for name in names if name in own}
        others = (name for name in names - set(own) if name in self.values or not hasattr(builtins, name))
        known |= {name: self.get(name) for name in others}
        if any(value is NOT_PLAIN for value in known.values()):
            raise NotPlain(f"{ast.unparse(node)} in {self.name}")
        try:
            return eval(compile(ast.Expression(node), self.name, "eval"), known)
        except Exception as error:  # of whatever it does
            raise NotPlain(f"{ast.unparse(node)} in {self.name}") from error

    def record(self) -> dict[str, ast.expr]:
        """The arguments of the call that makes the record `METHOD` of a method."""
        node = self.nodes.get("METHOD")
        return {keyword.arg: keyword.value for keyword in node.keywords} if isinstance(node, ast.Call) else {}

    def _stand_in(self, node: ast.ClassDef) -> type:
        """The class with its docstring and its fields, without its methods."""
        if (self.name, node.name) in _EMPTY:
            return type(node.name, (), {"__module__": self.name})
        bases = tuple(self.value(base) for base in node.bases)
        members: dict[str, Any] = {"__module__": self.name, "__annotations__": {}}
        if (doc := ast.get_docstring(node, clean=False)) is not None:
            members["__doc__"] = doc
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                members["__annotations__"][statement.target.id] = self._type(statement.annotation)
                if statement.value is not None:
                    members[statement.target.id] = self._default(statement.value, members)
            elif isinstance(statement, ast.Assign):
                for target in statement.targets:
                    if isinstance(target, ast.Name):
                        members[target.id] = self._default(statement.value, members)
            elif isinstance(statement, (ast.If, ast.For, ast.With, ast.Try)):
                # what such a statement assigns is not known
                assigned = (part.id for part in ast.walk(statement) if isinstance(part, ast.Name))
                members |= {name: NOT_PLAIN for name in assigned if name in members}
        made = types.new_class(node.name, bases, exec_body=lambda namespace: _fill(namespace, members))
        is_config = any(base.__name__ == "PreTrainedConfig" for base in made.__mro__)
        if is_config:
            made._narrow_heads = self.value(self.record().get("narrow_heads", ast.parse("{}", mode="eval").body))
        if is_config or any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            made = dataclasses.dataclass(made, kw_only=True)
        return made

    def _type(self, node: ast.expr) -> Any:
        # a class from elsewhere is none that a flag can have
        foreign = {}
        for name in {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} - set(dir(builtins)):
            try:
                self.get(name)
            except NotPlain:
                foreign[name] = type(name, (), {})
        return self.value(node, foreign)

    def _default(self, node: ast.expr, members: dict[str, Any]) -> Any:
        try:
            return self.value(node, members)
        except NotPlain:
            if not isinstance(node, ast.Call) or getattr(node.func, "id", "") != "field":
                return NOT_PLAIN
        # of what is said beside a default, only the help is shown
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        default = self._default(options["default"], members) if "default" in options else NOT_PLAIN
        beside = options.get("metadata", ast.Dict([], []))
        help = [v for k, v in zip(beside.keys, beside.values, strict=True) if getattr(k, "value", "") == "help"]
        return dataclasses.field(default=default, metadata={"help": self.value(help[0])} if help else {})


# Nothing of it is a flag: only what its subclasses declare themselves.
_EMPTY = {("transformers.configuration_utils", "PreTrainedConfig")}


def _fill(namespace: dict[str, Any], members: dict[str, Any]) -> None:
    for name, value in members.items():
        namespace[name] = value


def _imported(module: str, name: str | None) -> Any:
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names:
        found = import_module(module)
        return found if name is None else getattr(found, name)
    if top not in READ or name is None:
        raise NotPlain(f"{name} of {module}")
    return source_of(module).get(name)


@cache
def source_of(module: str) -> Source:
    """The source of a module of one of the packages [`READ`]."""
    top, *rest = module.split(".")
    spec = find_spec(top)  # of a top-level name: nothing is imported
    path = Path(spec.submodule_search_locations[0], *rest)
    if path.is_dir():
        return Source(module, path / "__init__.py", is_package=True)
    return Source(module, path.with_suffix(".py"))


@dataclasses.dataclass
class DeclaredParser:
    """The parser of a recipe: what it calls [`~hfssl.RecipeParser`] with.

    Args:
        path (`Path`):
            The recipe.
        source ([`Source`]):
            The same, read.
        names (`list[str]`):
            Of the classes.
        options (`dict[str, Any]`):
            The other arguments.
    """

    path: Path
    source: Source
    names: list[str]
    options: dict[str, Any]
    _own: dict[str, Any] | None = None

    def stand_ins(self) -> list[type]:
        """The classes, read from their sources."""
        return [self.source.get(name) for name in self.names]

    def classes(self) -> list[type]:
        """The classes themselves, imported."""
        if self._own is None and not set(self.names) <= set(self.source.imports):
            self._own = runpy.run_path(str(self.path))
        found = [self.source.imports.get(name) for name in self.names]
        return [
            getattr(import_module(place[0]), place[1]) if place else self._own[name]
            for name, place in zip(self.names, found, strict=True)
        ]


def word_after(argv: Sequence[str], flag: str, default: str = "") -> str:
    """The value of a flag that decides which others there are, before these are parsed: the last one, as they do."""
    words = [word for argument in argv for word in argument.split("=", 1)]
    values = [value for word, value in pairwise(words) if word == flag]
    return values[-1] if values else default


def function_word(argv: Sequence[str]) -> str:
    """The word of a command line that names the function of a recipe, see [`declared_parser`]."""
    return word_after(argv, "--modality") or next(iter(argv), "")


def names_of_function(name: str) -> list[str]:
    """The words that a function of a recipe is called after: that of one that is for several is `a_or_b`."""
    return name.split("_or_")


def declared_parser(recipe: Path, word: str = "") -> DeclaredParser:
    """What the first call of `RecipeParser` in a recipe says.

    Args:
        recipe (`Path`):
            Its source.
        word (`str`, *optional*):
            Of the command line, the first one or that of `--modality`. A recipe whose flags depend on it has a
            function of that name, which makes the parser; one of several names is called `a_or_b`.

    Raises:
        NotPlain: where that depends on what the recipe does before.
    """
    source = Source("__main__", recipe)
    functions = [node for node in source.tree.body if isinstance(node, ast.FunctionDef)]
    for function in sorted(functions, key=lambda node: word not in names_of_function(node.name)):
        for part in ast.walk(function):
            if isinstance(part, ast.Call) and getattr(part.func, "id", "") == "RecipeParser":
                source.add([statement for statement in function.body if statement.lineno < part.lineno])
                if any(not isinstance(argument, ast.Name) for argument in part.args):
                    raise NotPlain(f"the classes of {recipe}")
                # of another recipe the help shows nothing
                plain = [keyword for keyword in part.keywords if keyword.arg != "as_in"]
                options = {keyword.arg: source.value(keyword.value) for keyword in plain}
                return DeclaredParser(recipe, source, [argument.id for argument in part.args], options)
    raise NotPlain(f"{recipe} has no RecipeParser in a function")
