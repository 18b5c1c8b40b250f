"""Encoders of images to train from scratch, by name."""

from transformers import ConvNextV2Config, Dinov2Config, DINOv3ViTConfig, ResNetConfig, ViTConfig


def _vit(layers: int, width: int, heads: int, patch: int, image: int) -> ViTConfig:
    return ViTConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width,
        patch_size=patch, image_size=image,
        layer_norm_eps=1e-6,  # of every paper that trains one; transformers has 1e-12
    )  # fmt: skip


def _dinov2(layers: int, width: int, heads: int) -> Dinov2Config:
    # as DINOv2 trains them from scratch: transformers has a scale of 1 for layers, which is for what is trained
    return Dinov2Config(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, patch_size=14, image_size=224,
        layerscale_value=1e-5,
    )  # fmt: skip


def _dinov3(layers: int, width: int, heads: int) -> DINOv3ViTConfig:
    # as DINOv3 trains its largest; places are rescaled in training by up to 2, the default of transformers too
    return DINOv3ViTConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width,
        patch_size=16, image_size=224, num_register_tokens=4, layerscale_value=1e-5, pos_embed_rescale=2.0,
    )  # fmt: skip


def _resnet(layer_type: str, depths: tuple[int, ...], widths: tuple[int, ...], stem: int = 64) -> ResNetConfig:
    return ResNetConfig(layer_type=layer_type, depths=list(depths), hidden_sizes=list(widths), embedding_size=stem)


def _convnext(depths: tuple[int, ...], widths: tuple[int, ...], patch: int, image: int) -> ConvNextV2Config:
    return ConvNextV2Config(depths=list(depths), hidden_sizes=list(widths), patch_size=patch, image_size=image)


# Of presets whose configuration says none: the images that they are for.
IMAGE_SIZES = {"resnet-mini": 32, "resnet-18-half": 64}

# Sizes are those of the papers: tiny and small ViTs of DeiT (2012.12877), the ConvNeXt V2 named atto (2301.00808). The
# stem of a ResNet in transformers reduces images to a quarter: small ones want the others.
VISION_PRESETS = {
    "vit-mini-patch4": lambda: _vit(4, 192, 3, 4, 32),
    "vit-tiny-patch4": lambda: _vit(12, 192, 3, 4, 32),
    # for images of 64 to 128 pixels, of which patches of 16 would leave little
    "vit-mini-patch8": lambda: _vit(4, 192, 3, 8, 64),
    "vit-tiny-patch8": lambda: _vit(12, 192, 3, 8, 64),
    "vit-small-patch8": lambda: _vit(12, 384, 6, 8, 96),
    "vit-tiny-patch16": lambda: _vit(12, 192, 3, 16, 224),
    "vit-small-patch16": lambda: _vit(12, 384, 6, 16, 224),
    "vit-base-patch16": lambda: _vit(12, 768, 12, 16, 224),
    "dinov2-small-patch14": lambda: _dinov2(12, 384, 6),
    "dinov2-base-patch14": lambda: _dinov2(12, 768, 12),
    "dinov2-large-patch14": lambda: _dinov2(24, 1024, 16),
    "dinov3-small-patch16": lambda: _dinov3(12, 384, 6),
    "dinov3-base-patch16": lambda: _dinov3(12, 768, 12),
    "dinov3-large-patch16": lambda: _dinov3(24, 1024, 16),
    # half of resnet-18's widths and blocks
    "resnet-mini": lambda: _resnet("basic", (1, 1, 1, 1), (32, 64, 128, 256), stem=32),
    # half of its widths, all of its blocks
    "resnet-18-half": lambda: _resnet("basic", (2, 2, 2, 2), (32, 64, 128, 256), stem=32),
    "resnet-18": lambda: _resnet("basic", (2, 2, 2, 2), (64, 128, 256, 512)),
    "resnet-50": lambda: _resnet("bottleneck", (3, 4, 6, 3), (256, 512, 1024, 2048)),
    "convnextv2-atto-patch2": lambda: _convnext((2, 2, 6, 2), (40, 80, 160, 320), 2, 32),
    "convnextv2-tiny-patch2": lambda: _convnext((3, 3, 9, 3), (96, 192, 384, 768), 2, 32),
    "convnextv2-atto-patch4": lambda: _convnext((2, 2, 6, 2), (40, 80, 160, 320), 4, 64),
    "convnextv2-tiny-patch4": lambda: _convnext((3, 3, 9, 3), (96, 192, 384, 768), 4, 224),
}
