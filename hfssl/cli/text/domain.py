"""How `recipes/pretrain.py` goes about texts."""

from ...data.modality import Input
from ..domains import PROBE_FLAGS, Choice, Domain


def choose(num_samples: int, on_cpu: bool) -> Choice:
    """Masking, always."""
    return Choice(
        "mlm",
        "masking (MLM): a hidden word has to be understood from those around it, while no change of a text is known "
        "to keep its meaning as a crop keeps that of an image, which contrast would need",
    )


DOMAIN = Domain("text", "texts", {"text": Input("text")}, choose, "text", labels_flags=PROBE_FLAGS)
