"""BYOL: predict a teacher's projection of one view of an image from another view, without negatives.

Paper: Bootstrap Your Own Latent, Grill et al., 2020 (https://huggingface.co/papers/2006.07733). Reference code:
https://github.com/google-deepmind/deepmind-research/tree/master/byol.

The student is the paper's online network, the teacher its target network, which uses the statistics of its own batch
as the student does. Each view goes through batch norm alone, and batch norm sees that view of all processes: 2
processes of N images have the loss and the gradient of 1 of 2N. What is exported is the student's encoder.

Departures from the paper: the two directions of the loss are averaged, not summed; a Vision Transformer gives its CLS
token where a ResNet gives its average; weights of the heads are drawn as torch draws them. The paper trains ResNets
only. Around a small Vision Transformer from scratch projections fall into a few directions at once; what holds them up
are options here, taken from MoCo v3: batch norm behind the last layers too, and patches projected as drawn.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...errors import UserError
from ...functional.views import View, ViewPreset
from ...losses import byol_loss
from ...modeling.branch import VisionBranch, check_two_views
from ...modeling.distributed import convert_batch_norm, world_size
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, Method, no_chance
from ...modeling.pooling import check_pooling, feature_size, is_convolutional
from ...modeling.teacher import TeacherMixin, check_momentum
from ...modeling.vision import SSLVisionModel, build_vision_encoder, frozen_patch_embed


# Appendix B, table 6, and the code's utils/dataset.py.
_FIRST_VIEW = View(
    scale=(0.08, 1.0), interpolation="bicubic", jitter=(0.4, 0.4, 0.2, 0.1), jitter_probability=0.8,
    grey_probability=0.2, blur_probability=1.0,
)  # fmt: skip
_SECOND_VIEW = replace(_FIRST_VIEW, blur_probability=0.1, solarize_probability=0.2)


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "the student no longer runs ahead of its teacher, at a learning rate that is too high or a "
        f"momentum that is too low: lower `--learning_rate`, or raise `momentum_start={config.momentum_start:g}`",
        "few directions": "the predictor cannot keep up with the projector: lower `--learning_rate`, raise "
        "`--warmup_steps`, pass `--last_batch_norm true`, and show it more images a step for its batch norm",
    }


def _fresh_encoder(encoder: PreTrainedConfig) -> dict[str, Any]:
    # what holds up a Vision Transformer that is trained from scratch
    if is_convolutional(encoder):
        return {}
    return {"last_batch_norm": True, "freeze_patch_embed": None}  # None: wherever the encoder has a patch embedding


METHOD = Method(
    title="BYOL",
    modality="image",
    views=ViewPreset((_FIRST_VIEW, _SECOND_VIEW)),
    learning_rates=LearningRates(lars=0.2, narrow=3e-4, narrow_convolutional=1e-3, wide=1.5e-4, checkpoint=1e-4),
    narrow_heads={"projector_hidden_dim": 1024, "last_batch_norm": True},
    fresh_encoder=_fresh_encoder,
    # a digit is its brightness: recoloured, views of one are no more alike than two digits
    embedded_views={"digits": {"jitter": (0.0, 0.0, 0.0, 0.0), "solarize_probability": [0.0]}},
    collapse_hints=_collapse_hints,
    chance=no_chance,  # equal outputs have the best loss there is
    benchmark=BenchmarkSettings(
        # lightly's has nothing that holds Vision Transformers up
        config={"last_batch_norm": False, "freeze_patch_embed": False},
        short_config={"momentum_start": 0.99},
        notes={
            "lightly": "lightly's loss is minus the cosine, which begins at 0 and ends at -1; ours is 2 minus twice "
            "it."
        },
    ),
)


@strict
class ByolPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`ByolForPreTraining`]. The defaults are the paper's, for 1000 epochs of ImageNet (Section 3.3).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows. ResNet-50 when left out.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_hidden_dim (`int`, *optional*, defaults to `4096`):
            Width of the projector and of the predictor, which have two layers each.
        projector_output_dim (`int`, *optional*, defaults to `256`):
            Size of a projection and of a prediction.
        last_batch_norm (`bool`, *optional*, defaults to `False`):
            Batch norm without weights behind the last layers of projector and predictor too.
        momentum_start (`float`, *optional*, defaults to `0.996`):
            Momentum of the teacher at the first step (τ_base). Shorter runs want less: the paper takes 0.99 for 100
            and 300 epochs and 0.97 for 40.
        momentum_end (`float`, *optional*, defaults to `1.0`):
            Momentum of the teacher at the last step. It rises along half a cosine.
        freeze_patch_embed (`bool`, *optional*, defaults to `False`):
            Keep the projection of a Vision Transformer's patches as it was drawn. `None`: if the encoder has one.
    """

    model_type = "hfssl_byol"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str | None = None
    projector_hidden_dim: int = 4096
    projector_output_dim: int = 256
    last_batch_norm: bool = False
    momentum_start: float = 0.996
    momentum_end: float = 1.0
    freeze_patch_embed: bool | None = False

    def validate_momentum(self):
        check_momentum(self)

    def validate_projector(self):
        for name in ("projector_hidden_dim", "projector_output_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class ByolOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean of `2 - 2 * cosine similarity` over the batch and both views; 0 is perfect, 2 is orthogonal.
        student_predictions (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            Prediction from each view, not normalised.
        teacher_projections (`torch.FloatTensor` of shape `(batch_size, 2, projector_output_dim)`):
            The teacher's projection of each view, without gradient.
    """

    loss: torch.FloatTensor | None = None
    student_predictions: torch.FloatTensor | None = None
    teacher_projections: torch.FloatTensor | None = None


class ByolForPreTraining(TeacherMixin, SSLVisionModel):
    config_class = ByolPreTrainingConfig
    method = METHOD
    base_model_prefix = "student"
    paper = {
        "title": "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
        "id": "2006.07733",
        "citation": "@inproceedings{grill2020bootstrap,\n  title = {Bootstrap Your Own Latent: A New Approach to "
        "Self-Supervised Learning},\n  author = {Grill, Jean-Bastien and Strub, Florian and Altch{\\'e}, Florent and "
        "others},\n  booktitle = {NeurIPS},\n  year = {2020}\n}",
    }

    def __init__(self, config: ByolPreTrainingConfig):
        super().__init__(config)
        hidden, output = config.projector_hidden_dim, config.projector_output_dim
        # a batch norm takes the bias of the layer before it away again
        last = {"last_norm": "plain"} if config.last_batch_norm else {"bias": True}
        self.student = VisionBranch(
            build_vision_encoder(config.encoder_config),
            MlpHead(feature_size(config.encoder_config, config.pooling), hidden, output, **last),
            config.encoder_config,
            config.pooling,
        )
        self.predictor = MlpHead(output, hidden, output, **last)
        convert_batch_norm(self)
        self.build_teacher()
        self.frozen = frozen_patch_embed(self, "student.encoder", config.freeze_patch_embed)
        self.post_init()

    def forward(self, pixel_values: torch.FloatTensor, return_loss: bool = True) -> ByolOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Two augmented views of each image.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        self.require_advanced()
        check_two_views(pixel_values, "BYOL")
        if self.training and len(pixel_values) * world_size() == 1:
            raise UserError(
                "BYOL's batch norm needs more than one image, but the batch has 1. Pass a larger "
                "`--per_device_train_batch_size`."
            )
        views = pixel_values.unbind(1)
        predictions = torch.stack([self.predictor(self.student(view)) for view in views], dim=1)
        with torch.no_grad():
            targets = torch.stack([self.teacher(view) for view in views], dim=1)
        return ByolOutput(
            loss=byol_loss(predictions, targets), student_predictions=predictions, teacher_projections=targets
        )

    def compared_embeddings(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The student's projections of both views, `(batch_size, 2, projector_output_dim)`."""
        return torch.stack([self.student(view) for view in batch["pixel_values"].unbind(1)], dim=1)
