"""Next-sentence prediction beside masked tokens: the loss of `BertForPreTraining`, and stock checkpoints."""

import json
import math

import numpy as np
import pytest
import tiny
import torch
from huggingface_hub.errors import StrictDataclassError
from recipe_process import printed_without_hfssl
from transformers import (
    AutoConfig,
    AutoModelForPreTraining,
    BertForMaskedLM,
    BertForPreTraining,
    BertModel,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
    TrainingArguments,
)

from hfssl import MlmForPreTraining, MlmPreTrainingConfig, SSLTrainer, SSLTrainingArguments
from hfssl.data.sources import MemorySource
from hfssl.data.stream import ExactStream
from hfssl.data.text.rows import TextCollator
from hfssl.data.text.sentence_pairs import SentencePairRows
from hfssl.errors import UserError
from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator, fill_mask_examples
from hfssl.evaluation.next_sentence import NextSentenceEvaluator
from hfssl.methods.text.mlm import MlmOutput
from hfssl.report.curves import history_figure
from hfssl.training.callbacks import MethodCallback


def texts(n=300, seed=0):
    """Documents of several sentences that all keep to one topic: half of the words."""
    rng = np.random.default_rng(seed)
    topics = (tiny.WORDS[:9], tiny.WORDS[9:18])
    return tuple(
        " ".join(" ".join(rng.choice(topics[d % 2], rng.integers(3, 8))).capitalize() + "." for _ in range(6))
        for d in range(n)
    )


def openings(n=300, seed=0):
    """Documents of two sentences, an opening and an ending, each with words of its own: nothing follows an ending."""
    rng = np.random.default_rng(seed)
    parts = (tiny.WORDS[:9], tiny.WORDS[9:18])
    return [" ".join(" ".join(rng.choice(part, 5)).capitalize() + "." for part in parts) for _ in range(n)]


def nsp(dropout=0.0, seed=0, **config):
    return tiny.mlm(dropout=dropout, seed=seed, next_sentence_objective=True, **config)


def stream(batch_size=8, seed=5, source=None, **kwargs):
    transform = SentencePairRows(tiny.tokenizer(), 32, masking={"mask_ratio": 0.15})
    source = MemorySource(source or list(texts()), name="memory", piece_bytes=500)
    return ExactStream(source, transform, TextCollator(0), batch_size, seed=seed, block_bytes=8000, **kwargs)


def batch(rows=4, length=16, vocabulary=100, token_type_ids=True):
    input_ids = torch.randint(5, vocabulary, (rows, length))
    labels = torch.where(torch.rand(rows, length) < 0.3, torch.randint(5, vocabulary, (rows, length)), -100)
    attention_mask = torch.ones_like(input_ids)
    attention_mask[0, 10:] = 0
    labels[0, 10:] = -100
    return {
        "input_ids": input_ids,
        "labels": labels,
        "attention_mask": attention_mask,
        "token_type_ids": (torch.arange(length) >= length // 2).long().expand(rows, -1),
        "next_sentence_label": torch.tensor([0, 1, 1, 0])[:rows],
    }


def trainer(folder, model=None, evaluators=(), callbacks=None, train_stream=None, **overrides):
    fields = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
        "precision": "fp32", "report_to": "none", "eval_strategy": "no", "save_steps": 2, "logging_steps": 1,
        "disable_tqdm": True, "seed": 5,
    }  # fmt: skip
    args = SSLTrainingArguments(**{**fields, **overrides})
    return SSLTrainer(
        model or nsp(dropout=0.1), args, train_stream or stream(args.per_device_train_batch_size), evaluators,
        processing_class=tiny.tokenizer(), callbacks=callbacks,
    )  # fmt: skip


SMALL = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100,
    "max_position_embeddings": 64,
}  # fmt: skip
ENCODERS = {
    "bert": SMALL,
    "ernie": SMALL,
    "megatron-bert": SMALL,
    "fnet": {k: v for k, v in SMALL.items() if k != "num_attention_heads"},
    "mobilebert": SMALL | {"embedding_size": 16, "true_hidden_size": 16, "intra_bottleneck_size": 16},
}


