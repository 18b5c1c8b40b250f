import ast
from pathlib import Path

import numpy as np

import hfssl
from hfssl.functional import keyed
from hfssl.functional.keyed import Use


def test_known_values_of_splitmix64():
    # the first outputs of the published generator seeded with 0 (Vigna's splitmix64.c): state = n times the increment
    with np.errstate(over="ignore"):
        states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(v) for v in keyed.mix(states)] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4", "0x6c45d188009454f"]


def test_keys_tell_parts_apart_and_broadcast():
    keys = {int(keyed.key(a, b)) for a in range(50) for b in range(50)}
    assert len(keys) == 2500
    array = keyed.key(3, np.arange(4), 5)
    assert [int(k) for k in array] == [int(keyed.key(3, i, 5)) for i in range(4)]


def test_uniform_is_uniform_over_consecutive_keys():
    values = keyed.uniform(keyed.key(0, np.arange(100_000)))
    assert values.min() >= 0 and values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert ((counts - 5000) ** 2 / 5000).sum() < 45  # chi-squared with 19 degrees of freedom, p about 0.0007


def test_permutations_and_seeds_hang_on_their_parts():
    assert sorted(keyed.permutation(10, 1, 2)) == list(range(10))
    assert keyed.permutation(10, 1, 2).tolist() == keyed.permutation(10, 1, 2).tolist()
    assert keyed.permutation(10, 1, 2).tolist() != keyed.permutation(10, 2, 1).tolist()
    assert 0 <= keyed.torch_seed(2**63, 7) < 2**63


def calls_without_a_use(source: str) -> list[int]:
    """Lines in which a key is made without saying what for: neither `Use.X` nor a parameter that is a `Use`."""
    missing = []
    tree = ast.parse(source)
    parameters = {}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            uses = {
                a.arg for a in function.args.args if a.annotation is not None and ast.unparse(a.annotation) == "Use"
            }
            parameters |= dict.fromkeys(map(id, ast.walk(function)), uses)
    for node in ast.walk(tree):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if name not in ("keyed.key", "keyed.permutation", "keyed.torch_seed"):
            continue
        place = 1 if name == "keyed.permutation" else 0
        use = ast.unparse(node.args[place]) if len(node.args) > place else ""
        if not (use.startswith("Use.") or use in parameters.get(id(node), ())):
            missing.append(node.lineno)
    return missing


def uses_of(source: str) -> list[str]:
    return [
        ast.unparse(node) for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "Use"
    ]  # fmt: skip


def test_every_key_says_what_is_drawn_with_it():
    assert calls_without_a_use("keyed.key(1, 2)\nkeyed.permutation(9, seed)\nkeyed.key(Use.MASK, 1)") == [1, 2]
    assert calls_without_a_use("def f(use: Use): keyed.key(use)\ndef g(use): keyed.torch_seed(use)") == [2]
    sources = {path: path.read_text() for path in Path(hfssl.__file__).parent.rglob("*.py")}
    assert {str(path): lines for path, source in sources.items() if (lines := calls_without_a_use(source))} == {}
    # and no key is made by another name
    imports = [path for path, source in sources.items() if "keyed import" in source.replace("keyed import Use\n", "")]
    assert imports == []
    # each use is somewhere, and they are all distinct numbers
    used = {use for source in sources.values() for use in uses_of(source)}
    assert used == {f"Use.{name}" for name in Use.__members__}
    assert len({int(use) for use in Use}) == len(Use.__members__)


def test_blocks_and_samples_share_no_key():
    seeds, passes = np.arange(5)[:, None, None, None], np.arange(5)[:, None, None]
    samples = keyed.key(Use.SAMPLE, seeds, passes, np.arange(20)[:, None], np.arange(50))
    blocks = keyed.key(Use.BLOCK, seeds[..., 0], passes[..., 0], np.arange(1000))
    assert len(np.unique(samples)) == samples.size and len(np.unique(blocks)) == blocks.size
    assert not np.isin(samples, blocks).any()
