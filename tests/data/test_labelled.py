"""Labelled images: each with its own label, whatever the labels are, and a sentence where there are none."""

import io
import json
import pickle
import tarfile

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hfssl.data.image.decode import DamagedImage, decode_image
from hfssl.data.image.digits import digits
from hfssl.data.labelled import hold_out, keep_groups_apart, open_labelled
from hfssl.data.sources import DataError, open_source


def png(number):
    values = np.random.default_rng(number).integers(0, 256, (5, 5), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


IMAGES = [png(i) for i in range(40)]
NAMES = [("ant", "bee", "cow")[i % 3] for i in range(40)]


def write(folder, split="train", rows=range(40), **columns):
    folder.mkdir(exist_ok=True)
    images = pa.array([IMAGES[i] for i in rows], pa.binary())
    columns = {name: values if isinstance(values, pa.Array) else list(values) for name, values in columns.items()}
    pq.write_table(pa.table({"image": images, **columns}), folder / f"{split}.parquet", row_group_size=7)


def names_of(labelled):
    return [labelled.class_names[label] for label in labelled.labels]


# -- kinds of labels --------------------------------------------------------------------------------------------------


def test_class_folders(tmp_path):
    for i, name in enumerate(NAMES[:10] + ["yak"]):
        path = tmp_path / ("test" if name == "yak" else "train") / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGES[i])
    train, test = open_labelled(tmp_path, "train"), open_labelled(tmp_path, "test")
    assert train.class_names == test.class_names == ["ant", "bee", "cow", "yak"]
    assert [NAMES[IMAGES.index(image)] for image in train.images] == names_of(train)
    # a class with one image
    assert names_of(test) == ["yak"] and list(test.images) == [IMAGES[10]] and len(test) == 1
    assert train.name == f"{tmp_path.name} (train)"


def test_class_labels(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "kind": datasets.ClassLabel(names=["cow", "bee", "ant", "yak"])}
    )
    rows = {"image": [{"bytes": image, "path": None} for image in IMAGES], "kind": NAMES}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(
        tmp_path / "saved"
    )
    labelled = open_labelled(tmp_path / "saved", "train")
    assert labelled.class_names == ["cow", "bee", "ant", "yak"] and names_of(labelled) == NAMES
    assert labelled.labels.dtype == np.int64 and list(labelled.images) == IMAGES


def test_strings_are_numbered_over_all_splits(tmp_path):
    write(tmp_path / "a", label=NAMES)
    write(tmp_path / "a", "test", range(2), label=["cow", "zebu"])
    train, test = open_labelled(tmp_path / "a", "train"), open_labelled(tmp_path / "a", "test")
    assert train.class_names == test.class_names == ["ant", "bee", "cow", "zebu"]
    assert names_of(train) == NAMES and names_of(test) == ["cow", "zebu"]


def test_integers_need_not_begin_at_zero_and_other_splits_need_no_labels(tmp_path):
    write(tmp_path / "a", target=[5 + 5 * (i % 3) for i in range(40)])
    write(tmp_path / "a", "test", range(3))
    labelled = open_labelled(tmp_path / "a", "train")
    assert labelled.class_names == ["5", "10", "15"] and labelled.labels[:4].tolist() == [0, 1, 2, 0]
    write(tmp_path / "b", y=[i % 2 == 0 for i in range(40)])
    assert open_labelled(tmp_path / "b", "train").class_names == ["False", "True"]


def test_labels_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(6):
            record = json.dumps({"label": NAMES[i]}).encode()
            for name, data in ((f"{i}.png", IMAGES[i]), (f"{i}.json", record)):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    labelled = open_labelled(tmp_path / "a.tar", "train")
    assert names_of(labelled) == NAMES[:6] and list(labelled.images) == IMAGES[:6]


