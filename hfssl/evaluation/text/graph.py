"""An encoder of text as a graph: from tokens and what of them is padding to its outputs and one feature."""

import torch
from torch import nn
from transformers import PreTrainedModel

from ...modeling.pooling import masked_mean
from ..graph import Graph
from ..sample_features import EmbedSettings
from .samples import TextSampleFeatures


class TextGraph(nn.Module):
    def __init__(self, model: PreTrainedModel, pooling: str):
        super().__init__()
        self.model, self.pooling = model, pooling

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        if self.pooling == "cls":
            return hidden, hidden[:, 0]
        if self.pooling == "last":
            return hidden, hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1]
        return hidden, masked_mean(hidden, attention_mask)


def text_graph(encoder: str, pooling: str | None) -> Graph:
    """Of an encoder on disk or on the Hub."""
    made = TextSampleFeatures(encoder, EmbedSettings(pooling=pooling))
    model, vocabulary = made.model.cpu(), made.model.config.vocab_size
    shortest = max(made.max_length // 4, 2)

    def batch(samples: int, length: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(samples)
        ids = torch.randint(vocabulary, (samples, min(shortest * length, made.max_length)), generator=generator)
        mask = torch.ones_like(ids)
        mask[1:, -1:] = 0  # padding, of all but the first
        return {"input_ids": ids, "attention_mask": mask}

    axes = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}
    about = {"max_length": made.max_length, "pad_token_id": made.tokenizer.pad_token_id, "tokenizer": "tokenizer.json"}
    return Graph(TextGraph(model, made.pooling), batch, axes, made.tokenizer, made.pooling, about)
