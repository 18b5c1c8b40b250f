"""Two encoders that were trained together: retrieval both ways, and classes told apart by their names."""

from collections.abc import Sequence
from typing import Any

from ..modality import EvaluationModality


def _make_embedder(samples: Sequence[dict[str, Any]], processor: Any, transform: Any, batch_size: int):
    """Of the first side: the encoder that is called the method's own."""
    from ...modeling.pairs import part_of
    from ..modality import evaluation_modality

    name = next(iter(transform.sides))
    if name == "text":
        from ...data.caption.captions import first_text

        of_side = [first_text(sample[name]) for sample in samples]
    else:
        of_side = [sample[name] for sample in samples]
    return evaluation_modality(name).make_embedder(of_side, part_of(processor, name), None, batch_size)


MODALITY = EvaluationModality(name="multimodal", main_inputs=(), make_embedder=_make_embedder)
