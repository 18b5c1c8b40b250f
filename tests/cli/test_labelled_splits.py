"""Which splits a probe learns from and is measured on, where none is named."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled import png, processor

from hfssl.cli.labelled import LabelledDataArguments, load_splits, load_with_or_without_labels
from hfssl.cli.probes import ProbeArguments
from hfssl.errors import UserError
from hfssl.evaluation.image.features import range_for, resized_images


def write(folder, split, first, **columns):
    images = [png(np.random.default_rng(first + i).integers(0, 256, (5, 5), dtype=np.uint8)) for i in range(20)]
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), **columns}), folder / f"{split}.parquet")


def test_a_test_split_without_labels_is_passed_over(tmp_path, caplog):
    caplog.set_level("INFO", logger="hfssl")
    write(tmp_path, "train", 0, label=[0, 1] * 10)
    write(tmp_path, "test", 100, label=[-1] * 20)
    write(tmp_path, "validation", 200, label=[0, 1] * 10)
    assert [data.name for data in load_splits(str(tmp_path))] == [
        f"{tmp_path.name} ({s})" for s in ("train", "validation")
    ]
    assert "Split 'test' is passed over, since it has no labels: " in caplog.text
    (tmp_path / "validation.parquet").unlink()
    train, test = load_splits(str(tmp_path))
    assert len(train) + len(test) == 20 and test.name == f"a fifth of {tmp_path.name} (train)"


def test_what_is_held_out_is_no_more_than_asked_for(tmp_path):
    write(tmp_path, "train", 0, label=[0, 1] * 10)
    train, test = load_splits(str(tmp_path), max_test_samples=2)
    assert (len(train), len(test)) == (16, 2) and test.name.startswith("2 of a fifth of ")


def test_probes_of_a_run_take_a_table_and_keep_groups_apart(tmp_path):
    (tmp_path / "x").mkdir()
    for i in range(20):
        (tmp_path / "x" / f"{i}.png").write_bytes(
            png(np.random.default_rng(i).integers(0, 256, (5, 5), dtype=np.uint8))
        )
    rows = [f"{i},{'ab'[i % 2]},{i // 4}" for i in range(20)]
    (tmp_path / "x" / "kinds.csv").write_text("\n".join(["file,kind,who", *rows]))
    named = {"probe_labels": "kinds.csv", "probe_label_column": "kind", "probe_split_by": "who"}
    arguments = ProbeArguments(probe_dataset=str(tmp_path / "x"), **named)
    train, test = arguments.load(None)
    assert not set(train.groups) & set(test.groups) and train.class_names == ["a", "b"]
    # the same by the flags of recipes/probe.py
    flags = arguments.named(None, train, test)
    assert flags == {"dataset": str(tmp_path / "x"), "labels": "kinds.csv", "label_column": "kind", "split_by": "who"}
    with pytest.raises(UserError, match="`--probe_labels no.csv` cannot be read"):
        ProbeArguments(probe_dataset=str(tmp_path / "x"), probe_labels="no.csv").load(None)


def test_images_of_more_than_8_bits_without_labels_are_seen(tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(8):
        values = np.random.default_rng(i).integers(0, 4096, (16, 16), dtype=np.uint16)
        (folder / f"{i}.png").write_bytes(png(values))
    for stated, expected in ((None, (0, 4095)), ([0.0, 100.0], (0, 100))):
        arguments = LabelledDataArguments(dataset=str(folder), value_range=stated)
        train, test = load_with_or_without_labels(arguments, str(tmp_path / "encoder"), "image")
        assert train is None and tuple(range_for(processor(), test.images)) == expected
        bad = []
        assert resized_images(processor(), test.images, bad=bad).any() and not bad
