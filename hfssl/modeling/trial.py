"""What an encoder of images does, found by running it on a blank image instead of looking its name up in a list.

[`layout`] runs the architecture on the `meta` device, where tensors have shapes and no numbers: this costs no memory
and no arithmetic. What depends on numbers is tried on a [`small_copy`]. Neither changes the state of the random
generators.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import MODEL_MAPPING, AutoModel, PreTrainedConfig, PreTrainedModel

from ..errors import UserError


Answer = TypeVar("Answer")

# How a trial fails where an architecture cannot do what is tried; each has its own way.
FAILURES = (
    RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError, NotImplementedError, ImportError,
    StrictDataclassError,
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What the last hidden state of an encoder holds.

    Args:
        num_own (`int`):
            Tokens before those of the patches: CLS, distillation token, registers.
        has_cls (`bool`):
            Whether the first of them is a CLS token.
        is_map (`bool`):
            Whether it is a map `(batch_size, dim, height, width)` instead of tokens `(batch_size, length, dim)`.
        dim (`int`):
            Size of a token or of a place of the map.
        is_pooled (`bool`, *optional*, defaults to `False`):
            Whether the encoder itself makes a vector of its map.
    """

    num_own: int
    has_cls: bool
    is_map: bool
    dim: int
    is_pooled: bool = False


