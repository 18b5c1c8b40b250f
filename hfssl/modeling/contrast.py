"""Methods whose loss compares the samples of a batch, in two steps: embed each sample, compare all of them.

With the two apart, a batch may be larger than what fits into memory: [`~hfssl.training.gradient_cache.GradientCache`]
embeds it part by part, compares all at once, and embeds each part again for the gradient.
"""

from typing import Any

import torch
from transformers.utils import ModelOutput


class ContrastMixin:
    """A method with [`embed`] and [`contrast`], in front of [`SSLPreTrainedModel`] among the bases of a method.

    Its `forward` returns `self.compare(...)` of its inputs.
    """

    # instead of `contrast`, while a batch is embedded for the second time
    replay = None

    def embed(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """What is compared, by name, a row for each sample; it depends on nothing but the sample."""
        raise NotImplementedError(f"{type(self).__name__} embeds nothing.")

    def contrast(self, embeddings: dict[str, torch.Tensor]) -> ModelOutput:
        """The output of `forward` with its loss: a mean over the rows, each against those of all processes."""
        raise NotImplementedError(f"{type(self).__name__} compares nothing.")

    def compare(self, **inputs: Any) -> ModelOutput:
        """[`contrast`] of what [`embed`] makes of a batch."""
        embeddings = self.embed(**inputs)
        return self.contrast(embeddings) if self.replay is None else self.replay(embeddings)
