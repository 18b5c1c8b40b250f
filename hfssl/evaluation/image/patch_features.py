"""Features of the patches of images: what stands in each place of an encoder's last map, and the pixels themselves."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from ...errors import first_line
from ...modeling.pooling import num_own_tokens
from ..evaluator import EvaluationError
from .encoder import VisionEncoder
from .features import normalized, processed_size
from .sizes import size_arguments


# Of raw patches: more pixels a side say no more, and make features of thousands of numbers.
_RAW_SIDE = 8


def patch_features(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor | None:
    """What an encoder, in evaluation mode, says of each patch, without CLS and registers.

    Args:
        model (`PreTrainedModel`):
            Of tokens, or of maps as ResNet and ConvNeXt.
        pixel_values (`torch.Tensor` of shape `(n, num_channels, height, width)`):
            Images, normalised.

    Returns:
        `torch.Tensor` of dtype `float32` and shape `(n, rows, columns, dim)`; `None` where the tokens are no grid.
    """
    height, width = pixel_values.shape[-2:]
    hidden = model(pixel_values=pixel_values, **size_arguments(model, height, width)).last_hidden_state.float()
    if hidden.ndim == 4:
        return hidden.permute(0, 2, 3, 1)
    hidden = hidden[:, num_own_tokens(model.config) :]
    grid = grid_of(model.config, hidden.shape[1], height, width)
    return None if grid is None else hidden.unflatten(1, grid)


def grid_of(config: PreTrainedConfig, num_patches: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the patches of images of a size; `None` where they are no grid."""
    patch = getattr(config, "patch_size", None)
    rows = height // patch if isinstance(patch, int) else 0
    if rows < 1 or rows * (width // patch) != num_patches:  # merged ones are fewer
        rows = round((num_patches * height / width) ** 0.5)
    return None if rows < 1 or num_patches % rows else (rows, num_patches // rows)


class PatchEncoder:
    """Makes features of patches.

    Args:
        vision ([`VisionEncoder`]):
            Gives the image processor.
        model (`PreTrainedModel`):
            In evaluation mode, on the device to work on.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not.
    """

    def __init__(self, vision: VisionEncoder, model: PreTrainedModel, precision: str = "fp32"):
        self.processor, self.model, self.precision = vision.processor, model, precision

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Of `uint8` images `(n, num_channels, size, size)`, features `(n, rows, columns, dim)` on the CPU.

        Raises:
            EvaluationError: where the encoder does not take images of this size, or ends in no map.
        """
        device = self.model.device
        autocast = torch.autocast(device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        size = images.shape[-1]
        try:
            with torch.no_grad(), autocast:
                found = patch_features(self.model, normalized(self.processor, images, device))
        except (RuntimeError, ValueError, IndexError) as error:
            raise EvaluationError(
                f"This {self.model.config.model_type} does not take images of {size} × {size} pixels "
                f"({first_line(error).rstrip('.')}): pass the size of its training as `--patch_image_size`."
            ) from error
        if found is None or min(found.shape[1:3]) < 2:
            raise EvaluationError(
                f"Of images of {size} × {size} pixels this {self.model.config.model_type} leaves no map of 2 × 2 "
                "patches or more: pass larger ones (`--patch_image_size`), or probe another encoder."
            )
        return found.cpu()


def raw_patches(images: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    """The pixels of each patch in [0, 1], `(n, rows, columns, dim)`, at most 8 × 8 of them a patch."""
    side = max(1, min(_RAW_SIDE, images.shape[-1] // max(rows, columns)))
    pixels = F.interpolate(images.float() / 255, (rows * side, columns * side), mode="area")
    return F.unfold(pixels, side, stride=side).mT.unflatten(1, (rows, columns))


def squares(images: Sequence[torch.Tensor], size: int) -> torch.Tensor:
    """Decoded images, each as a whole, as squares: `uint8` of shape `(n, num_channels, size, size)`."""
    parts = [
        image[None]
        if image.shape[-2:] == (size, size)
        else F.interpolate(image[None].float(), (size, size), mode="bicubic", align_corners=False, antialias=True)
        .round()
        .clamp(0, 255)
        .to(torch.uint8)
        for image in images
    ]
    return torch.cat(parts)


def fitting_size(vision: VisionEncoder, sides: Sequence[int]) -> int:
    """The size at which to show images, of which some have these longer sides, to an encoder: their own, but at least
    that of its image processor and at most twice that, in whole patches."""
    trained = max(processed_size(vision.processor).values(), default=224)
    own = sorted(sides)[len(sides) // 2] if sides else trained
    size = min(max(own, trained), 2 * trained)
    patch = getattr(vision.config, "patch_size", None)
    return max(patch, size // patch * patch) if isinstance(patch, int) else size
