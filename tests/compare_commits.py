"""Whether two commits train the same: 20 steps of each method in both, compared tensor by tensor and bit by bit.

A change that is meant to change nothing, such as moving or renaming modules, shows it with this:

    python tests/compare_commits.py main~3 main         commits, each checked out into a temporary folder
    python tests/compare_commits.py ../before .         folders, with what is not committed in them
    python tests/compare_commits.py main . --methods mlm,dino --generated

Each recipe runs as a command, with the hfssl of its checkout. The exit status is 1 where anything differs.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image
from safetensors.numpy import load_file


COMMON = {"precision": "fp32", "use_cpu": "true", "report_to": "none", "logging_steps": 1, "eval_strategy": "no"}
TEXT = COMMON | {"vocab_size": 300, "max_length": 32, "per_device_train_batch_size": 8, "learning_rate": 1e-3}
# The initial weights are larger than usual: with small ones all images are nearly the same to so small a ViT.
SMALL_VIT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "initializer_range": 0.1,
}  # fmt: skip
IMAGES = COMMON | {
    "encoder": "vit-mini-patch4", "encoder_config": json.dumps(SMALL_VIT), "image_size": 16, "learning_rate": 1e-3,
    "per_device_train_batch_size": 16, "probe_dataset": "none", "probe_max_samples": 200,
}  # fmt: skip
# With Adam, batch norm over so few images makes rounding grow; bytes resized by the bilinear rule depend on the CPU.
CALM = {"optim": "sgd", "learning_rate": 1e-2, "pooling": "mean", "interpolation": "bicubic"}
METHODS: dict[str, tuple[str, dict]] = {  # name -> recipe and its settings
    "mlm": ("mlm", TEXT | {"encoder": "bert-tiny", "dropout": 0.1, "gradient_accumulation_steps": 2}),
    "mlm_sentence_pairs": ("mlm", TEXT | {"encoder": "bert-tiny", "next_sentence_objective": "true"}),
    "clm": ("clm", TEXT | {"encoder": "gpt2-tiny"}),
    "simclr": ("simclr", IMAGES | CALM | {"gradient_accumulation_steps": 2}),
    "moco": ("moco", IMAGES | CALM | {"queue_size": 40}),
    "byol": ("byol", IMAGES | CALM),
    "simclr_neighbours": ("simclr", IMAGES | CALM | {"nearest_neighbour_queue": 40, "predictor_hidden_dim": 64}),
    "simsiam": ("simsiam", IMAGES | CALM),
    "barlow_twins": ("barlow_twins", IMAGES | CALM | {"projector_hidden_dim": 64, "projector_output_dim": 64}),
    "vicreg": ("vicreg", IMAGES | CALM | {"projector_hidden_dim": 64, "projector_output_dim": 64}),
    "lejepa": ("lejepa", IMAGES | CALM | {"local_crops": 2}),
    "dino": ("dino", IMAGES),
    "dino_small_crops": ("dino", IMAGES | {"local_crops": 2, "centering": "mean"}),
    "swav": ("swav", IMAGES | CALM | {"queue_size": 40, "queue_start": 0.2, "local_crops": 2}),
    "deepcluster": ("deepcluster", IMAGES | CALM | {"num_prototypes": 10, "num_clusterings": 4}),
    "rotnet": ("rotnet", IMAGES | CALM),
    "mae": ("mae", IMAGES | {"interpolation": "bilinear"}),
}


def flags(method: str, output_dir: Path, data: Path | None = None, steps: int = 20) -> list[str]:
    """What its recipe is called with; `data` is a folder of [`write_data`], `None` the embedded data."""
    settings = METHODS[method][1] | {"output_dir": output_dir, "max_steps": steps, "save_steps": steps}
    if data is not None:
        settings["dataset"] = data / ("images" if "image_size" in settings else "texts.txt")
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def write_data(folder: Path) -> None:
    """Small `texts.txt` and `images/`, the same on every machine."""
    draw = np.random.RandomState(0)  # whose numbers NumPy has promised never to change
    words = ["".join(draw.choice(list("aeioubdfgklmnprst"), draw.randint(2, 8))) for _ in range(200)]
    texts = []
    for _ in range(400):
        # the first words are the most frequent ones
        sentences = [" ".join(words[int(200 * draw.rand() ** 3)] for _ in range(8)) for _ in range(draw.randint(2, 6))]
        texts.append(" ".join(f"{sentence.capitalize()}." for sentence in sentences))
    (folder / "texts.txt").write_text("\n".join(texts))
    (folder / "images").mkdir()
    for i in range(120):
        squares = np.kron(draw.randint(0, 256, (6, 6, 3)), np.ones((4, 4, 1)))
        pixels = (squares + draw.randint(-20, 21, squares.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i:03}.png")


def losses(output_dir: Path) -> list[float]:
    """The losses of all steps of a run."""
    [state] = output_dir.glob("checkpoint-*/trainer_state.json")
    return [entry["loss"] for entry in json.loads(state.read_text())["log_history"] if "loss" in entry]


def differences(a: Path, b: Path) -> str:
    """What differs between the weights and the losses of two runs, nothing where all is the same."""
    gaps, count = {}, 0
    for file in ("model.safetensors", "pretraining/model.safetensors"):
        ours, theirs = load_file(a / file), load_file(b / file)
        count += len(ours.keys() | theirs.keys())
        for name in sorted(ours.keys() | theirs.keys()):
            x, y = ours.get(name), theirs.get(name)
            if x is None or y is None or (x.shape, x.dtype) != (y.shape, y.dtype):
                gaps[f"{name} in {file}, of another shape or type or in one of them only,"] = np.inf
            elif x.tobytes() != y.tobytes():
                gaps[f"{name} in {file}"] = np.abs(x.astype(float) - y.astype(float)).max()
    found = [f"{len(gaps)} of {count} tensors differ, most of all"] if gaps else []
    found += [f"  {name} by up to {gaps[name]:.2g}" for name in sorted(gaps, key=gaps.get, reverse=True)[:4]]
    steps = [abs(x - y) for x, y in zip(losses(a), losses(b), strict=True)]
    found += [f"  losses of {np.count_nonzero(steps)} steps by up to {max(steps):.2g}"] if any(steps) else []
    return "\n".join(found)


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A path as it is; a commit in `folder`, for as long as it is needed."""
    if Path(commit).is_dir():
        yield Path(commit).resolve()
        return
    git = ["git", "-C", str(Path(__file__).parent), "worktree"]
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs=2, metavar=("A", "B"), help="commits or folders")
    parser.add_argument("--methods", default=",".join(METHODS), help="some of %(default)s")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--generated", action="store_true", help="train on made-up files, not on the embedded data")
    options = parser.parse_args()
    a, b = options.checkouts
    with TemporaryDirectory() as name, checked_out(a, Path(name, "a")) as a, checked_out(b, Path(name, "b")) as b:
        write_data(folder := Path(name))
        different = False
        environment = {"HF_HOME": name, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads)}
        for method in options.methods.split(","):
            recipe, failed = f"recipes/{METHODS[method][0]}.py", ""
            if not all((checkout / recipe).is_file() for checkout in (a, b)):
                print(f"{method}: left out, no {recipe} in both")
                continue
            for letter, checkout in {"A": a, "B": b}.items():
                words = flags(method, folder / letter / method, folder if options.generated else None, options.steps)
                done = subprocess.run(
                    [sys.executable, recipe, *words], cwd=checkout, capture_output=True, text=True,
                    env=os.environ | environment | {"PYTHONPATH": str(checkout), "MPLBACKEND": "Agg"},
                )  # fmt: skip
                failed += f"failed in {letter}: {done.stderr.strip()[-300:]}" if done.returncode else ""
            found = failed or differences(folder / "A" / method, folder / "B" / method)
            different |= bool(found)
            print(f"{method}: {found or 'identical'}", flush=True)
    return int(different)


if __name__ == "__main__":
    sys.exit(main())
