"""Sentence pairs: what BERT's own script makes, keyed, and never two parts of one document called strangers."""

import random

import numpy as np
import pytest
import tiny
import torch
from transformers import BertTokenizer, PreTrainedTokenizerFast

from hfssl.cli.text.data import TextDataArguments
from hfssl.data.sources import MemorySource
from hfssl.data.stream import Block, ExactStream
from hfssl.data.text.rows import TextCollator
from hfssl.data.text.sentence_pairs import SentencePairRows, require_unpacked, split_sentences
from hfssl.data.text.tokenizer import train_tokenizer
from hfssl.errors import UserError
from hfssl.functional import keyed
from hfssl.functional.keyed import Use


NUM_DOCUMENTS, WORDS_A_DOCUMENT = 60, 150


def documents(seed=0, low=1, high=12, sentence=14):
    """Texts whose every word tells its document and its place: `w3x17` is word 17 of document 3."""
    rng = np.random.default_rng(seed)
    texts = []
    for d in range(NUM_DOCUMENTS):
        words = iter(range(WORDS_A_DOCUMENT))
        sentences = [
            " ".join(f"w{d}x{next(words)}" for _ in range(rng.integers(1, sentence)))
            for _ in range(rng.integers(low, high))
        ]
        texts.append(". ".join(s.capitalize() for s in sentences) + ".")
    return texts


@pytest.fixture(scope="module")
def words():
    """A tokenizer with one entry a word."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "."]
    vocabulary += [f"w{d}x{i}" for d in range(NUM_DOCUMENTS) for i in range(WORDS_A_DOCUMENT)]
    return BertTokenizer(vocab={word: i for i, word in enumerate(vocabulary)})


def block(texts, key=1, start=0):
    return Block({"text": list(texts)}, keyed.key(7, np.arange(start, start + len(texts))), key)


def segments(rows, tokenizer):
    """A and B of every row as lists of words, and the label."""
    found = []
    for i, label in enumerate(rows.columns["next_sentence_label"]):
        ids, types = rows.columns["input_ids"][i], rows.columns["token_type_ids"][i]
        a, b = ids[types == 0], ids[types == 1]
        assert a[0] == tokenizer.cls_token_id and a[-1] == b[-1] == tokenizer.sep_token_id
        assert (np.diff(types) >= 0).all() and not np.isin([*a[1:-1], *b[:-1]], tokenizer.all_special_ids).any()
        convert = tokenizer.convert_ids_to_tokens
        found.append((convert(a[1:-1].tolist()), convert(b[:-1].tolist()), int(label)))
    return found


def origin(segment):
    """The document of a segment, and its first and last word's place in it."""
    names = [word[1:].split("x") for word in segment if word != "."]
    assert len({document for document, _ in names}) <= 1
    return (int(names[0][0]), int(names[0][1]), int(names[-1][1])) if names else None


# -- the reference: google-research/bert @ eedf571, create_pretraining_data.py, lines 223-335 and 418-433 (Apache-2.0)
# https://github.com/google-research/bert/blob/eedf5716ce1268e56f0a50264a88cafad334ac61/create_pretraining_data.py
# Changed: returns (tokens_a, tokens_b, is_random_next) without special tokens and masks.


def create_instances_from_document(all_documents, document_index, max_num_tokens, short_seq_prob, rng):
    document = all_documents[document_index]
    target_seq_length = max_num_tokens
    if rng.random() < short_seq_prob:
        target_seq_length = rng.randint(2, max_num_tokens)
    instances = []
    current_chunk = []
    current_length = 0
    i = 0
    while i < len(document):
        segment = document[i]
        current_chunk.append(segment)
        current_length += len(segment)
        if i == len(document) - 1 or current_length >= target_seq_length:
            if current_chunk:
                a_end = 1
                if len(current_chunk) >= 2:
                    a_end = rng.randint(1, len(current_chunk) - 1)
                tokens_a = []
                for j in range(a_end):
                    tokens_a.extend(current_chunk[j])
                tokens_b = []
                is_random_next = False
                if len(current_chunk) == 1 or rng.random() < 0.5:
                    is_random_next = True
                    target_b_length = target_seq_length - len(tokens_a)
                    for _ in range(10):
                        random_document_index = rng.randint(0, len(all_documents) - 1)
                        if random_document_index != document_index:
                            break
                    random_document = all_documents[random_document_index]
                    random_start = rng.randint(0, len(random_document) - 1)
                    for j in range(random_start, len(random_document)):
                        tokens_b.extend(random_document[j])
                        if len(tokens_b) >= target_b_length:
                            break
                    num_unused_segments = len(current_chunk) - a_end
                    i -= num_unused_segments
                else:
                    is_random_next = False
                    for j in range(a_end, len(current_chunk)):
                        tokens_b.extend(current_chunk[j])
                truncate_seq_pair(tokens_a, tokens_b, max_num_tokens, rng)
                instances.append((tokens_a, tokens_b, is_random_next))
            current_chunk = []
            current_length = 0
        i += 1
    return instances


