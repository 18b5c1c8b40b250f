"""`recipes/show_views.py` as a command."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_process import recipe_server


def show(folder, *flags):
    return recipe_server().run(folder, *flags, script="recipes/show_views.py")


def folder_of_images(folder, number=4):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(number):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 5, 3), dtype=np.uint8))
        coarse.resize((50, 60), Image.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.mark.parametrize("method, columns", [("dino", 1 + 2 + 3), ("dinov2", 1 + 2 + 3 + 2), ("mae", 1 + 1 + 1)])
def test_writes_a_sheet(tmp_path, method, columns):
    images, sheet = folder_of_images(tmp_path / "images"), tmp_path / "new" / "sheet.png"
    local = ["--local_crops", 3] if method.startswith("dino") else []
    flags = ["--method", method, "--dataset", images, "--num_images", 2, "--image_size", 48, "--output", sheet, *local]
    flags += ["--encoder", "vit-mini-patch4"]
    run = show(tmp_path / "run", *flags)
    assert run.poll() == 0, run.stderr
    assert f"2 images: {sheet}" in run.stdout and "48 pixels of" in run.stdout
    picture = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(1.4 * columns / (1.5 * 2 + 0.6), rel=0.05)
    # something in each column
    for part in np.array_split(picture, columns, axis=1):
        assert part.std() > 20


def test_the_embedded_images(tmp_path):
    run = show(
        tmp_path / "run",
        "--dataset",
        "digits",
        "--encoder",
        "vit-mini-patch4",
        "--num_images",
        1,
        "--image_size",
        16,
        "--output",
        tmp_path / "sheet.png",
    )
    assert run.poll() == 0, run.stderr
    assert (tmp_path / "sheet.png").is_file()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num_images", 0], "`--num_images` is from 1 to 100"),
        (["--method", "mlm"], "`--method` is one of"),
        (["--local_crops", 3], "--local_crops has no meaning in show_views.py"),
        (["--crop_scale", 0.5, 2], "`--crop_scale`"),
        (["--dataset", "no/such/folder"], "no/such/folder"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, flags, words):
    run = show(tmp_path / "run", *flags)
    assert run.poll() in (1, 2) and words in run.stderr and "Traceback" not in run.stderr, run.stderr


CAUGHT = """
import hfssl.training.trainer, hfssl.data.image.contact_sheet as sheets, pickle

class Caught(BaseException):
    pass

def keep(batch):
    tensors = {{name: values for name, values in batch.items() if hasattr(values, "shape")}}
    pickle.dump(tensors, open({path!r}, "wb"))
    raise SystemExit(0)

hfssl.training.trainer.SSLTrainer.training_step = lambda self, model, inputs, *args, **kwargs: keep(inputs)
sheets.contact_sheet = lambda batch, *args, **kwargs: keep(batch)
"""


@pytest.mark.parametrize(
    "method, own",
    [
        ("simclr", ["--jitter", 0.2, 0.2, 0.1, 0, "--seed", 7]),
        ("dino", ["--local_crops", 2, "--local_size", 8]),
        ("mae", ["--mask_ratio", 0.6, "--normalization", "dataset"]),
        ("moco", None),
    ],
)
def test_it_shows_the_first_batch_of_the_run(tmp_path, method, own):
    """Of any data: also of those that come with hfssl (`None`), whose views have defaults of their own."""
    flags = ["--encoder", "vit-mini-patch4", "--encoder_config", '{"num_hidden_layers": 1}', "--probe_dataset", "none", "--max_steps", 1,
             "--use_cpu", "--output_dir", tmp_path / "out"]  # fmt: skip
    if own is not None:
        images = folder_of_images(tmp_path / "images", 30)
        flags += ["--dataset", images, "--per_device_train_batch_size", 8, "--image_size", 24, *own]
    batches = {}
    for recipe, more in ((method, []), ("show_views", ["--method", method])):
        path = tmp_path / f"{recipe}.pickle"
        before = CAUGHT.format(path=str(path))
        done = recipe_server().run(
            tmp_path / recipe, *more, *flags, script=f"recipes/{recipe}.py", before=before
        )  # fmt: skip
        assert done.poll() == 0 and path.is_file(), done.stderr
        batches[recipe] = pickle.loads(path.read_bytes())
    run, shown = batches.values()
    assert run.keys() == shown.keys() and {"pixel_values"} <= run.keys()
    for name in run:
        assert torch.equal(run[name].cpu(), shown[name].cpu()), name


def test_what_mae_sees_is_shown(tmp_path):
    images, sheet = folder_of_images(tmp_path / "images"), tmp_path / "sheet.png"
    run = show(tmp_path / "run", "--method", "mae", "--dataset", images, "--mask_ratio", 0.5, "--output", sheet)
    assert run.poll() == 0 and "32 pixels of" in run.stdout, run.stderr
    picture = np.asarray(Image.open(sheet).convert("RGB")).astype(int)
    seen = picture[:, -picture.shape[1] // 3 :]
    assert (np.abs(seen - 127) <= 2).all(-1).mean() > 0.25
