"""Recordings in folders, zips, tars, tables and mixtures, and the embedded speech."""

import io
import tarfile
import zipfile

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from hfssl.data.audio import speech as synthetic
from hfssl.data.audio.decode import decode_audio
from hfssl.data.held_out import held_out_samples
from hfssl.data.labelled import open_labelled
from hfssl.data.mixtures import open_mixture
from hfssl.data.sources import DataError, open_source


def sound(number, kind="WAV", seconds=0.05):
    """A recording that says its number."""
    file = io.BytesIO()
    samples = np.full(round(16_000 * seconds), (number + 1) / 100, np.float32)
    samples[::2] *= -1
    soundfile.write(file, samples, 16_000, format=kind)
    return file.getvalue()


def number_of(data):
    return round(100 * float(np.abs(decode_audio(data, 16_000)).max())) - 1


def all_of(source):
    return [sample for piece in range(len(source)) for sample in source.read(piece).columns["audio"]]


SOUNDS = [sound(i, ("WAV", "FLAC")[i % 2]) for i in range(20)]
NAMES = [f"{'ab'[i // 10]}/{i:02d}.{('wav', 'FLAC')[i % 2]}" for i in range(20)]


@pytest.fixture
def folder(tmp_path):
    for name, data in zip(NAMES, SOUNDS, strict=True):
        path = tmp_path / "clips" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return tmp_path / "clips"


def test_a_folder_of_recordings(folder):
    (folder / "a" / "notes.md").write_text("no sound")
    source = open_source(folder, modality="audio")
    assert source.description == "20 audio files in 2 class folders" and source.modality == "audio"
    assert [number_of(data) for data in all_of(source)] == list(range(20))
    assert source.features["label"].names == ["a", "b"] and source.where(0, 3) == "a/03.FLAC"
    # the fingerprint does not say where the folder lies
    assert open_source(str(folder / "a" / ".." / "*" / "*.*"), modality="audio").num_rows == 20
    with pytest.raises(DataError, match="holds sound, no texts"):
        open_source(folder, modality="text")


