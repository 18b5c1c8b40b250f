"""The rooms of the package, read from its imports (`show_structure.py`), and what importing it costs."""

import subprocess
import sys

import pytest
from recipe_process import ROOT, stock_server
from show_structure import PACKAGE, structure


@pytest.fixture(scope="module")
def found():
    return structure()


def test_imports_point_down_and_never_in_a_circle(found):
    assert found["circles"] == [] and found["upward"] == []


def test_every_room_is_known_and_few_modules_have_none(found):
    assert found["unknown rooms"] == []
    assert len(found["modules at the root"]) <= 8, found["modules at the root"]


def test_no_module_is_longer_than_500_lines(found):
    assert found["long"] == {}


def test_nothing_imports_the_recipes_or_the_tests():
    words = ("import recipes", "from recipes", "import tests", "from tests")
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if line.strip().startswith(words)] == [], path.relative_to(ROOT)


HEAVY = ("transformers.trainer", "datasets", "sklearn", "torchvision", "matplotlib", "pandas", "evaluate", "peft")


def test_importing_the_package_loads_nothing_heavy(tmp_path):
    """Beyond what a model of transformers loads: that takes torchvision where it is installed."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import json, sys
heavy = lambda: {{name for name in {HEAVY} if name in sys.modules}}
assert "hfssl" not in sys.modules and "transformers.modeling_utils" in sys.modules
before = heavy()
import hfssl
print(json.dumps(sorted(heavy() - before)))
hfssl.SSLTrainer  # and this one does
print("transformers.trainer" in heavy())
"""
    )
    run = stock_server().run(tmp_path / "log", script=str(script))
    assert run.poll() == 0, run.stderr
    assert run.stdout.splitlines() == ["[]", "True"]


# what `pip install hfssl` alone does not bring
OPTIONAL = (
    "av", "budoux", "flash_attn", "fugashi", "lightly", "liger_kernel", "open_clip", "pythainlp", "soundfile", "torchaudio",
    "torchcodec", "torchvision", "unidic_lite",
)  # fmt: skip


@pytest.mark.slow
def test_nothing_optional_is_needed_to_import_the_package_or_the_checks_on_a_gpu(tmp_path):
    """What runs the transforms of lightly is part of a comparison with it."""
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import importlib, importlib.machinery, pkgutil, sys
find = importlib.machinery.PathFinder.find_spec
importlib.machinery.PathFinder.find_spec = classmethod(
    lambda cls, name, *args: None if name.partition(".")[0] in {OPTIONAL} else find(name, *args)
)
import hfssl
for module in pkgutil.walk_packages(hfssl.__path__, "hfssl."):
    if not module.name.startswith(("hfssl.benchmarks.lightly", "hfssl.evaluation.metrics")):
        importlib.import_module(module.name)
assert not set({OPTIONAL}) & set(sys.modules)
import pytest
sys.exit(pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "--collect-only", "-m", "gpu", "tests/gpu"]))
"""
    )
    done = subprocess.run([sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
