"""lightly's MAE, as in its `examples/pytorch/mae.py`, around a `ViTModel` of transformers."""

import math
from typing import Any

import torch
from lightly.models import utils
from lightly.models.modules import MAEDecoder
from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from lightly.transforms import MAETransform
from torch import nn
from transformers import PreTrainedModel

from ...errors import UserError
from .base import LightlySide, build_encoder, normalization


class MaskedViT(MaskedVisionTransformer):
    """A `ViTModel` behind lightly's interface, for images of any size.

    Args:
        vit (`PreTrainedModel`):
            The encoder.
        has_mask_token (`bool`, *optional*, defaults to `False`):
            Whether there is a token to put in the place of others.

    Raises:
        UserError: if the encoder is another than a ViT.
    """

    def __init__(self, vit: PreTrainedModel, has_mask_token: bool = False):
        super().__init__()
        if vit.config.model_type != "vit":
            raise UserError(
                f"lightly masks patches of a ViT, and the encoder is a {vit.config.model_type}. Pass one such as "
                "`--encoder vit-mini-patch4`, or `--against none`."
            )
        self.vit = vit
        if has_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, vit.config.hidden_size))

    @property
    def sequence_length(self) -> int:
        return self.vit.embeddings.position_embeddings.shape[1]

    @property
    def patches_a_side(self) -> int:
        return math.isqrt(self.sequence_length - 1)

    def forward(self, images, idx_mask=None, idx_keep=None, mask=None) -> torch.Tensor:
        return self.encode(images, idx_mask, idx_keep, mask)[:, 0]

    def forward_intermediates(self, images, idx_mask=None, idx_keep=None, norm=False, mask=None):
        raise NotImplementedError

    def encode(self, images, idx_mask=None, idx_keep=None, mask=None) -> torch.Tensor:
        tokens = self.preprocess(images, idx_mask, idx_keep, mask)
        for layer in self.vit.layers:
            tokens = layer(tokens)
        return self.vit.layernorm(tokens)

    def images_to_tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.vit.embeddings.patch_embeddings(images)

    def prepend_prefix_tokens(self, x: torch.Tensor) -> torch.Tensor:
        return utils.prepend_class_token(x, self.vit.embeddings.cls_token)

    def add_pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        pixels = math.isqrt(x.shape[1] - 1) * self.vit.config.patch_size
        return x + self.vit.embeddings.interpolate_pos_encoding(x, pixels, pixels)


class MAE(nn.Module):
    """With the decoder that lightly has without timm."""

    def __init__(self, vit: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        self.mask_ratio, self.norm_pix_loss = config["mask_ratio"], config["norm_pix_loss"]
        self.patch_size = vit.config.patch_size
        positions = vit.embeddings.position_embeddings
        utils.initialize_positional_embedding(positions, strategy="sincos", num_prefix_tokens=1)
        self.backbone = MaskedViT(vit)
        self.sequence_length = self.backbone.sequence_length
        dim = config["decoder_hidden_size"]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = MAEDecoder(
            seq_length=self.sequence_length,
            num_layers=config["decoder_num_hidden_layers"],
            num_heads=config["decoder_num_attention_heads"],
            embed_input_dim=vit.config.hidden_size,
            hidden_dim=dim,
            mlp_dim=config["decoder_intermediate_size"] or 4 * dim,
            out_dim=self.patch_size**2 * 3,
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (len(images), self.sequence_length)
        idx_keep, idx_mask = utils.random_token_mask(size=size, mask_ratio=self.mask_ratio, device=images.device)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=idx_keep))
        masked = utils.repeat_token(self.mask_token, size)
        masked = utils.set_at_index(masked, idx_keep, encoded.type_as(masked))
        decoded = self.decoder.decode(masked)
        prediction = self.decoder.predict(utils.get_at_index(decoded, idx_mask))
        # patches are counted without the class token
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        if self.norm_pix_loss:
            target = utils.normalize_mean_var(target, dim=-1)
        return prediction, target


def mae(settings: dict[str, Any]) -> LightlySide:
    view = settings["views"][0]
    transform = MAETransform(input_size=view["size"], min_scale=view["scale"][0], normalize=normalization(settings))
    model = MAE(build_encoder(settings), settings["model"])
    criterion = nn.MSELoss()
    return LightlySide(model, model.backbone.vit, transform, lambda views: criterion(*model(views[0])))
