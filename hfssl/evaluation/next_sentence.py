"""How well a model tells whether one segment of held-out text follows another: the same pairs for every model."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from ..data.stream import Block
from ..data.text.rows import TextCollator
from ..data.text.sentence_pairs import SentencePairRows
from ..functional import keyed
from ..functional.keyed import Use
from ..modeling.tokenizer import table_size
from .evaluator import EvaluationError, Evaluator
from .results import Result


class NextSentenceEvaluator(Evaluator):
    r"""
    Accuracy of next-sentence prediction on pairs made of held-out texts.

    The pairs are made as in training, 15 % of their tokens masked; which, depends on the texts alone. As many follow
    each other as do not, so that 0.5 is chance and what the most frequent answer reaches. `loss_nsp` is the mean
    cross-entropy in nats, log 2 = 0.693 by chance.

    Args:
        texts (`Sequence[str]`):
            Held-out texts.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the models.
        max_length (`int`, *optional*, defaults to `128`):
            Tokens a pair.
        batch_size (`int`, *optional*, defaults to `32`):
            Pairs a forward pass.
        rank, world_size (`int`, *optional*):
            This process measures its share of the pairs, and the sums are added up.
    """

    protocol: ClassVar[str] = "next_sentence"
    version: ClassVar[int] = 1
    primary_metric = "nsp_accuracy"

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 128,
        batch_size: int = 32,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.num_texts, self.max_length, self.vocab_size = len(texts), max_length, table_size(tokenizer)
        self.measured_on = frozenset(texts)
        contents = np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.uint64)
        keys = keyed.key(Use.HELD_OUT_SAMPLE, contents)
        transform = SentencePairRows(tokenizer, max_length, masking={"mask_ratio": 0.15})
        rows = transform(Block({"text": list(texts)}, keys, key=0)).columns
        label = rows["next_sentence_label"]
        each = min(np.count_nonzero(label == 0), np.count_nonzero(label == 1))
        if each == 0:
            raise EvaluationError(
                "Next-sentence prediction needs documents of several sentences, and several documents: the "
                f"{len(texts):,} held-out texts make {len(label):,} pairs, all of the same kind. Where each line of a "
                ".txt file is one sentence, pass `--sample_by paragraph` or `--sample_by document`."
            )
        kept = np.sort(np.concatenate([np.flatnonzero(label == value)[:each] for value in (0, 1)]))
        self.num_pairs = len(kept)
        collate = TextCollator(tokenizer.pad_token_id)
        self.batches = [
            collate({n: v[at] if isinstance(v, np.ndarray) else [v[i] for i in at] for n, v in rows.items()})
            for at in np.split(kept, range(batch_size, len(kept), batch_size))
        ][rank::world_size]
        self.world_size = world_size

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """`nsp_accuracy` and `loss_nsp` of a [`MlmForPreTraining`] with `next_sentence_objective`, as it is."""
        device = next(model.parameters()).device
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # right, loss
        with torch.no_grad():
            for batch in self.batches:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                logits = model(**batch).next_sentence_logits.float()
                sums[0] += (logits.argmax(-1) == batch["next_sentence_label"]).sum()
                sums[1] += F.cross_entropy(logits, batch["next_sentence_label"], reduction="sum")
        if self.world_size > 1:
            dist.all_reduce(sums)
        right, loss = (sums / self.num_pairs).tolist()
        return {"nsp_accuracy": right, "loss_nsp": loss}

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """Evaluate a stock checkpoint with a next-sentence head (folder or Hub id), or a [`MlmForPreTraining`]."""
        from ..methods.text.mlm import MlmForPreTraining

        model = encoder
        if isinstance(encoder, str | Path):
            model = MlmForPreTraining.from_encoder(str(encoder), next_sentence_objective=True)
        model.eval()
        name = str(encoder) if isinstance(encoder, str | Path) else "object"
        results = self.results(self.measure(model), model=name)
        if output_dir is not None:
            from .results import write_results

            write_results(Path(output_dir) / "results.json", results)
        return results

    def results(self, measured: dict[str, float], model: str, **baselines: dict[str, float]) -> list[Result]:
        """The records of what was measured, beside chance and other figures given by name."""
        baselines = {"majority": {"nsp_accuracy": 0.5, "loss_nsp": float(np.log(2))}, **baselines}
        return [
            Result.from_scores(
                {0: value},
                {name: figures[metric] for name, figures in baselines.items()},
                protocol=self.protocol,
                version=self.version,
                model=model,
                task="next sentence",
                split="held out",
                metric=metric,
                num_train=0,
                num_eval=self.num_pairs,
                greater_is_better=metric == "nsp_accuracy",
                hyperparameters={
                    "texts": self.num_texts,
                    "mask_ratio": 0.15,
                    "max_length": self.max_length,
                    "vocab_size": self.vocab_size,
                },
            )
            for metric, value in measured.items()
        ]
