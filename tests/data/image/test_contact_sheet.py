"""A contact sheet shows what a model gets, beside the images that it was made from."""

import numpy as np
import pytest
import torch
from PIL import Image

from hfssl.data.image.contact_sheet import contact_sheet, views_of
from hfssl.data.image.views import ViewArguments, Views
from hfssl.methods import METHODS


def png(seed, folder):
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / f"{seed}.png")
    return (folder / f"{seed}.png").read_bytes()


@pytest.mark.parametrize("method, columns", [("simclr", 3), ("mae", 3)])
def test_a_column_for_each_view_and_for_what_is_seen_of_it(tmp_path, method, columns):
    images = [png(0, tmp_path), b"damaged", png(1, tmp_path)]
    views = Views(METHODS[method].method.views, ViewArguments(image_size=16), is_grey=False, patch_size=4)
    batch = views_of(images, views)
    assert batch["original"] == [images[0], images[2]] and len(batch["pixel_values"]) == 2
    hidden = None
    if method == "mae":
        hidden = torch.zeros(2, 1, 16, 16, dtype=torch.bool)
        hidden[:, :, :12] = True
    assert contact_sheet(batch, views, tmp_path / "sheet.png", hidden=hidden) == 2
    picture = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    assert picture.shape[1] / picture.shape[0] == pytest.approx(1.4 * columns / (1.5 * 2 + 0.6), rel=0.05)
    seen = picture[:, -picture.shape[1] // columns :]
    grey = (np.abs(seen - 127) <= 2).all(-1).mean()
    assert (grey > 0.3) == (method == "mae")
    assert contact_sheet(batch, views, tmp_path / "one.png", number=1) == 1
