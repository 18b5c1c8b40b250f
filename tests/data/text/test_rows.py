"""Rows of tokens: nothing lost, nothing leaked, little wasted."""

import copy

import numpy as np
import pytest
import tiny
import torch
from transformers import BertTokenizer

from hfssl.data.sources import MemorySource
from hfssl.data.stream import Block, ExactStream
from hfssl.data.text.rows import TextCollator, TextRows
from hfssl.data.text.sentence_pairs import SentencePairRows
from hfssl.data.text.tokenizer import train_bpe_tokenizer, train_tokenizer
from hfssl.errors import UserError
from hfssl.functional import keyed
from hfssl.modeling.tokenizer import table_size


WORDS = [
    "the",
    "quick",
    "brown",
    "fox",
    "jumps",
    "over",
    "a",
    "lazy",
    "dog",
    "while",
    "seven",
    "unbelievable",
    "wizards",
    "quietly",
    "boxed",
    "extraordinary",
    "liquor",
    "jugs",
]


def make_texts(n, seed=0, low=1, high=60):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(low, high))) for _ in range(n)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(make_texts(300), 64)


@pytest.fixture(scope="module")
def with_holes():
    """A vocabulary file with a word twice: 8 entries, of which the highest id is 8."""
    return BertTokenizer(
        vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "one": 6, "two": 7, "three": 8}
    )


def block(texts, key=1):
    return Block({"text": texts}, keyed.key(7, np.arange(len(texts))), key)


def windows_of_two_passes(texts, tokenizer, **kwargs):
    """Place of each window of long texts -> its tokens, in each of two passes."""
    source = MemorySource(texts, name="memory", piece_bytes=500)
    stream = ExactStream(
        source,
        TextRows(tokenizer, 16, packing=False),
        TextCollator(0),
        1,
        block_bytes=2000,
        with_places=True,
        **kwargs,
    )
    passes = [{}, {}]
    for number, batch in tiny.passes(stream, 2):
        place = tuple(batch["places"][0].tolist())
        assert place not in passes[number]
        passes[number][place] = batch["input_ids"][0].tolist()
    return passes


