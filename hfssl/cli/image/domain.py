"""How `recipes/pretrain.py` goes about images."""

from ...data.image.decode import image_header
from ...data.modality import Input
from ..domains import PROBE_FLAGS, Choice, Domain, batch_for, why_not_readable


# From so many images on, with an accelerator, a teacher has enough to see.
_MANY = 100_000


def choose(num_samples: int, on_cpu: bool) -> Choice:
    """Contrast, or where there is much to see and the machine for it, distillation."""
    if num_samples >= _MANY and not on_cpu:
        return Choice(
            "dino",
            "distillation (DINO): many images and an accelerator, where small crops that follow a teacher's view of "
            "large ones lead to better features than contrast, in more time",
        )
    return Choice(
        "simclr",
        "contrast (SimCLR): what shows the same thing after cropping and colouring is to be found again among others; "
        "of what is measured in recipes/README.md it knows most after minutes",
        {"per_device_train_batch_size": batch_for(num_samples, 256)},
    )


DOMAIN = Domain(
    "image", "images", {"image": Input("image")}, choose, "image", labels_flags=PROBE_FLAGS,
    why_not=why_not_readable(image_header),
)  # fmt: skip
