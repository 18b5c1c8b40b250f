"""What `--encoder auto` is: an encoder and a size of images for data and machine, with a line that says why."""

import logging
from dataclasses import dataclass

from ...machine import say_choice


logger = logging.getLogger(__name__)

CONVOLUTIONAL, TRANSFORMER = "convolutional", "transformer"
# Of methods that also learn of each patch which one it is.
DISTILLED_PATCHES = "distilled patches"
# Image encoders of pairs, which are called as their recipes.
CLIP, SIGLIP = "clip", "siglip"


def _of_pairs(name: str, base: str) -> dict[int, tuple[str | None, str, str]]:
    mini, small = f"{name}-mini-patch", f"{name}-small-patch"
    return {
        32: (f"{mini}4",) * 3, 64: (f"{mini}8",) * 3, 96: (None, f"{small}8", f"{small}8"),
        224: (None, f"{small}16", f"{name}-{base}"),
    }  # fmt: skip


_TRANSFORMERS: dict[int, tuple[str | None, str, str]] = {
    32: ("vit-mini-patch4", "vit-mini-patch4", "vit-tiny-patch4"),
    64: ("vit-mini-patch8", "vit-mini-patch8", "vit-tiny-patch8"),
    128: (None, "vit-tiny-patch16", "vit-small-patch16"),
    224: (None, "vit-tiny-patch16", "vit-small-patch16"),
}
# Of each kind, by the size of the images: what a CPU trains in minutes (none where it would be hours), what a GPU
# does, and what it does where images are many.
_BY_SIZE: dict[str, dict[int, tuple[str | None, str, str]]] = {
    CONVOLUTIONAL: {
        32: ("resnet-mini", "resnet-mini", "resnet-18"),
        64: ("resnet-mini", "resnet-18-half", "resnet-18"),
        128: (None, "resnet-18", "resnet-18"),
        224: (None, "resnet-18", "resnet-50"),
    },
    TRANSFORMER: _TRANSFORMERS,
    # a quarter of the patches is a third of the time, and what minutes teach depends on how many images they show
    DISTILLED_PATCHES: _TRANSFORMERS | {32: ("vit-mini-patch8", "vit-mini-patch4", "vit-tiny-patch4")},
    CLIP: _of_pairs("clip-image", "base-patch32"),
    SIGLIP: _of_pairs("siglip-image", "base-patch16"),
}
# What comes with hfssl is trained with, on every machine.
_EMBEDDED = {
    CONVOLUTIONAL: "resnet-mini", TRANSFORMER: "vit-mini-patch4", DISTILLED_PATCHES: "vit-mini-patch8",
    CLIP: "clip-image-mini-patch4", SIGLIP: "siglip-image-mini-patch4",
}  # fmt: skip
# From so many images on a wider encoder has enough to learn from.
_MANY = 100_000
# Images are made larger by so much at most: there is nothing more to see in them.
_MOST_ENLARGED = 1.25


@dataclass(frozen=True)
class Choice:
    """An encoder for some images, and the next larger one that there would be."""

    encoder: str
    image_size: int
    better: tuple[str, int] | None = None


def embedded_encoder(kind: str) -> str:
    """The encoder of the embedded sets."""
    return _EMBEDDED[kind]


def choose(kind: str, short_side: int, num_images: int, on_cpu: bool, image_size: int | None = None) -> Choice:
    """An encoder of a kind, and the size of images that it is to see.

    Args:
        kind (`str`):
            `"convolutional"`, `"transformer"` or `"distilled patches"`, of pairs `"clip"` or `"siglip"`.
        short_side (`int`):
            Of a usual image, in pixels.
        num_images (`int`):
            How many there are.
        on_cpu (`bool`):
            Whether there is no accelerator.
        image_size (`int`, *optional*):
            Where the size is stated, an encoder for it.
    """
    table = _BY_SIZE[kind]
    sizes = [size for size in table if table[size][0] is not None or not on_cpu]
    if image_size is not None:
        nearest = max([size for size in sizes if size <= image_size * _MOST_ENLARGED], default=sizes[0])
        return Choice(_encoder(table[nearest], num_images, on_cpu), image_size)
    fitting = [size for size in table if size <= short_side * _MOST_ENLARGED] or [next(iter(table))]
    size = max([size for size in fitting if size in sizes], default=sizes[0])
    larger = next((other for other in fitting if other > size), None)
    better = None if larger is None else (_encoder(table[larger], num_images, on_cpu=False), larger)
    return Choice(_encoder(table[size], num_images, on_cpu), size, better)


def say(choice: Choice, short_side: int, num_images: int, on_cpu: bool, flag: str = "encoder") -> None:
    """Write a choice to the log: what, why, and what would be slower and better."""
    text = (
        f"--{flag} {choice.encoder} --image_size {choice.image_size}, for {num_images:,} images of about "
        f"{short_side} pixels on {'a CPU' if on_cpu else 'this accelerator'}"
    )
    if choice.better is not None:
        encoder, size = choice.better
        times = (size / choice.image_size) ** 2
        text += f". Slower (at least {times:.0f} times) and better: --{flag} {encoder} --image_size {size}"
    say_choice(logger, f"Chosen: {text}.")


def _encoder(row: tuple[str | None, str, str], num_images: int, on_cpu: bool) -> str:
    on_a_cpu, small, large = row
    if on_cpu and on_a_cpu is not None:
        return on_a_cpu
    return large if num_images >= _MANY else small
