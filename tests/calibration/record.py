"""Runs that the verdict on health is calibrated by: short ones of the real recipes, sound and made to collapse.

    python tests/calibration/record.py --data cifar10=FOLDER --data emoji=FOLDER:category    about a minute of a core each
    python tests/calibration/record.py --only digits,simclr                   those that have all these words only
    python tests/calibration/record.py --runs /tmp/try.jsonl --max_steps 20 --only mae,digits

Each run is a line of `runs.jsonl`: what was measured at each evaluation, and what probes find at the end. Those that are
there are not made again, so that it goes on where it was stopped; take a line out to make it anew. How a method is made
to collapse is in the `CONTRACT` of its tests. `test_calibration.py` replays the verdicts over the lines.
"""

import argparse
import hashlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RUNS = HERE / "runs.jsonl"
SOUND, COLLAPSED = "sound", "collapsed"

# About a minute of one core.
STEPS, MOST_STEPS = {"dino": 150, "dinov2": 150, "mae": 300}, 200
BATCH = 64
FLAGS = {
    "per_device_train_batch_size": BATCH, "encoder": "vit-mini-patch4", "image_size": 16, "eval_steps": 0.1,
    "save_strategy": "no", "report_to": "none", "precision": "fp32", "seed": 0, "probe_max_samples": 800,
}  # fmt: skip


# Seconds of sound in a step, instead of a number of images.
SOUND_FLAGS = {name: value for name, value in FLAGS.items() if name not in (
    "per_device_train_batch_size", "encoder", "image_size")} | {"batch_seconds": 16}  # fmt: skip
# Of pairs, whose recipes have two encoders and no probes.
PAIR_FLAGS = {name: value for name, value in FLAGS.items() if name not in (
    "encoder", "image_size", "probe_max_samples")} | {"max_held_out": 256}  # fmt: skip
# What is recorded where no other data are named, as whoever gives no flags has it.
EMBEDDED = {"letters": "image", "speech": "audio", "characters": "multimodal"}


def methods_of(dataset: str) -> list[str]:
    """By the names of their recipes; other data sets than the embedded ones are of images."""
    from hfssl.methods import METHODS

    modality = EMBEDDED.get(dataset, "image")
    return [name for name, model in METHODS.items() if model.method.modality == modality]


def flags_of(dataset: str, method: str, data: dict[str, str], max_steps: int | None) -> dict[str, Any]:
    """Flags of a run of a recipe, without what makes it collapse."""
    from hfssl.methods import METHODS as RECORDS

    steps = max_steps or STEPS.get(method, MOST_STEPS)
    if EMBEDDED.get(dataset) == "audio":
        return SOUND_FLAGS | {"max_steps": steps}
    if EMBEDDED.get(dataset) == "multimodal":
        return PAIR_FLAGS | {"max_steps": steps}
    # recipes have theirs for 256 images, and a quarter of it for a quarter: a run of a minute would learn nothing
    rates = RECORDS[method].method.learning_rates
    rate = (rates.sgd or rates.narrow) * (BATCH / 256) ** 0.5
    flags = FLAGS | {"max_steps": steps, "learning_rate": rate}
    if dataset == "letters":  # as whoever gives no flags has it
        return {name: value for name, value in flags.items() if name not in ("encoder", "image_size")}
    folder, _, label = data[dataset].partition(":")
    flags |= {"dataset": folder, "probe_dataset": folder, "max_held_out": 256}
    return flags | ({"probe_label_column": label} if label else {})


def run_cell(cell: dict[str, Any], history_file: Path) -> None:
    """In a process of its own: the recipe, with its log kept."""
    sys.path.insert(0, str(HERE.parent))
    from contract import contract

    from hfssl import SSLTrainer, methods

    flags = dict(cell["flags"])
    if cell["variant"] == COLLAPSED:
        name = methods.METHODS[cell["method"]].__name__
        flags |= contract(name).collapse(setattr)
    log = SSLTrainer.log

    def keep(self, *args, **kwargs):
        log(self, *args, **kwargs)
        history_file.write_text(json.dumps(self.state.log_history))

    SSLTrainer.log = keep
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    sys.argv = [f"recipes/{cell['method']}.py", *words, "--use_cpu"]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


def record(cell: dict[str, Any]) -> dict[str, Any]:
    """A run as a line: figures by evaluation, and the probes at its end."""
    with tempfile.TemporaryDirectory() as folder:
        history_file, output_dir = Path(folder) / "history.json", Path(folder) / "out"
        told = cell | {"flags": cell["flags"] | {"output_dir": str(output_dir)}}
        words = [sys.executable, __file__, "--cell", json.dumps(told), "--history", str(history_file)]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ, check=False)
        history = json.loads(history_file.read_text()) if history_file.exists() else []
        results = json.loads((output_dir / "results.json").read_text()) if done.returncode == 0 else []
    if not history:
        raise SystemExit(done.stderr)
    max_steps = cell["flags"]["max_steps"]
    kept = [entry for entry in history if "health_verdict" in entry]
    evaluations = [
        {"step": entry["step"], "progress": round(entry["step"] / max_steps, 4)}
        | {
            name: float(f"{value:.5g}")
            for name, value in entry.items()
            if isinstance(value, float) and name.startswith(("health_", "eval_loss", "eval_chance_loss", "eval_knn"))
        }
        for entry in kept
    ]
    probes = {
        result["protocol"]: {"encoder": result["value"], **result["baselines"]}
        for result in results
        if result["metric"] == "accuracy" and result["hyperparameters"].get("k", 20) == 20
    }
    flags = {name: value for name, value in cell["flags"].items() if name not in ("dataset", "probe_dataset")}
    digest = hashlib.sha256(json.dumps(flags, sort_keys=True).encode()).hexdigest()[:12]
    ended = "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]
    return {
        **{name: cell[name] for name in ("dataset", "method", "variant")},
        "config": digest, "max_steps": max_steps, "evaluations": evaluations, "probes": probes, "ended": ended,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FOLDER[:LABEL_COLUMN]")
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--only", default="", help="words that the data set, method or variant has to be, by commas")
    parser.add_argument("--max_steps", type=int)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    parser.add_argument("--history", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cell:
        run_cell(json.loads(args.cell), args.history)
        return
    data = {"digits": "digits"} | dict(pair.split("=", 1) for pair in args.data)
    lines = args.runs.read_text().splitlines() if args.runs.exists() else []
    there = {tuple(json.loads(line)[name] for name in ("dataset", "method", "variant")) for line in lines}
    only = set(filter(None, args.only.split(",")))
    names = [(d, m, v) for d in (*EMBEDDED, *data) for m in methods_of(d) for v in (SOUND, COLLAPSED)]
    for name in names:
        if name in there or not only <= set(name):
            continue
        dataset, method, variant = name
        cell = {"dataset": dataset, "method": method, "variant": variant}
        line = record(cell | {"flags": flags_of(dataset, method, data, args.max_steps)})
        with args.runs.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(*name, line["probes"], line["ended"], flush=True)


if __name__ == "__main__":
    main()
