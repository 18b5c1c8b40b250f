"""What evaluators of token prediction share: rows of held-out text, and the figures of a model on their labels."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from transformers import PreTrainedTokenizerBase

from ..data.held_out import content_keys
from ..data.stream import Block, Rows
from ..data.text.rows import TextCollator
from ..errors import UserError
from ..functional import keyed
from ..functional.keyed import Use
from ..modeling.method import LossContext
from ..modeling.tokenizer import table_size, token_ids, working_copy
from .evaluator import Evaluator
from .results import Result


class TokenPredictionEvaluator(Evaluator):
    r"""
    Loss and accuracy of token prediction on held-out texts. A subclass says which tokens are predicted.

    Args:
        texts (`Sequence[str]`, or `dict[str, Sequence[str]]`):
            Held-out texts. Of several sources, by their names: then `loss_<name>` is measured of each, too.
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

    Class attributes:
        task (`str`):
            What is predicted, in words.
        positions (`str`):
            Entry of a batch with the flat indices of the predicted tokens.
        metrics (`tuple[str]`):
            Names of the figures.
    """

    primary_metric = "loss"
    greater_is_better: ClassVar[bool] = False
    task: ClassVar[str]
    positions: ClassVar[str]
    metrics: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        texts: Sequence[str] | dict[str, Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int = 128,
        packing: bool = True,
        batch_size: int = 32,
        training_texts: Iterable[str] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        groups = texts if isinstance(texts, dict) else {"": texts}
        self.measured_on = frozenset().union(*groups.values())
        self.tokenizer, self.num_texts = working_copy(tokenizer), sum(map(len, groups.values()))
        self.max_length, self.packing, self.batch_size = max_length, packing, batch_size
        collate = TextCollator(tokenizer.pad_token_id, positions=self.positions)
        batches, num_tokens = [], 0
        labels: dict[str, list[torch.Tensor]] = {}
        for group, texts_of_group in groups.items():
            keys = keyed.key(Use.HELD_OUT_SAMPLE, content_keys(texts_of_group))
            rows = self._rows(Block({"text": list(texts_of_group)}, keys, key=0))
            num_tokens += int(rows.num_units.sum())
            for start in range(0, len(rows), batch_size):
                batch = collate({name: values[start : start + batch_size] for name, values in rows.columns.items()})
                if batch[self.positions].numel():
                    labels.setdefault(group, []).append(self._labels(batch))
                    batches.append((len(labels) - 1, batch))
        if not batches:
            raise UserError(
                f"The {self.num_texts} held-out text(s) are too short to measure on: their {num_tokens} tokens hold "
                f"no {self.task}. Pass more data, or a larger `--held_out_fraction`."
            )
        self.labels_of = {group: torch.cat(parts) for group, parts in labels.items()}
        self.labels = torch.cat(list(self.labels_of.values()))
        self.metrics = (*type(self).metrics, *self._by_source([0.0] * len(self.labels_of)))
        self.batches = batches[rank::world_size]
        self.world_size = world_size
        self.baselines = self._unigram(training_texts) if training_texts is not None else {}

    @abstractmethod
    def _rows(self, block: Block) -> Rows:
        """The rows of the held-out texts, with labels."""

    @abstractmethod
    def _figures(self, loss: float, accuracy: float) -> dict[str, float]:
        """All figures (`metrics`), from the two that are measured."""

    @abstractmethod
    def _method(self) -> type:
        """The class that wraps a stock checkpoint."""

    def _hyperparameters(self) -> dict[str, Any]:
        return {
            "texts": self.num_texts, "max_length": self.max_length, "packing": self.packing,
            "vocab_size": table_size(self.tokenizer),
        }  # fmt: skip

    def _labels(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["labels"].flatten().index_select(0, batch[self.positions])

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """The figures of a pre-training model in evaluation mode, as it is."""
        device = next(model.parameters()).device
        # loss, right and predicted tokens of each source
        sums = torch.zeros(len(self.labels_of), 3, dtype=torch.float64, device=device)
        with torch.no_grad():
            for group, batch in self.batches:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                logits = model(**batch).logits.float()
                labels = self._labels(batch)
                sums[group, 0] += F.cross_entropy(logits, labels, reduction="sum")
                sums[group, 1] += (logits.argmax(-1) == labels).sum()
                sums[group, 2] += len(labels)
        if self.world_size > 1:
            dist.all_reduce(sums)
        loss, right, predicted = sums.sum(0).tolist()
        losses = (sums[:, 0] / sums[:, 2]).tolist()
        return self._figures(loss / predicted, right / predicted) | self._by_source(losses)

    def loss_context(self, model: torch.nn.Module) -> LossContext:
        """With the entropy of the held-out tokens, given how frequent each is in training where that is known."""
        if self.baselines:
            return LossContext(self.batch_size, target_entropy=self.baselines["loss"])
        shares = self.labels.unique(return_counts=True)[1].double() / len(self.labels)
        return LossContext(self.batch_size, target_entropy=-torch.special.xlogy(shares, shares).sum().item())

    def _by_source(self, losses: Sequence[float]) -> dict[str, float]:
        names = [f"loss_{group}" for group in self.labels_of]
        return dict(zip(names, losses, strict=True)) if len(names) > 1 else {}

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """Evaluate a stock language model (folder or Hub id), or a pre-training model."""
        model = encoder
        if isinstance(encoder, str | Path):
            model = self._method().from_encoder(str(encoder))
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
                task=self.task,
                split="held out",
                metric=metric,
                num_train=0,
                num_eval=len(self.labels),
                greater_is_better=metric == "accuracy",
                hyperparameters=self._hyperparameters(),
            )
            for metric, value in measured.items()
        ]

    def _count(self, texts: list[str]) -> Counter:
        """How often each token occurs in some texts."""
        counts = Counter()
        for encoding in self.tokenizer.backend_tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            counts.update(encoding.ids)
        return counts

    def _unigram(self, training_texts: Iterable[str]) -> dict[str, float]:
        frequency = torch.zeros(table_size(self.tokenizer), dtype=torch.float64)
        frequency[torch.from_numpy(token_ids(self.tokenizer)).long()] = 1  # each token that there is, once more
        for token, count in self._count(list(training_texts)).items():
            frequency[token] += count
        log_probability = (frequency / frequency.sum()).log()
        right = (self.labels == log_probability.argmax()).double().mean().item()
        losses = [-log_probability[labels].mean().item() for labels in self.labels_of.values()]
        return self._figures(-log_probability[self.labels].mean().item(), right) | self._by_source(losses)