def once_per_config(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Remember the answer for each content that a config, the first argument, may have."""
    answers: dict[tuple, Answer] = {}

    @wraps(function)
    def remembered(config: PreTrainedConfig, *args: Any) -> Answer:
        # asked in every step: `to_json_string` would take a hundred times as long. What begins with _ is where the
        # config came from, and the implementation of attention.
        fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
        key = config.model_type, repr(fields), *args
        if key not in answers:
            # also while a model is loaded, whose parts transformers makes without numbers
            with torch.device("cpu"):
                answers[key] = function(config, *args)
        return answers[key]

    return remembered


def num_channels_of(config: PreTrainedConfig) -> int:
    """How many channels the images of an encoder have: as its configuration says, 3 where it does not. An encoder of
    timm has it among what its model is made with."""
    arguments = getattr(config, "model_args", None) or {}
    return getattr(config, "num_channels", None) or arguments.get("in_chans", 3)


@once_per_config
def patch_size_of(config: PreTrainedConfig) -> int | tuple[int, int] | None:
    """Pixels a side of a patch, `None` where there are none: of timm that of the model, else of the configuration."""
    if config.model_type != "timm_wrapper":
        return getattr(config, "patch_size", None)
    return getattr(getattr(blank_copy(config).timm_model, "patch_embed", None), "patch_size", None)


def is_grid(config: PreTrainedConfig) -> bool:
    """Whether an encoder sees a spectrogram as a grid of patches, as AST does, instead of frame by frame."""
    return hasattr(config, "frequency_stride") and hasattr(config, "time_stride")


def image_model_options(config: PreTrainedConfig, spectrograms: bool = False) -> dict[str, bool]:
    """What to tell `AutoModel`, so that an encoder of images comes without a pooler where that can be said.

    Args:
        config (`PreTrainedConfig`):
            Of the encoder.
        spectrograms (`bool`, *optional*, defaults to `False`):
            Whether it may be one of spectrograms, which are images of another kind.

    Raises:
        UserError: if it is no encoder of images.
    """
    if spectrograms and is_grid(config):
        return {}
    model_class = MODEL_MAPPING.get(type(config), None)
    if isinstance(model_class, tuple):
        model_class = model_class[0]
    if model_class is None or model_class.main_input_name != "pixel_values":
        raise UserError(
            f"A {config.model_type} is no encoder of images alone. Choose one, such as vit, dinov2, resnet, "
            "convnextv2 or swin."
        )
    if config.model_type == "vit_mae":
        raise UserError("A vit_mae hides patches in every forward pass. Use vit, which has the same weights.")
    takes_pooler = "add_pooling_layer" in signature(model_class.__init__).parameters
    return {"add_pooling_layer": False} if takes_pooler else {}


@once_per_config
def layout(config: PreTrainedConfig) -> Layout:
    """What comes out of an encoder.

    The tokens of its own are those that are more than the places of a convolution's output: of the patch embedding,
    or, where later convolutions make the grid smaller, of the last ones.

    Raises:
        UserError: if it is no encoder of images, or does not run on a blank one.
    """
    image_model_options(config, spectrograms=True)
    reasons = []
    one_block = with_one_block(config)
    for size in sizes_to_try(config):
        for tried, device in ((one_block, "meta"), (config, "meta"), (one_block, "cpu")):
            if device == "cpu" and "meta" not in str(reasons[-1]):
                continue  # it was not for want of numbers
            try:
                return _layout(tried, size, device)
            except FAILURES as error:
                reasons.append(error)
    reason = " ".join(str(reasons[0]).split())[:200].rstrip(". ")
    raise UserError(f"This {config.model_type} does not run on an image ({reason}). Choose another encoder.")


def blank_copy(config: PreTrainedConfig, device: str = "meta") -> PreTrainedModel:
    """The encoder of a config in evaluation mode, without a pooler where that can be said."""
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # other implementations want a GPU, or numbers
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return AutoModel.from_config(config, **image_model_options(config, spectrograms=True)).float().eval()


def blank_image(config: PreTrainedConfig, size: int, device: str = "meta") -> torch.Tensor:
    """Zeros of the shape that an encoder of images or of spectrograms takes, a batch of one."""
    if is_grid(config):
        return torch.zeros(1, config.max_length, config.num_mel_bins, device=device)
    return torch.zeros(1, num_channels_of(config), size, size, device=device)


def _layout(config: PreTrainedConfig, size: int, device: str) -> Layout:
    encoder = blank_copy(config, device)
    places: list[int] = []
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, out: places.append(out.shape[-2] * out.shape[-1]))
    with torch.no_grad():
        outputs = encoder(blank_image(config, size, device))
    hidden = outputs.last_hidden_state
    if hidden.ndim == 4:
        pooled = outputs.get("pooler_output")
        dim = hidden.shape[1] if pooled is None else pooled.flatten(1).shape[1]
        return Layout(0, False, True, dim, is_pooled=pooled is not None)
    length = hidden.shape[1]
    if not places and getattr(config, "patch_size", None):  # patches that a linear layer projects
        places.append((size // _largest(config.patch_size)) ** 2)
    # merged patches (Swin) are fewer than those of any convolution
    num_own = length - max((number for number in places if number <= length), default=length)
    num_registers = min(getattr(config, "num_register_tokens", 0) or 0, num_own)
    return Layout(num_own, num_own > num_registers, False, hidden.shape[2])


def sizes_to_try(config: PreTrainedConfig) -> list[int]:
    """The size of the images of a config, and the usual one, which leaves something of them in any case."""
    return list(dict.fromkeys((_size(config), 224)))


def _size(config: PreTrainedConfig) -> int:
    return _largest(getattr(config, "image_size", None) or 224)


def _largest(size: int | Sequence[int]) -> int:
    return size if isinstance(size, int) else max(size)


def with_one_block(config: PreTrainedConfig) -> PreTrainedConfig:
    """The same architecture with a single block, where a field says how many there are."""
    config = copy.deepcopy(config)
    if hasattr(config, "num_hidden_layers"):
        config.num_hidden_layers = 1
    return config


def small_copy(config: PreTrainedConfig) -> PreTrainedModel:
    """An encoder of the same architecture, in evaluation mode: two narrow blocks, 3 x 3 patches.

    All its weights are random: those that begin at 0, such as biases of attention, would hide what they do.

    Raises:
        UserError: if it is no encoder of images.
        Exception: any of `FAILURES`, where the architecture cannot be so small.
    """
    image_model_options(config)
    config = copy.deepcopy(config)
    if not all(isinstance(getattr(config, name, None), int) for name in ("num_hidden_layers", "hidden_size")):
        raise ValueError(f"A {config.model_type} is no stack of blocks of one width.")
    small = {
        "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2,
        "intermediate_size": 64, "head_dim": 16,
    }  # fmt: skip
    for name, value in small.items():
        if getattr(config, name, None) is not None:
            setattr(config, name, value)
    patch, size = getattr(config, "patch_size", None), getattr(config, "image_size", None)
    if patch is not None and size is not None:
        pixels = 3 * _largest(patch)
        config.image_size = pixels if isinstance(size, int) else type(size)([pixels] * len(size))
    encoder = blank_copy(config, "cpu")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return encoder


def trial_images(encoder: PreTrainedModel) -> torch.Tensor:
    """Two images of random numbers for a [`small_copy`]."""
    config, generator = encoder.config, torch.Generator().manual_seed(1)
    size = _size(config)
    return torch.randn(2, num_channels_of(config), size, size, generator=generator, dtype=torch.float32)
