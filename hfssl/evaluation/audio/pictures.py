"""What the features of recordings look like: what lies near to what."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..frozen import aligned_labels
from ..image.pictures import plot_feature_map
from ..probe_features import ProbeFeatures


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

# What is in the files that are written beside features of recordings.
CAPTIONS = {
    "layers.png": "What a linear probe of each layer, and of their weighted sum, knows of the labels.",
    "feature_map.png": "Features of the test recordings in two dimensions, a colour for each class.",
}


def draw_pictures(
    encoder: Any, processor: Any, train: "LabelledData", test: "LabelledData", features: ProbeFeatures, folder: Path
) -> list[Path]:
    """Write `feature_map.png` into `folder`, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    test_y = aligned_labels(train, test)[1]
    plot_feature_map(features.test, test_y, [str(name) for name in train.class_names], folder / "feature_map.png")
    return [folder / "feature_map.png"]
