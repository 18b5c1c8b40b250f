"""HuBERT's iterations on the command line: each trains an encoder whose frames are the units of the next."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...evaluation.encoder_folder import weights_digest
from ...evaluation.results import read_json
from ...report.record import RUN
from ...training.checkpoints import changed_settings
from ...training.record import identity_of
from ...training.settings import FOLLOW_PROCESSES
from ..parser import RecipeParser


if TYPE_CHECKING:
    from ...training.trainer import SSLTrainer

logger = logging.getLogger(__name__)

# Units of the second and further iterations, where the user says nothing; as in the paper.
LATER_UNITS = 500
# Of a digest as many as a message can show.
_DIGITS = 16


@dataclass
class IterationArguments:
    r"""
    > Iterations

    Args:
        iterations (`int`, *optional*, defaults to `1`):
            How many encoders are trained one after another, each from scratch: the first on units of MFCC, the next on
            units of a layer of the one before. Those before the last one lie beside `--output_dir`, in folders of its
            name with -iteration-1 and so on behind it, and are used again where the same command would make them.
        unit_encoder (`str`, *optional*):
            Folder or Hub id of an encoder that was trained before, to make the units of the first iteration of a layer
            of it, the one in the middle unless `--unit_layer` says another.
    """

    iterations: int = 1
    unit_encoder: str | None = None

    def __post_init__(self):
        if self.iterations < 1:
            raise UserError(f"`--iterations` must be at least 1, got {self.iterations}.")


def each_iteration(parser: RecipeParser) -> Iterator[tuple[tuple[Any, ...], str | None, "DoneIteration | None"]]:
    """Parse the flags for each iteration.

    Args:
        parser ([`~hfssl.cli.parser.RecipeParser`]):
            Whose classes are, in this order: encoder, data, [`IterationArguments`], config, probes, training.

    Yields:
        `tuple`: what was parsed, with the config's fields and the output folder of the iteration; the encoder of whose
        layer its units are made, `None` for MFCC; and the result of an iteration that is there already, which is not
        to be trained again.
    """
    parsed = parser.parse()
    arguments, output_dir = parsed[2], Path(parsed[5].output_dir)
    source = arguments.unit_encoder
    for number in range(1, arguments.iterations + 1):
        # not within it: each is a run of its own, with a folder of its own
        before = output_dir.with_name(f"{output_dir.name}-iteration-{number}")
        folder = output_dir if number == arguments.iterations else before
        words = sys.argv[1:] if folder == output_dir else [*sys.argv[1:], "--output_dir", str(folder)]
        parsed = parser.parse(words)
        if source is not None:
            fields = {"num_units": LATER_UNITS, **_shape_of(source)}
            parsed[3].update({name: value for name, value in fields.items() if name not in parser.given})
            parsed[3]["unit_features"] = "layer"
            parser.given |= set(fields)
        # it is there once all of the result is
        is_done = folder != output_dir and (folder / "config.json").exists()
        if arguments.iterations > 1 and not is_done:
            logger.info("Iteration %d of %d, in %s.", number, arguments.iterations, folder)
        yield parsed, source, DoneIteration(folder, number, arguments.iterations) if is_done else None
        source = str(folder)


@dataclass(frozen=True)
class DoneIteration:
    """The result of an earlier iteration, whose encoder makes the units of the next.

    Args:
        folder (`Path`):
            Where it lies.
        number, of (`int`):
            Which of how many iterations it is.
    """

    folder: Path
    number: int
    of: int

    def check(self, trainer: "SSLTrainer") -> None:
        """Refuse a result that is not what the trainer of this iteration would make.

        One that does not say with which settings it was made, as those of earlier versions do not, is used with a
        warning: the next iteration may be trained on its units already.

        Raises:
            UserError: naming what differs.
        """
        then = read_json(self.folder / RUN, default={}).get("identity")
        if then is None:
            logger.warning(
                "It is not known with which settings %s was made: %s there does not say so. It is used as iteration "
                "%d of %d. To train it anew, pass another `--output_dir`.",
                self.folder, RUN, self.number, self.of,
            )  # fmt: skip
            return
        now = identity_of(trainer)
        may_differ = {"world_size"}
        if then.get("data") == now.get("data"):
            may_differ.add("dataset")  # the same files in another place
        if then.get("world_size") != now["world_size"]:
            # a run may go on with another number of processes, so the next iteration may begin with it
            may_differ |= FOLLOW_PROCESSES | ({"learning_rate"} if trainer.args.base_learning_rate else set())
        changed = changed_settings(then, now, may_differ)
        if changed:
            raise UserError(
                f"{self.folder} holds an earlier iteration that this command would not make: {'; '.join(changed)}. "
                f"Pass another `--output_dir`, or delete {self.folder} to train it anew. To use its encoder all the "
                f"same, pass another `--output_dir` and `--unit_encoder {self.folder} --iterations "
                f"{self.of - self.number}`."
            )
        logger.info("Iteration %d of %d is done, in %s.", self.number, self.of, self.folder)


def encoders_begun_with(base_model: str | None, unit_encoder: str | None) -> dict[str, str]:
    """What makes an iteration this one beside data and flags: the weights that it continues, and those that make its
    units, by their digest where they lie in a folder. Both are always told: what is missing is not known."""
    return {
        "encoder": "from scratch" if base_model is None else _known_by(base_model),
        "unit_encoder": "none" if unit_encoder is None else _known_by(unit_encoder),
    }


def _known_by(encoder: str) -> str:
    return (weights_digest(encoder) or encoder)[:_DIGITS] if Path(encoder).is_dir() else encoder


def _shape_of(source: str) -> dict[str, int]:
    """What a config says of the encoder that units are made of, where the user says nothing."""
    from transformers import AutoConfig

    from ...modeling.audio import reads_waveforms, samples_per_frame

    try:
        encoder = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise UserError(
            f"`--unit_encoder {source}` is no folder with an encoder, nor one that the Hub gave: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    if not reads_waveforms(encoder):
        raise UserError(
            f"`--unit_encoder {source}` is a {encoder.model_type}, and units are made by an encoder of waveforms, "
            "such as a hubert, a wavlm or a wav2vec2. Pass one, or leave it out for units of MFCC."
        )
    return {
        "unit_layer": encoder.num_hidden_layers // 2, "unit_dim": encoder.hidden_size,
        "unit_hop": samples_per_frame(encoder),
    }  # fmt: skip
