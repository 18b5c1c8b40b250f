"""Result folders for the tests of what is told of them."""

import json

from PIL import Image

from hfssl.evaluation.results import Result, write_results


FIGURES = {"health_std": 0.4, "health_effective_rank": 20.0, "health_mean_cosine": 0.3}


def history(steps: int = 4) -> list[dict]:
    entries = [{"step": 0, "eval_loss": 3.0, "eval_chance_loss": 3.1, "health_verdict": "untrained", **FIGURES}]
    for step in range(1, steps + 1):
        entries.append({"step": step, "loss": 3.0 - 0.1 * step, "learning_rate": 1e-3, "grad_norm": 2.0})
    entries.append({"step": steps, "eval_loss": 2.25, "eval_chance_loss": 3.1, "eval_knn_accuracy": 0.75})
    entries[-1] |= {"health_verdict": "learning", **FIGURES}
    return entries


def a_run(folder, **changes):
    run = {
        "name": "my-run", "method": "mae", "title": "MAE", "class": "MaeForPreTraining", "modality": "image",
        "paper": {"title": "Masked Autoencoders", "id": "2111.06377", "citation": "@article{mae}"},
        "architecture": ["ViTModel"], "parameters": 1_500_000, "loads": "stock", "usage": None, "pipeline_tag": None,
        "base_model": None, "base_model_is_local": False, "data": "1,234 image files", "license": None, "language": None,
        "seen": {"units": 640, "samples_bad": 3, "samples_empty": 1}, "left_out": 20, "hub_data": [],
        "unit": "images", "passes": {"": 0.5}, "step": 4, "processes": 1, "device": "CPU", "cost": {"seconds": 125.0},
        "command": "python recipes/mae.py --max_steps 4", "commit": "abc123", "versions": {"torch": "2.14"},
        "choices": ["Chosen: --encoder vit-mini-patch4, for 1,234 images."], "changed": ["max_steps", "mask_ratio"],
        "settings": {
            "run": {
                "max_steps": 4, "seed": 42, "weight_decay": 0.05, "learning_rate": 1e-3, "optim": "adamw", "adam_beta1": 0.9,
                "adam_beta2": 0.95, "lr_scheduler_type": "cosine", "warmup_steps": 0.06, "per_device_train_batch_size": 16,
                "gradient_accumulation_steps": 1,
            },
            "method": {"mask_ratio": 0.6}, "data": {"dataset": "my_images"},
        },
        "batch": 16, "precision": "fp32", "loss_units": {}, "contrasted": None, "examples": [],
        "pictures": [["views.png", "Held-out images."]], "history": history(),
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run | changes))
    (folder / "assets").mkdir(exist_ok=True)
    Image.new("RGB", (20, 10), (200, 30, 30)).save(folder / "assets" / "views.png")
    return folder


def a_probe(folder, classes=("cat", "dog"), value=0.875, protocol="linear", **fields):
    told = [
        {"name": classes[0], "rows": 8, "right": 6, "taken_for": {classes[1]: 2}, "baselines": {"random_init": 0.375}}
    ]
    told += [{"name": classes[1], "rows": 8, "right": 8, "taken_for": {}, "baselines": {"random_init": 0.625}}]
    known = {
        "version": 2, "model": "outputs/mae", "task": "pets", "split": "test", "metric": "accuracy", "num_train": 40,
        "num_eval": 16, "hyperparameters": {"pooling": "cls"}, "details": {"classes": told},
    }  # fmt: skip
    baselines = {"random_init": 0.5, "raw_input": 0.5625, "majority": 0.4375}
    write_results(
        folder / "results.json",
        [Result.from_scores({0: value}, baselines, protocol=protocol, **known | fields)],
    )
    return folder
