"""LARS against its definition, and how it is reached from the command line."""

import math
from types import SimpleNamespace

import pytest
import tiny
import torch
from tiny_vision import build
from torch import nn

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.errors import UserError
from hfssl.training.optim import Lars, hold_rates, set_rates_apart


def by_hand(weights, gradients, rates, momentum, weight_decay, trust):
    """Parameters after some steps, as lists of numbers; a list of lists is a matrix."""
    weights = {name: [row[:] for row in value] for name, value in weights.items()}
    moments = {name: [[0.0] * len(row) for row in value] for name, value in weights.items()}
    for rate, gradient in zip(rates, gradients, strict=True):
        for name, w in weights.items():
            d = gradient[name]
            if name == "matrix":
                d = [[g + weight_decay * x for g, x in zip(gs, xs, strict=True)] for gs, xs in zip(d, w, strict=True)]
                lengths = [math.sqrt(sum(x * x for row in value for x in row)) for value in (w, d)]
                scale = trust * lengths[0] / lengths[1] if min(lengths) > 0 else 1.0
                d = [[scale * x for x in row] for row in d]
            for i, row in enumerate(d):
                for j, x in enumerate(row):
                    moments[name][i][j] = momentum * moments[name][i][j] + x
                    w[i][j] -= rate * moments[name][i][j]
    return weights


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("start", [1.0, 0.0])
def test_lars_is_what_it_says(weight_decay, start):
    matrix, vector = start * torch.randn(2, 3), torch.randn(4)
    gradients = [{"matrix": torch.randn(2, 3), "vector": torch.randn(4)} for _ in range(3)]
    rates = [0.5, 0.3, 0.1]
    params = {"matrix": nn.Parameter(matrix.clone()), "vector": nn.Parameter(vector.clone())}
    optimizer = Lars(params.values(), lr=1.0, momentum=0.9, weight_decay=weight_decay, trust_coefficient=0.02)
    for rate, gradient in zip(rates, gradients, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        for name, parameter in params.items():
            parameter.grad = gradient[name].clone()
        optimizer.step()
        for name, parameter in params.items():  # a second look at the gradient finds it as it was
            assert torch.equal(parameter.grad, gradient[name])
    expected = by_hand(
        {"matrix": matrix.tolist(), "vector": [vector.tolist()]},
        [{"matrix": g["matrix"].tolist(), "vector": [g["vector"].tolist()]} for g in gradients],
        rates, 0.9, weight_decay, 0.02,
    )  # fmt: skip
    torch.testing.assert_close(params["matrix"].data, torch.tensor(expected["matrix"]))
    torch.testing.assert_close(params["vector"].data, torch.tensor(expected["vector"][0]))


def test_the_first_step_is_a_share_of_the_weights():
    weight = nn.Parameter(torch.randn(5, 5))
    before = weight.detach().clone()
    weight.grad = 1e3 * torch.randn(5, 5)
    Lars([weight], lr=0.3).step()
    moved = (weight.detach() - before).norm() / before.norm()
    assert moved.item() == pytest.approx(0.3 * 0.001, rel=1e-4)


def test_its_state_goes_round():
    def train(steps, state=None, weight=None):
        weight = nn.Parameter(torch.ones(2, 2) if weight is None else weight)
        optimizer = Lars([weight], lr=1.0, weight_decay=0.1)
        if state is not None:
            optimizer.load_state_dict(state)
        for step in steps:
            weight.grad = torch.full((2, 2), float(step + 1))
            optimizer.step()
        return weight.detach(), optimizer.state_dict()

    straight, _ = train(range(4))
    half, state = train(range(2))
    assert torch.equal(train(range(2, 4), state, half.clone())[0], straight)


@pytest.mark.parametrize("settings", [{"lr": -1.0}, {"lr": 1.0, "momentum": 1.0}, {"lr": 1.0, "trust_coefficient": 0}])
def test_bad_settings_are_named(settings):
    with pytest.raises(ValueError, match="LARS needs lr and weight_decay of at least 0"):
        Lars([nn.Parameter(torch.ones(1))], **settings)


# -- the trainer ------------------------------------------------------------------------------------------------------


def arguments(folder, **settings):
    fields = {
        "output_dir": str(folder), "max_steps": 2, "report_to": "none", "precision": "fp32", "use_cpu": True,
        "eval_strategy": "no", "save_strategy": "no", "disable_tqdm": True, "per_device_train_batch_size": 8,
    }  # fmt: skip
    return SSLTrainingArguments(**fields | settings)


def test_the_trainer_takes_lars(tmp_path):
    args = arguments(tmp_path, optim="lars", learning_rate=0.2, optim_args="momentum=0.8,trust_coefficient=0.01")
    trainer = SSLTrainer(tiny.mlm(), args, tiny.stream(8))
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is Lars
    group = optimizer.param_groups[0]
    assert (group["lr"], group["momentum"], group["trust_coefficient"]) == (0.2, 0.8, 0.01)
    assert trainer.settings["optim"] == "lars"
    trainer.train()


def test_what_lars_does_not_know_is_refused(tmp_path):
    with pytest.raises(UserError, match="`--optim_args nesterov=1` names no option of LARS"):
        trainer = SSLTrainer(
            tiny.mlm(), arguments(tmp_path, optim="lars", learning_rate=0.2, optim_args="nesterov=1"), tiny.stream(8)
        )
        trainer.create_optimizer()
    with pytest.raises(UserError, match="`--optim adam` is unknown. Choose"):
        arguments(tmp_path, optim="adam")


def test_no_parameter_of_one_dimension_decays(tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.projector = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
            self.normalization = nn.BatchNorm2d(2)

    trainer = SSLTrainer(tiny.mlm(), arguments(tmp_path, learning_rate=1e-3), tiny.stream(8))
    assert trainer.get_decay_parameter_names(Model()) == ["projector.0.weight"]


def test_a_base_learning_rate_grows_with_the_batch(tmp_path):
    args = arguments(tmp_path, base_learning_rate=0.3, gradient_accumulation_steps=64)
    assert args.learning_rate == pytest.approx(0.3 * 8 * 64 / 256)
    with pytest.raises(
        UserError, match="is a learning rate of 0.009375 at 8 samples a step, `--learning_rate` says 1"
    ):
        arguments(tmp_path, base_learning_rate=0.3, learning_rate=1.0)


def heads_apart(folder, prefixes, **settings):
    """A trainer of a model whose heads keep their rate, with optimizer and schedule made for 10 steps."""
    model = tiny.mlm()
    model.constant_rate = prefixes
    trainer = SSLTrainer(model, arguments(folder, max_steps=10, learning_rate=0.1, **settings), tiny.stream(8))
    trainer.create_optimizer_and_scheduler(10)
    return trainer


def rates(trainer):
    """The rate of each parameter by its name."""
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    return {names[id(p)]: group["lr"] for group in trainer.optimizer.param_groups for p in group["params"]}


def test_a_block_learns_slower_than_the_one_after_it(tmp_path):
    trainer = SSLTrainer(
        tiny.mlm(), arguments(tmp_path, learning_rate=0.1, layer_decay=0.5, bias_rate=0.1), tiny.stream(8)
    )
    trainer.create_optimizer()
    found = {name.partition("bert.")[2] or name: rate for name, rate in rates(trainer).items()}
    assert found["embeddings.word_embeddings.weight"] == pytest.approx(0.1 * 0.5**3)
    assert found["encoder.layer.0.attention.self.query.weight"] == pytest.approx(0.1 * 0.5**2)
    assert found["encoder.layer.1.attention.self.query.weight"] == pytest.approx(0.1 * 0.5)
    assert found["encoder.layer.1.attention.self.query.bias"] == pytest.approx(0.1 * 0.1 * 0.5)
    head = [rate for name, rate in found.items() if "predictions" in name and name.endswith("weight")]
    assert max(head) == 0.1
    assert trainer.settings["layer_decay"] == 0.5
    with pytest.raises(UserError, match="`--layer_decay` is a factor above 0 and at most 1, got 1.5"):
        arguments(tmp_path, layer_decay=1.5)


def test_what_projects_patches_has_a_rate_of_its_own():
    encoder = build("dinov2")
    method = SimpleNamespace(trained_encoders=[encoder])
    optimizer = torch.optim.SGD(encoder.parameters(), lr=0.1)
    set_rates_apart(optimizer, encoder, method, layer_decay=0.5, patch_embed_rate=0.2)
    found = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    patches = encoder.embeddings.patch_embeddings.projection
    assert found[id(patches.weight)] == found[id(patches.bias)] == pytest.approx(0.1 * 0.5**5 * 0.2)
    assert found[id(encoder.embeddings.cls_token)] == pytest.approx(0.1 * 0.5**5)
    assert found[id(encoder.layernorm.weight)] == pytest.approx(0.1)
    convolutional = SimpleNamespace(trained_encoders=[build("resnet")])
    with pytest.raises(UserError, match="`--patch_embed_rate 0.2` is for encoders of patches"):
        set_rates_apart(optimizer, encoder, convolutional, patch_embed_rate=0.2)


@pytest.mark.parametrize("clock", [False, True])
def test_some_rates_stay_at_their_peak(tmp_path, clock):
    name = next(name for name, p in tiny.mlm().named_parameters() if p.ndim > 1 and "layer" in name)
    prefix = name.rpartition("layer")[0]
    settings = {"budget_minutes": 1.0} if clock else {}
    trainer = heads_apart(tmp_path / "a", (prefix,), lr_scheduler_type="linear", warmup_steps=0.5, **settings)
    plain = heads_apart(tmp_path / "b", (), lr_scheduler_type="linear", warmup_steps=0.5, **settings)
    for step in range(4):
        if clock:
            trainer.clock.seconds = plain.clock.seconds = 60 * step / 10
        if step:
            for each in (trainer, plain):
                each.optimizer.step()
                each.lr_scheduler.step()
        found, others = rates(trainer), rates(plain)
        assert found.keys() == others.keys()
        assert {n: 0.1 if n.startswith(prefix) else rate for n, rate in others.items()} == found
        assert trainer.lr_scheduler.get_last_lr()[0] == others[name] < 0.1  # what is logged
    decays = {
        n: group["weight_decay"]
        for each in (trainer, plain)
        for group in each.optimizer.param_groups
        for n, p in each.model.named_parameters()
        if any(p is q for q in group["params"])
    }
    assert set(decays.values()) == {0.0, 0.01}


def test_a_schedule_that_follows_a_metric_holds_no_rate(tmp_path):
    optimizer = heads_apart(tmp_path, ("",)).optimizer
    with pytest.raises(UserError, match="keeps the learning rate of some parameters at its peak"):
        hold_rates(torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


def test_biases_have_a_rate_of_their_own(tmp_path):
    trainer = heads_apart(tmp_path / "a", (), lr_scheduler_type="linear", warmup_steps=0, bias_rate=0.5)
    for step in (0, 1):
        if step:
            trainer.optimizer.step()
            trainer.lr_scheduler.step()
        peak = 0.1 * (1 - step / 10)
        expected = {n: peak * (0.5 if p.ndim <= 1 else 1.0) for n, p in trainer.model.named_parameters()}
        assert rates(trainer) == pytest.approx(expected)
    assert trainer.settings["bias_rate"] == 0.5
    with pytest.raises(UserError, match="`--bias_rate` is a share of the learning rate, at least 0, got -1"):
        arguments(tmp_path, bias_rate=-1.0)
