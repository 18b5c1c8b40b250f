"""Who trains on one book holds out some of its passages."""

import regex
import tiny

from hfssl.data.held_out import held_out_samples
from hfssl.data.mixtures import open_mixture
from hfssl.data.sources import MemorySource, open_source
from hfssl.data.text.passages import FEWEST_TEXTS, LONGEST, SHORTEST, cut, in_passages


SENTENCES = tiny.texts(300)


def test_passages_are_the_text_and_end_where_it_pauses():
    text = ". ".join(SENTENCES)
    passages = list(cut(text, 200))
    assert "".join(passages) == text
    assert all(100 <= len(passage) <= 200 for passage in passages[:-1])
    assert all(passage.endswith((". ", " ")) for passage in passages[:-1])
    assert sum(passage.endswith(". ") for passage in passages) > len(passages) / 2
    lines = "\n".join(SENTENCES[:40]) + "\n \n" + "\n".join(SENTENCES[40:80])
    assert all(passage.endswith("\n") for passage in list(cut(lines, 600))[:-1])
    assert "".join(cut(lines, 600)) == lines and len(list(cut("short", 200))) == 1


def test_without_a_pause_no_letter_is_parted_from_its_marks():
    for letter in ("字", "e\u0301\u0323", "กำ", "👩\u200d🔬"):
        text = letter * 1000
        passages = list(cut(text, 200))
        assert "".join(passages) == text and max(map(len, passages)) <= 200
        clusters = sum(len(regex.findall(r"\X", passage)) for passage in passages)
        assert clusters == len(regex.findall(r"\X", text))


def test_one_text_becomes_many_and_many_stay_as_they_are(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text(" ".join(SENTENCES))
    for sample_by in ("line", "document"):
        source = in_passages(open_source(path, sample_by=sample_by))
        assert source.num_rows > 50 and "1 row" in source.description and "passages" in source.description
        texts = [text for piece in range(len(source)) for text in source.read(piece).columns["text"]]
        assert "".join(texts) == path.read_text() and max(map(len, texts)) <= SHORTEST
        held_out = held_out_samples(source)
        assert 1 <= len(held_out) < 0.3 * len(texts) and set(held_out) < set(texts)
    path.write_text("\n".join(SENTENCES))
    source = open_source(path)
    assert in_passages(source) is source
    short = MemorySource([text[:SHORTEST] for text in SENTENCES[: FEWEST_TEXTS - 1]], name="short")
    assert in_passages(short) is short


def test_passages_of_long_texts_are_not_too_long_and_damage_is_kept(tmp_path):
    text = " ".join(SENTENCES * 40)
    source = in_passages(MemorySource([text, text], name="long"))
    read = source.read(0)
    assert SHORTEST < max(map(len, read.columns["text"])) <= LONGEST and 900 < source.num_rows < 2200
    path = tmp_path / "book.jsonl"
    path.write_text('{"text": "' + text + '"}\n{"text": 5}\n')
    source = in_passages(open_source(path))
    bad = [reason for piece in range(len(source)) for _, reason in source.read(piece).bad]
    assert len(bad) == 1 and "book.jsonl" in bad[0] and "not text" in bad[0]


def test_of_a_mixture_each_source_for_itself(tmp_path):
    (tmp_path / "book.txt").write_text(" ".join(SENTENCES))
    (tmp_path / "lines.txt").write_text("\n".join(SENTENCES))
    mixture = open_mixture(
        f"{tmp_path / 'book.txt'},{tmp_path / 'lines.txt'}", prepare=lambda _, source: in_passages(source)
    )
    assert [part.source.num_rows > 50 for part in mixture.parts] == [True, True]
    assert mixture.parts[1].source.num_rows == len(SENTENCES)
