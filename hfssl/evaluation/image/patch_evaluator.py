"""What the protocols that look at patches share: the encoder, and what stands beside it."""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from ...machine import choose_precision, process_state
from ...modeling.base import evaluating
from ...modeling.image_processing import processed_channels
from ..evaluator import EvaluationError, Evaluator
from ..probe_features import ENCODER, RANDOM_INIT, RAW_INPUT
from ..results import Result, write_results
from .encoder import VisionEncoder
from .patch_features import PatchEncoder, raw_patches


if TYPE_CHECKING:
    from ...data.labelled import LabelledData


class PatchMaps(dict):
    """Encoders of patches by the names of their figures: the one that is judged, untrained, and others beside it.

    Args:
        vision ([`VisionEncoder`]):
            The one that is judged.
        encoders (`dict[str, PatchEncoder]`):
            It and the others.
        precision (`str`):
            At which they work.
    """

    def __init__(self, vision: VisionEncoder, encoders: dict[str, PatchEncoder], precision: str):
        super().__init__(encoders)
        self.vision, self.precision = vision, precision

    @property
    def kinds(self) -> tuple[str, ...]:
        """What there are features of: the encoders, and the pixels themselves."""
        return (*self, RAW_INPUT)

    def maps(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Features `(n, rows, columns, dim)` of `uint8` images `(n, num_channels, size, size)`, by what they are of.

        Raises:
            EvaluationError: where they are no numbers, or one of the encoders has another grid.
        """
        maps = {kind: encoder(images) for kind, encoder in self.items()}
        grid = tuple(maps[ENCODER].shape[1:3])
        for kind, each in maps.items():
            if not each.isfinite().all():
                raise EvaluationError(
                    f"The features of {kind} hold values that are no numbers: its training diverged, so take an "
                    "earlier checkpoint."
                )
            if tuple(each.shape[1:3]) != grid:
                raise EvaluationError(
                    f"Of images of {images.shape[-1]} × {images.shape[-1]} pixels {kind} has {each.shape[1]} × "
                    f"{each.shape[2]} patches, and the encoder {grid[0]} × {grid[1]}: probe each by itself."
                )
        return maps | {RAW_INPUT: raw_patches(images, *grid)}


@dataclass
class PatchEvaluator(Evaluator):
    r"""
    Base of the protocols on patches. A subclass implements [`results`], which the main process alone calls: others
    would wait for the fits in any case.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Images to learn from and to measure on.
        batch_size (`int`, *optional*, defaults to `256`):
            Images of the encoder's own size a forward pass; of larger ones fewer, of as many pixels together.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not; `auto` takes bf16 where the hardware computes in it.
        beside (`dict[str, str | Path | PreTrainedModel]`, *optional*):
            Other encoders to measure likewise, by the names of their columns: folders, Hub ids, or models of the same
            image processor. They get the same images, and must have the same channels and as many patches.
    """

    train: "LabelledData"
    test: "LabelledData"
    batch_size: int = 256
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    beside: dict[str, Any] | None = None

    @abstractmethod
    def results(
        self, encoders: PatchMaps, output_dir: str | Path | None, command: str | None, name: str | None
    ) -> list[Result]:
        """What the protocol finds of encoders that are in evaluation mode."""

    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: Any = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
        name: str | None = None,
    ) -> list[Result]:
        made = None
        if process_state().is_main_process:
            with self._encoders(VisionEncoder(encoder, processor)) as encoders:
                made = self.results(encoders, output_dir, command, name)
            if output_dir is not None:
                write_results(Path(output_dir) / "results.json", made)
        return broadcast_object_list([made])[0]

    @contextmanager
    def _encoders(self, vision: VisionEncoder) -> Iterator[PatchMaps]:
        precision = choose_precision(self.precision, use_cpu=process_state().device.type == "cpu")
        trained = vision.load()
        # a model that was given as an object stays where it is
        device = trained.device if vision.model is trained else process_state().device
        models = {ENCODER: (vision, trained), RANDOM_INIT: (vision, vision.random_init(seed=0))}
        for name, source in (self.beside or {}).items():
            other = VisionEncoder(source, None if isinstance(source, (str, Path)) else vision.processor)
            here, there = (processed_channels(each.processor) for each in (vision, other))
            if here != there:
                raise EvaluationError(
                    f"{other.name} takes images of {there} channels, and {vision.name} of {here}: what stands beside "
                    "an encoder gets the same images."
                )
            models[name] = other, other.load()
        with ExitStack() as stack:
            for _, model in models.values():
                stack.enter_context(evaluating(model))
            made = {kind: PatchEncoder(each, model.to(device), precision) for kind, (each, model) in models.items()}
            yield PatchMaps(vision, made, precision)
