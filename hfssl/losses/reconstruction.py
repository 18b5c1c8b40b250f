"""Reconstruction: fill in what was hidden of the input."""

import torch

from .precision import at_least_float32, full_precision


def mae_loss(prediction: torch.Tensor, target: torch.Tensor, bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Reconstruction loss of [MAE](https://huggingface.co/papers/2111.06377), Section 3: on masked patches only.

    Args:
        prediction, target (`torch.Tensor` of shape `(batch_size, num_patches, dim)`):
            Pixels of each patch as predicted, and as they are (or normalised within each patch).
        bool_masked_pos (`torch.Tensor` of shape `(batch_size, num_patches)`):
            1 or `True` = masked, which counts; 0 = visible.

    Returns:
        `torch.Tensor` of shape `()`: mean over the masked patches of the patch's mean squared error. With normalised
        targets, 1 is what predicting zeros gives.

    Example:

    ```python
    >>> prediction, target = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 1.0, 1.0], [9.0, 9.0, 9.0]]])
    >>> mae_loss(prediction, target, torch.tensor([[1, 0]])).item()
    1.0
    ```
    """
    with full_precision(prediction):
        errors = (at_least_float32(prediction) - at_least_float32(target)).square().mean(-1)
        masked = bool_masked_pos.to(errors.dtype)
        return (errors * masked).sum() / masked.sum()
