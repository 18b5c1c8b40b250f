"""Images with masks, which say of each pixel what it shows.

In a folder `images/` and `masks/` (or `annotations/`, `labels/`), with splits above or below them (`train/images`,
`images/train`), in capitals or not; a mask is called as its image but for the ending, before which `_mask` may stand.
In parquet and arrow files, on the Hub and in the embedded scenes a column of images, and another one of masks: `mask`,
`annotation`, `segmentation_mask`, `label` and the like, or the one that is named.

A mask is a PNG file, or any other image without loss, of one channel (grey, or colours of a palette) and of the height
and width of its image. Its values are classes from 0 on; 255 belongs to none and counts nowhere. Names of the classes
are the lines of `classes.txt` in the folder, from class 0 on; without it they are called by their numbers.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from ...errors import DataError, first_line
from ...functional import keyed
from ...functional.keyed import Use
from ..labelled import LabelledData, LazySamples
from ..modality import Input
from ..modality import modality as find_modality
from ..sources import Source, available_splits, open_source
from ..sources.base import new_digest
from ..sources.columns import list_columns
from ..sources.walk import names_below
from .decode import DamagedImage, image_header
from .mask_folders import IMAGE_FOLDERS, MASK_FOLDERS, masked_folders


# What counts nowhere.
IGNORED = 255
MASK_COLUMNS = (
    "mask", "masks", "annotation", "annotations", "segmentation", "segmentation_mask", "semantic_mask", "label",
    "labels", "label_image", "gt",
)  # fmt: skip
# Different values of masks without names: of more, they are hardly classes.
_MOST_CLASSES = 200
# What may stand behind the name of an image in that of its mask.
_ENDINGS = ("", "_mask", "-mask", "_label", "_labels", "_gt")
_SHOWN = 3


def read_mask(data: bytes, name: str = "A mask") -> np.ndarray:
    """The class of each pixel, `int64` of shape `(height, width)`.

    Raises:
        DataError: where the file is no mask.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            mode, lossy, values = image.mode, image.format == "JPEG", np.asarray(image)
    except Exception as error:  # Pillow has an error of its own for each format
        raise DataError(f"{name} cannot be decoded as an image: {first_line(error)}") from error
    if lossy:
        raise DataError(f"{name} is a JPEG file, whose values are not those that were saved. Save masks as PNG.")
    if values.ndim == 3 and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]  # grey, saved as a colour image
    if values.ndim == 3:
        raise DataError(
            f"{name} is a colour image ({mode}): a mask has one channel, in which each value is the number of a "
            "class. Save it as grey, or with a palette."
        )
    if not np.issubdtype(values.dtype, np.integer) and values.dtype != bool or values.min(initial=0) < 0:
        raise DataError(f"{name} has values such as {values.min():g}: those of a mask are whole numbers from 0 on.")
    return values.astype(np.int64)


def masked_splits(dataset: str | os.PathLike | None, config: str | None = None) -> list[str]:
    """The splits of a data set of images with masks."""
    folders = _folders(dataset)
    if folders is None:
        return available_splits(dataset, modality="image", config=config)
    return list(folders)


