"""lightly's sides of the benchmarks for images: what its examples build, around an encoder of transformers.

As in its `examples/pytorch/`, named in each module: a `LightlyDataset` of image files, one of its transforms, a
plain `DataLoader`, its heads, losses and functions on tokens, and a loop of a few lines; one forward pass a view; a
teacher that moves before each step, by its schedules. The encoder is the module that hfssl trains; lightly's MAE
reaches it through lightly's own interface for masked transformers. The views have the parameters of ours, heads and
losses the sizes, temperatures and momenta of ours, and the optimizer is the same fused AdamW.

This module and what it imports is all that lightly's process loads.
"""

import random
import time
from collections.abc import Iterator
from typing import Any

import torch
from lightly.data import LightlyDataset
from torch.utils.data import DataLoader

from ..base import Pace, count_flops_of
from .base import LightlySide
from .dinov2 import dinov2
from .masked import mae
from .multi_crop import dino, lejepa, swav
from .two_views import barlow_twins, byol, simclr, simsiam, vicreg


SIDES = {
    "simclr": simclr, "mae": mae, "byol": byol, "dino": dino, "simsiam": simsiam, "barlow_twins": barlow_twins,
    "vicreg": vicreg, "swav": swav, "lejepa": lejepa, "dinov2": dinov2,
}  # fmt: skip


def lightly_side(method: str, settings: dict[str, Any]) -> LightlySide:
    """A method of lightly, with weights from the global generator of torch.

    Args:
        method (`str`):
            By the name of its recipe, of `SIDES`.
        settings (`dict[str, Any]`):
            Of [`~hfssl.benchmarks.vision.contenders`]: `model` is the config of our method, `views`, `local_view`,
            `num_local`, `mean` and `std` are our views.
    """
    return SIDES[method](settings)


def train(pace: Pace, settings: dict[str, Any]) -> float:
    """The loop of lightly's examples, and the FLOPs of an image. `settings`: of `hfssl.benchmarks.vision`."""
    torch.manual_seed(settings["seed"])
    random.seed(settings["seed"])  # its masks
    pace.data_is_readable()
    theirs = lightly_side(settings["method"], settings)
    device = torch.device(settings["device"])
    theirs.model.to(device).train()
    loader = DataLoader(
        LightlyDataset(settings["images"], transform=theirs.transform),
        batch_size=settings["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=settings["num_workers"],
    )
    training = settings["training"]
    optimizer = torch.optim.AdamW(
        [parameter for parameter in theirs.model.parameters() if parameter.requires_grad],
        lr=settings["learning_rate"],
        betas=(training["adam_beta1"], training["adam_beta2"]),
        eps=training["adam_epsilon"],
        weight_decay=training["weight_decay"],
        fused=True,
    )
    batches = endless(loader)
    for step in range(pace.num_steps):
        theirs.before_step(step / pace.num_steps)
        begin, mark = time.perf_counter(), pace.mark()
        views = [view.to(device) for view in next(batches)[0]]
        pace.fetched(time.perf_counter() - begin, len(views[0]), len(views[0]), (mark, pace.mark()))
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
            loss = theirs.loss_of(views)
        loss.backward()
        theirs.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        pace.stepped(loss)
    return count_flops_of(lambda: theirs.loss_of(views)) / len(views[0])


def endless(loader: DataLoader) -> Iterator[Any]:
    """Batches, pass after pass."""
    while True:
        yield from loader
