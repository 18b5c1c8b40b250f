"""What is told of an encoder's images beyond the ordinary: by the processor beside it, and by the Python of its card."""

import io

import numpy as np
import pytest
import tiny_vision
from transformers import AutoImageProcessor

from hfssl import SimclrForPreTraining
from hfssl.cli.image.finish import _usage
from hfssl.cli.image.trained_input import check_input, trained_colors
from hfssl.data.image.decode import decode_image
from hfssl.data.image.views import ViewArguments, Views
from hfssl.errors import UserError


def views(channels=3, colors=None, value_range=None, **arguments):
    mean_std = None if channels == 3 else ([0.4] * channels, [0.3] * channels)
    return Views(
        SimclrForPreTraining.method.views, ViewArguments(image_size=16, colour_channels=colors, **arguments),
        is_grey=False, mean_std=mean_std, num_channels=channels, value_range=value_range,
    )  # fmt: skip


@pytest.mark.parametrize(
    "channels, colors, value_range",
    [
        (3, None, (0.0, 4095.0)),
        (3, [2, 1, 0], (10.0, 900.0, 0.0, 4095.0, 7.0, 70.0)),
        (1, None, (100.0, 4095.0)),
        (4, [2, 1, 0], (0.0, 4095.0) * 4),
    ],
)
def test_the_card_makes_of_values_what_training_made_of_them(tmp_path, channels, colors, value_range):
    made = views(channels, colors, value_range)
    tiny_vision.build("vit").save_pretrained(tmp_path / "rgb")
    model = SimclrForPreTraining.from_encoder(tmp_path / "rgb", num_channels=channels).eval()
    model.export_encoder(tmp_path / "out", processor=made.image_processor())
    values = np.random.default_rng(0).integers(0, 5000, (channels, 16, 16), dtype=np.uint16)
    file = io.BytesIO()
    np.save(file, values)
    as_trained = decode_image(file.getvalue(), 1, value_range, channels)
    names = {"values": values if channels == 4 else values[0] if channels == 1 else np.moveaxis(values, 0, -1)}
    code = _usage(model, str(tmp_path / "out"), made, "cls")
    exec(code, names)
    image = np.asarray(names["image"]).reshape((16, 16, 3) if channels == 3 else (channels, 16, 16))
    assert np.array_equal(np.moveaxis(image, -1, 0) if channels == 3 else image, as_trained)
    assert names["feature"].shape == (1, 32)
    assert ("channels 2, 1, 0 are red, green and blue" in code) == (colors is not None)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert tuple(processor.value_range) == value_range
    assert trained_colors(str(tmp_path / "out")) == colors


def test_a_checkpoint_of_other_images_is_refused_where_it_is_taken_as_it_is(tmp_path, caplog):
    folder = str(tmp_path)
    tiny_vision.build("vit").save_pretrained(folder)
    views(3, [2, 1, 0]).image_processor().save_pretrained(folder)
    check_input(folder, views(3, [2, 1, 0]), "--gram_teacher")
    with pytest.raises(UserError, match=f"gram_teacher {folder}` takes images of 3 channels, and these have 4"):
        check_input(folder, views(4), "--gram_teacher")
    with pytest.raises(UserError, match="in the channels 2 1 0, and these images in 0 1 2.*--colour_channels 2 1 0"):
        check_input(folder, views(3), "--gram_teacher")
    assert not caplog.text
    check_input(folder, views(3, [2, 1, 0], normalization="half"), "--gram_teacher")
    assert "normalised otherwise (mean 0.485 0.456 0.406" in caplog.text
    # for whoever loads it to say
    check_input(str(tmp_path / "nothing"), views(4), "--gram_teacher")
