"""Speed of the views alone, against lightly's transforms: the same images, crops and probabilities.

Each side makes whole batches of views, ready for the model, in turn and in one process: ours as the stream and its
collator do, lightly's as a `DataLoader` without workers does (transform image by image, then stack). Input are decoded
images, or JPEG files with `--jpeg`. Medians over the rounds are compared.
"""

import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from ..data.image.views import SMALL_IMAGE, ViewArguments, Views
from ..data.stream import Block
from ..errors import UserError
from ..functional import keyed
from ..functional.keyed import Use
from ..methods import METHODS


# Height and width of the images that views of a size are cut from: CIFAR's, and a little more than the view.
_SOURCE_SIZES = {32: 32, 96: 128, 224: 256}
# Views of a batch times their height: smaller views come in larger batches, as in training.
_BATCH_TIMES_SIZE = 8192
_LOCAL_CROPS = 6


@dataclass
class ViewsBenchmark:
    r"""
    > Benchmark

    Args:
        against (`str`, *optional*, defaults to `"lightly"`):
            Whom to measure against.
        methods (`list[str]`, *optional*, defaults to `["simclr", "dino"]`):
            Whose views: simclr (2), dino (2 and 6 local ones).
        sizes (`list[int]`, *optional*, defaults to `[32, 96, 224]`):
            Heights and widths of a view. Up to 64 without blur.
        jpeg (`bool`, *optional*, defaults to `False`):
            From JPEG files instead of decoded images.
        blocks (`int`, *optional*, defaults to `7`):
            Rounds: a batch of each side in turn.
        cpu_threads (`int`, *optional*, defaults to `1`):
            Threads of both sides. lightly's run on one, as the worker of a data loader does.
        seed (`int`, *optional*, defaults to `0`):
            Seed of the views.
        json (`bool`, *optional*, defaults to `False`):
            End with a line of JSON for each method and size.
    """

    against: Literal["lightly"] = "lightly"
    methods: list[Literal["simclr", "dino"]] = field(default_factory=lambda: ["simclr", "dino"])
    sizes: list[int] = field(default_factory=lambda: [32, 96, 224])
    jpeg: bool = False
    blocks: int = 7
    cpu_threads: int = 1
    seed: int = 0
    json: bool = False

    def __post_init__(self):
        for name in ("blocks", "cpu_threads"):
            if getattr(self, name) < 1:
                raise UserError(f"`--{name}` must be at least 1, got {getattr(self, name)}.")
        if not self.methods or not self.sizes or not all(8 <= size <= 1024 for size in self.sizes):
            raise UserError(
                f"`--methods` takes simclr and dino, `--sizes` pixels from 8 to 1024, got {self.methods} and "
                f"{self.sizes}."
            )


def run_views_benchmark(arguments: ViewsBenchmark) -> tuple[Any, ...]:
    """Measure each method at each size, and return what to read and what `--json` prints, a report each.

    Raises:
        UserError: if lightly is not installed.
    """
    try:
        import lightly.transforms  # noqa: F401
    except ImportError:
        raise UserError(
            'The benchmark measures against lightly, which is not installed. Run `pip install -e ".[benchmark]"`.'
        ) from None
    torch.set_num_threads(arguments.cpu_threads)
    reports = [_measure(arguments, method, size) for method in arguments.methods for size in arguments.sizes]
    source = "JPEG files" if arguments.jpeg else "decoded images"
    lines = [
        f"Views alone, from {source}, {arguments.cpu_threads} thread(s); "
        f"medians over {arguments.blocks} batches of each side in turn.",
        "",
        f"{'method':8}{'pixels':>7}{'from':>6}{'batch':>7}{'hfssl':>12}{'lightly':>12}{'ratio':>8}  in single rounds",
    ]
    for report in reports:
        ours, theirs = (f"{report[side]['items_per_s']:,.0f}/s" for side in ("ours", "theirs"))
        low, high = report["ratio_range"]
        lines.append(
            f"{report['views']:8}{report['image_size']:7}{report['source_size']:6}{report['batch_size']:7}{ours:>12}"
            f"{theirs:>12}{report['ratio']:8.2f}  {low:.2f} to {high:.2f}"
        )
    lines += [
        "",
        "Images a second, each with all its views. Not the same to the bit: lightly rounds to bytes after each step "
        "and blurs with Pillow's approximation; ours is float, with the numbers of torchvision.",
    ]
    return "\n".join(lines), *reports


