"""New words for the vocabulary of a checkpoint."""

import pytest
import tiny
import torch
from recipe_process import printed_without_hfssl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AlbertConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertTokenizer,
    DistilBertConfig,
    GPT2Config,
    MobileBertConfig,
    ModernBertConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

from hfssl import MlmForPreTraining, MlmPreTrainingConfig
from hfssl.cli.text.data import TextData, TextDataArguments
from hfssl.cli.text.encoders import TextEncoderArguments
from hfssl.data.text.tokenizer import train_tokenizer
from hfssl.errors import UserError
from hfssl.methods.text.clm import ClmForPreTraining, ClmPreTrainingConfig
from hfssl.modeling.vocabulary import add_words, extend_model, find_words


NEW = ["angiotensin", "kubernetes", "cardio", "cardiology"]
# 30, 20, 15 and 12 times, among known words; and one word that is too rare
CORPUS = (
    30 * ["the angiotensin jumps"]
    + 20 * ["quick Kubernetes, lazy dog"]
    + 15 * ["a cardio dog"]
    + 12 * ["brown cardiology fox"]
    + 9 * ["over troponin rain"]
)


def word_piece():
    return train_tokenizer(list(tiny.texts()), 120)


def byte_level(texts=None, size=400):
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(texts or tiny.texts(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", pad_token="<pad>", eos_token="</s>", unk_token="<unk>",
        mask_token="<mask>",
    )  # fmt: skip


def unigram():
    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=80, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    backend.train_from_iterator(tiny.texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


# -- which words
# ---------------------------------------------------------------------------------------------------------


def test_the_words_that_cost_most_tokens_come_first():
    tokenizer = word_piece()
    words = find_words(CORPUS, tokenizer, 10)
    saved = {
        word: count * (len(tokenizer.tokenize(word)) - 1) for word, count in zip(NEW, (30, 20, 15, 12), strict=True)
    }
    assert words == sorted(NEW, key=lambda word: (-saved[word], word))
    assert words == find_words(reversed(CORPUS), tokenizer, 10)
    assert find_words(CORPUS, tokenizer, 2) == words[:2]
    assert find_words(tiny.texts(), tokenizer, 10) == []


def test_byte_level_words_have_their_space():
    # "cardio" would cut "cardiology", which this tokenizer has whole, in two
    tokenizer = byte_level([*tiny.texts(), *100 * [" cardiology"]])
    assert tokenizer.tokenize(" cardiology") == ["Ġcardiology"]
    words = find_words(CORPUS, tokenizer, 10)
    assert sorted(words) == [" Kubernetes", " angiotensin"]
    # where it is in pieces anyway, both are taken, and the longer one wins
    tokenizer = byte_level()
    words = find_words(CORPUS, tokenizer, 10)
    assert sorted(words) == [" Kubernetes", " angiotensin", " cardio", " cardiology"]
    add_words(tokenizer, words)
    assert tokenizer.tokenize("brown cardiology cardio")[-2:] == [" cardiology", " cardio"]


def test_digits_underscores_and_punctuation_make_no_words():
    noise = 50 * ["x123456 snake_case_name ... 2024-11-22 ]]]]]]]"]
    for tokenizer in (word_piece(), byte_level()):
        assert not [word for word in find_words(noise, tokenizer, 100) if not word.strip().isalpha()]


# -- the tokenizer
# -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [word_piece, byte_level])
def test_new_words_are_one_token_and_nothing_else_changes(make, tmp_path):
    tokenizer, before = make(), make()
    words = find_words(CORPUS, tokenizer, 3)
    new = add_words(tokenizer, words)
    assert list(new) == list(range(len(before), len(before) + 3)) and len(tokenizer) == len(before) + 3
    assert list(new.values()) == [before(word, add_special_tokens=False)["input_ids"] for word in words]
    tokenizer.save_pretrained(tmp_path)
    reloaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in [*CORPUS, *tiny.texts()[:20], "Angiotensin-angiotensins (cardio)"]:
        ids = reloaded(text, add_special_tokens=False)["input_ids"]
        assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert reloaded.decode(ids) == before.decode(before(text, add_special_tokens=False)["input_ids"])
        # the new tokens in place of their pieces, the others as they were
        expanded = [piece for i in ids for piece in new.get(i, [i])]
        assert expanded == before(text, add_special_tokens=False)["input_ids"]


def test_tokenizers_that_new_words_would_harm_are_refused():
    with pytest.raises(UserError, match="WordPiece and byte-level BPE.*is Unigram of"):
        find_words(CORPUS, unigram(), 3)
    with pytest.raises(UserError, match="does not take the word 'the' as a token"):
        add_words(word_piece(), ["the"])


def test_words_would_get_ids_of_others_where_ids_have_holes():
    vocab = tiny.tokenizer().get_vocab()
    last = max(vocab, key=vocab.get)
    holes = BertTokenizer(vocab={**vocab, last: vocab[last] + 1})
    before = holes.get_vocab()
    with pytest.raises(UserError, match="have holes.*new words would get ids of others. Leave it out"):
        add_words(holes, ["zebra"])
    assert holes.get_vocab() == before and add_words(holes, []) == {}


def test_words_are_found_and_added_whatever_the_tokenizer_cuts_and_pads():
    texts = ["the quick unbelievable fox"] * 20
    plain, cutting = train_tokenizer(list(tiny.texts()), 120), train_tokenizer(list(tiny.texts()), 120)
    cutting.backend_tokenizer.enable_truncation(3)
    cutting.backend_tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=40)
    words = find_words(texts, plain, 5)
    assert "unbelievable" in words and find_words(texts, cutting, 5) == words
    assert add_words(cutting, words) == add_words(plain, words)
    backend = cutting.backend_tokenizer
    assert backend.truncation["max_length"] == 3 and backend.padding["length"] == 40


# -- the model
# -----------------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
CONFIGS = [
    BertConfig(**SMALL, vocab_size=120),
    BertConfig(**SMALL, vocab_size=121),  # a row that no token of the tokenizer has
    BertConfig(**SMALL, vocab_size=128),  # room for all new words
    RobertaConfig(**SMALL, vocab_size=120, pad_token_id=1),
    DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=120, tie_word_embeddings=False),
    DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=120),
    ModernBertConfig(**SMALL, vocab_size=120, pad_token_id=0, cls_token_id=2, sep_token_id=3, bos_token_id=2,
    eos_token_id=3), AlbertConfig(**SMALL, embedding_size=16, vocab_size=120),
]  # fmt: skip
PIECES = {120: [7, 9, 11], 121: [50, 51], 122: [8]}


