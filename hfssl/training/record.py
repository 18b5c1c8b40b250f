"""What a run leaves behind for those who tell of it: the card, the report, a comparison of several runs."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..modeling.base import SSLPreTrainedModel
from .arguments import SSLTrainingArguments


@dataclass
class RunRecord:
    r"""
    A run as its result folder tells it. [`~hfssl.training.trainer.SSLTrainer.record`] makes one.

    Args:
        model ([`SSLPreTrainedModel`]):
            The method, not wrapped.
        args ([`SSLTrainingArguments`]):
            Of the run.
        processor:
            Tokenizer, image processor or feature extractor that goes with the encoder.
        history (`list[dict[str, Any]]`):
            The log of the run.
        step (`int`):
            Optimizer steps that are done.
        counts (`dict[str, int]`, *optional*):
            What all processes have seen of the stream, see [`~hfssl.data.stream.ExactStream`].
        unit (`str`, *optional*):
            What `counts["units"]` counts, such as tokens or images.
        passes (`dict[str, float]`, *optional*):
            How often each source has been gone through.
        command (`str`, *optional*):
            The command of the run, without secrets.
    """

    model: SSLPreTrainedModel
    args: SSLTrainingArguments
    processor: Any
    history: list[dict[str, Any]]
    step: int
    counts: dict[str, int] = field(default_factory=dict)
    unit: str = ""
    passes: dict[str, float] = field(default_factory=dict)
    command: str = ""

    @property
    def name(self) -> str:
        """What the result is called: its id on the Hub, else its folder."""
        return self.args.hub_model_id or Path(self.args.output_dir).name
