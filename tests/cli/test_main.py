"""The command `hfssl`: the same files as `python recipes/mlm.py`, by their names."""

import json
import os
import re
import shlex
import subprocess
import sys

import pytest
from recipe_process import ROOT, TINY_ENCODER, first_of_path, recipe_server

from hfssl import __version__
from hfssl.cli.main import listing, main
from hfssl.commands import recipes


@pytest.fixture
def hfssl(tmp_path):
    """Runs the command, away from the clone, and returns what became of it."""
    script = tmp_path / "hfssl"
    script.write_text("import sys\nfrom hfssl.cli.main import main\nsys.exit(main())\n")
    (tmp_path / "here").mkdir()

    def run(*words, name="log", **environment):
        away = f"import os; os.chdir({str(tmp_path / 'here')!r})"
        return recipe_server().run(
            tmp_path / name, *words, script=str(script), before=away, drawn=False, **environment
        )

    return run


def test_alone_it_lists_the_recipes(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    text = listing()
    assert text.startswith("usage: hfssl RECIPE")
    for name in recipes():
        assert f"\n  {name} " in text
    families = dict(re.findall(r"^(\S.*):\n((?:  .*\n)+)", text, re.M))
    assert next(iter(families)) == "All in one command" and list(families)[-1] == "Looking at views"
    for family, name in (("Pre-training, text", "mlm"), ("With an encoder", "probe"), ("Comparing", "benchmark")):
        assert f"  {name} " in families[family]
    assert "Masked language modelling: from text without labels to an encoder that plain transformers" in text
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(
    "words, code, out, err",
    [
        ([], 0, "usage: hfssl RECIPE", ""),
        (["--version"], 0, f"hfssl {__version__}\n", ""),
        (["mmlm"], 2, "", "there is no recipe 'mmlm'. Did you mean mlm? `hfssl` alone lists them."),
        (["mlm.py"], 2, "", "Did you mean mlm?"),
        (["--dataset", "x"], 2, "", "there is no recipe '--dataset'."),
    ],
)
def test_what_is_no_recipe(monkeypatch, capsys, words, code, out, err):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hfssl", *words])
    try:
        status = main() or 0
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    assert status == code and captured.out.startswith(out) and err in captured.err


def test_a_run_and_what_it_says_to_do_next(hfssl, tmp_path):
    flags = ["--encoder_config", json.dumps(TINY_ENCODER), "--max_length", 32, "--vocab_size", 300, "--max_steps", 1,
             "--per_device_train_batch_size", 4, "--report_to", "none", "--output_dir", tmp_path / "out"]  # fmt: skip
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"the quick brown fox number {i} jumps over the lazy dog" for i in range(300)))
    done = hfssl("mlm", "--config", "mlm_tiny.yaml", "--dataset", texts, *flags)
    assert done.poll() == 0, done.stderr
    assert "recipes/" not in done.stdout + done.stderr
    lines = [
        shlex.split(line) for line in done.stdout.split("\nNext:\n")[1].splitlines() if line.startswith("  hfssl")
    ]
    assert [words[1] for words in lines] == ["mlm", "glue"]
    [again] = [words for words in lines if words[1] == "mlm"]
    followed = hfssl(*again[1:], "--max_steps", 1, "--per_device_train_batch_size", 4, "--report_to", "none", name="2")
    assert followed.poll() == 0 and (tmp_path / "out-2" / "model.safetensors").is_file(), followed.stderr
    command = json.loads((tmp_path / "out" / "results.json").read_text())[0]["command"]
    assert command.startswith("hfssl mlm --config mlm_tiny.yaml ")


def test_errors_say_it_too(hfssl):
    done = hfssl("show-views", "--method", "simclr", "--sed", "1")
    assert done.poll() == 2 and done.stderr.startswith(
        "hfssl show_views: error: unknown flag --sed. Did you mean --seed?"
    )
    done = hfssl("mlm", "--config", "nope.yaml", name="2")
    assert done.poll() == 2 and "--config cannot read nope.yaml: No such file" in done.stderr


def test_files_of_the_user_are_not_taken_for_libraries(tmp_path):
    """`python -m` looks into the working directory first; `hfssl` as a command does not."""
    for name in ("evaluate", "difflib"):  # the second is imported to list the recipes
        (tmp_path / f"{name}.py").write_text("raise SystemExit('of the user')")
    done = subprocess.run(
        [sys.executable, "-m", "hfssl"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": first_of_path(ROOT)},
    )  # fmt: skip
    assert done.stdout.startswith("usage: hfssl RECIPE"), done.stderr


@pytest.mark.parametrize("words", [["mlm", "--help"], ["benchmark", "views", "--help"], []])
def test_nothing_heavy_is_imported_to_say_something(words, tmp_path):
    code = f"""
import sys
sys.argv = ["/bin/hfssl", *{words}]
from hfssl.cli.main import main
try:
    main()
finally:
    print("heavy:", sorted({{"torch", "transformers", "datasets", "numpy"}} & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env={"PYTHONPATH": first_of_path(ROOT), "COLUMNS": "120"},
    )  # fmt: skip
    assert "heavy: []" in done.stderr and done.stdout.startswith(f"usage: hfssl {words[0] if words else 'RECIPE'}")
