"""A tokenizer and a corpus held against each other."""

import re

import pytest
import tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertTokenizer, PreTrainedTokenizerFast

from hfssl.cli.text.data import TextData, TextDataArguments
from hfssl.data.text.fit import check_fit_to_corpus, tokenizer_fit
from hfssl.data.text.tokenizer import train_bpe_tokenizer, train_tokenizer
from hfssl.errors import UserError


HINDI = "मेरे पास किताबें हैं"


def test_what_is_lost_by_script():
    text = "the naïve fox " + HINDI
    as_bert = train_tokenizer([text] * 20, 200, strip_accents=True)
    fit = tokenizer_fit(as_bert, [text])
    # "े" (three times), "ै" and "ं" (twice) are stripped; "ा" and "ि" stand beside their letter and stay
    marks, letters = 6, 17
    assert fit.unknown == 0 and fit.accents_lost == 1
    assert fit.lost_by_script == pytest.approx({"Devanagari": marks / letters})
    assert fit.lost == pytest.approx(marks / (letters + 11))
    assert "Devanagari 35.3 %" in str(fit) and "100.0 % of the accents" in str(fit)
    fit = tokenizer_fit(train_tokenizer([text] * 20, 200), [text])
    assert (fit.unknown, fit.lost, fit.accents_lost, fit.lost_by_script) == (0, 0, 0, {})
    assert "no letter lost" in str(fit)


def test_unknown_words_lose_their_letters():
    tokenizer = BertTokenizer(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "one": 5, "two": 6})
    fit = tokenizer_fit(tokenizer, ["one two 天地 123"] * 3, asked=10)
    assert (fit.tokens, fit.unknown) == (15, 3 / 5)  # numbers are no letters
    assert fit.lost == 2 / 8 and fit.lost_by_script == {"Han": 1}
    assert str(fit).startswith("7 entries (10 asked for), 60.0 % of 15 held-out tokens unknown")
    with pytest.raises(
        UserError, match=r"25\.0 % of the letters lost \(Han 100\.0 %\)\. At most 5\.0 % of the letters may be lost"
    ):
        check_fit_to_corpus(fit, 0.05, ["Remedy."])
    with pytest.raises(UserError, match="At most 50.0 % of the tokens may be unknown"):
        check_fit_to_corpus(fit, 0.25, [])
    check_fit_to_corpus(fit, 0.6, [])


def test_bytes_lose_nothing_also_without_a_decoder():
    texts = [f"{HINDI} 天地 Über ☃ {i}" for i in range(30)]
    assert tokenizer_fit(train_bpe_tokenizer(tiny.texts(), 300), texts).lost == 0
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    bare = PreTrainedTokenizerFast(tokenizer_object=backend)
    fit = tokenizer_fit(bare, texts)
    assert fit.lost == 0 and fit.unknown == 0 and bare.backend_tokenizer.decoder is None


@pytest.fixture(scope="module")
def hindi(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hindi")
    (folder / "texts.txt").write_text("\n".join(f"{HINDI} {i}" for i in range(400)), encoding="utf-8")
    tiny.tokenizer().save_pretrained(folder / "english")
    return folder


@pytest.mark.parametrize(
    "flags, said, without",
    [
        ({"strip_accents": True}, "Leave out `--strip_accents`", "strip_accents"),
        ({"tokenizer": "english"}, "Pass another `--tokenizer`, or leave it out and one is trained", "tokenizer"),
        ({"encoder": "english"}, r"train from scratch \(`--encoder bert-tiny`\), and one is trained", "encoder"),
    ],
)
def test_what_does_not_fit_is_refused_with_advice_that_works(hindi, flags, said, without, caplog):
    caplog.set_level("INFO")

    def data(**flags):
        flags = {name: hindi / "english" if value == "english" else value for name, value in flags.items()}
        encoder = flags.pop("encoder", None)
        return TextData(TextDataArguments(dataset=str(hindi / "texts.txt"), vocab_size=150, **flags), encoder)

    with pytest.raises(UserError, match=f"The tokenizer does not fit the corpus.*Devanagari.*{said}") as error:
        data(**flags)
    enough = float(re.search(r"`--max_lost_fraction ([\d.]+)`", str(error.value))[1])
    data(**flags, max_lost_fraction=enough)
    caplog.clear()
    data(**{name: value for name, value in flags.items() if name != without})
    assert "no letter lost" in caplog.text


def test_the_share_is_a_share():
    with pytest.raises(UserError, match="`--max_lost_fraction` is a share between 0 and 1, got 5"):
        TextDataArguments(max_lost_fraction=5)
