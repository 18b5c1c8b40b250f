"""Evaluation of encoders of numbers: a modality made for tests."""

import torch

from hfssl.evaluation.modality import EvaluationModality


class NumbersEmbedder:
    """Rows of numbers of which an encoder makes features again and again."""

    def __init__(self, samples, processor=None, transform=None, batch_size=64):
        self.batches = torch.tensor(list(samples), dtype=torch.float32).split(batch_size)
        self.rows = torch.arange(len(samples)).split(batch_size)

    @property
    def num_batches(self):
        return len(self.batches)

    def __call__(self, encoder, index, pooling=None):
        return encoder(self.batches[index]).last_hidden_state.mean(1)


MODALITY = EvaluationModality("numbers", ("past_values",), NumbersEmbedder)
