"""How fine-tuning is done: the flags of the protocol, and what a modality takes where they are left out."""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..machine import process_state
from .evaluator import EvaluationError


# settings that change nothing about a single training
_NO_MATTER = ("seeds", "random_init", "save_model")
# of those that are left out, where a modality or a protocol says nothing else
_USUAL = {"epochs": 20.0, "min_steps": 200, "learning_rate": 5e-4, "scratch_learning_rate": 1e-3, "layer_decay": 0.75}


@dataclass(frozen=True)
class FinetuneDefaults:
    """What a modality or a protocol says of the settings.

    Args:
        values (`dict[str, Any]`):
            Of those that are left out, where they are not the usual ones.
        unused (`tuple[str, ...]`):
            Those that mean nothing to it.
    """

    values: dict[str, Any] = field(default_factory=dict)
    unused: tuple[str, ...] = ()


@dataclass
class FinetuneSettings:
    r"""
    > Fine-tuning

    Args:
        seeds (`int`, *optional*, defaults to `3`):
            Number of trainings, with seeds 0, 1, 2 …: mean and standard deviation are over these.
        epochs (`float`, *optional*):
            Passes over the labelled samples; 20 over images and recordings, 5 over texts when left out.
        min_steps (`int`, *optional*):
            Steps at least, where few samples make few of them; 1,000 for recognition, else 200 when left out.
        train_batch_size (`int`, *optional*, defaults to `64`):
            Samples a step over all processes; fewer where there are fewer samples.
        learning_rate (`float`, *optional*):
            Peak learning rate of the head on a pre-trained encoder, whose blocks learn slower; 5e-4 for images and
            recordings, 2e-4 for texts, 1e-3 for recognition when left out.
        scratch_learning_rate (`float`, *optional*):
            Peak learning rate of all blocks from scratch; 1e-3 for images and recordings, 3e-4 for
            texts when left out.
        layer_decay (`float`, *optional*):
            A pre-trained block learns by this factor slower than the one after it; 1, which is no decay, for
            recognition, else 0.75 when left out.
        weight_decay (`float`, *optional*, defaults to `0.05`):
            Of all but norms and biases.
        shift (`float`, *optional*, defaults to `0.125`):
            Images are shifted at random by up to this share of their size.
        flip (`bool`, *optional*, defaults to `False`):
            Mirror half of the images, left to right.
        max_length (`int`, *optional*, defaults to `128`):
            Tokens after which a text is cut off.
        max_seconds (`float`, *optional*, defaults to `15.0`):
            Longest part of a recording that goes through the encoder at once.
        random_init (`bool`, *optional*, defaults to `True`):
            Train the same architecture from scratch as well.
        save_model (`bool`, *optional*, defaults to `True`):
            Keep the classifier that came of the encoder with seed 0, in model/ of the output folder.
    """

    seeds: int = 3
    epochs: float | None = None
    min_steps: int | None = None
    train_batch_size: int = 64
    learning_rate: float | None = None
    scratch_learning_rate: float | None = None
    layer_decay: float | None = None
    weight_decay: float = 0.05
    shift: float = 0.125
    flip: bool = False
    max_length: int = 128
    max_seconds: float = 15.0
    random_init: bool = True
    save_model: bool = True

    def __post_init__(self):
        for name in (
            "seeds",
            "epochs",
            "min_steps",
            "train_batch_size",
            "learning_rate",
            "scratch_learning_rate",
            "max_seconds",
        ):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise EvaluationError(f"`{name}` must be above 0, got {value}.")
        if self.max_length < 8:
            raise EvaluationError(f"`max_length` must be at least 8 tokens, got {self.max_length}.")
        if self.layer_decay is not None and not 0 < self.layer_decay <= 1:
            raise EvaluationError(f"`layer_decay` must be above 0 and at most 1, got {self.layer_decay}.")
        if not 0 <= self.shift < 1:
            raise EvaluationError(f"`shift` must be at least 0 and below 1, got {self.shift}.")

    def filled(self, defaults: "FinetuneDefaults") -> "FinetuneSettings":
        """With what is left out as a modality or a protocol has it."""
        values = _USUAL | defaults.values
        missing = {name: value for name, value in values.items() if getattr(self, name) is None}
        return replace(self, **missing)

    def hyperparameters(self, defaults: "FinetuneDefaults") -> dict[str, Any]:
        """All that decides what comes out of a training, apart from its seed."""
        left_out = (*_NO_MATTER, *defaults.unused)
        chosen = {name: value for name, value in asdict(self.filled(defaults)).items() if name not in left_out}
        fixed = {"optimizer": "adamw", "adam_betas": [0.9, 0.999], "schedule": "cosine", "warmup_ratio": 0.1}
        return chosen | fixed | {"max_grad_norm": 1.0, "evaluated": "last step"}

    def samples_a_process(self, num_labels: int) -> int:
        """The samples of a step that each process gets of so many labelled ones, see [`samples_a_process`]."""
        return samples_a_process(min(self.train_batch_size, num_labels), process_state().num_processes)


def samples_a_process(samples: int, num_processes: int) -> int:
    """The samples of a step that each process gets.

    Raises:
        EvaluationError: if they cannot be shared evenly: the figure would be that of another batch than is recorded.
    """
    if samples % num_processes:
        fitting = ", ".join(str(number) for number in range(1, samples + 1) if samples % number == 0)
        fewer = samples // num_processes * num_processes
        raise EvaluationError(
            f"A step has {samples} samples (`--train_batch_size`, or all where there are fewer), which "
            f"{num_processes} processes cannot share evenly. Launch one of {fitting} processes"
            + (f", or pass `--train_batch_size {fewer}`." if fewer else ".")
        )
    return samples // num_processes
