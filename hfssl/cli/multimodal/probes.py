"""What the recipes of pairs measure while they train."""

import logging
from dataclasses import dataclass
from typing import Any

from ...data.labelled import open_labelled
from ...data.multimodal.rows import PairRows
from ...data.sources import available_splits
from ...errors import UserError
from ...evaluation.evaluator import Evaluator
from ...evaluation.multimodal.prompts import Prompts, read_prompts
from ...evaluation.multimodal.retrieval import RetrievalEvaluator
from ...evaluation.multimodal.zero_shot import ZeroShotEvaluator
from ...training.arguments import SSLTrainingArguments
from .data import PairData


logger = logging.getLogger(__name__)


@dataclass
class PairProbeArguments:
    r"""
    > Zero-shot

    Args:
        zero_shot_dataset (`str`, *optional*):
            Labelled images, of which a split for tests is given the class whose name is nearest while the run trains.
            Left out: the colours of the embedded characters, where these are trained on.
        zero_shot_label (`str`, *optional*):
            Column of their labels; found by its type and name when left out.
        classes (`str`, *optional*):
            File with what the classes are called: a name a line in their order, or a JSON object from class to names.
        templates (`str`, *optional*):
            File with sentences, one a line, {} where a name stands. Left out: a photo of a {}, and of
            the embedded characters the name alone.
        max_zero_shot (`int`, *optional*, defaults to `1000`):
            Most images to measure on.
    """

    zero_shot_dataset: str | None = None
    zero_shot_label: str | None = None
    classes: str | None = None
    templates: str | None = None
    max_zero_shot: int = 1000


def pair_evaluators(
    data: PairData, rows: PairRows, processor: Any, arguments: PairProbeArguments, args: SSLTrainingArguments
) -> list[Evaluator]:
    """Loss and retrieval on held-out pairs, and zero-shot classification where there are labelled images.

    Args:
        data ([`PairData`]), rows ([`~hfssl.data.multimodal.rows.PairRows`]):
            What the run trains on.
        processor ([`~hfssl.modeling.pair_processor.PairProcessor`]):
            Goes with the encoders.
        arguments ([`PairProbeArguments`]):
            What the user asked for.
        args ([`SSLTrainingArguments`]):
            The run; of several processes each measures its share.
    """
    share = {"rank": args.process_index, "world_size": args.world_size}
    batch_size = max(args.per_device_train_batch_size, 2)
    evaluators: list[Evaluator] = [
        RetrievalEvaluator(data.held_out, rows, contents=data.exclude, batch_size=batch_size, **share)
    ]
    dataset, label = arguments.zero_shot_dataset, arguments.zero_shot_label
    if dataset is None and data.embedded == "characters":
        dataset, label = "characters", label or "color"
    if dataset is None:
        return evaluators
    if data.names != ("image", "text"):
        raise UserError(
            f"`--zero_shot_dataset` is for pairs of image and text, and `--pair` says {','.join(data.names)}. Leave "
            "it out."
        )
    splits = available_splits(dataset, modality="image")
    split = next((split for split in ("test", "validation", *splits) if split in splits), "train")
    labelled = open_labelled(dataset, split, label_column=label, max_samples=arguments.max_zero_shot)
    prompts = read_prompts(labelled.class_names, arguments.classes, arguments.templates, dataset)
    if data.text_encoder is None:  # what a checkpoint has read is not known
        _warn_of_strange_names(prompts, data.known_captions)
    evaluators.append(ZeroShotEvaluator(labelled, prompts, processor.image_processor, rows.sides["text"], split=split))
    return evaluators


def _warn_of_strange_names(prompts: Prompts, captions: list[str]) -> None:
    never_said = prompts.never_said(captions)
    if never_said:
        logger.warning(
            "Zero-shot: of %d of %d classes no word of the name stands in any of %s captions looked at, such as %r: "
            "images are not told by words that were never read. Say with `--classes` what they are called there; a "
            "JSON file may give several names a class.",
            len(never_said), len(prompts.names), f"{len(captions):,}", never_said[0],
        )  # fmt: skip
