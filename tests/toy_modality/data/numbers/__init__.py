"""Numbers: a modality made for tests. A sample is a number, or a row of numbers."""

from hfssl.data.modality import Modality


def _is_feature(feature) -> bool:
    import datasets

    of = getattr(feature, "feature", feature)  # of a list
    return isinstance(of, datasets.Value) and of.dtype.startswith(("int", "float"))


def _feature():
    import datasets

    return datasets.Value("float64")


MODALITY = Modality(
    name="numbers",
    sample_types=(int, float, list),
    sample_words="a number or a row of numbers",
    samples="rows of numbers",
    unit="numbers",
    is_feature=_is_feature,
    feature=_feature,
    column_names=("numbers", "value"),
    column_flag="--numbers_column",
    extensions={".csv": "csv", ".parquet": "parquet"},
    supported="csv and parquet",
    is_empty=lambda sample: sample == [],
)
