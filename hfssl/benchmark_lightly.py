"""lightly's sides of the benchmarks for images: what its examples build, around an encoder of transformers.

As in its `examples/pytorch/{simclr,mae}.py`: a `LightlyDataset` of image files, one of its transforms, a plain
`DataLoader`, its heads, losses and functions on tokens, and a loop of a few lines; one forward pass a view. The
encoder is the module that hfssl trains; lightly's MAE reaches it through lightly's own interface for masked
transformers. The views have the parameters of ours, and the optimizer is the same fused AdamW.

This module and what it imports is all that lightly's process loads.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models import utils
from lightly.models.modules import MAEDecoder, SimCLRProjectionHead
from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from lightly.transforms import MAETransform, SimCLRTransform
from torch import nn
from torch.utils.data import DataLoader
from transformers import AutoConfig, PreTrainedModel

from .benchmark import Pace, count_flops_of
from .pooling import feature_size, pool_features
from .vision_modeling import build_vision_encoder


class SimCLR(nn.Module):
    """lightly's example, with a backbone of transformers."""

    def __init__(self, backbone: PreTrainedModel, output_dim: int):
        super().__init__()
        self.backbone = backbone
        dim = feature_size(backbone.config)
        self.projection_head = SimCLRProjectionHead(dim, dim, output_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection_head(pool_features(self.backbone(x), self.backbone.config))


class MaskedViT(MaskedVisionTransformer):
    """A `ViTModel` behind lightly's interface."""

    def __init__(self, vit: PreTrainedModel):
        super().__init__()
        self.vit = vit
        positions = vit.embeddings.position_embeddings
        utils.initialize_positional_embedding(positions, strategy="sincos", num_prefix_tokens=1)

    @property
    def sequence_length(self) -> int:
        return self.vit.embeddings.position_embeddings.shape[1]

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
        return x + self.vit.embeddings.position_embeddings


class MAE(nn.Module):
    """lightly's example, with a ViT of transformers and the decoder that lightly has without timm."""

    def __init__(self, vit: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        self.mask_ratio, self.norm_pix_loss = config["mask_ratio"], config["norm_pix_loss"]
        self.patch_size = vit.config.patch_size
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


def train_simclr(pace: Pace, settings: dict[str, Any]) -> float:
    """`examples/pytorch/simclr.py` of lightly. `settings`: see [`benchmark_vision.contenders`]."""
    view, config = settings["view"], settings["model"]
    brightness, contrast, saturation, hue = view["jitter"]
    transform = SimCLRTransform(
        input_size=view["size"],
        cj_prob=view["jitter_probability"],
        cj_bright=brightness,
        cj_contrast=contrast,
        cj_sat=saturation,
        cj_hue=hue,
        min_scale=view["scale"][0],
        random_gray_scale=view["grey_probability"],
        gaussian_blur=view["blur_probability"],
        sigmas=view["blur_sigma"],
        hf_prob=view["flip_probability"],
    )
    torch.manual_seed(settings["seed"])
    pace.data_is_readable()
    model = SimCLR(_encoder(settings), config["projector_output_dim"])
    criterion = NTXentLoss(temperature=config["contrastive_temperature"])

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        x0, x1 = views
        return criterion(model(x0), model(x1))

    return _train(pace, settings, model, transform, loss_of)


def train_mae(pace: Pace, settings: dict[str, Any]) -> float:
    """`examples/pytorch/mae.py` of lightly. `settings`: see [`benchmark_vision.contenders`]."""
    transform = MAETransform(input_size=settings["view"]["size"], min_scale=settings["view"]["scale"][0])
    torch.manual_seed(settings["seed"])
    pace.data_is_readable()
    model = MAE(_encoder(settings), settings["model"])
    criterion = nn.MSELoss()
    return _train(pace, settings, model, transform, lambda views: criterion(*model(views[0])))


def _encoder(settings: dict[str, Any]) -> PreTrainedModel:
    return build_vision_encoder(AutoConfig.for_model(**settings["model"]["encoder_config"]))


def _train(
    pace: Pace,
    settings: dict[str, Any],
    model: nn.Module,
    transform: Callable,
    loss_of: Callable[[list[torch.Tensor]], torch.Tensor],
) -> float:
    """The loop of the examples, and the FLOPs of an image."""
    device = torch.device(settings["device"])
    model.to(device).train()
    loader = DataLoader(
        LightlyDataset(settings["images"], transform=transform),
        batch_size=settings["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=settings["num_workers"],
    )
    training = settings["training"]
    optimizer = torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=settings["learning_rate"],
        betas=(training["adam_beta1"], training["adam_beta2"]),
        eps=training["adam_epsilon"],
        weight_decay=training["weight_decay"],
        fused=True,
    )
    batches = _endless(loader)
    for _ in range(pace.num_steps):
        begin = time.perf_counter()
        views = [view.to(device) for view in next(batches)[0]]
        pace.fetched(time.perf_counter() - begin, len(views[0]), len(views[0]))
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
            loss = loss_of(views)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pace.stepped(loss)
    return count_flops_of(lambda: loss_of(views)) / len(views[0])


def _endless(loader: DataLoader) -> Iterator[Any]:
    while True:
        yield from loader
