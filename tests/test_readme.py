"""The Python of README.md runs as it stands there, on small data."""

import re
from pathlib import Path

import numpy as np
from PIL import Image


README = Path(__file__).parents[1] / "README.md"


def block_with(words: str) -> str:
    """The Python of README.md in which these words stand."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    return next(block for block in blocks if words in block)


def test_images(tmp_path, monkeypatch):
    code = block_with("SimclrForPreTraining(")
    monkeypatch.chdir(tmp_path)
    for c, folder in enumerate(("my_images", "my_labelled_images/cats", "my_labelled_images/dogs")):
        Path(folder).mkdir(parents=True)
        for i in range(20):
            pixels = np.random.default_rng((c, i)).integers(0, 128 + 60 * c, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(f"{folder}/{i}.png")
    settings = "max_steps=2, use_cpu=True, report_to='none', save_strategy='no', disable_tqdm=True"
    code, number = re.subn(
        r"max_steps=\d+, per_device_train_batch_size=\d+", f"{settings}, per_device_train_batch_size=8", code
    )
    assert number == 1
    names = {"__name__": "example"}
    exec(code, names)
    assert names["probe"].metric == "accuracy" and {"random_init", "raw_input"} <= set(names["probe"].baselines)
    assert names["feature"].shape == (1, 128)
