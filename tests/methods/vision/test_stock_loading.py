"""What image methods export loads where there is no hfssl, and says the same there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_process import printed_without_hfssl
from tiny_vision import ENCODERS

from hfssl import ByolForPreTraining, DinoForPreTraining, MaeForPreTraining, MocoForPreTraining, SimclrForPreTraining
from hfssl.modeling.image_processing import build_image_processor


METHODS = {
    "simclr": SimclrForPreTraining,
    "moco": MocoForPreTraining,
    "byol": ByolForPreTraining,
    "dino": DinoForPreTraining,
    "mae": MaeForPreTraining,
}
PAIRS = [
    (method, encoder)
    for method in METHODS
    for encoder in ("vit", "convnextv2")
    if (method, encoder) != ("mae", "convnextv2")
]

STOCK = """
import json, sys
sys.modules["hfssl"] = None  # importing it fails, as where it is not installed
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

image, said = Image.open(sys.argv[1]), {}
for folder in sys.argv[2:]:
    processor = AutoImageProcessor.from_pretrained(folder)
    pixels = processor(image, return_tensors="pt")
    encoder, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    classifier, of_classifier = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, output_loading_info=True
    )
    said[folder] = {
        "architecture": type(encoder).__name__,
        "features": encoder(**pixels).last_hidden_state.flatten().tolist(),
        "missing": sorted(info["missing_keys"]),
        "unexpected": sorted(info["unexpected_keys"] | of_classifier["unexpected_keys"]),
        "missing_in_classifier": sorted(of_classifier["missing_keys"]),
        "logits": list(classifier(**pixels).logits.shape),
        "ours": sorted(name for name in sys.modules if name.startswith("hfssl") and sys.modules[name]),
    }
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """The folders, the features that the encoders gave before they were exported, and what a stock process says."""
    root = tmp_path_factory.mktemp("exports")
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    picture.save(root / "picture.png")
    processor = build_image_processor(16)
    pixels = processor(picture, return_tensors="pt").pixel_values
    features = {}
    for method, encoder in PAIRS:
        folder = root / f"{method}-{encoder}"
        torch.manual_seed(1)
        model = METHODS[method](METHODS[method].config_class(encoder_config=ENCODERS[encoder]())).eval()
        model.export_encoder(folder)
        processor.save_pretrained(folder)
        with torch.no_grad():
            features[method, encoder] = model.encoder(pixels).last_hidden_state
    folders = [str(root / f"{method}-{encoder}") for method, encoder in PAIRS]
    said = json.loads(printed_without_hfssl(root, STOCK, root / "picture.png", *folders).splitlines()[-1])
    return {pair: (features[pair], said[folder]) for pair, folder in zip(PAIRS, folders, strict=True)}


@pytest.mark.parametrize("method, encoder", PAIRS)
def test_it_loads_and_says_the_same_without_hfssl(exports, method, encoder):
    features, said = exports[method, encoder]
    assert said["architecture"] == {"vit": "ViTModel", "convnextv2": "ConvNextV2Model"}[encoder]
    torch.testing.assert_close(torch.tensor(said["features"]), features.flatten(), rtol=1e-5, atol=1e-6)
    # all weights are there, but for a pooler, which no method trains, and the head that is to be trained
    assert all("pooler" in name for name in said["missing"]) and not said["unexpected"]
    assert said["missing_in_classifier"] == ["classifier.bias", "classifier.weight"]
    assert said["logits"] == [1, 3] and said["ours"] == []
