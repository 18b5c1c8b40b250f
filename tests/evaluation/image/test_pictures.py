"""Pictures say what is in them: axes, projection, classes and colours are named."""

import numpy as np
import pytest
import torch

from hfssl.evaluation.image import pictures


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, instead of files."""
    figures = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: figures.append(figure))
    return figures


@pytest.mark.parametrize(
    "rows, classes, projection, named",
    [(60, 26, "t-SNE", True), (12, 3, "principal component", True), (130, 65, "t-SNE", False)],
)
def test_a_map_of_features_names_its_axes_and_classes(drawn, tmp_path, rows, classes, projection, named):
    labels = np.arange(rows) % classes
    features = {"encoder": np.random.default_rng(0).normal(size=(rows, 8)).astype(np.float32)}
    names = [f"class {i}" for i in range(classes)]
    pictures.plot_feature_map(features, labels, names, tmp_path / "map.png")
    [figure] = drawn
    [axes] = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == (f"{projection} 1", f"{projection} 2")
    legend = axes.get_legend()
    if named:
        assert [text.get_text() for text in legend.get_texts()] == names and legend.get_title().get_text() == "class"
    else:
        assert legend is None and "65 classes" in figure.get_suptitle()


def test_a_map_of_patches_says_what_its_colours_are(drawn, tmp_path):
    images, maps = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), np.zeros((2, 4, 4, 3))
    pictures.plot_patches(images, maps, tmp_path / "patches.png")
    [figure] = drawn
    assert "principal component" in figure.get_suptitle()
    assert "4 × 4 patches" in figure.axes[2].get_title(loc="left")


def test_what_is_taken_for_another_class_says_for_which(drawn, tmp_path):
    images = torch.zeros(9, 3, 8, 8, dtype=torch.uint8)
    labels, said, shares = np.arange(9) % 2, 1 + np.arange(9) % 2, np.full(9, 0.625)
    pictures.plot_mistakes(images, labels, said, shares, ["cat", "dog"], tmp_path / "mistakes.png")
    [figure] = drawn
    below = [axes.get_xlabel() for axes in figure.axes]
    assert below[:2] == ["cat\n→ dog (62 %)", "dog\n→ 2 (62 %)"] and below[9:] == [""] * 7
    assert "20 nearest" in figure.get_suptitle()


def test_two_dollars_in_a_name_are_no_formula(tmp_path):
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    pictures.plot_mistakes(images, np.array([0]), np.array([1]), np.ones(1), ["$\\frac$", "$x"], tmp_path / "a.png")
    assert (tmp_path / "a.png").is_file()
