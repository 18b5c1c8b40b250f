"""Scenes: images with several letters, and what each pixel belongs to, on every machine without a download.

Up to four letters, drawn as those of [`~hfssl.data.image.letters`] and of the same sizes, stand somewhere on a ground
of one colour, each in a colour of its own and clear of most of the others. What an encoder has to know of a patch is
which letter it is a part of: its colour does not say it.
"""

import numpy as np

from ...functional import keyed
from ...functional.keyed import Use
from ..cache import cached_columns
from .letters import FONTS, LETTERS, ROTATION, SCALE, colors_of, drawn_with, placed_letters
from .png import png_files


# Part of the name of the cache: raise it when other images are drawn than before.
FORMAT_VERSION = 1

NUM_IMAGES = {"train": 2_000, "test": 400}
SIZE = 64
LETTERS_AN_IMAGE = (2, 4)
# Places that are tried for each letter; where none is free, it is left out.
TRIES = 12
# Pixels that letters of the full size keep to each other, by twice that, and to the edge of the image.
REACH = 15.0
# So many pixels around its ink are of a letter too: a patch of a few pixels is hardly ever filled with ink.
AROUND = 2
# Images that are drawn at once.
_CHUNK = 500


def scenes(split: str) -> dict[str, list]:
    """The scenes of a split, and what they show.

    The drawing takes some seconds and is kept in `HF_HOME/hfssl`, as that of the letters.

    Args:
        split (`str`):
            `"train"` (2,000 images) or `"test"` (400).

    Returns:
        `dict[str, list]`: `image`, PNG files of 64 × 64 pixels; `mask`, PNG files in grey with the class of each
        pixel, a place in `SCENE_CLASSES`: 0 is the ground, from 1 on come the letters with two pixels around their
        ink; `label`, of each image the places in `LETTERS` of those that it shows, from back to front; `box`, for each
        of them left, top, width and height in pixels of what its mask would be, were it alone.
    """
    return cached_columns(f"scenes-{split}-v{FORMAT_VERSION}-{drawn_with()}", lambda: _draw(split))


def _draw(split: str) -> dict[str, list]:
    columns: dict[str, list] = {"image": [], "mask": [], "label": [], "box": []}
    for start in range(0, NUM_IMAGES[split], _CHUNK):
        rows = np.arange(start, min(start + _CHUNK, NUM_IMAGES[split]))
        for name, values in _draw_rows(split, rows).items():
            columns[name] += values
    return columns


def _draw_rows(split: str, rows: np.ndarray) -> dict[str, list]:
    number, (least, most) = len(rows), LETTERS_AN_IMAGE
    seed = list(NUM_IMAGES).index(split)

    def draw(*what: int, columns: int) -> np.ndarray:
        return keyed.uniform(keyed.key(Use.EMBEDDED_SCENES, seed, *what, rows[:, None], np.arange(columns)[None]))

    of_image = draw(0, columns=4)
    count = least + (of_image[:, 0] * (most - least + 1)).astype(int)
    papers, inks, shares, middles, scales, labels, present = [], [], [], [], [], [], []
    for slot in range(most):
        of_letter = draw(1, slot, columns=7)
        label, font = (of_letter[:, 0] * len(LETTERS)).astype(int), (of_letter[:, 1] * len(FONTS)).astype(int)
        angle = np.deg2rad((2 * of_letter[:, 2] - 1) * ROTATION)
        scale = SCALE[0] + of_letter[:, 3] * (SCALE[1] - SCALE[0])
        middle, free = _free_place(draw(2, slot, columns=2 * TRIES), scale, middles, scales)
        ink, paper = colors_of(of_letter[:, 4:7], of_image[:, 1:4])
        there = (slot < count) & free
        share = placed_letters(label, font, angle, scale, middle, SIZE) * there[:, None, None].astype(np.uint8)
        # those that are not there keep no place free, and their paper is none
        middles.append(np.where(there[:, None], middle, -1e3))
        papers.append(np.where(there[:, None], paper, 0.0).astype(np.float32))
        for values, value in zip(
            (inks, shares, scales, labels, present), (ink, share, scale, label, there), strict=True
        ):
            values.append(value)
    # what is lighter than one of its letters by enough is so for all of them in the lightest of their papers
    papers = np.stack(papers)
    paper = np.take_along_axis(papers, papers.mean(2).argmax(0)[None, :, None], axis=0)[0]
    pixels = np.broadcast_to(paper[:, None, None], (number, SIZE, SIZE, 3)).copy()
    masks = np.zeros((number, SIZE, SIZE), np.uint8)
    boxes: list[list[list[int]]] = [[] for _ in range(number)]
    for ink, share, label in zip(inks, shares, labels, strict=True):
        pixels += (ink[:, None, None] - pixels) * (share[..., None].astype(np.float32) / 255)
        covered = _widened(share >= 128) | (share > 0)  # thin ink too
        masks = np.where(covered, (1 + label[:, None, None]).astype(np.uint8), masks)
        for found, each in zip(boxes, covered, strict=True):
            found += [_box(each)] if each.any() else []
    return {
        "image": png_files(np.rint(pixels).clip(0, 255).astype(np.uint8)), "mask": png_files(masks),
        "label": [
            [int(label[row]) for label, there in zip(labels, present, strict=True) if there[row]]
            for row in range(number)
        ],
        "box": boxes,
    }  # fmt: skip


def _free_place(
    draws: np.ndarray, scale: np.ndarray, middles: list[np.ndarray], scales: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The first place of some, `(num_images, 2)`, that is clear of the letters that stand already; whether one is."""
    edge = (REACH * scale)[:, None]
    place, free = np.zeros((len(draws), 2)), np.zeros(len(draws), bool)
    for turn in range(TRIES):
        tried = edge + draws[:, 2 * turn : 2 * turn + 2] * (SIZE - 2 * edge)
        place = np.where(free[:, None], place, tried)
        clear = np.ones(len(place), bool)
        for middle, other in zip(middles, scales, strict=True):
            clear &= np.linalg.norm(tried - middle, axis=1) >= REACH * (scale + other)
        free |= clear
    return place, free


def _widened(masks: np.ndarray) -> np.ndarray:
    """Masks `(number, height, width)`, and what is up to `AROUND` pixels from them across, down or both."""
    for axis in (1, 2):
        padded = np.pad(masks, [(AROUND, AROUND) if other == axis else (0, 0) for other in range(3)])
        length = masks.shape[axis]
        masks = np.any([np.take(padded, np.arange(i, i + length), axis) for i in range(2 * AROUND + 1)], axis=0)
    return masks


def _box(mask: np.ndarray) -> list[int]:
    down, across = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(across[0]), int(down[0]), int(across[-1] - across[0] + 1), int(down[-1] - down[0] + 1)]