@pytest.mark.parametrize("config", CONFIGS, ids=lambda c: f"{c.model_type}-{c.vocab_size}-{c.tie_word_embeddings}")
def test_embeddings_and_outputs_start_as_the_means_of_the_pieces(config, tmp_path):
    torch.manual_seed(0)
    model = MlmForPreTraining(MlmPreTrainingConfig(encoder_config=config)).eval()
    encoder = model.encoder
    with torch.no_grad():
        encoder.get_output_embeddings().bias.normal_()
    ids = torch.randint(10, 120, (2, 9))
    before = encoder(input_ids=ids).logits.detach()
    table, bias = (
        encoder.get_input_embeddings().weight.detach().clone(),
        encoder.get_output_embeddings().bias.detach().clone(),
    )
    extend_model(model, PIECES)
    size = max(config.vocab_size, 123)
    inputs, outputs = encoder.get_input_embeddings(), encoder.get_output_embeddings()
    assert inputs.num_embeddings == len(outputs.weight) == len(outputs.bias) == size
    assert (inputs.weight.data_ptr() == outputs.weight.data_ptr()) == config.tie_word_embeddings
    torch.testing.assert_close(inputs.weight[120], (table[7] + table[9] + table[11]) / 3)
    torch.testing.assert_close(inputs.weight[122], table[8])
    torch.testing.assert_close(outputs.bias[121], (bias[50] + bias[51]) / 2)
    # what it says of known words stays the same; the new ones get the means
    after = encoder(input_ids=ids).logits
    torch.testing.assert_close(after[..., :120], before[..., :120], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(after[..., 121], before[..., [50, 51]].mean(-1), atol=1e-5, rtol=1e-4)
    # and the export is a stock checkpoint
    model.export_encoder(tmp_path)
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path).eval()
    assert stock.config.vocab_size == size
    torch.testing.assert_close(stock(input_ids=ids).logits, after)


def test_a_causal_model_without_an_output_bias(tmp_path):
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=120, bos_token_id=0, eos_token_id=2)
    model = ClmForPreTraining(ClmPreTrainingConfig(encoder_config=config)).eval()
    ids = torch.randint(10, 120, (2, 9))
    before = model.encoder(input_ids=ids).logits.detach()
    extend_model(model, PIECES)
    model.export_encoder(tmp_path)
    after = AutoModelForCausalLM.from_pretrained(tmp_path).eval()(input_ids=ids).logits
    torch.testing.assert_close(after[..., :120], before)
    torch.testing.assert_close(after[..., 120], before[..., [7, 9, 11]].mean(-1))


