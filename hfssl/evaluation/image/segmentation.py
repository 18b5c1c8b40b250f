"""Which class each pixel has: labels of patches, predictions as large as the mask, how much both have in common."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


def patch_counts(mask: np.ndarray, rows: int, columns: int, num_classes: int, ignored: int) -> np.ndarray:
    """How many pixels of each class, but for the ignored ones, lie in each patch, `(rows * columns, num_classes)`."""
    height, width = mask.shape
    cell = (np.arange(height) * rows // height)[:, None] * columns + (np.arange(width) * columns // width)[None]
    known = mask != ignored
    index = cell[known] * num_classes + mask[known]
    return np.bincount(index, minlength=rows * columns * num_classes).reshape(rows * columns, num_classes)


def upsampled(scores: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scores of patches `(rows, columns, num_classes)` as those of pixels, of the class with the highest in each."""
    grid = torch.from_numpy(np.ascontiguousarray(scores, dtype=np.float32)).permute(2, 0, 1)[None]
    return F.interpolate(grid, shape, mode="bilinear", align_corners=False)[0].argmax(0).numpy()


@dataclass
class Confusion:
    """Pixels by the class that they have and the one that was said, over all images.

    Args:
        num_classes (`int`):
            Of both.
        ignored (`int`):
            What counts nowhere.
    """

    num_classes: int
    ignored: int

    def __post_init__(self):
        self.counts = np.zeros((self.num_classes, self.num_classes), np.int64)

    def add(self, prediction: np.ndarray, mask: np.ndarray) -> None:
        """Count an image."""
        known = mask != self.ignored
        index = mask[known] * self.num_classes + prediction[known]
        self.counts += np.bincount(index, minlength=self.num_classes**2).reshape(self.counts.shape)

    def iou(self) -> np.ndarray:
        """Intersection over union of each class, over all images; NaN for one that no mask has."""
        there, said, both = self.counts.sum(1), self.counts.sum(0), np.diag(self.counts)
        return np.where(there > 0, both / np.maximum(there + said - both, 1), np.nan)

    def scores(self) -> dict[str, float]:
        """`miou`, the mean of [`iou`] over the classes of the masks, and `pixel_accuracy`."""
        accuracy = np.trace(self.counts) / max(self.counts.sum(), 1)
        return {"miou": float(np.nanmean(self.iou())), "pixel_accuracy": float(accuracy)}
