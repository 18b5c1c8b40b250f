"""Cutting out and resizing with antialiasing, from bytes to bytes.

Large images go one by one through torch's kernel for bytes. For small ones its fixed cost is most of the time: images
of one size are resized together instead, as two matrix products with weights for each, or, where that is less work, as
sums of two rows and one product. The results agree to one level
of 255; to two where the fixed point of the kernel errs most, in pixels that alternate between black and white.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


# Images and views up to this height and width count as small. It decides from the size alone: the views of an image
# must not depend on what else there is.
SMALL = 48
# Crops that are resized at a time: what is made on the way stays in the cache.
_CROPS_AT_ONCE = 16
# `interpolate(antialias=True)` comes down to these; they write where they are told to.
_KERNELS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa,
}


def crop_and_resize(
    image: torch.Tensor, box: Sequence[int], flip: bool, interpolation: str, out: torch.Tensor
) -> None:
    """Cut one box out of an image and resize it.

    Args:
        image (`torch.Tensor` of dtype `uint8` and shape `(num_channels, height, width)`):
            Need not be contiguous.
        box (`Sequence[int]`):
            Top, left, height and width.
        flip (`bool`):
            Whether to mirror it left to right.
        interpolation (`str`):
            bilinear or bicubic.
        out (`torch.Tensor` of dtype `uint8` and shape `(1, num_channels, size, size)`):
            Where it goes.
    """
    top, left, height, width = box
    strides = image.stride()
    offset = image.storage_offset() + top * strides[1] + left * strides[2]
    channels = image.shape[0]
    crop = image.as_strided((1, channels, height, width), (channels * strides[0], *strides), offset)
    size, kernel = list(out.shape[2:]), _KERNELS[interpolation]
    if flip:
        out.copy_(kernel(crop, size, False).flip(-1))
    else:
        kernel.out(crop, size, False, out=out)


def crop_and_resize_together(
    images: torch.Tensor, boxes: np.ndarray, flips: np.ndarray, interpolation: str, out: torch.Tensor
) -> None:
    """Cut boxes out of small images of one size and resize them.

    Args:
        images (`torch.Tensor` of dtype `uint8` and shape `(num_images, num_channels, height, width)`):
            The images.
        boxes (`np.ndarray` of shape `(num_images, num_views, 4)`):
            Top, left, height and width.
        flips (`np.ndarray` of dtype `bool` and shape `(num_images, num_views)`):
            Whether to mirror left to right.
        interpolation (`str`):
            bilinear or bicubic.
        out (`torch.Tensor` of dtype `uint8` and shape `(num_images, num_views, num_channels, size, size)`):
            Where the views go.
    """
    number, channels, height, width = images.shape
    size = out.shape[-1]
    boxes, flips = torch.from_numpy(boxes).float(), torch.from_numpy(flips)
    places = torch.arange(size) + 0.5
    mirrored = torch.where(flips[..., None], size - places, places)
    # the channels of a row side by side: both passes then take one set of weights an image
    images = images.transpose(1, 2)
    if interpolation == "bilinear" and max(height, width) <= size:
        _enlarge(images, boxes, mirrored, places, out)
        return
    across = _weights(boxes[..., 1], boxes[..., 3], mirrored, width, interpolation).transpose(-1, -2)
    down = _weights(boxes[..., 0], boxes[..., 2], places, height, interpolation)
    pixels = images.contiguous().float().view(number, height * channels, width)
    for view in range(out.shape[1]):
        rows = torch.bmm(pixels, across[:, view])
        if interpolation == "bicubic":  # overshoots, which the kernel for bytes cuts off here too
            rows.clamp_(0, 255)
        resized = torch.bmm(down[:, view], rows.view(number, height, channels * size)).add_(0.5)
        if interpolation == "bicubic":
            resized.clamp_(0, 255)
        _to_bytes(resized.view(number, size, channels, size).transpose(1, 2), out[:, view])


def _enlarge(
    images: torch.Tensor, boxes: torch.Tensor, mirrored: torch.Tensor, places: torch.Tensor, out: torch.Tensor
) -> None:
    """Bilinear, each output between two inputs: down by sums of two rows of `images`
    `(num_images, height, num_channels, width)`, across by a product."""
    number, height, channels, width = images.shape
    num_views, size = out.shape[1], out.shape[-1]
    rows, row_weights = _neighbours(boxes[..., 0], boxes[..., 2], places, height)
    columns, column_weights = _neighbours(boxes[..., 1], boxes[..., 3], mirrored, width)
    across = torch.zeros(number, num_views, size, width).scatter_add_(-1, columns, column_weights)
    at_once = max(1, _CROPS_AT_ONCE // num_views)
    rows += (torch.arange(number) % at_once * height).view(number, 1, 1, 1)
    for part in (slice(first, first + at_once) for first in range(0, number, at_once)):
        # a byte is what lies before the point
        pixels = (images[part].contiguous().float() + 0.5).view(-1, channels * width)
        picked = F.embedding_bag(
            rows[part].reshape(-1, 2), pixels, per_sample_weights=row_weights[part].reshape(-1, 2), mode="sum"
        )
        weights = across[part].flatten(0, 1).transpose(1, 2)
        resized = torch.bmm(picked.view(-1, size * channels, width), weights)
        _to_bytes(resized.view(-1, num_views, size, channels, size).transpose(2, 3), out[part])


def _neighbours(
    starts: torch.Tensor, lengths: torch.Tensor, places: torch.Tensor, num_inputs: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The two inputs next to each output and their weights, both `(num_images, num_views, size, 2)`."""
    starts, lengths = starts[..., None], lengths[..., None]
    at = torch.addcmul(starts - 0.5, places, lengths / places.shape[-1])
    at = torch.minimum(torch.maximum(at, starts), starts + lengths - 1)
    before = at.floor()
    share = at - before
    inputs = torch.stack([before, (before + 1).clamp_max_(num_inputs - 1)], dim=-1).long()
    return inputs, torch.stack([1 - share, share], dim=-1)


def _to_bytes(values: torch.Tensor, out: torch.Tensor) -> None:
    np.copyto(out.numpy(), values.numpy(), casting="unsafe")  # torch takes three times as long


def _weights(
    starts: torch.Tensor, lengths: torch.Tensor, places: torch.Tensor, num_inputs: int, interpolation: str
) -> torch.Tensor:
    """What each input contributes to each output, `(num_images, num_views, size, num_inputs)`; the outputs lie at
    `places` of the view."""
    starts, lengths = starts[..., None], lengths[..., None]
    scale = lengths / places.shape[-1]
    # an enlarged image is interpolated, a reduced one averaged over what an output covers
    unit = scale.clamp_min(1.0)
    inputs = torch.arange(num_inputs) + 0.5
    outside = (inputs < starts) | (inputs > starts + lengths)
    inputs = (inputs / unit).masked_fill_(outside, torch.inf)
    distances = (inputs[..., None, :] - ((starts + places * scale) / unit)[..., None]).abs_()
    if interpolation == "bilinear":
        weights = distances.neg_().add_(1.0).clamp_min_(0.0)
    else:  # Keys' cubic with -0.5: one polynomial up to 1, another up to 2, both 0 where they meet and end
        far = distances.clamp(1.0, 2.0)
        near = distances.clamp_max_(1.0)
        weights = ((1.5 * near).sub_(2.5).mul_(near).mul_(near).add_(1.0)).add_(
            (-0.5 * far).add_(2.5).mul_(far).sub_(4.0).mul_(far).add_(2.0)
        )
    return weights.div_(weights.sum(-1, keepdim=True))