def test_encoders_that_cannot_be_extended_are_refused():
    config = MobileBertConfig(**SMALL, vocab_size=120, embedding_size=16, intra_bottleneck_size=16)
    model = MlmForPreTraining(MlmPreTrainingConfig(encoder_config=config))
    with pytest.raises(UserError, match="does not know what to do with .*predictions.dense.weight of MobileBert"):
        extend_model(model, PIECES)
    # stock transformers could not load it: the head would have one bias where there were two
    config = BertConfig(**SMALL, vocab_size=120, tie_word_embeddings=False)
    with pytest.raises(UserError, match="does not know what to do with cls.predictions.bias of BertForMaskedLM"):
        extend_model(MlmForPreTraining(MlmPreTrainingConfig(encoder_config=config)), PIECES)
    model = MlmForPreTraining(MlmPreTrainingConfig(encoder_config=BertConfig(**SMALL, vocab_size=110)))
    with pytest.raises(UserError, match="has 120 entries before the new words, the encoder has embeddings for 110"):
        extend_model(model, PIECES)


# -- with everything around it
# -------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "checkpoint"
    tiny.mlm().export_encoder(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def arguments(tmp_path, **fields):
    (tmp_path / "corpus.txt").write_text("\n".join(CORPUS + list(tiny.texts()[:100])))
    fields = {"dataset": str(tmp_path / "corpus.txt"), "max_length": 32, "extend_vocab": 3, **fields}
    return TextDataArguments(**fields)


def test_the_data_know_the_new_words_also_after_a_resume(checkpoint, tmp_path, caplog):
    caplog.set_level("INFO")
    data = TextData(arguments(tmp_path), str(checkpoint))
    assert "New words: 3 (angiotensin, " in caplog.text
    assert len(data.tokenizer) == len(tiny.tokenizer()) + 3 == min(data.new_tokens) + 3
    data.tokenizer.save_pretrained(tmp_path / "checkpoint-1")
    again = TextData(arguments(tmp_path), str(checkpoint), tmp_path / "checkpoint-1")
    assert again.new_tokens == data.new_tokens
    assert again.tokenizer.get_vocab() == data.tokenizer.get_vocab()
    assert again.settings == data.settings and data.settings["extend_vocab"] == 3


def test_new_words_are_for_checkpoints_and_a_number(tmp_path, caplog):
    with pytest.raises(UserError, match="--extend_vocab 3` is for checkpoints.*--vocab_size"):
        TextData(arguments(tmp_path))
    with pytest.raises(UserError, match="--extend_vocab` is a number of words, got -1"):
        TextDataArguments(extend_vocab=-1)


def test_a_corpus_with_too_few_new_words_says_so(checkpoint, tmp_path, caplog):
    data = TextData(arguments(tmp_path, extend_vocab=500), str(checkpoint))
    assert (
        len(data.new_tokens) == 4 and "Only 4 words of the corpus can be added for `--extend_vocab 500`" in caplog.text
    )


def test_a_checkpoint_is_continued_with_new_words_and_the_result_is_stock(checkpoint, tmp_path, capsys):
    from hfssl import MlmForPreTraining, SSLTrainer, SSLTrainingArguments
    from hfssl.cli.modality import build_method
    from hfssl.cli.text.finish import finish_text
    from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator

    args = SSLTrainingArguments(
        str(tmp_path / "out"), max_steps=4, per_device_train_batch_size=8, precision="fp32", report_to="none",
        eval_steps=4, logging_steps=2, disable_tqdm=True, save_steps=2,
    )  # fmt: skip
    data = TextData(arguments(tmp_path), str(checkpoint))
    model = build_method(MlmForPreTraining, TextEncoderArguments(str(checkpoint), "sdpa"), {}, data, args, set())
    assert args.learning_rate == 5e-5
    evaluator = MaskedTokenEvaluator(data.held_out_of, data.tokenizer, max_length=32, training_texts=CORPUS)
    trainer = SSLTrainer(
        model, args, data.stream(args, model.config.masking), [evaluator], settings=data.settings,
        processing_class=data.tokenizer,
    )  # fmt: skip
    trainer.train()
    finish_text(trainer, evaluator, data, base_model=str(checkpoint))
    said = capsys.readouterr().out
    assert f"before: the checkpoint as it came ({checkpoint}), with 3 new words as the means of their pieces" in said
    code = (
        "import sys; from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline\n"
        f"t = AutoTokenizer.from_pretrained({str(tmp_path / 'out')!r})\n"
        "m = AutoModelForMaskedLM.from_pretrained(t.name_or_path)\n"
        "assert len(t) == m.config.vocab_size == len(m.get_input_embeddings().weight), (len(t), m.config.vocab_size)\n"
        "assert t.tokenize('quick angiotensin') == ['quick', 'angiotensin']\n"
        "assert pipeline('fill-mask', t.name_or_path)('the [MASK] jumps') and 'hfssl' not in sys.modules"
    )
    printed_without_hfssl(tmp_path, code)
