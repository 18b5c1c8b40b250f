"""Characters with captions: what is drawn is what is said, and what is held out is never trained on."""

import unicodedata

import numpy as np
import pytest

from hfssl.data.image.characters import (
    CAPTIONS,
    FAMILIES,
    GROUNDS,
    INKS,
    SCRIPTS,
    SIZE,
    SPLITS,
    STYLES,
    all_characters,
    captions,
    characters,
)
from hfssl.data.image.decode import decode_image
from hfssl.data.image.png import palette_png_files, png_files
from hfssl.data.sources import Input, open_source


@pytest.fixture(scope="module")
def test_split():
    return characters("test")


def test_every_character_of_every_font_is_there_once():
    all_of_them = all_characters()
    places = np.stack([all_of_them.code, all_of_them.family, all_of_them.style])
    assert len(np.unique(places, axis=1).T) == len(all_of_them.code) > 50_000
    assert len(np.unique(all_of_them.code)) > 6_900
    shares = np.bincount(all_of_them.split) / len(all_of_them.split)
    assert shares[0] > 0.75 and 0.05 < shares[1] < 0.08 and 0.05 < shares[2] < 0.15


def test_a_composition_is_of_parts_that_train_has_and_never_together():
    of = all_characters()
    train, composition = of.split == 0, of.split == SPLITS.index("composition")
    colors = set(zip(of.code[train].tolist(), of.ink[train].tolist(), strict=True))
    styles = set(zip(of.code[train].tolist(), of.style[train].tolist(), strict=True))
    rows = list(zip(of.code.tolist(), of.ink.tolist(), of.style.tolist(), strict=True))
    new_color = [(code, ink) not in colors for code, ink, _ in rows]
    new_style = [(code, style) not in styles for code, _, style in rows]
    assert all(np.array(new_color)[composition] | np.array(new_style)[composition])
    assert np.array(new_color)[composition].mean() > 0.2 and np.array(new_style)[composition].mean() > 0.2
    # each part for itself was seen
    assert set(of.code[composition]) <= set(of.code[train]) and set(of.code[of.split == 1]) <= set(of.code[train])
    assert set(of.ink[train]) == set(range(len(INKS))) and set(of.style[train]) == set(range(len(STYLES)))


def test_a_caption_says_what_is_drawn(test_split):
    rows = range(0, len(test_split["image"]), 31)
    inks, grounds = np.array(list(INKS.values())), np.array(list(GROUNDS.values()))
    for i in rows:
        caption, pixels = test_split["caption"][i], decode_image(test_split["image"][i])
        assert pixels.shape == (3, SIZE, SIZE)
        said = {
            STYLES[test_split["style"][i]], FAMILIES[test_split["family"][i]], list(INKS)[test_split["color"][i]],
            list(GROUNDS)[test_split["ground"][i]],
        }  # fmt: skip
        assert all(words in caption for words in said)
        # the commonest colour is the ground's, the one that is farthest from it the ink's
        colors, counts = np.unique(pixels.flatten(1).T.numpy(), axis=0, return_counts=True)
        ground = colors[counts.argmax()].astype(float)
        assert np.abs(grounds - ground).sum(1).argmin() == test_split["ground"][i] or counts.max() < SIZE**2 / 2
        ink = colors[np.abs(colors - ground).sum(1).argmax()]
        if counts[np.abs(colors - ground).sum(1).argmax()] > 10:  # not only the edges of a hairline
            assert np.abs(inks - ink).sum(1).argmin() == test_split["color"][i], caption
    names = {unicodedata.name(chr(code)).lower() for code in all_characters().code}
    some = captions(type(all_characters())(*(values[:200] for values in all_characters())))
    assert all(any(name in caption for name in names) for caption in some)
    assert len({caption.count(",") for caption in some}) > 1 and len(CAPTIONS) > 1


def test_they_are_read_as_pairs_and_as_labelled_images(test_split):
    source = open_source(
        "characters", split="test", inputs={"image": Input("image"), "caption": Input("text"), "color": Input(None)}
    )
    read = source.read(3)
    first = int(read.rows[0])
    assert read.columns["image"] == test_split["image"][first : first + len(read.rows)]
    assert read.columns["caption"] == test_split["caption"][first : first + len(read.rows)]
    assert read.columns["color"] == test_split["color"][first : first + len(read.rows)]
    assert source.features["label"].names == list(SCRIPTS)


def test_images_of_16_colours_are_those_of_many_colours():
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 16, (3, 6, 10), np.uint8)
    palettes = generator.integers(0, 256, (3, 16, 3), np.uint8)
    full = np.stack([palette[image] for palette, image in zip(palettes, numbers, strict=True)])
    for small, large in zip(palette_png_files(numbers, palettes), png_files(full), strict=True):
        assert (decode_image(small) == decode_image(large)).all()
