"""What a run costs: seconds, and where a GPU of NVIDIA counts them joules."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainerCallback


# In each checkpoint, what the run has cost so far.
COST = "cost.json"


class Cost(TrainerCallback):
    """Counts from the beginning of training to its end, measurements on the way included. What is exported or probed
    afterwards does not count. A resumed run goes on with what its checkpoint says.

    Args:
        now (`Callable[[], float]`, *optional*, defaults to `time.monotonic`):
            The clock on the wall.
        energy (`Callable[[], float | None]`, *optional*):
            Joules that the device of this process has ever taken, see [`gpu_energy`]; `None` where nothing counts
            them.
    """

    def __init__(
        self, now: Callable[[], float] = time.monotonic, energy: Callable[[], float | None] = lambda: None
    ):  # fmt: skip
        self.now, self.energy = now, energy
        self._before: dict[str, float] = {"seconds": 0.0}
        self._begin: dict[str, float] | None = None

    def _read(self) -> dict[str, float]:
        joules = self.energy()
        return {"seconds": self.now()} | ({} if joules is None else {"joules": joules})

    def so_far(self) -> dict[str, float]:
        """`seconds`, and `joules` where they are known of the whole run."""
        if self._begin is None:
            return dict(self._before)
        now, begin = self._read(), self._begin
        known = now.keys() & begin.keys() & ({*self._before, "joules"} if self._is_new else self._before.keys())
        return {name: self._before.get(name, 0.0) + now[name] - begin[name] for name in sorted(known, reverse=True)}

    @property
    def _is_new(self) -> bool:
        return self._before["seconds"] == 0.0

    def save(self, folder: Path) -> None:
        """Write what the run has cost into a checkpoint."""
        (folder / COST).write_text(json.dumps(self.so_far()), encoding="utf-8")

    def load(self, checkpoint: Path | None) -> None:
        """Go on from a checkpoint; one without it is taken for one that cost nothing."""
        path = None if checkpoint is None else checkpoint / COST
        self._before = {"seconds": 0.0} if path is None or not path.is_file() else json.loads(path.read_text())

    def on_train_begin(self, args, state, control, **kwargs):
        self._begin = self._read()

    def on_train_end(self, args, state, control, **kwargs):
        self._before, self._begin = self.so_far(), None


def gpu_energy(device: torch.device) -> float | None:
    """Joules that a GPU has taken since its driver was loaded, by NVML; `None` where that is not to be had: no GPU of
    NVIDIA, none that counts them, or no `nvidia-ml-py`."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        # CUDA may number GPUs otherwise than NVML
        gpu = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(gpu)) / 1000
    except Exception:  # whatever driver and package say, a run does not end of it
        return None


def device_name(device: torch.device) -> str:
    """What a run computes on, in words that name no machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "CPU" if device.type == "cpu" else device.type
