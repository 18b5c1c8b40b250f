"""What a run costs, by a clock and a counter of its own."""

import json
import sys
from types import SimpleNamespace

import pytest
import torch

from hfssl.training.cost import COST, Cost, gpu_energy


class Meter:
    value = None

    def __call__(self):
        return self.value


def begun(folder=None, joules=100.0):
    clock, energy = Meter(), Meter()
    cost = Cost(clock, energy)
    cost.load(folder)
    clock.value, energy.value = 1000.0, joules
    cost.on_train_begin(None, None, None)
    return cost, clock, energy


def test_it_goes_on_from_a_checkpoint(tmp_path):
    cost, clock, energy = begun()
    clock.value, energy.value = 1060.0, 1300.0
    assert cost.so_far() == {"seconds": 60.0, "joules": 1200.0}
    cost.save(tmp_path)
    assert json.loads((tmp_path / COST).read_text()) == cost.so_far()
    # another process, whose clock and counter stand elsewhere
    cost, clock, energy = begun(tmp_path)
    clock.value, energy.value = 1010.0, 150.0
    cost.on_train_end(None, None, None)
    clock.value, energy.value = 9999.0, 9999.0
    assert cost.so_far() == {"seconds": 70.0, "joules": 1250.0}


def test_energy_of_a_part_is_not_said_to_be_that_of_the_whole(tmp_path):
    cost, clock, _ = begun(joules=None)
    clock.value = 1060.0
    assert cost.so_far() == {"seconds": 60.0}
    cost.save(tmp_path)
    cost, clock, _ = begun(tmp_path)
    clock.value = 1010.0
    assert cost.so_far() == {"seconds": 70.0}


@pytest.mark.parametrize("counts", [True, False])
def test_the_counter_is_that_of_the_gpu_of_this_process(monkeypatch, counts):
    def energy(gpu):
        if not counts:
            raise RuntimeError("Not Supported")
        return {"GPU-1234": 5000}[gpu]

    nvml = SimpleNamespace(
        nvmlInit=lambda: None, nvmlDeviceGetHandleByUUID=lambda uuid: uuid, nvmlDeviceGetTotalEnergyConsumption=energy
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="1234"))
    assert gpu_energy(torch.device("cuda", 0)) == (5.0 if counts else None)
    assert gpu_energy(torch.device("cpu")) is None