def open_masked(
    dataset: str | os.PathLike | None,
    split: str,
    column: str | None = None,
    mask_column: str | None = None,
    config: str | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> LabelledData:
    """Open a split of images with masks; where they are, says the top of the module.

    Args:
        dataset, split, column, config, max_samples, seed:
            See [`~hfssl.data.labelled.open_labelled`].
        mask_column (`str`, *optional*):
            Column of the masks; found by its name if not given.

    Returns:
        [`~hfssl.data.labelled.LabelledData`]: with `masks`, and of each image the classes of its pixels as labels.

    Raises:
        DataError: where there are no masks, or they do not fit their images or the names of the classes.
    """
    kind = find_modality("image")
    embedded = kind.embedded_set(dataset)
    folders = _folders(dataset)
    names: list[str] = list(embedded.mask_classes) if embedded else []
    if folders is None:
        images = open_source(dataset, split=split, inputs={"image": Input("image", column)}, config=config)
        mask_column = _mask_column(images, mask_column, repr(str(dataset)))
        masks = open_source(dataset, split=split, inputs={"image": Input("image", mask_column)}, config=config)
        pairs = np.repeat(np.arange(images.num_rows)[:, None], 2, axis=1)
    else:
        if split not in folders:
            raise DataError(f"{str(dataset)!r} has no split {split!r}; there are {', '.join(map(repr, folders))}.")
        images, masks = (open_source(folder, inputs={"image": Input("image")}) for folder in folders[split])
        for each, place in zip((images, masks), folders[split], strict=True):
            if each.num_rows != len(each.files):
                raise DataError(
                    f"{place} holds {each.num_rows:,} images in {len(each.files):,} files, and an image finds its "
                    "mask by the name of its file. Unpack archives, or keep images and masks as columns of one table."
                )
        pairs = _pairs(images.files, masks.files, folders[split])
        listed = Path(os.fspath(dataset), "classes.txt")
        if listed.is_file():
            names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
    if max_samples is not None and max_samples < len(pairs):
        pairs = pairs[np.sort(keyed.permutation(len(pairs), Use.LABELLED_SAMPLE, seed)[:max_samples])]
    of_images, of_masks = (LazySamples(each, pairs[:, i]) for i, each in enumerate((images, masks)))
    present = _classes_of_each(of_images, of_masks, names)
    number = max(len(names), 1 + max((max(each, default=0) for each in present), default=0))
    labels = np.zeros((len(pairs), number), np.int64)
    for row, each in enumerate(present):
        labels[row, each] = 1
    digest = new_digest("masks", images.fingerprint, masks.fingerprint, pairs.tolist(), names)
    short = f"embedded {embedded.name}" if embedded else Path(str(dataset).rstrip("/")).name
    class_names = names or [str(each) for each in range(number)]
    data = LabelledData(of_images, labels, class_names, digest.hexdigest(), f"{short} ({split})")
    return replace(data, masks=of_masks)


def _classes_of_each(images: LazySamples, masks: LazySamples, names: list[str]) -> list[list[int]]:
    """The classes in each mask, which is checked."""
    found: list[list[int]] = []
    for row in range(len(masks)):
        where = f"The mask {masks.where(row)}"
        mask = read_mask(masks[row], where)
        try:
            header = image_header(images[row])
        except DamagedImage:
            pass  # for whoever decodes it
        else:
            if mask.shape != (header.height, header.width):
                raise DataError(
                    f"{where} has {mask.shape[1]} × {mask.shape[0]} pixels, its image {images.where(row)} "
                    f"{header.width} × {header.height}: they have to be of one size. Save the mask at that of the "
                    "image, without smoothing (nearest neighbour)."
                )
        values = np.unique(mask).tolist()
        classes = [each for each in values if each != IGNORED]
        if names and classes and classes[-1] >= len(names):
            raise DataError(
                f"{where} has pixels of class {classes[-1]}, and there are names for {len(names)} classes, 0 to "
                f"{len(names) - 1}: add lines to classes.txt, or give pixels of no class the value {IGNORED}."
            )
        found.append(classes)
    different = {each for classes in found for each in classes}
    if not names and len(different) > _MOST_CLASSES:
        raise DataError(
            f"The masks, such as {masks.where(0)}, have {len(different):,} different values, up to "
            f"{max(different):,}, each of which would be a class. Smoothed masks have that many (resize them by "
            "nearest neighbour), and those that number single objects (give all of a kind one value). Where there are "
            "so many classes, name them in a classes.txt beside images/ and masks/."
        )
    return found


def _mask_column(source: Source, column: str | None, name: str) -> str:
    kind, of_images = find_modality("image"), source.inputs["image"].column
    if column is not None:
        return column
    candidates = [
        each
        for each, feature in source.features.items()
        if each != of_images and (kind.is_feature(feature) or kind.is_raw(feature))
    ]
    by_lower_name = {each.lower(): each for each in reversed(candidates)}
    for each in MASK_COLUMNS:
        if each in by_lower_name:
            return by_lower_name[each]
    if len(candidates) == 1:
        return candidates[0]
    problem, remedy = "no column", "Masks are images in a column of their own, or a folder masks/ beside images/."
    if candidates:
        problem, remedy = "several columns", "Name that of the masks with `--mask_column`."
    raise DataError(
        f"{name} has {problem} of images beside {of_images!r} that may be masks. Its columns are: "
        f"{list_columns(source.features)}. {remedy}"
    )


def _folders(dataset: str | os.PathLike | None) -> dict[str, tuple[str, str]] | None:
    """By split the folders of images and of masks; `None` where the data set is no folder with both."""
    if dataset is None or find_modality("image").embedded_set(dataset) or not os.path.isdir(dataset):
        return None
    root, endings = Path(dataset), (*find_modality("image").extensions, ".zip")
    of_splits = masked_folders(names_below(str(root), endings))
    if of_splits:
        return {split: tuple(str(root / folder) for folder in pair) for split, pair in of_splits.items()}
    if any(each.name.lower() in IMAGE_FOLDERS and each.is_dir() for each in root.iterdir()):
        raise DataError(
            f"{root} has images, but no folder of masks beside them: it is called one of {', '.join(MASK_FOLDERS)}, "
            "and holds images."
        )
    return None


def _pairs(images: Sequence[str], masks: Sequence[str], folders: tuple[str, str]) -> np.ndarray:
    """Rows of image and mask, of shape `(num_images, 2)`."""
    row_of = {str(PurePath(name).with_suffix("")): row for row, name in enumerate(masks)}
    pairs, missing = [], []
    for row, name in enumerate(images):
        stem = str(PurePath(name).with_suffix(""))
        mask = next((row_of[stem + ending] for ending in _ENDINGS if stem + ending in row_of), None)
        if mask is None:
            missing.append(name)
        else:
            pairs.append((row, mask))
    if missing:
        raise DataError(
            f"{len(missing):,} of the {len(images):,} images of {folders[0]} have no mask in {folders[1]}, such as "
            f"{', '.join(missing[:_SHOWN])}. A mask is called as its image, but for the ending; there are "
            f"{', '.join(sorted(masks)[:_SHOWN])} …"
        )
    return np.array(pairs, np.int64)