@pytest.mark.parametrize("name", ENCODERS)
def test_loss_and_gradient_equal_the_stock_model(name):
    config = AutoConfig.for_model(name, **ENCODERS[name])
    model = MlmForPreTraining(
        MlmPreTrainingConfig(encoder_config=config, dropout=0.0, next_sentence_objective=True)
    ).train()
    stock = AutoModelForPreTraining.from_config(config).eval()  # without dropout
    assert type(model.encoder) is type(stock)
    stock.load_state_dict(model.encoder.state_dict())
    inputs = batch()
    loss = model(**inputs).loss
    expected = stock(**inputs).loss
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    expected.backward()
    gradients = dict(stock.named_parameters())
    for parameter_name, parameter in model.encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[parameter_name].grad, rtol=1e-4, atol=1e-6)
    logits = model.eval()(**inputs)
    everywhere = model(**{k: v for k, v in inputs.items() if "label" not in k})
    torch.testing.assert_close(logits.logits, everywhere.logits[inputs["labels"] != -100])
    torch.testing.assert_close(logits.next_sentence_logits, everywhere.next_sentence_logits)
    assert logits.next_sentence_logits.shape == (4, 2)


def test_each_term_is_divided_by_its_own_items():
    model = nsp().eval()
    inputs = batch()
    masked = int((inputs["labels"] != -100).sum())
    items = model.loss_items(inputs)
    assert {name: int(count) for name, count in items.items()} == {"mlm": masked, "nsp": 4}
    whole = model(**inputs).loss
    torch.testing.assert_close(model(**inputs, num_items_in_batch=items).loss, whole)
    out = model(**inputs)
    tokens = torch.nn.functional.cross_entropy(out.logits, inputs["labels"][inputs["labels"] != -100])
    pairs = torch.nn.functional.cross_entropy(out.next_sentence_logits, inputs["next_sentence_label"])
    assert list(out.loss_terms) == list(model.loss_units) == ["mlm", "nsp"]
    torch.testing.assert_close(out.loss_terms, {"mlm": tokens.detach(), "nsp": pairs.detach()})
    torch.testing.assert_close(out.loss, tokens + pairs)
    assert out.loss.requires_grad and not any(term.requires_grad for term in out.loss_terms.values())
    quarter = {name: 4 * count for name, count in items.items()}
    torch.testing.assert_close(model(**inputs, num_items_in_batch=quarter).loss * 4, whole)
    alone = model(**{k: v for k, v in inputs.items() if k != "next_sentence_label"})
    assert alone.loss_terms is None and tiny.mlm().loss_units == {}
    tokens_only = alone.loss
    no_pairs = {"mlm": items["mlm"], "nsp": torch.tensor(1e12)}
    torch.testing.assert_close(model(**inputs, num_items_in_batch=no_pairs).loss, tokens_only)
    # plain Trainer knows the masked tokens only
    torch.testing.assert_close(model(**inputs, num_items_in_batch=torch.tensor(4 * masked)).loss * 4, whole)


def keep_gradients(t):
    """What the optimizer gets at its first step."""
    kept, real = {}, t.create_optimizer

    def create_optimizer(*args, **kwargs):
        optimizer = real(*args, **kwargs)
        optimizer.register_step_pre_hook(
            lambda *_: kept.update({name: p.grad.clone() for name, p in t.model.named_parameters()})
        )
        return optimizer

    t.create_optimizer = create_optimizer
    return kept


def test_gradients_do_not_depend_on_how_the_batch_was_cut(tmp_path):
    gradients, losses, terms = [], [], []
    for batch_size, steps in ((32, 1), (8, 4), (4, 8)):
        t = trainer(
            tmp_path / f"{batch_size}", nsp(), per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps, max_steps=1, learning_rate=0.0, max_grad_norm=0.0, save_strategy="no",
        )  # fmt: skip
        gradients.append(keep_gradients(t))
        t.train()
        losses.append(t.state.log_history[0]["loss"])
        terms.append([t.state.log_history[0][f"loss_{name}"] for name in ("mlm", "nsp")])
        assert sum(terms[-1]) == pytest.approx(losses[-1], rel=1e-6)
    assert terms[1] == pytest.approx(terms[0], rel=1e-5) and terms[2] == pytest.approx(terms[0], rel=1e-5)
    assert terms[0][1] == pytest.approx(np.log(2), rel=0.1) and terms[0][0] > 4
    assert losses[1:] == pytest.approx([losses[0]] * 2, rel=1e-5)
    assert gradients[0]["encoder.bert.pooler.dense.weight"].abs().sum() > 0
    for other in gradients[1:]:
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-5, atol=1e-6)


class Terms(MethodCallback):
    """What each step's forward passes gave, as the model says it."""

    def __init__(self, model):
        super().__init__()
        self.steps = [[]]
        model.register_forward_hook(lambda module, args, out: self.steps[-1].append(out.loss_terms))

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append([])


