"""Whole-word masking where no spaces stand between words."""

import pickle
import random
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from hfssl.cli.text.data import TextData, TextDataArguments
from hfssl.data.stream import Block
from hfssl.data.text import words
from hfssl.data.text.fit import check_words
from hfssl.data.text.rows import TextRows
from hfssl.data.text.sentence_pairs import SentencePairRows
from hfssl.data.text.tokenizer import train_tokenizer
from hfssl.data.text.words import CLUSTERS, WordSegmenter
from hfssl.errors import UserError
from hfssl.functional import keyed


SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
WHOLE = {"mask_ratio": 0.15, "whole_word_masking": True}


def text_of(letters, length=40, seed=0):
    return "".join(random.Random(seed).choices(letters, k=length))


def with_spaces_in_words(texts, trainer=trainers.UnigramTrainer, model=models.Unigram, **kwargs):
    """A tokenizer of SentencePiece's kind, to which a text without spaces is one word."""
    backend = Tokenizer(model())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainer(vocab_size=60, special_tokens=list(SPECIAL.values()), show_progress=False, **kwargs)
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)


def in_pairs(stretch):
    """Words of two signs."""
    return [stretch[i : i + 2] for i in range(0, len(stretch), 2)]


@pytest.fixture
def pairs(monkeypatch):
    """A segmenter of Chinese, as if it were installed."""
    monkeypatch.setitem(words._SEGMENTERS, "Chinese", (("pairs", lambda: in_pairs),))
    monkeypatch.setattr(words.metadata, "version", lambda package: "1.2")
    for cached in (words._made, words._installed):
        cached.cache_clear()
    yield WordSegmenter({"Chinese": "pairs"})
    for cached in (words._made, words._installed):
        cached.cache_clear()


def block(texts):
    return Block({"text": texts}, keyed.key(7, np.arange(len(texts))), 1)


@pytest.mark.parametrize("letters", ["天地人日月水火山石田土木花草春夏秋冬", "กขคงจฉชซ", "កខគឃងច", "あいうえおかき"])
def test_about_the_share_of_each_text_is_hidden(letters):
    texts = [text_of(letters, seed=seed) for seed in range(150)]
    tokenizer = with_spaces_in_words(texts, unk_token="<unk>")
    assert set(tokenizer(texts[0]).word_ids()) == {0}
    rows = TextRows(tokenizer, 64, packing=False, masking=WHOLE, segmenter=WordSegmenter({}))(block(texts))
    hidden = np.array([(labels != -100).mean() for labels in rows.columns["labels"]])
    assert abs(hidden.mean() - 0.15) < 0.02
    assert hidden.max() < 0.6 and (hidden == 0).mean() < 0.1


def hidden_words(tokenizer, text, segmenter, ratio=0.5):
    """Of many keys, which characters of a text are hidden, a row for each."""
    rows = TextRows(tokenizer, 64, packing=False, masking={**WHOLE, "mask_ratio": ratio}, segmenter=segmenter)(
        block([text] * 200)
    )
    return np.array([labels != -100 for labels in rows.columns["labels"]])


def test_tokens_of_one_word_are_hidden_together(pairs):
    text = "天地人日 fox 月水"
    # BERT's kind: each sign is a word to the pre-tokenizer
    tokenizer = train_tokenizer([text] * 10, 60)
    assert tokenizer.tokenize(text) == ["天", "地", "人", "日", "fox", "月", "水"]
    hidden = hidden_words(tokenizer, text, pairs)[:, 1:-1]
    assert (
        (hidden[:, 0] == hidden[:, 1]).all()
        and (hidden[:, 2] == hidden[:, 3]).all()
        and (hidden[:, 5] == hidden[:, 6]).all()
    )
    of_words = hidden[:, [0, 2, 4, 5]]
    assert (np.abs(np.corrcoef(of_words.T) - np.eye(4)) < 0.3).all()  # each word on its own
    apart = hidden_words(tokenizer, text, WordSegmenter({}))[:, 1:-1]
    assert (np.abs(np.corrcoef(apart.T) - np.eye(7)) < 0.3).all()


def test_bytes_of_a_sign_are_hidden_together(pairs):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*SPECIAL.values(), *alphabet])}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    hidden = hidden_words(tokenizer, "天地 a", WordSegmenter({}))
    assert hidden.shape[1] == 1 + 3 + 3 + 2  # the space before the text is one more
    assert (hidden[:, 1:4].all(1) | ~hidden[:, 1:4].any(1)).all() and (hidden[:, 1] != hidden[:, 4]).any()
    hidden = hidden_words(tokenizer, "天地 a", pairs)
    assert (hidden[:, 1:7].all(1) | ~hidden[:, 1:7].any(1)).all() and (hidden[:, 1] != hidden[:, 7]).any()


def test_sentence_pairs_have_the_same_words(pairs):
    text = "天地人日。月水火山。石田土木。花草春夏。"
    tokenizer = train_tokenizer([text] * 10, 60)
    masking = {**WHOLE, "mask_ratio": 0.5, "mask_token_ratio": 0.0, "random_token_ratio": 0.0}
    rows = SentencePairRows(tokenizer, 64, masking=masking, segmenter=pairs)(block([text] * 50))
    first, second = tokenizer.convert_tokens_to_ids(["天", "地"])
    for ids, labels in zip(rows.columns["input_ids"], rows.columns["labels"], strict=True):
        at = np.flatnonzero(ids == first)
        assert (ids[at + 1] == second).all() and ((labels[at] == -100) == (labels[at + 1] == -100)).all()


