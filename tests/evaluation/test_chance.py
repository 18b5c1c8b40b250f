"""Levels of chance: what a loss is where outputs are all equal, or independent of the input."""

import math

import pytest
import tiny
import torch
from contract import METHODS, build, contract
from tiny_vision import preset_of

import hfssl
from hfssl.data.image.digits import digits
from hfssl.data.image.views import ViewArguments, Views
from hfssl.evaluation.chance import chance_levels
from hfssl.evaluation.held_out_loss import HeldOutLossEvaluator
from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator
from hfssl.losses import nt_xent_loss
from hfssl.modeling.method import LossContext
from hfssl.report.curves import history_figure


# equal outputs have the best loss there is
WITHOUT = {"ByolForPreTraining", "SiglipForPreTraining", "SimsiamForPreTraining"}
CONTRASTS = [
    ("ClipForPreTraining", {}),
    ("SimclrForPreTraining", {}),
    ("SimclrForPreTraining", {"decoupled": True}),
    ("SimclrForPreTraining", {"nearest_neighbour_queue": 9, "predictor_hidden_dim": 8}),
    ("MocoForPreTraining", {"queue_size": 9}),
    ("DinoForPreTraining", {}),
    ("BarlowTwinsForPreTraining", {}),
    ("VicregForPreTraining", {"variance_weight": 3.0}),
    ("LejepaForPreTraining", {"sigreg_weight": 0.3}),
]


def without_input(model):
    """Give every output as if nothing were known of the input: all are 0."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model.eval()


def test_every_method_says_its_level_or_that_it_has_none():
    context = LossContext(64, target_entropy=3.0, target_variance=0.5)
    for name in METHODS:
        level = build(name).method.chance(build(name).config, context)
        # a loss of several terms may have levels of its terms only
        assert any(term.startswith("loss") for term in level) == (name not in WITHOUT), name


@pytest.mark.parametrize("name, settings", CONTRASTS)
@pytest.mark.parametrize("num_samples", [3, 6])
def test_equal_outputs_have_the_loss_of_chance(name, settings, num_samples):
    model = without_input(build(name, **settings))
    torch.manual_seed(0)
    batch = contract(name).batch(num_samples)
    loss = model(**batch).loss.item()
    assert loss == pytest.approx(model.method.chance(model.config, LossContext(num_samples))["loss"], rel=1e-4)


def test_random_projections_lie_above_chance_by_their_width_and_temperature():
    torch.manual_seed(0)
    dim, temperature = 128, 0.2
    losses = [nt_xent_loss(torch.randn(64, dim), torch.randn(64, dim), temperature) for _ in range(20)]
    above = torch.stack(losses).mean().item() - math.log(2 * 64 - 1)
    assert above == pytest.approx(1 / (2 * dim * temperature**2), rel=0.15)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_the_mean_of_what_is_reconstructed_has_the_loss_of_chance(norm_pix_loss):
    model = without_input(build("MaeForPreTraining", norm_pix_loss=norm_pix_loss))
    size = model.config.encoder_config.image_size
    views = Views(preset_of("mae"), ViewArguments(image_size=size, flip_probability=0.0), is_grey=True, patch_size=4)
    evaluator = HeldOutLossEvaluator(digits("test")["image"][:200], views)
    targets = [model.targets(evaluator.batch("cpu", i)["pixel_values"])[0] for i in range(len(evaluator.batches))]
    with torch.no_grad():
        model.decoder_pred.bias.copy_(torch.cat(targets).flatten(0, 1).mean(0))
    level = chance_levels(model, [evaluator], 256)
    assert level == {"chance_loss": level["eval_chance_loss"], "eval_chance_loss": level["eval_chance_loss"]}
    assert evaluator.measure(model)["loss"] == pytest.approx(level["eval_chance_loss"], rel=0.02)


def test_a_process_without_a_batch_sends_as_many_numbers(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "torch.distributed.all_reduce", lambda tensor: sizes.append(tensor.numel()) or tensor.add_(1.0)
    )
    model = build("MaeForPreTraining")
    views = Views(preset_of("mae"), ViewArguments(image_size=model.config.encoder_config.image_size), is_grey=True,
                  patch_size=4)  # fmt: skip
    for rank in (0, 5):
        evaluator = HeldOutLossEvaluator(digits("test")["image"][:40], views, rank=rank, world_size=6)
        assert bool(evaluator.batches) == (rank == 0)
        evaluator.loss_context(model)
    assert sizes == [1 + 2 * 48] * 2


def test_the_frequency_of_tokens_has_the_loss_of_chance():
    tokenizer, texts = tiny.tokenizer(), list(tiny.texts(60, seed=1))
    evaluator = MaskedTokenEvaluator(texts, tokenizer, max_length=32)
    model = without_input(tiny.mlm())
    counts = torch.bincount(evaluator.labels, minlength=model.config.encoder_config.vocab_size).double()
    with torch.no_grad():
        model.encoder.get_output_embeddings().bias.copy_((counts / counts.sum()).clamp(min=1e-30).log())
    level = chance_levels(model, [evaluator], 8)["eval_chance_loss"]
    assert evaluator.measure(model)["loss"] == pytest.approx(level, rel=1e-4)
    # where training texts are at hand, the level is that of their frequencies: the unigram baseline of the table
    trained = MaskedTokenEvaluator(texts, tokenizer, max_length=32, training_texts=tiny.texts(200))
    assert chance_levels(model, [trained], 8)["chance_loss"] == trained.baselines["loss"] > level


def test_terms_of_a_loss_have_their_own_levels():
    config = hfssl.MlmPreTrainingConfig(encoder_config=tiny.bert_config(), next_sentence_objective=True)
    levels = hfssl.MlmForPreTraining.method.chance(config, LossContext(8, target_entropy=3.0))
    assert levels == {"loss": 3.0 + math.log(2), "loss_mlm": 3.0, "loss_nsp": math.log(2)}


def test_batches_of_all_processes_are_compared_in_training():
    model = build("SimclrForPreTraining")
    views = Views(preset_of("simclr"), ViewArguments(image_size=16), is_grey=True, patch_size=4)
    evaluator = HeldOutLossEvaluator(digits("test")["image"][:32], views)
    levels = chance_levels(model, [evaluator], 2 * 256)
    assert levels == {"chance_loss": math.log(1023), "eval_chance_loss": math.log(63)}
    history = [{"step": step, "loss": 5.0, "eval_loss": 5.0, **levels} for step in (0, 10)]
    both = history_figure(history, contrasted=(512, 32)).axes  # losses that cannot be compared share none
    lines = {line.get_label(): line for axes in both for line in axes.lines}
    label = "chance, held out (32 images at once)"
    assert list(lines[label].get_ydata()) == [math.log(63)] * 2 and lines[label].get_linestyle() == "--"
    assert "chance, training (512 images at once)" in lines


def test_without_a_level_nothing_is_said():
    views = Views(preset_of("byol"), ViewArguments(image_size=16), is_grey=True, patch_size=4)
    evaluator = HeldOutLossEvaluator(digits("test")["image"][:32], views)
    assert chance_levels(build("ByolForPreTraining"), [evaluator], 64) == {}
