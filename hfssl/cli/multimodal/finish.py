"""The end of a run on pairs: retrieval beside the untrained model, zero-shot, pictures, the result folder."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING

from ...data.held_out import VALIDATION_SPLITS
from ...data.multimodal.rows import PairCollator, PairRows
from ...data.sources import available_splits
from ...evaluation.image.features import resized_images
from ...evaluation.multimodal.embedders import TowerPair
from ...evaluation.multimodal.pictures import draw_pairs
from ...evaluation.multimodal.retrieval import RetrievalEvaluator, distinct
from ...evaluation.multimodal.zero_shot import ZeroShotEvaluator
from ...evaluation.results import format_table
from ...modeling.pairs import PairModel
from ...training.checkpoints import STAGING
from ...training.trainer import SSLTrainer
from ..finish import changed_flags, method_name, next_folder, recipe_command, results_of, write_and_say
from .data import PairData
from .presets import SIGLIP_LENGTH


# Of held-out pairs, those among which pictures look for neighbours.
_MOST_DRAWN = 200


def finish_pairs(trainer: SSLTrainer, data: PairData, rows: PairRows, base_model: str | None = None) -> None:
    """Measure a method of pairs, write the result folder with its pictures, and say it all.

    Args:
        trainer ([`SSLTrainer`]):
            The run, with the evaluators of [`~hfssl.cli.multimodal.probes.pair_evaluators`].
        data ([`PairData`]), rows ([`~hfssl.data.multimodal.rows.PairRows`]):
            What it was trained on.
        base_model (`str`, *optional*):
            The pair that the run continued.
    """
    results = []
    for evaluator in trainer.evaluators:
        if isinstance(evaluator, RetrievalEvaluator | ZeroShotEvaluator):
            results += results_of(trainer, evaluator, evaluator.metrics)
    name, output_dir = str(trainer.args.hub_model_id or trainer.args.output_dir), Path(trainer.args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    pictures: list[tuple[Path, str]] = []
    if trainer.is_world_process_zero() and data.names == ("image", "text"):
        pair = TowerPair(model, trainer.processing_class.image_processor, rows.sides["text"])
        images, texts, belong = distinct(data.held_out[:_MOST_DRAWN])
        embeds = pair.images(images), pair.texts(texts)
        shown = resized_images(pair.image_processor, images)
        pictures = draw_pairs(shown, texts, *embeds, belong, output_dir / STAGING / "pictures" / "assets")
    before = "the pair as it came" if base_model else "the same encoders with new weights"
    told = ["\n" + format_table(results), f"  before: {before}", *_duplicates(trainer)]
    if pictures:
        told.append(f"\nPictures in {output_dir}/assets: {', '.join(picture.name for picture, _ in pictures)}")
    is_joint = model.stock_class is not None
    write_and_say(
        trainer, results=results, data=data.source.description, base_model=base_model,
        pipeline_tag="zero-shot-image-classification" if _in_pipeline(model) else "feature-extraction",
        pictures=pictures,
        usage=_usage(model, name) if is_joint else _tower_usage(data, name),
        facts={
            "modality": "multimodal", "dataset": data.arguments.dataset, "pair": ",".join(data.names),
            "max_length": data.arguments.max_length,
        },
        told=tuple(told), commands=lambda folder: _commands(trainer, folder, data, is_joint),
    )  # fmt: skip


def _duplicates(trainer: SSLTrainer) -> list[str]:
    collator = trainer.stream.collate
    if not isinstance(collator, PairCollator) or not collator.num_duplicates:
        return []
    share = collator.num_duplicates / collator.num_rows
    taken = "were no negatives of it" if collator.with_duplicates else "were its negatives (`--mask_duplicates true`)"
    where = "their batch" if trainer.args.world_size == 1 else "the part of their batch that this process had"
    return [f"  {share:.1%} of the pairs had the image or the caption of another pair of {where}, and {taken}"]


def _in_pipeline(model: PairModel) -> bool:
    """Whether the pipelines of transformers know what both towers are exported as."""
    known = getattr(model.stock_class, "config_class", None) in MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING
    return known and not (
        model.towers["text"].reads_last_token and model.config_of("text").max_position_embeddings != SIGLIP_LENGTH
    )


def _usage(model: PairModel, name: str) -> str:
    padding = '"max_length"' if model.towers["text"].reads_last_token else "True"
    ask = (
        f'ask = pipeline("zero-shot-image-classification", "{name}")\n'
        'ask("cat.png", candidate_labels=["a cat", "a dog"], hypothesis_template="{{}}")\n\n'
        if _in_pipeline(model)
        else ""
    )
    return (
        "import torch\n"
        f"from transformers import AutoImageProcessor, AutoModel, AutoTokenizer{', pipeline' if ask else ''}\n\n"
        f'{ask}model = AutoModel.from_pretrained("{name}")\n'
        f'processor = AutoImageProcessor.from_pretrained("{name}")\n'
        f'tokenizer = AutoTokenizer.from_pretrained("{name}")\n'
        'of_image = model.get_image_features(**processor(image, return_tensors="pt")).pooler_output\n'
        'of_text = model.get_text_features(**tokenizer(["a cat"], padding='
        f'{padding}, return_tensors="pt")).pooler_output\n'
        "similarity = torch.cosine_similarity(of_image, of_text)"
    )


def _tower_usage(data: PairData, name: str) -> str:
    lines = [f'{side} = AutoModel.from_pretrained("{name}", subfolder="{side}")' for side in data.names]
    return "from transformers import AutoModel\n\n" + "\n".join(lines) + "  # the projections: extras.safetensors"


def _commands(trainer: SSLTrainer, folder: Path, data: PairData, is_joint: bool) -> Sequence[str]:
    """What to do with the result: each line runs as it stands, on the data of the run."""
    commands = []
    if is_joint:
        same: dict[str, Any] = {"model": folder}
        if data.embedded is not None:
            commands.append(
                recipe_command("zero_shot", **same, dataset="characters", label_column="color", pairs="characters")
            )
            # characters in a colour or a style that was never seen with them
            commands.append(recipe_command("zero_shot", **same, pairs="characters", split="composition"))
        elif (split := _new_split(data)) is not None:
            columns = {
                name: getattr(data.arguments, name) for name in ("dataset_config", "image_column", "caption_column")
            }
            commands.append(recipe_command("zero_shot", **same, pairs=data.arguments.dataset, split=split, **columns))
        code = (
            f"from transformers import AutoModel; print(AutoModel.from_pretrained({json.dumps(str(folder))})"
            ".logit_scale.exp())"
        )
        commands.append(shlex.join(["python", "-c", code]))
        commands.append(
            recipe_command(
                method_name(trainer), encoder=folder, **changed_flags(data.arguments, ("tokenizer", "vocab_size")),
                output_dir=next_folder(folder),
            )
        )  # fmt: skip
    if "image" in data.names and data.embedded is not None:
        commands.append(recipe_command("probe", encoder=folder / "image", dataset=data.arguments.dataset))
    return commands


def _new_split(data: PairData) -> str | None:
    """A split of the data that was not trained on, `None` where there is none, or several data sets."""
    a = data.arguments
    if len(str(a.dataset).split(",")) > 1:
        return None
    splits = set(available_splits(a.dataset, modality="image", config=a.dataset_config)) - {a.split}
    return next((split for split in ("test", *VALIDATION_SPLITS) if split in splits), None)
