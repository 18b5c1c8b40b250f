"""What the features of recordings look like: what lies near to what."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..frozen import aligned_labels
from ..image.pictures import plot_feature_map
from ..probe_features import ProbeFeatures


if TYPE_CHECKING:
    from ...data.labelled import LabelledData


def draw_pictures(
    encoder: Any, processor: Any, train: "LabelledData", test: "LabelledData", features: ProbeFeatures, folder: Path
) -> list[Path]:
    """Write `feature_map.png` into `folder`, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    test_y = aligned_labels(train, test)[1]
    plot_feature_map(features.test, test_y, [str(name) for name in train.class_names], folder / "feature_map.png")
    return [folder / "feature_map.png"]
