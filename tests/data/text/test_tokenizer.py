import itertools
import json
import random
import re

import pytest
import torch
from recipe_process import printed_elsewhere, printed_without_hfssl
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    CanineTokenizer,
    GPT2Tokenizer,
    LlamaConfig,
    pipeline,
)

from hfssl.data.text import tokenizer as tokenizer_module
from hfssl.data.text.tokenizer import (
    choose_vocab_size,
    load_tokenizer,
    require_mask_token,
    require_prompt_tokenizer,
    train_bpe_tokenizer,
    train_tokenizer,
)
from hfssl.errors import UserError


TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "Über den Wolken: naïve cafés, 3.14 and 100_000!",
    "Masked tokens, masked words; masking asks for tokens.",
    "",
    "日本語 and русский текст",
] * 4


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 256, model_max_length=64)


@pytest.mark.parametrize(
    "num_characters, expected",
    [(0, 8_192), (1_638_400, 8_192), (1_638_401, 8_192 + 64), (3_000_000, 15_040), (10**9, 30_528)],
)
def test_vocabulary_follows_the_sample(num_characters, expected):
    assert choose_vocab_size(num_characters) == expected
    assert expected % 64 == 0


def test_special_tokens_and_template(tokenizer):
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (tokenizer.pad_token_id, tokenizer.mask_token_id) == (0, 4)
    assert sorted(tokenizer.all_special_ids) == [0, 1, 2, 3, 4]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    pair = tokenizer("the fox", "the dog")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens[0] == "[CLS]" and tokens.count("[SEP]") == 2
    first = tokens.index("[SEP]") + 1
    assert pair["token_type_ids"] == [0] * first + [1] * (len(tokens) - first)
    assert tokenizer.decode(tokenizer("the masked fox")["input_ids"], skip_special_tokens=True) == "the masked fox"


def test_normalisation_is_that_of_bert_but_for_accents(tokenizer):
    vocab = tokenizer.get_vocab()
    # BERT's own class with the same vocabulary is the reference
    reference = BertTokenizer(vocab=vocab, do_lower_case=True, strip_accents=False)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"]
    assert tokenizer.tokenize("NAÏVE Über") == tokenizer.tokenize("naïve über")
    cased = train_tokenizer(TEXTS, 256, lowercase=False)
    assert cased.tokenize("Über") != cased.tokenize("über")
    assert tokenizer.tokenize("語") == ["語"] and tokenizer.tokenize("☃") == ["[UNK]"]


def test_same_texts_give_the_same_tokenizer(tmp_path):
    # another process: the order of a hash map is what changes
    code = (
        "import sys, json; from hfssl.data.text.tokenizer import train_tokenizer; "
        "t = train_tokenizer(json.loads(sys.argv[1]), 256); print(json.dumps(sorted(t.get_vocab().items())))"
    )
    vocab = sorted(train_tokenizer(iter(TEXTS), 256).get_vocab().items())
    assert [list(item) for item in vocab] == json.loads(printed_elsewhere(tmp_path, code, json.dumps(TEXTS)))