def _measure(arguments: ViewsBenchmark, method: str, size: int) -> dict[str, Any]:
    source_size = _SOURCE_SIZES.get(size, size * 8 // 7)
    batch_size = max(16, _BATCH_TIMES_SIZE // size)
    photos = sample_photos(batch_size, source_size)
    made = {"ours": _ours, "theirs": _theirs}
    sides = {name: make(arguments, method, size, photos) for name, make in made.items()}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(arguments.blocks + 1):
        for name, side in sides.items():
            begin = time.perf_counter()
            side(turn)
            if turn:  # the first warms up
                seconds[name].append(time.perf_counter() - begin)
    rates = {name: batch_size / statistics.median(values) for name, values in seconds.items()}
    quotients = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    report = {"method": "views", "against": arguments.against, "views": method, "image_size": size}
    report |= {name: {"items_per_s": _short(rate)} for name, rate in rates.items()}
    report["ratio"] = _short(rates["ours"] / rates["theirs"])
    report["ratio_range"] = [_short(min(quotients)), _short(max(quotients))]
    report |= {"jpeg": arguments.jpeg, "source_size": source_size, "batch_size": batch_size}
    return report | {"blocks": arguments.blocks, "threads": arguments.cpu_threads}


def _ours(arguments: ViewsBenchmark, method: str, size: int, photos: list[Any]) -> Callable[[int], Any]:
    preset = METHODS[method].method.views
    local = {"local_crops": _LOCAL_CROPS, "local_size": _local_size(size)} if preset.local else {}
    views = Views(preset, ViewArguments(image_size=size, **local), is_grey=False)
    collate = views.collator("cpu")
    if arguments.jpeg:
        images = [_jpeg(photo) for photo in photos]
    else:
        images = [torch.from_numpy(np.array(photo)).permute(2, 0, 1) for photo in photos]

    def make(turn: int) -> dict[str, torch.Tensor]:
        keys = keyed.key(Use.BENCHMARK_VIEWS, arguments.seed, turn, np.arange(len(images)))
        return collate(views.rows(Block({"image": images}, keys, turn)).columns)

    return make


def _theirs(arguments: ViewsBenchmark, method: str, size: int, photos: list[Any]) -> Callable[[int], Any]:
    from lightly.transforms import DINOTransform, SimCLRTransform
    from PIL import Image

    is_small = size <= SMALL_IMAGE
    if method == "simclr":
        transform = SimCLRTransform(input_size=size, gaussian_blur=0.0 if is_small else 0.5)
    else:
        blur = {"gaussian_blur": (0.0, 0.0, 0.0)} if is_small else {}
        local = {"n_local_views": _LOCAL_CROPS, "local_crop_size": _local_size(size)}
        transform = DINOTransform(global_crop_size=size, **local, **blur)
    files = [_jpeg(photo) for photo in photos] if arguments.jpeg else None

    def make(turn: int) -> list[torch.Tensor]:
        torch.manual_seed(arguments.seed + turn)
        images = photos if files is None else [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
        return [torch.stack(views) for views in zip(*map(transform, images), strict=True)]

    return make


def sample_photos(number: int, size: int) -> list[Any]:
    """Square parts of the two photographs that scikit-learn brings, as RGB images of Pillow."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photos = [Image.fromarray(photo) for photo in load_sample_images().images]
    parts = []
    for i in range(number):
        photo = photos[i % len(photos)]
        side, down, right = keyed.uniform(keyed.key(Use.BENCHMARK_PICTURES, i, np.arange(3)))
        side = int((0.3 + 0.7 * side) * min(photo.size))
        left, top = int(right * (photo.width - side)), int(down * (photo.height - side))
        parts.append(photo.resize((size, size), Image.BICUBIC, box=(left, top, left + side, top + side)))
    return parts


def _local_size(size: int) -> int:
    return max(16, -(-3 * size // 56) * 8)


def _jpeg(photo: Any) -> bytes:
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _short(value: float) -> float:
    return float(f"{value:.5g}")
