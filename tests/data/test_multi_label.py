"""Samples with several labels, or none: lists, words with ; between them, columns of 0 and 1."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled import png

from hfssl.data.labelled import hold_out, open_labelled
from hfssl.data.sources import DataError


IMAGES = [png(np.random.default_rng(i).integers(0, 256, (5, 5), dtype=np.uint8)) for i in range(12)]
LISTS = [["cat", "dog"], [], ["dog"], None, ["eel"], ["cat"]] * 2
ROWS = [[1, 1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0]] * 2


def write(folder, split="train", **columns):
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"image": pa.array(IMAGES, pa.binary()), **columns}), folder / f"{split}.parquet")
    return folder


def test_lists_of_words(tmp_path, caplog):
    found = open_labelled(write(tmp_path, labels=pa.array(LISTS)), "train")
    assert found.class_names == ["cat", "dog", "eel"]
    # an empty list is a sample to which nothing applies, a missing one is none that was labelled
    assert found.labels.tolist() == ROWS and len(found) == 10
    assert list(found.images) == [image for i, image in enumerate(IMAGES) if LISTS[i] is not None]
    assert "says nothing of 2 of 12 images" in caplog.text


def test_lists_of_class_labels_have_all_names(tmp_path):
    names = ["cat", "dog", "eel", "fox"]
    features = datasets.Features(
        {"image": datasets.Value("binary"), "labels": datasets.List(datasets.ClassLabel(names=names))}
    )
    lists = [[names.index(word) for word in words or []] for words in LISTS]
    datasets.Dataset.from_dict({"image": IMAGES, "labels": lists}, features=features).to_parquet(
        tmp_path / "train.parquet"
    )
    found = open_labelled(tmp_path, "train")
    assert found.class_names == names and found.labels[:3].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize("between", ["; ", "|"])
def test_words_in_a_text(tmp_path, between):
    words = [None if words is None else between.join(words) or None for words in LISTS]
    found = open_labelled(write(tmp_path, label=words), "train")
    assert found.class_names == ["cat", "dog", "eel"] and found.labels.tolist() == [row for row in ROWS if any(row)]


def test_a_split_in_which_nobody_has_two_is_read_as_the_others(tmp_path):
    write(tmp_path, label=["cat;dog", "dog"] * 6)
    found = open_labelled(write(tmp_path, "test", label=["cat", "dog"] * 6), "test")
    assert found.labels[:2].tolist() == [[1, 0], [0, 1]]


def test_columns_of_0_and_1(tmp_path):
    columns = {"cat": [1, 0, 1, 0] * 3, "dog": [True, False, True, None] * 3, "eel": ["0", "1", "-1", "0"] * 3}
    write(tmp_path, **columns)
    found = open_labelled(tmp_path, "train", label_column="cat, dog,eel")
    assert found.class_names == ["cat", "dog", "eel"] and found.labels.tolist() == [[1, 1, 0], [0, 0, 1]] * 3
    write(tmp_path / "b", cat=[0, 1, 2] * 4, dog=[0] * 12)
    with pytest.raises(
        DataError, match="Column 'cat' of split 'train' of .* holds 2. Of several `--label_column`s each"
    ):
        open_labelled(tmp_path / "b", "train", label_column="cat,dog")


def test_words_in_a_table_beside_files(tmp_path):
    (tmp_path / "images").mkdir()
    for i, image in enumerate(IMAGES):
        (tmp_path / "images" / f"{i}.png").write_bytes(image)
    lines = ["name,finding", *(f"{i}.png,{';'.join(words or [])}" for i, words in enumerate(LISTS))]
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    found = open_labelled(tmp_path / "images", "train", labels_file=tmp_path / "labels.csv", label_column="finding")
    assert found.class_names == ["cat", "dog", "eel"] and sorted(found.labels.tolist()) == sorted(
        r for r in ROWS if any(r)
    )


def test_a_fifth_is_held_out(tmp_path):
    found = open_labelled(write(tmp_path, labels=pa.array(LISTS)), "train")
    train, test = hold_out(found)
    assert (len(train), len(test)) == (8, 2) and train.labels.shape[1] == 3
    found.groups = np.array([f"patient {i // 2}" for i in range(10)])
    train, test = hold_out(found)
    assert not set(train.groups) & set(test.groups) and len(test)


def test_what_is_no_label_in_a_list_is_passed_over(tmp_path):
    lists = [["cat", ""], ["cat", None, "dog"], [""], ["dog"]] * 3
    found = open_labelled(write(tmp_path / "words", labels=pa.array(lists)), "train")
    assert found.class_names == ["cat", "dog"] and found.labels.tolist() == [[1, 0], [1, 1], [0, 1]] * 3
    numbers = [[0, 1], [2, -1], [-1], [1]] * 3
    found = open_labelled(write(tmp_path / "numbers", labels=pa.array(numbers)), "train")
    assert found.class_names == ["0", "1", "2"] and found.labels.tolist() == [[1, 1, 0], [0, 0, 1], [0, 1, 0]] * 3


def test_a_split_without_any_pair_of_labels_has_them_all_the_same(tmp_path):
    folder = write(tmp_path, labels=pa.array(["1;2", "3", "2"] * 4))
    write(folder, "test", labels=pa.array([1, None, 3] * 4))
    found = [open_labelled(folder, split) for split in ("train", "test")]
    assert [each.class_names for each in found] == [["1", "2", "3"]] * 2
    assert found[1].labels.tolist() == [[1, 0, 0], [0, 0, 1]] * 4


def test_columns_of_words_for_0_and_1(tmp_path):
    columns = {"cat": pa.array(["True", "false", "", None] * 3), "dog": pa.array(["1", "true", "0", "1"] * 3)}
    found = open_labelled(write(tmp_path, **columns), "train", label_column="cat,dog")
    assert found.labels.tolist() == [[1, 1], [0, 1]] * 3
