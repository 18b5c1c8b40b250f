"""Tests of bias: against what is worked out by hand, and against biases that are planted."""

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from text_encoder import WORDS, make_config, make_tokenizer, save_text_encoder
from transformers import BertForMaskedLM, BertModel, GPT2Config, GPT2LMHeadModel

from hfssl.data.text.bias_tests import AssociationTest, BiasTests, SentencePair, open_bias_tests
from hfssl.errors import DataError
from hfssl.evaluation import EvaluationError
from hfssl.evaluation.bias import bias_lines, bias_tables
from hfssl.evaluation.intervals import holm, mean_interval, wilson
from hfssl.evaluation.text import associations
from hfssl.evaluation.text.associations import association, effect_size, permutation_p_value
from hfssl.evaluation.text.bias import measure_bias, wins
from hfssl.evaluation.text.encoder import TextEncoder
from hfssl.evaluation.text.language_model import LanguageModel, shared_positions


LETTERS = WORDS[2:]


def save_mlm(folder, steps=0):
    """A masked language model; after some steps "a" goes with "good" and "b" with "bad"."""
    torch.manual_seed(0)
    model, tokenizer = BertForMaskedLM(make_config()), make_tokenizer()
    random = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        texts = []
        for i in range(64):
            c, d = random.choice(LETTERS[2:], 2)
            texts.append(f"{'ab'[i % 2]} {c} {d} {WORDS[i % 2]}")
        ids = tokenizer(texts, return_tensors="pt")["input_ids"]
        at = torch.from_numpy(random.integers(1, ids.shape[1] - 1, len(ids)))
        rows = torch.arange(len(ids))
        masked = ids.clone()
        masked[rows, at] = tokenizer.mask_token_id
        loss = torch.nn.functional.cross_entropy(model(input_ids=masked).logits[rows, at], ids[rows, at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    return save_mlm(tmp_path_factory.mktemp("untrained"))


@pytest.fixture(scope="module")
def biased(tmp_path_factory):
    return save_mlm(tmp_path_factory.mktemp("biased"), steps=150)


def pairs(number=40, swapped=False):
    """Pairs about "a" and "b", of which those about "a" are as the biased model learned them, in two types."""
    random = np.random.default_rng(1)
    found = []
    for i in range(number):
        c, d = random.choice(LETTERS[2:], 2)
        both = f"a {c} {d} good", f"b {c} {d} good"
        found.append(SentencePair(*(both[::-1] if swapped and i % 2 else both), ("x", "y")[i // 2 % 2]))
    return BiasTests("pairs", "test", f"{number} {swapped}", found)


def by_hand(model, tokenizer, sentence, other):
    """Nangia et al.: each token that both have is masked alone, and what it was is scored."""
    ids, others = (tokenizer(each)["input_ids"] for each in (sentence, other))
    total = 0.0
    for place, token in enumerate(ids):
        if token in (tokenizer.cls_token_id, tokenizer.sep_token_id) or token not in others:
            continue
        masked = torch.tensor([ids[:place] + [tokenizer.mask_token_id] + ids[place + 1 :]])
        with torch.no_grad():
            total += model(input_ids=masked).logits[0, place].log_softmax(-1)[token].item()
    return total


def test_scores_of_a_masked_model_are_those_by_hand(untrained):
    given = [("a c d good", "b c d good"), ("c a", "c b"), ("a c d e f g h bad", "b z c d e f g h bad")]
    model = LanguageModel(TextEncoder(untrained, 64), batch_size=5)
    scores, tokenizer = model.pair_scores(given), make_tokenizer()
    expected = [
        [by_hand(model.model, tokenizer, *pair), by_hand(model.model, tokenizer, *pair[::-1])] for pair in given
    ]
    torch.testing.assert_close(
        torch.from_numpy(scores), torch.tensor(expected, dtype=torch.float64), atol=1e-4, rtol=0
    )


def test_scores_of_a_causal_model_are_log_likelihoods(tmp_path):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    config = GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=2, eos_token_id=3)
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    given = ("a c d good", "b c d good e")
    scored = LanguageModel(TextEncoder(str(tmp_path), 64))
    assert scored.is_causal and "whole sentence" in scored.score
    for sentence, found in zip(given, scored.pair_scores([given])[0], strict=True):
        ids = torch.tensor([tokenizer(sentence)["input_ids"]])
        with torch.no_grad():
            loss = model(input_ids=ids, labels=ids).loss.item()
        assert found == pytest.approx(-loss * (ids.shape[1] - 1), abs=1e-4)
    # logits of a large vocabulary fit into memory: those of so many tokens at once, or of one sentence
    few, shapes = LanguageModel(TextEncoder(str(tmp_path), 64), batch_size=8), []
    few.model.register_forward_pre_hook(
        lambda model, args, kwargs: shapes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    np.testing.assert_allclose(few.pair_scores([given]), scored.pair_scores([given]), atol=1e-4)
    assert [shape[0] for shape in shapes] == [1, 1]


def test_tokens_that_both_sentences_share():
    special = np.array([True, False, False, False, True]), np.array([True, False, False, False, False, True])
    first, second = shared_positions(np.array([2, 7, 8, 9, 3]), np.array([2, 6, 5, 8, 9, 3]), *special)
    assert first.tolist() == [2, 3] and second.tolist() == [3, 4]


def test_a_pair_counts_for_the_likelier_sentence():
    scores = np.array([[-1.0, -2.0], [-2.0, -1.0], [-1.0, -1.0], [np.nan, np.nan]])
    np.testing.assert_equal(wins(scores), [1.0, 0.0, 0.5, np.nan])


def test_a_planted_preference_is_found_and_of_swapped_pairs_none(biased, untrained):
    planted, swapped = measure_bias(
        biased, [pairs(), pairs(swapped=True)], beside={"before": untrained}, random_seeds=2
    )
    assert planted.value > 0.9 and planted.details["interval"][0] > 0.5
    assert planted.details["interval"] == pytest.approx(wilson(planted.value, 40))
    assert [each["name"] for each in planted.details["types"]] == ["x", "y"] and planted.metric == "stereotype_share"
    of_type = planted.details["types"][0]
    assert of_type["pairs"] == 20 and of_type["p_value"] == pytest.approx(
        binomtest(round(20 * of_type["share"]), 20).pvalue
    )
    assert planted.baselines.keys() == {"before", "random_init"} and planted.details["changes"].keys() == {"before"}
    low, high = swapped.details["interval"]
    assert swapped.value == pytest.approx(0.5, abs=0.1) and low < 0.5 < high
    said = bias_lines([planted, swapped])
    assert "it prefers them" in said[0] and "x 100.0 %" in said[0] and "What it does not show" in said[0]
    assert "no preference for stereotypes is shown" in said[1] and "certain (Holm, 5 %) of none" in said[1]
    [(_, head, rows), _] = bias_tables([planted, swapped])
    assert head[:4] == ["type of bias", "pairs", "this model", "interval"] and [row[0] for row in rows] == [
        "all",
        "x",
        "y",
    ]


def test_pairs_that_cannot_be_compared_are_left_out_and_counted(untrained):
    tests = pairs(4)
    tests.pairs += [SentencePair("a " * 70, "b " * 70), SentencePair("a", "b"), SentencePair("?? c", "!! c")]
    [found] = measure_bias(untrained, [tests], random_seeds=0)
    assert found.num_eval == 5 and found.details["left_out"] == 2 and found.details["ties"] == 1
    [said] = bias_lines([found])
    assert "2 more are left out" in said and "Of 1 it cannot tell the sentences apart" in said
    tests.pairs = tests.pairs[4:6]
    with pytest.raises(EvaluationError, match="None of the 2 pairs of pairs can be compared"):
        measure_bias(untrained, [tests], random_seeds=0)


def test_an_encoder_without_a_head_is_told_what_to_give(tmp_path):
    encoder = str(save_text_encoder(tmp_path))
    with pytest.raises(
        EvaluationError, match=r"has no head that predicts tokens .* result folder of `recipes/mlm.py`"
    ):
        measure_bias(encoder, [pairs(4)])
    tests = BiasTests(
        "w", "test", "w", associations=[AssociationTest("t", (("a", "c"), ("b", "d")), (("good", "e"), ("bad", "f")))]
    )
    [found] = measure_bias(encoder, [tests], random_seeds=1)  # which needs none
    assert found.metric == "effect_size" and found.hyperparameters["pooling"] == "mean"


def change(folder, name, **values):
    path = Path(folder) / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "changed, message",
    [
        (
            {"name": "tokenizer_config.json", "mask_token": None},
            "has no mask token, and sentences are compared by how",
        ),
        (
            {"name": "config.json", "is_encoder_decoder": True},
            "of an encoder and a decoder: pass a masked or a causal",
        ),
        ({"name": "config.json", "vocab_size": 9}, "gives token .*, but the encoder embeds 9 tokens only"),
    ],
)
def test_models_that_cannot_be_asked(tmp_path, changed, message):
    save_mlm(tmp_path)
    change(tmp_path, **changed)
    with pytest.raises(EvaluationError, match=message):
        model = LanguageModel(TextEncoder(str(tmp_path), 64), random_seed=0)
        model.pair_scores([("a c", "b c")])


# -- associations -----------------------------------------------------------------------------------------------------


def effect_by_hand(x, y, a, b):
    def cosine(u, v):
        return float(u @ v / np.linalg.norm(u) / np.linalg.norm(v))

    def s(w):
        return np.mean([cosine(w, each) for each in a]) - np.mean([cosine(w, each) for each in b])

    of_x, of_y = [s(w) for w in x], [s(w) for w in y]
    return (np.mean(of_x) - np.mean(of_y)) / np.std(of_x + of_y, ddof=1), of_x, of_y


def vectors(planted, size=6, dim=12, seed=0):
    random = np.random.default_rng(seed)
    to_a, to_b = random.normal(size=(2, dim))
    x, y, a, b = random.normal(size=(4, size, dim))
    return x + planted * to_a, y + planted * to_b, a + 2 * to_a, b + 2 * to_b


@pytest.mark.parametrize("planted", [0.0, 1.5])
def test_effect_size_and_p_value_are_those_by_hand(planted):
    x, y, a, b = vectors(planted)
    found = association(x[:5], y, a, b)  # sets need not be of one size
    effect, of_x, of_y = effect_by_hand(x[:5], y, a, b)
    assert found.effect == pytest.approx(effect) and found.exact
    both = np.array(of_x + of_y)
    ways = list(combinations(range(len(both)), len(of_x)))
    differences = [both[list(way)].mean() - np.delete(both, way).mean() for way in ways]
    as_large = np.mean([each >= np.mean(of_x) - np.mean(of_y) - 1e-9 for each in differences])
    assert found.p_value == pytest.approx(as_large)
    assert found.low <= found.effect <= found.high
    assert (found.p_value < 0.01 and found.low > 0) == (planted > 0)


def test_of_many_divisions_a_sample_is_drawn(monkeypatch):
    s = np.array(effect_by_hand(*vectors(0.4))[1] + effect_by_hand(*vectors(0.4))[2])
    exact, is_exact = permutation_p_value(s, 6)
    monkeypatch.setattr(associations, "MOST_EXACT", 10)
    sampled, is_sampled = permutation_p_value(s, 6)
    assert is_exact and not is_sampled and sampled == pytest.approx(exact, abs=0.01)
    assert permutation_p_value(s, 6) == (sampled, False)  # by a seed


def test_where_all_are_alike_there_is_no_effect():
    assert effect_size(np.full(6, 0.25), 3) == 0.0 and permutation_p_value(np.full(6, 0.25), 3) == (1.0, True)


def test_a_planted_association_is_found(tmp_path):
    """In an encoder whose embeddings of some letters are near those of others."""
    save_text_encoder(tmp_path)
    model, tokenizer = BertModel.from_pretrained(tmp_path, add_pooling_layer=False), make_tokenizer()
    sets, attributes = (tuple("cdefgh"), tuple("ijklmn")), (tuple("opqr"), tuple("stuv"))
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        for near, targets, of_them in zip(("good", "bad"), sets, attributes, strict=True):
            for letter in (*targets, *of_them):
                row, to = (tokenizer.convert_tokens_to_ids(word) for word in (letter, near))
                table[row] = 0.5 * table[row] + table[to]
    model.save_pretrained(tmp_path)
    swapped = AssociationTest("swapped", sets[::-1], attributes)
    same = AssociationTest("same", (sets[0], sets[0]), attributes)
    tests = BiasTests("w", "test", "w", associations=[AssociationTest("planted", sets, attributes), swapped, same])
    planted, swapped, same = measure_bias(str(tmp_path), [tests], random_seeds=2)
    assert (
        planted.value > 1
        and planted.details["interval"][0] > 0
        and planted.details["p_value"] < 0.05
        and planted.details["exact"]
    )
    assert swapped.value == pytest.approx(-planted.value) and swapped.details["p_value"] > 0.9
    assert same.value == pytest.approx(0, abs=1e-6) and same.details["p_value"] > 0.4
    assert len(planted.details["p_values"]["random_init"]) == 2 and planted.num_eval == 20
    [said] = bias_lines([planted, swapped, same])
    assert "1 of 3 association tests" in said and "planted d = " in said and "What it does not show" in said
    assert "the interval reaches 0" not in said
    planted.details["interval"] = (-0.1, 1.9)
    [said] = bias_lines([planted])
    assert "In 1 of them the interval reaches 0" in said


# -- files and intervals ----------------------------------------------------------------------------------------------


def test_what_tests_are_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("crows").mkdir()
    for path in ("test.csv", "crows/test.csv", "mine.csv"):
        Path(path).write_text("sent_more,sent_less\na b,c b\n")
    names = [open_bias_tests(path).name for path in ("test.csv", "crows/test.csv", "mine.csv", "crows/")]
    assert names == ["test", "crows", "mine", "crows"]


def test_a_configuration_of_several_is_named(tmp_path):
    card = "configs:\n" + "".join(f"- config_name: {each}\n  data_files: {each}.csv\n" for each in "ab")
    (tmp_path / "README.md").write_text(f"---\n{card}---\n")
    for each in "ab":
        (tmp_path / f"{each}.csv").write_text(f"sent_more,sent_less\n{each} d,c d\n")
    with pytest.raises(DataError, match="needs one of its configurations: .* Choose one with `--dataset_config`"):
        open_bias_tests(tmp_path)
    assert open_bias_tests(tmp_path, config="b").pairs == [SentencePair("b d", "c d")]


def test_what_a_file_is_its_columns_say(tmp_path):
    (tmp_path / "p.csv").write_text("sent_more,sent_less,bias_type\na b,c b,age\nd b,e b,\n")
    found = open_bias_tests(tmp_path / "p.csv")
    assert found.pairs == [SentencePair("a b", "c b", "age"), SentencePair("d b", "e b")] and found.name == "p"
    lists = {"targ1_examples": ["a", "b"], "targ2_examples": ["c", "d"], "attr1_examples": ["e", "f"]}
    row = {"name": "t", "targ1_name": "As", **lists, "attr2_examples": ["g", "h"]}
    (tmp_path / "w.jsonl").write_text(json.dumps(row) + "\n")
    (test,) = open_bias_tests(tmp_path / "w.jsonl").associations
    assert test.targets == (("a", "b"), ("c", "d")) and test.attributes == (("e", "f"), ("g", "h"))
    assert test.name == "t" and test.target_names[0] == "As" and len(test.items) == 8
    (tmp_path / "w.csv").write_text(
        "name,targ1_examples,targ2_examples,attr1_examples,attr2_examples\nt,a;b,c;d,e;f,g\n"
    )
    with pytest.raises(DataError, match="test 't' of .* has 1 item.s. in column 'attr2_examples'"):
        open_bias_tests(tmp_path / "w.csv")
    (tmp_path / "empty.csv").write_text("sent_more,sent_less\n,c b\n")
    with pytest.raises(DataError, match="empty.csv' has no whole row in split 'train'"):
        open_bias_tests(tmp_path / "empty.csv")
    (tmp_path / "other.csv").write_text("text,label\na,b\n")
    with pytest.raises(DataError, match="neither pairs of sentences .columns sent_more, sent_less. nor .*'text'"):
        open_bias_tests(tmp_path / "other.csv")


def test_intervals():
    assert wilson(0.5, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert wilson(1.0, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    values = np.random.default_rng(0).normal(size=400)
    low, high = mean_interval(values, np.random.default_rng(0))
    half = 1.96 * values.std(ddof=1) / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.015)
    assert holm([0.04, 0.01, 0.03]) == [False, True, False] and holm([0.01, 0.02, 0.03]) == [True, True, True]