def test_terms_are_logged_as_means_over_the_steps_since_the_last_log(tmp_path):
    model = nsp(dropout=0.1)
    terms = Terms(model)
    evaluator = NextSentenceEvaluator(texts(60, seed=1), tiny.tokenizer(), max_length=32)
    masked = MaskedTokenEvaluator(texts(40, seed=1), tiny.tokenizer(), max_length=32, packing=False)
    t = trainer(
        tmp_path, model, callbacks=[terms], max_steps=5, logging_steps=2, gradient_accumulation_steps=2,
        evaluators=[masked, evaluator], eval_strategy="steps", eval_steps=5, save_strategy="no",
    )  # fmt: skip
    t.train()
    logged = {entry["step"]: entry for entry in t.state.log_history if "loss" in entry}
    assert list(logged) == [2, 4]
    trained = [[out for out in step if out is not None][-2:] for step in terms.steps[:4]]
    for step, of in ((2, trained[:2]), (4, trained[2:])):
        for name in ("mlm", "nsp"):
            # the parts of a step, each divided by the items of the whole step, add up
            expected = sum(part[name].item() for parts in of for part in parts) / 2
            assert logged[step][f"loss_{name}"] == pytest.approx(expected, rel=1e-5)
        assert logged[step]["loss_mlm"] + logged[step]["loss_nsp"] == pytest.approx(logged[step]["loss"], rel=1e-5)
    measured = [entry for entry in t.state.log_history if "eval_loss" in entry]
    assert [entry["step"] for entry in measured] == [0, 5]
    for entry in measured:
        assert entry["eval_loss_mlm"] == entry["eval_loss"] and 0.5 < entry["eval_loss_nsp"] < 1.0

    figure = history_figure(t.state.log_history, units=model.loss_units)
    [axes] = figure.axes  # all in nats
    assert axes.get_ylabel() == "loss (nats)"
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert list(lines) == [
        "training", "chance, training", "mlm, training", "mlm, held out", "mlm, chance", "nsp, training",
        "nsp, held out", "nsp, chance",
    ]  # fmt: skip
    assert {y for _, y in lines["nsp, chance"]} == {math.log(2)}
    assert lines["nsp, training"] == [[step, logged[step]["loss_nsp"]] for step in (2, 4)]
    assert lines["mlm, held out"] == [[entry["step"], entry["eval_loss"]] for entry in measured]
    t.finish()
    assert (tmp_path / "assets" / "loss.png").stat().st_size > 10_000


def test_a_loss_of_means_over_samples_is_logged_in_its_terms_too(tmp_path):
    """Accumulation steps are averaged, as the loss is; weights of the config count in the loss, not in the terms."""

    class Means(MlmForPreTraining):
        loss_units = {"mlm": "nats", "length": "tokens"}
        accepts_loss_kwargs = False

        def loss_items(self, batch):
            return None

        def forward(self, input_ids, attention_mask=None, labels=None, sequence_ids=None, masked_positions=None):
            loss = super().forward(input_ids, attention_mask, labels, sequence_ids, masked_positions).loss
            length = sequence_ids.ne(0).sum(1).float().mean()
            return MlmOutput(**self.sum_terms({"mlm": loss, "length": length}))

    config = tiny.mlm().config
    config.length_weight = 0.5
    model = Means(config)
    terms = Terms(model)
    t = trainer(
        tmp_path, model, callbacks=[terms], train_stream=tiny.stream(8, seed=5), max_steps=4, logging_steps=4,
        gradient_accumulation_steps=2, save_strategy="no",
    )  # fmt: skip
    t.train()
    [logged] = [entry for entry in t.state.log_history if "loss" in entry]
    parts = [part for step in terms.steps for part in step]
    assert len(parts) == 8
    for name in ("mlm", "length"):
        expected = np.mean([part[name].item() for part in parts])
        assert logged[f"loss_{name}"] == pytest.approx(expected, rel=1e-5)
    assert logged["loss"] == pytest.approx(logged["loss_mlm"] + 0.5 * logged["loss_length"], rel=1e-5)
    # terms of different units do not share an axis, and the whole of them has one of its own
    figure = history_figure(t.state.log_history, units=model.loss_units)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "loss (nats)", "loss (tokens)"]
    assert [[line.get_label() for line in axes.lines] for axes in figure.axes] == [
        ["training"], ["mlm, training"], ["length, training"],
    ]  # fmt: skip