def test_a_folder_with_columns_beside(folder, caplog):
    lines = [f"{name},{i},word {i}" for i, name in enumerate(NAMES)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,number,text", *lines]))
    source = open_source(folder, modality="audio", extra_columns=["number", "text"])
    read = [source.read(piece).columns for piece in range(len(source))]
    pairs = [pair for each in read for pair in zip(each["audio"], each["number"], each["text"], strict=True)]
    assert len(pairs) == 20 and all(number_of(a) == n and text == f"word {n}" for a, n, text in pairs)
    (folder / "metadata.csv").write_text("file_name,number\nclips/x.wav,1\n")
    with pytest.raises(DataError, match=r"No file that .*metadata.csv' names .* as in 'a/00.wav'"):
        open_source(folder, modality="audio")
    (folder / "metadata.csv").write_text("file,number\na/00.wav,1\n")
    with caplog.at_level("WARNING"):
        assert set(open_source(folder, modality="audio").features) == {"audio", "label"}
    assert "has no column `file_name`" in caplog.text and "Its columns are: file, number." in caplog.text


SAMPLES = np.round(np.sin(np.arange(800)) * 2**14) / 2**15  # as wav holds them
WHOLE = (SAMPLES * 2**15).astype(int).tolist()
STEREO = [SAMPLES.tolist()] * 2  # channels first
OF_STRUCTURE = "row['audio']['array'], row['audio']['sampling_rate']"
STEREO_OF_STRUCTURE = "np.array(row['audio']['array']).T, row['audio']['sampling_rate']"


def structure(values):
    return {"array": values, "sampling_rate": 16_000, "path": "a.wav"}


DECODED = [
    (structure(SAMPLES.tolist()), OF_STRUCTURE, None),
    (SAMPLES.tolist(), "row['audio'], 16_000", None),
    (WHOLE, "np.array(row['audio'], 'int16'), 16_000", None),
    (WHOLE, "np.array(row['audio'], 'int16'), 16_000", datasets.List(datasets.Value("int16"))),
    (structure(WHOLE), "np.array(row['audio']['array'], 'int16'), row['audio']['sampling_rate']", None),
    (structure(STEREO), STEREO_OF_STRUCTURE, None),
    ([WHOLE] * 2, "np.array(row['audio'], 'int16').T, 16_000", None),
    (STEREO, "np.array(row['audio']).T, 16_000", datasets.Array2D((2, len(SAMPLES)), "float32")),
]
COLUMNS = {dict: (None, "audio", "audio.array"), list: (None, "audio")}


@pytest.mark.parametrize(
    "decoded, sound, feature, column", [(*case, column) for case in DECODED for column in COLUMNS[type(case[0])]]
)
def test_how_decoded_sound_is_read_is_said_and_works(tmp_path, decoded, sound, feature, column):
    features = feature and datasets.Features({"audio": feature})
    made = datasets.Dataset.from_dict({"audio": [decoded] * 2}, features=features)
    made.to_parquet(tmp_path / "decoded.parquet")
    with pytest.raises(DataError, match="sound that is decoded already, make files of it again") as raised:
        open_source(tmp_path / "decoded.parquet", modality="audio", column=column)
    steps = [each.replace("sampling_rate,", "16_000,") for each in str(raised.value).split("`")[1::2]]
    steps = [each for each in steps if each != ".T"]
    assert (column is not None) == ("--audio_column" in steps)
    assert steps[-3:] == ["file = io.BytesIO()", f"soundfile.write(file, {sound}, format='WAV')",
                          "return {'audio': file.getvalue()}"]  # fmt: skip

    def convert(row):
        names = {"io": io, "np": np, "soundfile": soundfile, "row": row}
        exec("\n".join(steps[-3:-1]), names)
        return eval(steps[-1].removeprefix("return "), names)

    made.map(convert).to_parquet(tmp_path / "encoded.parquet")
    found = all_of(open_source(tmp_path / "encoded.parquet", modality="audio", column=column and "audio"))
    assert len(found) == 2 and np.allclose(decode_audio(found[0], 16_000), SAMPLES, atol=1e-4)


def test_how_paths_are_read_is_said_and_works(tmp_path):
    (tmp_path / "a.wav").write_bytes(SOUNDS[4])
    made = datasets.Dataset.from_dict({"audio": [str(tmp_path / "a.wav")], "word": ["a"]})
    made.to_parquet(tmp_path / "paths.parquet")
    with pytest.raises(DataError, match=r"convert it: `ds.cast_column\('audio', datasets.Audio\(\)\)`"):
        open_source(tmp_path / "paths.parquet", modality="audio")
    made.cast_column("audio", datasets.Audio()).to_parquet(tmp_path / "cast.parquet")
    assert [number_of(data) for data in all_of(open_source(tmp_path / "cast.parquet", modality="audio"))] == [4]
    with pytest.raises(DataError, match=r"Choose one with `--audio_column`. If 'word' holds the paths"):
        open_source(tmp_path / "paths.parquet", modality="audio", column="word")
    nested = datasets.Dataset.from_dict({"sample": [{"audio": str(tmp_path / "a.wav")}]})
    nested.to_parquet(tmp_path / "nested.parquet")
    with pytest.raises(DataError, match=r"`ds.flatten\(\).cast_column\('sample.audio', datasets.Audio\(\)\)`"):
        open_source(tmp_path / "nested.parquet", modality="audio")
    nested.flatten().cast_column("sample.audio", datasets.Audio()).to_parquet(tmp_path / "flat.parquet")
    assert [number_of(data) for data in all_of(open_source(tmp_path / "flat.parquet", modality="audio"))] == [4]
    # no name that sound usually has
    made.remove_columns("audio").to_parquet(tmp_path / "words.parquet")
    with pytest.raises(DataError, match="Use another data set or convert a column"):
        open_source(tmp_path / "words.parquet", modality="audio")


def test_zips_and_tars(tmp_path):
    (tmp_path / "zips").mkdir()
    with zipfile.ZipFile(tmp_path / "zips" / "some.zip", "w") as archive:
        for name, data in zip(NAMES, SOUNDS, strict=True):
            archive.writestr(name, data)
    assert [number_of(data) for data in all_of(open_source(tmp_path / "zips", modality="audio"))] == list(range(20))
    with tarfile.open(tmp_path / "some.tar", "w") as tar:
        for i, data in enumerate(SOUNDS):
            for ending, content in ((("wav", "flac")[i % 2], data), ("txt", f"word {i}".encode())):
                member = tarfile.TarInfo(f"{i:03d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    source = open_source(tmp_path / "some.tar", modality="audio", extra_columns=["txt"])
    assert "column 'audio'" in source.description
    read = [source.read(piece).columns for piece in range(len(source))]
    pairs = [pair for each in read for pair in zip(each["audio"], each["txt"], strict=True)]
    assert [(number_of(a), text) for a, text in pairs] == [(i, f"word {i}") for i in range(20)]


@pytest.mark.parametrize("kind", ["typed", "struct", "bytes", "path", "saved", "arrow"])
def test_tables_with_encoded_recordings(kind, folder, tmp_path):
    paths = [str(folder / name) for name in NAMES]
    values = {
        "bytes": SOUNDS, "path": [{"bytes": None, "path": path} for path in paths],
    }.get(kind, [{"bytes": data, "path": None} for data in SOUNDS])  # fmt: skip
    table = pa.table({"sound": values, "n": list(range(20))})
    where = tmp_path / "table.parquet"
    if kind in ("typed", "saved", "arrow", "path"):
        features = datasets.Features({"sound": datasets.Audio(decode=False), "n": datasets.Value("int64")})
        typed = datasets.Dataset(table.cast(features.arrow_schema))
        if kind == "saved":
            where = tmp_path / "saved"
            typed.save_to_disk(where)
        elif kind == "arrow":
            where = next(iter((tmp_path / "a").glob("*.arrow")), None) or _arrow(typed, tmp_path / "a")
        else:
            pq.write_table(typed.data.table, where)
    else:
        pq.write_table(table, where)
    source = open_source(where, modality="audio", extra_columns=["n"])
    read = [source.read(piece).columns for piece in range(len(source))]
    pairs = [pair for each in read for pair in zip(each["audio"], each["n"], strict=True)]
    assert [(number_of(a), n) for a, n in pairs] == [(i, i) for i in range(20)]


def _arrow(typed, folder):
    typed.save_to_disk(folder)
    return next(iter(folder.glob("*.arrow")))


def test_missing_and_empty_files_are_damaged(folder):
    source = open_source(folder, modality="audio")
    (folder / "a" / "01.FLAC").unlink()
    (folder / "a" / "02.wav").write_bytes(b"")
    bad = [(source.where(0, row), reason) for piece in range(len(source)) for row, reason in source.read(piece).bad]
    assert [name for name, _ in bad] == ["a/01.FLAC", "a/02.wav"]
    assert "missing" in bad[0][1] and "empty" in bad[1][1] and len(all_of(source)) == 18


def test_held_out_recordings_and_mixtures(folder, tmp_path):
    held_out = held_out_samples(open_source(folder, modality="audio"), fraction=0.2)
    assert 0 < len(held_out) < 12 and all(data in SOUNDS for data in held_out)
    other = tmp_path / "other"
    other.mkdir()
    for i in range(5):
        (other / f"{i}.wav").write_bytes(sound(50 + i))
    mixed = open_mixture(f"{folder}:1,{other}:1", modality="audio")
    assert mixed.num_rows == 25 and "recordings" in mixed.description


def test_labelled_recordings(folder, tmp_path):
    data = open_labelled(folder, "train", modality="audio")
    assert data.class_names == ["a", "b"] and data.labels.tolist() == 10 * [0] + 10 * [1]
    assert [number_of(sample) for sample in data.samples] == list(range(20))
    assert data.samples.where(3) == "a/03.FLAC"
    (folder / "metadata.jsonl").write_text(
        "\n".join(f'{{"file_name": "{n}", "class": "00{i % 3}"}}' for i, n in enumerate(NAMES))
    )
    data = open_labelled(folder, "train", modality="audio")
    assert data.class_names == ["000", "001", "002"] and data.labels.tolist() == [i % 3 for i in range(20)]


def test_the_embedded_speech_is_synthetic_and_labelled(monkeypatch, tmp_path):
    from hfssl.data import cache

    monkeypatch.setattr(cache.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(synthetic, "NUM_RECORDINGS", {"train": 48, "test": 24})
    source = open_source(None, modality="audio", extra_columns=["label", "speaker", "text"])
    assert "synthetic speech" in source.description and source.num_rows == 48
    [file] = (tmp_path / "hfssl").iterdir()
    again = synthetic.speech("train")
    assert again["audio"] == all_of(source)
    file.unlink()
    assert synthetic.speech("train") == again  # made anew, the same
    train, test = (open_labelled(None, split, modality="audio") for split in ("train", "test"))
    assert train.class_names == list(synthetic.WORDS) and len(train.class_names) == 24
    assert np.bincount(train.labels).tolist() == 24 * [2] and len(test) == 24
    assert set(train.samples).isdisjoint(test.samples)
    speakers = open_labelled(None, "train", modality="audio", label_column="speaker")
    assert speakers.class_names == list(synthetic.SPEAKERS)
    sounds = [decode_audio(data, 16_000) for data in train.samples]
    assert all(0.5 < len(sound) / 16_000 < 2 and 0.02 < np.abs(sound).max() <= 1 for sound in sounds)


def test_a_synthetic_voice_has_its_pitch_and_a_vowel_its_resonances():
    generator = np.random.default_rng(0)
    names = list(synthetic.SPEAKERS)
    low, high = (names.index(name) for name in ("dan", "hana"))
    pitches = []
    for speaker in (low, high):
        [said] = synthetic.synthesise(["bababa"], np.array([speaker]), generator)
        middle = said[len(said) // 2 :][:4000]
        correlation = np.correlate(middle, middle, "full")[len(middle) + 40 :][:200]
        # the first of the periods, of which all multiples look alike
        pitches.append(16_000 / (np.flatnonzero(correlation > 0.85 * correlation.max())[0] + 41))
    assert 75 < pitches[0] < 125 < 190 < pitches[1] < 300


def test_order_is_what_sets_words_apart():
    sets = {tuple(sorted(word[i : i + 2] for i in (0, 2, 4))) for word in synthetic.WORDS}
    assert len(set(synthetic.WORDS)) == 24 and len(sets) == 4


def split_folder(folder):
    for row, name in enumerate(("train/wavs/a", "train/wavs/b", "test/wavs/c")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.wav").write_bytes(sound(row))


def test_metadata_in_the_root_is_about_the_files_of_all_splits(tmp_path):
    split_folder(tmp_path)
    lines = ["file_name,text", "train/wavs/a.wav,one", "train/wavs/b.wav,two", "test/wavs/c.wav,three"]
    (tmp_path / "metadata.csv").write_text("\n".join(lines))
    found = {
        split: open_labelled(str(tmp_path), split, modality="audio", transcripts=True) for split in ("train", "test")
    }
    said = {split: [data.class_names[label] for label in data.labels] for split, data in found.items()}
    assert said == {"train": ["one", "two"], "test": ["three"]}
    # it may say nothing of a split, but not nothing at all
    (tmp_path / "metadata.csv").write_text("\n".join(lines[:3]))
    source = open_source(tmp_path, split="test", modality="audio", extra_columns=["text"])
    assert "text" in source.columns
    (tmp_path / "metadata.csv").write_text("file_name,text\nother/d.wav,four\n")
    with pytest.raises(DataError, match="No file that .*metadata.csv' names"):
        open_source(tmp_path, split="test", modality="audio")


@pytest.mark.parametrize("name, table", [
    ("said.tsv", "clip\tsentence\na\tone\nb\ttwo\nc\tthree\n"),
    ("lines.csv", "sentence,path\none,train/wavs/a.wav\ntwo,train/wavs/b.wav\nthree,test/wavs/c.wav\n"),
])  # fmt: skip
def test_the_only_table_beside_the_files_says_what_is_known_of_them(tmp_path, name, table, caplog):
    split_folder(tmp_path)
    (tmp_path / name).write_text(table)
    with caplog.at_level("INFO"):
        data = open_labelled(str(tmp_path), "train", modality="audio", transcripts=True)
    assert [data.class_names[label] for label in data.labels] == ["one", "two"]
    assert f"is read from {tmp_path / name}, as with `--labels`" in caplog.text
    # of two nobody knows which, and of something else none is taken
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    for _ in range(2):
        with pytest.raises(DataError, match="has no transcripts"):
            open_labelled(str(tmp_path), "train", modality="audio", transcripts=True)
        (tmp_path / name).unlink(missing_ok=True)
