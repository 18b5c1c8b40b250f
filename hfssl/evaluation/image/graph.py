"""An encoder of images as a graph: from pixels as its processor makes them to its outputs and one feature."""

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ...modeling.image_processing import processed_channels
from ...modeling.pooling import check_pooling, outputs_for, pool_features
from ..graph import Graph
from .encoder import VisionEncoder, size_arguments


class ImageGraph(nn.Module):
    def __init__(self, model: PreTrainedModel, pooling: str, **arguments: bool):
        super().__init__()
        self.model, self.pooling = model, pooling
        self.arguments = {**arguments, **outputs_for(pooling)}

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        outputs = self.model(pixel_values=pixel_values, **self.arguments)
        return outputs.last_hidden_state, pool_features(outputs, self.model.config, self.pooling)


def image_graph(encoder: str, pooling: str | None) -> Graph:
    """Of an encoder on disk or on the Hub; images have the size that its processor makes."""
    vision = VisionEncoder(encoder)
    model, processor = vision.load(), vision.processor
    pooling, channels = check_pooling(model.config, pooling), processed_channels(processor)
    blank = np.zeros((channels, 32, 32), dtype=np.uint8)
    made = processor(images=[blank], return_tensors="pt", input_data_format="channels_first")["pixel_values"]
    height, width = made.shape[-2:]

    def batch(samples: int, length: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(samples)
        return {"pixel_values": torch.randn(samples, channels, height, width, generator=generator)}

    settings = processor.to_dict()
    names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample", "do_convert_rgb")
    about = {"height": height, "width": width, "channels": channels}
    about |= {name: settings[name] for name in names if settings.get(name) is not None}
    module = ImageGraph(model, pooling, **size_arguments(model, height, width))
    return Graph(module, batch, {"pixel_values": {0: "batch"}}, processor, pooling, about)
