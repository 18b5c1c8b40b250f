"""Texts: what the floor of data knows of them."""

from ..modality import EmbeddedData, Modality


def _is_feature(feature) -> bool:
    import datasets

    return isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view")


def _is_raw(feature) -> bool:
    """A list of texts: the paragraphs of one."""
    import datasets

    is_list = isinstance(feature, datasets.List | datasets.LargeList) or (
        isinstance(feature, list) and len(feature) == 1
    )
    return is_list and _is_feature(feature[0] if isinstance(feature, list) else feature.feature)


def _feature():
    import datasets

    return datasets.Value("string")


def _from_arrow(column) -> list:
    from .readers import from_arrow

    return from_arrow(column)


def _read_json_lines(files):
    from .readers import read_json_lines

    return read_json_lines(files)


def _read_txt(files):
    from .readers import read_txt

    return read_txt(files)


def _load_embedded(split: str):
    from .embedded import load_embedded

    return load_embedded(split)


MODALITY = Modality(
    name="text",
    sample_types=(str,),
    sample_words="text",
    samples="texts",
    unit="tokens",
    is_feature=_is_feature,
    feature=_feature,
    column_names=(
        "text", "sentence", "content", "document", "article", "passage", "paragraph", "body", "abstract", "review",
    ),
    column_flag="--text_column",
    extensions={
        ".txt": "text", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv",
        ".parquet": "parquet", ".arrow": "arrow",
    },
    supported=(
        "txt, jsonl, json, csv, tsv, parquet and arrow (txt, json and csv also compressed: gz, zst, bz2, xz), and a "
        "zip of them"
    ),
    is_empty=lambda text: not text or text.isspace(),
    is_raw=_is_raw,
    from_arrow=_from_arrow,
    readers={"json": _read_json_lines, "text": _read_txt},
    shares_in_bytes=True,
    embedded=(EmbeddedData("python-docs", ("train",), _load_embedded),),
)  # fmt: skip
