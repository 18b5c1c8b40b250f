"""The protocols that look at patches: segmentation, correspondence and the attentive probe."""

import io

import numpy as np
import pytest
import torch
from labelled import Labelled, digits, png, processor, resnet, vit
from PIL import Image
from tiny_vision import build
from transformers import AutoModel, TimmWrapperConfig, ViTImageProcessor

from hfssl.data.image.arrays import encoded_array
from hfssl.data.image.masks import IGNORED
from hfssl.data.labelled import HeldSamples, LabelledData
from hfssl.evaluation.evaluator import EvaluationError
from hfssl.evaluation.image.attentive import AttentiveEvaluator, _mean_and_deviation, fit_attentive
from hfssl.evaluation.image.features import processed_size
from hfssl.evaluation.image.patch_evaluator import PatchMaps
from hfssl.evaluation.image.patch_features import patch_features, raw_patches
from hfssl.evaluation.image.patches import PatchesEvaluator, true_patches
from hfssl.evaluation.image.pictures import otsu_threshold
from hfssl.evaluation.image.segmentation import Confusion, patch_counts, upsampled


def test_counts_of_a_patch():
    mask = np.array([[0, 0, 1, 1], [0, 2, 1, 255], [2, 2, 0, 0], [2, 2, 0, 0]])
    expected = [[3, 0, 1], [0, 3, 0], [0, 0, 4], [4, 0, 0]]
    assert patch_counts(mask, 2, 2, 3, IGNORED).tolist() == expected
    # of sizes that are no multiple of the grid each pixel lies in one patch
    assert patch_counts(np.ones((5, 7), np.int64), 2, 3, 2, IGNORED).sum() == 35


def test_intersection_over_union():
    confusion = Confusion(4, IGNORED)
    confusion.add(np.array([[0, 0, 1, 3]]), np.array([[0, 1, 1, 255]]))
    confusion.add(np.array([[0, 1]]), np.array([[0, 0]]))
    # class 0: 2 of 4, class 1: 1 of 3; no mask has the others
    np.testing.assert_allclose(confusion.iou(), [2 / 4, 1 / 3, np.nan, np.nan])
    assert confusion.scores() == {"miou": pytest.approx((1 / 2 + 1 / 3) / 2), "pixel_accuracy": 3 / 5}


