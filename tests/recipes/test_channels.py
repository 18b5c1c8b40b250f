"""Images of other channels through the real commands: what is exported takes them, and so do probes and fine-tuning."""

import json

import numpy as np
import pytest
import torch
from image_recipes import run, the_error
from recipe_process import recipe_server
from tiny_vision import build
from transformers import AutoImageProcessor, AutoModel


def write(folder, channels=4, number=24, dtype="u2"):
    """Arrays of two classes, of which one is brighter in the last channel."""
    for label in range(2):
        (folder / f"class {label}").mkdir(parents=True)
        for i in range(number):
            values = np.random.default_rng((label, i)).uniform(0, 4095, (channels, 12, 14))
            values[-1] *= 0.2 + 0.8 * label
            np.save(folder / f"class {label}" / f"{i}.npy", values.astype(dtype))
    return folder


def test_arrays_of_four_channels_from_a_checkpoint_of_three(tmp_path):
    build("dinov2").save_pretrained(tmp_path / "rgb")
    data = write(tmp_path / "data")
    done = run(
        "dinov2", tmp_path, encoder=tmp_path / "rgb", encoder_config=None, dataset=data, probe_dataset=data, max_steps=2,
        save_steps=1, colour_channels=[2, 1, 0], pooling="cls", projector_batch_norm=False,
    )  # fmt: skip
    assert done.poll() == 0, done.stderr
    assert "(channel 4) nearly all lie in" in done.stderr
    assert "In the first 1 of 2 steps only the heads learn." in done.stderr
    encoder, processor = (kind.from_pretrained(tmp_path / "out") for kind in (AutoModel, AutoImageProcessor))
    assert encoder.config.num_channels == 4 and len(processor.image_mean) == len(processor.image_std) == 4
    assert processor.value_range == [0.0, 4095.0] * 4
    image = torch.randint(0, 256, (4, 20, 20), dtype=torch.uint8)
    pixels = processor(image, return_tensors="pt", input_data_format="channels_first").pixel_values
    assert encoder(pixels).last_hidden_state.shape == (1, 17, 32)
    records = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {record["protocol"] for record in records} >= {"knn", "linear"}
    assert 'input_data_format="channels_first"' in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method, encoder", [("simclr", "resnet-mini"), ("mae", "vit-mini-patch4"), ("dino", None)])
def test_what_is_trained_on_other_channels_is_probed_and_tuned_and_continued(tmp_path, method, encoder):
    data = write(tmp_path / "data", channels=10)
    options = {} if encoder != "resnet-mini" else {"encoder": encoder, "encoder_config": None}
    done = run(
        method, tmp_path / "a", dataset=data, max_steps=1, save_steps=1, probe_dataset=data, image_size=32, **options
    )
    assert done.poll() == 0, done.stderr
    folder = tmp_path / "a" / "out"
    again = run(
        method, tmp_path / "b", encoder=folder, encoder_config=None, dataset=data, max_steps=1, image_size=32, **(
            {"projector_batch_norm": False} if method == "dino" else {}
        ),
    )  # fmt: skip
    assert again.poll() == 0, again.stderr
    common = ["--encoder", folder, "--dataset", data]
    for script, options in {
        "probe": ["--protocol", "knn"],
        "embed": ["--output_dir", tmp_path / "features"],
        "finetune": ["--epochs", 1, "--seeds", 1, "--output_dir", tmp_path / "tuned"],
    }.items():
        done = recipe_server().run(tmp_path / script, *common, *options, script=f"recipes/{script}.py")
        assert done.poll() == 0, done.stderr


def test_what_does_not_fit_is_said_before_training(tmp_path):
    data = write(tmp_path / "mixed", number=4)
    np.save(data / "class 0" / "other.npy", np.zeros((5, 12, 12), "u1"))
    error = the_error(run("simclr", tmp_path, dataset=data))
    assert "8 of 4 channels (such as " in error and "1 of 5 channels (such as " in error
    assert "Pass `--num_channels 4`, which leaves out the others as damaged" in error
