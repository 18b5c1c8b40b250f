"""Modalities: what the data of each are, declared once in a folder of this package and found by the modality's name.

`hfssl/data/<name>/__init__.py` holds `MODALITY`, a [`Modality`]: plain data, and functions that import what is heavy
when they are called. Adding such a folder is all that makes a modality readable: nothing else names it. By convention
`readers.py` beside it reads the formats that only this modality has, and `embedded.py` makes its embedded data set.
"""

import importlib
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING

from ..errors import DataError


if TYPE_CHECKING:
    import pyarrow as pa

    from .sources.base import Source
    from .sources.files import SplitFiles


@dataclass(frozen=True)
class Input:
    """A named input that is read from a data set.

    Args:
        modality (`str`, *optional*):
            What its values are, by the name of a modality. `None` is any value, such as a label: it is handed on as
            the data set has it.
        column (`str`, *optional*):
            The column that holds it. Left out, the column is found: by its type and name for a modality (a column that
            is called as the input is preferred), by the input's name for any value.
        required (`bool`, *optional*, defaults to `True`):
            A row without it is left out: as damaged, or as empty where the value is blank. Otherwise the row comes
            with `None` in its place, also where the value is damaged.
        part_of (`str`, *optional*):
            The name of a required input that is read from this column and others together: a row needs one of them.
    """

    modality: str | None
    column: str | None = None
    required: bool = True
    # not shown: fingerprints are made of what is, and the rows that are read are the same
    part_of: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class EmbeddedData:
    """Data that are on every machine without a download.

    Attributes:
        name (`str`):
            What `--dataset` and messages call it.
        splits (`tuple[str, ...]`):
            Its splits.
        load (`Callable[[str], tuple[str, dict[str, list], dict]]`):
            From the name of a split to one line for the log, columns, and their `datasets` features.
        labelled (`bool`, *optional*, defaults to `False`):
            Whether one of the columns is a class.
        mask_classes (`tuple[str, ...]`, *optional*):
            What the values of its masks stand for, where it has a column `mask` of these.
    """

    name: str
    splits: tuple[str, ...]
    load: Callable[[str], tuple[str, dict[str, list], dict]]
    labelled: bool = False
    mask_classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Modality:
    """What the floor of data knows of a modality. What has a default is optional.

    A sample is a plain Python value (`str`, `bytes`, a number, a list of numbers), so that what is equal, how many
    bytes it has and its [`~hfssl.data.sources.identity`] follow from the value and need no declaration.

    Attributes:
        name (`str`):
            Its name, that of its folder: `"image"`.
        sample_types (`tuple[type, ...]`):
            Types of a sample.
        sample_words (`str`):
            What a sample is, in messages: `"an encoded image"`.
        samples (`str`):
            Several samples, in messages: `"images"`.
        unit (`str`):
            What speed and progress are counted in: `"tokens"`.
        is_feature (`Callable`):
            Whether a `datasets` feature is of this modality.
        feature (`Callable`):
            Makes the `datasets` feature of a column of it.
        column_names (`tuple[str, ...]`):
            Usual names of its columns, in the order in which they are looked for where several have its type.
        column_flag (`str`):
            The flag with which the user chooses a column.
        extensions (`Mapping[str, str]`):
            Extension of a file, such as `".jpg"`, to the module of `datasets` that reads it, such as `"imagefolder"`.
        supported (`str`):
            These formats, in messages.
        is_raw (`Callable`, *optional*):
            Whether a feature is taken where no column has the right one, such as plain bytes for an image.
        is_empty (`Callable`, *optional*):
            Whether a sample has no content, such as a blank text.
        empty_is_damage (`bool`, *optional*):
            Whether such a sample is damaged, like a file without a byte. Otherwise it is skipped and counted apart.
        from_arrow (`Callable[[pa.ChunkedArray], list]`, *optional*):
            The samples in a column of a table; [`~hfssl.data.sources.base.Damage`] stands for what is broken.
        readers (`Mapping[str, Callable]`, *optional*):
            By the module's name, what reads files of a format in place. Parquet and Arrow are read for every modality;
            all other formats are converted once.
        beside_samples (`tuple[str, ...]`, *optional*):
            Among the extensions, those of files that often lie beside samples and are none, such as arrays of
            features. They are samples where there are no others.
        mask_folders (`Callable[[Iterable[str]], list[str]]`, *optional*):
            From the names of the sample files of a data set, relative to its folder, the folders in it that hold masks
            of samples, which are none themselves.
        folder_module (`str`, *optional*):
            The module of `datasets` for folders in which each file is a sample.
        samples_per_piece (`int`, *optional*):
            Samples in a piece of a source where each is large. Left out, a piece holds some bytes (`piece_bytes`).
        samples_per_block (`tuple[int, int]`, *optional*):
            Fewest and most samples in a block of a stream, where their cost says it. Left out, a block holds some
            bytes.
        read_through_bytes (`int`, *optional*):
            A set that is larger is not read through to choose held-out samples: they come from some of it, several
            pieces out of each row group that is read. Left out, samples are small and come from all over the set.
        shares_in_bytes (`bool`, *optional*):
            Whether the shares of a mixture are shares of the samples' bytes. Otherwise each sample counts the same.
        beside_extensions (`tuple[str, ...]`, *optional*):
            Extensions of the files that hold what belongs to a file of another modality of the same name, such as
            `dog.txt` beside `dog.jpg`. Left out, those of `folder_module`.
        decode_file (`Callable[[bytes], Any]`, *optional*):
            The sample that such a file holds, or a [`~hfssl.data.sources.base.Damage`]. Left out, its bytes.
        ending_of (`Callable[[bytes], str | None]`, *optional*):
            The extension that a file should have by its first 256 bytes, for those that have none.
        where_else (`str`, *optional*):
            Where else a sample may lie, as advice for those who have no such column.
        conversion (`Callable[[str, Any, str], str]`, *optional*):
            How a column is made one of samples, as advice, from its name, its feature and the Python for its value in
            a `row`; "" where it cannot be.
        embedded (`tuple[EmbeddedData, ...]`, *optional*):
            What is there without a download. The first is read where the user names no data set.
    """

    name: str
    sample_types: tuple[type, ...]
    sample_words: str
    samples: str
    unit: str
    is_feature: Callable[[object], bool]
    feature: Callable[[], object]
    column_names: tuple[str, ...]
    column_flag: str
    extensions: Mapping[str, str]
    supported: str
    is_raw: Callable[[object], bool] = lambda feature: False
    is_empty: Callable[[object], bool] = lambda sample: False
    empty_is_damage: bool = False
    from_arrow: "Callable[[pa.ChunkedArray], list]" = lambda column: column.to_pylist()
    readers: "Mapping[str, Callable[[SplitFiles], Source]]" = field(default_factory=dict)
    beside_samples: tuple[str, ...] = ()
    mask_folders: Callable[[Iterable[str]], list[str]] = lambda names: []
    folder_module: str | None = None
    samples_per_piece: int | None = None
    samples_per_block: tuple[int, int] | None = None
    read_through_bytes: int | None = None
    shares_in_bytes: bool = False
    beside_extensions: tuple[str, ...] = ()
    decode_file: Callable[[bytes], object] = lambda data: data
    ending_of: Callable[[bytes], str | None] = lambda start: None
    where_else: str = ""
    conversion: Callable[[str, object, str], str] = lambda column, feature, value: ""
    embedded: tuple[EmbeddedData, ...] = ()

    def embedded_set(self, dataset: str | os.PathLike | None) -> EmbeddedData | None:
        """The embedded set that `--dataset` names or, left out, stands for; a file or folder of that name goes first.

        `None` where it names other data, or nothing is embedded.
        """
        if dataset is None:
            return self.embedded[0] if self.embedded else None
        named = next((embedded for embedded in self.embedded if embedded.name == str(dataset)), None)
        return None if named is None or os.path.exists(dataset) else named

    @property
    def samples_are_small(self) -> bool:
        """Whether all samples of a labelled set are held in memory."""
        return self.read_through_bytes is None

    @property
    def file_extensions(self) -> tuple[str, ...]:
        """Extensions of the files that each hold one sample."""
        return tuple(ending for ending, module in self.extensions.items() if module == self.folder_module)


