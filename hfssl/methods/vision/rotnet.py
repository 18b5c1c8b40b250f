"""RotNet: say by how many quarter turns an image was rotated, which takes knowing what is on it.

Paper: Unsupervised Representation Learning by Predicting Image Rotations, Gidaris, Singh and Komodakis, 2018
(https://huggingface.co/papers/1803.07728). Reference code: https://github.com/gidariss/FeatureLearningRotNet.

All four rotations of an image are in its batch, and one linear layer on the encoder's feature tells them apart. So
a step costs four times its images. No samples are compared: nothing keeps features of alike images together, and k-NN
says little about them; a linear probe and fine-tuning say more.

What looks the same in two rotations cannot be told (of letters O, X, H, I, N, S and Z; a photograph from above), and
what has no upright position has none to learn: the loss stays above 0, and may stay at that of chance.

Departures from the paper: the encoder is any that transformers has, and the layer is behind its pooled feature instead
of the last convolutions of an AlexNet; batch norm takes its statistics over all processes.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...functional.views import View, ViewPreset
from ...losses import at_least_float32, full_precision
from ...modeling.distributed import convert_batch_norm
from ...modeling.method import BenchmarkSettings, LearningRates, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.vision import SSLVisionModel, arranged, build_vision_encoder, image_features


NUM_ROTATIONS = 4


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "the encoder gives all images one feature: lower `--learning_rate`, or raise `--warmup_steps`; "
        f"if the loss stays at log({NUM_ROTATIONS}) = {math.log(NUM_ROTATIONS):.2f} because the images have no "
        "upright position, choose another method"
    }


METHOD = Method(
    title="RotNet",
    modality="image",
    # its code: 224 of 256 pixels of the shorter side, which is 0.77 of a square image and 0.57 of one of 4:3
    views=ViewPreset((View(scale=(0.57, 0.77), ratio=(1.0, 1.0)),)),
    learning_rates=LearningRates(lars=0.3, narrow=1e-3, wide=5e-4, checkpoint=1e-4),
    # colours tell nothing of a rotation and lead to no short cut
    embedded_views={"letters": {"jitter_probability": 0.0, "grey_probability": 0.0}},
    collapse_hints=_collapse_hints,
    chance=lambda config, context: {"loss": math.log(NUM_ROTATIONS)},
    benchmark=BenchmarkSettings(against=()),
)


@strict
class RotnetPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`RotnetForPreTraining`]. The method has no numbers of its own.

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows. ResNet-50 when left out.
        pooling (`str`, *optional*):
            The feature by which rotations are told: cls, mean, cls+mean or last4. Left out: cls where the encoder has
            such a token, else mean.
    """

    model_type = "hfssl_rotnet"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str | None = None

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class RotnetOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Cross-entropy, mean over the images and their rotations. log(4) is chance.
        logits (`torch.FloatTensor` of shape `(batch_size, 4, 4)`):
            Of each image turned by 0, 90, 180 and 270 degrees, how likely each of these is.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class RotnetForPreTraining(SSLVisionModel):
    config_class = RotnetPreTrainingConfig
    method = METHOD
    base_model_prefix = "encoder"
    paper = {
        "title": "Unsupervised Representation Learning by Predicting Image Rotations",
        "id": "1803.07728",
        "citation": "@inproceedings{gidaris2018unsupervised,\n  title = {Unsupervised Representation Learning by "
        "Predicting Image Rotations},\n  author = {Gidaris, Spyros and Singh, Praveer and Komodakis, Nikos},\n"
        "  booktitle = {ICLR},\n  year = {2018}\n}",
    }

    def __init__(self, config: RotnetPreTrainingConfig):
        super().__init__(config)
        self.encoder = build_vision_encoder(config.encoder_config)
        self.classifier = nn.Linear(feature_size(config.encoder_config, config.pooling), NUM_ROTATIONS)
        convert_batch_norm(self)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, return_loss: bool = True) -> RotnetOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, size, size)`):
                Images as they are, which are rotated here.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[-1] != pixel_values.shape[-2]:
            raise ValueError(
                f"RotNet rotates square images: `pixel_values` has shape {tuple(pixel_values.shape)}, expected "
                "(batch_size, num_channels, size, size). `Views` makes them."
            )
        images = rotations(pixel_values).flatten(0, 1)  # image 0 turn 0, image 0 turn 1 ... image 1 turn 0 ...
        images = arranged(self.encoder, images)
        logits = self.classifier(image_features(self.encoder, images, self.config.pooling))
        turns = torch.arange(NUM_ROTATIONS, device=logits.device).repeat(len(pixel_values))
        with full_precision(logits):
            loss = F.cross_entropy(at_least_float32(logits), turns)
        return RotnetOutput(loss=loss, logits=logits.unflatten(0, (-1, NUM_ROTATIONS)))


def rotations(images: torch.Tensor) -> torch.Tensor:
    """Square images turned to the left by 0, 90, 180 and 270 degrees: `(batch_size, 4, num_channels, size, size)`."""
    return torch.stack([images.rot90(turns, (-2, -1)) for turns in range(NUM_ROTATIONS)], dim=1)
