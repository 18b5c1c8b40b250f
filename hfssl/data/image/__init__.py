"""Images: what the floor of data knows of them."""

import string

from ..modality import EmbeddedData, Modality


EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".pbm",
    ".pgm", ".ppm", ".pnm", ".jp2", ".j2k", ".ico", ".btf", ".npy", ".npz", ".dcm", ".dicom",
)  # fmt: skip
# How files begin, of the formats that are often without an extension.
_BEGINNINGS = {
    b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n": ".png", b"II*\0": ".tif", b"MM\0*": ".tif", b"\x93NUMPY": ".npy",
}  # fmt: skip
# What the values of the masks of the embedded scenes stand for.
SCENE_CLASSES = ("ground", *string.ascii_uppercase)


def _is_feature(feature) -> bool:
    import datasets

    return isinstance(feature, datasets.Image)


def _is_raw(feature) -> bool:
    """Bytes, or the struct in which `datasets` keeps media, without the type that says so; bytes with their shape;
    arrays of two or three axes."""
    import datasets

    from .columns import is_array

    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"} or is_array(feature)
    return (
        is_array(feature)
        or isinstance(feature, datasets.Value)
        and feature.dtype in ("binary", "large_binary", "binary_view")
    )


def _feature():
    import datasets

    return datasets.Image()


def _ending_of(start: bytes) -> str | None:
    if start[128:132] == b"DICM":
        return ".dcm"
    return next((ending for beginning, ending in _BEGINNINGS.items() if start.startswith(beginning)), None)


def _from_arrow(column) -> list:
    from ..sources.sample_folders import encoded_samples
    from .columns import encoded_arrays, holds_arrays

    return encoded_arrays(column) if holds_arrays(column.type) else encoded_samples(column)


def _read_folder(files):
    from ..sources.sample_folders import read_folder

    return read_folder(files)


def _read_tars(files):
    from ..sources.tars import read_tars

    return read_tars(files)


def _mask_folders(names):
    from .mask_folders import mask_folders

    return mask_folders(names)


def _load_letters(split: str):
    from .embedded import load_letters

    return load_letters(split)


def _load_digits(split: str):
    from .embedded import load_digits

    return load_digits(split)


def _load_characters(split: str):
    from .embedded import load_characters

    return load_characters(split)


def _load_scenes(split: str):
    from .embedded import load_scenes

    return load_scenes(split)


MODALITY = Modality(
    name="image",
    sample_types=(bytes,),
    sample_words="an encoded image",
    samples="images",
    unit="images",
    is_feature=_is_feature,
    feature=_feature,
    column_names=("image", "img", "picture", "photo", "jpg", "png", "webp"),
    column_flag="--image_column",
    extensions={
        **dict.fromkeys(EXTENSIONS, "imagefolder"), ".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow",
    },
    supported="image files (jpg, png, webp, tiff, npy, dcm, gif, bmp, …), webdataset tars, parquet and arrow",
    is_raw=_is_raw,
    is_empty=lambda image: not image or image.isspace(),
    empty_is_damage=True,
    from_arrow=_from_arrow,
    readers={"imagefolder": _read_folder, "webdataset": _read_tars},
    beside_samples=(".npy", ".npz"),
    mask_folders=_mask_folders,
    ending_of=_ending_of,
    folder_module="imagefolder",
    # Neighbours often show the same thing (files are sorted by class), so runs of them are short.
    samples_per_piece=8,
    # Limits that keep the first step, a resume and the memory of a block small.
    samples_per_block=(16, 512),
    read_through_bytes=256 << 20,
    embedded=(
        EmbeddedData("letters", ("train", "test"), _load_letters, labelled=True),
        EmbeddedData("digits", ("train", "test"), _load_digits, labelled=True),
        EmbeddedData("characters", ("train", "test", "composition"), _load_characters, labelled=True),
        EmbeddedData("scenes", ("train", "test"), _load_scenes, mask_classes=SCENE_CLASSES),
    ),
)  # fmt: skip
