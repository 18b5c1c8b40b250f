"""What `pip install hfssl` brings: the package, the recipes and their yamls, and commands that run without a clone."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from recipe_process import ROOT, TINY_ENCODER


pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that the build leaves nothing in the clone."""
    if subprocess.run([sys.executable, "-c", "import setuptools"], capture_output=True).returncode:
        pytest.skip("setuptools, with which the wheel is built, is not there")
    folder = tmp_path_factory.mktemp("wheel")
    clone = folder / "clone"
    for name in ("hfssl", "recipes"):
        shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, clone / name)
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder), str(clone)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True, capture_output=True)
    [made] = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """A fresh environment with the wheel, beside what this one has installed, and without this clone."""
    folder = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    own = sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})
    # of a folder that a .pth names no further .pth is read: an editable hfssl is not among it
    (Path(own) / "others.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    return folder


def run(folder: Path, *words, **environment) -> subprocess.CompletedProcess:
    here = folder / "here"
    here.mkdir(exist_ok=True)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"OMP_NUM_THREADS": "1", "PATH": f"{folder / 'venv' / 'bin'}:{env['PATH']}", **environment}
    return subprocess.run(list(map(str, words)), cwd=here, env=env, capture_output=True, text=True, timeout=600)


def test_the_files_are_those_of_the_clone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        there = {name for name in archive.namelist() if ".dist-info/" not in name}
    own = {str(path.relative_to(ROOT)) for path in (ROOT / "hfssl").rglob("*") if path.is_file()}
    own = {name for name in own if "__pycache__" not in name}
    recipes = [*(ROOT / "recipes").glob("*.py"), *(ROOT / "recipes" / "configs").glob("*.yaml")]
    assert there == own | {f"hfssl/{path.relative_to(ROOT)}" for path in recipes}


def test_the_command_runs_without_a_clone(installed):
    where = run(installed, installed / "venv" / "bin" / "python", "-c", "import hfssl; print(hfssl.__file__)")
    assert where.stdout.startswith(str(installed)), where.stderr
    assert "\n  mlm " in run(installed, "hfssl").stdout
    texts = installed / "here" / "texts.txt"
    texts.write_text("\n".join(f"the quick brown fox number {i} jumps over the lazy dog" for i in range(300)))
    config = {key: value for key, value in TINY_ENCODER.items() if key != "model_type"}
    short = ["--max_steps", 1, "--per_device_train_batch_size", 4, "--report_to", "none"]
    flags = ["--dataset", "texts.txt", "--encoder", "bert-tiny", "--encoder_config", json.dumps(config),
             "--max_length", 32, "--vocab_size", 300, *short]  # fmt: skip
    done = run(installed, "hfssl", "mlm", *flags)
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^  (hfssl .*)$", done.stdout, re.M)
    assert lines and "recipes/" not in done.stdout + done.stderr
    launched = ["accelerate", "launch", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no",
                "--dynamo_backend", "no", "-m", "hfssl", "mlm"]  # fmt: skip
    python = installed / "venv" / "bin" / "python"
    third = run(installed, python, "-m", "accelerate.commands.launch", *launched[2:], *flags, "--output_dir", "third")
    assert third.returncode == 0 and (installed / "here" / "third" / "config.json").is_file(), third.stderr
    shown = run(installed, python, "-m", "hfssl", "mlm", "--help")
    assert shown.stdout.startswith("usage: hfssl mlm ") and "hfssl mlm --config mlm_base.yaml" in shown.stdout