def test_all_parameters_learn_with_the_plain_trainer(tmp_path):
    model = nsp()
    before = {name: p.clone() for name, p in model.named_parameters()}
    data = [{name: tensor[i] for name, tensor in batch().items()} for i in range(4)] * 2
    arguments = TrainingArguments(
        output_dir=tmp_path,
        max_steps=2,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
    )
    t = Trainer(model, arguments, train_dataset=data, eval_dataset=data)
    with torch.no_grad():
        whole = model.eval()(**torch.utils.data.default_collate(data)).loss.item()
    assert t.evaluate()["eval_loss"] == pytest.approx(whole, rel=1e-5)
    t.train()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == set()
    # log(vocabulary) and log 2 at the start, whatever the accumulation
    assert t.state.log_history[0]["loss"] == pytest.approx(np.log(len(tiny.tokenizer())) + np.log(2), rel=0.1)


def test_it_learns_which_sentence_follows():
    model = nsp().train()
    evaluator = NextSentenceEvaluator(openings(100, seed=1), tiny.tokenizer(), max_length=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _, inputs in zip(range(120), stream(16, source=openings()), strict=False):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    measured = evaluator.measure(model.eval())
    # a random ending behind an opening cannot be known
    assert measured["nsp_accuracy"] > 0.7 and measured["loss_nsp"] < np.log(2)


def test_held_out_pairs_are_balanced_and_the_same_for_every_model():
    evaluator, again = (NextSentenceEvaluator(texts(60, seed=1), tiny.tokenizer(), max_length=32) for _ in range(2))
    labels = torch.cat([b["next_sentence_label"] for b in evaluator.batches])
    assert labels.float().mean() == 0.5 and len(labels) == evaluator.num_pairs > 80
    for a, b in zip(evaluator.batches, again.batches, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)
    results = evaluator.results(evaluator.measure(nsp().eval()), "x", before={"nsp_accuracy": 0.4, "loss_nsp": 0.7})
    assert results[0].metric == "nsp_accuracy" and results[0].baselines == {"majority": 0.5, "before": 0.4}
    assert 0.3 < results[0].value < 0.7 and results[1].baselines["majority"] == pytest.approx(0.693, abs=1e-3)
    shares = [
        NextSentenceEvaluator(texts(60, seed=1), tiny.tokenizer(), max_length=32, rank=rank, world_size=2)
        for rank in range(2)
    ]
    assert sum(len(share.batches) for share in shares) == len(evaluator.batches)
    with pytest.raises(UserError, match="documents of several sentences.*the 19 held-out texts"):
        NextSentenceEvaluator(tiny.WORDS, tiny.tokenizer())


def test_masked_tokens_are_measured_by_the_same_protocol():
    held_out = texts(40, seed=1)
    evaluator = MaskedTokenEvaluator(held_out, tiny.tokenizer(), max_length=32, packing=False)
    model = nsp().eval()
    plain = tiny.mlm().eval()
    plain.encoder.load_state_dict(model.encoder.state_dict(), strict=False)
    assert evaluator.measure(model) == pytest.approx(evaluator.measure(plain))
    fill_mask_examples(model, tiny.tokenizer(), held_out)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_resumed_run_ends_with_the_same_weights(tmp_path, accumulation):
    def run(folder, seed, callbacks=None, num_workers=0):
        t = trainer(
            folder, nsp(dropout=0.1, seed=seed), gradient_accumulation_steps=accumulation, callbacks=callbacks,
            train_stream=stream(8, num_workers=num_workers),
        )  # fmt: skip
        return t

    class Kill(MethodCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    whole = run(tmp_path / "whole", 0)
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 0, [Kill()]).train()
    again = run(tmp_path / "cut", 99, num_workers=accumulation - 1)
    again.train()
    assert again.resumed_from.name == "checkpoint-2"
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    assert again.stream.state_dict() == whole.stream.state_dict()


def test_runs_that_began_before_the_objective_existed_continue(tmp_path):
    model = tiny.mlm(dropout=0.1)
    trainer(tmp_path, model, train_stream=tiny.stream(8, seed=5)).train()
    for manifest in tmp_path.glob("checkpoint-*/manifest.json"):
        content = json.loads(manifest.read_text())
        del content["settings"]["next_sentence_objective"]
        manifest.write_text(json.dumps(content))
    trainer(tmp_path, model, train_stream=tiny.stream(8, seed=5)).train()
    with pytest.raises(UserError, match="next_sentence_objective was False, is True"):
        trainer(tmp_path).train()


def test_save_and_reload(tmp_path):
    model = nsp(mask_ratio=0.4).eval()
    model.save_pretrained(tmp_path)
    reloaded = AutoModelForPreTraining.from_pretrained(tmp_path).eval()
    assert isinstance(reloaded, MlmForPreTraining) and reloaded.config.next_sentence_objective
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(reloaded.state_dict()[name], tensor)
    inputs = batch()
    torch.testing.assert_close(reloaded(**inputs).loss, model(**inputs).loss)


def test_the_exported_encoder_is_stock(tmp_path):
    model = nsp().eval()
    with torch.no_grad():
        model.encoder.bert.pooler.dense.weight.add_(0.5)
    model.export_encoder(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "bert" and config["architectures"] == ["BertForPreTraining"]
    assert "hfssl" not in (tmp_path / "config.json").read_text()
    # with hfssl imported, the Auto classes still mean the stock ones
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is BertForPreTraining
    # in a process that has never heard of hfssl
    code = f"""
import sys, torch, transformers
from transformers import pipeline
folder, x = {str(tmp_path)!r}, torch.arange(5, 15)[None]
seen = []
for auto in ("AutoModelForPreTraining", "AutoModelForMaskedLM", "AutoModelForNextSentencePrediction", "AutoModel"):
    model, info = getattr(transformers, auto).from_pretrained(folder, output_loading_info=True)
    out = model.eval()(x)
    seen.append([type(model).__name__, sorted(info["missing_keys"])])
    if auto == "AutoModelForMaskedLM":
        token = out.logits.sum().item()
    elif auto == "AutoModelForNextSentencePrediction":
        pair = out.logits[0, 0].item()
    elif auto == "AutoModel":
        pooled = out.pooler_output.sum().item()
assert len(pipeline("fill-mask", folder)("the [MASK] fox")) == 5
assert "hfssl" not in sys.modules
import json
print(json.dumps([seen, token, pair, pooled]))
"""
    seen, token, pair, pooled = json.loads(printed_without_hfssl(tmp_path, code).splitlines()[-1])
    assert [name for name, _ in seen] == [
        "BertForPreTraining",
        "BertForMaskedLM",
        "BertForNextSentencePrediction",
        "BertModel",
    ]
    assert all(missing == [] for _, missing in seen)
    with torch.no_grad():
        x = torch.arange(5, 15)[None]
        ours = model(input_ids=x)
        expected = (
            ours.logits.sum().item(),
            ours.next_sentence_logits[0, 0].item(),
            model.encoder.bert(x).pooler_output.sum().item(),
        )
    assert (token, pair, pooled) == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("stock_class", [BertForPreTraining, BertForMaskedLM, BertModel])
def test_continue_from_a_checkpoint_with_or_without_the_head(tmp_path, stock_class):
    stock = stock_class(tiny.bert_config()).eval()
    stock.save_pretrained(tmp_path)
    model = MlmForPreTraining.from_encoder(str(tmp_path), next_sentence_objective=True).eval()
    assert type(model.encoder) is BertForPreTraining
    ours = model.encoder.state_dict()
    prefix = "bert." if stock_class is BertModel else ""
    for name, tensor in stock.state_dict().items():
        torch.testing.assert_close(ours[prefix + name], tensor)
    inputs = batch()
    loss = model(**inputs).loss
    assert torch.isfinite(loss)
    if stock_class is BertForPreTraining:
        torch.testing.assert_close(loss, stock(**inputs).loss)
    # and back: a model with the head continues without the objective
    model.export_encoder(tmp_path / "out")
    plain = MlmForPreTraining.from_encoder(str(tmp_path / "out"))
    assert type(plain.encoder) is BertForMaskedLM and plain.loss_items(tiny_rows()) is not None


def tiny_rows():
    return {name: tensor for name, tensor in batch().items() if name not in ("next_sentence_label", "token_type_ids")}


def test_other_architectures_are_refused_by_name(tmp_path):
    roberta = RobertaConfig(**SMALL)
    with pytest.raises(StrictDataclassError) as error:
        MlmPreTrainingConfig(encoder_config=roberta, next_sentence_objective=True)
    assert "transformers has one for bert, ernie" in str(error.value.__cause__)
    assert "the encoder is roberta" in str(error.value.__cause__)
    RobertaForMaskedLM(roberta).save_pretrained(tmp_path)
    with pytest.raises(StrictDataclassError) as error:
        MlmForPreTraining.from_encoder(str(tmp_path), next_sentence_objective=True)
    assert "the encoder is roberta" in str(error.value.__cause__)
    with pytest.raises(StrictDataclassError) as error:
        MlmPreTrainingConfig(encoder_config=tiny.bert_config(type_vocab_size=1), next_sentence_objective=True)
    assert "type_vocab_size=1" in str(error.value.__cause__)


def test_rows_that_do_not_fit_the_objective_are_explained():
    with pytest.raises(ValueError, match="without `next_sentence_label`.*SentencePairRows"):
        nsp().train()(**tiny_rows())
    with pytest.raises(ValueError, match="next_sentence_objective=False.*with `next_sentence_label`"):
        tiny.mlm()(**batch())
