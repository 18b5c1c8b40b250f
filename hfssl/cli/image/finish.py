"""The end of a run on images: held-out loss, probes, pictures, the result folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ...data.image.contact_sheet import contact_sheet, views_of
from ...data.image.masks import masked_splits
from ...data.image.views import Views
from ...data.label_columns import has_labels
from ...data.mixtures import parts_of
from ...evaluation.held_out_loss import HeldOutLossEvaluator
from ...evaluation.image.pictures import CAPTIONS
from ...evaluation.image.reconstructions import plot_reconstructions
from ...evaluation.online_knn import OnlineKnn
from ...evaluation.probes import probe_table
from ...modeling.channels import with_num_channels
from ...modeling.pooling import check_pooling, is_convolutional, pooling_code
from ...modeling.trial import num_channels_of
from ...modeling.vision import SSLVisionModel, load_vision_encoder, side
from ...training.checkpoints import STAGING
from ...training.trainer import SSLTrainer
from ..embed import WholeDataArguments
from ..finish import (
    LABELS_WOULD_SAY,
    changed_flags,
    contrasted,
    loss_line,
    method_name,
    next_folder,
    recipe_command,
    results_of,
    write_and_say,
)
from .data import ImageData
from .trained_input import trained_colors


# Of a checkpoint that was continued on images with masks.
_MASKS_WOULD_SAY = (
    "Whether patches of the checkpoint that was continued got better or worse, the masks beside the images say: the "
    "command with `--protocol patches` below. Of whole images labels say it: `--probe_dataset` takes them."
)
# Of a transformer whose stock class has one.
_NO_POOLER = (
    "\n# not `pooler_output`, where there is one: pre-training has no pooler, and its weights are drawn at random"
)


def finish_images(trainer: SSLTrainer, data: ImageData, views: Views, base_model: str | None = None) -> None:
    """Measure an image method, write the result folder with its pictures, and say it all.

    Args:
        trainer ([`SSLTrainer`]):
            The run, with the evaluators of [`~hfssl.cli.image.probes.image_evaluators`]; what k-NN was measured on
            while it trained is what the table of probes is made of.
        data ([`ImageData`]), views ([`Views`]):
            What it was trained on.
        base_model (`str`, *optional*):
            The checkpoint that the run continued.
    """
    evaluator, args = trainer.evaluators[0], trainer.args
    knn = next((each for each in trainer.evaluators if isinstance(each, OnlineKnn)), None)
    results = results_of(trainer, evaluator, ("loss",))
    name, output_dir = str(args.hub_model_id or args.output_dir), Path(args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    trainer.accelerator.print("\n" + loss_line(trainer, results[0], "images"))
    folder = output_dir / STAGING / "pictures"
    if knn is not None:
        results += probe_table(
            model, knn.processor, knn.train, knn.test, output_dir=folder, pooling=knn.pooling, name=str(output_dir),
            before=None if base_model is None else _as_it_came(base_model, views, model.device),
        )  # fmt: skip
    elif base_model is not None:
        trainer.accelerator.print(_MASKS_WOULD_SAY if _has_masks(data) else LABELS_WOULD_SAY)
    pooling = knn.pooling if knn is not None else getattr(model.config, "pooling", None)
    pictures, usage = [], ""
    if trainer.is_world_process_zero():
        pictures = _pictures(model, evaluator, data, views, folder / "assets")
        usage = _usage(model, name, views, pooling)
    labelled = knn.named if knn is not None else _own_labels(data)
    write_and_say(
        trainer, results=results, data=f"{data.source.description}; {views.description}".replace("\n", "; "),
        base_model=base_model, pipeline_tag="image-feature-extraction", pictures=pictures,
        contrasted=contrasted(trainer),
        usage=usage,
        facts={
            "modality": "image", "dataset": data.arguments.dataset, "pooling": pooling,
            "image_size": views.image_size, "labelled": labelled,
        },
        told=(f"\nPictures in {output_dir}/assets: {', '.join(picture.name for picture, _ in pictures)}",),
        commands=lambda folder: _commands(trainer, folder, data, views, pooling, labelled, base_model),
    )  # fmt: skip


def _as_it_came(base_model: str, views: Views, device: torch.device) -> PreTrainedModel:
    """The checkpoint that a run continued, as the method took it."""
    encoder = load_vision_encoder(base_model, views.image_size)
    return with_num_channels(encoder, views.num_channels, views.colors, trained_colors(base_model)).to(device)


def _has_masks(data: ImageData) -> bool:
    """Whether the protocol patches takes what a run was trained on: a folder, not a zip or a data set of the Hub, in
    which the masks of all images are together."""
    dataset = data.arguments.dataset
    return bool(data.source.mask_folders) and os.path.isdir(dataset) and "train" in masked_splits(dataset)


def _own_labels(data: ImageData) -> dict[str, Any] | None:
    """The flags of `recipes/probe.py` for what a run was trained on, if that has labels."""
    if data.embedded is not None:
        return {"dataset": data.embedded}
    names = ("dataset", "dataset_config", "split", "image_column")
    flags = {name: value for name, value in changed_flags(data.arguments).items() if name in names}
    return flags if len(parts_of(data.source)) == 1 and has_labels(data.source) else None


def _commands(
    trainer: SSLTrainer,
    folder: Path,
    data: ImageData,
    views: Views,
    pooling: str | None,
    labelled: dict | None,
    base_model: str | None,
) -> Sequence[str]:
    """What to do with the result: each line runs as it stands, on the data of the run."""
    method, model = method_name(trainer), trainer.accelerator.unwrap_model(trainer.model)
    commands = []
    if labelled is not None:
        protocol = "knn,linear,few_shot"
        commands += [
            recipe_command("probe", encoder=folder, **labelled, protocol=protocol, pooling=pooling),
            recipe_command("finetune", encoder=folder, **labelled),
        ]
    same_data = changed_flags(data.arguments)
    if _has_masks(data):
        named = {"protocol": "patches", "dataset": data.arguments.dataset}
        commands.append(recipe_command("probe", encoder=folder, beside=base_model, **named))
    # it learns of each patch, of which some are hidden; of images of one's own, scenes of letters say little
    elif data.embedded is not None and (views.preset.mask_ratio is not None or views.preset.has_noise):
        commands.append(recipe_command("probe", encoder=folder, beside=base_model, protocol="patches"))
    whole = {name: value for name, value in same_data.items() if hasattr(WholeDataArguments, name)}
    commands.append(recipe_command("embed", encoder=folder, **whole, pooling=pooling))
    size = getattr(model.encoder.config, "image_size", None)
    usual_colors = ((), (0, 1, 2)) if views.num_channels == 3 else ((),)
    # of the embedded images, and of an encoder that says for which size it is, it is taken anyway
    told = data.embedded is not None or size is not None and side(size) == views.image_size
    commands.append(
        recipe_command(
            method,
            encoder=folder,
            **same_data,
            image_size=None if told else views.image_size,
            colour_channels=list(views.colors) if views.colors not in usual_colors else None,
            pooling=getattr(model.config, "pooling", None),
            output_dir=next_folder(folder),
        )  # fmt: skip
    )
    return commands


def _usage(model: SSLVisionModel, name: str, views: Views, pooling: str | None) -> str:
    """Python that makes features of an image, pooled as the probes of the run take them."""
    config = model.encoder.config
    channels = num_channels_of(config)
    pooling = check_pooling(config, pooling)
    with torch.no_grad():
        blank = torch.zeros(1, channels, views.image_size, views.image_size, device=next(model.parameters()).device)
        outputs = model.encoder(blank)
    shape = ", ".join(map(str, outputs.last_hidden_state.shape[1:]))
    feature, options = pooling_code(config, pooling)
    # of a folder with a configuration of timm the automatic one is timm's, and knows nothing of the run
    processor = "BitImageProcessor" if config.model_type == "timm_wrapper" else "AutoImageProcessor"
    given = "" if channels in (1, 3) else ', input_data_format="channels_first"'
    what = _image_words(views, channels)
    imports = [
        f"import {module}" for module, used in (("numpy as np", "np."), ("torch", "torch.")) if used in feature + what
    ]
    return "\n".join(
        [
            *imports,
            *(["from PIL import Image"] if "Image." in what else []),
            f"from transformers import {', '.join(sorted((processor, 'AutoModel')))}\n",
            f'encoder = AutoModel.from_pretrained("{name}")  # last_hidden_state: (batch_size, {shape})',
            f'processor = {processor}.from_pretrained("{name}")',
            f'{what}outputs = encoder(**processor(image, return_tensors="pt"{given}){options})',
            f"feature = {feature}  # the pooling that was measured: {pooling}"
            + ("" if is_convolutional(config) else _NO_POOLER),
        ]
    )


def _image_words(views: Views, channels: int) -> str:
    """What the image is that the processor takes, and for values of more than 8 bits Python that makes it."""
    is_picture, ends = channels in (1, 3), views.value_range
    what = ""
    if views.colors and (not is_picture or views.colors != (0, 1, 2)):
        what = f"# channels {', '.join(map(str, views.colors))} are red, green and blue\n"
    if ends is None:
        return what if is_picture else f"# image: an array of bytes ({channels}, height, width)\n{what}"
    low, high = ends[::2], ends[1::2]
    shape = f"({channels}, height, width)"
    if is_picture:
        grey = "(height, width)" if len(low) == 1 else ""
        shape = " or ".join(filter(None, (grey, "(height, width, 3)" if channels == 3 else "")))
    if len(low) == 1:
        bounds = f"low, high = {low[0]}, {high[0]}"
    else:
        places = "" if is_picture else "[:, None, None]"
        bounds = f"low, high = np.array({list(low)}){places}, np.array({list(high)}){places}"
    image = "np.rint((values.clip(low, high) - low) * (255 / (high - low))).astype(np.uint8)"
    return (
        f"# values: those of a file {shape}, of which all below `low` are black and all above `high` are white\n"
        f"{what}{bounds}\nimage = {f'Image.fromarray({image})' if is_picture else image}\n"
    )


def _pictures(
    model: SSLVisionModel, evaluator: HeldOutLossEvaluator, data: ImageData, views: Views, folder: Path
) -> Sequence[tuple[Path, str]]:
    """What there is to look at, with what it shows."""
    if hasattr(model, "reconstruct"):
        device = next(model.parameters()).device
        plot_reconstructions(
            model, evaluator.batch(device), views.mean, views.std, folder / "reconstructions.png"
        )  # fmt: skip
    batch = views_of(data.held_out[:6], views)
    hidden = model.hidden_pixels(batch) if hasattr(model, "hidden_pixels") else None
    contact_sheet(batch, views, folder / "views.png", hidden=hidden)
    return [(folder / name, caption) for name, caption in CAPTIONS.items() if (folder / name).is_file()]
