"""Encoders of sound opened up: the parts of a recording are stretches of time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ...modeling.frames import frame_mask, own_tokens
from ...modeling.trial import is_grid
from ..inside import Group, Opened, Row, attentions_of, telling_attention
from .embedder import MAX_SECONDS
from .encoder import MAIN_INPUTS, AudioEncoder, lengthened, make_inputs, run_layers
from .features import AudioReader, EncoderLayers
from .pictures import Heard, write_sounds


# Stretches of a map, and stretches that are hidden one after the other.
_STRETCHES, _HIDDEN = 48, 24
# Sounds take room in a page: of each group the first.
_OF_A_GROUP = 2


class AudioInside:
    """A [`~hfssl.evaluation.inside.Inside`] of recordings; of a long one its beginning.

    Args:
        encoder (`str`):
            Folder or Hub id.
        pooling (`str`, *optional*):
            See [`~hfssl.modeling.frames.check_pooling`].
        batch_size (`int`, *optional*, defaults to `64`):
            Most recordings a forward pass.
        random_init (`bool`, *optional*, defaults to `False`):
            Take new weights.
    """

    part, several_parts, hidden = "stretch", "stretches", "silence (of a spectrogram: its mean)"

    def __init__(self, encoder: str, pooling: str | None = None, batch_size: int = 64, random_init: bool = False):
        audio = AudioEncoder(encoder)
        self.name, self.processor = audio.name, audio.processor
        self.model = telling_attention(audio.random_init(seed=0) if random_init else audio.load())
        self._layers = EncoderLayers(audio, self.model, pooling, "fp32", batch_size)
        self.model.to(self._layers.device)
        self.pooling, self._reader = self._layers.pooling, AudioReader(audio.sampling_rate)

    def reader(self, samples: Sequence[bytes]) -> AudioReader:
        return self._reader

    def layers(self, samples: Sequence[bytes], rows: Sequence[int]) -> list[np.ndarray]:
        made = self._layers.layers([self._clip(samples[int(row)]) for row in rows])
        return list(made.swapaxes(0, 1))

    def open(self, samples: Sequence[bytes], row: int) -> Opened:
        clip = self._clip(samples[row])
        made = {
            name: each.to(self.model.device) for name, each in make_inputs(self.model, self.processor, [clip]).items()
        }
        main = next(name for name in MAIN_INPUTS if name in made)
        seconds = len(clip) / self.processor.sampling_rate
        # what a spectrogram of one size has after the end of a clip is padding
        share = min(1.0, 100 * seconds / self.model.config.max_length) if is_grid(self.model.config) else 1.0
        options = {"main": main, "seconds": seconds, "share": share, "mask": made.get("attention_mask")}
        return Opened(made[main], clip, options)

    def forward(self, inputs: torch.Tensor, sample: Opened) -> tuple[torch.Tensor, torch.Tensor | None]:
        made = {sample.options["main"]: inputs}
        if sample.options["mask"] is not None:
            made["attention_mask"] = sample.options["mask"].expand(len(inputs), -1)
        seconds = torch.full((len(inputs),), sample.options["seconds"], device=inputs.device)
        return run_layers(self.model, made, seconds, self.pooling)[:, -1], None

    def cells(self, relevance: torch.Tensor, sample: Opened) -> np.ndarray:
        by_time = relevance[0] if relevance.ndim == 2 else relevance[0].sum(-1)
        by_time = by_time[: self._end(len(by_time), sample)]
        number = min(_STRETCHES, len(by_time))
        return (F.adaptive_avg_pool1d(by_time[None], number)[0] * (len(by_time) / number)).numpy()

    def occluded(self, sample: Opened) -> tuple[torch.Tensor, tuple[int, ...]]:
        end = self._end(sample.inputs.shape[1], sample)
        number = min(_HIDDEN, end)
        variants = sample.inputs.repeat(number, *[1] * (sample.inputs.ndim - 1))
        for at, each in enumerate(variants):
            each[at * end // number : (at + 1) * end // number] = 0.0
        return variants, (number,)

    def attentions(self, sample: Opened) -> Sequence[torch.Tensor] | None:
        made = {sample.options["main"]: sample.inputs}
        if sample.options["mask"] is not None:
            made["attention_mask"] = sample.options["mask"]
        return attentions_of(self.model, **made)

    def read_from(self, num_tokens: int, sample: Opened) -> torch.Tensor:
        own = own_tokens(self.model.config, num_tokens)
        read = torch.zeros(num_tokens)
        if self.pooling == "cls":
            read[0] = 1.0
            return read
        seconds = torch.tensor([sample.options["seconds"]], device=self.model.device)
        there = frame_mask(self.model, num_tokens - own, sample.options["mask"], seconds)
        read[own:] = 1.0 if there is None else there[0].cpu().float()
        return read / read.sum()

    def parts(self, tokens: torch.Tensor, sample: Opened) -> np.ndarray:
        frames = tokens[own_tokens(self.model.config, len(tokens)) :]
        if is_grid(self.model.config):
            config = self.model.config
            rows = (config.num_mel_bins - config.patch_size) // config.frequency_stride + 1
            frames = frames.view(rows, -1).sum(0)
        return frames[: self._end(len(frames), sample)].numpy()

    def show_maps(self, rows: Sequence[Row], folder: Path, name: str, caption: str) -> dict[str, Any]:
        heard = [Heard(row.title, row.sample.shown, maps=row.maps) for row in rows]
        write_sounds(heard, self.processor.sampling_rate, folder / f"{name}.png")
        said = "Lines are shares of the largest number of a map, over time; below 0 speaks against."
        return {"picture": f"{name}.png", "sounds": f"{name}.html", "caption": f"{caption} {said}"}

    def show_groups(
        self, samples: Sequence[bytes], groups: Sequence[Group], folder: Path, name: str, caption: str
    ) -> dict[str, Any]:
        heard = [
            Heard(f"{group.title}: {said}", self._clip(samples[row]))
            for group in groups
            for row, said in group.samples[:_OF_A_GROUP]
        ]
        write_sounds(heard, self.processor.sampling_rate, folder / f"{name}.png")
        return {"picture": f"{name}.png", "sounds": f"{name}.html", "caption": caption}

    def _clip(self, sample: bytes) -> np.ndarray:
        clip = self._reader.decode(sample)
        clip = self._reader.blank if clip is None else clip
        most = min(MAX_SECONDS * self.processor.sampling_rate, self._layers.most)
        return lengthened(clip, self._layers.least)[:most]

    def _end(self, length: int, sample: Opened) -> int:
        return max(1, round(length * sample.options["share"]))
