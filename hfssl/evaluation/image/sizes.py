"""What a forward pass has to be told of images of another size than the encoder was made for."""

import inspect

from transformers import PreTrainedModel


def size_arguments(model: PreTrainedModel, height: int, width: int) -> dict[str, bool]:
    """Arguments of `forward` for images of another size than the position embeddings were made for."""
    size = getattr(model.config, "image_size", None)
    size = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    takes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
    return {"interpolate_pos_encoding": True} if takes and size[0] and size != (height, width) else {}
