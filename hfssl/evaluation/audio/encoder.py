"""An audio encoder as probes and fine-tuning need it: its feature extractor, and models with old or new weights."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedConfig, PreTrainedModel

from ...errors import first_line
from ...modeling.base import evaluating
from ...modeling.convolutions import channels_last_convolutions, keep_channels_last
from ...modeling.frames import is_grid, layer_features
from ...modeling.grouped import keep_narrow_groups_exact
from ..encoder_folder import empty_encoder
from ..evaluator import EvaluationError
from ..processed_encoder import ProcessedEncoder


MAIN_INPUTS = ("input_values", "input_features")
# What is shorter is filled up with silence: convolutions need 25 ms, a patch of a spectrogram 160.
LEAST_SECONDS = 0.2
# What is longer goes through an encoder in windows, whose features are averaged by their lengths.
MOST_SECONDS = 30.0


class AudioEncoder(ProcessedEncoder):
    """An audio encoder and its feature extractor, see [`~hfssl.evaluation.processed_encoder.ProcessedEncoder`]."""

    processor_words: ClassVar[str] = "feature extractor"
    processor_example: ClassVar[str] = "Wav2Vec2FeatureExtractor(return_attention_mask=True)"
    auto_processor: ClassVar[type] = AutoFeatureExtractor
    auto_classifier: ClassVar[type] = AutoModelForAudioClassification
    classifies: ClassVar[str] = "audio classification"

    def check_modality(self) -> None:
        model = empty_encoder(self.name, self.config)
        if model.main_input_name not in MAIN_INPUTS:
            raise EvaluationError(
                f'{self.name} is a "{self.config.model_type}" model, which takes `{model.main_input_name}` and no '
                "recordings: audio probes need an encoder of sound, such as a HuBERT or an AST."
            )
        if self.config.is_encoder_decoder:
            raise EvaluationError(
                f"{self.name} is a {self.config.model_type} of an encoder and a decoder: features are those of an "
                "encoder alone, such as a HuBERT."
            )

    def try_on_a_sample(self, model: PreTrainedModel) -> None:
        """Refuse a feature extractor that makes what the encoder does not take."""
        hiss = 0.1 * np.random.default_rng(0).standard_normal(self.sampling_rate // 2).astype(np.float32)
        try:
            with evaluating(model):
                encode_layers(model, self.processor, [hiss])
        except (RuntimeError, ValueError, IndexError, KeyError, TypeError) as error:
            raise EvaluationError(
                f"{self.name} does not take what its feature extractor ({type(self.processor).__name__}) makes "
                f"({first_line(error).rstrip('.')}): save the one it was pre-trained with beside it."
            ) from error

    def fresh_config(self) -> PreTrainedConfig:
        """Without layers and frames that are left out at random: such draws would be no part of a protocol."""
        config = super().fresh_config()
        for name, off in (("apply_spec_augment", False), ("layerdrop", 0.0)):
            if hasattr(config, name):
                setattr(config, name, off)
        return config

    def with_head(
        self, auto_class: type, config: PreTrainedConfig, seed: int, random_init: bool, purpose: str
    ) -> PreTrainedModel:
        if type(config) not in auto_class._model_mapping:
            raise EvaluationError(
                f'{self.name} is a "{config.model_type}" model, and transformers has none for {purpose} around such '
                "an encoder. Measure it as it is with `recipes/probe.py`, or fine-tune an encoder of "
                "`recipes/hubert.py`, `recipes/wav2vec2.py` or `recipes/best_rq.py`."
            )
        model = super().with_head(auto_class, config, seed, random_init, purpose)
        keep_channels_last(model.base_model)
        keep_narrow_groups_exact(model)
        for name, parameter in model.named_parameters():
            # what stands for masked frames, of which there are none: DDP would wait for its gradient forever
            if name.endswith("masked_spec_embed"):
                parameter.requires_grad_(False)
        return model

    @property
    def sampling_rate(self) -> int:
        """Samples a second that the encoder wants."""
        return int(self.processor.sampling_rate)


def clip_limits(processor: Any, config: PreTrainedConfig) -> tuple[int, int]:
    """Samples of a clip at least and at most."""
    rate = processor.sampling_rate
    # a spectrogram of one size cuts off what is longer
    most = config.max_length / 100 if is_grid(config) else MOST_SECONDS
    return round(LEAST_SECONDS * rate), round(most * rate)


def lengthened(clip: np.ndarray, least: int) -> np.ndarray:
    """A clip with silence after it where it is too short."""
    return clip if len(clip) >= least else np.pad(clip, (0, least - len(clip)))


def make_inputs(
    model: PreTrainedModel, processor: Any, clips: Sequence[np.ndarray], padded: bool = True
) -> dict[str, torch.Tensor]:
    """What the encoder's feature extractor makes of some waveforms: the inputs of a forward pass.

    Args:
        model (`PreTrainedModel`):
            An encoder, or a classifier around it.
        processor:
            Its feature extractor.
        clips (`Sequence[np.ndarray]`):
            Waveforms at its rate; those of different lengths are padded.
        padded (`bool`, *optional*, defaults to `True`):
            Whether the encoder is told what is padding. Those with group norm in the first layer were never.
    """
    takes_mask = "attention_mask" in inspect.signature(model.forward).parameters and not is_grid(model.config)
    batch = processor(
        list(clips), sampling_rate=processor.sampling_rate, return_tensors="pt", padding=True,
        return_attention_mask=takes_mask,
    )  # fmt: skip
    inputs = {name: batch[name] for name in MAIN_INPUTS if name in batch}
    if takes_mask and padded and not batch["attention_mask"].all():
        inputs["attention_mask"] = batch["attention_mask"]
    return inputs


def encode_layers(
    model: PreTrainedModel, processor: Any, clips: Sequence[np.ndarray], pooling: str = "mean"
) -> torch.Tensor:
    """Pooled features of some waveforms by each layer, of shape `(num_clips, num_layers + 1, hidden_size)`."""
    inputs = {name: tensor.to(model.device) for name, tensor in make_inputs(model, processor, clips).items()}
    seconds = torch.tensor([len(clip) / processor.sampling_rate for clip in clips], device=model.device)
    return run_layers(model, inputs, seconds, pooling)


def run_layers(
    model: PreTrainedModel, inputs: Mapping[str, torch.Tensor], seconds: torch.Tensor, pooling: str
) -> torch.Tensor:
    """The same of the inputs of a forward pass, of clips that are so many `seconds` long."""
    with channels_last_convolutions(model):
        outputs = model(**inputs, output_hidden_states=True)
    return layer_features(model, outputs, inputs.get("attention_mask"), seconds, pooling)


def pads_exactly(model: PreTrainedModel, processor: Any) -> bool:
    """Whether the features of a clip are the same beside a longer one as alone, by trying.

    Group norm over time, as in the first layer of HuBERT-base and wav2vec2-base, counts padding as sound.
    """
    rng, rate = np.random.default_rng(0), processor.sampling_rate
    short, long = (0.1 * rng.standard_normal(length * rate // 10).astype(np.float32) for length in (5, 9))
    with evaluating(model):
        alone, beside = encode_layers(model, processor, [short])[0], encode_layers(model, processor, [short, long])[0]
    return bool((alone - beside).abs().max() <= 1e-3 * alone.abs().max())
