"""What the tests of the image recipes share."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from recipe_process import recipe_server
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

import hfssl.methods  # noqa: F401 - what the result folders hold is registered
from hfssl.modeling.pooling import check_pooling, is_convolutional
from hfssl.modeling.vision import image_features


TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}


@cache
def few_images() -> tempfile.TemporaryDirectory:
    """A folder of small grey images without labels: none of the time that probes of the embedded digits take."""
    folder = tempfile.TemporaryDirectory(prefix="hfssl-few-images-")
    for i in range(120):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 12), dtype=np.uint8)
        Image.fromarray(pixels).save(Path(folder.name) / f"{i}.png")
    return folder


def flags(**settings) -> list:
    """The words of a small run. `None` leaves a flag out: with `dataset=None` it is that of the embedded digits."""
    settings = {
        "dataset": few_images().name, "image_size": 16,
        "encoder": "vit-mini-patch4", "encoder_config": json.dumps(TINY), "max_steps": 6, "save_steps": 3,
        "per_device_train_batch_size": 16, "report_to": "none", "precision": "fp32", "eval_steps": 3,
        "probe_dataset": "none", **settings,
    }  # fmt: skip
    return [word for name, value in settings.items() if value is not None for word in (f"--{name}", value)]


def run(method: str, folder: Path, drawn: bool = True, **settings):
    settings = {"output_dir": folder / "out", **settings}
    return recipe_server().run(folder, *flags(**settings), script=f"recipes/{method}.py", drawn=drawn)


def the_error(done) -> str:
    """The one sentence of a run that could not be."""
    assert done.poll() not in (0, None) and "Traceback" not in done.stderr, done.stderr
    [error] = [line for line in done.stderr.splitlines() if "error: " in line]
    return error.split("error: ", 1)[1]


def check_result(folder: Path, size: int = 16) -> list[dict]:
    """A whole result folder, which plain transformers loads; returns the records of results.json."""
    there = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "results.json"} <= there
    assert {"pretraining", "assets"} <= there and not (folder / ".staging").exists()
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(torch.zeros(3, 8, 8, dtype=torch.uint8), return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, size, size)
    encoder = AutoModel.from_pretrained(folder)
    assert type(encoder).__module__.startswith("transformers.")
    assert encoder(pixels).last_hidden_state.isfinite().all()
    assert AutoModelForImageClassification.from_pretrained(folder, num_labels=3)(pixels).logits.shape == (1, 3)
    method = AutoModelForPreTraining.from_pretrained(folder, subfolder="pretraining")
    stock = encoder.state_dict()
    for name, tensor in method.encoder.state_dict().items():
        assert torch.equal(tensor, stock[name]), name
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-feature-extraction" in card and "images in" in card
    check_snippet(card, folder, encoder, processor)
    for picture in (folder / "assets").iterdir():
        assert f"](assets/{picture.name})" in card
    return json.loads((folder / "results.json").read_text())


def check_snippet(card: str, folder: Path, encoder, processor) -> None:
    """The Python of the card makes the feature that was measured, as it stands."""
    code = card.split("```python\n")[1].split("```")[0].replace(f'"{folder.name}"', repr(str(folder)))
    image = Image.fromarray(torch.randint(0, 255, (20, 20, 3), dtype=torch.uint8).numpy())
    scope = {"image": image}
    exec(code, scope)
    pooling = json.loads((folder / "hfssl.json").read_text())["pooling"]
    with torch.no_grad():
        pixels = processor(image, return_tensors="pt").pixel_values
        expected = image_features(encoder.eval(), pixels, check_pooling(encoder.config, pooling))
    torch.testing.assert_close(scope["feature"].detach(), expected)
    assert ("its weights are drawn at random" in code) == (not is_convolutional(encoder.config))


STOP = """
from hfssl.training.callbacks import StopOnSignal
import os, signal
def on_step_begin(self, args, state, control, **kwargs):
    if state.global_step == {step}:
        os.kill(os.getpid(), signal.{signal})
StopOnSignal.on_step_begin = on_step_begin
"""


def stopped_and_continued(method: str, folder: Path, number: str = "SIGTERM", **settings) -> None:
    """A run that is stopped and continued ends with the weights of one that is not, to the bit."""
    whole = run(method, folder / "whole", drawn=False, **settings)
    assert whole.poll() == 0, whole.stderr
    out = folder / "parts" / "out"
    words = flags(output_dir=out, **settings)
    before = STOP.format(step=4, signal=number)
    first = recipe_server().run(folder / "parts", *words, script=f"recipes/{method}.py", before=before)
    assert first.poll() in (143, -9), first.stderr
    assert not (out / "config.json").exists() and list(out.glob("checkpoint-*"))
    second = recipe_server().run(folder / "again", *words, script=f"recipes/{method}.py")
    assert second.poll() == 0 and "Continuing from" in second.stderr, second.stderr
    for name in ("model.safetensors", "pretraining/model.safetensors", "checkpoint-6/optimizer.pt"):
        assert (out / name).read_bytes() == (folder / "whole" / "out" / name).read_bytes(), name