def test_saved_tokenizer_is_stock(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    code = (
        "import sys, json; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained(sys.argv[1]); "
        "assert 'hfssl' not in sys.modules; "
        "print(json.dumps([t(json.loads(sys.argv[2]))['input_ids'], t.mask_token, t.pad_token, t.model_max_length]))"
    )
    assert json.loads(printed_without_hfssl(tmp_path, code, tmp_path, json.dumps(TEXTS))) == [
        tokenizer(TEXTS)["input_ids"],
        "[MASK]",
        "[PAD]",
        64,
    ]
    assert load_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_fast_path_gives_the_same_ids_and_words(tokenizer):
    assert tokenizer.is_fast
    rust = tokenizer.backend_tokenizer.encode_batch(TEXTS)
    assert [encoding.ids for encoding in rust] == tokenizer(TEXTS)["input_ids"]
    assert tokenizer("masked tokens").word_ids() == [None, 0, 1, None]


def test_fill_mask_pipeline_takes_the_saved_folder(tokenizer, tmp_path):
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertForMaskedLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    answers = pipeline("fill-mask", str(tmp_path), device="cpu")("the quick [MASK] fox", top_k=3)
    assert len(answers) == 3 and all(0 <= answer["token"] < len(tokenizer) for answer in answers)


@pytest.mark.parametrize("texts", [[], ["", "  \n"], iter([])])
def test_empty_sample(texts):
    with pytest.raises(UserError, match="the sample of the corpus holds no text.*--dataset.*--tokenizer"):
        train_tokenizer(texts, 256)


def test_vocabulary_smaller_than_the_alphabet():
    with pytest.raises(UserError, match=r"A vocabulary of 20 entries is too small.* alone take \d+.*--vocab_size"):
        train_tokenizer(TEXTS, 20)


def test_tokenizer_without_mask_token(tokenizer):
    require_mask_token(tokenizer)
    without = BertTokenizer(vocab=tokenizer.get_vocab(), mask_token=None)
    without.name_or_path = "org/decoder"
    with pytest.raises(UserError, match=r"ELECTRA needs a mask token.*'org/decoder' \(BertTokenizer\) has none"):
        require_mask_token(without, "ELECTRA")


def test_tokenizer_written_in_python(tmp_path):
    CanineTokenizer().save_pretrained(tmp_path)
    assert not AutoTokenizer.from_pretrained(tmp_path).is_fast
    with pytest.raises(UserError, match="CanineTokenizer, which is written in Python.*word of each token"):
        load_tokenizer(tmp_path)


def test_folder_without_tokenizer(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path.name}' holds no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"{tmp_path.name}' holds a model but no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{broken")
    with pytest.raises(UserError, match=f"{tmp_path.name}' holds no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["./no/such/folder", "a/b/c", "white space"])
def test_name_that_is_neither_folder_nor_hub_id(name):
    with pytest.raises(UserError, match=f"{name}' cannot be loaded: there is no such folder here.*no valid Hub id"):
        load_tokenizer(name)


def test_name_that_the_hub_does_not_know():
    with pytest.raises(UserError, match="'org/no-such-model'.*The Hub has no such model either: check the name"):
        load_tokenizer("org/no-such-model")


def test_hub_out_of_reach_falls_back_to_the_cache(monkeypatch, tokenizer):
    class NoHub:
        def model_info(self, *args, **kwargs):
            raise ConnectionError("Name or service not known")

    monkeypatch.setattr(tokenizer_module, "HfApi", NoHub)
    monkeypatch.setattr(tokenizer_module.constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UserError, match="'org/model'.*cannot be reached.*hf download org/model --local-dir FOLDER"):
        load_tokenizer("org/model")
    asked = {}

    def from_pretrained(name, **kwargs):
        asked.update(kwargs)
        return tokenizer

    monkeypatch.setattr(tokenizer_module.AutoTokenizer, "from_pretrained", from_pretrained)
    assert load_tokenizer("org/model") is tokenizer
    assert asked == {"local_files_only": True}


def test_offline_mode(monkeypatch):
    monkeypatch.setattr(tokenizer_module.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        load_tokenizer("org/no-such-model", local_files_only=True)


# -- byte-level BPE ---------------------------------------------------------------------------------------------------


def test_bpe_gives_every_text_back_and_begins_it():
    tokenizer = train_bpe_tokenizer(TEXTS, 300, model_max_length=64)
    assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<|endoftext|>", "<|pad|>"] and len(tokenizer) == 300
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 0, 1)
    assert sorted(tokenizer.get_vocab().values()) == list(range(300))
    for text in [*TEXTS, "  two  spaces , and .\n\ta tab", "\U0001f600 \x00 ☃"]:
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == 0 and 0 not in ids[1:]
        assert tokenizer.decode(ids, skip_special_tokens=True) == text
    require_prompt_tokenizer(tokenizer)


def test_bpe_saved_is_stock_and_the_same_in_another_process(tmp_path):
    train_bpe_tokenizer(TEXTS, 300, model_max_length=64).save_pretrained(tmp_path / "here")
    code = (
        "import sys, json; from hfssl.data.text.tokenizer import train_bpe_tokenizer\n"
        "train_bpe_tokenizer(json.loads(sys.argv[1]), 300, model_max_length=64).save_pretrained(sys.argv[2])"
    )
    printed_elsewhere(tmp_path, code, json.dumps(TEXTS), tmp_path / "there")
    assert (tmp_path / "here" / "tokenizer.json").read_bytes() == (tmp_path / "there" / "tokenizer.json").read_bytes()
    # beside a model of another type as well
    LlamaConfig().save_pretrained(tmp_path / "there")
    loaded = load_tokenizer(tmp_path / "there")
    assert type(loaded) is GPT2Tokenizer and loaded.model_max_length == 64
    assert loaded("the fox")["input_ids"] == train_bpe_tokenizer(TEXTS, 300)("the fox")["input_ids"]


def test_bpe_without_text_or_room():
    with pytest.raises(UserError, match="the sample of the corpus holds no text"):
        train_bpe_tokenizer([" "], 300)
    with pytest.raises(UserError, match="A vocabulary of 200 entries is too small.* take 258"):
        train_bpe_tokenizer(TEXTS, 200)


def test_tokenizers_that_no_prompt_can_be_made_of(tokenizer):
    with pytest.raises(UserError, match=r"\(BertTokenizer\) has no `eos_token`"):
        require_prompt_tokenizer(tokenizer)
    ends = BertTokenizer(vocab=tokenizer.get_vocab(), eos_token="[SEP]")
    with pytest.raises(UserError, match=r"ends every text with '\[SEP\]': a prompt would be over"):
        require_prompt_tokenizer(ends)


# -- scripts ----------------------------------------------------------------------------------------------------------

SCRIPTS = {
    "Hindi": "वह मेरे घर में किताबें पढ़ते हैं",
    "Thai": "เด็กน้อยกินข้าวที่บ้าน",
    "Japanese": "ガラスのバッグを買いました。",
    "Korean": "우리는 한국어를 공부합니다",
    "Arabic": "اَلْكِتَابُ عَلَى الطَّاوِلَةِ",
    "Vietnamese": "Tiếng Việt có nhiều dấu thanh",
    "Russian": "Мой ёжик ест йогурт",
    "Tamil": "நான் புத்தகம் படிக்கிறேன்",
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("lowercase", [True, False])
def test_no_letter_of_any_script_is_lost(script, lowercase):
    text = SCRIPTS[script]
    tokenizer = train_tokenizer([text] * 30, 400, lowercase=lowercase)
    back = tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True)
    expected = text.lower() if lowercase else text
    assert back.replace(" ", "") == expected.replace(" ", "")


def test_accents_are_stripped_where_asked_for(tmp_path):
    train_tokenizer(TEXTS, 256, strip_accents=True).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.tokenize("NAÏVE Über") == loaded.tokenize("naive uber")
    train_tokenizer(TEXTS, 256).save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded.tokenize("naïve") != loaded.tokenize("naive")


def signs(number, first=0x4E00):
    """Chinese-like text: 90 % of it are a thousand signs."""
    rng = random.Random(0)
    weights = [0.9 / 1000] * 1000 + [0.1 / (number - 1000)] * (number - 1000)
    drawn = rng.choices([chr(first + i) for i in range(number)], weights, k=100_000)
    return ["".join(drawn[i : i + 50]) for i in range(0, len(drawn), 50)]


def test_the_alphabet_follows_the_corpus():
    texts = signs(3000)
    tokenizer = train_tokenizer(texts)
    ids = list(itertools.chain.from_iterable(tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert len(ids) == 100_000 and ids.count(tokenizer.unk_token_id) < 20
    assert 2900 < len(tokenizer) < 3006
    # of a size that was asked for, as many as fit
    small = train_tokenizer(texts, 2_900)
    assert len(small) == 2_900
    ids = list(itertools.chain.from_iterable(small(texts, add_special_tokens=False)["input_ids"]))
    assert 0 < ids.count(small.unk_token_id) < 500


def test_a_vocabulary_as_large_as_the_message_says():
    with pytest.raises(UserError, match="A vocabulary of 2,000 entries is too small for this corpus") as error:
        train_tokenizer(signs(3000), 2_000)
    train_tokenizer(signs(3000), int(re.search(r"e\.g\. (\d+)", str(error.value))[1]))


def test_a_vocabulary_grows_where_the_letters_alone_fill_it(monkeypatch):
    monkeypatch.setattr(tokenizer_module, "choose_vocab_size", lambda characters: 1_024)
    texts = [
        " ".join(text[i : i + 5] for i in range(0, len(text), 5)) for text in signs(1_400, first=0xAC00)
    ]  # Hangul
    tokenizer = train_tokenizer(texts)
    assert 2 * 1_300 < len(tokenizer) < 3 * 1_500
    ids = list(itertools.chain.from_iterable(tokenizer(texts, add_special_tokens=False)["input_ids"]))
    assert ids.count(tokenizer.unk_token_id) < 20


@pytest.mark.parametrize("letters", ["ACGT", "กขคงจฉชซ"])
def test_words_that_are_longer_than_wordpiece_takes(letters, tmp_path):
    rng = random.Random(0)
    texts = ["".join(rng.choices(letters, k=400)) for _ in range(100)]
    tokenizer = train_tokenizer(texts, 300, model_max_length=64)
    tokenizer.save_pretrained(tmp_path)
    BertConfig().save_pretrained(tmp_path)  # whose own tokenizer does not know of the pieces
    tokenizer = load_tokenizer(tmp_path)
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower()
    assert len(tokenizer.tokenize(texts[0])) < 200 and tokenizer.model_max_length == 64
    assert (tokenizer.mask_token_id, tokenizer.pad_token_id) == (4, 0)
    assert tokenizer("a", "b")["token_type_ids"] == [0, 0, 0, 1, 1]
