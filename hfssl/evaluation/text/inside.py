"""Encoders of texts opened up: the parts of a text are its tokens, without those that the tokenizer puts around it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.utils import ModelOutput

from ...data.sources.base import Damage
from ...modeling.base import evaluating
from ..inside import Group, Opened, Row, attentions_of, telling_attention
from ..sample_features import EmbedSettings
from .embedder import MAX_TOKENS
from .pictures import shortened
from .samples import TextSampleFeatures, pooled_tokens


# Of a group of texts so many can be read.
_OF_A_GROUP = 4


class TextInside:
    """A [`~hfssl.evaluation.inside.Inside`] of texts; of a long one its beginning.

    Args:
        encoder (`str`):
            Folder or Hub id.
        pooling (`str`, *optional*):
            See [`~hfssl.evaluation.text.samples.TextSampleFeatures`].
        batch_size (`int`, *optional*, defaults to `64`):
            Texts a forward pass.
        random_init (`bool`, *optional*, defaults to `False`):
            Take new weights.
    """

    part, several_parts = "token", "tokens"

    def __init__(self, encoder: str, pooling: str | None = None, batch_size: int = 64, random_init: bool = False):
        settings = EmbedSettings(pooling=pooling, batch_size=batch_size, max_length=MAX_TOKENS)
        self._features = TextSampleFeatures(encoder, settings, random_init)
        self.name, self.pooling, self.batch_size = encoder, self._features.pooling, batch_size
        self.tokenizer = self._features.tokenizer
        self.model = telling_attention(self._features.model).to(self._features.device)
        known = ((self.tokenizer.mask_token_id, "the mask token"), (self.tokenizer.unk_token_id, "the unknown token"))
        there = [(number, said) for number, said in known if number is not None]
        self._hidden_id, self.hidden = (there or [(self.tokenizer.pad_token_id, "padding")])[0]

    def reader(self, samples: Sequence[str]) -> None:
        return None

    def layers(self, samples: Sequence[str], rows: Sequence[int]) -> list[np.ndarray]:
        tokens = [self._features.prepare(self._readable(samples[int(row)]))[0] for row in rows]
        order = np.argsort([len(each) for each in tokens], kind="stable")  # little padding
        found: list[list[np.ndarray]] = []
        with evaluating(self.model):
            for start in range(0, len(order), self.batch_size):
                some = [tokens[i] for i in order[start : start + self.batch_size]]
                longest = max(map(len, some))
                ids = torch.tensor([each + [self.tokenizer.pad_token_id] * (longest - len(each)) for each in some])
                mask = torch.tensor([[True] * len(each) + [False] * (longest - len(each)) for each in some])
                outputs = self._outputs(ids.to(self.model.device), mask.to(self.model.device))
                layers = [*outputs.hidden_states[:-1], outputs.last_hidden_state]
                made = [pooled_tokens(each.float(), mask.to(each.device), self.pooling) for each in layers]
                found.append([each.cpu().numpy() for each in made])
        back = np.argsort(order)
        return [np.concatenate(parts)[back] for parts in zip(*found, strict=True)]

    def open(self, samples: Sequence[str], row: int) -> Opened:
        text = self._readable(samples[row])
        ids = self._features.prepare(text)[0]
        told = self.tokenizer(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, truncation=True, max_length=len(ids)
        )  # fmt: skip
        special = told["special_tokens_mask"]  # those around it: an unknown word is a part of it
        pieces = pieces_of(text, told["offset_mapping"], special)
        numbers = torch.tensor([ids], device=self.model.device)
        with torch.no_grad():
            inputs = self.model.get_input_embeddings()(numbers)
        return Opened(inputs, pieces, {"ids": numbers, "own": torch.tensor(special, dtype=torch.bool)})

    def forward(self, inputs: torch.Tensor, sample: Opened) -> tuple[torch.Tensor, torch.Tensor | None]:
        ids = sample.options["ids"].expand(len(inputs), -1)
        hook = self.model.get_input_embeddings().register_forward_hook(lambda *_: inputs)
        try:
            outputs = self._outputs(ids, torch.ones_like(ids, dtype=torch.bool))
        finally:
            hook.remove()
        mask = torch.ones_like(ids, dtype=torch.bool)
        return pooled_tokens(outputs.last_hidden_state.float(), mask, self.pooling), None

    def cells(self, relevance: torch.Tensor, sample: Opened) -> np.ndarray:
        return self.parts(relevance.sum(-1)[0], sample)

    def occluded(self, sample: Opened) -> tuple[torch.Tensor, tuple[int, ...]]:
        there = (~sample.options["own"]).nonzero()[:, 0]
        with torch.no_grad():
            hidden = self.model.get_input_embeddings()(torch.tensor([self._hidden_id], device=self.model.device))[0]
        variants = sample.inputs.repeat(len(there), 1, 1)
        variants[torch.arange(len(there)), there] = hidden
        return variants, (len(there),)

    def attentions(self, sample: Opened) -> Sequence[torch.Tensor] | None:
        ids = sample.options["ids"]
        return attentions_of(self.model, input_ids=ids, attention_mask=torch.ones_like(ids))

    def read_from(self, num_tokens: int, sample: Opened) -> torch.Tensor:
        if self.pooling == "mean":
            return torch.full((num_tokens,), 1.0 / num_tokens)
        read = torch.zeros(num_tokens)
        read[0 if self.pooling == "cls" else -1] = 1.0
        return read

    def parts(self, tokens: torch.Tensor, sample: Opened) -> np.ndarray:
        return tokens[~sample.options["own"]].numpy()

    def show_maps(self, rows: Sequence[Row], folder: Path, name: str, caption: str) -> dict[str, Any]:
        words = []
        for row in rows:
            maps = {
                method: [
                    [piece, round(float(value), 3)]
                    for piece, value in zip(row.sample.shown, values / (np.abs(values).max() or 1.0), strict=True)
                ]
                for method, values in row.maps.items()
            }
            words.append([row.title, maps])
        signed = any((values < 0).any() for row in rows for values in row.maps.values())
        said = "The stronger its colour, the larger the number of a token" + (
            "; what is underlined with dots speaks against." if signed else "."
        )
        return {"words": words, "caption": f"{caption} {said}"}

    def show_groups(
        self, samples: Sequence[str], groups: Sequence[Group], folder: Path, name: str, caption: str
    ) -> dict[str, Any]:
        rows = [
            [group.title, [f"{shortened(samples[row])} ({said})" for row, said in group.samples[:_OF_A_GROUP]]]
            for group in groups
        ]
        return {"listing": rows, "caption": caption}

    def _readable(self, text: str) -> str:
        """A text, or a letter in place of one that has no token."""
        return "a" if isinstance(self._features.prepare(text), Damage) else text

    def _outputs(self, ids: torch.Tensor, mask: torch.Tensor) -> ModelOutput:
        return self.model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True)


def pieces_of(text: str, offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> list[str]:
    """What a text has at each of its tokens, with what is between them; without special tokens.

    Example:

    ```python
    >>> pieces_of("Ab c", [(0, 0), (0, 1), (1, 2), (3, 4), (0, 0)], [1, 0, 0, 0, 1])
    ['A', 'b', ' c']
    ```
    """
    pieces, end = [], 0
    for (start, stop), is_own in zip(offsets, special, strict=True):
        if not is_own:
            pieces.append(text[min(end, start) : stop])
            end = max(end, stop)
    return pieces
