"""The way of a batch to a GPU: from pinned memory, on a stream of its own, while the step before still runs."""

from collections.abc import Callable

import numpy as np
import torch


def send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A copy of `array` on `device`, for which the CPU does not wait; on a CPU `array` itself."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":  # a GPU fetches from pinned memory by itself
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


class Beside:
    """Lets a GPU make a batch beside what else it does; what uses the batch waits for it on the GPU.

    On other devices the batch is made where and when it is asked for.

    Args:
        device (`torch.device`):
            Where batches are made.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, make: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        if self.device.type != "cuda":
            return make()
        if self.stream is None:
            self.stream = torch.cuda.Stream(self.device)
        user = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self.stream):
            batch = make()
        user.wait_stream(self.stream)
        for tensor in batch.values():
            # its memory is the stream's, which may not have it back before it was used
            if tensor.device.type == "cuda":
                tensor.record_stream(user)
        return batch
