"""What the audio recipes share: the flags about data, and from them source, held-out recordings and stream."""

import inspect
import logging
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ...data.audio.rows import AudioFormat
from ...data.audio.streams import audio_stream
from ...data.audio.views import AudioViews
from ...data.held_out import held_out_parts
from ...data.mixtures import open_mixture, stream_class
from ...data.modality import modality
from ...data.sources import identity
from ...data.stream import ExactStream
from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.base import SSLPreTrainedModel
from ...training.arguments import SSLTrainingArguments
from ..data import DataArguments, samples_a_block, stream_options


logger = logging.getLogger(__name__)


@dataclass
class AudioDataArguments(DataArguments):
    r"""
    > Data

    Args:
        dataset (`str`, *optional*):
            Hub id, folder, file or glob (wav, flac, ogg, mp3, opus, m4a and the like, with or without class folders,
            webdataset tars, parquet, arrow, `save_to_disk`), or several with their shares of the recordings, such as
            calls/:0.7,org/name:0.3. Left out: speech, which comes with hfssl and is made by a small synthesiser.
        audio_column (`str`, *optional*):
            Column with the recordings. Left out, it is found by its type.
        max_seconds (`float`, *optional*, defaults to `15.6`):
            Longer recordings become windows of equal length that are no longer.
        min_seconds (`float`, *optional*, defaults to `0.1`):
            Shorter recordings are left out.
        batch_seconds (`float`, *optional*, defaults to `32.0`):
            Seconds of sound in a batch of each process, padding included, instead of
            `--per_device_train_batch_size`. Recordings of about the same length share a batch.
    """

    audio_column: str | None = None
    max_seconds: float = 15.6
    min_seconds: float = 0.1
    batch_seconds: float = 32.0

    def __post_init__(self):
        super().__post_init__()
        for name in ("max_seconds", "min_seconds", "batch_seconds"):
            if not getattr(self, name) > 0:
                raise UserError(f"`--{name}` must be above 0, got {getattr(self, name):g}.")


class AudioData:
    """Held-out recordings and stream of an audio recipe.

    Args:
        arguments ([`AudioDataArguments`]):
            What the user asked for.
        checkpoint (`Path`, *optional*):
            Checkpoint that the run continues from.

    Attributes:
        source ([`~hfssl.data.sources.Source`]):
            The training split.
        held_out (`list[bytes]`):
            Encoded recordings that are never trained on.
        exclude (`frozenset[bytes]`):
            The [`~hfssl.data.sources.identity`] of each of them.
    """

    def __init__(self, arguments: AudioDataArguments, checkpoint: Path | None = None):
        self.arguments, self.checkpoint = arguments, checkpoint
        options = {
            "modality": "audio", "column": arguments.audio_column, "config": arguments.dataset_config,
            "streaming": arguments.streaming,
        }  # fmt: skip
        self.source = open_mixture(arguments.dataset, **options, split=arguments.split)
        logger.info("Data: %s.", self.source.description)
        parts = held_out_parts(self.source, arguments, options)
        held_out = list(chain.from_iterable(parts.values()))
        order = keyed.permutation(len(held_out), Use.HELD_OUT_IMAGES_ORDER) if len(parts) > 1 else range(len(held_out))
        self.held_out = [held_out[i] for i in order]  # evaluators may take the first ones only
        self.exclude = frozenset(map(identity, self.held_out))

    @property
    def embedded(self) -> str | None:
        """The name of the embedded set that this is."""
        embedded = modality("audio").embedded_set(self.arguments.dataset)
        return embedded.name if embedded else None

    def format(self, model: SSLPreTrainedModel, processor: Any) -> AudioFormat:
        """What encoder and method want of a row; `processor` is the encoder's feature extractor."""
        takes = frozenset(("sample_keys", "starts")) & set(inspect.signature(model.forward).parameters)
        return AudioFormat(
            model.encoder.config, getattr(model.config, "masking", {}), takes, self.arguments.max_seconds,
            self.arguments.min_seconds, bool(getattr(processor, "do_normalize", True)),
        )  # fmt: skip

    def stream(self, args: SSLTrainingArguments, model: SSLPreTrainedModel, processor: Any) -> ExactStream:
        """The stream of this process, for a method and the feature extractor of its encoder."""
        return audio_stream(
            self.source,
            self.format(model, processor),
            self.arguments.batch_seconds,
            **stream_options(args, self),
        )

    def stream_of_views(self, args: SSLTrainingArguments, views: AudioViews) -> ExactStream:
        """The stream of this process, of batches of `--per_device_train_batch_size` recordings."""
        return stream_class(self.source)(
            self.source,
            views.rows,
            views.collator(args.device),
            args.per_device_train_batch_size,
            **stream_options(args, self),
            block_cost=samples_a_block(args, "audio"),
            piece_cost=max(self.source.num_rows, 1) / len(self.source),
        )

    @property
    def settings(self) -> dict[str, Any]:
        """What of the data makes a run this run."""
        a = self.arguments
        return {
            "dataset": a.dataset or self.embedded, "split": a.split,
            "audio_column": self.source.inputs["audio"].column, "max_seconds": a.max_seconds,
            "min_seconds": a.min_seconds, "batch_seconds": a.batch_seconds,
        }  # fmt: skip
