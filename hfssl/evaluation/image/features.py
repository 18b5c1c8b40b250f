"""Features of images by a frozen encoder, see [`~hfssl.evaluation.extraction`].

Images are pre-processed by the stock image processor. What the features depend on are weights, configuration,
processor, pooling, precision and images.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ...machine import choose_precision, process_state
from ...modeling.base import evaluating
from ...modeling.image_processing import processed_channels
from ...modeling.pooling import check_pooling
from ...modeling.vision import image_features
from .. import extraction
from ..evaluator import EvaluationError
from ..feature_files import digest as make_digest
from ..probe_features import ENCODER, RANDOM_INIT, RAW_INPUT, STATISTICS, ProbeFeatures
from .encoder import VisionEncoder
from .sizes import size_arguments


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

logger = logging.getLogger(__name__)


class EncoderFeatures:
    r"""
    Pooled features of a stock encoder.

    Args:
        encoder ([`VisionEncoder`]):
            Gives the image processor.
        model ([`~transformers.PreTrainedModel`]):
            The model itself: trained, or with new weights.
        pooling (`str`, *optional*):
            See [`~hfssl.modeling.pooling.pool_features`]; what fits the architecture when left out.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not.
    """

    def __init__(
        self, encoder: VisionEncoder, model: PreTrainedModel, pooling: str | None = None, precision: str = "fp32"
    ):
        self.processor, self.model = encoder.processor, model
        self.pooling = check_pooling(model.config, pooling)
        self.precision = choose_precision(precision, use_cpu=process_state().device.type == "cpu")
        self.digest = make_digest("encoder", encoder.digest(model), self.pooling, self.precision)
        # a model that was given as an object stays where it is
        self.device = model.device if encoder.model is model else process_state().device

    def __call__(self, images: list[torch.Tensor]) -> np.ndarray:
        pixel_values = preprocess(self.processor, images, self.device)
        self.model.to(self.device)
        autocast = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()
        with autocast:
            features = encode(self.model, pixel_values, self.pooling)
        return features.float().cpu().numpy()


class PixelFeatures:
    r"""
    The pixels themselves in [0, 1]: what an encoder has to be better than.

    Resized to at most 32 × 32, to no more than the images have and the encoder sees; one channel where the images are
    grey. The size is that of the first images of `data`.

    Args:
        processor:
            Image processor of the encoder.
        data ([`~hfssl.data.labelled.LabelledData`]):
            The images to learn from.
    """

    def __init__(self, processor: Any, data: "LabelledData"):
        from ...data.image.decode import DamagedImage, image_header

        headers = []
        for row in range(min(64, len(data.images))):
            with suppress(DamagedImage):
                headers.append(image_header(data.images[row], processed_channels(processor)))
        sides = [max(header.height, header.width) for header in headers]
        self.size = min([32, max(sides, default=32), *processed_size(processor).values()])
        self.is_grey = processed_channels(processor) == 3 and bool(headers) and all(each.is_grey for each in headers)
        self.digest = make_digest("pixels", self.size, self.is_grey)

    def __call__(self, images: list[torch.Tensor]) -> np.ndarray:
        shape = (self.size, self.size)
        small = torch.cat(
            [
                image[None].float()
                if image.shape[-2:] == shape
                else F.interpolate(image[None].float(), shape, mode="bilinear", align_corners=False, antialias=True)
                for image in images
            ]
        )
        if self.is_grey:
            small = small.mean(1)
        return small.flatten(1).div_(255).numpy()


class ChannelStatistics:
    """Mean and standard deviation of each channel, in [0, 1]: what is known of an image without its shapes."""

    digest = make_digest("channel statistics")

    def __call__(self, images: list[torch.Tensor]) -> np.ndarray:
        channels = (image.flatten(1).float() / 255 for image in images)
        return torch.stack([torch.cat([each.mean(1), each.std(1, correction=0)]) for each in channels]).numpy()


def probe_features(
    encoder: str | Path | PreTrainedModel,
    processor: Any,
    train: "LabelledData",
    test: "LabelledData",
    *,
    pooling: str | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    cache_dir: str | Path | None = None,
) -> ProbeFeatures:
    """Features of both splits by the encoder, by its random initialisation (seed 0), raw pixels, and statistics."""
    vision = VisionEncoder(encoder, processor)
    trained = EncoderFeatures(vision, vision.load(), pooling, precision)
    untrained = EncoderFeatures(vision, vision.random_init(seed=0), trained.pooling, precision)
    extractors = {
        ENCODER: trained, RANDOM_INIT: untrained, RAW_INPUT: PixelFeatures(vision.processor, train),
        STATISTICS: ChannelStatistics(),
    }  # fmt: skip
    with evaluating(trained.model), evaluating(untrained.model):
        train_x, test_x = (
            extract(
                split,
                extractors,
                batch_size=batch_size,
                cache_dir=cache_dir,
                title=name,
                value_range=range_for(vision.processor, train.images),
                num_channels=processed_channels(vision.processor),
            )
            for name, split in {"train": train, "test": test}.items()
        )
    # as they are all are positive, and the cosine that k-NN goes by hardly tells them apart
    mean, deviation = train_x[STATISTICS].mean(0), train_x[STATISTICS].std(0) + 1e-6
    for x in (train_x, test_x):
        x[STATISTICS] = (x[STATISTICS] - mean) / deviation
    settings = {
        "pooling": trained.pooling,
        "dim": train_x[ENCODER].shape[1],
        "image_size": processed_size(vision.processor),
        "precision": trained.precision,
    }
    return ProbeFeatures(vision.name, train_x, test_x, settings)


def extract_features(
    encoder: str | Path | PreTrainedModel,
    processor: Any,
    images: "LabelledData",
    *,
    pooling: str | None = None,
    batch_size: int = 256,
    precision: str = "fp32",
    cache_dir: str | Path | None = None,
    random_init: bool = False,
    seed: int = 0,
) -> np.ndarray:
    r"""
    Pooled features of images by a frozen encoder.

    Args:
        encoder (`str`, `Path` or [`~transformers.PreTrainedModel`]):
            Folder or Hub id of a stock encoder, or a model.
        processor (*optional*):
            Image processor; that of the folder when `None`.
        images ([`~hfssl.data.labelled.LabelledData`]):
            Encoded images, and their fingerprint.
        pooling (`str`, *optional*):
            See [`~hfssl.modeling.pooling.pool_features`]; what fits the architecture when left out.
        batch_size (`int`, *optional*, defaults to `256`):
            Images a forward pass.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not; `auto` takes bf16 where the hardware computes in it.
        cache_dir (`str` or `Path`, *optional*):
            Folder to keep features in. Nothing is kept without.
        random_init (`bool`, *optional*, defaults to `False`):
            Take the architecture with new weights, drawn with `seed`.

    Returns:
        `np.ndarray` of dtype `float32` and shape `(num_images, dim)`; the same in all processes.
    """
    vision = VisionEncoder(encoder, processor)
    model = vision.random_init(seed) if random_init else vision.load()
    with evaluating(model):
        extractor = EncoderFeatures(vision, model, pooling, precision)
        return extract(
            images, {ENCODER: extractor}, batch_size=batch_size, cache_dir=cache_dir,
            value_range=range_for(vision.processor, images.images),
            num_channels=processed_channels(vision.processor),
        )[ENCODER]  # fmt: skip


def extract(
    data: "LabelledData",
    extractors: Mapping[str, extraction.Extractor],
    *,
    batch_size: int = 256,
    cache_dir: str | Path | None = None,
    title: str | None = None,
    value_range: tuple[float, ...] | None = None,
    num_channels: int = 3,
) -> dict[str, np.ndarray]:
    """Features of all images by each extractor, see [`~hfssl.evaluation.extraction.extract`]."""
    return extraction.extract(
        data,
        extractors,
        ImageReader(value_range, num_channels),
        batch_size=batch_size,
        cache_dir=cache_dir,
        title=title,
    )


class ImageReader:
    """How images are decoded: a [`~hfssl.evaluation.extraction.Reader`].

    Args:
        value_range (`tuple[float, ...]`, *optional*), num_channels (`int`, *optional*, defaults to 3):
            See [`~hfssl.data.image.decode.decode_image`].
    """

    samples, blank_words = "images", "black"

    def __init__(self, value_range: tuple[float, ...] | None = None, num_channels: int = 3):
        self.value_range, self.num_channels = value_range, num_channels
        self.key = () if value_range is None else (value_range,)
        self.key += () if num_channels == 3 else (num_channels,)
        self.blank = torch.zeros(num_channels, 32, 32, dtype=torch.uint8)

    def batches(
        self, samples: Sequence[bytes], starts: Sequence[int], batch_size: int
    ) -> Iterator[list[torch.Tensor | None]]:
        return decoded(samples, starts, batch_size, self.value_range, self.num_channels)

    def damage(self, sample: bytes) -> str | None:
        from ...data.image.decode import DamagedImage, decode_image

        try:
            decode_image(sample, 1, self.value_range, self.num_channels)
        except DamagedImage as error:
            return str(error)
        return None


def range_for(processor: Any, images: Sequence[bytes]) -> tuple[float, ...] | None:
    """What becomes black and white of images with more than 8 bits, before they are given to an encoder."""
    from ...data.image.value_range import range_of

    of_set = getattr(images, "value_range", None)
    return range_of(processor) if of_set is None else of_set.for_encoder(processor)


def decoded(
    images: Sequence[bytes],
    starts: Sequence[int],
    batch_size: int,
    value_range: tuple[float, ...] | None = None,
    num_channels: int = 3,
) -> Iterator[list[torch.Tensor | None]]:
    """Batches of decoded images, each `uint8` of shape `(num_channels, height, width)`; `None` where one is damaged.

    The batch after the one that is handed out is decoded meanwhile.
    """
    return extraction.in_threads(lambda image: _decode(image, value_range, num_channels), images, starts, batch_size)


def _decode(data: bytes, value_range: tuple[float, ...] | None, num_channels: int) -> torch.Tensor | None:
    from ...data.image.decode import DamagedImage, decode_image

    try:
        return decode_image(data, 1, value_range, num_channels)
    except DamagedImage as error:
        logger.debug("An image cannot be decoded: %s", error)
        return None


def preprocess(
    processor: Any, images: Sequence[torch.Tensor] | torch.Tensor, device: torch.device | str = "cpu", **kwargs
) -> torch.Tensor:
    """What a stock image processor makes of decoded images: `(n, num_channels, height, width)`."""
    if getattr(processor, "backend", None) == "torchvision":
        # many small images of one size are resized in one go, for large ones it makes no difference
        same = len({tuple(image.shape) for image in images}) == 1
        kwargs = {"device": device, "disable_grouping": False if same else None, **kwargs}
    else:
        images = [image.numpy() for image in images]
    batch = processor(images=images, return_tensors="pt", input_data_format="channels_first", **kwargs)["pixel_values"]
    if not isinstance(batch, torch.Tensor) or batch.ndim != 4:
        raise EvaluationError(
            f"{type(processor).__name__} leaves images of several sizes: probes need one that resizes to a fixed "
            'height and width, such as size={"height": 224, "width": 224}.'
        )
    return batch.to(device)


def resized_images(
    processor: Any,
    images: Sequence[bytes],
    rows: Sequence[int] | None = None,
    batch_size: int = 256,
    bad: list[int] | None = None,
) -> torch.Tensor:
    """Images as an encoder sees them, before they are normalised: `uint8` of shape `(n, num_channels, height, width)`.

    Damaged ones are black, and their rows join `bad`. [`normalized`] does the rest.
    """
    rows = range(len(images)) if rows is None else rows
    chosen, value_range, channels = _Rows(images, rows), range_for(processor, images), processed_channels(processor)
    parts = []
    starts = range(0, len(rows), batch_size)
    for start, batch in zip(starts, decoded(chosen, starts, batch_size, value_range, channels), strict=True):
        if bad is not None:
            bad += [int(rows[start + i]) for i, image in enumerate(batch) if image is None]
        batch = [torch.zeros(channels, 32, 32, dtype=torch.uint8) if image is None else image for image in batch]
        pixels = preprocess(processor, batch, do_rescale=False, do_normalize=False)
        parts.append(pixels.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def measured_images(
    processor: Any, images: Sequence[bytes], max_bad_fraction: float = extraction.MAX_BAD_FRACTION
) -> torch.Tensor:
    """[`resized_images`] of all that is measured on, with a word on those that are damaged.

    Raises:
        EvaluationError: if more than a share of them are.
    """
    bad: list[int] = []
    pixels = resized_images(processor, images, bad=bad)
    reader = ImageReader(range_for(processor, images), processed_channels(processor))
    extraction.check_damage(images, bad, "those to measure on", reader, max_bad_fraction)
    return pixels


def normalized(processor: Any, pixels: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """`pixel_values` of images that [`resized_images`] gave, on `device`."""
    return preprocess(processor, pixels.to(device), device, do_resize=False, do_center_crop=False)


class _Rows:
    """Some of a sequence of images, read when asked for."""

    def __init__(self, images: Sequence[bytes], rows: Sequence[int]):
        self.images, self.rows = images, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> bytes:
        return self.images[int(self.rows[index])]


def processed_size(processor: Any) -> dict[str, int]:
    """Height and width, or the short side, of what an image processor gives."""
    settings = processor.to_dict()
    size = settings.get("crop_size") if settings.get("do_center_crop") else None
    return {name: value for name, value in dict(size or settings.get("size") or {}).items() if isinstance(value, int)}


def encode(model: PreTrainedModel, pixel_values: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pooled features, of shape `(batch_size, dim)`, of preprocessed images."""
    return image_features(model, pixel_values, pooling, **size_arguments(model, *pixel_values.shape[-2:]))
