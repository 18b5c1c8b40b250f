"""`recipes/show_views.py` as a command."""

import numpy as np
import pytest
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


@pytest.mark.parametrize("method, columns", [("dino", 1 + 2 + 3), ("mae", 1 + 1)])
def test_writes_a_sheet(tmp_path, method, columns):
    images, sheet = folder_of_images(tmp_path / "images"), tmp_path / "new" / "sheet.png"
    local = ["--local_crops", 3] if method == "dino" else []
    flags = ["--method", method, "--dataset", images, "--num_images", 2, "--image_size", 48, "--output", sheet, *local]
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
        "--num_images",
        1,
        "--image_size",
        16,
        "--output",
        tmp_path / "sheet.png",
    )
    assert run.poll() == 0, run.stderr
    assert (tmp_path / "sheet.png").is_file()
    assert "greyscale" in run.stderr


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--num_images", 0], "`--num_images` is from 1 to 100"),
        (["--local_crops", 3], "`--local_crops` is for methods with local views"),
        (["--crop_scale", 0.5, 2], "`--crop_scale`"),
        (["--dataset", "no/such/folder"], "no/such/folder"),
    ],
)
def test_mistakes_end_in_one_sentence(tmp_path, flags, words):
    run = show(tmp_path / "run", *flags)
    assert run.poll() in (1, 2) and words in run.stderr and "Traceback" not in run.stderr, run.stderr