def test_what_a_text_is_taken_apart_into():
    segmenter = WordSegmenter({})
    assert segmenter("the quick fox, né") is None
    # a mark belongs to its letter, and what stands outside is no matter of the segmenter
    assert segmenter("a กำ่ข b").tolist()[:2] == [-1, -1]
    numbers = segmenter("カ\u3099ラ x 天")
    assert numbers.tolist() == [0, 0, 1, -1, -1, -1, 2]
    assert str(segmenter) == ""


def test_which_languages_a_corpus_has(pairs):
    found = WordSegmenter.for_texts(["the fox 天地", "ລາວ"])
    assert found.packages == {"Chinese": "pairs", "other scripts": CLUSTERS}
    assert str(found) == f"Chinese by pairs 1.2, other scripts by {CLUSTERS}" and not found.more_can_be_installed
    assert WordSegmenter({"Chinese": CLUSTERS}).more_can_be_installed
    assert set(WordSegmenter.for_texts(["日本のもの"]).packages) == {"Japanese"}  # also its Chinese signs


def test_a_segmenter_that_changes_the_text_is_not_followed(pairs, monkeypatch):
    monkeypatch.setitem(words._SEGMENTERS, "Chinese", (("pairs", lambda: lambda text: ["x"]),))
    assert pairs("天地").tolist() == [0, 1]


def test_rows_that_are_sent_to_a_worker_hide_the_same(pairs):
    texts = [text_of("天地人日月", seed=seed) for seed in range(20)]
    rows = TextRows(train_tokenizer(texts, 60), 64, packing=False, masking=WHOLE, segmenter=pairs)
    there = pickle.loads(pickle.dumps(rows))(block(texts)).columns["labels"]
    for one, other in zip(rows(block(texts)).columns["labels"], there, strict=True):
        assert one.tolist() == other.tolist()


@pytest.mark.parametrize(
    "package, language, text",
    [
        ("budoux", "Chinese", "今天天气非常好我们一起去公园散步吧"),
        ("budoux", "Japanese", "今日はとても良い天気なので公園へ散歩に行きましょう"),
        ("budoux", "Thai", "วันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะกันเถอะ"),
        ("fugashi", "Japanese", "今日はとても良い天気なので公園へ散歩に行きましょう"),
        ("pythainlp", "Thai", "วันนี้อากาศดีมากเราไปเดินเล่นที่สวนสาธารณะกันเถอะ"),
    ],
)
def test_segmenters_that_are_installed(package, language, text):
    pytest.importorskip(package, reason=f'{package} is not installed (`pip install "hfssl[scripts]"`)')
    numbers = WordSegmenter({language: package})(text)
    clusters = WordSegmenter({})(text)
    assert numbers[0] == 0 and 3 < numbers.max() < clusters.max() and set(np.diff(numbers)) == {0, 1}
    assert str(WordSegmenter({language: package})).startswith(f"{language} by {package} ")


# -- before the run ---------------------------------------------------------------------------------------------------

ARGS = SimpleNamespace(
    per_device_train_batch_size=4, seed=0, lanes=None, process_index=0, world_size=1, dataloader_num_workers=0
)


@pytest.fixture
def bases(tmp_path):
    """Texts that are single words to everybody, and a tokenizer of SentencePiece's kind."""
    texts = [text_of("ACGT", seed=seed) for seed in range(300)]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    with_spaces_in_words(texts, unk_token="<unk>").save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def test_texts_of_one_word_are_refused(bases):
    data = TextData(TextDataArguments(dataset=str(bases / "texts.txt"), tokenizer=str(bases / "tokenizer")))
    with pytest.raises(
        UserError,
        match=r"in (\d+) of \1 held-out texts of 8 tokens or more, most tokens are a single word.*Leave it out",
    ):
        data.stream(ARGS, WHOLE)
    next(iter(data.stream(ARGS, {"mask_ratio": 0.15})))


def test_the_words_are_part_of_what_makes_a_run(tmp_path, pairs, caplog):
    caplog.set_level("INFO")
    (tmp_path / "zh.txt").write_text(
        "\n".join(text_of("天地人日月", seed=seed) for seed in range(200)), encoding="utf-8"
    )
    data = TextData(TextDataArguments(dataset=str(tmp_path / "zh.txt"), vocab_size=60))
    data.stream(ARGS, {"mask_ratio": 0.15})
    assert "words" not in data.settings and "Whole words" not in caplog.text
    data.stream(ARGS, WHOLE)
    assert data.settings["words"] == "Chinese by pairs 1.2"
    assert "Whole words: 20.0 a text, Chinese by pairs 1.2." in caplog.text


def test_the_log_says_what_could_be_installed():
    texts = [text_of("天地人日月", seed=seed) for seed in range(20)]
    rows = TextRows(train_tokenizer(texts, 60), 64, masking=WHOLE, segmenter=WordSegmenter({"Chinese": CLUSTERS}))
    assert (
        check_words(rows, texts) == f'40.0 a text, Chinese by {CLUSTERS} (for words, `pip install "hfssl[scripts]"`)'
    )
