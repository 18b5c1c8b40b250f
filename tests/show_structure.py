"""The structure of the package, read from its imports: modules at the root, floors, circles, and who names what.

    python tests/show_structure.py                  what there is
    python tests/show_structure.py --names mae,text  the files in which these words occur

Imports inside functions count like the others; those under `TYPE_CHECKING` do not run and do not count, but must not
point upwards either: they are listed apart.
"""

import argparse
import ast
import re
from collections import defaultdict
from pathlib import Path


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hfssl"

# Rooms from the top floor down; those of one set stand side by side and do not know each other.
FLOORS = (
    {"recipes", "__main__"}, {"benchmarks"}, {"cli"}, {"training"}, {"report"}, {"evaluation"}, {"data", "methods"}, {"modeling"},
    {"losses", "functional"}, {"machine"}, {"errors"}, {"commands"},
)  # fmt: skip
FLOOR_OF = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Dotted name -> file, of the package and the recipes."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    for path in sorted((ROOT / "recipes").glob("*.py")):
        found[f"recipes.{path.stem}"] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> tuple[set[str], set[str]]:
    """The modules of ours that a module imports: those that run, and those for type checkers only."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test).endswith("TYPE_CHECKING")
        for node in ast.walk(block)
    }
    run, typed = set(), set()
    for node in ast.walk(tree):
        targets = set()
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                targets.add(f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module)
        elif isinstance(node, ast.Import):
            targets = {alias.name for alias in node.names}
        (typed if id(node) in for_types else run).update(target for target in targets if target in known)
    # a package that loads names on first use: {"Name": ".module"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_LAZY":
            run |= {".".join([*package, value.lstrip(".")]) for value in ast.literal_eval(node.value).values()}
    return run - {name}, typed - {name}


def room(name: str) -> str:
    return "recipes" if name.startswith("recipes.") else (name.split(".") + [""])[1]


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    index, low, stack, found = {}, {}, [], []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


def floors(arrows: dict[str, set[str]]) -> int:
    """The longest way down from room to room: how many floors there are."""
    depth: dict[str, int] = {}

    def below(node: str, path: tuple[str, ...] = ()) -> int:
        if node not in depth:
            depth[node] = 1 + max(
                (below(other, (*path, node)) for other in arrows.get(node, ()) if other not in path), default=0
            )
        return depth[node]

    return max(below(node) for node in list(arrows))


def structure() -> dict:
    """What the structure is, for people and for `tests/test_structure.py`."""
    known = modules()
    run, typed = {}, {}
    for name, path in known.items():
        run[name], typed[name] = imports(name, path, known)
    rooms: dict[str, set[str]] = defaultdict(set)
    upward, unknown = [], set()
    for name in known:
        here = room(name)
        if here == "":  # the package itself: its names load on first use, or are those of the methods
            continue
        if here not in FLOOR_OF:
            unknown.add(here)
            continue
        rooms[here] |= set()
        for target in sorted(run[name] | typed[name]):
            there = room(target)
            if there in ("", here):
                continue
            rooms[here].add(there)
            if FLOOR_OF.get(there, 0) >= FLOOR_OF[here]:
                upward.append(f"{name} -> {target}" + ("" if target in run[name] else " (for types)"))
    # importing the package runs its __init__, but only the methods in it
    inner = {name: {t for t in targets if t != "hfssl"} for name, targets in run.items() if name != "hfssl"}
    return {
        "modules at the root": sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem != "__init__"),
        "rooms": sorted(p.name for p in PACKAGE.iterdir() if p.is_dir() and p.name != "__pycache__"),
        "unknown rooms": sorted(unknown),
        "floors": floors(rooms),
        "circles": circles(inner),
        "upward": upward,
        "arrows": sum(len(targets) for targets in inner.values()),
        "long": {
            n: lines for n, p in known.items() if (lines := len(p.read_text(encoding="utf-8").split("\n"))) > 500
        },
    }


def naming(word: str, folders: tuple[str, ...] = ("hfssl", "recipes", "tests")) -> list[str]:
    """The files in which a word occurs, as a word of its own or as a part of a name in snake or camel case."""
    pattern = re.compile(rf"(?<![a-z]){word}(?![a-z])|(?<![A-Za-z]){word.capitalize()}(?![a-z])")
    files = (p for f in folders for p in sorted((ROOT / f).rglob("*")) if p.suffix in (".py", ".yaml"))
    return [str(p.relative_to(ROOT)) for p in files if pattern.search(p.read_text(encoding="utf-8"))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", default="", help="words to look for, with commas between")
    words = parser.parse_args().names
    for what, found in structure().items():
        print(f"{what}: {found if isinstance(found, int) else ''}")
        for line in [] if isinstance(found, int) else found.items() if isinstance(found, dict) else found:
            print(f"  {line}")
    for word in filter(None, words.split(",")):
        files = naming(word)
        print(f"{word!r} occurs in {len(files)} files:")
        print("".join(f"  {name}\n" for name in files), end="")


if __name__ == "__main__":
    main()
