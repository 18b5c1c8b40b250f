"""Features: what a plain `transformers` loop gives, found again on disk by content alone."""

from pathlib import Path

import numpy as np
import pytest
import torch
from labelled import Labelled, digits, png, processor, resnet, save, save_bert, vit
from transformers import AutoImageProcessor, AutoModel, ViTImageProcessor

from hfssl.data.image.decode import decode_image
from hfssl.data.image.value_range import RangeOfSet
from hfssl.evaluation import EvaluationError
from hfssl.evaluation.image import features
from hfssl.evaluation.image.encoder import VisionEncoder
from hfssl.evaluation.image.features import (
    PixelFeatures,
    extract,
    extract_features,
    measured_images,
    normalized,
    preprocess,
    resized_images,
)
from hfssl.modeling.base import evaluating


FP32 = {"precision": "fp32"}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save(vit(), tmp_path_factory.mktemp("vit"))


@pytest.fixture
def passes(monkeypatch):
    """How often images were decoded."""
    seen = []
    decoded = features.decoded
    monkeypatch.setattr(features, "decoded", lambda *args: seen.append(1) or decoded(*args))
    return seen


def plain(folder, images, pooling):
    """What a user would write."""
    model, image_processor = AutoModel.from_pretrained(folder).eval(), AutoImageProcessor.from_pretrained(folder)
    rows = []
    for image in images:
        pixel_values = image_processor(decode_image(image), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            outputs = model(pixel_values, output_hidden_states=True)
        hidden = outputs.last_hidden_state[0]
        if hidden.ndim == 3:
            rows.append(hidden.mean((1, 2)))
        else:
            cls, mean = hidden[0], hidden[1:].mean(0)
            last4 = torch.cat([*(state[0, 0] for state in outputs.hidden_states[-4:-1]), cls])
            rows.append({"cls": cls, "mean": mean, "cls+mean": torch.cat([cls, mean]), "last4": last4}[pooling])
    return torch.stack(rows).numpy()


@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean", "last4"])
def test_equal_those_of_a_plain_loop(encoder, pooling):
    images, _ = digits()
    images = images.take(np.arange(20))
    found = extract_features(encoder, None, images, pooling=pooling, batch_size=7, **FP32)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain(encoder, images.images, pooling), atol=2e-5)


def test_of_a_convolutional_encoder(tmp_path):
    images, _ = digits()
    images = images.take(np.arange(10))
    folder = save(resnet(), tmp_path)
    np.testing.assert_allclose(
        extract_features(folder, None, images, **FP32), plain(folder, images.images, "mean"), atol=2e-5
    )


def test_a_model_as_an_object_is_left_as_it_was(encoder):
    images, _ = digits()
    images = images.take(np.arange(10))
    model = vit(hidden_dropout_prob=0.5).train()
    model.layernorm.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    found = extract_features(model, processor(), images, **FP32)
    np.testing.assert_allclose(found, plain(encoder, images.images, "cls"), atol=2e-5)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert modes["layernorm"] is False and modes[""] is True


def test_are_found_on_disk_again(encoder, tmp_path, passes):
    images, _ = digits()
    first = extract_features(encoder, None, images, cache_dir=tmp_path, **FP32)
    again = extract_features(encoder, None, images, cache_dir=tmp_path, batch_size=11, **FP32)
    assert np.array_equal(first, again)
    assert len(passes) == 1
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_are_made_again_when_anything_that_they_depend_on_changes(encoder, tmp_path, passes):
    images, test = digits()
    images = images.take(np.arange(12))
    model = vit()

    def extracted(model=model, image_processor=None, data=images, **kwargs):
        before = len(passes)
        if not isinstance(model, Path):
            image_processor = image_processor or processor()
        extract_features(model, image_processor, data, cache_dir=tmp_path, **FP32 | kwargs)
        return len(passes) > before

    assert extracted()
    assert not extracted()
    # the same content under another name
    assert not extracted(model=encoder)
    assert extracted(image_processor=ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0, 0, 0]))
    assert extracted(pooling="mean")
    assert extracted(precision="bf16")
    assert extracted(data=test)
    assert extracted(random_init=True)
    assert extracted(random_init=True, seed=1)
    assert not extracted(random_init=True, seed=1)
    assert extracted(model=vit(layer_norm_eps=1e-3))
    with torch.no_grad():
        list(model.parameters())[-1][3] += 1e-3
    assert extracted()


def test_a_damaged_file_is_made_again(encoder, tmp_path, passes, caplog):
    images, _ = digits()
    images = images.take(np.arange(12))
    first = extract_features(encoder, None, images, cache_dir=tmp_path, **FP32)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert np.array_equal(extract_features(encoder, None, images, cache_dir=tmp_path, **FP32), first)
    assert "is damaged" in caplog.text and len(passes) == 2


def test_random_initialisation_depends_on_its_seed_alone(encoder):
    images, _ = digits()
    images = images.take(np.arange(12))
    state = torch.get_rng_state()
    first = extract_features(encoder, None, images, random_init=True, seed=0, **FP32)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert np.array_equal(extract_features(encoder, None, images, random_init=True, seed=0, **FP32), first)
    assert not np.allclose(extract_features(encoder, None, images, random_init=True, seed=1, **FP32), first)
    assert not np.allclose(extract_features(encoder, None, images, **FP32), first)


