"""Towers of pairs to train from scratch, by name: those of CLIP and SigLIP beside what each modality has."""

from transformers import CLIPTextConfig, CLIPVisionConfig, SiglipTextConfig, SiglipVisionConfig

from ..audio.presets import AUDIO_PRESETS
from ..image.presets import VISION_PRESETS
from ..text.presets import TEXT_PRESETS


def _shape(layers: int, width: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }  # fmt: skip


def _image(kind: type, layers: int, width: int, patch: int, size: int):
    return kind(**_shape(layers, width), patch_size=patch, image_size=size)


# Tokens of SigLIP's texts: the paper's, to which the zero-shot pipeline of transformers pads those of every SigLIP.
SIGLIP_LENGTH = 64

# Base sizes are those of the papers, 2103.00020 and 2303.15343.
PRESETS = {
    "image": {
        **VISION_PRESETS,
        "clip-image-mini-patch4": lambda: _image(CLIPVisionConfig, 4, 192, 4, 32),
        "clip-image-mini-patch8": lambda: _image(CLIPVisionConfig, 4, 192, 8, 64),
        "clip-image-small-patch8": lambda: _image(CLIPVisionConfig, 8, 384, 8, 96),
        "clip-image-small-patch16": lambda: _image(CLIPVisionConfig, 8, 384, 16, 224),
        "clip-image-base-patch32": lambda: _image(CLIPVisionConfig, 12, 768, 32, 224),
        "siglip-image-mini-patch4": lambda: _image(SiglipVisionConfig, 4, 192, 4, 32),
        "siglip-image-mini-patch8": lambda: _image(SiglipVisionConfig, 4, 192, 8, 64),
        "siglip-image-small-patch8": lambda: _image(SiglipVisionConfig, 8, 384, 8, 96),
        "siglip-image-small-patch16": lambda: _image(SiglipVisionConfig, 8, 384, 16, 224),
        "siglip-image-base-patch16": lambda: _image(SiglipVisionConfig, 12, 768, 16, 224),
    },
    "text": {
        **TEXT_PRESETS,
        "clip-text-mini": lambda: CLIPTextConfig(**_shape(3, 192)),
        "clip-text-small": lambda: CLIPTextConfig(**_shape(6, 384)),
        "clip-text-base": lambda: CLIPTextConfig(**_shape(12, 512)),
        "siglip-text-mini": lambda: SiglipTextConfig(**_shape(3, 192), projection_size=192),
        "siglip-text-small": lambda: SiglipTextConfig(**_shape(6, 384), projection_size=384),
        "siglip-text-base": lambda: SiglipTextConfig(**_shape(12, 768), projection_size=768),
    },
    "audio": AUDIO_PRESETS,
}
