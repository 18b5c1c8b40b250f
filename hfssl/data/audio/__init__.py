"""Recordings: what the floor of data knows of them."""

from ..modality import EmbeddedData, Modality


# What libsndfile or, by PyAV, FFmpeg decodes.
EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".caf", ".w64", ".m4a", ".aac", ".wma",
    ".mka",
)  # fmt: skip


def _is_feature(feature) -> bool:
    import datasets

    return isinstance(feature, datasets.Audio)


def _is_raw(feature) -> bool:
    """Bytes, or the struct in which `datasets` keeps media, without the type that says so."""
    import datasets

    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary", "binary_view")


def _feature():
    import datasets

    return datasets.Audio(decode=False)


def _conversion(column: str, feature, value: str) -> str:
    """Of paths `datasets` makes recordings; of decoded sound it does with torchcodec alone."""
    import datasets

    if isinstance(feature, datasets.Value) and feature.dtype in ("string", "large_string", "string_view"):
        # a field is a column only where structures are laid flat
        table = "ds" if value == f"row[{column!r}]" else "ds.flatten()"
        cast = f"{table}.cast_column({column!r}, datasets.Audio())"
        return f"If {column!r} holds the paths of files, convert it: `{cast}`."
    rate = "sampling_rate"
    if isinstance(feature, dict) and {"array", rate} <= set(feature):
        feature, value, rate = feature["array"], f"{value}['array']", f"{value}[{rate!r}]"
    depth, dtype = _nested(feature)
    if depth not in (1, 2) or not dtype.startswith(("float", "int")):
        return ""
    hints = []
    if dtype.startswith("int"):
        value = f"np.array({value}, 'int16')"
        hints.append(" Whole numbers of more than 16 bits: divide them by the largest that there may be instead.")
    elif depth == 2:
        value = f"np.array({value})"
    if depth == 2:
        # soundfile wants the channels last, of which most others have them first
        value = f"{value}.T"
        hints.append(" Where the channels come last, leave out the `.T`.")
    return (
        f"If {column!r} holds sound that is decoded already, make files of it again, by `ds.map` with a function of a "
        f"row: `file = io.BytesIO()`, `soundfile.write(file, {value}, {rate}, format='WAV')`, "
        f"`return {{{column!r}: file.getvalue()}}`.{''.join(hints)}"
    )


def _nested(feature) -> tuple[int, str]:
    """How deep lists of values lie in each other, and the type of the values; "" where they are no such lists."""
    import datasets

    if isinstance(feature, datasets.Value):
        return 0, feature.dtype
    if isinstance(feature, datasets.Array2D):
        return 2, feature.dtype
    if isinstance(feature, datasets.List | datasets.LargeList):
        depth, dtype = _nested(feature.feature)
        return depth + 1, dtype
    return 0, ""


def _from_arrow(column) -> list:
    from ..sources.sample_folders import encoded_samples

    return encoded_samples(column)


def _read_folder(files):
    from ..sources.sample_folders import read_folder

    return read_folder(files)


def _read_tars(files):
    from ..sources.tars import read_tars

    return read_tars(files)


def _load_speech(split: str):
    from .embedded import load_speech

    return load_speech(split)


MODALITY = Modality(
    name="audio",
    sample_types=(bytes,),
    sample_words="an encoded recording",
    samples="recordings",
    unit="seconds",
    is_feature=_is_feature,
    feature=_feature,
    column_names=("audio", "sound", "speech", "recording", "wav", "flac", "mp3"),
    column_flag="--audio_column",
    extensions={
        **dict.fromkeys(EXTENSIONS, "audiofolder"), ".tar": "webdataset", ".parquet": "parquet", ".arrow": "arrow",
    },
    supported="audio files (wav, flac, ogg, mp3, opus, m4a, …), webdataset tars, parquet and arrow",
    is_raw=_is_raw,
    conversion=_conversion,
    is_empty=lambda sound: not sound,
    empty_is_damage=True,
    from_arrow=_from_arrow,
    readers={"audiofolder": _read_folder, "webdataset": _read_tars},
    folder_module="audiofolder",
    # Neighbours are often of one speaker, and each may be long.
    samples_per_piece=4,
    samples_per_block=(16, 256),
    read_through_bytes=256 << 20,
    embedded=(EmbeddedData("speech", ("train", "test"), _load_speech, labelled=True),),
)  # fmt: skip
