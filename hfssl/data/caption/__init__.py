"""Captions: what the floor of data knows of texts that stand beside something else, one or several of each sample."""

from ..modality import Modality


def _is_feature(feature) -> bool:
    """A text, or a list of several captions of one sample."""
    from ..modality import modality

    text = modality("text")
    return text.is_feature(feature) or text.is_raw(feature)


def _feature():
    import datasets

    return datasets.Value("string")


def _from_arrow(column) -> list:
    from .captions import from_arrow

    return from_arrow(column)


def _is_empty(caption) -> bool:
    from .captions import texts_of

    return not texts_of(caption)


def _decode_file(data: bytes):
    from .captions import decode_file

    return decode_file(data)


MODALITY = Modality(
    name="caption",
    sample_types=(str, list),
    sample_words="text, nor a list of texts",
    samples="captions",
    unit="captions",
    is_feature=_is_feature,
    feature=_feature,
    column_names=(
        "caption", "captions", "text", "txt", "sentence", "sentences", "description", "title", "alt_text", "alt",
        "name",
    ),
    column_flag="--caption_column",
    extensions={".parquet": "parquet", ".arrow": "arrow"},
    supported="parquet and arrow",
    is_empty=_is_empty,
    from_arrow=_from_arrow,
    beside_extensions=(".txt", ".caption"),
    decode_file=_decode_file,
    where_else=(
        "In a folder of files, the caption of dog.jpg stands in dog.txt beside it, or in a metadata.jsonl with "
        "`file_name` and `caption`."
    ),
)  # fmt: skip
