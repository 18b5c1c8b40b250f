"""Small image encoders of every kind, for images of 16 x 16 pixels."""

import torch
from transformers import (
    AutoModel,
    ConvNextV2Config,
    DeiTConfig,
    Dinov2Config,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    IJepaConfig,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTMSNConfig,
)

import hfssl.methods


SIZE = {"image_size": 16, "patch_size": 4}
BLOCKS = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64}
DINO = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "mlp_ratio": 2}

ENCODERS = {
    "vit": lambda: ViTConfig(**BLOCKS, **SIZE, layer_norm_eps=1e-6),
    "vit_msn": lambda: ViTMSNConfig(**BLOCKS, **SIZE),
    "deit": lambda: DeiTConfig(**BLOCKS, **SIZE),
    "ijepa": lambda: IJepaConfig(**BLOCKS, **SIZE),
    "dinov2": lambda: Dinov2Config(**DINO, **SIZE),
    "dinov2_with_registers": lambda: Dinov2WithRegistersConfig(**DINO, **SIZE, num_register_tokens=2),
    "dinov3_vit": lambda: DINOv3ViTConfig(**BLOCKS, **SIZE, num_register_tokens=2),
    "resnet": lambda: ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "convnextv2": lambda: ConvNextV2Config(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2, patch_size=2, image_size=16),
    "swin": lambda: SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, **SIZE),
    "dinov3_convnext": lambda: DINOv3ConvNextConfig(hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], image_size=16),
}  # fmt: skip


def build(name, seed=0):
    torch.manual_seed(seed)
    return AutoModel.from_config(ENCODERS[name]())


# methods for images
NAMES = ("simclr", "moco", "byol", "dino", "mae")


def preset_of(name):
    """The views of a method."""
    return hfssl.methods.METHODS[name].method.views


def vit():
    return ENCODERS["vit"]()


def two_layers():
    """A ViT of half the depth, where depth is not the point."""
    return ViTConfig(**BLOCKS | {"num_hidden_layers": 2}, **SIZE, layer_norm_eps=1e-6)


def resnet():
    return ENCODERS["resnet"]()


def two_views(rows=6):
    return {"pixel_values": torch.randn(rows, 2, 3, 16, 16)}


def crops(rows=6):
    return {**two_views(rows), "local_pixel_values": torch.randn(rows, 3, 3, 8, 8)}


def masked_crops(rows=6):
    """With 2 to 8 of the 16 patches of one of the two large crops masked."""
    batch = crops(rows)
    patches = torch.full((rows, 8), -1)
    for row in patches:
        number, view = int(torch.randint(2, 9, ())), int(torch.randint(2, ()))
        row[:number] = 16 * view + torch.randperm(16)[:number].sort().values
    return batch | {"masked_patches": patches}


def images_with_noise(rows=6):
    return {"pixel_values": torch.randn(rows, 3, 16, 16), "noise": torch.rand(rows, 16)}
