"""How well a model predicts masked tokens of held-out text: the same tokens for every model, run and precision."""

import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from .. import random as keyed
from ..data.stream import Block
from ..data.text import TextCollator, TextRows
from .evaluator import Evaluator
from .results import Result


class MaskedTokenEvaluator(Evaluator):
    r"""
    Masked-token loss, accuracy and pseudo-perplexity on held-out texts.

    15 % of the tokens are masked as BERT does (80/10/10), whatever ratio the model was trained with; which, and as what,
    depends on the text alone. `loss` is the mean cross-entropy in nats over all masked tokens, `accuracy` the share that is
    predicted right, `pseudo_perplexity` is exp(loss): not that of Salazar et al. (2020), who mask one token at a time.
    Figures of different tokenizers are not comparable.

    Args:
        texts (`Sequence[str]`):
            Held-out texts.
        tokenizer (`PreTrainedTokenizerBase`):
            Tokenizer of the models.
        max_length (`int`, *optional*, defaults to `128`):
            Tokens a row.
        packing (`bool`, *optional*, defaults to `True`):
            Whether texts share rows (no text sees another).
        batch_size (`int`, *optional*, defaults to `32`):
            Rows a forward pass.
        training_texts (`Iterable[str]`, *optional*):
            A sample of the training texts, for the unigram baseline: always the most frequent token, and the (add-one
            smoothed) frequencies as prediction.
        rank, world_size (`int`, *optional*):
            This process measures its share of the rows, and the sums are added up.
    """

    protocol: ClassVar[str] = "masked_tokens"
    version: ClassVar[int] = 1
    primary_metric = "loss"
    greater_is_better: ClassVar[bool] = False

    def __init__(
        self,
        texts: Sequence[str],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 128,
        packing: bool = True,
        batch_size: int = 32,
        training_texts: Iterable[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.tokenizer, self.num_texts = tokenizer, len(texts)
        self.max_length, self.packing, self.batch_size = max_length, packing, batch_size
        keys = keyed.key(np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.uint64), 5)
        rows = TextRows(tokenizer, max_length, packing=packing, masking={"mask_ratio": 0.15})(
            Block({"text": list(texts)}, keys, key=0)
        )
        collate = TextCollator(tokenizer.pad_token_id)
        batches = [
            collate({name: values[start : start + batch_size] for name, values in rows.columns.items()})
            for start in range(0, len(rows), batch_size)
        ]
        batches = [batch for batch in batches if batch["masked_positions"].numel()]
        self.labels = torch.cat([b["labels"].flatten().index_select(0, b["masked_positions"]) for b in batches])
        self.batches = batches[rank::world_size]
        self.world_size = world_size
        self.baselines = self._unigram(training_texts) if training_texts is not None else {}

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """`loss`, `accuracy` and `pseudo_perplexity` of a [`MlmForPreTraining`] in evaluation mode, as it is."""
        device = next(model.parameters()).device
        sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss, right, masked tokens
        with torch.no_grad():
            for batch in self.batches:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                logits = model(**batch).logits.float()
                labels = batch["labels"].flatten().index_select(0, batch["masked_positions"])
                sums[0] += F.cross_entropy(logits, labels, reduction="sum")
                sums[1] += (logits.argmax(-1) == labels).sum()
                sums[2] += len(labels)
        if self.world_size > 1:
            dist.all_reduce(sums)
        loss, right, masked = sums.tolist()
        return _figures(loss / masked, right / masked)

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None, report=None) -> list[Result]:
        """Evaluate a stock masked language model (folder, Hub id or object), or a [`MlmForPreTraining`]."""
        from ..methods.text.mlm import MlmForPreTraining

        model = encoder
        if isinstance(encoder, str | Path):
            model = MlmForPreTraining.from_encoder(str(encoder))
        model.eval()
        results = self.results(
            self.measure(model), model=str(encoder if isinstance(encoder, str | Path) else "object")
        )
        if output_dir is not None:
            from .results import write_results

            write_results(Path(output_dir) / "results.json", results)
        return results

    def results(self, measured: dict[str, float], model: str, **baselines: dict[str, float]) -> list[Result]:
        """The records of what was measured, beside the unigram baseline and others given by name."""
        baselines = {**({"unigram": self.baselines} if self.baselines else {}), **baselines}
        return [
            Result.from_scores(
                {0: value},
                {name: figures[metric] for name, figures in baselines.items()},
                protocol=self.protocol,
                version=self.version,
                model=model,
                task="masked tokens",
                split="held out",
                metric=metric,
                num_train=0,
                num_eval=len(self.labels),
                greater_is_better=metric == "accuracy",
                hyperparameters={
                    "texts": self.num_texts, "mask_ratio": 0.15, "max_length": self.max_length, "packing": self.packing,
                    "vocab_size": len(self.tokenizer),
                },
            )
            for metric, value in measured.items()
        ]  # fmt: skip

    def _unigram(self, training_texts: Iterable[str]) -> dict[str, float]:
        counts = Counter()
        for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(
            list(training_texts), add_special_tokens=False
        ):
            counts.update(encoding.ids)
        frequency = torch.ones(len(self.tokenizer), dtype=torch.float64)
        for token, count in counts.items():
            frequency[token] += count
        log_probability = (frequency / frequency.sum()).log()
        right = (self.labels == log_probability.argmax()).double().mean().item()
        return _figures(-log_probability[self.labels].mean().item(), right)


def _figures(loss: float, accuracy: float) -> dict[str, float]:
    return {"loss": loss, "accuracy": accuracy, "pseudo_perplexity": math.exp(min(loss, 700.0))}


def fill_mask_examples(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    num_examples: int = 4,
    top_k: int = 3,
) -> list[dict[str, Any]]:
    """What the model says where a word of a held-out text is hidden, for a person to look at.

    Returns:
        `list[dict]` with `text` (with the mask token), `answer`, and `predictions`, a list of `(token, probability)`.
    """
    examples = []
    device = next(model.parameters()).device
    for text in texts:
        if len(examples) == num_examples:
            break
        words = text.split()
        if not len(words) >= 8:
            continue
        words = words[:24]
        # a word in the middle that is one token, so that the answer can be given
        for position in sorted(range(2, len(words) - 2), key=lambda i: abs(i - len(words) // 2)):
            answer = words[position].strip(".,;:!?\"'()")
            if answer.isalpha() and len(answer) > 3 and len(tokenizer.tokenize(answer)) == 1:
                break
        else:
            continue
        words[position] = words[position].replace(answer, tokenizer.mask_token)
        encoded = tokenizer(" ".join(words), return_tensors="pt", truncation=True, max_length=64).to(device)
        at = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero()
        if len(at) != 1:
            continue
        with torch.no_grad():
            logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        top = logits[0, at.item()].float().softmax(-1).topk(top_k)
        predictions = [(tokenizer.decode([int(i)]).strip(), float(p)) for p, i in zip(*top, strict=True)]
        examples.append({"text": " ".join(words), "answer": answer, "predictions": predictions})
    return examples
