"""Stochastic depth: what is dropped is not computed, and all else is as if it were multiplied by 0."""

import copy

import pytest
import torch
from contract import checkpoint_activations
from host_waits import no_waits
from tiny_vision import ENCODERS, crops, two_layers
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hfssl import DinoForPreTraining, DinoPreTrainingConfig
from hfssl.modeling.drop_path import DropPath, build_with_drop_path, put_back, skips_dropped_rows


SKIPPING = ("vit", "vit_msn", "deit", "ijepa", "dinov2", "dinov2_with_registers", "dinov3_vit")


def build(name, rate, seed=0):
    torch.manual_seed(seed)
    return build_with_drop_path(ENCODERS[name](), rate).train()


class Branch(nn.Module):
    """A norm, and what is added to each row: 1."""

    def __init__(self, rate):
        super().__init__()
        self.norm, self.end = nn.Identity(), DropPath(rate)
        self.norm.register_forward_pre_hook(self.end.begin)

    def forward(self, rows):
        self.seen = len(self.norm(rows))
        return self.end(torch.ones_like(self.norm(rows)))


@pytest.mark.parametrize("number, rate, computed", [(10, 0.3, 7), (7, 0.3, 5), (4, 0.1, 4), (3, 0.9, 1), (1, 0.5, 1)])
def test_each_row_is_dropped_as_often_as_it_should(number, rate, computed):
    torch.manual_seed(0)
    branch = Branch(rate).train()
    sums = torch.stack([branch(torch.zeros(number, 2)) for _ in range(1000)])
    assert branch.seen == computed
    assert set(sums.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
    assert torch.equal(sums[..., 0], sums[..., 1])
    # three standard errors and a half
    deviation = ((sums[..., 0] != 0).float().mean(0) - (1 - rate)).abs()
    assert deviation.max() < 3.5 * (rate * (1 - rate) / 1000) ** 0.5
    rows = torch.zeros(number, 2)
    assert torch.equal(branch.eval()(rows), torch.ones(number, 2)) and branch.seen == number


def test_which_encoders_skip():
    assert [name for name in ENCODERS if skips_dropped_rows(ENCODERS[name]())] == list(SKIPPING)


@pytest.mark.parametrize("name", SKIPPING)
def test_it_is_what_a_multiplication_gives(name, monkeypatch):
    encoder = build(name, 0.5)
    if not hasattr(encoder.config, "drop_path_rate"):  # of those whose rates grow from 0 to 1/2 whole rows are dropped
        for block, rate in zip(encoder.layers, (0.0, 0.25, 0.5, 0.25), strict=True):
            block.dropout[1].drop_prob = rate
    images = torch.randn(8, 3, 16, 16)

    def result():
        torch.manual_seed(1)
        encoder.zero_grad()
        hidden = encoder(images).last_hidden_state
        (hidden * torch.arange(32)).sum().backward()
        return hidden, [p.grad.clone() for p in encoder.parameters() if p.grad is not None]

    skipped = result()

    def draws(end, norm, args):
        if dropped := int(8 * end.drop_prob):
            end.rows = torch.rand(8).argsort()[dropped:]

    def multiplies(end, hidden):
        if end.drop_prob == 0:
            return hidden
        torch.empty(len(end.rows)).bernoulli_()  # as many random numbers
        kept = put_back(torch.ones(len(end.rows), 1, 1), end.rows, 8)
        return hidden * kept / (1 - end.drop_prob)

    for module in encoder.modules():
        for key, hook in module._forward_pre_hooks.items():
            if getattr(hook, "__func__", None) is DropPath.begin:
                module._forward_pre_hooks[key] = draws.__get__(hook.__self__)
    monkeypatch.setattr(DropPath, "forward", multiplies)
    multiplied = result()
    for ours, theirs in zip([skipped[0], *skipped[1]], [multiplied[0], *multiplied[1]], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)  # the largest are above 10,000


def flops(encoder, images):
    with FlopCounterMode(display=False) as counter:
        encoder(images).last_hidden_state.sum().backward()
    return counter.get_total_flops()


def test_what_is_dropped_is_not_computed():
    images = torch.randn(8, 3, 16, 16)
    whole, embedding = flops(build("dinov2", 0.0), images), 3 * 4 * 4 * 32 * 16 * 8 * 2 * 2  # forward, and weights
    assert flops(build("dinov2", 0.5), images) - embedding == (whole - embedding) // 2
    # rates of 0, 1/6, 2/6 and 3/6: of 8 rows 0, 1, 2 and 4
    assert flops(build("vit", 0.5), images) - embedding == (whole - embedding) * (32 - 7) // 32
    assert flops(build("vit", 0.5).eval(), images) == whole


def dino():
    torch.manual_seed(0)
    settings = {"projector_hidden_dim": 16, "projector_output_dim": 8, "num_prototypes": 12, "drop_path_rate": 0.5}
    return DinoForPreTraining(DinoPreTrainingConfig(encoder_config=two_layers(), **settings)).train()


def gradients(model, batch):
    torch.manual_seed(2)
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


def test_computed_again_in_the_backward_pass_it_drops_the_same_rows():
    model, batch = dino(), crops()
    expected = gradients(copy.deepcopy(model), batch)
    checkpoint_activations(model, {"use_reentrant": False})
    for ours, theirs in zip(gradients(model, batch), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_compiled_it_drops_the_same_rows_and_is_compiled_once():
    torch.compiler.reset()
    torch.manual_seed(0)
    encoder, images = build_with_drop_path(two_layers(), 0.5).train(), torch.randn(6, 3, 16, 16)
    compiled, graphs = torch.compile(encoder, backend="eager"), []
    for seed in range(3):
        hidden = []
        for each in (encoder, compiled):
            torch.manual_seed(seed)
            hidden.append(each(images).last_hidden_state)
        torch.testing.assert_close(*hidden)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[-1] == 1, graphs


def test_it_asks_for_no_number():
    model, batch = dino(), crops()
    model(**batch)  # reads once how far the run is
    with no_waits():
        gradients(model, batch)


def test_an_encoder_that_is_loaded_skips_as_well():
    config = two_layers()
    config.layer_norm_eps = 1.1e-6  # of which nobody has asked yet
    with torch.device("meta"):  # as `from_pretrained` builds it
        assert skips_dropped_rows(config)
