"""An encoder of sound as a graph: from recordings of one length to its outputs and one feature.

Of recordings of different lengths padding would be sound: they go in one by one, or as windows of one length.
"""

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ...modeling.frames import check_pooling, is_grid, layer_features
from ..graph import Graph
from .encoder import AudioEncoder, make_inputs


class _AudioGraph(nn.Module):
    def __init__(self, model: PreTrainedModel, pooling: str):
        super().__init__()
        self.model, self.pooling = model, pooling

    def outputs(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model(**inputs, output_hidden_states=True)
        return outputs.last_hidden_state, layer_features(self.model, outputs, pooling=self.pooling)[:, -1]


class WaveformGraph(_AudioGraph):
    def forward(self, input_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.outputs(input_values=input_values)


class SpectrogramGraph(_AudioGraph):
    def forward(self, input_features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.outputs(input_features=input_features)


def audio_graph(encoder: str, pooling: str | None) -> Graph:
    """Of an encoder on disk or on the Hub."""
    audio = AudioEncoder(encoder)
    model, rate, pooling = audio.load(), audio.sampling_rate, check_pooling(audio.config, pooling)

    def batch(samples: int, length: int) -> dict[str, torch.Tensor]:
        hiss = np.random.default_rng(samples).standard_normal((samples, length * rate // 2)).astype(np.float32)
        return make_inputs(model, audio.processor, list(0.1 * hiss))

    [name] = batch(1, 1)
    # spectrograms of one size are cut or filled up by the processor
    axes = {0: "batch"} if is_grid(model.config) else {0: "batch", 1: "length"}
    kind = {"input_values": WaveformGraph, "input_features": SpectrogramGraph}[name]
    about = {"sampling_rate": rate, "lengths": "of a batch all the same"}
    settings = audio.processor.to_dict()
    about |= {key: settings[key] for key in ("do_normalize", "feature_size", "max_length") if key in settings}
    return Graph(kind(model, pooling), batch, {name: axes}, audio.processor, pooling, about)
