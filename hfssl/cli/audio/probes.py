"""What the audio recipes measure while they train: the flags, and the evaluators."""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ...data.audio.views import AudioViews
from ...data.labelled import LabelledData
from ...data.stream import ExactStream
from ...evaluation.audio.held_out_loss import AudioLossEvaluator
from ...evaluation.audio.unit_quality import UnitQuality
from ...evaluation.evaluator import Evaluator
from ...evaluation.held_out_loss import HeldOutLossEvaluator
from ...evaluation.online_knn import OnlineKnn
from ...modeling.base import SSLPreTrainedModel
from ...training.arguments import SSLTrainingArguments
from ..probes import ProbeArguments
from .data import AudioData


# Columns of the labels of an embedded set, by what they are called.
EMBEDDED_LABELS = {"speech": {"word": "label", "speaker": "speaker"}}


@dataclass
class AudioProbeArguments(ProbeArguments):
    r"""
    > Probes

    Args:
        probe_dataset (`str`, *optional*, defaults to `"auto"`):
            Labelled recordings for k-NN during the run and for the table at its end, as `--dataset` names them; none
            for no probes. auto is the embedded speech (its words) in runs on it, else none.
        probe_max_samples (`int`, *optional*, defaults to `1000`):
            Use so many recordings of each split at most. `recipes/probe.py` takes all.
        probe_pooling (`str`, *optional*):
            mean, or cls of an AST. Left out: mean.
    """

    modality: ClassVar[str] = "audio"

    probe_dataset: str = "auto"
    probe_max_samples: int | None = 1_000
    probe_pooling: str | None = None


def audio_evaluators(
    model: SSLPreTrainedModel,
    data: AudioData,
    stream: ExactStream,
    processor: Any,
    arguments: AudioProbeArguments,
    args: SSLTrainingArguments,
    views: AudioViews | None = None,
) -> list[Evaluator]:
    """What the audio recipes measure while they train: held-out loss, and k-NN where there are labelled recordings.

    Args:
        model ([`~hfssl.modeling.base.SSLPreTrainedModel`]):
            What is trained.
        data ([`~hfssl.cli.audio.data.AudioData`]), stream ([`~hfssl.data.stream.ExactStream`]):
            What the run trains on.
        processor:
            Feature extractor that goes with the encoder.
        arguments ([`AudioProbeArguments`]):
            What the user asked for.
        args ([`SSLTrainingArguments`]):
            The run; of several processes each measures its share.
        views ([`~hfssl.data.audio.views.AudioViews`], *optional*):
            Of a method that compares views.
    """
    share = {"rank": args.process_index, "world_size": args.world_size}
    if views is not None:
        loss = HeldOutLossEvaluator(data.held_out, views, modality="audio", **share)
    else:
        batch_seconds = data.arguments.batch_seconds
        loss = AudioLossEvaluator(
            data.held_out, stream.transform, stream.collate, model, batch_seconds=batch_seconds, **share
        )
    evaluators: list[Evaluator] = [loss]
    probes = arguments.load(data.arguments.dataset)
    if probes is not None:
        pooling = arguments.probe_pooling or getattr(model.config, "pooling", None)
        evaluators.append(
            OnlineKnn(*probes, processor, pooling=pooling, named=arguments.named(data.arguments.dataset, *probes))
        )
        if hasattr(model, "units_of") and probes[1].labels.ndim == 1:
            evaluators.append(UnitQuality(_by_name(arguments, data, probes[1]), stream))
    return evaluators


def _by_name(arguments: AudioProbeArguments, data: AudioData, test: LabelledData) -> dict[str, LabelledData]:
    """What units are compared with: the labels of the probe, of an embedded set all of its labels."""
    columns = EMBEDDED_LABELS.get(data.embedded) if arguments.probe_dataset == "auto" else None
    if columns is None or arguments.probe_label_column is not None:
        return {arguments.probe_label_column or "label": test}
    load = replace(arguments, probe_dataset=data.embedded)
    return {
        name: replace(load, probe_label_column=column).load(data.arguments.dataset)[1]
        for name, column in columns.items()
    }
