"""What there is among features: samples that are nearly the same to an encoder, those that are like no other, groups.

All go by the cosine of features that have their mean taken off, since else what all samples have in common would be
most of it. Duplicates are pairs above a cosine. An outlier is what is least like its nearest neighbours: its figure is
the mean cosine to the ten nearest. Clusters are those of k-means, the largest first; how many there are is a choice,
not a finding.
"""

import csv
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from ..data.mixtures import parts_of
from ..data.sources import Source
from ..machine import compute_device
from .evaluator import EvaluationError
from .modality import evaluation_modality
from .progress import Progress
from .sample_features import SampleFeatures


logger = logging.getLogger(__name__)

KINDS = ("duplicates", "outliers", "clusters")
# Cosine from which on two samples count as the same, and neighbours that say how usual a sample is.
SAME, NEIGHBOURS = 0.98, 10
# Most outliers that are listed.
MOST_OUTLIERS = 100
# Most duplicates of one sample that are found.
MOST_COPIES = 50
# Most clusters; of few samples there are as many as the root of half of them. And samples of each that are shown.
MOST_CLUSTERS, SHOWN_OF_CLUSTER = 20, 8
# Cosines that are held at once.
_CHUNK = 1 << 26


@dataclass
class Report:
    """What was found; `pairs` are rows and cosine of duplicates, `outliers` rows and mean cosine, the oddest first,
    `clusters` rows and cosine to the middle of those of each cluster, the nearest first."""

    pairs: list[tuple[int, int, float]]
    outliers: list[tuple[int, float]]
    clusters: list[list[tuple[int, float]]] = field(default_factory=list)


def parse_report(text: str | None) -> list[str]:
    """The kinds of a report from `"a,b"`; none from `None`.

    Raises:
        EvaluationError: for one that there is not.
    """
    names = [name.strip().lower() for name in (text or "").split(",") if name.strip()]
    for name in names:
        if name not in KINDS:
            raise EvaluationError(f"`--report` takes {', '.join(KINDS)}, got {name!r}.")
    return names


