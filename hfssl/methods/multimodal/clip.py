"""CLIP: find the text of an image among the texts of all images of the batch, and the image of a text.

Papers: Learning Transferable Visual Models From Natural Language Supervision, Radford et al., 2021
(https://huggingface.co/papers/2103.00020); with `frozen_tower="image"` and a checkpoint it is locked-image tuning
(https://huggingface.co/papers/2111.07991), with `patch_dropout` the images are those of FLIP
(https://huggingface.co/papers/2212.00794). Reference code: https://github.com/mlfoundations/open_clip.

The batch is that of all processes: embeddings are gathered with their gradients, and 2 processes of N pairs have the
loss and the gradient of 1 of 2N. The two towers are any two stock encoders, of images and texts or of another pair of
modalities. The logarithm of the factor of the similarities learns, within [0, log 100] and without weight decay.

Departures from the paper: a frozen tower has a projection that learns; in evaluation mode a batch is contrasted within
its process.
"""

import math

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from ...errors import UserError
from ...losses import clip_loss
from ...modeling.distributed import world_size
from ...modeling.method import LearningRates, LossContext, Method
from ...modeling.pairs import PairModel, PairOutput, check_pair


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "negatives do not hold different samples apart: lower `--learning_rate`, raise `--warmup_steps`, "
        "and compare more pairs a step (`--contrastive_batch_size`)",
        "few directions": "samples are hardly told from their nearest neighbours: compare more pairs a step "
        "(`--contrastive_batch_size`), or lower `--learning_rate`",
    }


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    return {"loss": math.log(max(context.num_samples, 1))}


METHOD = Method(
    title="CLIP",
    modality="multimodal",
    inputs=("image", "text"),
    learning_rates=LearningRates(narrow=1e-3, wide=5e-4, checkpoint=1e-5, per_256_samples=False),
    contrasts_batch=True,
    collapse_hints=_collapse_hints,
    chance=_chance,
)


@strict
class ClipPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`ClipForPreTraining`]. The defaults are the paper's, for ViT-B/32.

    Args:
        pair (`str`, *optional*, defaults to `"image,text"`):
            The two modalities, which are the names of the towers: two of image, text and audio.
        first_config, second_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoders of both: any that [`~transformers.AutoModel`] knows. Those of ViT-B/32 CLIP when left out.
        first_pooling, second_pooling (`str`, *optional*):
            How an encoder's vector of a sample is made, see [`~hfssl.modeling.towers.tower_layout`]. Left out: as the
            encoder itself does it, where it does.
        projection_dim (`int`, *optional*, defaults to `512`):
            Size of an embedding.
        frozen_tower (`str`, *optional*):
            The modality whose encoder stays as it is. Its projection learns.
        patch_dropout (`float`, *optional*, defaults to `0.0`):
            Share of the patches of each image that a Vision Transformer does not see in training, which takes so much
            less time. 0.5 to 0.75 are usual, with a short end without.
        logit_scale_init (`float`, *optional*, defaults to `14.285714285714286`):
            Factor of the cosine similarities at the first step, 1 / 0.07. It learns, up to 100, or up to this
            where it is more: a pair that is continued keeps its own.
    """

    model_type = "hfssl_clip"
    sub_configs_defaults = {
        "first_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "second_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_text_model"),
    }

    pair: str = "image,text"
    first_config: dict | PreTrainedConfig | None = None
    second_config: dict | PreTrainedConfig | None = None
    first_pooling: str | None = None
    second_pooling: str | None = None
    projection_dim: int | None = 512
    frozen_tower: str | None = None
    patch_dropout: float = 0.0
    logit_scale_init: float = 1 / 0.07

    def validate_pair(self):
        check_pair(self)


class ClipForPreTraining(PairModel):
    config_class = ClipPreTrainingConfig
    method = METHOD
    paper = {
        "title": "Learning Transferable Visual Models From Natural Language Supervision",
        "id": "2103.00020",
        "citation": "@inproceedings{radford2021learning,\n  title = {Learning Transferable Visual Models From Natural "
        "Language Supervision},\n  author = {Radford, Alec and others},\n  booktitle = {ICML},\n  year = {2021}\n}",
    }

    def contrast(self, embeddings: dict[str, torch.Tensor]) -> PairOutput:
        first, second = (embeddings[name] for name in self.names)
        if self.training and len(first) * world_size() == 1:
            raise UserError(
                "CLIP contrasts a pair with the others of its batch, but the batch has 1 pair. Pass a larger "
                "`--per_device_train_batch_size`: the larger, the better."
            )
        scale = self.logit_scale.exp()
        loss = clip_loss(first, second, scale, **self.gathered(embeddings, "all_image_embeds", "all_text_embeds"))
        return PairOutput(
            loss=loss, first_embeds=first, second_embeds=second, figures={"logit_scale": scale.detach()}
        )  # fmt: skip
