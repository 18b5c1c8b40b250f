"""What makes the CPU wait for a GPU, found without one: of what a training step computes nothing may come back.

A GPU works behind the CPU that tells it what to do. Where the CPU asks for a number, or for a shape that depends on
one, or copies without letting the copy run by itself, it stands still until all is done that it asked for before, and
then the GPU stands still until it hears what comes next.

- `no_waits()` refuses the operations that ask, whatever the device: also in backward passes and optimizers.
- `on_fake_gpu(model, batch)` moves both to a GPU that there is not: shapes and devices are followed, nothing is
  computed. There also copies are seen, and tensors that were left behind on the CPU.
- `collating_on_fake_gpu()` is the same for what makes batches, and knows which memory is pinned.
"""

import contextlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Trainer, TrainerCallback

from hfssl.data.audio.collate import AudioCollator
from hfssl.data.image import color_ops, column_makers
from hfssl.data.text.rows import TextCollator


aten = torch.ops.aten
ASKS = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.allclose, aten.nonzero, aten.masked_select, aten.bincount,
    aten._unique2, aten.unique_dim, aten.unique_consecutive,
}  # fmt: skip
INDEXES = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index_put, aten._index_put_impl_}
COPIES = {aten._to_copy, aten.copy_}


class HostWaits(AssertionError):
    """Something would make the CPU wait for a GPU."""


class _NoWaits(TorchDispatchMode):
    def __init__(self, pinned: list[torch.Tensor] | None = None):
        super().__init__()
        self.pinned = pinned

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        packet = func.overloadpacket
        asks = packet in ASKS or (packet is aten.repeat_interleave and kwargs.get("output_size") is None)
        if packet in INDEXES:
            asks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if asks:
            raise HostWaits(f"{func} asks a GPU for numbers, and the CPU waits for them.")
        if packet in COPIES:
            source, target = (args[1], args[0]) if packet is aten.copy_ else (args[0], None)
            device = target.device if target is not None else torch.device(kwargs.get("device") or source.device)
            to_host = device.type == "cpu"
            waits = self.pinned is not None and not any(source is each for each in self.pinned)
            if device.type != source.device.type and (to_host or waits or not _may_run(packet, args, kwargs)):
                raise HostWaits(
                    f"{func} copies from {source.device} to {device}, and the CPU waits for it. What comes from the "
                    "CPU is sent with `non_blocking=True`, a batch out of pinned memory (`hfssl.data.device.send`), "
                    "numbers are made there with `torch.full`."
                )
        return func(*args, **kwargs)


def _may_run(packet, args, kwargs) -> bool:
    return bool(kwargs.get("non_blocking") or (packet is aten.copy_ and len(args) > 2 and args[2]))


@contextmanager
def no_waits(device: str = "cpu", pinned: list[torch.Tensor] | None = None) -> Iterator[None]:
    """Within, what makes the CPU wait for a GPU raises. On `"cuda"` it is the driver that finds it.

    With `pinned` so does what is sent from other memory: the GPU fetches it when it has done what it is at, and a
    large one keeps the CPU waiting until then.
    """
    if device == "cpu":
        with _NoWaits(pinned):
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WithoutWaits(TrainerCallback):
    """Lets nothing wait from the moment a batch is there to the end of its step, other callbacks included; what is
    logged, evaluated and saved after that may."""

    def __init__(self, device: str = "cpu", after: int = 0):
        self.device, self.after = device, after
        self.stack, self.steps = contextlib.ExitStack(), 0

    @classmethod
    def of(cls, trainer: Trainer, device: str = "cpu", after: int = 0) -> "WithoutWaits":
        """Watch a trainer. The first steps, up to `after`, may wait: what is made once is made there."""
        watch, count = cls(device, after), trainer._get_num_items_in_batch
        trainer.callback_handler.callbacks.append(watch)  # the last one

        def count_without_waits(*args):
            with no_waits(device) if trainer.state.global_step >= after else contextlib.nullcontext():
                return count(*args)

        trainer._get_num_items_in_batch = count_without_waits
        return watch

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step >= self.after:
            self.stack.enter_context(no_waits(self.device))

    def on_step_end(self, args, state, control, **kwargs):
        self.stack.close()
        self.steps += 1


@contextmanager
def on_fake_gpu(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    """The batch on a GPU that there is not. The model is moved there too, and is of no use afterwards."""
    with FakeTensorMode(), mock.patch.object(torch._VF, "gru", _gru, create=True):
        for module in model.modules():
            for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
                if tensor is None:
                    continue
                fake = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                if name in module._parameters:
                    module._parameters[name] = torch.nn.Parameter(fake, requires_grad=tensor.requires_grad)
                else:
                    module._buffers[name] = fake
        fakes = {name: torch.empty(value.shape, dtype=value.dtype, device="cuda") for name, value in batch.items()}
        yield fakes


@contextmanager
def collating_on_fake_gpu() -> Iterator[list[torch.Tensor]]:
    """Within, batches are made for a GPU that there is not. Yields what is in pinned memory, which grows."""
    pinned: list[torch.Tensor] = []
    from_numpy = torch.from_numpy

    def pin_memory(tensor):
        pinned.append(torch.empty_like(tensor))
        return pinned[-1]

    def forget():  # what is kept on the device from one batch to the next
        color_ops._constant.cache_clear()
        column_makers._finish.cache_clear()

    forget()
    with (
        FakeTensorMode(),
        mock.patch.object(torch, "from_numpy", lambda array: torch.empty_like(from_numpy(array), device="cpu")),
        mock.patch.object(torch.Tensor, "pin_memory", pin_memory),
        mock.patch.object(torch.Tensor, "record_stream", lambda tensor, stream: None),
        mock.patch.object(torch.cuda, "Stream", mock.MagicMock()),
        mock.patch.object(torch.cuda, "current_stream", mock.MagicMock()),
        mock.patch.object(torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
    ):
        yield pinned
    forget()


def _gru(inputs, state, weights, *args):
    """Shapes and devices of a recurrent network. The library of a GPU would look for one; within it nothing waits."""
    of_input, of_state = (F.linear(each, weight) for each, weight in zip((inputs, state), weights, strict=False))
    size = weights[1].shape[1]
    return of_input[..., :size] + of_state[0].unsqueeze(1)[..., :size], state


def as_collated(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch of a contract as the collator of a run makes it: packed rows, and beside them where the labels are.

    Rows that are padded instead are the one exception: transformers looks in each forward pass whether there is any
    padding, to leave the mask out where there is none.
    """
    if "mask_time_indices" in batch:
        return AudioCollator()({name: value.numpy() for name, value in batch.items()})
    names = [name for name in inspect.signature(model.forward).parameters if name.endswith("_positions")]
    if "labels" not in batch or not names:
        return batch
    columns = {name: value.numpy() for name, value in batch.items()}
    columns["sequence_ids"] = columns.pop("attention_mask")  # each row is one document
    if model.method.causal:  # the first token of a document is given
        columns["labels"] = columns["labels"].copy()
        columns["labels"][:, 0] = -100
    return TextCollator(None, positions=names[0])(columns)
