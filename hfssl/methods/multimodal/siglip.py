"""SigLIP: tell of each image and each text of the batch whether they belong together.

Paper: Sigmoid Loss for Language Image Pre-Training, Zhai et al., 2023 (https://huggingface.co/papers/2303.15343).
Reference code: https://github.com/google-research/big_vision.

The batch is that of all processes: texts are gathered with their gradients, and 2 processes of N pairs have the loss
and the gradient of 1 of 2N. The paper hands texts around a ring instead, so that no process
holds them all: similarities are made chunk by chunk here, beside which all texts are small. The rest is as in CLIP
(`clip.py`).

Departures from the paper: the factor of the similarities stays within [1, 100]; encoders whose vectors differ in size
get projections; in evaluation mode a batch is contrasted within its process.
"""

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec

from ...losses import siglip_loss
from ...modeling.method import LearningRates, Method
from ...modeling.pairs import PairModel, PairOutput, check_pair, feature_sizes


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": "all pairs are told apart by the bias alone: lower `--learning_rate`, raise `--warmup_steps`, and "
        "train for longer",
        "few directions": "samples are hardly told from their nearest neighbours: compare more pairs a step "
        "(`--contrastive_batch_size`), or lower `--learning_rate`",
    }


METHOD = Method(
    title="SigLIP",
    modality="multimodal",
    inputs=("image", "text"),
    learning_rates=LearningRates(narrow=1e-3, wide=1e-3, checkpoint=1e-5, per_256_samples=False),
    contrasts_batch=True,
    collapse_hints=_collapse_hints,
)


@strict
class SiglipPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`SiglipForPreTraining`]. The defaults are the paper's, for ViT-B/16.

    Args:
        pair (`str`, *optional*, defaults to `"image,text"`):
            The two modalities, which are the names of the towers: two of image, text and audio.
        first_config, second_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoders of both: any that [`~transformers.AutoModel`] knows. Those of ViT-B/16 SigLIP when left out.
        first_pooling, second_pooling (`str`, *optional*):
            How an encoder's vector of a sample is made, see [`~hfssl.modeling.towers.tower_layout`]. Left out: as the
            encoder itself does it, where it does.
        projection_dim (`int`, *optional*):
            Size of an embedding. Left out, the vectors of both encoders are compared as they are where they have one
            size; else both are projected to the smaller one.
        frozen_tower (`str`, *optional*):
            The modality whose encoder stays as it is.
        patch_dropout (`float`, *optional*, defaults to `0.0`):
            Share of the patches of each image that a Vision Transformer does not see in training.
        logit_scale_init (`float`, *optional*, defaults to `10.0`):
            Factor of the cosine similarities at the first step (t). It learns, up to 100, or up to this
            where it is more: a pair that is continued keeps its own.
        logit_bias_init (`float`, *optional*, defaults to `-10.0`):
            What is added to the scaled similarities at the first step (b): most pairs do not belong together.
    """

    model_type = "hfssl_siglip"
    sub_configs_defaults = {
        "first_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_vision_model"),
        "second_config": SubConfigSpec(config_class=AutoConfig, model_type="siglip_text_model"),
    }

    pair: str = "image,text"
    first_config: dict | PreTrainedConfig | None = None
    second_config: dict | PreTrainedConfig | None = None
    first_pooling: str | None = None
    second_pooling: str | None = None
    projection_dim: int | None = None
    frozen_tower: str | None = None
    patch_dropout: float = 0.0
    logit_scale_init: float = 10.0
    logit_bias_init: float = -10.0

    def validate_pair(self):
        check_pair(self)


class SiglipForPreTraining(PairModel):
    config_class = SiglipPreTrainingConfig
    method = METHOD
    figures = ("logit_scale", "logit_bias")
    paper = {
        "title": "Sigmoid Loss for Language Image Pre-Training",
        "id": "2303.15343",
        "citation": "@inproceedings{zhai2023sigmoid,\n  title = {Sigmoid Loss for Language Image Pre-Training},\n"
        "  author = {Zhai, Xiaohua and Mustafa, Basil and Kolesnikov, Alexander and Beyer, Lucas},\n"
        "  booktitle = {ICCV},\n  year = {2023}\n}",
    }

    def add_parameters(self) -> None:
        super().add_parameters()
        self.logit_bias = nn.Parameter(torch.tensor(self.config.logit_bias_init))

    def embedding_size(self) -> int | None:
        sizes = feature_sizes(self.config)
        return self.config.projection_dim or (None if sizes[0] == sizes[1] else min(sizes))

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        init.constant_(self.logit_bias, self.config.logit_bias_init)

    def contrast(self, embeddings: dict[str, torch.Tensor]) -> PairOutput:
        first, second = (embeddings[name] for name in self.names)
        scale = self.logit_scale.exp()
        loss = siglip_loss(first, second, scale, self.logit_bias, **self.gathered(embeddings, "all_text_embeds"))
        figures = {"logit_scale": scale.detach(), "logit_bias": self.logit_bias.detach()}
        return PairOutput(loss=loss, first_embeds=first, second_embeds=second, figures=figures)
