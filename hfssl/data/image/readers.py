"""How formats of images are read in place, and the images of a table's column."""

import pyarrow as pa
import pyarrow.compute as pc

from ...errors import DataError
from ..modality import modality
from ..sources.base import Source
from ..sources.files import SplitFiles, download_once, is_remote, read_file
from ..sources.image_folders import ImageFolderSource, image_files, is_metadata, metadata_features
from ..sources.tars import TarSource
from ..sources.walk import class_names


def from_arrow(column: pa.ChunkedArray) -> list:
    """Encoded images: the column's own bytes, or those of the files that it names."""
    if not pa.types.is_struct(column.type):
        return column.to_pylist()
    names = {field.name for field in column.type}
    values = pc.struct_field(column, "bytes").to_pylist() if "bytes" in names else [None] * len(column)
    if "path" not in names or None not in values:
        return values
    paths = pc.struct_field(column, "path").to_pylist()
    return [read_file(path) if value is None and path else value for value, path in zip(values, paths, strict=True)]


def read_folder(files: SplitFiles) -> Source:
    """Image files, and zip files of them. Class folders become the column `label`."""
    options = {"inputs": files.inputs, "dataset": repr(files.dataset), "fingerprint": files.fingerprint}
    images = image_files(files.paths, files.names, files.sizes)
    if not images:
        raise DataError(
            f"{files.dataset!r} has no image in this split. It holds: {', '.join(files.names[:4])}. Supported are "
            f"{modality('image').supported}."
        )
    metadata = next(filter(is_metadata, files.paths), None)
    if metadata:
        return ImageFolderSource(images, others=metadata_features(metadata), **options)
    of_splits = [image_files(paths, paths, [0] * len(paths)) for paths in files.splits.values()]
    classes = class_names([[path for path, _, _ in of_split] for of_split in of_splits])
    return ImageFolderSource(images, classes=classes, **options)


def read_tars(files: SplitFiles) -> Source:
    """Webdataset tars; remote ones are downloaded first."""
    paths = files.paths
    if is_remote(paths[0]):
        paths = download_once(paths, files.dataset, files.sizes)
    return TarSource(
        paths,
        files.names,
        files.sizes,
        inputs=files.inputs,
        dataset=repr(files.dataset),
        fingerprint=files.fingerprint,
    )
