"""Health: the figures by hand, the verdicts on what is known to learn or not, and runs brought to collapse."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import tiny_vision
import torch
import torch.nn.functional as F
from contract import contract
from tiny_vision import preset_of
from transformers import AutoModel, GPT2Config

import hfssl
from hfssl import MaeForPreTraining, SSLTrainer, SSLTrainingArguments
from hfssl.data.image.digits import digits
from hfssl.data.image.views import ViewArguments, Views
from hfssl.data.sources import MemorySource
from hfssl.data.stream import ExactStream
from hfssl.data.text.rows import TextCollator, TextRows
from hfssl.data.text.tokenizer import train_bpe_tokenizer
from hfssl.errors import UserError
from hfssl.evaluation.verdict import (
    CONSTANT,
    FAIR_SHARE,
    FAIR_STEPS,
    FEW_DIRECTIONS,
    NO_NUMBERS,
    ONE_TARGET,
    VIEWS_APART,
    collapse_error,
    describe,
    health_table,
    judge,
    last_learning_step,
    limits,
)
from hfssl.functional.embedding_figures import (
    alignment,
    effective_rank,
    embedding_std,
    margin,
    mean_cosine,
    modality_gap,
    random_rank,
    recognition,
    recognition_of_chance,
    teacher_distance,
    uniformity,
)
from hfssl.modeling.image_processing import build_image_processor
from hfssl.training.checkpoints import list_checkpoints, step_of
from hfssl.training.health import MAX_SAMPLES, MIN_SAMPLES, HealthMonitor


# -- figures ----------------------------------------------------------------------------------------------------------


def test_the_modality_gap_is_the_distance_of_the_means():
    z1, z2 = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[-1.0, 0.0], [0.0, 3.0]])
    assert modality_gap(z1, z2) == pytest.approx(1.0)
    assert modality_gap(z1, 5 * z1) == pytest.approx(0.0)
    assert modality_gap(z1, -z1) == pytest.approx(2 * 0.5**0.5)


def test_effective_rank_is_the_entropy_of_singular_values():
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(7, 3)) == pytest.approx(1)
    assert effective_rank(torch.zeros(7, 3)) == 0
    # singular values 3 and 1: shares 3/4 and 1/4
    expected = math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert effective_rank(torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]])) == pytest.approx(expected)
    z = torch.randn(20, 6)
    sigma = np.linalg.svd(z.numpy(), compute_uv=False)
    p = sigma / np.abs(sigma).sum()
    assert effective_rank(z) == pytest.approx(float(np.exp(-(p * np.log(p)).sum())), rel=1e-5)
    assert effective_rank(z) == pytest.approx(effective_rank(10 * z @ torch.linalg.qr(torch.randn(6, 6))[0]), rel=1e-5)


def test_std_and_cosine():
    pair = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    assert embedding_std(pair) == pytest.approx(0.5**0.5 * 2**0.5) and mean_cosine(pair) == pytest.approx(0)
    assert embedding_std(torch.ones(9, 4)) == pytest.approx(0) and mean_cosine(torch.ones(9, 4)) == pytest.approx(1)
    z = torch.randn(500, 64)
    assert embedding_std(z) == pytest.approx(1, abs=0.01) and mean_cosine(z) == pytest.approx(0, abs=0.01)
    by_hand = [F.cosine_similarity(a, b, dim=0).item() for a, b in itertools.combinations(z[:20], 2)]
    assert mean_cosine(z[:20]) == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-6)


def test_alignment_and_uniformity_are_those_of_wang_and_isola():
    z1, z2 = torch.randn(30, 8), torch.randn(30, 8)
    x, y = F.normalize(z1, dim=1), F.normalize(z2, dim=1)
    # appendix A of the paper, in its own words
    assert alignment(z1, z2) == pytest.approx((x - y).norm(p=2, dim=1).pow(2).mean().item(), rel=1e-5)
    assert uniformity(z1) == pytest.approx(torch.pdist(x, p=2).pow(2).mul(-2).exp().mean().log().item(), rel=1e-5)
    assert alignment(z1, 3 * z1) == pytest.approx(0) and uniformity(torch.ones(9, 4)) == pytest.approx(0)
    assert alignment(torch.eye(2), torch.eye(2).flip(0)) == pytest.approx(2)


def test_the_margin_is_what_two_views_of_a_sample_have_more_in_common_than_two_samples():
    z1, z2 = torch.randn(20, 8), torch.randn(20, 8)
    cosines = F.cosine_similarity(z1[:, None], z2[None], dim=-1)
    others = cosines[~torch.eye(20, dtype=torch.bool)].mean()
    assert margin(z1, z2) == pytest.approx((cosines.diagonal().mean() - others).item(), abs=1e-6)
    assert margin(torch.eye(5), 2 * torch.eye(5)) == pytest.approx(1)
    assert margin(torch.eye(2), torch.eye(2).flip(0)) == pytest.approx(-1)
    assert margin(torch.ones(9, 4), torch.ones(9, 4)) == pytest.approx(0)
    assert margin(torch.zeros(9, 4), torch.zeros(9, 4)) == 0


def test_recognition_is_how_often_a_view_is_nearest_to_its_own_sample():
    z1, z2 = torch.randn(20, 8), torch.randn(20, 8)
    cosines = F.cosine_similarity(z1[:, None], z2[None], dim=-1)
    others = [(i, j) for i, j in itertools.product(range(20), repeat=2) if i != j]
    wins = [(cosines[i, i] > cosines[i, j]).item() + (cosines[i, i] > cosines[j, i]).item() for i, j in others]
    assert recognition(z1, z2) == pytest.approx(sum(wins) / (2 * len(others)))
    assert recognition(torch.eye(5), 2 * torch.eye(5)) == 1 and recognition(torch.eye(2), torch.eye(2).flip(0)) == 0
    assert recognition(torch.zeros(9, 4), torch.zeros(9, 4)) == 0.5
    of_chance = recognition_of_chance(64)
    found = torch.tensor([recognition(torch.randn(64, 16), torch.randn(64, 16)) for _ in range(300)])
    assert found.mean().item() == pytest.approx(0.5, abs=0.01)
    assert 3 * found.std().item() == pytest.approx(of_chance - 0.5, rel=0.15)
    # what all samples have in common tells none apart, and hides none
    z = torch.randn(64, 16)
    assert recognition(z + 0.1 * torch.randn(64, 16) + 50, z + 0.1 * torch.randn(64, 16) + 50) > 0.95


def test_random_directions_are_bounded_by_samples_and_dimensions():
    assert random_rank(100, 4) == pytest.approx(4, rel=0.02)
    assert random_rank(40, 2048) == pytest.approx(39, rel=0.02)  # one is the mean
    assert random_rank(64, 32) < random_rank(256, 32) < 32
    assert random_rank(64, 32) == random_rank(64, 32)


# -- the verdict ------------------------------------------------------------------------------------------------------


def figures(projections, embeddings=None, **more):
    """What is measured of some projections `(n, dim)`, without what takes two views."""
    entry = {}
    for prefix, z in (("projection_", projections), ("", projections if embeddings is None else embeddings)):
        if z is not None:
            entry |= {
                f"health_{prefix}std": embedding_std(z),
                f"health_{prefix}effective_rank": effective_rank(z - z.mean(0)),
            }
    return entry | ({"health_random_rank": random_rank(*projections.shape)} if projections is not None else {}) | more


def rank_deficient(n, dim, directions):
    return torch.randn(n, directions) @ torch.randn(directions, dim)


START = {"health_verdict": "untrained", "step": 0}


def judged(run, max_steps=None):
    """The verdicts on a run, from its figures by step."""
    max_steps, past, verdicts = max_steps or max(*run, 1), [], []
    for step, entry in run.items():
        verdicts.append(judge(entry, past, step, step / max_steps))
        past.append(entry | {"step": step})
    return verdicts


def test_isotropic_constant_and_few_directions():
    start = figures(rank_deficient(128, 64, 20) + 3.0)  # as an untrained network: much is the same for all

    def verdict(z):
        return judged({0: start, 500: figures(z)})[-1]

    assert verdict(torch.randn(128, 64)) == ("learning", None)
    assert verdict(rank_deficient(128, 64, 20)) == ("learning", None)
    assert verdict(1.0 + 1e-3 * torch.randn(128, 64)) == ("collapsed since step 500", CONSTANT)
    assert verdict(torch.ones(128, 64)) == ("collapsed since step 500", CONSTANT)
    assert verdict(rank_deficient(128, 64, 1)) == ("collapsed since step 500", FEW_DIRECTIONS)
    assert verdict(rank_deficient(128, 64, 3)) == ("collapsed since step 500", FEW_DIRECTIONS)
    assert verdict(rank_deficient(128, 64, 6)) == ("narrowing", FEW_DIRECTIONS)


def test_what_is_too_early_to_say():
    good, bad = figures(torch.randn(128, 64)), figures(rank_deficient(128, 64, 2))
    long, narrowing = 4 * FAIR_STEPS, ("narrowing", FEW_DIRECTIONS)
    late = int(FAIR_SHARE * long) + 1
    # a share of the run, and a number of steps
    assert judged({0: good, 10: bad, 20: bad, late - 2: bad}, long)[1:] == [narrowing] * 3
    assert judged({0: good, 10: bad, FAIR_STEPS - 1: bad}, FAIR_STEPS - 1)[1:] == [narrowing] * 2
    assert judged({0: good, 10: bad, late: bad}, long)[-1] == ("collapsed since step 10", FEW_DIRECTIONS)
    # two evaluations in a row, or the last
    assert judged({0: good, 10: good, 200: bad, 300: good, 350: bad}, long)[2:] == [
        narrowing, ("learning", None), narrowing,
    ]  # fmt: skip
    assert judged({0: good, 10: good, 200: bad, 300: bad}, long)[-1] == ("collapsed since step 200", FEW_DIRECTIONS)
    assert judged({0: good, 10: good, long: bad})[-1] == (f"collapsed since step {long}", FEW_DIRECTIONS)


def test_what_was_never_trained_is_not_called_collapsed():
    nearly_constant = 1.0 + 1e-3 * torch.randn(128, 64)
    start = figures(nearly_constant)
    start |= {"health_recognition": 0.52, "health_recognition_of_chance": 0.55}
    # nor is a warm-up that has changed nothing yet, or a run too short to change anything
    assert judged({0: start, 5: start, FAIR_STEPS: start}, 4 * FAIR_STEPS) == [("untrained", None)] * 3
    assert judged({0: start, FAIR_STEPS - 1: start}) == [("untrained", None)] * 2
    assert judged({0: start, FAIR_STEPS: start}) == [("untrained", None), ("collapsed since step 0", CONSTANT)]
    assert judged({0: figures(torch.randn(128, 64))}) == [("untrained", None)]  # random weights, whatever they give


def test_a_run_whose_loss_is_no_number_or_many_times_what_it_was_has_diverged():
    z = figures(torch.randn(128, 64))
    for loss in (math.nan, math.inf, 25.0):
        assert judged({0: z | {"eval_loss": 2.0}, 10: z | {"eval_loss": loss}})[-1] == ("diverged", NO_NUMBERS)
    assert judged({0: z | {"eval_loss": 2.0}, 10: z | {"eval_loss": 19.0}})[-1] == ("learning", None)
    assert judged({0: z, 10: z | {"health_not_finite": 0.1}})[-1] == ("diverged", NO_NUMBERS)


def with_views(z, recognized, of_targets=None):
    targets = {} if of_targets is None else {"health_target_margin": of_targets}
    return figures(z, health_recognition=recognized, health_recognition_of_chance=0.55, **targets)


def test_a_run_that_has_learned_nothing_in_a_fair_share_of_its_steps_has_collapsed():
    z = torch.randn(128, 64)
    start = with_views(z, 0.5)

    def verdict(now, past=None):
        return judged({**(past or {0: start}), 500: now})[-1]

    assert verdict(with_views(z, 0.56)) == ("learning", None)
    # spread, but not by what is in the images
    assert verdict(with_views(z, 0.54)) == ("collapsed since step 0", VIEWS_APART)
    # the prototypes of DINO say more than its projections, either way
    for recognized in (0.9, 0.5):
        assert verdict(with_views(z, recognized, 3e-3)) == ("learning", None)
        assert verdict(with_views(z, recognized, 1e-3)) == ("collapsed since step 0", CONSTANT)
        few = with_views(rank_deficient(128, 64, 2), recognized, 1e-3)  # and only its projections tell anything apart
        assert verdict(few) == ("collapsed since step 0", CONSTANT)
    few = with_views(rank_deficient(128, 64, 2), 0.9, 3e-3)
    assert verdict(few) == ("collapsed since step 0", FEW_DIRECTIONS)
    # two towers with new weights: of noise there were more directions than there is to learn
    some = with_views(rank_deficient(128, 64, 9), 0.9)
    assert verdict(some) == ("learning", None)
    assert verdict(some, {0: start, 100: with_views(z, 0.9)}) == ("narrowing", FEW_DIRECTIONS)
    # since it was lost, where there was one
    past = {0: start, 100: with_views(z, 0.9), 200: with_views(z, 0.5), 300: with_views(z, 0.5)}
    assert verdict(with_views(z, 0.5), past)[0] == "collapsed since step 200"
    assert verdict(with_views(z, 0.9), past) == ("learning", None)
    # a log of a version that did not measure it
    assert verdict(with_views(z, 0.5), {0: figures(z)})[0] == "collapsed since step 500"


@pytest.mark.parametrize("of_targets", [None, 0.5])
def test_the_levels_that_are_shown_are_those_that_the_verdict_goes_by(of_targets):
    start = with_views(torch.randn(128, 64), 0.9, of_targets)
    levels = limits(start, [start])
    assert {"health_std", "health_projection_std", "health_projection_effective_rank"} < set(levels)
    for name, by_verdict in levels.items():
        for verdict, level in by_verdict.items():
            below, above = (judged({0: start, 500: start | {name: share * level}})[-1][0] for share in (0.999, 1.001))
            assert below.startswith(verdict) and not above.startswith(verdict), (name, verdict)


def test_the_last_step_at_which_it_was_learning():
    def log(*entries):
        return [{"step": step, "health_verdict": verdict} for step, verdict in entries] + [{"step": 99, "loss": 1.0}]

    assert last_learning_step([]) is None and last_learning_step(log()) is None
    start = (0, "untrained")
    assert last_learning_step(log(start)) is None
    assert last_learning_step(log(start, (10, "learning"), (20, "narrowing"))) == 10
    assert last_learning_step(log(start, (10, "learning"), (20, "diverged"))) == 10
    assert last_learning_step(log(start, (10, "learning"), (20, "collapsed since step 20"))) == 10
    assert last_learning_step(log(start, (10, "collapsed since step 10"), (20, "learning"))) == 20
    assert last_learning_step(log(start, (10, "learning"), (20, "collapsed since step 0"))) is None


def test_the_first_step_of_a_collapse_is_remembered_and_a_recovery_believed():
    good, bad = figures(torch.randn(128, 64)), figures(rank_deficient(128, 64, 2))
    run = dict(zip(range(0, 900, 100), [good, good, bad, bad, bad, bad, good, bad, bad], strict=True))
    since_200, since_700 = "collapsed since step 200", "collapsed since step 700"
    assert [verdict for verdict, _ in judged(run)] == [
        "untrained", "learning", "narrowing", since_200, since_200, since_200, "learning", "narrowing", since_700,
    ]  # fmt: skip


def test_masked_methods_are_judged_by_whether_inputs_are_told_apart_only():
    start = figures(None, torch.randn(64, 32))
    cone = 10.0 + torch.randn(64, 32)  # cosine 0.99, as of trained language models
    assert mean_cosine(cone) > 0.98
    assert judged({0: start, 500: figures(None, cone)})[-1] == ("learning", None)
    assert judged({0: start, 500: figures(None, rank_deficient(64, 32, 2))})[-1] == ("learning", None)
    same = figures(None, 1.0 + 1e-3 * torch.randn(64, 32))
    assert judged({0: start, 500: same})[-1] == ("collapsed since step 500", CONSTANT)
    # as little as that, but from the beginning: what bfloat16 cannot tell apart is no embedding at the end
    assert judged({0: same, 90: same, 500: same}) == [
        ("untrained", None), ("untrained", None), ("collapsed since step 0", CONSTANT),
    ]  # fmt: skip
    assert judged({0: same, 500: figures(None, 1.0 + 1e-2 * torch.randn(64, 32))})[-1] == ("learning", None)


def test_a_loss_that_falls_because_all_targets_are_the_same_is_no_learning():
    start = figures(None, torch.randn(64, 32), eval_loss=4.6, health_target_perplexity=60.0)

    def end(in_use):
        now = figures(None, torch.randn(64, 32), eval_loss=0.1, eval_chance_loss=4.6, health_target_perplexity=in_use)
        return judged({0: start, 250: now, 500: now})[-1], now

    verdict, now = end(1.3)
    assert verdict == ("collapsed since step 250", ONE_TARGET)
    assert end(2.5)[0] == ("learning", None)
    assert "targets in use 1.3" in describe(now | {"health_verdict": "collapsed"})
    assert "targets in use" in health_table([{**now, "health_verdict": "learning", "step": 5}])


def test_one_answer_to_everything_is_seen_by_a_loss_at_chance_where_no_samples_are_compared():
    start, narrow = figures(None, torch.randn(64, 32)), 1.0 + 0.2 * torch.randn(64, 32)

    def end(embeddings, **losses):
        return judged({0: start, 250: figures(None, embeddings, **losses), 500: figures(None, embeddings, **losses)})[
            -1
        ]

    assert end(narrow, eval_loss=0.996, eval_chance_loss=1.0) == ("collapsed since step 250", CONSTANT)
    assert end(narrow, eval_loss=0.9, eval_chance_loss=1.0) == ("learning", None)
    assert end(narrow, eval_loss=0.996) == ("learning", None)  # a loss that has no level of chance
    # embeddings that tell inputs apart: nothing is learned of the targets yet, and nothing is lost either
    assert end(torch.randn(64, 32), eval_loss=1.0, eval_chance_loss=1.0) == ("learning", None)


# -- runs -------------------------------------------------------------------------------------------------------------

DIGITS = ViewArguments(image_size=16, flip_probability=0.0, crop_scale=(0.5, 1.0))


def arguments(folder, **overrides):
    fields = {
        "output_dir": str(folder), "max_steps": 100, "per_device_train_batch_size": 64, "learning_rate": 1e-2, "precision": "fp32",
        "report_to": "none", "eval_steps": 25, "save_strategy": "no", "logging_steps": 5, "disable_tqdm": True, "seed": 5,
        "weight_decay": 0.01, "adam_beta2": 0.999,
    }  # fmt: skip
    return SSLTrainingArguments(**{**fields, **overrides})


def digits_trainer(folder, model, preset="simclr", view_arguments=DIGITS, **overrides):
    args = arguments(folder, **overrides)
    views = Views(preset_of(preset), view_arguments, is_grey=True, patch_size=4)
    source = MemorySource(digits("train")["image"], name="digits", modality="image")
    stream = ExactStream(
        source, views.rows, views.collator("cpu"), args.per_device_train_batch_size, seed=5, block_bytes=20_000
    )
    processor = build_image_processor(16, views.mean, views.std)
    return SSLTrainer(model, args, stream, held_out=digits("test")["image"][:100], processing_class=processor)


def method(name, encoder=None, **config):
    torch.manual_seed(0)
    model_class = getattr(hfssl, f"{name}ForPreTraining")
    sizes = {"projector_output_dim": 32, **({} if name == "Simclr" else {"projector_hidden_dim": 64})}
    encoder = encoder or tiny_vision.resnet()
    return model_class(model_class.config_class(encoder_config=encoder, **{**sizes, **config}))


def health(trainer):
    return [entry for entry in trainer.state.log_history if "health_verdict" in entry]


def verdicts(trainer):
    return [entry["health_verdict"] for entry in health(trainer)]


def test_simclr_without_contrast_collapses_and_its_twin_does_not(tmp_path):
    settings = {"learning_rate": 3e-2, "lr_scheduler_type": "constant", "eval_steps": 20}
    model = method("Simclr", contrastive_temperature=0.2, projector_output_dim=64)
    sound = digits_trainer(tmp_path / "a", model, max_steps=60, **settings)
    sound.train()
    assert verdicts(sound) == ["untrained", *["learning"] * 3]
    model = method("Simclr", contrastive_temperature=100.0, projector_output_dim=64)
    hot = digits_trainer(tmp_path / "b", model, max_steps=100, **settings)
    hot.train()
    assert verdicts(hot)[0] == "untrained" and verdicts(hot)[-1].startswith("collapsed since step")
    last = health(hot)[-1]
    assert "contrastive_temperature=100" in last["health_cause"] and last["health_cause"] in describe(last)
    assert last["health_projection_std"] > 0.9  # it is not by this figure that one sees it
    assert last["health_grad_norm"] == [e for e in hot.state.log_history if "grad_norm" in e][-1]["grad_norm"]
    # the card says so, and how it came about
    hot.finish()
    card = (tmp_path / "b" / "README.md").read_text()
    assert "## Health" in card and last["health_verdict"] in card and last["health_cause"] in card
    assert (tmp_path / "b" / "assets" / "health.png").stat().st_size > 5000
    table = health_table(hot.state.log_history)
    assert "| 0 | untrained |" in table
    first, *_, final = [row.split("|")[1:-1] for row in table.split("\n\n")[1].splitlines()]
    assert f"{last['health_grad_norm']:.3g}" == final[first.index(" norm of the gradient ")].strip()
    assert f"{last['health_margin']:.3g}" == final[first.index(" margin of views ")].strip()


@pytest.mark.parametrize("stop", [True, False])
def test_a_collapse_can_end_the_run_and_leaves_the_last_good_checkpoint(tmp_path, monkeypatch, stop):
    contract("SimclrForPreTraining").collapse(monkeypatch.setattr)
    trainer = digits_trainer(
        tmp_path, method("Simclr"), max_steps=300 if stop else 100, eval_steps=10, save_strategy="steps", save_steps=4,
        save_total_limit=2, stop_on_collapse=stop, lr_scheduler_type="constant",
    )  # fmt: skip
    if stop:
        with pytest.raises(
            UserError, match=r"Stopped at step \d+, collapsed since step \d+, likely because .*"
        ) as error:
            trainer.train()
    else:
        trainer.train()
    step = trainer.state.global_step
    good = max(entry["step"] for entry in health(trainer) if entry["health_verdict"] == "learning")
    assert 10 <= good < step - 10 and verdicts(trainer)[-1].startswith("collapsed since step")
    # of two that are kept, none would be from then
    there = [step_of(checkpoint) for checkpoint in list_checkpoints(tmp_path)]
    assert len(there) == 3 and there[1] > good and there[2] == good // 4 * 4
    if stop:
        assert FAIR_STEPS <= step < 300 and f"step {step}, collapsed since step" in str(error.value)
        assert f"when it was learning: {tmp_path}/checkpoint-{there[2]}." in str(error.value)


def test_a_run_without_a_good_checkpoint_says_so():
    history = [{"step": 10, "health_verdict": "learning"}, {"step": 150, "health_verdict": "collapsed since step 0"}]
    entry = {"health_verdict": "collapsed since step 0", "health_cause": "it is so"}
    assert last_learning_step(history) is None  # what it was called before there was enough to go by
    error = collapse_error(entry, 150, None)
    assert str(error).endswith(
        "collapsed since step 0, likely because it is so; last checkpoint from when it was learning: none."
    )


def test_a_resumed_run_tells_the_same(tmp_path):
    settings = {"max_steps": 40, "eval_steps": 10, "save_strategy": "steps", "save_steps": 20}
    whole = digits_trainer(tmp_path / "whole", method("Byol"), "byol", learning_rate=3e-3, **settings)
    whole.train()

    class Killed(Exception):
        pass

    cut = digits_trainer(tmp_path / "cut", method("Byol"), "byol", learning_rate=3e-3, **settings)
    check = cut.health.check

    def killed(model, step, *args):
        if step == 30:
            raise Killed
        return check(model, step, *args)

    cut.health.check = killed
    with pytest.raises(Killed):
        cut.train()
    again = digits_trainer(tmp_path / "cut", method("Byol"), "byol", learning_rate=3e-3, **settings)
    again.train()
    assert again.resumed_from.name == "checkpoint-20"
    told = [
        [
            {name: value for name, value in entry.items() if name.startswith("health") or name == "step"}
            for entry in run
        ]
        for run in (health(again), health(whole))
    ]
    assert told[0] == told[1] and len(told[0]) == 5


def test_what_was_called_collapsed_and_is_not_any_more_says_so(tmp_path, caplog):
    caplog.set_level("INFO", "hfssl")
    settings = {"max_steps": 30, "eval_steps": 10, "save_strategy": "steps", "save_steps": 20}
    first = digits_trainer(tmp_path, method("Simclr"), **settings)
    check = first.health.check

    def collapsed(model, step, *args):
        if step == 30:
            raise UserError("stopped")
        return check(model, step, *args) | ({"health_verdict": "collapsed since step 7"} if step == 20 else {})

    first.health.check = collapsed
    with pytest.raises(UserError):
        first.train()
    again = digits_trainer(tmp_path, method("Simclr"), **settings)
    again.train()
    assert verdicts(again) == ["untrained", "learning", "collapsed since step 7", "learning"]
    told = "learning, no longer collapsed since step 7 (projections"
    assert f"step 30: {told}" in caplog.text and told in health_table(again.state.log_history)
    assert caplog.text.count("What verdicts mean") == 1  # once a run, not again after a resume


def test_a_model_that_gives_no_numbers_has_diverged(tmp_path):
    model = method("Simclr").eval()
    trainer = digits_trainer(tmp_path, model, stop_on_collapse=True)
    trainer.evaluate()
    with torch.no_grad():
        next(model.projector.parameters()).fill_(math.nan)
    trainer.state.global_step = 10
    with pytest.raises(UserError, match="Stopped at step 10, diverged, likely because the learning rate is too high"):
        trainer.evaluate()


def test_the_measurement_changes_nothing_and_is_bounded(tmp_path):
    images = digits("train")["image"][:400]
    model = method("Byol").train()
    views = Views(preset_of("byol"), DIGITS, is_grey=True)
    stream = ExactStream(MemorySource(images, name="digits", modality="image"), views.rows, views.collator("cpu"), 8)
    monitor = HealthMonitor(images, build_image_processor(16), "image", stream)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    random_state = torch.get_rng_state()
    seen = []
    for branch in (model.student, model.teacher):
        branch.encoder.register_forward_pre_hook(
            lambda module, args, kwargs: seen.append(
                (len(args[0] if args else kwargs["pixel_values"]), torch.is_grad_enabled())
            ),
            with_kwargs=True,
        )
    measured = monitor.measure(model)
    assert sum(count for count, _ in seen) == 3 * MAX_SAMPLES  # once as it is, and two views
    assert not any(grad for _, grad in seen)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert monitor.measure(model) == measured and all(math.isfinite(value) for value in measured.values())
    with torch.no_grad():
        z = model.compared_embeddings(stream.collate({name: rows[:64] for name, rows in monitor.views.items()}))
    assert z.shape == (64, 2, 32)


def test_the_figures_are_those_of_clean_images(tmp_path):
    model = method("Simclr").eval()
    images = digits("test")["image"][:40]
    processor = build_image_processor(16)
    measured = HealthMonitor(images, processor, "image", batch_size=7).measure(model)
    from hfssl.evaluation.image.features import resized_images

    pixels = processor(images=list(resized_images(processor, images)), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.encoder(pixels).pooler_output.flatten(1)
    assert measured["health_std"] == pytest.approx(embedding_std(features), rel=1e-4)
    assert measured["health_rankme"] == pytest.approx(effective_rank(features), rel=1e-4)
    assert "health_projection_std" not in measured  # no stream that makes views


def test_too_few_samples_give_no_verdict(caplog):
    caplog.set_level("INFO", "hfssl")
    monitor = HealthMonitor(digits("test")["image"][: MIN_SAMPLES - 1], build_image_processor(16), "image")
    assert "No verdict on the health of the run: 31 held-out samples, 32 needed" in caplog.text
    assert monitor.check(method("Simclr"), 10, []) == {}


def test_the_distance_of_a_teacher():
    model = method("Byol")
    assert teacher_distance(model) == 0 and teacher_distance(method("Simclr")) is None
    with torch.no_grad():
        for teacher, student in zip(model.teacher.parameters(), model.student.parameters(), strict=True):
            teacher.copy_(0.9 * student)
    assert teacher_distance(model) == pytest.approx(0.1, rel=1e-5)


def test_the_margin_of_targets_is_what_the_loss_gains_by_the_right_images(tmp_path):
    images = digits("test")["image"][:40]
    model = dino(num_prototypes=16)
    with torch.no_grad():
        model.center.normal_()
    views = Views(preset_of("dino"), LARGE_CROPS, is_grey=True)
    stream = ExactStream(MemorySource(images, name="digits", modality="image"), views.rows, views.collator("cpu"), 8)
    monitor = HealthMonitor(images, build_image_processor(16), "image", stream, batch_size=32)
    measured = monitor.measure(model)["health_target_margin"]
    model.eval()
    rows = stream.collate(monitor.views)["pixel_values"]
    with torch.no_grad():
        teacher, student = ([branch(rows[:, view]) for view in (0, 1)] for branch in (model.teacher, model.student))
    loss = {}
    for i, j in itertools.product(range(40), repeat=2):
        pairs = [
            -F.softmax((teacher[view][j] - model.center) / 0.04, -1) @ F.log_softmax(student[1 - view][i] / 0.1, -1)
            for view in (0, 1)
        ]
        loss[i, j] = sum(pairs).item() / 2
    # the one before it in its half: batches are equally large
    gains = [loss[i, i + 19 if i % 20 == 0 else i - 1] - loss[i, i] for i in range(40)]
    assert measured == pytest.approx(sum(gains) / 40 / math.log(16), rel=1e-4)
    assert measured != 0


@pytest.mark.parametrize("name", sorted(tiny_vision.ENCODERS))
def test_every_kind_of_image_encoder_can_be_measured(name):
    if name == "dinov3_convnext":
        pytest.skip("halves small images to nothing")
    model = method("Simclr", tiny_vision.ENCODERS[name]()).eval()
    measured = HealthMonitor(digits("test")["image"][:32], build_image_processor(16), "image").measure(model)
    assert measured["health_effective_rank"] > 1 and 0 < measured["health_std"] < 1


def texts_trainer(folder, model, tokenizer, causal=False, **overrides):
    args = arguments(folder, **{"per_device_train_batch_size": 8, "max_steps": 30, "eval_steps": 10, **overrides})
    masking = None if causal else {"mask_ratio": 0.15}
    rows = TextRows(tokenizer, 32, masking=masking, next_tokens=causal)
    collate = TextCollator(tokenizer.pad_token_id, positions="target_positions" if causal else "masked_positions")
    source = MemorySource(list(tiny.texts()), name="memory", piece_bytes=500)
    stream = ExactStream(source, rows, collate, 8, block_bytes=4000, seed=5)
    return SSLTrainer(model, args, stream, held_out=list(tiny.texts(40, seed=1)), processing_class=tokenizer)


def gpt2(tokenizer):
    torch.manual_seed(0)
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=len(tokenizer), n_positions=64, **ends)
    return hfssl.ClmForPreTraining(hfssl.ClmPreTrainingConfig(encoder_config=config, dropout=0.0))


@pytest.mark.parametrize("causal", [False, True])
def test_text_methods_report_and_learn(tmp_path, causal):
    tokenizer = train_bpe_tokenizer(list(tiny.texts()), 300) if causal else tiny.tokenizer()
    trainer = texts_trainer(tmp_path, gpt2(tokenizer) if causal else tiny.mlm(), tokenizer, causal)
    trainer.train()
    assert verdicts(trainer) == ["untrained", *["learning"] * 3]
    assert {"health_std", "health_rankme", "health_effective_rank", "health_mean_cosine"} <= set(health(trainer)[-1])
    assert "health_alignment" not in health(trainer)[-1]
    trainer.finish()
    assert "learning (embeddings: effective rank" in (tmp_path / "README.md").read_text()


def test_each_text_stands_alone():
    model, tokenizer = tiny.mlm().eval(), tiny.tokenizer()
    texts = list(tiny.texts(40, seed=1))
    monitor = HealthMonitor(texts, tokenizer, "text", tiny.stream(), batch_size=7)
    assert sum(len(batch["input_ids"]) for batch in monitor.embedder.batches) == 40
    with torch.no_grad():
        alone = []
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"][:32]])
            alone.append(model.encoder.base_model(ids).last_hidden_state[0].mean(0))
    alone = torch.stack(alone)
    measured = monitor.measure(model)
    assert measured["health_std"] == pytest.approx(embedding_std(alone), rel=1e-4)
    assert measured["health_rankme"] == pytest.approx(effective_rank(alone), rel=1e-4)


def test_an_encoder_that_ignores_its_input_has_collapsed():
    model, tokenizer = tiny.mlm(), tiny.tokenizer()
    monitor = HealthMonitor(list(tiny.texts(40, seed=1)), tokenizer, "text", tiny.stream())
    start = monitor.check(model, 0, []) | {"step": 0}
    norm = model.encoder.base_model.encoder.layer[-1].output.LayerNorm
    with torch.no_grad():
        norm.weight.mul_(1e-3)
        norm.bias.fill_(1.0)
    found = monitor.check(model, 500, [start], 1.0)
    assert found["health_verdict"] == "collapsed since step 500"
    assert "lower `--learning_rate`" in found["health_cause"]


def test_mae_is_judged_like_a_masked_method(tmp_path):
    torch.manual_seed(0)
    config = MaeForPreTraining.config_class(
        encoder_config=tiny_vision.vit(),
        decoder_hidden_size=16,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
    )
    trainer = digits_trainer(
        tmp_path, MaeForPreTraining(config), "mae", max_steps=20, eval_steps=10, learning_rate=1e-3
    )
    trainer.train()
    assert verdicts(trainer) == ["untrained", *["learning"] * 2] and "health_projection_std" not in health(trainer)[-1]


def test_every_method_says_what_to_change():
    for name, model_class in hfssl.methods.METHODS.items():
        symptoms = {CONSTANT, FEW_DIRECTIONS} if hasattr(model_class, "compared_embeddings") else {CONSTANT}
        symptoms |= {ONE_TARGET} if hasattr(model_class, "targets_of") else set()
        hints = model_class.method.collapse_hints(model_class.config_class())
        assert symptoms <= set(hints), name
        assert all("`" in hint and "{" not in hint for hint in hints.values())


def test_what_to_change_is_something_that_has_an_effect():
    for centering, has_center in (("mean", True), ("sinkhorn", False)):
        model = method("Dino", num_prototypes=16, centering=centering)
        hints = model.method.collapse_hints(model.config)
        assert ("center_momentum" in hints[CONSTANT]) == has_center


# -- collapse on purpose, methods with a teacher ----------------------------------------------------------------------


# a digit is its brightness: recoloured, views of one are no more alike than two digits
SAME_COLOURS = ViewArguments(
    image_size=16, flip_probability=0.0, crop_scale=(0.5, 1.0), jitter=(0.0, 0.0, 0.0, 0.0),
    solarize_probability=[0.0],
)  # fmt: skip
LARGE_CROPS = replace(SAME_COLOURS, local_crops=0)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [tiny_vision.resnet, tiny_vision.vit])
def test_byol_without_predictor_and_stop_gradient_collapses(tmp_path, monkeypatch, encoder):
    rate, steady = 1e-2, {"momentum_start": 0.9}
    if encoder is tiny_vision.vit:
        rate, steady = 3e-3, {"momentum_start": 0.99, "last_batch_norm": True, "freeze_patch_embed": True}
    settings = {"view_arguments": SAME_COLOURS, "learning_rate": rate, "max_steps": 300, "eval_steps": 50}
    sound = digits_trainer(tmp_path / "a", method("Byol", encoder(), **steady), "byol", **settings)
    sound.train()
    assert verdicts(sound) == ["untrained", *["learning"] * 6]
    assert health(sound)[-1]["health_teacher_distance"] > 0
    contract("ByolForPreTraining").collapse(monkeypatch.setattr)
    collapsing = digits_trainer(tmp_path / "b", method("Byol", encoder(), **steady), "byol", **settings)
    collapsing.train()
    assert verdicts(collapsing)[-1].startswith("collapsed since step")


def dino(encoder=None, temperature=0.04, **config):
    temperatures = {"teacher_temperature_start": temperature, "teacher_temperature_end": temperature}
    fields = {"num_prototypes": 256, "momentum_start": 0.9, "projector_batch_norm": True, **temperatures}
    return method("Dino", encoder, **{**fields, **config})


def test_dino_with_one_prototype_for_all_images_collapses_and_its_twin_does_not(tmp_path):
    settings = {"learning_rate": 1e-2, "max_steps": 100, "eval_steps": 50}
    sound = digits_trainer(tmp_path / "a", dino(num_prototypes=64), "dino", LARGE_CROPS, **settings)
    sound.train()
    assert verdicts(sound) == ["untrained", *["learning"] * 2] and health(sound)[-1]["health_teacher_distance"] > 0
    model = dino(num_prototypes=64, center_momentum=1.0)  # a centre that stays where it is
    collapsing = digits_trainer(tmp_path / "b", model, "dino", LARGE_CROPS, **settings)
    collapsing.train()
    assert verdicts(collapsing)[0] == "untrained" and verdicts(collapsing)[-1].startswith("collapsed since step")
    last = health(collapsing)[-1]
    assert "lower `center_momentum=1`" in last["health_cause"]
    # nothing that it had is lost
    without = {name: value for name, value in last.items() if "margin" not in name and "recognition" not in name}
    assert judge(without, health(collapsing)[:-1], 100, 1.0) == ("learning", None)
    assert abs(last["health_target_margin"]) < 1e-3 < 0.1 < health(sound)[-1]["health_target_margin"]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [tiny_vision.resnet, tiny_vision.vit])
def test_dino_without_sharpening_collapses_and_its_twin_does_not(tmp_path, encoder):
    equal_shares = {"centering": "sinkhorn", "pooling": "mean"}
    settings = {"learning_rate": 3e-3 if encoder is tiny_vision.resnet else 2e-3, "max_steps": 160, "eval_steps": 40}
    model = dino(encoder(), 0.02, **equal_shares)
    sound = digits_trainer(tmp_path / "a", model, "dino", LARGE_CROPS, **settings)
    sound.train()
    assert verdicts(sound) == ["untrained", *["learning"] * 4]
    collapsing = digits_trainer(tmp_path / "b", dino(encoder(), 1.0, **equal_shares), "dino", LARGE_CROPS, **settings)
    collapsing.train()
    assert verdicts(collapsing)[0] == "untrained" and verdicts(collapsing)[-1].startswith("collapsed since step")
    assert "lower `teacher_temperature_end=1`" in health(collapsing)[-1]["health_cause"]


@pytest.mark.slow
def test_dino_whose_targets_are_uniform_has_collapsed_though_its_projections_are_spread(tmp_path):
    # of 32 directions, 16 prototypes leave some free
    trainer = digits_trainer(
        tmp_path, dino(None, 1.0, num_prototypes=16), "dino", LARGE_CROPS, learning_rate=3e-3, max_steps=120,
        eval_steps=40,
    )  # fmt: skip
    trainer.train()
    last = health(trainer)[-1]
    assert verdicts(trainer)[-1].startswith("collapsed since step") and "log(16)" in last["health_cause"]
    assert last["health_recognition"] > last["health_recognition_of_chance"] and last["health_projection_std"] > 0.3


@pytest.mark.slow
def test_dino_in_the_papers_setting_stays_at_chance_on_digits(tmp_path):
    torch.manual_seed(0)
    sizes = {"projector_hidden_dim": 512, "projector_output_dim": 128, "num_prototypes": 1024, "momentum_start": 0.97}
    model = hfssl.DinoForPreTraining(hfssl.DinoPreTrainingConfig(encoder_config=tiny_vision.vit(), **sizes))
    trainer = digits_trainer(
        tmp_path, model, "dino", LARGE_CROPS, learning_rate=1e-3, max_steps=160, eval_steps=40, warmup_steps=0.06
    )
    trainer.train()
    assert verdicts(trainer)[-1].startswith("collapsed since step")
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] == pytest.approx(math.log(1024), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [tiny_vision.resnet, tiny_vision.vit])
def test_moco_without_negatives_predictor_and_stop_gradient_collapses(tmp_path, monkeypatch, encoder):
    settings = {"learning_rate": 1e-2 if encoder is tiny_vision.resnet else 2e-3, "max_steps": 160, "eval_steps": 40}
    model = {"momentum_start": 0.9, "projector_output_dim": 64}
    sound = digits_trainer(tmp_path / "a", method("Moco", encoder(), **model), "moco", SAME_COLOURS, **settings)
    sound.train()
    assert verdicts(sound) == ["untrained", *["learning"] * 4]
    contract("MocoForPreTraining").collapse(monkeypatch.setattr)
    collapsing = digits_trainer(tmp_path / "b", method("Moco", encoder(), **model), "moco", SAME_COLOURS, **settings)
    collapsing.train()
    assert verdicts(collapsing)[0] == "untrained" and verdicts(collapsing)[-1].startswith("collapsed since step")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [tiny_vision.resnet, tiny_vision.vit])
def test_simclr_without_negatives_collapses(tmp_path, monkeypatch, encoder):
    rate = 1e-2 if encoder is tiny_vision.resnet else 2e-3
    settings = {"learning_rate": rate, "max_steps": 500, "eval_steps": 100}
    sound = digits_trainer(tmp_path / "a", method("Simclr", encoder(), contrastive_temperature=0.2), **settings)
    sound.train()
    assert verdicts(sound) == ["untrained", *["learning"] * 5]
    contract("SimclrForPreTraining").collapse(monkeypatch.setattr)
    collapsing = digits_trainer(tmp_path / "b", method("Simclr", encoder()), **settings)
    collapsing.train()
    assert verdicts(collapsing)[-1].startswith("collapsed since step")


def test_untrained_encoders_of_text_are_measured(tmp_path):
    """What a stock model gives before any training is the reference, however alike its outputs are."""
    model = tiny.mlm()
    model.encoder.base_model.load_state_dict(
        AutoModel.from_config(tiny.bert_config(), add_pooling_layer=False).state_dict()
    )
    found = HealthMonitor(list(tiny.texts(40, seed=1)), tiny.tokenizer(), "text").check(model, 0, [])
    assert found["health_verdict"] == "untrained" and "health_cause" not in found
