import os

import pytest

from hfssl.data import cache
from hfssl.data.sources import available_splits, open_source
from hfssl.data.text import embedded
from hfssl.data.text.embedded import collect, embedded_text, passages


@pytest.fixture
def library(tmp_path):
    """A standard library in small."""
    folder = tmp_path / "library"
    (folder / "pydoc_data").mkdir(parents=True)
    (folder / "pydoc_data" / "topics.py").write_text(
        f"# generated\ntopics = {{'with': {'A paragraph about with.' * 3!r}, 'if': {'A paragraph about if.' * 3!r}}}\n"
    )
    (folder / "b.py").write_text(
        '"""The module docstring, which is long enough to be kept.\n\n    Indented part.\n    """\n'
        "import not_there\n\n"
        "class A:\n"
        '    """The class docstring, which is long enough to be kept."""\n'
        "    async def f(self):\n"
        '        """The method docstring, which is long enough to be kept."""\n'
        "        def g():\n"
        '            """The inner docstring, which is long enough to be kept."""\n'
        "    def h(self):\n"
        '        """Too short."""\n'
        "try:\n"
        "    pass\n"
        "except ImportError:\n"
        "    def i():\n"
        '        """The handler docstring, which is long enough to be kept."""\n'
    )
    (folder / "a.py").write_text('"""The class docstring, which is long enough to be kept."""\n')
    (folder / "broken.py").write_text('"""Unfinished')
    for name in ("test", "site-packages"):
        (folder / name).mkdir()
        (folder / name / "c.py").write_text('"""Skipped because of where it lies, though it is long enough."""\n')
    return folder


def test_docstrings_are_collected_in_a_fixed_order_without_duplicates(library):
    assert collect(library, 10_000) == [
        "A paragraph about if." * 3,
        "A paragraph about with." * 3,
        "The class docstring, which is long enough to be kept.",
        "The module docstring, which is long enough to be kept.\n\nIndented part.",
        "The method docstring, which is long enough to be kept.",
        "The inner docstring, which is long enough to be kept.",
        "The handler docstring, which is long enough to be kept.",
    ]


def test_the_corpus_is_capped(library):
    texts = collect(library, 200)
    assert texts == collect(library, 10_000)[:3]


def test_a_library_without_reference_is_fine(library):
    (library / "pydoc_data" / "topics.py").unlink()
    assert len(collect(library, 10_000)) == 5


def test_passages_end_at_blank_lines():
    text = "\n\n".join(f"{i} " + "x" * 700 for i in range(5)) + "\n   \n" + "y" * 3000 + "\n\nend"
    parts = list(passages(text))
    assert [len(part) for part in parts] == [1406, 1406, 702, 3000, 3]
    assert "\n\n".join(parts) == text.replace("\n   \n", "\n\n")


def test_the_embedded_corpus(monkeypatch):
    texts = embedded_text()
    assert 1_000_000 < sum(map(len, texts)) <= 4_000_000
    assert len(set(texts)) == len(texts) > 3000
    assert all(len(text) >= 40 and text == text.strip() for text in texts)
    assert any("list comprehension" in text for text in texts)
    with monkeypatch.context() as patch:
        patch.setattr(embedded, "collect", None)
        assert embedded_text() == texts

    source = open_source(None)
    assert [text for i in range(len(source)) for text in source.read(i).columns["text"]] == texts
    assert source.num_rows == len(texts) and source.num_rows_exact
    assert "embedded corpus (documentation of Python 3." in source.description
    assert available_splits(None) == ["train"]


def test_the_corpus_is_kept_and_a_damaged_copy_is_made_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(cache.constants, "HF_HOME", str(tmp_path))
    monkeypatch.setattr(embedded, "collect", lambda folder, most: ["first"])
    assert embedded_text() == ["first"]
    monkeypatch.setattr(embedded, "collect", lambda folder, most: ["second"])
    assert embedded_text() == ["first"]
    (kept,) = (tmp_path / "hfssl").iterdir()
    kept.write_bytes(b"damaged")
    assert embedded_text() == ["second"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(cache.constants, "HF_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(embedded, "collect", lambda folder, most: ["text"])
    assert embedded_text() == ["text"]

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(os, "replace", full)
    assert embedded_text() == ["text"]
    assert list((tmp_path / "home" / "hfssl").iterdir()) == []
