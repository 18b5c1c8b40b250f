"""Several columns read as one input, such as captions in nine languages that stand in a column each."""

from collections.abc import Mapping
from dataclasses import replace

from ...errors import DataError
from ..modality import Input
from ..modality import modality as find_modality
from .base import PieceRows, Source


def split_columns(inputs: Mapping[str, Input]) -> tuple[dict[str, Input], dict[str, list[str]]]:
    """The inputs with one column each, and by its name the parts of each that was stated with several.

    Columns of an input are several where its `column` has commas and a sample of its modality may be a list. Each part
    is an input that is not required: a row has what it has of them.

    Raises:
        DataError: where a column is stated twice, or a comma has nothing beside it.
    """
    alone: dict[str, Input] = {}
    together: dict[str, list[str]] = {}
    for name, wanted in inputs.items():
        may_be_several = wanted.modality is not None and list in find_modality(wanted.modality).sample_types
        if not may_be_several or "," not in (wanted.column or ""):
            alone[name] = wanted
            continue
        columns = [column.strip() for column in wanted.column.split(",")]
        if not all(columns) or len(set(columns)) < len(columns):
            flag = find_modality(wanted.modality).column_flag
            raise DataError(
                f"`{flag} {wanted.column}` names several columns, each once, with one comma between two of them, "
                "such as caption,caption_de."
            )
        together[name] = [f"{name} of {column}" for column in columns]
        alone |= {
            part: Input(wanted.modality, column, required=False, part_of=name)
            for part, column in zip(together[name], columns, strict=True)
        }
    return alone, together


class ColumnsTogether(Source):
    """A source in which an input is the list of what several inputs of another source hold.

    A row that has nothing in all of them is empty. What is damaged or missing in one of them is left out of the list.

    Args:
        source ([`Source`]):
            What is read, with the inputs of [`split_columns`].
        inputs (`Mapping[str, Input]`):
            As they were stated.
        together (`Mapping[str, list[str]]`):
            Inputs of `source` by the name of the one that they become.
    """

    def __init__(self, source: Source, inputs: Mapping[str, Input], together: Mapping[str, list[str]]):
        super().__init__(
            files=source.files,
            inputs={
                name: replace(wanted, column=",".join(source.inputs[part].column for part in together[name]))
                if name in together
                else source.inputs[name]
                for name, wanted in inputs.items()
            },
            features=source.features,
            pieces=source.pieces,
            piece_bytes=source.piece_bytes,
            fingerprint=source.fingerprint,
        )
        self.source, self.together = source, dict(together)
        self.description, self.num_rows, self.num_rows_exact = (
            source.description, source.num_rows, source.num_rows_exact,
        )  # fmt: skip
        self.unit, self.groups_at_once = source.unit, source.groups_at_once
        self.class_folders, self.tables, self.hub = source.class_folders, source.tables, source.hub
        self.mask_folders = source.mask_folders

    def read(self, index: int) -> PieceRows:
        read = self.source.read(index)
        columns = dict(read.columns)
        for name, parts in self.together.items():
            columns[name] = list(map(_several, zip(*(columns.pop(part) for part in parts), strict=True)))
        kept = [i for i in range(len(read.rows)) if all(columns[name][i] for name in self.together)]
        num_empty = read.num_empty + len(read.rows) - len(kept)
        columns = {name: [columns[name][i] for i in kept] for name in self.inputs}
        return PieceRows(read.rows[kept], columns, read.bad, num_empty)

    def read_input(self, name: str) -> list:
        if name not in self.together:
            return self.source.read_input(name)
        return list(map(_several, zip(*(self.source.read_input(part) for part in self.together[name]), strict=True)))

    def place(self, files):
        return self.source.place(files)

    def where(self, file: int, row: int) -> str:
        return self.source.where(file, row)


def _several(values: tuple) -> list:
    """What a row has, in the order of the columns; of a column with lists each of its values."""
    return [each for value in values if value is not None for each in (value if isinstance(value, list) else [value])]
