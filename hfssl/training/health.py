"""Measures the embeddings of held-out samples while a run trains, for the verdict of `hfssl.evaluation.verdict`."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..data.blocks import take_rows
from ..data.held_out import content_keys
from ..data.stream import Block, ExactStream
from ..evaluation.modality import evaluation_modality
from ..evaluation.verdict import COLLAPSED, MEANING, NO_NUMBERS, VIEWS_APART, describe, has_ended, judge
from ..functional import keyed
from ..functional.embedding_figures import (
    alignment,
    effective_rank,
    margin,
    modality_gap,
    random_rank,
    recognition,
    recognition_of_chance,
    spread,
    teacher_distance,
    uniformity,
)
from ..functional.keyed import Use
from ..modeling.base import SSLPreTrainedModel, evaluating
from ..modeling.distributed import rank, world_size


logger = logging.getLogger(__name__)

# Enough to count directions by the dozen; a forward pass over them costs about as much as one step.
MAX_SAMPLES = 256
# Fewer cannot tell a lack of directions from a lack of samples.
MIN_SAMPLES = 32
TARGETS_IN_USE = "eval_target_perplexity"
# Of whatever method: its projections are spread, but not by what is in the images.
_VIEWS_APART_HINT = (
    "two views of an image are no nearer to each other than to other images: make them milder "
    "(`recipes/show_views.py` shows them), raise `--learning_rate`, or train for longer"
)
_NO_NUMBERS_HINT = (
    "the learning rate is too high for this model: lower `--learning_rate`, raise `--warmup_steps`, or pass "
    "`--precision fp32`"
)


class HealthMonitor:
    r"""
    Measures the embeddings of held-out samples during a run and says whether it learns. See the top of the module.

    [`SSLTrainer`] makes one when it is given held-out samples, and calls it at each evaluation.

    Args:
        samples (`Sequence[str]`, `Sequence[bytes]` or `Mapping[str, Sequence]`):
            Held-out texts or encoded images; of pairs, those of each side by the name of the input. At most
            `max_samples` are taken, from all over them.
        processor:
            Tokenizer or image processor that goes with the encoder.
        modality (`str`):
            What the samples are.
        stream ([`ExactStream`], *optional*):
            That of the run: makes the views that joint-embedding methods compare, always the same of a sample.
        max_samples (`int`, *optional*, defaults to `256`):
            Most samples to measure on.
        batch_size (`int`, *optional*, defaults to `64`):
            Samples a forward pass.
    """

    def __init__(
        self,
        samples: Sequence[str] | Sequence[bytes] | Mapping[str, Sequence],
        processor: Any,
        modality: str,
        stream: ExactStream | None = None,
        *,
        max_samples: int = MAX_SAMPLES,
        batch_size: int = 64,
    ):
        columns = samples if isinstance(samples, Mapping) else {"": samples}
        number = len(next(iter(columns.values())))
        chosen = np.linspace(0, number - 1, min(number, max_samples)).round().astype(int)
        columns = {name: [values[i] for i in chosen] for name, values in columns.items()}
        self.num_samples, self.stream, self.batch_size = len(chosen), stream, batch_size
        # the embeddings of pairs are what their method compares
        self.pairs, self.samples, self.embedder = isinstance(samples, Mapping), columns, None
        if self.num_samples < MIN_SAMPLES:
            logger.info(
                "No verdict on the health of the run: %d held-out samples, %d needed.", self.num_samples, MIN_SAMPLES
            )
            return
        if self.pairs:
            return
        transform = stream.transform if stream is not None else None
        self.embedder = evaluation_modality(modality).make_embedder(columns[""], processor, transform, batch_size)

    @cached_property
    def views(self) -> dict[str, Any]:
        """Columns of the samples as the run's stream makes them: the views that joint-embedding methods compare."""
        leading = self.stream.source.leading
        columns = {name or leading: values for name, values in self.samples.items()}
        block = Block(columns, keyed.key(Use.HELD_OUT_SAMPLE, content_keys(columns[leading])), key=0)
        return self.stream.transform(block).columns

    # -- figures --------------------------------------------------------------------------------------------------

    def measure(self, model: SSLPreTrainedModel) -> dict[str, float]:
        """The figures of a pre-training model, by names that begin with `health_`; nothing of the model changes.

        Of a run in several processes each embeds its share of the samples; the figures are the same in all of them.
        """
        if self.num_samples < MIN_SAMPLES:
            return {}
        with evaluating(model):
            projections = self._of_views(model, "compared_embeddings")
            embeddings = projections[:, 0] if self.pairs else self._embeddings(model)
            target_margins = self._of_views(model, "target_margin")
        measured = [each for each in (embeddings, projections, target_margins) if each is not None]
        finite = (each.reshape(len(each), -1).isfinite().all(1).double().mean().item() for each in measured)
        not_finite = 1 - min(finite)
        embeddings, projections, target_margins = (
            None if each is None else each.nan_to_num() for each in (embeddings, projections, target_margins)
        )
        figures = {"rankme": effective_rank(embeddings), **spread(embeddings)}
        if projections is not None:
            z1, z2 = projections[:, 0], projections[:, 1]
            figures |= {f"projection_{name}": value for name, value in spread(z1).items()}
            figures["random_rank"] = random_rank(*z1.shape)
            figures["margin"], figures["recognition"] = margin(z1, z2), recognition(z1, z2)
            figures["recognition_of_chance"] = recognition_of_chance(len(z1))
            figures["alignment"] = alignment(z1, z2)
            figures["uniformity"] = (uniformity(z1) + uniformity(z2)) / 2
        if self.pairs:
            figures |= {f"rankme_{name}": effective_rank(z) for name, z in zip(model.encoders, (z1, z2), strict=True)}
            figures["modality_gap"] = modality_gap(z1, z2)
        if target_margins is not None:
            figures["target_margin"] = target_margins.mean().item()
        if not_finite > 0:
            figures["not_finite"] = not_finite
        distance = teacher_distance(model)
        if distance is not None:
            figures["teacher_distance"] = distance
        return {f"health_{name}": value for name, value in figures.items()}

    def _embeddings(self, model: SSLPreTrainedModel) -> torch.Tensor:
        """Pooled features of the encoder, `(num_samples, hidden_size)`."""
        pooling = getattr(model.config, "pooling", "mean")
        return self._gather(self.embedder.num_batches, lambda i: self.embedder(model.encoder, i, pooling))

    def _of_views(self, model: SSLPreTrainedModel, name: str) -> torch.Tensor | None:
        """What a method of the model makes of the views, a row for each sample; `None` where it has no such method.

        `compared_embeddings` is what the loss compares, `(num_samples, 2, dim)`; `target_margin`, `(num_samples,)`, is
        for methods that compare by something else: by how much their loss grows when the teacher is shown views of
        other samples, as a share of the loss of chance.
        """
        if self.stream is None or not hasattr(model, name):
            return None
        num_rows = len(next(iter(self.views.values())))
        # equally large, give or take one: a row alone would be compared with itself
        cuts = np.array_split(np.arange(num_rows), -(-num_rows // self.batch_size))

        def measured(i: int) -> torch.Tensor:
            rows = {name: take_rows(values, cuts[i]) for name, values in self.views.items()}
            return getattr(model, name)(self.stream.collate(rows))

        return self._gather(len(cuts), measured)

    def _gather(self, num_batches: int, embed: Callable[[int], torch.Tensor]) -> torch.Tensor:
        parts = {i: embed(i).float().cpu() for i in range(rank(), num_batches, world_size())}
        if world_size() > 1:
            shares: list[Any] = [None] * world_size()
            dist.all_gather_object(shares, parts)
            parts = {i: part for share in shares for i, part in share.items()}
        return torch.cat([parts[i] for i in range(num_batches)])

    # -- the verdict ----------------------------------------------------------------------------------------------

    def check(
        self,
        model: SSLPreTrainedModel,
        step: int,
        history: Sequence[dict[str, Any]],
        progress: float = 0.0,
        measured: Mapping[str, float] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """Measure and judge.

        Args:
            model ([`SSLPreTrainedModel`]):
                The method.
            step (`int`):
                Steps that are done.
            history (`Sequence[dict[str, Any]]`):
                The log of the run (`trainer.state.log_history`). What came before is known from it, also after a
                resume.
            progress (`float`, *optional*, defaults to `0.0`):
                Share of the run that is done, in [0, 1].
            measured (`Mapping[str, float]`, *optional*):
                What else was measured of the model as it is: `eval_loss` counts, and `eval_target_perplexity`.

        Returns:
            `dict[str, float | str]`: the figures, `health_verdict`, `health_cause` unless it learns, and
            `health_taken_back` where it had been called collapsed and is not any more.
        """
        figures: dict[str, Any] = self.measure(model)
        if not figures:
            return figures
        gradients = [entry["grad_norm"] for entry in history if "grad_norm" in entry]
        if gradients:
            figures["health_grad_norm"] = float(gradients[-1])
        past = [entry for entry in history if "health_verdict" in entry and entry["step"] < step]
        if TARGETS_IN_USE in measured:
            figures["health_target_perplexity"] = measured[TARGETS_IN_USE]
        verdict, symptom = judge({**measured, **figures}, past, step, progress)
        before = past[-1]["health_verdict"] if past else ""
        if before.startswith(COLLAPSED) and not has_ended(verdict):
            figures["health_taken_back"] = before
        figures["health_verdict"] = verdict
        if symptom is not None:
            hints = {VIEWS_APART: _VIEWS_APART_HINT, **model.method.collapse_hints(model.config)}
            hints[NO_NUMBERS] = _NO_NUMBERS_HINT
            figures["health_cause"] = hints.get(symptom, hints["constant"])
        if not past:
            logger.info(MEANING)
        is_news = before != verdict
        said = figures if is_news else {name: value for name, value in figures.items() if name != "health_cause"}
        is_warning = has_ended(verdict) or "health_taken_back" in figures
        logger.log(logging.WARNING if is_warning else logging.INFO, "step %d: %s", step, describe(said))
        return figures
