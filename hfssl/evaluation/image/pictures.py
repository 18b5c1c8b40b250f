"""Pictures of what an encoder has learned: nearest neighbours, a map of the features, what its patches tell apart."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from ...functional import keyed
from ...functional.keyed import Use
from ...modeling.base import evaluating
from ..frozen import aligned_labels
from ..gallery import VOTES, gallery_of
from ..probe_features import ENCODER, MFCC_STATISTICS, RANDOM_INIT, RAW_INPUT, ProbeFeatures
from ..results import Result
from .encoder import VisionEncoder
from .features import normalized, resized_images
from .patch_features import patch_features


if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ...data.labelled import LabelledData
    from .samples import ImageSampleFeatures

logger = logging.getLogger(__name__)

# What is in the files that are written beside features of images.
CAPTIONS = {
    "reconstructions.png": "Held-out images, what the encoder saw of them, and the reconstruction.",
    "neighbours.png": "Test images, and the training images with the nearest features (green: the same class).",
    "mistakes.png": "Test images that k-NN takes for another class (class → what they are taken for, how surely).",
    "feature_map.png": "Features of the test samples in two dimensions (see the axes), a colour for each class.",
    "patches.png": "What the patches of an image tell apart: the same colour is the same to the encoder.",
    "patch_components.png": "What the patches of an image tell apart: their leading principal components as colours.",
    "segmentation.png": "Images with their masks, and what probes of the patches say, a colour for each class.",
    "label_efficiency.png": "What labels are worth: accuracy over the share of them that was used.",
    "duplicates.png": "Images that are nearly the same to the encoder.",
    "outliers.png": "Images that are least like any other to the encoder.",
    "clusters.png": "Images of each cluster that are nearest to its middle, side by side; the largest clusters first.",
    "views.png": "Held-out images, and views of them as in training.",
}
_RIGHT, _WRONG = "#2e7d32", "#c62828"
# A map of fewer patches a side is no picture.
LEAST_PATCHES = 4
# Classes that get a name in the legend of a map of features.
MOST_NAMED = 60
# Images in a line, and lines, of a picture of what stands out.
MOST_ACROSS, MOST_DOWN = 9, 6
# Fonts with the letters of many languages, and how matplotlib says that it has none for a letter.
_FONTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans", "Arial Unicode MS", "Unifont")
_NO_GLYPH = "missing from font"
# Below so many rows principal components are shown, not t-SNE.
FEW_ROWS = 50


def draw_pictures(
    encoder: str | Path | PreTrainedModel,
    processor: Any,
    train: "LabelledData",
    test: "LabelledData",
    features: ProbeFeatures,
    folder: Path,
) -> list[Path]:
    """Write `neighbours.png`, `mistakes.png`, `outliers.png`, `feature_map.png` and `patches.png` into `folder`, so
    far as there is something to see, and return their paths."""
    vision = VisionEncoder(encoder, processor)
    train_y, test_y = aligned_labels(train, test)
    names = [str(name) for name in train.class_names]
    found = gallery_of(features, train_y, test_y)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "neighbours.png", folder / "feature_map.png"]
    plot_neighbours(vision.processor, train, test, (train_y, test_y), names, found.neighbours, paths[0])
    plot_feature_map(features.test, test_y, names, paths[1])
    if found.mistakes:
        paths.append(folder / "mistakes.png")
        wrong, said, shares = map(np.array, zip(*found.mistakes, strict=True))
        images = resized_images(vision.processor, test.images, rows=wrong)
        plot_mistakes(images, test_y[wrong], said, shares, names, paths[-1])
    paths.append(folder / "outliers.png")
    odd = [row for row, _ in found.outliers]
    images = resized_images(vision.processor, test.images, rows=odd)
    below = [f"{_name(names, test_y[row])}\n{cosine:.2f}" for row, cosine in found.outliers]
    about = "class, and mean cosine to the nearest training images (mean taken off)"
    plot_labelled(images, below, about, paths[-1])
    images = resized_images(vision.processor, test.images, rows=[row for row, _ in found.neighbours])
    maps = patch_maps(vision, images)
    if maps is None:
        logger.info(
            "No picture of the patches: at %d x %d pixels this encoder ends in fewer than %d x %d of them.",
            *images.shape[-2:], LEAST_PATCHES, LEAST_PATCHES,
        )  # fmt: skip
    else:
        paths.append(folder / "patches.png")
        plot_patches(images, maps, paths[-1])
    return paths


def draw_report(
    embedder: "ImageSampleFeatures", images: Sequence[bytes], groups: Sequence[Sequence[int]], path: Path
) -> None:
    """Images that stand out, as an encoder sees them: those of a group side by side, the first groups only.

    Args:
        embedder ([`~hfssl.evaluation.image.samples.ImageSampleFeatures`]):
            Which made the features.
        images (`Sequence[bytes]`):
            Encoded images.
        groups (`Sequence[Sequence[int]]`):
            Rows of the images: pairs of duplicates, single outliers, or some of each cluster.
        path (`Path`):
            Of the picture.
    """
    width = len(groups[0])
    # an empty place after each pair
    across = MOST_ACROSS if width == 1 else MOST_ACROSS // (width + 1)
    shown = groups[: MOST_DOWN * across]
    pixels = resized_images(embedder.processor, images, rows=[row for group in shown for row in group])
    step = width + (width > 1)
    figure, axes = _grid(-(-len(shown) // across), across * step, size=0.9)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, image in enumerate(pixels):
        group, member = divmod(number, width)
        _show(axes[group // across, group % across * step + member], image)
    _save(figure, path)


def plot_neighbours(
    processor: Any,
    train: "LabelledData",
    test: "LabelledData",
    labels: tuple[np.ndarray, np.ndarray],
    names: Sequence[str],
    neighbours: Sequence[tuple[int, Sequence[int]]],
    path: Path,
) -> None:
    """A row for each query of test: it, then its nearest images of train, framed green where the class is the same."""
    train_y, test_y = labels
    queries, nearest = [row for row, _ in neighbours], np.array([others for _, others in neighbours])
    shown = resized_images(processor, test.images, rows=queries)
    found = resized_images(processor, train.images, rows=nearest.ravel()).unflatten(0, nearest.shape)
    figure, axes = _grid(len(queries), 1 + nearest.shape[1], size=1.15)
    for row, query in enumerate(queries):
        _show(axes[row, 0], shown[row], "black")
        axes[row, 0].set_xlabel(_name(names, test_y[query]), fontsize=6, labelpad=2)
        for column, neighbour in enumerate(nearest[row]):
            same = train_y[neighbour] == test_y[query]
            _show(axes[row, 1 + column], found[row, column], _RIGHT if same else _WRONG)
            axes[row, 1 + column].set_xlabel(_name(names, train_y[neighbour]), fontsize=6, labelpad=2)
    figure.suptitle("class below each image; green frame: that of the test image, red: another", fontsize=8)
    axes[0, 0].set_title("test image", fontsize=8)
    if nearest.shape[1]:
        axes[0, 1].set_title("nearest in train →", fontsize=8, loc="left")
    _save(figure, path)


def plot_mistakes(
    images: torch.Tensor, labels: np.ndarray, said: np.ndarray, shares: np.ndarray, names: Sequence[str], path: Path
) -> None:
    """Images with their class, and with the one that they are taken for and its share of the votes."""
    below = [
        f"{_name(names, label)}\n→ {_name(names, other)} ({100 * share:.0f} %)"
        for label, other, share in zip(labels, said, shares, strict=True)
    ]
    about = f"class → what the {VOTES} nearest training images vote for (share of their votes)"
    plot_labelled(images, below, about, path, _WRONG)


def plot_labelled(
    images: torch.Tensor, below: Sequence[str], about: str, path: Path, frame: str | None = None
) -> None:
    """Images with something below each."""
    across = 8
    figure, axes = _grid(-(-len(images) // across), across, size=1.15)
    for axis in axes.ravel()[len(images) :]:
        axis.set_axis_off()
    for axis, image, text in zip(axes.ravel(), images, below, strict=False):
        _show(axis, image, frame)
        axis.set_xlabel(text, fontsize=6, labelpad=2)
    figure.suptitle(about, fontsize=8)
    _save(figure, path)


def plot_feature_map(
    features: dict[str, np.ndarray], labels: np.ndarray, class_names: Sequence[str], path: Path, max_rows: int = 600
) -> None:
    """Test features in two dimensions (t-SNE of their leading components), a colour for each class, with baselines."""
    from matplotlib import colormaps

    kinds = {
        ENCODER: "encoder", RANDOM_INIT: "random initialisation", RAW_INPUT: "raw pixels",
        MFCC_STATISTICS: "MFCC statistics",
    }  # fmt: skip
    kinds = {kind: title for kind, title in kinds.items() if kind in features}
    rows = np.sort(keyed.permutation(len(labels), Use.PLOTTED_IMAGES)[:max_rows])
    figure, axes = _grid(1, len(kinds), size=3.2)
    present = np.unique(labels[rows])
    palette = colormaps["tab10" if len(present) <= 10 else "tab20" if len(present) <= 20 else "turbo"]
    for axis, (kind, title) in zip(axes[0], kinds.items(), strict=True):
        points = two_dimensions(features[kind][rows])
        for index, label in enumerate(present):
            at = labels[rows] == label
            colour = palette(index if palette.N <= 20 else index / max(1, len(present) - 1))
            axis.scatter(*points[at].T, s=8, color=colour, linewidths=0, label=_name(class_names, label))
        axis.set_title(title, fontsize=9)
        projection = projection_name(len(rows))
        axis.set_xlabel(f"{projection} 1", fontsize=7)
        axis.set_ylabel(f"{projection} 2", fontsize=7)
    if len(present) <= MOST_NAMED:
        axes[0, -1].legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, markerscale=2, frameon=False, title="class",
            title_fontsize=7, ncols=-(-len(present) // 20),
        )  # fmt: skip
    else:
        figure.suptitle(f"{len(present):,} classes, each of a colour: too many to name", fontsize=8)
    _save(figure, path)


def projection_name(num_rows: int) -> str:
    """What [`two_dimensions`] makes of so many rows."""
    return "principal component" if num_rows < FEW_ROWS else "t-SNE"


def two_dimensions(features: np.ndarray) -> np.ndarray:
    """t-SNE of the 50 leading principal components, or the first two of these where there are few rows."""
    from sklearn.manifold import TSNE

    rows = features.astype(np.float64) - features.mean(0, dtype=np.float64)
    left, size, _ = np.linalg.svd(rows, full_matrices=False)
    leading = (left * size)[:, :50]
    if len(features) < FEW_ROWS:
        return np.pad(leading, ((0, 0), (0, max(0, 2 - leading.shape[1]))))[:, :2]
    # comparable between encoders, whatever the length of their features
    leading /= leading[:, 0].std() or 1.0
    tsne = TSNE(perplexity=min(30.0, len(features) / 5), init=1e-4 * leading[:, :2], random_state=0)
    return tsne.fit_transform(leading)


def patch_maps(vision: VisionEncoder, images: torch.Tensor) -> np.ndarray | None:
    r"""
    What the patches of an encoder tell apart: the three leading principal components of its patch features over all
    given images, as red, green and blue in [0, 1].

    Args:
        vision ([`VisionEncoder`]):
            The encoder.
        images (`torch.Tensor` of dtype `uint8` and shape `(n, 3, height, width)`):
            From [`~hfssl.evaluation.image.features.resized_images`].

    Returns:
        `np.ndarray` of shape `(n, rows, columns, 3)`, or `None` where the last features are no map of at least four
        patches a side.
    """
    model = vision.load()
    with evaluating(model):
        hidden = patch_features(model, normalized(vision.processor, images, model.device))
    if hidden is None or min(hidden.shape[1:3]) < LEAST_PATCHES:
        return None
    return component_colours(hidden.cpu())[0]


def component_colours(hidden: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The three leading principal components of patch features `(n, rows, columns, dim)` over all of them, as red,
    green and blue in [0, 1], of shape `(n, rows, columns, 3)`; and the first one as it is, `(n, rows, columns)`."""
    flat = hidden.flatten(0, 2)
    flat = flat - flat.mean(0)
    components = torch.linalg.svd(flat, full_matrices=False).Vh[:3]
    # the sign of a component is arbitrary: the same for the same features
    components = components * components.sum(1, keepdim=True).sign()
    projected = flat @ components.T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)
    colours = ((projected - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours = F.pad(colours, (0, 3 - colours.shape[1]))
    return colours.unflatten(0, hidden.shape[:3]).numpy(), projected[:, 0].unflatten(0, hidden.shape[:3]).numpy()


def otsu_threshold(values: np.ndarray, bins: int = 64) -> float:
    """The value that cuts others into two groups, each as alike within as can be (Otsu, 1979)."""
    counts, edges = np.histogram(values, bins)
    middles = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts)[:-1], counts.sum()
    sums = np.cumsum(counts * middles)
    means = sums[:-1] / np.maximum(below, 1), (sums[-1] - sums[:-1]) / np.maximum(total - below, 1)
    between = below * (total - below) * (means[0] - means[1]) ** 2
    # the middle of a gap, in which all values cut as well
    return float(edges[1:-1][between >= (1 - 1e-9) * between.max()].mean())


def plot_patches(images: torch.Tensor, maps: np.ndarray, path: Path, first: np.ndarray | None = None) -> None:
    """Images above the colours of their patches: the same colour is the same to the encoder. Below, where the first
    component is given, which side of a threshold its patches are on."""
    figure, axes = _grid(2 if first is None else 3, len(images))
    for column, (image, colours) in enumerate(zip(images, maps, strict=True)):
        _show(axes[0, column], image)
        axes[1, column].imshow(colours, interpolation="nearest")
    axes[0, 0].set_title("image", fontsize=8, loc="left")
    axes[1, 0].set_title(f"its {maps.shape[1]} × {maps.shape[2]} patches", fontsize=8, loc="left")
    said = "red, green, blue: first, second, third principal component of the patch features"
    if first is not None:
        threshold = otsu_threshold(first)
        above = (first > threshold).mean() <= 0.5
        side = "above" if above else "below"
        for axis, of_image in zip(axes[2], first, strict=True):
            axis.imshow((of_image > threshold) == above, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[2, 0].set_title("foreground", fontsize=8, loc="left")
        said += f"\nwhite: first component {side} {threshold:.3g} (Otsu's threshold), the side with fewer patches"
    figure.suptitle(said, fontsize=7)
    _save(figure, path)


def plot_segmentation(
    images: torch.Tensor,
    masks: Sequence[np.ndarray],
    said: dict[str, Sequence[np.ndarray]],
    names: Sequence[str],
    ignored: int,
    path: Path,
) -> None:
    """Images, their masks, and what each probe says, a colour for each class."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    rows = {"mask": masks} | said
    present = np.unique(np.concatenate([np.unique(each) for of in rows.values() for each in of]))
    palette = colormaps["tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "turbo"]
    # in an order in which neighbours in the alphabet are not neighbours in colour
    place = keyed.permutation(len(names), Use.PLOTTED_IMAGES)
    colours = np.array(
        [palette(i if palette.N <= 20 else place[i] / max(1, len(names) - 1)) for i in range(len(names))]
    )
    colours[0] = (0.1, 0.1, 0.1, 1.0)
    table = np.ones((max(len(names), ignored + 1), 4))
    table[: len(names)] = colours
    if ignored >= len(names):
        table[ignored] = 1.0
    figure, axes = _grid(1 + len(rows), len(images), size=1.2)
    for column, image in enumerate(images):
        _show(axes[0, column], image)
        for row, of_images in enumerate(rows.values()):
            axes[1 + row, column].imshow(table[of_images[column]], interpolation="nearest")
    for axis, title in zip(axes[:, 0], ("image", *rows), strict=True):
        axis.set_ylabel(title, fontsize=8)
    shown = [each for each in present.tolist() if each < len(names)]
    handles = [Patch(color=colours[each], label=_name(names, each)) for each in shown[:MOST_NAMED]]
    if ignored in present:
        handles.append(Patch(facecolor="white", edgecolor="black", label="ignored"))
    figure.legend(handles=handles, loc="outside right center", fontsize=6, ncols=-(-len(handles) // 20), frameon=False)
    _save(figure, path)


def plot_label_efficiency(results: Sequence[Result], path: Path) -> None:
    """Accuracy (area, of several labels a sample) over the share of the labels: probe, fine-tuning, from scratch."""
    metric = next(name for name in ("accuracy", "auroc") if any(result.metric == name for result in results))
    results = [result for result in results if result.metric == metric]
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for result in results:
        at, method = 100 * result.hyperparameters["fraction"], result.hyperparameters["method"]
        curves.setdefault(method, []).append((at, result.value, result.std or 0.0))
        if RANDOM_INIT in result.baselines and method == "fine-tuning":
            std = result.baselines_std.get(RANDOM_INIT, 0.0)
            curves.setdefault("from scratch", []).append((at, result.baselines[RANDOM_INIT], std))
    figure, axes = _grid(1, 1, size=4.0, bare=False)
    axis = axes[0, 0]
    for name, points in curves.items():
        share, value, std = np.array(sorted(points)).T
        axis.errorbar(share, value, yerr=std, label=name, marker="o", capsize=3, ls="--" if "scratch" in name else "-")
    axis.set_xscale("log")
    axis.set_xticks(sorted({at for points in curves.values() for at, *_ in points}))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g} %")
    axis.minorticks_off()
    axis.set_xlabel("share of the labels")
    axis.set_ylabel(f"test {metric}")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(figure, path)


def _name(names: Sequence[str], label: int) -> str:
    name = str(names[label]) if label < len(names) else str(label)
    return name if len(name) <= 18 else f"{name[:17]}…"


def _grid(rows: int, columns: int, size: float = 1.0, bare: bool = True) -> "tuple[Figure, np.ndarray]":
    # without pyplot: no window system, nothing kept open
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size * columns, size * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.ravel() if bare else ():
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes


def _show(axis: Any, image: torch.Tensor, frame: str | None = None) -> None:
    # the first three of many channels, the first of two
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    axis.imshow(shown.permute(1, 2, 0).numpy(), interpolation="nearest")
    for spine in axis.spines.values():
        spine.set_edgecolor(frame or "none")
        spine.set_linewidth(2.0 if frame else 0.0)


def _save(figure: "Figure", path: Path) -> None:
    """Write a picture; letters that matplotlib's own font has not are those of another font of this machine."""
    from matplotlib import font_manager
    from matplotlib.text import Text

    others = [name for name in _FONTS if name in font_manager.get_font_names()]
    for text in figure.findobj(Text):
        # what stands between two dollars would be read as a formula, and may be none
        text.set_parse_math(False)
        if others:
            text.set_fontfamily(["DejaVu Sans", *others])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(path, dpi=120)
    lost = [each for each in caught if _NO_GLYPH in str(each.message)]
    for each in caught:
        if each not in lost:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    if lost:
        logger.info(
            "%s: no font here has %d of its letters, which are boxes. Install one of %s for them.",
            path.name, len({str(each.message) for each in lost}), ", ".join(_FONTS),
        )  # fmt: skip
