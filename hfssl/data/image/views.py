"""Views: the randomly cropped and recoloured versions of an image that joint-embedding methods compare and MAE hides.

Two halves, so that neither waits. In the worker ([`Views.rows`]) each image is decoded, and its crops are cut out and
resized with antialiasing, to bytes. On the device of the training ([`Views.collator`]) colour, blur, solarise and
normalise run over many views at once. Every number about a sample is drawn in the worker from the key of the sample:
its views do not depend on block, batch, worker or process.

The parameters mean what those of torchvision v2's transforms mean, which are the words of most reference codes; the
distribution is the same. Departures: factors of colour are drawn and applied to floats, not rounded to bytes between
the steps; a Gaussian ends at four sigma; a JPEG much larger than its crops is decoded at a half, a quarter or an
eighth of its size (see `hfssl.data.image.crops`).
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from ...errors import UserError
from ...functional import keyed
from ...functional.keyed import Use
from ...functional.views import View, ViewPreset
from ..device import Beside
from ..stream import Block, Rows
from .column_makers import BlockMasks, ColumnMaker, Crops, MixedSizes, Noise
from .png import encoded_image
from .tiles import Tiles


if TYPE_CHECKING:
    from transformers import BaseImageProcessor

logger = logging.getLogger(__name__)

NORMALIZATIONS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
_GREY = "The images are greyscale: views change no saturation and no hue."
_NO_COLORS = (
    "No channel is named as a colour: views change brightness and contrast of all, and nothing of colours. "
    "`--colour_channels` names red, green and blue."
)
# Up to this size (height and width of a global view) the presets follow the practice for CIFAR.
SMALL_IMAGE = 64


@dataclass
class ViewArguments:
    r"""
    > Views

    Left out, a value is that of the method's paper, or of its authors' code. For views of at most 64 pixels it is the
    field's practice for CIFAR instead: no blur, which leaves nothing of so small an image (SimCLR, appendix B.9);
    SimCLR's jitter at half strength (the same); local crops of at least a fifth of the area, below which they are a
    few pixels wide.

    Departures: SimCLR crops with bilinear interpolation, as in most libraries; its code is bicubic. The codes of
    SimCLR and BYOL resize with TensorFlow, without antialiasing. BYOL's adds to the brightness instead of multiplying
    it.

    Args:
        image_size (`int`, *optional*):
            Pixels a side of a view. Left out or auto: 32 for the embedded letters, else chosen with the encoder, or
            that of a given one (vit-mini-patch4: 32), or 224.
        mixed_sizes (`list[int]`, *optional*):
            Several sizes of views, of which one is drawn for each step, such as 224 336 448: for the last steps of a
            run, which adapt it to larger images (DINOv3). Local views change in proportion. The largest is
            `image_size`; held-out losses are of it.
        crop_scale (`tuple[float, float]`, *optional*):
            Smallest and largest share of the image's area that a view shows. Left out: that of the method.
        crop_ratio (`tuple[float, float]`, *optional*):
            Smallest and largest width / height of what is cut out. 3/4 and 4/3 when left out.
        interpolation (`str`, *optional*):
            bilinear or bicubic, both antialiased. Left out: bicubic for BYOL, DINO, MAE, Barlow Twins and
            VICReg, else bilinear.
        flip_probability (`float`, *optional*):
            How many views are mirrored left to right. 0.5 when left out.
        jitter (`tuple[float, float, float, float]`, *optional*):
            Largest change of brightness, contrast, saturation (1 + or - so much, not below 0) and hue (turns, at most
            0.5). Left out: that of the method.
        jitter_probability (`float`, *optional*):
            How many views are jittered. Left out: as the method has it.
        grey_probability (`float`, *optional*):
            How many views lose their colours. Left out: as the method has it.
        blur_probability (`list[float]`, *optional*):
            How many views are blurred: one value for all, or one for each view of full size and one for local views.
            Left out: as the method has it.
        blur_sigma (`tuple[float, float]`, *optional*):
            Smallest and largest sigma of the blur in pixels. 0.1 and 2 when left out.
        solarize_probability (`list[float]`, *optional*):
            How many views are solarised: one value for all, or one for each as in `blur_probability`. Left out: as the
            method has it.
        local_crops (`int`, *optional*):
            Local views an image, for methods that have them. Left out: none of images below 64 pixels, unless another
            flag speaks of them.
        local_size (`int`, *optional*):
            Height and width of a local view. 3/7 of `image_size` when left out, rounded up to whole patches,
            and at least 24 pixels for encoders that have none.
        local_crop_scale (`tuple[float, float]`, *optional*):
            Smallest and largest share of the image's area that a local view shows. Left out: that of the method.
        normalization (`str`, *optional*):
            Mean and standard deviation that pixels are normalised with: imagenet, half (0.5 and 0.5, to [-1, 1]) or
            dataset (measured on a sample, of each channel). Left out: those of a checkpoint that is continued, else
            imagenet of red, green and blue, and dataset of other channels.
        colour_channels (`list[int]`, *optional*):
            Which channels are red, green and blue, counted from 0, of images with others beside them. Saturation, hue,
            grey and solarise are of these; all channels are cropped, blurred and change in brightness and contrast.
            Left out: of three channels all, else none.
    """

    image_size: int | None = None
    mixed_sizes: list[int] | None = None
    crop_scale: tuple[float, float] | None = None
    crop_ratio: tuple[float, float] | None = None
    interpolation: Literal["bilinear", "bicubic"] | None = None
    flip_probability: float | None = None
    jitter: tuple[float, float, float, float] | None = None
    jitter_probability: float | None = None
    grey_probability: float | None = None
    blur_probability: list[float] | None = None
    blur_sigma: tuple[float, float] | None = None
    solarize_probability: list[float] | None = None
    local_crops: int | None = None
    local_size: int | None = None
    local_crop_scale: tuple[float, float] | None = None
    normalization: Literal["imagenet", "half", "dataset"] | None = None
    colour_channels: list[int] | None = None

    def __post_init__(self):
        if self.mixed_sizes is not None:
            largest = max(self.mixed_sizes, default=0)
            if min(self.mixed_sizes, default=0) < 1 or self.image_size not in (None, largest):
                raise UserError(
                    "`--mixed_sizes` is numbers of pixels, of which the largest is `--image_size`, got "
                    f"{_words(self.mixed_sizes)}{'' if self.image_size is None else f' and {self.image_size}'}."
                )
            self.image_size = largest
        colors = self.colour_channels
        if colors is not None and (len(set(colors)) != 3 or len(colors) != 3 or min(colors) < 0):
            raise UserError(
                "`--colour_channels` is which channels are red, green and blue, three numbers counted from 0, got "
                f"{_words(colors)}."
            )
        for name in ("image_size", "local_size"):
            size = getattr(self, name)
            if size is not None and not 1 <= size <= 4096:
                raise UserError(f"`--{name}` is a number of pixels from 1 to 4096, got {size}.")
        if self.local_crops is not None and self.local_crops < 0:
            raise UserError(f"`--local_crops` is a number of views, got {self.local_crops}.")
        self._check_range("crop_scale", "shares of the area, more than 0 and at most 1", 1.0)
        self._check_range("local_crop_scale", "shares of the area, more than 0 and at most 1", 1.0)
        self._check_range("crop_ratio", "width / height, more than 0")
        self._check_range("blur_sigma", "sigmas in pixels, more than 0")
        for name in ("flip", "jitter", "grey", "blur", "solarize"):
            name += "_probability"
            given = getattr(self, name)
            for value in given if isinstance(given, Sequence) else [given]:
                if value is not None and not 0.0 <= value <= 1.0:
                    raise UserError(f"`--{name}` is a probability between 0 and 1, got {value:g}.")
        if self.jitter is not None and not (min(self.jitter) >= 0.0 and self.jitter[3] <= 0.5):
            raise UserError(
                "`--jitter` is brightness, contrast, saturation and hue, none below 0 and hue at most 0.5, got "
                f"{_words(self.jitter)}."
            )

    def _check_range(self, name: str, what: str, largest: float = float("inf")) -> None:
        given = getattr(self, name)
        if given is not None and not 0.0 < given[0] <= given[1] <= largest:
            raise UserError(f"`--{name}` takes the smallest and the largest of {what}, got {_words(given)}.")


class Views:
    """The views of a method: what a worker makes of a block, and what the model gets.

    Its columns are made by `crops` and, beside them, by a list of `makers` ([`ColumnMaker`]).

    The batch has `pixel_values` `(batch_size, 2, num_channels, height, width)`; for DINO also `local_pixel_values`
    `(batch_size, num_local_crops, num_channels, local_height, local_width)`; for DINOv2 also `masked_patches`, see
    [`~hfssl.data.image.column_makers.BlockMasks`]; for MAE `pixel_values` `(batch_size, num_channels, height, width)`
    and `noise` `(batch_size, num_patches)`, float32 in [0, 1), by which MAE ranks the patches.

    Args:
        preset ([`~hfssl.functional.views.ViewPreset`]):
            Those of a method: `SimclrForPreTraining.method.views`.
        arguments ([`ViewArguments`]):
            What differs from the preset.
        is_grey (`bool`):
            Whether the images have no colours: then nothing is done to saturation and hue.
        mean_std (`tuple[Sequence[float], Sequence[float]]`, *optional*):
            Mean and standard deviation of each channel in [0, 1], where `--normalization` does not say them: those of
            the data set, or of the checkpoint that is continued.
        patch_size (`int`, *optional*):
            Patches of the encoder, for the masks of MAE and DINOv2. Sizes have to be multiples of it.
        value_range (`tuple[float, ...]`, *optional*), num_channels (`int`, *optional*, defaults to 3):
            What becomes black and white of images with more than 8 bits, and how many channels they have, see
            [`~hfssl.data.image.decode.decode_image`].
        tiles ([`~hfssl.data.image.tiles.Tiles`], *optional*):
            Cuts large images up: then each tile is an image.
        embedded (`str`, *optional*):
            The embedded set that they are of, to whose images a method may fit its config.

    Raises:
        UserError: if a flag does not fit the method, or a size does not fit the patches.
    """

    has_mask = False  # all views are of one size

    def __init__(
        self,
        preset: ViewPreset,
        arguments: ViewArguments | None = None,
        *,
        is_grey: bool,
        mean_std: tuple[Sequence[float], Sequence[float]] | None = None,
        patch_size: int | None = None,
        value_range: tuple[float, ...] | None = None,
        num_channels: int = 3,
        tiles: Tiles | None = None,
        embedded: str | None = None,
    ):
        arguments = arguments or ViewArguments()
        normalization = arguments.normalization or ("imagenet" if num_channels == 3 else "dataset")
        if mean_std is None and normalization == "dataset":
            raise ValueError("`--normalization dataset` needs `mean_std`, measured on the data set.")
        if mean_std is None and normalization == "imagenet" and num_channels != 3:
            raise UserError(
                f"`--normalization imagenet` is of red, green and blue, and the images have {num_channels} channels. "
                "Pass `--normalization dataset`, or leave it out."
            )
        self.num_channels, self.tiles = num_channels, tiles
        self.colors = tuple(arguments.colour_channels or (range(3) if num_channels == 3 else ()))
        if self.colors and max(self.colors) >= num_channels:
            raise UserError(
                f"`--colour_channels {_words(self.colors)}` names channel {max(self.colors)}, and the images have "
                f"{num_channels} channels, counted from 0."
            )
        self.preset, self.is_grey, self.patch_size, self.value_range = preset, is_grey, patch_size, value_range
        self.embedded = embedded
        mean, std = mean_std or NORMALIZATIONS[normalization]
        if mean_std is None and normalization == "half":
            mean, std = mean[:1] * num_channels, std[:1] * num_channels
        if len(mean) != num_channels:
            raise ValueError(f"`mean_std` is of {len(mean)} channels, and the images have {num_channels}.")
        self.mean, self.std = [float(m) for m in mean], [float(s) for s in std]
        self.image_size = arguments.image_size or preset.views[0].size
        views, local, num_local = _resolve(preset, arguments, self.image_size, patch_size)
        if is_grey or not self.colors:
            changes = {} if self.colors else {"solarize_probability": 0.0}
            uncolored = [each and replace(_without_color(each), **changes) for each in (*views, local)]
            if uncolored != [*views, local]:
                logger.info(_GREY if is_grey else _NO_COLORS)
            views, local = tuple(uncolored[:-1]), uncolored[-1]
        self.views, self.local, self.num_local = views, local, num_local
        self.local_size = local.size if num_local else None
        groups = {"pixel_values": views} | ({"local_pixel_values": (local,) * num_local} if num_local else {})
        single = "pixel_values" if len(views) == 1 else None
        self.crops = Crops(groups, self.mean, self.std, single, value_range, self.colors)
        self.makers: list[ColumnMaker] = []
        side = self.image_size // (patch_size or 1)
        if preset.has_noise:
            self.makers.append(Noise(side**2))
        if preset.mask_ratio is not None:
            self.makers.append(BlockMasks(len(views), side, preset.mask_ratio))
        self.sizes: MixedSizes | None = None
        if arguments.mixed_sizes is not None and len(set(arguments.mixed_sizes)) > 1:
            self._mix_sizes(sorted(set(arguments.mixed_sizes)))

    def _mix_sizes(self, sizes: list[int]) -> None:
        unit = self.patch_size or 1
        if self.preset.has_noise:
            raise UserError("`--mixed_sizes` is for methods that compare views, not for one that fills in patches.")
        if odd := [size for size in sizes if size % unit]:
            raise UserError(f"`--mixed_sizes` are multiples of the encoder's patches of {unit} pixels, got {odd[0]}.")
        self.sizes = MixedSizes(sizes, unit)
        if self.preset.mask_ratio is not None:
            self.makers += [
                BlockMasks(len(self.views), size // unit, self.preset.mask_ratio, f"masked_patches_{size}")
                for size in sizes[:-1]
            ]

    def __call__(self, image: Any, *key: int) -> dict[str, torch.Tensor]:
        """The views of one image, for a `Dataset` of one's own: the batch of one, without its first axis.

        Args:
            image (`PIL.Image.Image`, `torch.Tensor`, `np.ndarray` or `bytes`):
                A picture; a tensor of shape `(num_channels, height, width)`; an array of shape `(height, width)` or
                `(height, width, num_channels)`; or an encoded image.
            key (`int`):
                Whole numbers that say which draw it is, such as seed, epoch and number of the image: the same ones
                give the same views.

        Raises:
            UserError: for what is no image.

        Example:

        ```python
        >>> views = Views(SimclrForPreTraining.method.views, ViewArguments(image_size=32), is_grey=False)
        >>> views(Image.open("cat.png"), seed, epoch, index)["pixel_values"].shape
        torch.Size([2, 3, 32, 32])
        ```
        """
        keys = np.atleast_1d(keyed.key(Use.SAMPLE, *key))
        rows = self.rows(Block({"image": [encoded_image(image)]}, keys, 0))
        if rows.bad:
            raise UserError(f"An image cannot be decoded: {rows.bad[0][1]}.")
        return {name: values[0] for name, values in self.collator("cpu")(rows.columns).items()}

    def rows(self, block: Block) -> Rows:
        """Crops of a block, in bytes, and how each is to be coloured: a pure function of the block."""
        bad_images = []
        if self.tiles is not None:
            block, bad_images = self.tiles(block)
        columns, kept, bad = self.crops.read(block)
        for maker in self.makers:
            columns |= maker.rows(block, kept)
        bad = bad_images or bad  # tiles are decoded already: of them none is damaged
        return Rows(columns, np.ones(len(kept), np.int64), bad, block.places[kept])

    def collator(self, device: torch.device | str = "cpu") -> Callable[[dict[str, Any]], dict[str, torch.Tensor]]:
        """What turns the columns of some rows into a batch on `device`."""
        return ViewCollator(self, device)

    def image_processor(self) -> "BaseImageProcessor":
        """The stock image processor that goes with an encoder of such views, see
        [`~hfssl.modeling.image_processing.build_image_processor`]."""
        from ...modeling.image_processing import build_image_processor  # imports more than workers need

        return build_image_processor(self.image_size, self.mean, self.std, self.value_range, self.colors)

    @property
    def settings(self) -> dict[str, Any]:
        """What of the views makes a run this run."""
        views = [dataclasses.asdict(view) for view in self.views]
        local = {"num": self.num_local} | dataclasses.asdict(self.local) if self.num_local else None
        settings = {"views": views, "local_views": local, "mean": self.mean, "std": self.std, "is_grey": self.is_grey}
        # what was begun before there was a choice goes on
        if self.num_channels != 3 or self.colors != (0, 1, 2):
            settings["colour_channels"] = list(self.colors)
        if self.sizes is not None:
            settings["mixed_sizes"] = list(self.sizes.sizes)
        return settings if self.tiles is None else settings | self.tiles.settings

    @property
    def description(self) -> str:
        """The views in words, one line each kind."""
        kinds = [(view, self.views.count(view)) for view in dict.fromkeys(self.views)]
        if self.num_local:
            kinds.append((self.local, self.num_local))
        lines = [f"{number} × {view.describe()}" for view, number in kinds]
        if self.tiles is not None:
            lines.append(f"of tiles of {self.tiles.size} pixels, {self.tiles.most} an image at most")
        if self.sizes is not None:
            lines.append(f"a size for each step: {_words(self.sizes.sizes)} pixels")
        return "\n".join(lines)


class ViewCollator:
    """Turns the columns of some rows into a batch, see [`Views`]."""

    def __init__(self, views: Views, device: torch.device | str):
        self.makers, self.device = (views.crops, *views.makers), torch.device(device)
        self.sizes = views.sizes
        self.beside = Beside(self.device)

    def __call__(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        return self.beside(lambda: self._collate(columns))

    def _collate(self, columns: dict[str, Any]) -> dict[str, torch.Tensor]:
        batch = {}
        for maker in self.makers:
            batch |= maker.collate(columns, self.device)
        return batch if self.sizes is None else self.sizes.resized(batch, columns.get("key_of_step"))


def _resolve(
    preset: ViewPreset, arguments: ViewArguments, image_size: int, patch_size: int | None
) -> tuple[tuple[View, ...], View | None, int]:
    """The views of the preset, with what the arguments say instead."""
    for name in ("local_crops", "local_size", "local_crop_scale"):
        if preset.local is None and getattr(arguments, name) is not None:
            raise UserError(f"`--{name}` is for methods with local views, such as dino; this one has none.")
    changes: dict[str, Any] = {"size": image_size}
    names = ("jitter", "jitter_probability", "grey_probability", "flip_probability", "blur_sigma", "interpolation")
    for name, flag in [*zip(names, names, strict=True), ("ratio", "crop_ratio")]:
        if getattr(arguments, flag) is not None:
            changes[name] = getattr(arguments, flag)
    num_local = arguments.local_crops
    if num_local is None:
        # of 32 pixels small crops show next to nothing, and cost as many steps (recipes/README.md, "Short runs")
        without = image_size < SMALL_IMAGE and arguments.local_size is None and arguments.local_crop_scale is None
        num_local = 0 if without else preset.num_local
    kinds = [*preset.views, *([preset.local] if preset.local else [])]
    if image_size <= SMALL_IMAGE:
        kinds = [_for_small_images(view, preset.small_jitter, is_local=view is preset.local) for view in kinds]
    for name in ("blur_probability", "solarize_probability"):
        given = getattr(arguments, name)
        if given is not None:
            if len(given) not in (1, len(kinds)):
                raise UserError(
                    f"`--{name}` takes one value or {len(kinds)} for this method ("
                    f"{len(preset.views)} views{', then the local ones' if preset.local else ''}), got {len(given)}."
                )
            values = given * len(kinds) if len(given) == 1 else given
            kinds = [replace(view, **{name: value}) for view, value in zip(kinds, values, strict=True)]
    kinds = [replace(view, **changes) for view in kinds]
    views = tuple(kinds[: len(preset.views)])
    if arguments.crop_scale is not None:
        views = tuple(replace(view, scale=arguments.crop_scale) for view in views)
    local = None
    if preset.local is not None:
        unit = patch_size or 8
        # of 16 pixels encoders without patches, which shrink images by 32, leave a single one before their last block
        least = 0 if patch_size else min(image_size, 3 * unit)
        size = arguments.local_size or max(-(-3 * image_size // (7 * unit)) * unit, least)
        scale = arguments.local_crop_scale or kinds[-1].scale
        local = replace(kinds[-1], size=size, scale=scale)
    sizes = [("image_size", image_size)] + ([("local_size", local.size)] if num_local else [])
    for name, size in sizes:
        if patch_size and size % patch_size:
            nearest = max(patch_size, round(size / patch_size) * patch_size)
            raise UserError(
                f"`--{name} {size}` is no multiple of the encoder's patches of {patch_size} pixels. Pass "
                f"`--{name} {nearest}`, or an encoder with other patches."
            )
    return views, local, num_local


def _for_small_images(view: View, jitter: tuple[float, ...] | None, is_local: bool) -> View:
    scale = (0.2, 0.4) if is_local else view.scale
    return replace(view, jitter=jitter or view.jitter, scale=scale, blur_probability=0.0)


def _without_color(view: View) -> View:
    return replace(view, jitter=(*view.jitter[:2], 0.0, 0.0), grey_probability=0.0)


def _words(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