def report(features: np.ndarray, same: float = SAME, kinds: Sequence[str] = KINDS) -> Report:
    """Look for all of it in features of shape `(num_rows, dim)`.

    Args:
        features (`np.ndarray`):
            A row a sample; may be mapped from a file.
        same (`float`, *optional*, defaults to 0.98):
            Cosine from which on two samples count as the same.
        kinds (`Sequence[str]`, *optional*):
            What is asked for: clusters are looked for only where they are.
    """
    device, number = compute_device(), len(features)
    rows = torch.from_numpy(np.array(features, dtype=np.float32))
    rows = F.normalize(rows - rows.mean(0), dim=1).to(device)
    num_near = min(max(NEIGHBOURS, MOST_COPIES), number - 1)
    pairs, usual = [], np.ones(number)
    with torch.no_grad(), Progress(number, "Neighbours") as progress:
        step = max(_CHUNK // number, 1)
        for start in range(0, number if number > 1 else 0, step):
            similar = rows[start : start + step] @ rows.T
            at = torch.arange(len(similar), device=device)
            similar[at, at + start] = -2.0  # itself
            top, index = similar.topk(num_near, dim=1)
            usual[start : start + len(similar)] = top[:, :NEIGHBOURS].mean(1).cpu().numpy()
            for row, column in (top >= same).nonzero().tolist():
                first, second = start + row, int(index[row, column])
                if first < second:
                    pairs.append((first, second, float(top[row, column])))
            progress.update(len(similar))
    pairs.sort(key=lambda pair: (-pair[2], pair[:2]))
    clusters = _clusters(rows.cpu().numpy()) if "clusters" in kinds else []
    order = np.argsort(usual, kind="stable")[: min(MOST_OUTLIERS, max(number // 10, 1))]
    return Report(pairs, [(int(row), float(usual[row])) for row in order], clusters)


def _clusters(rows: np.ndarray) -> list[list[tuple[int, float]]]:
    """Clusters of features of length 1."""
    from sklearn.cluster import MiniBatchKMeans

    number = min(MOST_CLUSTERS, max(round((len(rows) / 2) ** 0.5), 1))
    means = MiniBatchKMeans(number, batch_size=4096, n_init=3, random_state=0).fit(rows)
    middles = means.cluster_centers_ / np.maximum(np.linalg.norm(means.cluster_centers_, axis=1, keepdims=True), 1e-12)
    near = np.einsum("nd,nd->n", rows, middles[means.labels_])
    found = []
    for cluster in range(number):
        members = np.flatnonzero(means.labels_ == cluster)
        members = members[np.argsort(-near[members], kind="stable")]
        found.append([(int(row), float(near[row])) for row in members])
    return sorted(filter(None, found), key=lambda members: (-len(members), members[0]))


def write_report(found: Report, kinds: Sequence[str], samples: Sequence[str], folder: Path) -> list[str]:
    """Write `duplicates.csv`, `outliers.csv` and `clusters.csv`, and return what to say of them."""
    said = []
    if "duplicates" in kinds:
        table = [(samples[a], samples[b], f"{cosine:.4f}") for a, b, cosine in found.pairs]
        _write(folder / "duplicates.csv", ("sample", "other", "cosine"), table)
        such = f", such as {table[0][0]} and {table[0][1]}" if table else ""
        said.append(f"{len(table):,} pairs are nearly the same to this encoder{such}: {folder / 'duplicates.csv'}")
    if "outliers" in kinds:
        table = [(samples[row], f"{cosine:.4f}") for row, cosine in found.outliers]
        _write(folder / "outliers.csv", ("sample", "cosine_to_neighbours"), table)
        said.append(f"Least like any other is {table[0][0]}; the {len(table)} oddest: {folder / 'outliers.csv'}")
    if "clusters" in kinds:
        table = [
            (samples[row], number, f"{cosine:.4f}")
            for number, members in enumerate(found.clusters)
            for row, cosine in members
        ]
        _write(folder / "clusters.csv", ("sample", "cluster", "cosine_to_middle"), table)
        sizes = [len(members) for members in found.clusters]
        said.append(
            f"{len(sizes)} clusters, of {sizes[-1]:,} to {sizes[0]:,} samples; the first of the largest is "
            f"{samples[found.clusters[0][0][0]]}: {folder / 'clusters.csv'}"
        )
    return said


def draw_report(
    found: Report, kinds: Sequence[str], embedder: SampleFeatures, source: Source, places: np.ndarray, folder: Path
) -> list[str]:
    """Draw what can be seen of a report, and return what to say of it.

    Args:
        found ([`Report`]), kinds (`Sequence[str]`):
            What was found, and what of it was asked for.
        embedder ([`~hfssl.evaluation.sample_features.SampleFeatures`]):
            Which made the features.
        source ([`~hfssl.data.sources.Source`]), places (`np.ndarray` of shape `(num_rows, 3)`):
            The data, and where in them the sample of each row lies: source of a mixture, file, row.
        folder (`Path`):
            Where the pictures go.
    """
    draw = evaluation_modality(embedder.modality).draw_report
    rows = {
        "duplicates": [pair[:2] for pair in found.pairs],
        "outliers": [(row,) for row, _ in found.outliers],
        "clusters": _first_of_each(found.clusters),
    }
    said = []
    for kind in kinds:
        if draw is not None and rows[kind]:
            path = folder / f"{kind}.png"
            draw(embedder, _PlacedSamples(source, places), rows[kind], path)
            said.append(f"Some of the {kind}: {path}")
    return said


def _first_of_each(clusters: list[list[tuple[int, float]]]) -> list[tuple[int, ...]]:
    """As many samples of each cluster that has so many, those nearest to its middle."""
    shown = min(SHOWN_OF_CLUSTER, len(clusters[0])) if clusters else 0
    return [tuple(row for row, _ in members[:shown]) for members in clusters if len(members) >= shown]


class _PlacedSamples(Sequence):
    """The samples of some places, each read when it is asked for."""

    def __init__(self, source: Source, places: np.ndarray):
        self.sources, self.places = [part.source for part in parts_of(source)], places

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, row: int):
        number, file, at = self.places[row].tolist()
        source = self.sources[number]
        of_file, start, stop = source.pieces[:, 0], source.pieces[:, 1], source.pieces[:, 2]
        piece = int(np.flatnonzero((of_file == file) & (start <= at) & (at < stop))[0])
        read = source.read(piece)
        return read.columns[source.leading][read.rows.tolist().index(at)]


def _write(path: Path, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])
