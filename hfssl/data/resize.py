"""Cutting out and resizing with antialiasing, from bytes to bytes.

Large images go one by one through torch's kernel for bytes. For small ones its fixed cost is most of the time: images
of one size are resized together instead, as two matrix products with weights for each. The results agree to one level
of 255; to two where the fixed point of the kernel errs most, in pixels that alternate between black and white.
"""

from collections.abc import Sequence

import numpy as np
import torch


# Images and views up to this height and width count as small. It decides from the size alone: the views of an image
# must not depend on what else there is.
SMALL = 48
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
        image (`torch.Tensor` of dtype `uint8` and shape `(3, height, width)`):
            Need not be contiguous.
        box (`Sequence[int]`):
            Top, left, height and width.
        flip (`bool`):
            Whether to mirror it left to right.
        interpolation (`str`):
            bilinear or bicubic.
        out (`torch.Tensor` of dtype `uint8` and shape `(1, 3, size, size)`):
            Where it goes.
    """
    top, left, height, width = box
    strides = image.stride()
    offset = image.storage_offset() + top * strides[1] + left * strides[2]
    crop = image.as_strided((1, 3, height, width), (3 * strides[0], *strides), offset)
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
        images (`torch.Tensor` of dtype `uint8` and shape `(num_images, 3, height, width)`):
            The images.
        boxes (`np.ndarray` of shape `(num_images, num_views, 4)`):
            Top, left, height and width.
        flips (`np.ndarray` of dtype `bool` and shape `(num_images, num_views)`):
            Whether to mirror left to right.
        interpolation (`str`):
            bilinear or bicubic.
        out (`torch.Tensor` of dtype `uint8` and shape `(num_images, num_views, 3, size, size)`):
            Where the views go.
    """
    number, _, height, width = images.shape
    num_views, size = out.shape[1], out.shape[-1]
    boxes, flips = torch.from_numpy(boxes).float(), torch.from_numpy(flips)
    places = torch.arange(size) + 0.5
    mirrored = torch.where(flips[..., None], size - places, places)
    across = _weights(boxes[..., 1], boxes[..., 3], mirrored, width, interpolation).transpose(-1, -2)
    down = _weights(boxes[..., 0], boxes[..., 2], places, height, interpolation)
    # the channels of a row side by side: both products then take one matrix of weights an image
    pixels = images.transpose(1, 2).contiguous().float().view(number, height * 3, width)
    for view in range(num_views):
        rows = torch.bmm(pixels, across[:, view])
        if interpolation == "bicubic":  # overshoots, which the kernel for bytes cuts off here too
            rows.clamp_(0, 255)
        resized = torch.bmm(down[:, view], rows.view(number, height, 3 * size)).add_(0.5)
        if interpolation == "bicubic":
            resized.clamp_(0, 255)
        # a byte is what lies before the point
        out[:, view].copy_(resized.view(number, size, 3, size).transpose(1, 2))


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