def test_scores_are_interpolated_before_a_class_is_taken():
    scores = np.array([[[1.0, 0.0], [0.0, 2.0]]])  # one row of two patches
    assert upsampled(scores, (2, 8))[0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


def test_where_the_patches_of_a_crop_truly_are():
    whole = true_patches((0, 0, 16), 16, (4, 4))
    assert whole.shape == (16, 16) and whole[0].nonzero()[:, 0].tolist() == [0, 1, 4, 5]
    # the lower right quarter: its first patch has its middle at (9, 9), 2.25 patches across and down
    quarter = true_patches((8, 8, 8), 16, (4, 4))
    assert quarter[0].nonzero()[:, 0].tolist() == [5, 6, 9, 10]
    assert quarter[-1].nonzero()[:, 0].tolist() == [15]  # 3.75 patches across and down


@pytest.mark.parametrize("name, own", [("dinov2_with_registers", 3), ("dinov3_vit", 3), ("vit", 1), ("ijepa", 0)])
def test_patches_are_those_behind_cls_and_registers(name, own):
    model = build(name).eval()
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        found, hidden = patch_features(model, images), model(images).last_hidden_state
    assert found.shape == (2, 4, 4, 32)
    torch.testing.assert_close(found.flatten(1, 2), hidden[:, own:])


@pytest.mark.parametrize("name", ["resnet", "convnextv2", "swin"])
def test_maps_and_merged_patches_are_grids(name):
    model = build(name).eval()
    with torch.no_grad():
        found = patch_features(model, torch.rand(2, 3, 32, 32))
    assert found.ndim == 4 and found.shape[1] == found.shape[2]


def test_raw_patches_are_pixels_in_their_places():
    images = torch.arange(3 * 64).reshape(1, 3, 8, 8).to(torch.uint8)
    found = raw_patches(images, 2, 2)
    assert found.shape == (1, 2, 2, 48)
    torch.testing.assert_close(found[0, 1, 0], images[0, :, 4:, :4].flatten() / 255)


def test_a_threshold_between_two_groups():
    values = np.concatenate([np.random.default_rng(0).normal(0, 0.1, 90), np.random.default_rng(1).normal(3, 0.1, 30)])
    assert 0.4 < otsu_threshold(values) < 2.6


def halves(number, seed=0):
    """Pictures of which a part is striped, elsewhere dotted, and masks that say where; some pixels are ignored."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(number):
        cut = 4 * int(rng.integers(1, 4))
        pixels, mask = np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)
        pixels[::2, :cut], mask[:, cut:] = 255, 1
        pixels[::2, cut::2] = 255
        pixels = np.clip(pixels.astype(int) * 0.8 + rng.integers(0, 40, (16, 16)), 0, 255).astype(np.uint8)
        mask[0, 0] = IGNORED
        images.append(png(pixels))
        masks.append(png(mask))
    labels = np.ones((number, 2), np.int64)
    data = LabelledData(HeldSamples(images), labels, ["stripes", "dots"], str(seed), f"halves ({seed})")
    data.masks = HeldSamples(masks)
    return data


@pytest.mark.parametrize("model", [vit, resnet], ids=["vit", "resnet"])
def test_textures_are_told_apart(model, tmp_path):
    size = 16 if model is vit else 64
    evaluator = PatchesEvaluator(halves(24), halves(8, 1), image_size=size, batch_size=5, max_patches=300)
    results = evaluator(model(), processor(), output_dir=tmp_path)
    assert [(each.hyperparameters["probe"], each.metric) for each in results] == [
        ("linear", "miou"), ("linear", "pixel_accuracy"), ("k-NN", "miou"), ("k-NN", "pixel_accuracy"),
        ("correspondence", "correspondence"),
    ]  # fmt: skip
    linear, _, knn, accuracy, found = results
    for each in (linear, knn):
        assert set(each.baselines) == {"random_init", "raw_input", "majority"} and set(each.details["iou"]) == {
            "stripes", "dots"
        }  # fmt: skip
        assert each.value == pytest.approx(np.mean(list(each.details["iou"].values())), abs=1e-3)
    assert linear.details["train_patches"] <= 300 and linear.num_train == 24 and linear.num_eval == 8
    # pixels of a patch give the texture away, and one answer for all of them has half of one class and none of the other
    assert accuracy.baselines["raw_input"] > 0.85 and knn.baselines["majority"] < 0.4
    assert set(found.baselines) == {"random_init", "raw_input", "chance"} and 0 < found.baselines["chance"] < 1
    for name in ("segmentation.png", "patch_components.png"):
        assert Image.open(tmp_path / "assets" / name).size[0] > 300


def in_channels(data, number):
    """The same images with so many channels, all alike."""
    arrays = [np.repeat(np.asarray(Image.open(io.BytesIO(image)))[None], number, axis=0) for image in data.images]
    made = LabelledData(
        HeldSamples([encoded_array(each) for each in arrays]), data.labels, data.class_names, "4", "four"
    )
    made.masks = getattr(data, "masks", None)
    return made


def four_channels():
    return vit(num_channels=4), ViTImageProcessor(
        size={"height": 16, "width": 16}, image_mean=[0.5] * 4, image_std=[0.5] * 4
    )


def of_timm():
    pytest.importorskip("timm")
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture="test_vit", model_args={"img_size": 32, "patch_size": 8})
    return AutoModel.from_config(config), processor(32)


@pytest.mark.parametrize("make", [four_channels, of_timm])
def test_patches_of_encoders_of_other_channels_and_of_timm(make):
    encoder, own = make()
    masked, (train, test) = (halves(12), halves(6, 1)), (each.take(np.arange(40)) for each in digits())
    if make is four_channels:
        masked, train, test = [in_channels(each, 4) for each in masked], in_channels(train, 4), in_channels(test, 4)
    results = PatchesEvaluator(*masked, max_patches=100)(encoder, own)
    results += AttentiveEvaluator(train, test, seeds=(0,), epochs=1, min_steps=2)(encoder, own)
    assert {each.metric for each in results} >= {"miou", "correspondence", "accuracy"}
    assert all(0.0 <= each.value <= 1.0 for each in results) and results[0].hyperparameters["grid"] == [4, 4]


def test_another_encoder_stands_beside_by_its_own_figures(tmp_path):
    encoder, other = vit(), vit(seed=3)
    options = {"image_size": 16, "max_patches": 300}
    data = halves(24), halves(8, 1)
    alone = {model: PatchesEvaluator(*data, **options)(model, processor()) for model in (encoder, other)}
    both = PatchesEvaluator(*data, beside={"dino": other}, **options)(encoder, processor())
    assert len(both) == 5
    for found, of_encoder, of_other in zip(both, alone[encoder], alone[other], strict=True):
        assert found.value == of_encoder.value and found.baselines["dino"] == of_other.value
        assert found.baselines | of_encoder.baselines == found.baselines
    attentive = {"seeds": (0,), "epochs": 1, "min_steps": 20}
    train, test = (each.take(np.arange(60)) for each in digits())
    found = AttentiveEvaluator(train, test, beside={"dino": other}, **attentive)(encoder, processor())
    expected = AttentiveEvaluator(train, test, **attentive)(other, processor())
    assert [each.baselines["dino"] for each in found] == [each.value for each in expected]


def test_what_stands_beside_has_the_same_grid_and_channels():
    evaluator = PatchesEvaluator(halves(4), halves(4, 1), beside={"resnet": resnet()}, image_size=64)
    with pytest.raises(EvaluationError, match="resnet has . × . patches, and the encoder 16 × 16: probe each by"):
        evaluator(vit(), processor())


def test_of_larger_images_fewer_are_seen_at_once(monkeypatch):
    seen = []
    maps = PatchMaps.maps
    monkeypatch.setattr(PatchMaps, "maps", lambda self, images: seen.append(images.shape[0]) or maps(self, images))
    size = processed_size(processor())["height"]
    for pixels, number in ((size, 8), (2 * size, 2)):
        seen.clear()
        PatchesEvaluator(halves(24), halves(8, 1), image_size=pixels, batch_size=8, max_patches=300)(
            vit(), processor()
        )
        assert max(seen) == number


def test_masks_are_needed():
    train, test = digits()
    bare = LabelledData(HeldSamples(train.images), train.labels, train.class_names, "", "digits")
    with pytest.raises(EvaluationError, match="needs masks, and digits has none"):
        PatchesEvaluator(bare, bare)
    one = halves(2)
    one.labels = np.array([[1, 0], [1, 0]])
    with pytest.raises(EvaluationError, match="one class or none.*values are 0 and 1; 255 counts nowhere"):
        PatchesEvaluator(one, halves(2))
    assert PatchesEvaluator(halves(2), one).num_classes == 2  # a few to measure on may show one


def test_an_image_size_that_an_encoder_does_not_take_is_named():
    evaluator = PatchesEvaluator(halves(4), halves(4, 1), image_size=2)
    with pytest.raises(EvaluationError, match="2 × 2 pixels.*--patch_image_size"):
        evaluator(vit(), processor())


def test_a_query_finds_the_patch_that_tells_the_class():
    """What the mean of patches hides: one of many says the class, the others are louder."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = rng.normal(size=(400, 16, 8)).astype(np.float32)
    at = rng.integers(0, 16, 400)
    x[np.arange(400), at, 0] = 6.0  # a sign that this is the one
    x[np.arange(400), at, 1] = np.where(y == 1, 3.0, -3.0)
    x[:, :, 2:] *= 5
    patches = torch.from_numpy(x).half()
    logits = fit_attentive(patches[:300], y[:300], 2, seed=0, epochs=1, min_steps=300)(patches[300:])
    assert (logits.argmax(1) == y[300:]).mean() > 0.95


def test_the_attentive_probe_keeps_no_features_of_test(monkeypatch):
    """Its logits are those of all of test at once, whatever comes in a batch."""
    seen = []
    maps = PatchMaps.maps
    monkeypatch.setattr(PatchMaps, "maps", lambda self, images: seen.append(len(images)) or maps(self, images))
    train, test = (each.take(np.arange(60)) for each in digits())
    options = {"seeds": (0,), "epochs": 1, "min_steps": 20}
    found = [
        AttentiveEvaluator(train, test, batch_size=size, **options)(vit(), processor())[0].value for size in (60, 7)
    ]
    assert found[0] == pytest.approx(found[1]) and max(seen) == 60 and seen.count(7) == 16
    x = torch.randn(300, 5, 8).half() * 3 + 2
    flat = x.flatten(0, 1).float()
    mean, deviation = _mean_and_deviation(x)
    torch.testing.assert_close(mean, flat.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(deviation, flat.std(0, correction=0), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("several", [False, True])
def test_attentive_probe_of_images(several):
    train, test = (each.take(np.arange(100)) for each in digits())
    if several:
        train, test = (
            Labelled(each.images, np.stack([each.labels % 2, each.labels > 4], 1), ["odd", "large"])
            for each in (train, test)
        )
    evaluator = AttentiveEvaluator(train, test, seeds=(0,), epochs=1, min_steps=300)
    results = evaluator(vit(), processor())
    metrics = {each.metric: each for each in results}
    first = metrics["auroc" if several else "accuracy"]
    assert first.seeds == [0] and set(first.baselines) == {"random_init", "raw_input", "majority"}
    assert first.baselines["raw_input"] > (0.75 if several else 0.4)
    assert first.hyperparameters["patches"] == 16 and first.num_train == 100