def test_metadata_beside_a_folder(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(IMAGES[i])
    lines = [json.dumps({"file_name": f"{i}.png", "category": NAMES[i], "weight": 0.5}) for i in range(6)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    labelled = open_labelled(tmp_path, "train")
    assert [NAMES[IMAGES.index(image)] for image in labelled.images] == names_of(labelled)


def test_the_label_column_is_found_or_named(tmp_path):
    write(tmp_path / "a", id=range(40), label=NAMES, caption=NAMES[::-1])
    assert names_of(open_labelled(tmp_path / "a", "train")) == NAMES
    assert names_of(open_labelled(tmp_path / "a", "train", label_column="caption")) == NAMES[::-1]


def test_the_embedded_digits():
    train, test = open_labelled("digits", "train"), open_labelled("digits", "test")
    assert {"image": list(train.images), "label": train.labels.tolist()} == digits("train")
    assert len(train) + len(test) == 1797 and test.class_names == list("0123456789")
    assert train.fingerprint != test.fingerprint and test.name == "embedded digits (test)"
    letters = open_labelled(None, "test")  # of several columns of labels the one that is called so
    assert letters.name == "embedded letters (test)" and len(letters.class_names) == 26


# -- access -----------------------------------------------------------------------------------------------------------


def test_images_are_read_where_they_are_asked_for(tmp_path):
    write(tmp_path / "a", label=NAMES)
    labelled = open_labelled(tmp_path / "a", "train")
    order = np.random.default_rng(0).permutation(40)
    assert [labelled.images[i] for i in order] == [IMAGES[i] for i in order]
    assert labelled.images[-1] == IMAGES[-1] and labelled.images[3:9:2] == IMAGES[3:9:2]
    with pytest.raises(IndexError):
        labelled.images[40]
    copy = pickle.loads(pickle.dumps(labelled))
    assert list(copy.images) == IMAGES and len(pickle.dumps(labelled)) < 20_000


def test_some_of_many(tmp_path):
    write(tmp_path / "a", label=NAMES)
    some = open_labelled(tmp_path / "a", "train", max_samples=15)
    assert len(some) == len(some.images) == 15
    assert [NAMES[IMAGES.index(image)] for image in some.images] == names_of(some)
    assert open_labelled(tmp_path / "a", "train", max_samples=15).fingerprint == some.fingerprint
    other = open_labelled(tmp_path / "a", "train", max_samples=15, seed=1)
    assert list(other.images) != list(some.images) and other.fingerprint != some.fingerprint
    assert list(open_labelled(tmp_path / "a", "train", max_samples=99).images) == IMAGES


def test_the_fingerprint_follows_the_labels(tmp_path):
    write(tmp_path / "a", label=NAMES, other=NAMES[::-1])
    first = open_labelled(tmp_path / "a", "train").fingerprint
    assert open_labelled(tmp_path / "a", "train").fingerprint == first
    assert open_labelled(tmp_path / "a", "train", label_column="other").fingerprint != first


def test_damaged_images_keep_their_place(tmp_path):
    write(tmp_path / "a", label=NAMES)
    images = [*IMAGES[:2], None, b"no image", *IMAGES[4:]]
    pq.write_table(
        pa.table({"image": pa.array(images, pa.binary()), "label": NAMES}), tmp_path / "a" / "train.parquet"
    )
    labelled = open_labelled(tmp_path / "a", "train")
    assert len(labelled) == 40 and labelled.images[4] == IMAGES[4] and names_of(labelled) == NAMES
    for i in (2, 3):
        with pytest.raises(DamagedImage):
            decode_image(labelled.images[i])


# -- no labels --------------------------------------------------------------------------------------------------------


def test_missing_labels_are_a_sentence_that_names_the_columns(tmp_path):
    write(tmp_path / "none", id=[[0.5]] * 40)
    with pytest.raises(
        DataError, match=r"none' has no column of labels. Its columns are: 'image' \(binary\), 'id' \(.*--label_column"
    ):
        open_labelled(tmp_path / "none", "train")
    with pytest.raises(DataError, match=r"Column 'id' of .* holds no labels: .*'id' \(List\)"):
        open_labelled(tmp_path / "none", "train", label_column="id")
    with pytest.raises(DataError, match=r"has no column 'lable'. Its columns are: 'image'"):
        open_labelled(tmp_path / "none", "train", label_column="lable")
    write(tmp_path / "null", label=pa.array([None] * 40, pa.string()))
    with pytest.raises(
        DataError,
        match=r"Column 'label' of split 'train' of .* says no class for any of 40 images.*'label' \(string\)",
    ):
        open_labelled(tmp_path / "null", "train")
    write(tmp_path / "share", label=[0.5, 1.0] * 20)
    with pytest.raises(DataError, match="holds 0.5, which is no class"):
        open_labelled(tmp_path / "share", "train")
    for i in range(3):
        (tmp_path / "flat").mkdir(exist_ok=True)
        (tmp_path / "flat" / f"{i}.png").write_bytes(IMAGES[i])
    with pytest.raises(
        DataError, match="flat' has no column of labels.*where each class has a folder of its own, or in a table"
    ):
        open_labelled(tmp_path / "flat", "train")


def test_what_has_no_label_is_left_out(tmp_path, caplog):
    caplog.set_level("INFO", logger="hfssl")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"image": [{"bytes": image, "path": None} for image in IMAGES[:4]], "label": [0, -1, 1, None]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    labelled = open_labelled(tmp_path / "saved", "train")
    assert names_of(labelled) == ["a", "b"] and list(labelled.images) == [IMAGES[0], IMAGES[2]]
    assert "says no class for 2 of 4 images (null, blank or -1), which are left out" in caplog.text
    for name, given, kept in (
        ("words", ["", "x", None, "y"] * 10, ["x", "y"] * 10),
        ("whole", [-1, 0, 1, 2, None] * 8, ["0", "1", "2"] * 8),
        ("floats", [-1.0, 0.0, 1.0, float("nan"), 2.0] * 8, ["0", "1", "2"] * 8),
        ("signs", [-1, 1] * 20, ["-1", "1"] * 20),  # of these, all are classes
        ("opinions", [-1, 0, 1, 0] * 10, ["-1", "0", "1", "0"] * 10),
        ("gaps", [-1, 0, 3, None] * 10, ["-1", "0", "3"] * 10),
    ):
        write(tmp_path / name, label=given)
        assert names_of(open_labelled(tmp_path / name, "train")) == kept, name
    # a split of -1 alone has no labels, and makes no class of it
    write(tmp_path / "two", label=[0, 1] * 20)
    write(tmp_path / "two", "test", label=[-1] * 40)
    assert open_labelled(tmp_path / "two", "train").class_names == ["0", "1"]
    with pytest.raises(DataError, match="says no class for any of 40 images"):
        open_labelled(tmp_path / "two", "test")


def test_whole_groups_are_held_out(tmp_path):
    patients = [f"p{number // 4}" for number in range(40)]
    write(tmp_path / "a", label=NAMES, patient=patients)
    kept, held_out = hold_out(open_labelled(tmp_path / "a", "train", label_column="label", group_column="patient"))
    assert not set(kept.groups) & set(held_out.groups) and len(kept) + len(held_out) == 40
    assert len(held_out) == 8  # two of ten
    of_image = dict(zip(IMAGES, patients, strict=True))
    assert [of_image[image] for image in held_out.images] == held_out.groups.tolist()
    write(tmp_path / "one", label=NAMES, patient=["p"] * 40)
    with pytest.raises(DataError, match="belongs to one group .'p'.*another `--split_by`"):
        hold_out(open_labelled(tmp_path / "one", "train", label_column="label", group_column="patient"))


def test_each_class_is_on_both_sides_where_its_groups_allow_it(tmp_path, caplog):
    # one class in few small groups, and a third of all in the first group of many
    labels = ["often"] * 60 + ["seldom"] * 6
    groups = ["g0"] * 20 + [f"g{1 + i // 4}" for i in range(40)] + [f"s{i // 2}" for i in range(6)]
    for seed in range(5):  # other names, other order
        write(tmp_path / str(seed), rows=[0] * 66, label=labels, patient=[f"{seed} {group}" for group in groups])
        kept, held_out = hold_out(
            open_labelled(tmp_path / str(seed), "train", label_column="label", group_column="patient")
        )
        assert not set(kept.groups) & set(held_out.groups)
        assert np.bincount(held_out.labels).tolist() == [12, 2], seed
    assert "Nothing of class" not in caplog.text
    write(tmp_path / "each", label=["a"] * 15 + ["b"] * 25, patient=["a"] * 15 + ["b"] * 25)
    kept, held_out = hold_out(open_labelled(tmp_path / "each", "train", label_column="label", group_column="patient"))
    assert (names_of(held_out), len(kept)) == (["a"] * 15, 25)
    assert "Nothing of class b is held out" in caplog.text and "Nothing of class a is left to learn" in caplog.text


def test_groups_have_the_same_names_in_all_splits_and_none_is_not_one_group(tmp_path, caplog):
    write(tmp_path / "a", label=NAMES, patient=[i // 4 for i in range(40)])
    write(tmp_path / "a", "test", range(4), label=NAMES[:4], patient=[2.0, None, float("nan"), 77.0])
    options = {"label_column": "label", "group_column": "patient"}
    train, test = (open_labelled(tmp_path / "a", split, **options) for split in ("train", "test"))
    assert set(keep_groups_apart(train, test).groups) == set(train.groups) - {"2"}
    assert len(set(test.groups)) == 4 and {"2", "77"} < set(test.groups)
    assert "Column 'patient' of split 'test' of" in caplog.text and "is empty in 2 of 4 rows" in caplog.text


def test_groups_that_are_measured_on_are_not_learned_from(tmp_path, caplog):
    write(tmp_path / "a", label=NAMES, patient=[f"p{number // 4}" for number in range(40)])
    write(tmp_path / "a", "test", range(4), label=NAMES[:4], patient=["p0", "p0", "new", "p9"])
    options = {"label_column": "label", "group_column": "patient"}
    train, test = (open_labelled(tmp_path / "a", split, **options) for split in ("train", "test"))
    apart = keep_groups_apart(train, test)
    assert len(apart) == 32 and not {"p0", "p9"} & set(apart.groups)
    assert "8 of the 40 samples" in caplog.text
    with pytest.raises(DataError, match="nothing is left to learn from"):
        keep_groups_apart(train, train)


# -- labels beside the files ------------------------------------------------------------------------------------------


def test_a_table_beside_the_files_whatever_its_columns_are_called(tmp_path):
    for i in range(8):
        path = tmp_path / "pictures" / ("a", "b")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGES[i])
    kinds = ["ok", "broken", "ok", None, "ok", "broken", "odd", "ok"]
    for how, spell in (("whole", "{}/{}.png"), ("last", "{1}.png"), ("stem", "{1}")):
        spelt = [spell.format(("a", "b")[i % 2], i) for i in range(8)]
        table = pd.DataFrame({"who": range(8), "Datei": spelt, "Befund": kinds, "patient": list("ppqqrrss")})
        table.iloc[::-1].to_csv(tmp_path / f"{how}.csv", index=False)
        labelled = open_labelled(
            tmp_path / "pictures", "train", label_column="Befund", group_column="patient",
            labels_file=tmp_path / f"{how}.csv",
        )  # fmt: skip
        of_image = {IMAGES[i]: (kinds[i], "ppqqrrss"[i]) for i in range(8) if kinds[i]}
        found = zip(labelled.images, names_of(labelled), labelled.groups.tolist(), strict=True)
        assert {image: (kind, patient) for image, kind, patient in found} == of_image
        assert labelled.class_names == ["broken", "odd", "ok"]
    with pytest.raises(DataError, match="has no column 'befund'.*Did you mean 'Befund'"):
        options = {"labels_file": tmp_path / "whole.csv"}
        open_labelled(tmp_path / "pictures", "train", label_column="befund", **options)
    table[["who", "Befund"]].to_csv(tmp_path / "nameless.csv", index=False)
    (tmp_path / "pictures" / "a" / "0.png").rename(tmp_path / "pictures" / "a" / "x.png")
    with pytest.raises(DataError, match="No column of `--labels .*nameless.csv` names the files.*'who', 'Befund'"):
        pd.DataFrame({"who": list("uvw"), "Befund": list("xyz")}).to_csv(tmp_path / "nameless.csv", index=False)
        open_labelled(tmp_path / "pictures", "train", labels_file=tmp_path / "nameless.csv")
    write(tmp_path / "table", label=NAMES)
    with pytest.raises(DataError, match="each file is a sample, and .*table' is .*parquet.*column of it"):
        open_labelled(tmp_path / "table", "train", labels_file=tmp_path / "whole.csv")
    with pytest.raises(DataError, match="is no table: .csv, .tsv"):
        open_labelled(tmp_path / "pictures", "train", labels_file="labels.xlsx")


def test_a_table_in_the_folder_is_found_and_offered(tmp_path, monkeypatch):
    for i in range(4):
        put(tmp_path / "pictures" / f"{i}.png", IMAGES[i])
    pd.DataFrame({"file": range(4), "label": list("xyxy")}).to_csv(tmp_path / "pictures" / "findings.csv")
    assert names_of(open_labelled(tmp_path / "pictures", "train")) == list("xyxy")
    # also where it has to be said which of its columns
    pd.DataFrame({"file": range(4), "age": [1, 2, 3, 4], "finding": list("pqpq")}).to_csv(
        tmp_path / "pictures" / "findings.csv"
    )
    assert names_of(open_labelled(tmp_path / "pictures", "train", label_column="finding")) == list("pqpq")
    # a table of something else is not offered
    pd.DataFrame({"lens": list("abcd"), "price": [9, 8, 7, 6]}).to_csv(
        tmp_path / "pictures" / "findings.csv", index=False
    )
    with pytest.raises(DataError, match="no column of labels.*No column of `--labels .*findings.csv` names the files"):
        open_labelled(tmp_path / "pictures", "train")
    pd.DataFrame({"file": range(4), "label": list("xyxy")}).to_csv(tmp_path / "pictures" / "findings.csv")
    # of several none is chosen
    pd.DataFrame({"file": range(4), "label": list("zzww")}).to_csv(tmp_path / "pictures" / "others.csv")
    with pytest.raises(DataError, match="no column of labels.*There is findings.csv.*`--labels findings.csv` takes"):
        open_labelled(tmp_path / "pictures", "train")
    assert names_of(open_labelled(tmp_path / "pictures", "train", labels_file="findings.csv")) == list("xyxy")
    # the one that was named goes before one of that name among the data
    monkeypatch.chdir(tmp_path)
    pd.DataFrame({"file": range(4), "label": list("uvuv")}).to_csv(tmp_path / "findings.csv")
    assert names_of(open_labelled("pictures", "train", labels_file="findings.csv")) == list("uvuv")
    with pytest.raises(
        DataError, match="No column of .* holds paths of image files.*pass their folder.*`--labels` takes"
    ):
        open_labelled("findings.csv", "train")


def test_a_row_of_a_table_is_about_the_file_of_one_split(tmp_path):
    for split in ("train", "test"):
        for i in range(4):
            put(tmp_path / "pictures" / split / f"{i}.png", IMAGES[i + 4 * (split == "test")])
    pd.DataFrame({"file": [f"{i}.png" for i in range(4)], "kind": list("xyxy")}).to_csv(tmp_path / "a.csv")
    for split in ("train", "test"):
        with pytest.raises(
            DataError, match=rf"two files of different splits: '0.png' is '{split}/0.png' and '.*split"
        ):
            open_labelled(tmp_path / "pictures", split, label_column="kind", labels_file=tmp_path / "a.csv")
    # both ways out
    of_train = {"label_column": "kind", "labels_file": tmp_path / "a.csv"}
    assert names_of(open_labelled(tmp_path / "pictures" / "train", "train", **of_train)) == list("xyxy")
    whole = [f"{split}/{i}.png" for split in ("test", "train") for i in range(4)]
    pd.DataFrame({"file": whole, "kind": list("xxyyxyxy")}).to_csv(tmp_path / "b.csv")
    for split, kinds in (("train", "xyxy"), ("test", "xxyy")):
        of_all = {"label_column": "kind", "labels_file": tmp_path / "b.csv"}
        assert names_of(open_labelled(tmp_path / "pictures", split, **of_all)) == list(kinds)


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_a_table_means_what_is_written_in_it(tmp_path, ending):
    for i in range(4):
        put(tmp_path / "pictures" / f"00{i}.png", IMAGES[i])
    table = pd.DataFrame({
        "file": [f"00{i}" for i in range(4)], "code": ["07", "7", "007", "7"], "word": ["NA", "None", "", "x"],
        "stars": [1, 2, 10, 2],
    })  # fmt: skip
    path = tmp_path / f"labels.{ending}"
    if ending.startswith("json"):
        table.to_json(path, orient="records", lines=ending == "jsonl")
    else:
        table.to_csv(path, index=False, sep="," if ending == "csv" else "\t")
    for column, classes, given in (
        ("code", ["007", "07", "7"], ["07", "7", "007", "7"]),
        ("word", ["NA", "None", "x"], ["NA", "None", "x"]),
        ("stars", ["1", "2", "10"], ["1", "2", "10", "2"]),
    ):
        labelled = open_labelled(tmp_path / "pictures", "train", label_column=column, labels_file=path)
        assert (labelled.class_names, names_of(labelled)) == (classes, given)


def test_rows_about_one_file_agree(tmp_path):
    for i in range(3):
        put(tmp_path / "pictures" / f"{i}.png", IMAGES[i])
    rows = {"file": ["0.png", "1.png", "1.png", "2.png", "2.png"], "kind": ["x", "y", "y", None, "x"], "box": range(5)}
    pd.DataFrame(rows).to_csv(tmp_path / "a.csv", index=False)
    options = {"labels_file": tmp_path / "a.csv"}
    assert names_of(open_labelled(tmp_path / "pictures", "train", label_column="kind", **options)) == ["x", "y", "x"]
    with pytest.raises(DataError, match=r"says both 1 and 2 of '1.png' in column 'box'.*one row for each file"):
        open_labelled(tmp_path / "pictures", "train", label_column="box", **options)


def test_a_table_beside_texts(tmp_path):
    (tmp_path / "texts").mkdir()
    for i, (text, _) in enumerate(TEXTS):
        (tmp_path / "texts" / f"{i}.txt").write_text(text)
    (tmp_path / "texts" / "9.txt").write_text(" ")  # blank: left out, and nobody else gets its label
    table = pd.DataFrame({"file": [f"{i}.txt" for i in range(4)], "verdict": [label for _, label in TEXTS]})
    table.to_json(tmp_path / "labels.jsonl", orient="records", lines=True)
    options = {"modality": "text", "labels_file": tmp_path / "labels.jsonl", "label_column": "verdict"}
    assert texts_of(open_labelled(tmp_path / "texts", "train", **options)) == TEXTS


def test_texts_in_class_folders_beside_a_table(tmp_path):
    for i, (text, label) in enumerate(TEXTS):
        put(tmp_path / "texts" / label / f"{i}.txt", text.encode())
    (tmp_path / "texts" / "no" / "9.txt").write_text(" ")
    table = pd.DataFrame({"file": [f"{i}.txt" for i in (0, 1, 2, 3, 9)], "author": list("uvvux")})
    table.to_csv(tmp_path / "authors.csv", index=False)
    options = {"modality": "text", "labels_file": tmp_path / "authors.csv", "group_column": "author"}
    labelled = open_labelled(tmp_path / "texts", "train", **options)
    assert sorted(texts_of(labelled)) == sorted(TEXTS)
    of_text = {text: "uvvu"[i] for i, (text, _) in enumerate(TEXTS)}
    assert labelled.groups.tolist() == [of_text[text] for text in labelled.samples]


@pytest.mark.parametrize("how", ["metadata", "named", "found", "of each split"])
def test_class_folders_keep_their_labels_beside_a_table(tmp_path, how, caplog):
    caplog.set_level("INFO", logger="hfssl")
    folder, kinds, patients = tmp_path / "pictures", "abbaab", "ppqqrr"
    names = [f"{'train' if i < 4 else 'test'}/{kinds[i]}/{i}.png" for i in range(6)]
    for name, image in zip(names, IMAGES, strict=False):
        put(folder / name, image)
    # y may be the place of a box
    table = pd.DataFrame({"file_name": names, "age": range(6), "y": range(6), "patient": list(patients)})
    options = {"group_column": "patient"}
    if how == "of each split":
        for split in ("train", "test"):
            mine = table[table.file_name.str.startswith(split)]
            mine.assign(file_name=mine.file_name.str.removeprefix(f"{split}/")).to_csv(folder / split / "metadata.csv")
    elif how == "named":
        table.to_csv(tmp_path / "patients.csv")
        options["labels_file"] = tmp_path / "patients.csv"
    else:
        table.to_csv(folder / ("metadata.csv" if how == "metadata" else "patients.csv"), index=False)
    for split, rows in (("train", range(4)), ("test", range(4, 6))):
        labelled = open_labelled(folder, split, **options)
        found = zip(labelled.images, names_of(labelled), labelled.groups.tolist(), strict=True)
        assert set(found) == {(IMAGES[i], kinds[i], patients[i]) for i in rows}
        assert labelled.class_names == ["a", "b"]
    assert "are the names of its class folders. Another column may be named instead: it has 'image'" in caplog.text


def test_a_column_of_labels_goes_before_class_folders(tmp_path, caplog):
    caplog.set_level("INFO", logger="hfssl")
    folder = tmp_path / "pictures"
    for i in range(4):
        put(folder / "ab"[i % 2] / f"{i}.png", IMAGES[i])
    table = pd.DataFrame({"file_name": [f"{'ab'[i % 2]}/{i}.png" for i in range(4)], "age": [7, 8, 7, 8]})
    of_image = {IMAGES[i]: ("xxyy"[i], "ab"[i % 2]) for i in range(4)}
    for place, options in (
        (folder / "metadata.csv", {}), (tmp_path / "other.csv", {"labels_file": tmp_path / "other.csv"})
    ):  # fmt: skip
        table.assign(category=list("xxyy")).to_csv(place, index=False)
        for number, asked in enumerate(({}, {"label_column": "label"})):
            labelled = open_labelled(folder, "train", **options, **asked)
            assert names_of(labelled) == [of_image[image][number] for image in labelled.images]
        place.unlink()
    assert "are column 'category'. That of the class folders is 'label', and may be named instead" in caplog.text
    # one of that name is it
    table.assign(label=list("xxyy")).to_csv(folder / "metadata.csv", index=False)
    labelled = open_labelled(folder, "train", label_column="label")
    assert names_of(labelled) == [of_image[image][0] for image in labelled.images]
    (folder / "metadata.csv").unlink()
    # a table that was named is there for its labels: folders are not taken for them in silence, but may be named
    table.to_csv(tmp_path / "findings.csv", index=False)
    options = {"labels_file": tmp_path / "findings.csv"}
    with pytest.raises(DataError, match="no column of labels.*'age'.*`--label_column label` takes the class folders"):
        open_labelled(folder, "train", **options)
    assert set(names_of(open_labelled(folder, "train", label_column="label", **options))) == {"a", "b"}
    assert set(names_of(open_labelled(folder, "train", label_column="age", **options))) == {"7", "8"}


def test_metadata_that_do_not_say_the_file_are_passed_over_and_a_table_of_labels(tmp_path, caplog):
    for i in range(6):
        put(tmp_path / ("train" if i < 4 else "test") / f"{i}.png", IMAGES[i])
    table = pd.DataFrame({"image_id": range(6), "finding": list("xyxyxy")})
    table.to_csv(tmp_path / "metadata.csv", index=False)
    assert set(open_source(tmp_path, modality="image").features) == {"image"}
    assert "has no column `file_name`" in caplog.text and "Its columns are: image_id, finding." in caplog.text
    labelled = open_labelled(tmp_path, "train", label_column="finding")
    assert [list("xyxy")[IMAGES.index(image)] for image in labelled.images] == names_of(labelled)
    with pytest.raises(DataError, match=r"no column of labels.*'finding' \(string\).*`--label_column`"):
        open_labelled(tmp_path, "train")


def test_a_json_file_beside_the_files_is_no_reason_to_pass_over_the_table(tmp_path):
    for i in range(4):
        put(tmp_path / f"{i}.png", IMAGES[i])
    (tmp_path / "info.json").write_text('{"a": 1}')
    pd.DataFrame({"file": range(4), "label": list("xyxy")}).to_csv(tmp_path / "findings.csv")
    assert names_of(open_labelled(tmp_path, "train")) == list("xyxy")
    (tmp_path / "info.json").unlink()
    (tmp_path / "findings.csv").unlink()
    pd.DataFrame({"file": range(4), "label": list("zwzw")}).to_json(tmp_path / "labels.json", orient="records")
    assert names_of(open_labelled(tmp_path, "train")) == list("zwzw")


# -- texts ------------------------------------------------------------------------------------------------------------


def texts_of(labelled):
    return list(zip(labelled.samples, (labelled.class_names[label] for label in labelled.labels), strict=True))


TEXTS = [("a good one", "yes"), ("a bad one", "no"), ("none of it", "no"), ("fine, all\nof it", "yes")]


def test_texts_in_class_folders(tmp_path):
    for i, (text, label) in enumerate(TEXTS):
        for split in ("train", "test"):
            path = tmp_path / split / label / f"{i}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    labelled = open_labelled(tmp_path, "train", modality="text")
    assert sorted(texts_of(labelled)) == sorted(TEXTS) and labelled.modality == "text"
    by_line = open_labelled(tmp_path, "train", modality="text", sample_by="line")
    assert sorted(texts_of(by_line)) == sorted([*TEXTS[:3], ("fine, all", "yes"), ("of it", "yes")])


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_texts_in_tables(tmp_path, ending):
    table = pd.DataFrame(TEXTS * 5 + [("without", None), (None, "yes")], columns=["review", "verdict"])
    writers = {
        "csv": lambda path: table.to_csv(path, index=False), "parquet": table.to_parquet,
        "jsonl": lambda path: table.to_json(path, orient="records", lines=True),
    }  # fmt: skip
    writers[ending](tmp_path / f"my.{ending}")
    options = {"column": "review", "label_column": "verdict", "modality": "text"}
    labelled = open_labelled(tmp_path / f"my.{ending}", "train", **options)
    assert texts_of(labelled) == TEXTS * 5
    some = open_labelled(tmp_path / f"my.{ending}", "train", max_samples=7, **options)
    assert len(some) == 7 and set(texts_of(some)) <= set(TEXTS)
    kept, held_out = hold_out(labelled)
    assert set(held_out.samples).isdisjoint(kept.samples) and len(kept) + len(held_out) == 20


def test_several_candidates(tmp_path):
    features = datasets.Features(
        {"image": datasets.Image(), "a": datasets.ClassLabel(names=["x"]), "b": datasets.ClassLabel(names=["y"])}
    )
    rows = {"image": [{"bytes": IMAGES[0], "path": None}], "a": [0], "b": [0]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    with pytest.raises(
        DataError, match=r"2 columns of labels.*'a' \(ClassLabel of 1\), 'b' \(ClassLabel of 1\).*--label_column"
    ):
        open_labelled(tmp_path / "saved", "train")


def test_cifar(shared_data):
    labelled = open_labelled(shared_data / "cifar10", "test")
    assert np.bincount(labelled.labels).tolist() == [1000] * 10 and labelled.class_names[0] == "airplane"
    assert decode_image(labelled.images[1234]).shape == (3, 32, 32)


def put(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)


def test_a_fifth_of_each_class_is_held_out_by_content(tmp_path):
    folder = tmp_path / "animals"
    for i in range(57):
        name = ("ants", "bees", "cats")[0 if i < 40 else 1 if i < 56 else 2]
        put(folder / name / f"{i}.png", png(i))
    (folder / "ants" / "copy.png").write_bytes(png(3))
    data = open_labelled(folder, "train")
    train, test = hold_out(data)
    assert len(train) + len(test) == len(data) == 58
    assert set(train.images).isdisjoint(test.images)
    # a copy may go with its image, and a single image stays
    assert np.bincount(test.labels, minlength=3).tolist() in ([8, 3, 0], [9, 3, 0])
    assert train.class_names == test.class_names == ["ants", "bees", "cats"]
    assert test.name == "a fifth of animals (train)" and train.fingerprint != test.fingerprint != data.fingerprint
    # other names, other order: the same images
    other = tmp_path / "other"
    for i, path in enumerate(sorted(folder.rglob("*.png"))):
        put(other / path.parent.name / f"{99 - i}.png", path.read_bytes())
    assert set(hold_out(open_labelled(other, "train"))[1].images) == set(test.images)
    single = tmp_path / "single"
    for name in "ab":
        put(single / name / "0.png", png(0))
        put(single / name / "1.png", png(0))
    with pytest.raises(DataError, match="no class with two different images"):
        hold_out(open_labelled(single, "train"))


def test_images_are_named_where_they_lie(tmp_path):
    for i in range(6):
        put(tmp_path / "ab"[i % 2] / f"{i}.png", png(i))
    images = open_labelled(tmp_path, "train").images
    assert [images.where(i) for i in range(6)] == [f"{'ab'[i % 2]}/{i}.png" for i in (0, 2, 4, 1, 3, 5)]


# -- columns by which figures are told apart ---------------------------------------------------------------------------


def test_groups_are_no_labels_and_come_with_each_sample(tmp_path):
    sexes = pa.array([("f", "m", None)[i % 3] for i in range(40)])
    write(tmp_path / "d", label=NAMES, sex=sexes, site=[i % 2 for i in range(40)])
    plain = open_labelled(tmp_path / "d", "train")
    data = open_labelled(tmp_path / "d", "train", compared_by=("sex", "site"))
    assert names_of(data) == NAMES and data.fingerprint == plain.fingerprint  # features of it are the same
    assert data.compared_by["sex"].tolist() == [("f", "m", "not stated")[i % 3] for i in range(40)]
    assert data.compared_by["site"].tolist() == [str(i % 2) for i in range(40)]
    train, test = hold_out(data)
    for part in (train, test):
        rows = [IMAGES.index(image) for image in part.images]
        assert part.compared_by["site"].tolist() == [str(row % 2) for row in rows]
    also = open_labelled(tmp_path / "d", "train", compared_by=("site",), group_column="site")
    assert also.compared_by["site"].tolist() == also.groups.tolist()


def test_of_two_columns_of_classes_the_one_that_is_no_group_has_the_labels(tmp_path):
    schema = datasets.Features(
        {"image": datasets.Image(), "sex": datasets.ClassLabel(names=["f", "m"]), "sick": datasets.ClassLabel(names=["n", "y"])}
    )  # fmt: skip
    rows = {
        "image": [{"bytes": each, "path": None} for each in IMAGES],
        "sex": [i % 2 for i in range(40)],
        "sick": [0, 1, 1, 0] * 10,
    }
    (tmp_path / "d").mkdir()
    datasets.Dataset.from_dict(rows, schema).to_parquet(tmp_path / "d" / "train.parquet")
    data = open_labelled(tmp_path / "d", "train", compared_by=("sex",))
    assert names_of(data) == ["n", "y", "y", "n"] * 10 and data.compared_by["sex"].tolist() == ["f", "m"] * 20


@pytest.mark.parametrize(
    "column, message",
    [
        ("label", "`--group_column label` is the column of the labels"),
        ("age", "`--group_column age` has 60 different values .* at most 50 groups"),
        ("sexx", "has no column 'sexx'.* Did you mean 'sex'"),
    ],
)
def test_groups_that_cannot_be_compared(tmp_path, column, message):
    rows = [i % 40 for i in range(60)]
    write(tmp_path / "d", rows=rows, label=[NAMES[i] for i in rows], age=np.linspace(0, 90, 60), sex=["f"] * 60)
    with pytest.raises(DataError, match=message):
        open_labelled(tmp_path / "d", "train", label_column="label", compared_by=(column,))


def test_groups_in_a_table_beside_class_folders(tmp_path):
    names = [f"{i}.png" for i in range(12)]
    for i, name in enumerate(names):
        path = tmp_path / "d" / NAMES[i] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(IMAGES[i])
    pd.DataFrame({"file": names, "sex": ["f", "m"] * 6, "age": range(12)}).to_csv(tmp_path / "d" / "people.csv")
    for labels_file in (None, tmp_path / "d" / "people.csv"):  # found, or named
        data = open_labelled(tmp_path / "d", "train", compared_by=("sex",), labels_file=labels_file)
        rows = [IMAGES.index(image) for image in data.images]
        assert names_of(data) == [NAMES[row] for row in rows]
        assert data.compared_by["sex"].tolist() == ["fm"[row % 2] for row in rows]