def truncate_seq_pair(tokens_a, tokens_b, max_num_tokens, rng):
    while True:
        total_length = len(tokens_a) + len(tokens_b)
        if total_length <= max_num_tokens:
            break
        trunc_tokens = tokens_a if len(tokens_a) > len(tokens_b) else tokens_b
        assert len(trunc_tokens) >= 1
        if rng.random() < 0.5:
            del trunc_tokens[0]
        else:
            trunc_tokens.pop()


@pytest.mark.parametrize("max_length", [32, 64])
def test_the_pairs_are_those_of_the_reference(words, max_length):
    texts = documents()
    rows = SentencePairRows(words, max_length, short_ratio=0.3)(block(texts))
    sentences = [[words.tokenize(s) for s in split_sentences(text)] for text in texts]
    assert max(len(s) for document in sentences for s in document) <= (max_length - 3) // 2  # none has to be cut
    expected = []
    for d, key in enumerate(block(texts).keys):
        rng = random.Random(int(keyed.key(Use.SENTENCE_PAIRS, key)))
        expected += create_instances_from_document(sentences, d, max_length - 3, 0.3, rng)
    assert sorted(segments(rows, words)) == sorted((a, b, int(label)) for a, b, label in expected)
    assert len(rows) > 100


def test_b_follows_a_or_comes_from_another_document(words):
    rows = SentencePairRows(words, 64)(block(documents(low=8)))
    labels = []
    for a, b, label in segments(rows, words):
        labels.append(label)
        if origin(a) is None or origin(b) is None:
            continue
        (a_document, _, a_last), (b_document, b_first, _) = origin(a), origin(b)
        if label:
            assert a_document != b_document
        else:
            # truncation at the touching ends leaves a gap
            assert a_document == b_document and b_first > a_last
    assert len(labels) > 150
    # half of the pairs and the last sentence of a document that stands alone
    assert 0.45 < np.mean(labels) < 0.65


def test_every_sentence_is_used(words):
    texts = documents(low=2)
    rows = SentencePairRows(words, 256, short_ratio=0.0)(block(texts))  # long rows: nothing is truncated
    own = [a + (b if not label else []) for a, b, label in segments(rows, words)]
    expected = [word for text in texts for word in words.tokenize(text)]
    assert sorted(word for row in own for word in row) == sorted(expected)


def test_long_sentences_are_cut_and_not_thrown_away(words):
    texts = [" ".join(f"w{d}x{i}" for i in range(WORDS_A_DOCUMENT)) for d in range(NUM_DOCUMENTS)]
    rows = SentencePairRows(words, 32, short_ratio=0.0)(block(texts))
    seen = {word for a, b, label in segments(rows, words) for word in a + ([] if label else b)}
    # two pieces are 30 tokens and a row has room for 29
    assert len(seen) > 0.95 * NUM_DOCUMENTS * WORDS_A_DOCUMENT
    assert 0.4 < np.mean(rows.columns["next_sentence_label"]) < 0.65


def test_lengths_and_shares_of_short_rows(words):
    texts = documents(low=10)
    for max_length in (5, 8, 33, 64):
        rows = SentencePairRows(words, max_length, short_ratio=0.5)(block(texts))
        lengths = np.array([len(ids) for ids in rows.columns["input_ids"]])
        assert lengths.max() <= max_length and (lengths == rows.num_units).all() and lengths.min() >= 5
        assert all(len(types) == n for types, n in zip(rows.columns["token_type_ids"], lengths, strict=True))
    full = SentencePairRows(words, 64, short_ratio=0.0)(block(texts)).num_units.mean()
    assert SentencePairRows(words, 64, short_ratio=1.0)(block(texts)).num_units.mean() < 0.8 * full


def test_masks(words):
    rows = SentencePairRows(words, 64, masking={"mask_ratio": 0.3})(block(documents()))
    plain = SentencePairRows(words, 64)(block(documents()))
    share = []
    for ids, labels, original in zip(
        rows.columns["input_ids"], rows.columns["labels"], plain.columns["input_ids"], strict=True
    ):
        chosen = labels != -100
        assert (labels[chosen] == original[chosen]).all() and (ids[~chosen] == original[~chosen]).all()
        assert not np.isin(labels, words.all_special_ids).any()
        share.append(chosen.mean())
    assert 0.25 < np.mean(share) < 0.32