def test_raw_pixels():
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    images = Labelled([png(grey), png(255 - grey)], [0, 1], ["a", "b"])
    found = extract(images, {"pixels": PixelFeatures(processor(16), images)})["pixels"]
    np.testing.assert_allclose(found, np.stack([grey.ravel(), 255 - grey.ravel()]) / 255, atol=1e-6)
    # no more than the encoder sees
    assert extract(images, {"pixels": PixelFeatures(processor(4), images)})["pixels"].shape == (2, 16)
    large = Labelled([png(np.zeros((70, 50, 3), np.uint8))], [0], ["a"])
    assert extract(large, {"pixels": PixelFeatures(processor(224), large)})["pixels"].shape == (1, 3 * 32 * 32)


def test_resized_then_normalised_is_what_the_processor_makes():
    images, _ = digits()
    decoded = [decode_image(image) for image in images.images[:5]]
    pixels = resized_images(processor(), images.images, rows=range(5))
    assert pixels.dtype == torch.uint8
    torch.testing.assert_close(normalized(processor(), pixels), preprocess(processor(), decoded))


def test_the_range_of_values_is_that_of_the_encoder_or_of_the_set(tmp_path):
    values = np.random.default_rng(0).integers(0, 4096, (6, 8, 8), dtype=np.uint16)
    images = Labelled([png(each) for each in values], [0] * 6, ["a"])
    whole = resized_images(processor(8), images.images)[:, 0].numpy()
    assert np.abs(whole - values / 257).max() <= 1
    known = processor(8)
    known.value_range = [0.0, 2047.0]
    assert np.abs(resized_images(known, images.images)[:, 0].numpy() - 255 / 2047 * values.clip(0, 2047)).max() <= 1
    images.images = Ranged(images.images)
    images.images.value_range = RangeOfSet(images.images)
    assert np.abs(resized_images(processor(8), images.images)[:, 0].numpy() - 255 / 4095 * values).max() <= 1
    known.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).value_range == [0.0, 2047.0]


class Ranged(list):
    """Images that may have a range of values."""


def test_other_image_sizes_than_the_position_embeddings_were_made_for(tmp_path):
    images, _ = digits()
    folder = save(vit(), tmp_path, size=24)
    assert extract_features(folder, None, images.take(np.arange(3)), **FP32).shape == (3, 32)


def test_a_few_damaged_images_are_black_and_named(encoder, caplog):
    images, _ = digits()
    broken = images.take(np.arange(150))
    broken.images[7] = broken.images[7][:30]
    found = extract_features(encoder, None, broken, **FP32)
    assert "1 of the images of digits cannot be decoded" in caplog.text
    black = Labelled([png(np.zeros((32, 32), np.uint8))], [0], ["0"])
    np.testing.assert_allclose(found[7], extract_features(encoder, None, black, **FP32)[0], atol=1e-5)
    with pytest.raises(EvaluationError, match="3 of the 3 images of digits cannot be decoded"):
        extract_features(encoder, None, Labelled([b"no image"] * 3, [0, 1, 1], ["a", "b"]), **FP32)


def test_features_that_are_no_numbers_are_refused():
    model = vit()
    with torch.no_grad():
        model.layernorm.weight.fill_(float("nan"))
    with pytest.raises(EvaluationError, match="no numbers"):
        extract_features(model, processor(), digits()[0].take(np.arange(2)), **FP32)


def test_evaluating_restores_modes_after_an_error():
    model = vit().train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training and not torch.is_grad_enabled()
        raise KeyError
    assert model.training and torch.is_grad_enabled()


def test_encoders_that_cannot_be_probed_are_explained(tmp_path, encoder):
    with pytest.raises(EvaluationError, match="takes `input_ids` and no images"):
        VisionEncoder(save_bert(tmp_path / "bert"))
    with pytest.raises(EvaluationError, match="There is no encoder folder /nowhere/at/all"):
        VisionEncoder("/nowhere/at/all")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EvaluationError, match="it has no config.json"):
        VisionEncoder(tmp_path / "empty")
    vit().save_pretrained(tmp_path / "bare")
    with pytest.raises(EvaluationError, match=r"bare has no image processor.*processor.save_pretrained\(folder\)"):
        VisionEncoder(tmp_path / "bare")
    with pytest.raises(EvaluationError, match="ViTModel given as an object needs its image processor"):
        VisionEncoder(vit())
    with pytest.raises(EvaluationError, match="takes images of 1 channel"):
        VisionEncoder(vit(num_channels=1), processor())
    other = save(vit(hidden_size=48, num_hidden_layers=2), tmp_path / "other")
    config = (encoder / "config.json").read_text()
    (other / "config.json").write_text(config)
    with pytest.raises(EvaluationError, match="Cannot load the encoder|lacks .* of the .* weights"):
        VisionEncoder(other).load()
    with pytest.raises(ValueError, match="There is no pooling 'max'"):
        extract_features(encoder, None, digits()[0].take(np.arange(2)), pooling="max")


def test_damaged_images_that_are_measured_on_are_counted_and_too_many_refused(caplog):
    images = [*digits()[0].images[:20]]
    images[3] = b"no image"
    pixels = measured_images(processor(8), images)
    assert not pixels[3].any() and pixels[4].any()
    assert "1 of the images of those to measure on cannot be decoded, and are black to every encoder" in caplog.text
    images[4] = b"nor this"
    with pytest.raises(EvaluationError, match="2 of the 20 images of those to measure on cannot be decoded"):
        measured_images(processor(8), images)
    assert len(measured_images(processor(8), images, max_bad_fraction=1.0)) == 20
