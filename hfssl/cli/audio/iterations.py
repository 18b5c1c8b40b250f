"""HuBERT's iterations on the command line: each trains an encoder whose frames are the units of the next."""

import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...data.modality import modality
from ...errors import UserError
from ...evaluation.results import read_json
from ...machine import fit_to_leave
from ...report.record import RUN
from ..parser import RecipeParser
from .data import AudioDataArguments


logger = logging.getLogger(__name__)

# Units of the second and further iterations, where the user says nothing; as in the paper.
LATER_UNITS = 500


@dataclass
class IterationArguments:
    r"""
    > Iterations

    Args:
        iterations (`int`, *optional*, defaults to `1`):
            How many encoders are trained one after another, each from scratch: the first on units of MFCC, the next on
            units of a layer of the one before. Those before the last one lie beside `--output_dir`, in folders of its
            name with -iteration-1 and so on behind it.
        unit_encoder (`str`, *optional*):
            Folder or Hub id of an encoder that was trained before, to make the units of the first iteration of a layer
            of it, the one in the middle unless `--unit_layer` says another.
    """

    iterations: int = 1
    unit_encoder: str | None = None

    def __post_init__(self):
        if self.iterations < 1:
            raise UserError(f"`--iterations` must be at least 1, got {self.iterations}.")


def each_iteration(parser: RecipeParser) -> Iterator[tuple[tuple[Any, ...], str | None]]:
    """Parse the flags for each iteration that is not done yet.

    Args:
        parser ([`~hfssl.cli.parser.RecipeParser`]):
            Whose classes are, in this order: encoder, data, [`IterationArguments`], config, probes, training.

    Yields:
        `tuple`: what was parsed, with the config's fields and the output folder of the iteration; and the encoder of
        whose layer its units are made, `None` for MFCC.
    """
    parsed = parser.parse()
    arguments, output_dir = parsed[2], Path(parsed[5].output_dir)
    source = arguments.unit_encoder
    for number in range(1, arguments.iterations + 1):
        # not within it: each is a run of its own, with a folder of its own
        before = output_dir.with_name(f"{output_dir.name}-iteration-{number}")
        folder = output_dir if number == arguments.iterations else before
        # it is there once all of the result is
        if folder != output_dir and (folder / "config.json").exists():
            check_data(folder, parsed[1], arguments.iterations - number)
            logger.info("Iteration %d of %d is done, in %s.", number, arguments.iterations, folder)
        else:
            words = sys.argv[1:] if folder == output_dir else [*sys.argv[1:], "--output_dir", str(folder)]
            parsed = parser.parse(words)
            if source is not None:
                fields = {"num_units": LATER_UNITS, **_shape_of(source)}
                parsed[3].update({name: value for name, value in fields.items() if name not in parser.given})
                parsed[3]["unit_features"] = "layer"
                parser.given |= set(fields)
            if arguments.iterations > 1:
                logger.info("Iteration %d of %d, in %s.", number, arguments.iterations, folder)
            yield parsed, source
        source = str(folder)


def check_data(folder: Path, arguments: AudioDataArguments, to_come: int) -> None:
    """Refuse the encoder of an iteration that has heard other recordings, with so many iterations to come."""
    embedded = modality("audio").embedded_set(arguments.dataset)
    now = {"dataset": embedded.name if embedded else arguments.dataset, "split": arguments.split}
    then = read_json(folder / RUN, default={}).get("settings", {}).get("data", {})
    for name, value in now.items():
        if name in then and _last_names(then[name]) != _last_names(value):
            raise UserError(
                f"The earlier iteration in {folder} was trained with `--{name} {then[name]}`, and now it is {value}: "
                f"units would be those of other recordings. Pass another `--output_dir`, or delete {folder}. To use "
                f"this encoder all the same, pass another `--output_dir` and `--unit_encoder {folder} "
                f"--iterations {to_come}`."
            )


def _last_names(named: str | None) -> list[str]:
    """What a record keeps of local data, which may leave this machine: of each folder and file the name."""
    return [Path(part).name for part in str(fit_to_leave(named)).split(",")]


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
