"""How `recipes/pretrain.py` goes about recordings."""

from ...data.audio.decode import audio_header
from ...data.modality import Input
from ..domains import PROBE_FLAGS, Choice, Domain, batch_for, why_not_readable


def choose(num_samples: int, on_cpu: bool) -> Choice:
    """Contrast of spectrograms."""
    return Choice(
        "simclr",
        "contrast (SimCLR on spectrograms): two pieces of a recording, louder, noisier and mixed with others, are to "
        "be found again, which suits labels of whole recordings; for what is said in them, take `--method hubert`",
        {"modality": "audio", "per_device_train_batch_size": batch_for(num_samples, 128)},
    )


DOMAIN = Domain(
    "audio", "recordings", {"audio": Input("audio")}, choose, "audio", labels_flags=PROBE_FLAGS,
    why_not=why_not_readable(audio_header),
)  # fmt: skip