def test_whole_words_are_hidden_together():
    texts = [f"{a} {b}. " * 6 for a in tiny.WORDS for b in ("unbelievable", "extraordinary")]
    tokenizer = train_tokenizer(["a b c d e f g h i l m n o p q r s t u v w x y z", *tiny.texts()], 90)
    make = SentencePairRows(tokenizer, 64, masking={"mask_ratio": 0.3, "whole_word_masking": True})
    split = 0
    for labels, original in zip(
        make(block(texts)).columns["labels"],
        SentencePairRows(tokenizer, 64)(block(texts)).columns["input_ids"],
        strict=True,
    ):
        tokens = tokenizer.convert_ids_to_tokens(original.tolist())
        inside = [i for i, token in enumerate(tokens) if token.startswith("##") and tokens[i - 1][:1].isalpha()]
        split += len(inside)
        for i in inside:
            assert (labels[i] == -100) == (labels[i - 1] == -100)
    assert split > 100


def test_the_same_keys_give_the_same_pairs_and_others_give_others(words):
    make = SentencePairRows(words, 64)
    first, again, other = (make(block(documents(), start=start)) for start in (0, 0, 1000))
    for name in first.columns:
        for a, b in zip(first.columns[name], again.columns[name], strict=True):
            assert np.array_equal(a, b)
    assert sorted(segments(first, words)) != sorted(segments(other, words))


def test_the_stream_is_the_same_for_any_workers_and_after_a_resume(words):
    def stream(num_workers=0):
        return ExactStream(
            MemorySource(documents(low=3), name="memory", piece_bytes=2000),
            SentencePairRows(words, 48, masking={"mask_ratio": 0.15}),
            TextCollator(words.pad_token_id),
            8,
            block_bytes=8000,
            num_workers=num_workers,
        )

    def equal(a, b):
        return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)

    first = stream()
    batches = [batch for batch, _ in zip(first, range(30), strict=False)]
    assert min(at["pass"] for at in first.positions.values()) > 0
    assert all(equal(a, b) for a, b in zip(batches, stream(2), strict=False))
    cut = stream()
    for _ in zip(range(13), cut, strict=False):
        pass
    again = stream()
    again.load_state_dict(cut.state_dict())
    assert all(equal(a, b) for a, b in zip(batches[13:], again, strict=False))


def test_a_batch_of_pairs(words):
    rows = SentencePairRows(words, 48, masking={"mask_ratio": 0.15})(block(documents()))
    batch = TextCollator(words.pad_token_id)({name: values[:6] for name, values in rows.columns.items()})
    shape = batch["input_ids"].shape
    assert batch["token_type_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == shape
    assert batch["next_sentence_label"].shape == (6,) and batch["next_sentence_label"].dtype == torch.long
    padding = batch["attention_mask"] == 0
    assert padding.any() and (batch["token_type_ids"][padding] == 0).all() and (batch["labels"][padding] == -100).all()
    assert batch["masked_positions"].tolist() == (batch["labels"].flatten() != -100).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    "text, expected",
    [
        ("One line\nanother. \n\n  third", ["One line", "another.", "third"]),
        ("It works. Does it? Yes!", ["It works.", "Does it?", "Yes!"]),
        ('She said: "No." He left.', ['She said: "No."', "He left."]),
        ("Version 1.2 of e.g. this stays whole", ["Version 1.2 of e.g. this stays whole"]),
        ("你好。再见！", ["你好。", "再见！"]),
        ("Wait… What?!", ["Wait…", "What?!"]),
        ("वह घर में है। क्या वह पढ़ता है? हाँ।", ["वह घर में है।", "क्या वह पढ़ता है?", "हाँ।"]),
        ("هل هذا كتاب؟ نعم. یہ کتاب ہے۔ ہاں", ["هل هذا كتاب؟", "نعم.", "یہ کتاب ہے۔", "ہاں"]),
        ("မြန်မာ။စာ။", ["မြန်မာ။", "စာ။"]),
        (" \n ", []),
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


def test_empty_documents_are_reported_and_one_alone_has_no_strangers(words, caplog):
    make = SentencePairRows(words, 48)
    rows = make(block(["W0x1. W0x2.", " ", "W1x1. W1x2."]))
    assert [index for index, _ in rows.bad] == [1]
    alone = make(block(["W0x1. W0x2. W0x3. W0x4."]))
    assert len(alone) and not alone.columns["next_sentence_label"].any()
    assert "a single document" in caplog.text
    assert len(make(block(["W0x1."]))) == 0 and len(make(block([" "]))) == 0


def test_bad_settings_are_explained(words):
    with pytest.raises(UserError, match=r"--max_length 4.*3 special tokens.*at least 5"):
        SentencePairRows(words, 4)
    plain = PreTrainedTokenizerFast(tokenizer_object=words.backend_tokenizer)
    plain.backend_tokenizer.post_processor = None
    with pytest.raises(UserError, match="joins two texts as BERT's does"):
        SentencePairRows(plain, 32)
    arguments = TextDataArguments()
    with pytest.raises(UserError, match="--packing true.*--next_sentence_objective"):
        require_unpacked(arguments, {"packing", "seed"})
    require_unpacked(arguments, {"seed"})
    assert arguments.packing is False
    require_unpacked(arguments, {"packing"})
