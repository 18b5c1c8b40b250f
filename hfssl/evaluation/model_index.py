"""Figures as the index of a model on the Hub has them: each with its protocol, seeds and baselines."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..machine import fit_to_leave
from .results import Result


if TYPE_CHECKING:
    from huggingface_hub import EvalResult


def index_entry(
    result: Result, task: str, title: str, hub_data: Mapping[str, str] | None = None, seed: int | None = None
) -> "EvalResult":
    """A figure for the metadata of a card.

    Args:
        result ([`~hfssl.evaluation.results.Result`]):
            The figure.
        task (`str`):
            Of transformers' pipelines.
        title (`str`):
            What the figure is called.
        hub_data (`Mapping[str, str]`, *optional*):
            Of a data set of the Hub `id`, and where they are known `config` and `revision`.
        seed (`int`, *optional*):
            The one of its seeds that counts; the mean over all when left out.
    """
    from huggingface_hub import EvalResult

    known = hub_data or {}
    seeds = result.seeds if seed is None else [seed]
    of_all = {} if result.std is None or seed is not None else {"std": result.std}
    return EvalResult(
        task_type=task,
        dataset_type=known.get("id") or re.sub(r"[^\w./-]+", "-", fit_to_leave(result.task)).strip("-"),
        dataset_name=fit_to_leave(result.task),
        dataset_config=known.get("config"),
        dataset_revision=known.get("revision"),
        dataset_split=result.split,
        metric_type=result.metric,
        metric_value=result.value if seed is None else result.per_seed[result.seeds.index(seed)],
        metric_name=f"{result.metric} ({title}, protocol {result.protocol} v{result.version})",
        metric_args={"seeds": seeds, "num_train": result.num_train, "num_eval": result.num_eval}
        | of_all
        | ({"baselines": result.baselines} if result.baselines else {}),
    )
