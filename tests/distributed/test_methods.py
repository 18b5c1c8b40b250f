"""Every method on two processes: what its contract says of its gradient, and the same model on both after a step."""

from pathlib import Path

import pytest
import torch
from contract import METHODS, contract, load, variants_of


pytestmark = pytest.mark.distributed

CHECKS = Path(__file__).with_name("checks.py")
checks = load(CHECKS)


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("method, variant", [(method, name) for method in METHODS for name in variants_of(method)])
def test_two_processes_are_one_with_twice_the_samples(pair, tmp_path, method, variant):
    equal = contract(method).processes or variant in contract(method).equal
    alone = checks.one_step(0, 1, tmp_path / "alone", method, variant)
    together = pair.ask(CHECKS, "one_step", folder=tmp_path / "together", method=method, variant=variant)
    assert max(gradient.abs().max() for gradient in alone["gradients"].values()) > 1e-3
    # teachers, queues, centres and statistics too: what is gathered is the same for all
    assert_close(together[1]["state"], together[0]["state"])
    if equal:
        assert together[0]["loss"] == together[1]["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert_close(together[0]["gradients"], alone["gradients"])
        assert_close(together[0]["state"], alone["state"])
    else:
        distance = max((together[0]["gradients"][n] - g).abs().max() for n, g in alone["gradients"].items())
        assert distance > 1e-6  # if it were equal, the contract would be wrong