@pytest.mark.parametrize("num_workers", [0, 2])
def test_windows_of_long_texts_have_places_that_stay(tokenizer, num_workers):
    texts = make_texts(60, seed=3, low=20)
    first, second = windows_of_two_passes(texts, tokenizer, num_workers=num_workers)
    assert first == second and list(first) != list(second)
    for row, text in enumerate(texts):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        windows = [first[0, 0, row, window][1:-1] for window in range(-(-len(tokens) // 14))]
        assert [token for window in windows for token in window] == tokens
    assert len(first) == sum(-(-len(tokenizer(text)["input_ids"][2:]) // 14) for text in texts)
    # of a held-out text no window comes
    held_out = windows_of_two_passes(texts, tokenizer, num_workers=num_workers, exclude=frozenset(texts[::5]))
    assert {place for place in first if place[2] % 5} == set(held_out[0]) == set(held_out[1])


def test_packed_rows_have_no_place(tokenizer):
    assert TextRows(tokenizer, 32)(block(make_texts(5))).places is None
    source = MemorySource(make_texts(5), name="memory")
    stream = ExactStream(source, TextRows(tokenizer, 32), TextCollator(0), 1, with_places=True)
    with pytest.raises(ValueError, match="TextRows have no places: they hold several samples"):
        next(iter(stream))


def documents(rows, prefix=1, suffix=1):
    """The documents of packed rows, without their special tokens."""
    found = []
    for ids, sequence in zip(rows.columns["input_ids"], rows.columns["sequence_ids"], strict=True):
        for number in range(1, sequence.max() + 1):
            found.append(ids[sequence == number][prefix : -suffix or None].tolist())
    return found


def test_packing_keeps_every_token_of_every_document(tokenizer):
    texts = make_texts(200, seed=1, high=100)
    rows = TextRows(tokenizer, 32)(block(texts))
    expected = []
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        expected += [ids[i : i + 30] for i in range(0, len(ids), 30)]
    assert sorted(documents(rows)) == sorted(expected)
    for ids, sequence in zip(rows.columns["input_ids"], rows.columns["sequence_ids"], strict=True):
        assert (ids[sequence == 0] == tokenizer.pad_token_id).all()
        starts = np.flatnonzero(np.diff(sequence, prepend=0) > 0)
        assert (ids[starts] == tokenizer.cls_token_id).all()
        assert (np.diff(sequence[sequence > 0]) >= 0).all()  # documents are contiguous and numbered in order


def test_little_is_wasted(tokenizer):
    rows = TextRows(tokenizer, 128)(block(make_texts(2000, low=3, high=80)))
    assert rows.num_units.sum() / rows.columns["input_ids"].size > 0.98
    assert (rows.num_units == (rows.columns["sequence_ids"] > 0).sum(1)).all()


def test_masks_are_the_same_however_documents_are_packed(tokenizer):
    texts = make_texts(100)
    masking = {"mask_ratio": 0.3}

    def labels(transform):
        rows = transform(block(texts))
        if "sequence_ids" in rows.columns:
            found = []
            for label, sequence in zip(rows.columns["labels"], rows.columns["sequence_ids"], strict=True):
                found += [label[sequence == n][1:-1].tolist() for n in range(1, sequence.max() + 1)]
        else:
            found = [row[1:-1].tolist() for row in rows.columns["labels"]]
        return sorted(found)

    packed = labels(TextRows(tokenizer, 512, masking=masking))
    assert packed == labels(TextRows(tokenizer, 300, masking=masking))
    assert packed == labels(TextRows(tokenizer, 512, packing=False, masking=masking))


@pytest.mark.parametrize("rows_of", [TextRows, SentencePairRows])
def test_ids_with_holes(with_holes, rows_of):
    assert table_size(with_holes) == 9 and len(with_holes) == 8
    texts = ["one two three. Three two one. One three"] * 300
    masking = {"mask_ratio": 0.5, "mask_token_ratio": 0.0, "random_token_ratio": 1.0}
    rows = rows_of(with_holes, 16, masking=masking)(block(texts))
    ids, labels = (np.concatenate(list(rows.columns[name])) for name in ("input_ids", "labels"))
    assert set(labels) == {-100, 6, 7, 8}
    # what a random token is, is one that there is
    assert set(ids[labels != -100]) == {0, 1, 2, 3, 4, 6, 7, 8}


def test_the_tokenizer_that_is_given_stays_as_it_is(tokenizer):
    given = copy.deepcopy(tokenizer)
    given.backend_tokenizer.enable_truncation(8, stride=2)
    given.backend_tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=8)
    before = given.backend_tokenizer.to_str()
    texts = make_texts(40, low=20)
    rows = TextRows(given, 32, masking={"mask_ratio": 0.15})(block(texts))
    assert documents(rows) == documents(TextRows(tokenizer, 32, masking={"mask_ratio": 0.15})(block(texts)))
    SentencePairRows(given, 32)(block(texts))
    with pytest.raises(UserError, match="eos_token"):
        TextRows(given, 32, next_tokens=True)
    assert given.backend_tokenizer.to_str() == before


def test_special_tokens_are_never_masked(tokenizer):
    texts = [f"{text} [SEP] dog" for text in make_texts(100)]
    rows = TextRows(tokenizer, 64, masking={"mask_ratio": 0.9})(block(texts))
    special = np.isin(rows.columns["labels"], tokenizer.all_special_ids)
    assert not special.any()
    assert (rows.columns["labels"] != -100).any()
    assert (rows.columns["labels"][rows.columns["sequence_ids"] == 0] == -100).all()


def test_whole_words_are_hidden_together(tokenizer):
    texts = make_texts(200, high=25)
    rows = TextRows(tokenizer, 256, packing=False, masking={"mask_ratio": 0.2, "whole_word_masking": True})(
        block(texts)
    )
    split = 0
    by_text = {tuple(tokenizer(t)["input_ids"]): tokenizer(t).word_ids() for t in texts}
    for ids, labels in zip(rows.columns["input_ids"], rows.columns["labels"], strict=True):
        words = by_text[tuple(np.where(labels == -100, ids, labels).tolist())]
        for word in {w for w in words if w is not None}:
            at = [i for i, w in enumerate(words) if w == word]
            split += len(at) > 1
            assert len({bool(labels[i] == -100) for i in at}) == 1
    assert split > 50  # there were words of several pieces


def test_a_batch_carries_what_the_model_needs(tokenizer):
    collate = TextCollator(tokenizer.pad_token_id)
    packed = TextRows(tokenizer, 64, masking={"mask_ratio": 0.15})(block(make_texts(50)))
    batch = collate({name: values[:4] for name, values in packed.columns.items()})
    assert batch["input_ids"].shape == (4, 64) and batch["input_ids"].dtype == torch.long
    assert batch["masked_positions"].tolist() == (batch["labels"].flatten() != -100).nonzero().flatten().tolist()
    padded = TextRows(tokenizer, 64, packing=False)(block(make_texts(50)))
    batch = collate({name: values[:4] for name, values in padded.columns.items()})
    lengths = [len(row) for row in padded.columns["input_ids"][:4]]
    assert batch["attention_mask"].sum(1).tolist() == lengths and batch["input_ids"].shape[1] == max(lengths)
    assert "sequence_ids" not in batch and "labels" not in batch


def test_texts_without_tokens_are_reported(tokenizer):
    rows = TextRows(tokenizer, 32)(block(["dog", "\u200b", "fox"]))
    assert [index for index, _ in rows.bad] == [1] and len(documents(rows)) == 2


def test_a_row_without_room_is_explained(tokenizer):
    with pytest.raises(ValueError, match="max_length 2` leaves no room.*2 special tokens"):
        TextRows(tokenizer, 2)


# -- next tokens ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpe():
    return train_bpe_tokenizer(make_texts(300), 300)


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("max_length", [2, 16, 17, 512])
def test_each_token_of_a_document_is_predicted_once(bpe, packing, max_length):
    texts = make_texts(50, seed=1)
    rows = TextRows(bpe, max_length, packing=packing, next_tokens=True)(block(texts))
    pieces = []
    for row, ids in enumerate(rows.columns["input_ids"]):
        labels = rows.columns["labels"][row]
        sequence = rows.columns["sequence_ids"][row] if packing else np.ones(len(ids))
        for number in range(1, int(sequence.max()) + 1):
            piece, predicted = ids[sequence == number], labels[sequence == number]
            assert predicted[0] == -100 and (predicted[1:] == piece[1:]).all() and 2 <= len(piece) <= max_length
            pieces.append(piece.tolist())
        if packing:
            assert (labels[sequence == 0] == -100).all()
    # only the first piece of a document begins with the beginning, the others with the last token of the one before
    expected = []
    for text in texts:
        document = [0, *bpe(text, add_special_tokens=False)["input_ids"], 0]
        expected += [document[i : i + max_length] for i in range(0, len(document) - 1, max_length - 1)]
    assert sorted(pieces) == sorted(expected)


def test_a_tokenizer_that_adds_nothing_gets_an_end_only():
    bare = train_bpe_tokenizer(make_texts(100), 300)
    bare.add_bos_token = False
    rows = TextRows(bare, 64, next_tokens=True)(block(["dog", "\u200b dog", ""]))
    dog = bare("dog")["input_ids"]
    assert [*dog, 0] in documents(rows, 0, 0) and [index for index, _ in rows.bad] == [2]


def test_positions_have_the_name_of_the_method(bpe):
    rows = TextRows(bpe, 32, next_tokens=True)(block(make_texts(20)))
    batch = TextCollator(1, positions="target_positions")({name: v[:4] for name, v in rows.columns.items()})
    assert "masked_positions" not in batch
    assert batch["target_positions"].tolist() == (batch["labels"].flatten() != -100).nonzero().flatten().tolist()


def test_rows_for_next_tokens_need_two_tokens_an_end_and_no_masks(bpe, tokenizer):
    with pytest.raises(ValueError, match="max_length.*1.* leaves no next token"):
        TextRows(bpe, 1, next_tokens=True)
    with pytest.raises(ValueError, match="got both"):
        TextRows(bpe, 8, next_tokens=True, masking={"mask_ratio": 0.15})
    with pytest.raises(ValueError, match=r"BertTokenizer\) has no `eos_token`"):
        TextRows(tokenizer, 8, next_tokens=True)
