"""The end of a run on recordings: held-out loss, probes by layer, pictures, the result folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...data.audio.contact_sheet import contact_sheet
from ...data.audio.rows import AudioRows
from ...data.audio.view_sheet import view_sheet
from ...data.audio.views import AudioViews
from ...data.label_columns import has_labels
from ...data.mixtures import parts_of
from ...data.stream import Block
from ...evaluation.audio.pictures import CAPTIONS
from ...evaluation.audio.unit_quality import UnitQuality, plot_units
from ...evaluation.online_knn import OnlineKnn
from ...evaluation.probes import probe_table
from ...modeling.base import SSLPreTrainedModel
from ...modeling.frames import check_pooling, is_grid
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
from .data import AudioData


# The page does not leave the machine: it holds recordings.
_LISTEN = "To listen to, in the folder of the run: assets/%s.html."
# Held-out recordings whose units are counted.
_COUNTED = 64


def finish_audio(
    trainer: SSLTrainer, data: AudioData, base_model: str | None = None, views: AudioViews | None = None
) -> None:
    """Measure a method for recordings, write the result folder, and say it all.

    Args:
        trainer ([`SSLTrainer`]):
            The run, with the evaluators of [`~hfssl.cli.audio.probes.audio_evaluators`]; what k-NN was measured on
            while it trained is what the table of probes is made of.
        data ([`AudioData`]):
            What it was trained on.
        base_model (`str`, *optional*):
            The checkpoint that the run continued.
        views ([`~hfssl.data.audio.views.AudioViews`], *optional*):
            Of a method that compares views.
    """
    evaluator, args = trainer.evaluators[0], trainer.args
    knn = next((each for each in trainer.evaluators if isinstance(each, OnlineKnn)), None)
    results = results_of(trainer, evaluator, ("loss",))
    name, output_dir = str(args.hub_model_id or args.output_dir), Path(args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model).eval()
    trainer.accelerator.print("\n" + loss_line(trainer, results[0], "recordings", evaluator.loss_term))
    results += [
        record
        for each in trainer.evaluators
        if isinstance(each, UnitQuality)
        for record in each.results(model, str(output_dir))
    ]
    folder = output_dir / STAGING / "pictures"
    if knn is not None:
        results += probe_table(
            model, knn.processor, knn.train, knn.test, ("knn", "linear", "layers"), output_dir=folder,
            pooling=knn.pooling, name=str(output_dir), before=base_model,
        )  # fmt: skip
    elif base_model is not None:
        trainer.accelerator.print(LABELS_WOULD_SAY)
    pooling = check_pooling(model.encoder.config, knn.pooling if knn else getattr(model.config, "pooling", None))
    pictures = [(folder / "assets" / file, caption) for file, caption in CAPTIONS.items()]
    pictures = [picture for picture in pictures if picture[0].is_file()]
    if trainer.is_world_process_zero():
        pictures += _to_listen_to(model, trainer, data, folder / "assets", views)
    labelled = knn.named if knn is not None else _own_labels(data)
    told = f"\nPictures in {output_dir}/assets: {', '.join(path.name for path, _ in pictures)}" if pictures else ""
    write_and_say(
        trainer, results=results, data=data.source.description + (f"; {views.description}" if views else ""),
        base_model=base_model, pipeline_tag="feature-extraction", pictures=pictures, contrasted=contrasted(trainer),
        usage=_usage(model, name, pooling),
        facts={"modality": "audio", "dataset": data.arguments.dataset, "pooling": pooling, "labelled": labelled},
        told=(told,) if told else (), commands=lambda folder: _commands(trainer, folder, data, labelled),
    )  # fmt: skip


def _to_listen_to(
    model: SSLPreTrainedModel, trainer: SSLTrainer, data: AudioData, folder: Path, views: AudioViews | None
) -> list[tuple[Path, str]]:
    """Pictures of some held-out recordings and of what is made of them; a page with players lies beside each."""
    if views is not None:
        path = folder / "views.png"
        view_sheet(data.held_out, views, path)
        return [(path, f"Spectrograms of held-out recordings, and views of them as in training. {_LISTEN % 'views'}")]
    path, units = folder / "recordings.png", None
    if hasattr(model, "units_of"):

        def units(sound: np.ndarray) -> np.ndarray:
            return model.units_of(torch.from_numpy(sound)[None].to(model.device))[0].cpu().numpy()

    format = data.format(model, trainer.processing_class)
    contact_sheet(data.held_out, format, path, units=units)
    shown = "what is hidden of them in training" + ("" if units is None else ", and the units of their frames")
    pictures = [(path, f"Held-out recordings, {shown}. {_LISTEN % 'recordings'}")]
    if units is not None:
        counts = np.zeros(model.config.num_units, np.int64)
        for _, _, sound in AudioRows(format).decoded(Block({"audio": data.held_out[:_COUNTED]}, np.zeros(0), 0))[0]:
            counts += np.bincount(units(format.inputs(sound)), minlength=len(counts))
        plot_units(counts, folder / "units.png")
        pictures.append((folder / "units.png", "How often each unit is there in held-out recordings."))
    return pictures


def _own_labels(data: AudioData) -> dict[str, Any] | None:
    """The flags of `recipes/probe.py` for what a run was trained on, if that has labels."""
    if data.embedded is not None:
        return {"dataset": data.embedded}
    names = ("dataset", "dataset_config", "split", "audio_column")
    flags = {name: value for name, value in changed_flags(data.arguments).items() if name in names}
    return flags if len(parts_of(data.source)) == 1 and has_labels(data.source) else None


def _commands(trainer: SSLTrainer, folder: Path, data: AudioData, labelled: dict | None) -> Sequence[str]:
    """What to do with the result: each line runs as it stands, on the data of the run."""
    commands, model = [], trainer.accelerator.unwrap_model(trainer.model)
    if labelled is not None:
        commands.append(recipe_command("probe", encoder=folder, **labelled, protocol="knn,linear,few_shot,layers"))
        if not model.loader:  # there is a stock classifier
            commands.append(recipe_command("finetune", encoder=folder, **labelled))
    same_data = changed_flags(data.arguments)
    whole = {name: value for name, value in same_data.items() if hasattr(WholeDataArguments, name)}
    return [
        *commands, recipe_command("embed", encoder=folder, **whole),
        recipe_command(
            method_name(trainer), modality=None if model.method.modality == "audio" else "audio", encoder=folder,
            **same_data, pooling=getattr(model.config, "pooling", None), output_dir=next_folder(folder),
        ),
    ]  # fmt: skip


def _usage(model: Any, name: str, pooling: str) -> str:
    """Python that makes a feature of a recording, pooled as the probes of the run take it."""
    if model.loader:
        return model.loader
    config = model.encoder.config
    feature = "outputs.last_hidden_state.mean(1)"
    if is_grid(config):
        feature = f"outputs.last_hidden_state[:, {0 if pooling == 'cls' else '2:'}]"
        feature += "" if pooling == "cls" else ".mean(1)"
    return (
        "import soundfile\nfrom transformers import AutoFeatureExtractor, AutoModel\n\n"
        f'encoder = AutoModel.from_pretrained("{name}")\n'
        f'extractor = AutoFeatureExtractor.from_pretrained("{name}")\n'
        'waveform, rate = soundfile.read("recording.wav")  # one channel, 16,000 samples a second\n'
        'outputs = encoder(**extractor(waveform, sampling_rate=rate, return_tensors="pt"))\n'
        f"feature = {feature}  # (1, {config.hidden_size})"
    )
