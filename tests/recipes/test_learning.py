"""Runs on the embedded digits that end with an encoder which knows more than it did: its neighbours have its class."""

import json

import pytest
from image_recipes import run


SMALL = {"hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192}


def learned(method, folder, **settings):
    """k-NN accuracy of the encoder and of its random initialisation, and the held-out loss over that of the start."""
    settings = {
        "encoder_config": json.dumps(SMALL),
        "dataset": "digits",
        "probe_dataset": None,
        "eval_steps": 1000,
        **settings,
    }
    done = run(method, folder, save_strategy="no", save_steps=None, **settings)
    assert done.poll() == 0, done.stderr
    records = json.loads((folder / "out" / "results.json").read_text())
    knn = next(r for r in records if r["protocol"] == "knn" and r["hyperparameters"]["k"] == 20)
    loss = next(r for r in records if r["protocol"] == "held_out_loss")
    return knn["value"], knn["baselines"]["random_init"], loss["value"] / loss["baselines"]["before"]


@pytest.mark.slow
@pytest.mark.parametrize("method, max_steps, most_loss", [
    ("simclr", 100, 0.8),  # at its temperature of 0.2 the loss of found pairs is not near 0
    ("mae", 250, 0.6),
])  # fmt: skip
def test_neighbours_have_the_same_class(tmp_path, method, max_steps, most_loss):
    trained, untrained, loss = learned(method, tmp_path, max_steps=max_steps, per_device_train_batch_size=128)
    assert trained > untrained + 0.2
    assert loss < most_loss


@pytest.mark.slow
@pytest.mark.parametrize("method", ["moco", "byol", "dino"])
def test_with_a_teacher_too(tmp_path, method):
    """Of these the loss says little: the targets move."""
    trained, untrained, _ = learned(method, tmp_path, max_steps=150, per_device_train_batch_size=128)
    assert trained > untrained + 0.1
