"""What lightly's sides of the benchmarks have in common: what a side is, and settings in lightly's words."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from ...functional.schedules import linear
from ...modeling.pooling import pool_features
from ...modeling.vision import build_vision_encoder, side


# lightly's schedule counts steps: here one is a millionth of the run.
_TICKS = 1_000_000


@dataclass
class LightlySide:
    """A method as lightly's example has it, without its loop.

    Args:
        model (`nn.Module`):
            Everything that is trained, and the teacher where there is one.
        backbone (`PreTrainedModel`):
            The encoder that the paper evaluates: the student's, for DINO the teacher's.
        transform (`Callable`):
            From an image of Pillow to its views.
        loss_of (`Callable[[list[torch.Tensor]], torch.Tensor]`):
            From the views of a batch, each `(batch_size, num_channels, height, width)`, to the loss.
        before_step (`Callable[[float], None]`):
            To be called with the share of the run that is done, in [0, 1), before each step: moves the teacher and
            what follows a schedule.
        after_backward (`Callable[[], None]`):
            To be called between `backward` and the optimizer's step.
    """

    model: nn.Module
    backbone: PreTrainedModel
    transform: Callable
    loss_of: Callable[[list[torch.Tensor]], torch.Tensor]
    before_step: Callable[[float], None] = lambda progress: None
    after_backward: Callable[[], None] = lambda: None


class Backbone(nn.Module):
    """An encoder of transformers as lightly's examples have theirs: from images of any size to one vector each."""

    def __init__(self, encoder: PreTrainedModel, pooling: str | None = None):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        config, options = self.encoder.config, {}
        if self.interpolates and x.shape[-1] != side(config.image_size):
            options["interpolate_pos_encoding"] = True
        return pool_features(self.encoder(x, **options), config, self.pooling)


JITTERS = ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")


def color_settings(view: dict[str, Any]) -> dict[str, Any]:
    """What all transforms that recolour call the same."""
    jitter = dict(zip(JITTERS, view["jitter"], strict=True))
    return jitter | {
        "cj_prob": view["jitter_probability"], "random_gray_scale": view["grey_probability"],
        "sigmas": view["blur_sigma"], "hf_prob": view["flip_probability"],
    }  # fmt: skip


def normalization(settings: dict[str, Any]) -> dict[str, list[float]]:
    return {"mean": settings["mean"], "std": settings["std"]}


def momentum_at(progress: float, config: dict[str, Any]) -> float:
    return cosine_schedule(round(progress * _TICKS), _TICKS + 1, config["momentum_start"], config["momentum_end"])


def teacher_temperature_at(progress: float, config: dict[str, Any]) -> float:
    start, end, warmup = (config[f"teacher_temperature_{name}"] for name in ("start", "end", "warmup"))
    return linear(start, end, progress / warmup if warmup else 1.0)


def build_encoder(settings: dict[str, Any]) -> PreTrainedModel:
    return build_vision_encoder(AutoConfig.for_model(**settings["model"]["encoder_config"]))
