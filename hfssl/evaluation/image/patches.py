"""Patches: do the features of patches say what is where?

Protocol "patches", version 1, on images with masks ([`~hfssl.data.image.masks`]). Each image is shown as a whole, as a
square of `image_size` pixels: its own size, but at least that of the encoder's image processor and at most twice that,
where it is not stated. Features are those of the last layer, without CLS and registers, or the last map of a
convolutional encoder. Learned from are at most 20,000 patches of train, equally many of each image, drawn by keys:
every encoder and baseline gets the same ones of the same grid, without those of which half or more is ignored (255).

- Linear: one layer on standardised features, a logistic regression of each class against its share of a patch (the
  mask resized to the grid), by L-BFGS to convergence. The penalty is chosen on a fifth of the images of train, as in
  the protocol "linear". DINOv2's evaluation (https://huggingface.co/papers/2304.07193) trains a layer on
  batch-normalised features by SGD instead, with logits as large as the mask.
- k-NN: as the protocol "knn", k = 20, with the most frequent class of each patch.
- Scores of patches are interpolated (bilinear) to the size of each mask, and the class is that of the highest. `miou`
  is the mean over classes of intersection over union, over the pixels of all images of test; beside it stands
  `pixel_accuracy`.
- Correspondence: a second view is a crop of 0.5 to 0.9 of an image's side, made as large as the image.
  `correspondence` is the share of its patches whose most similar one (cosine) in the first view lies at most one
  patch, across and down, from where it truly is. Patches of one colour are left out: nothing says where they are. At
  most 200 images of test.

Beside: the architecture with random weights, raw patches, the class that is most frequent, and chance. Raw patches are
of the grid of the encoder, of at most 8 × 8 pixels each.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from ...data.image.decode import DamagedImage, image_header
from ...data.image.masks import IGNORED, read_mask
from ...functional import keyed
from ...functional.keyed import Use
from ...machine import compute_device
from ...modeling.image_processing import processed_channels
from ..evaluator import EvaluationError
from ..extraction import check_damage
from ..knn import knn_shares
from ..linear_probe import STRENGTHS, LogisticRegression, choose_strength
from ..probe_features import ENCODER, MAJORITY, RAW_INPUT
from ..progress import Progress
from ..results import Result, command_line, versions
from .features import ImageReader, processed_size, range_for
from .patch_evaluator import PatchEvaluator, PatchMaps
from .patch_features import fitting_size, squares
from .pictures import component_colours, plot_patches, plot_segmentation
from .segmentation import Confusion, patch_counts, upsampled


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

LINEAR, KNN, CORRESPONDENCE, CHANCE = "linear", "k-NN", "correspondence", "chance"
MAX_PATCHES, K, TEMPERATURE = 20_000, 20, 0.07
# Of the second view: sides as shares of the image, and images that are looked at.
CROP, CORRESPONDING_IMAGES = (0.5, 0.9), 200
# Deviation of the pixels of a patch, in [0, 1], below which it is of one colour.
FLAT = 0.02
PICTURES = 6


@dataclass
class PatchesEvaluator(PatchEvaluator):
    r"""
    Segmentation and correspondence by frozen patch features. The protocol stands at the top of the module.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Images with masks to learn from and to measure on, from [`~hfssl.data.image.masks.open_masked`].
        batch_size (`int`, *optional*, defaults to `256`), precision (`str`, *optional*, defaults to `"fp32"`):
            See [`~hfssl.evaluation.image.patch_evaluator.PatchEvaluator`].
        beside (`dict[str, str | Path | PreTrainedModel]`, *optional*):
            Likewise.
        image_size (`int`, *optional*):
            Height and width at which images are shown to the encoder.
        max_patches (`int`, *optional*, defaults to `20000`):
            Of train, so many patches at most.
    """

    protocol: ClassVar[str] = "patches"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "patches"
    primary_metric = "miou"

    image_size: int | None = None
    max_patches: int = MAX_PATCHES
    _size: int = field(default=0, init=False, repr=False)

    def __post_init__(self):
        for data in (self.train, self.test):
            if data.masks is None:
                raise EvaluationError(
                    f"The protocol patches needs masks, and {data.name} has none: name images with masks, such as "
                    "`--dataset scenes`."
                )
        if np.asarray(self.train.labels).any(0).sum() < 2:
            raise EvaluationError(
                f"The masks of {self.train.name} show one class or none: there is nothing to tell apart. Of two "
                f"classes the values are 0 and 1; {IGNORED} counts nowhere."
            )
        self.num_classes = max(len(self.train.class_names), len(self.test.class_names))

    def results(
        self, encoders: PatchMaps, output_dir: str | Path | None, command: str | None, name: str | None
    ) -> list[Result]:
        vision = encoders.vision
        channels = processed_channels(vision.processor)
        self._size = self.image_size or fitting_size(vision, _sides(self.train, channels))
        own = max(processed_size(vision.processor).values(), default=self._size)
        self._at_once = max(1, min(self.batch_size, self.batch_size * own**2 // self._size**2))
        self._reader = ImageReader(range_for(vision.processor, self.train.images), channels)
        probes, num_train = self._fitted(encoders)
        confusions, shown = self._measured(encoders, probes)
        corresponding = self._corresponding(encoders)
        scores = {kind: {probe: each.scores() for probe, each in of.items()} for kind, of in confusions.items()}
        majority = Confusion(self.num_classes, IGNORED)
        majority.counts[:, int(self._frequencies.argmax())] = confusions[ENCODER][LINEAR].counts.sum(1)
        settings = {
            "train": self.train.name, "test": self.test.name,
            "fingerprints": [self.train.fingerprint, self.test.fingerprint], "classes": self.num_classes,
            "image_size": self._size, "grid": list(self._grid), "precision": encoders.precision,
            "max_patches": self.max_patches,
        }  # fmt: skip
        of_all = {
            "protocol": self.protocol, "version": self.version, "model": name or vision.name, "task": self.test.name,
            "split": "test", "command": command or command_line(),
            "versions": versions() | {"device": compute_device().type},
        }  # fmt: skip
        results, names = [], self._names()
        for probe in (LINEAR, KNN):
            iou = confusions[ENCODER][probe].iou()
            there = np.flatnonzero(~np.isnan(iou))
            details = {"train_patches": num_train, "iou": {names[i]: round(float(iou[i]), 4) for i in there}}
            details |= {"strength": probes[ENCODER].strength} if probe == LINEAR else {}
            own = {"k": K, "temperature": TEMPERATURE} if probe == KNN else {}
            for metric in ("miou", "pixel_accuracy"):
                baselines = {kind: scores[kind][probe][metric] for kind in encoders.kinds if kind != ENCODER}
                baselines[MAJORITY] = majority.scores()[metric]
                results.append(
                    Result.from_scores(
                        {0: scores[ENCODER][probe][metric]},
                        baselines,
                        metric=metric,
                        num_train=len(self.train),
                        num_eval=len(self.test),
                        hyperparameters=settings | {"probe": probe} | own,
                        details=details,
                        **of_all,
                    )  # fmt: skip
                )
        shares, num_images, num_patches = corresponding
        if num_patches:
            own = {"probe": CORRESPONDENCE, "crop": list(CROP)}
            baselines = {kind: share for kind, share in shares.items() if kind != ENCODER}
            results.append(
                Result.from_scores(
                    {0: shares[ENCODER]},
                    baselines,
                    metric=CORRESPONDENCE,
                    num_train=0,
                    num_eval=num_images,
                    hyperparameters=settings | own,
                    details={"test_patches": num_patches},
                    **of_all,
                )  # fmt: skip
            )
        if output_dir is not None:
            folder = Path(output_dir) / "assets"
            folder.mkdir(parents=True, exist_ok=True)
            images, masks, said, features = shown
            plot_segmentation(images, masks, said, self._names(), IGNORED, folder / "segmentation.png")
            colours, first = component_colours(features)
            plot_patches(images, colours, folder / "patch_components.png", first)
        return results

    def _names(self) -> list[str]:
        names = [*self.train.class_names, *self.test.class_names[len(self.train.class_names) :]]
        return [str(name) for name in names]

    def _batches(
        self, data: "LabelledData", title: str, most: int | None = None
    ) -> Iterator[tuple[range, torch.Tensor]]:
        """Rows of a split and their images as squares; what is damaged is said at the end of a whole pass."""
        number = min(len(data), most or len(data))
        starts, bad = range(0, number, self._at_once), []
        with Progress(number, title, " images") as bar:
            batches = self._reader.batches(data.images, starts, self._at_once)
            for start, images in zip(starts, batches, strict=True):
                rows = range(start, min(start + len(images), number))
                bad += [row for row, each in zip(rows, images, strict=False) if each is None]
                images = [self._reader.blank if each is None else each for each in images]
                yield rows, squares(images[: len(rows)], self._size)
                bar.update(len(rows))
        if most is None:
            check_damage(data.images, bad, data.name, self._reader)

    def _fitted(self, encoders: PatchMaps) -> tuple[dict[str, "_Probe"], int]:
        """What is learned from train, by what the features are of."""
        features: dict[str, list[np.ndarray]] = {kind: [] for kind in encoders.kinds}
        shares, image_of = [], []
        of_each = -(-self.max_patches // len(self.train))
        self._frequencies = np.zeros(self.num_classes, np.int64)
        for rows, images in self._batches(self.train, "Patches of train"):
            maps = encoders.maps(images)
            grid = maps[ENCODER].shape[1:3]
            for at, row in enumerate(rows):
                mask = read_mask(self.train.masks[row])
                counts = patch_counts(mask, *grid, self.num_classes, IGNORED)
                self._frequencies += counts.sum(0)
                known = counts.sum(1)
                drawn = keyed.permutation(len(counts), Use.PROBED_PATCHES, row)[:of_each]
                # those of which more is known than ignored
                drawn = np.sort(drawn[known[drawn] > 0.5 * mask.size / len(counts)])
                shares.append(counts[drawn] / known[drawn, None])
                image_of.append(np.full(len(drawn), row))
                for kind, each in maps.items():
                    features[kind].append(each[at].flatten(0, 1)[drawn].numpy())
        self._grid = tuple(grid)
        # images have unlike numbers of patches that are ignored: the last ones too are cut off by key
        y, image_of = np.concatenate(shares).astype(np.float32), np.concatenate(image_of)
        kept = np.sort(keyed.permutation(len(y), Use.PROBED_PATCHES)[: self.max_patches])
        y, image_of = y[kept], image_of[kept]
        if (y.max(0, initial=0) > 0).sum() < 2:
            raise EvaluationError(
                f"The patches of {self.train.name} show one class or none: a probe needs two. Take more images to "
                "learn from (`--max_train_samples`)."
            )
        probes = {}
        with Progress(len(features), "Linear layers on patches", " kinds of features") as bar:
            for kind, parts in features.items():
                probes[kind] = _Probe(np.concatenate(parts)[kept], y, image_of)
                bar.update()
        return probes, len(y)

    def _measured(
        self, encoders: PatchMaps, probes: dict[str, "_Probe"]
    ) -> tuple[dict[str, dict[str, Confusion]], tuple]:
        """How test is segmented, by what the features are of; and what is shown of it."""
        confusions = {
            kind: {probe: Confusion(self.num_classes, IGNORED) for probe in (LINEAR, KNN)} for kind in probes
        }
        images_shown, masks_shown, features_shown = [], [], []
        said: dict[str, list[np.ndarray]] = {LINEAR: [], KNN: []}
        for rows, images in self._batches(self.test, "Segmentation of test"):
            maps = encoders.maps(images)
            masks = [read_mask(self.test.masks[row]) for row in rows]
            for kind, features in maps.items():
                for probe, scores in probes[kind](features).items():
                    for row, mask, each in zip(rows, masks, scores, strict=True):
                        prediction = upsampled(each, mask.shape)
                        confusions[kind][probe].add(prediction, mask)
                        if kind == ENCODER and row < PICTURES:
                            said[probe].append(prediction)
            left = max(0, PICTURES - rows.start)
            images_shown.append(images[:left])
            features_shown.append(maps[ENCODER][:left])
            masks_shown += masks[:left]
        return confusions, (torch.cat(images_shown), masks_shown, said, torch.cat(features_shown))

    def _corresponding(self, encoders: PatchMaps) -> tuple[dict[str, float], int, int]:
        """Shares of patches that are found again, the number of images and that of patches."""
        hits = dict.fromkeys((*encoders.kinds, CHANCE), 0.0)
        num_images = num_patches = 0
        for rows, images in self._batches(self.test, "Correspondence", CORRESPONDING_IMAGES):
            draws = keyed.uniform(keyed.key(Use.SECOND_VIEW, np.array(rows)[:, None], np.arange(3)[None]))
            sides = np.rint(self._size * (CROP[0] + draws[:, 0] * (CROP[1] - CROP[0]))).astype(int)
            left, top = ((draws[:, i] * (self._size - sides + 1)).astype(int) for i in (1, 2))
            boxes = np.stack([left, top, sides], axis=1)
            crops = [image[:, y : y + side, x : x + side] for image, (x, y, side) in zip(images, boxes, strict=True)]
            second = squares(crops, self._size)
            first_maps, second_maps = encoders.maps(images), encoders.maps(second)
            grid = first_maps[ENCODER].shape[1:3]
            of_channels = second_maps[RAW_INPUT].unflatten(-1, (images.shape[1], -1))
            textured = of_channels.std(-1, correction=0).amax(-1) > FLAT
            for at, box in enumerate(boxes):
                counted = textured[at].flatten()
                near = true_patches(tuple(box), self._size, grid)[counted]  # (patches of the second, of the first)
                num_images, num_patches = num_images + 1, num_patches + len(near)
                hits[CHANCE] += near.float().mean(1).sum().item()
                for kind in first_maps:
                    one, two = (F.normalize(maps[kind][at].flatten(0, 1), dim=1) for maps in (first_maps, second_maps))
                    nearest = (two[counted] @ one.T).argmax(1, keepdim=True)
                    hits[kind] += near.gather(1, nearest).sum().item()
        return {kind: number / max(num_patches, 1) for kind, number in hits.items()}, num_images, num_patches


def true_patches(box: tuple[int, int, int], size: int, grid: tuple[int, int]) -> torch.Tensor:
    """Which patches of an image lie at most one patch, across and down, from where each patch of a crop truly is.

    Args:
        box (`tuple[int, int, int]`):
            Left, top and side of the crop, in pixels.
        size (`int`):
            Side of the image.
        grid (`tuple[int, int]`):
            Rows and columns of patches, of both.

    Returns:
        `torch.Tensor` of dtype `bool` and shape `(patches of the crop, patches of the image)`.
    """
    left, top, side = (float(each) for each in box)
    near = []
    for number, begin in zip(grid, (top, left), strict=True):
        at = (torch.arange(number) + 0.5) / number
        true = (begin + side * at) / size
        near.append((true[:, None] - at[None]).abs() * number <= 1.0)
    rows, columns = near  # each (of the crop, of the image)
    both = rows[:, None, :, None] & columns[None, :, None, :]
    return both.flatten(2).flatten(0, 1)


class _Probe:
    """A linear layer and k-NN on some patches, see the top of the module.

    Args:
        x (`np.ndarray` of shape `(num_patches, dim)`), shares (`np.ndarray` of shape `(num_patches, num_classes)`):
            Features, and how much of each patch a class has.
        image_of (`np.ndarray` of shape `(num_patches,)`):
            Which image each is of.
    """

    def __init__(self, x: np.ndarray, shares: np.ndarray, image_of: np.ndarray):
        self.x, self.y = x, shares.argmax(1)
        # a class that no patch has would have a bias without bounds
        self.known = np.flatnonzero(shares.max(0) > 0)
        self.num_classes = shares.shape[1]
        shares, device = shares[:, self.known], compute_device()
        images = np.unique(image_of)
        held_out = images[keyed.permutation(len(images), Use.LINEAR_PROBE_SPLIT)[: len(images) // 5]]
        test = np.isin(image_of, held_out)
        chosen = None
        if test.any():
            chosen = choose_strength(x[~test], shares[~test], x[test], shares[test], STRENGTHS, device)
        self.strength = chosen.strength if chosen else STRENGTHS[3]
        self.linear = LogisticRegression(self.strength, device=device).fit(x, shares, chosen)

    def __call__(self, features: torch.Tensor) -> dict[str, np.ndarray]:
        """Scores `(n, rows, columns, num_classes)` of features `(n, rows, columns, dim)`."""
        shape = features.shape[:3]
        rows = features.flatten(0, 2).numpy()
        linear = np.full((len(rows), self.num_classes), -1e4, np.float32)
        linear[:, self.known] = self.linear.decision(rows)
        knn = np.zeros((len(rows), self.num_classes), np.float32)
        votes = knn_shares(self.x, self.y, rows, K, TEMPERATURE, device=compute_device())[K]
        knn[:, : votes.shape[1]] = votes
        return {name: each.reshape(*shape, -1) for name, each in ((LINEAR, linear), (KNN, knn))}


def _sides(data: "LabelledData", num_channels: int, number: int = 64) -> list[int]:
    sides = []
    for row in range(min(number, len(data))):
        try:
            header = image_header(data.images[row], num_channels)
        except DamagedImage:
            continue
        sides.append(max(header.height, header.width))
    return sides