def modality(name: str) -> Modality:
    """The modality of this name.

    Raises:
        DataError: where there is none: names those that there are.
    """
    # for each piece that is read: of what is imported already this is a look into a dictionary
    spec = find_spec(f"{__package__}.{name}") if name.isidentifier() else None
    if spec is not None and spec.submodule_search_locations is not None:
        found = getattr(importlib.import_module(f"{__package__}.{name}"), "MODALITY", None)
        if found is not None:
            return found
    raise DataError(f"Data of modality {name!r} cannot be read yet. Supported: {', '.join(modalities())}.")


def modalities() -> list[str]:
    """The names of all modalities, sorted."""
    package = importlib.import_module(__package__)
    names = sorted(module.name for module in pkgutil.iter_modules(package.__path__) if module.ispkg)
    return [name for name in names if hasattr(importlib.import_module(f"{__package__}.{name}"), "MODALITY")]


def leading_input(inputs: Mapping[str, Input]) -> str:
    """The name of the input after which files are looked for, pieces are cut and progress is counted.

    It is the first that has a modality and is required; where none is required, the first that has a modality.

    Raises:
        DataError: where no input has a modality.
    """
    of_modality = {name: wanted for name, wanted in inputs.items() if wanted.modality is not None}
    if not of_modality:
        raise DataError(
            f"None of the inputs ({', '.join(map(repr, inputs)) or 'there are none'}) has a modality. Give at least "
            f"one of them one: {', '.join(modalities())}."
        )
    return next((name for name, wanted in of_modality.items() if wanted.required), next(iter(of_modality)))
