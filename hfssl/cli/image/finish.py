"""The end of a run on images: held-out loss, probes, pictures, the result folder."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ...data.image.contact_sheet import contact_sheet
from ...data.image.views import Views
from ...evaluation.held_out_loss import HeldOutLossEvaluator
from ...evaluation.image.reconstructions import plot_reconstructions
from ...evaluation.online_knn import OnlineKnn
from ...evaluation.probes import probe_table
from ...evaluation.results import Result
from ...modeling.vision import SSLVisionModel
from ...training.checkpoints import STAGING
from ...training.trainer import SSLTrainer
from ..finish import method_name, results_of, write_and_say
from .data import ImageData


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
    trainer.accelerator.print("\n" + _loss_line(trainer, results[0]))
    folder = output_dir / STAGING / "pictures"
    if knn is not None:
        results += probe_table(
            model, knn.processor, knn.train, knn.test, output_dir=folder, pooling=knn.pooling, name=str(output_dir),
        )  # fmt: skip
    pictures, shape = [], ""
    if trainer.is_world_process_zero():
        pictures = _pictures(model, evaluator, data, views, folder / "assets")
        with torch.no_grad():
            blank = torch.zeros(1, 3, views.image_size, views.image_size, device=args.device)
            shape = ", ".join(map(str, model.encoder(blank).last_hidden_state.shape[1:]))
    pooling = knn.pooling if knn is not None else getattr(model.config, "pooling", None)
    method, words = method_name(trainer), f" --pooling {pooling}" if pooling else ""
    probe_data = f" --dataset {data.arguments.dataset}" if data.arguments.dataset else ""
    write_and_say(
        trainer, results=results, data=f"{data.source.description}; {views.description}".replace("\n", "; "),
        base_model=base_model, pipeline_tag="image-feature-extraction", pictures=pictures,
        contrasted=_contrasted(trainer) if model.method.contrasts_batch else None,
        usage="from transformers import AutoImageProcessor, AutoModel\n\n"
        f'encoder = AutoModel.from_pretrained("{name}")  # last_hidden_state: (batch_size, {shape})\n'
        f'processor = AutoImageProcessor.from_pretrained("{name}")\n'
        'features = encoder(**processor(image, return_tensors="pt")).last_hidden_state',
        facts={
            "modality": "image", "dataset": data.arguments.dataset, "pooling": pooling,
            "image_size": views.image_size,
        },
        told=(f"\nPictures in {output_dir}/assets: {', '.join(picture.name for picture, _ in pictures)}",),
        commands=(
            f"accelerate launch recipes/probe.py --encoder {{folder}} --protocol knn,linear,few_shot{words}",
            "accelerate launch recipes/finetune.py --encoder {folder}",
            f"accelerate launch recipes/{method}.py{probe_data or ' --dataset my_images/'} --encoder {{folder}} "
            f"--output_dir outputs/{method}-2",
        ),
    )  # fmt: skip


def _contrasted(trainer: SSLTrainer) -> tuple[int, int]:
    """Images that are compared at once in training, and in the held-out loss."""
    return trainer.args.per_device_train_batch_size * trainer.args.world_size, trainer.evaluators[0].batch_size


def _loss_line(trainer: SSLTrainer, result: Result) -> str:
    """The held-out loss in words, beside the start and what outputs that say nothing would give."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    in_training, held_out = _contrasted(trainer)
    line = f"Held-out loss ({result.num_eval:,} images): {result.value:.4f}"
    if "before" in result.baselines:
        line += f", before training {result.baselines['before']:.4f}"
    chance = result.baselines.get("chance")
    if chance is not None:
        line += f", chance {chance:.4f}" + (", which it is not below" if result.value >= chance else "")
    else:
        line += f"; that of {model.method.title} has no level of chance"
    if model.method.contrasts_batch:
        queue = getattr(model.config, "queue_size", 0)
        line += f" ({held_out:,} images contrasted at once, in training {in_training:,}"
        line += f"; a queue of {queue:,} beside them)" if queue else ")"
    return line


def _pictures(
    model: SSLVisionModel, evaluator: HeldOutLossEvaluator, data: ImageData, views: Views, folder: Path
) -> Sequence[tuple[Path, str]]:
    """What there is to look at, with what it shows."""
    captions = {
        "neighbours.png": "Test images, and the training images with the nearest features (green: the same class).",
        "feature_map.png": "Features of the test images, in two dimensions.",
        "patches.png": "What the patches of an image tell apart.",
    }
    pictures = [(folder / name, caption) for name, caption in captions.items() if (folder / name).is_file()]
    if hasattr(model, "reconstruct"):
        path = folder / "reconstructions.png"
        device = next(model.parameters()).device
        plot_reconstructions(model, evaluator.batch(device), views.mean, views.std, path)
        pictures.insert(0, (path, "Held-out images, what the encoder saw of them, and the reconstruction."))
    path = folder / "views.png"
    contact_sheet(data.held_out[:6], views, path)
    pictures.append((path, "Held-out images, and views of them as in training."))
    return pictures
