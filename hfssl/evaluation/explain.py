"""Looking into an encoder: where it looks, what its dimensions stand for, how alike its layers are, what decides.

Each method is a function that gives a [`~hfssl.evaluation.inside.Finding`], with where the method comes from and what
it does not show. None of them needs labels but [`decisions`], which asks a linear probe.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from ..functional import keyed
from ..functional.explanations import attention_rollout, grad_cam
from ..functional.keyed import Use
from ..functional.similarity import FEWEST_SAMPLES
from ..machine import compute_device
from .encoder_folder import trained_pooling
from .evaluator import EvaluationError
from .extraction import check_damage
from .frozen import aligned_labels
from .inside import PAPERS, Finding, Group, Inside, Opened, Row, write_findings
from .layer_similarity import RANDOM, cka_result, similarity
from .linear_probe import LogisticRegression, fit_linear_probe
from .modality import evaluation_modality
from .results import Result, command_line, versions, write_results


if TYPE_CHECKING:
    from ..data.labelled import LabelledData

logger = logging.getLogger(__name__)

# Samples in a picture; of decisions so many right ones and so many wrong ones.
SHOWN, SHOWN_OF_EACH = 6, 3
# Samples that are tried at once.
_AT_ONCE = 16
# Dimensions that are shown, and samples of each.
DIMENSIONS, SAMPLES_OF_DIMENSION = 8, 8


def explain(
    encoder: str,
    train: "LabelledData | None",
    test: "LabelledData",
    *,
    output_dir: str | Path,
    beside: Mapping[str, str] | None = None,
    pooling: str | None = None,
    dimensions: Sequence[int] | None = None,
    max_samples: int = 500,
    batch_size: int = 64,
    name: str | None = None,
    command: str | None = None,
    weights: str | None = None,
) -> list[Finding]:
    """Look into an encoder by all methods, and write what they say into a folder.

    Args:
        encoder (`str`):
            Folder or Hub id.
        train ([`~hfssl.data.labelled.LabelledData`], *optional*):
            Labelled samples for the probe whose decisions are looked at.
        test ([`~hfssl.data.labelled.LabelledData`]):
            Samples to look at; without labels where there is no `train`.
        output_dir (`str` or `Path`):
            Gets `explain.json`, `results.json` (of CKA) and pictures in `assets/`.
        beside (`Mapping[str, str]`, *optional*):
            By a name, other encoders of such samples, whose layers are compared.
        pooling (`str`, *optional*):
            How features are made of what the encoder gives; what fits it when left out.
        dimensions (`Sequence[int]`, *optional*):
            Of a feature, those to show; the ones that differ most between samples when left out.
        max_samples (`int`, *optional*, defaults to `500`):
            So many of train and of test at most.
        batch_size (`int`, *optional*, defaults to `64`):
            Samples a forward pass.
        name, command (`str`, *optional*):
            What encoder and command are called in the records.
        weights (`str`, *optional*):
            Digest of the weights, see [`~hfssl.evaluation.encoder_folder.weights_digest`].
    """
    modality = evaluation_modality(test.modality)
    if modality.inside is None:
        raise EvaluationError(f"Encoders of the modality {test.modality!r} cannot be looked into yet.")
    if len(test.samples) == 0:
        raise EvaluationError(f"{test.name} holds nothing to look at: name another split.")
    name, folder = name or encoder, Path(output_dir)
    assets = folder / "assets"
    assets.mkdir(parents=True, exist_ok=True)
    inside = modality.inside(encoder, pooling, batch_size)
    fresh = modality.inside(encoder, inside.pooling, batch_size, random_init=True)
    rows = _some(test, max_samples, 0)
    check_samples(inside, test, rows)
    layers = {name: layers_of(inside, test, rows), RANDOM: layers_of(fresh, test, rows)}
    for column, other in (beside or {}).items():
        # one that is called as this one is told apart by its place
        column = other if column in layers else column
        layers[column] = layers_of(modality.inside(other, trained_pooling(other), batch_size), test, rows)
    features = layers[name][-1]
    if dimensions is not None and not all(0 <= each < features.shape[1] for each in dimensions):
        raise EvaluationError(
            f"`--dimensions {' '.join(map(str, dimensions))}`: features have the dimensions 0 to "
            f"{features.shape[1] - 1}."
        )
    labels = test_labels = None
    if train is not None:
        train_y, test_y = aligned_labels(train, test)
        if test_y.ndim == 1:
            labels, test_labels = [_name(train.class_names, each) for each in test_y[rows]], test_y[rows]
    findings = [where_it_looks(inside, fresh, test, rows, features, labels, assets)]
    findings.append(dimensions_of(inside, test, rows, features, layers[RANDOM][-1], labels, dimensions, assets))
    results: list[Result] = []
    if len(rows) >= FEWEST_SAMPLES:
        finding, matrices = similarity(layers, assets)
        findings.append(finding)
        about = {
            "model": name, "task": test.name, "num_eval": len(rows), "command": command or command_line(),
            "versions": versions() | {"device": compute_device().type},
        }  # fmt: skip
        results = [cka_result(column, matrix, inside.pooling, about) for column, matrix in matrices.items()]
    if test_labels is not None:
        some = _some(train, max_samples, 1)
        x = layers_of(inside, train, some)[-1]
        if len(np.unique(train_y[some])) > 1:
            probe, _ = fit_linear_probe(x, train_y[some], device=compute_device())
            names = [_name(train.class_names, each) for each in range(int(train_y.max()) + 1)]
            findings.append(decisions(inside, test, rows, features, test_labels, probe, names, len(some), assets))
    else:
        logger.info("No labels, one a sample, to fit a probe to: what its decisions rest on is not asked.")
    about = {
        "encoder": name, "weights": weights, "data": test.name, "samples": len(rows),
        "pooling": inside.pooling, "command": command or command_line(),
    }  # fmt: skip
    write_findings(folder, about, findings)
    write_results(folder / "results.json", results)
    return findings


# -- where it looks ---------------------------------------------------------------------------------------------------


def where_it_looks(
    inside: Inside,
    fresh: Inside,
    test: "LabelledData",
    rows: np.ndarray,
    features: np.ndarray,
    labels: Sequence[str] | None,
    folder: Path,
) -> Finding:
    """By attention where there is any over all of a sample, else by gradients."""
    at = range(min(SHOWN, len(rows)))
    titles = [labels[i] if labels is not None else "" for i in at]
    samples = [inside.open(test.samples, int(rows[i])) for i in at]
    flows = [roll_out(inside, sample) for sample in samples]
    if all(flow is not None for flow in flows):
        untrained = [roll_out(fresh, fresh.open(test.samples, int(rows[i])))[0] for i in at]
        alike = [rank_correlation(flow[0], other) for flow, other in zip(flows, untrained, strict=True)]
        own = float(np.mean([flow[2] for flow in flows]))
        shown = [
            Row(sample, title, {"roll-out": flow[0], "last layer": flow[1]})
            for sample, title, flow in zip(samples, titles, flows, strict=True)
        ]
        caption = "Samples, attention roll-out, and the attention of the last layer, mean over its heads."
        said = [
            f"The order of the {inside.several_parts} is that of the same architecture with random weights by a rank "
            f"correlation of {_mean(alike):.2f}: what is near 1 comes from the architecture, not from training."
        ]
        if own > 0.005:
            said.insert(
                0, f"{100 * own:.0f} % of the roll-out is on tokens that stand for no part of a sample, such as CLS, "
                "registers and separators. The maps leave them out."
            )  # fmt: skip
        return Finding(
            "Where it looks: attention",
            f"Attention roll-out: the attention of all layers multiplied, each mixed half and half with the residual "
            f"connection, read where the feature is pooled ({inside.pooling}).",
            {"Abnar and Zuidema, 2020": f"{PAPERS}2005.00928"},
            "Attention is no explanation of a decision: it says how tokens are mixed, not what is made of them, heads "
            "are averaged, and what the layers between do is left out.",
            said,
            [inside.show_maps(shown, folder, "attention", caption)],
        )
    return _by_gradient(inside, samples, titles, features, folder)


def _by_gradient(
    inside: Inside, samples: Sequence[Opened], titles: Sequence[str], features: np.ndarray, folder: Path
) -> Finding:
    """Of an encoder without attention, what speaks for the dimension in which each sample stands out most."""
    mean, deviation = features.mean(0), np.maximum(features.std(0), 1e-12)
    shown, is_map = [], True
    for sample, title in zip(samples, titles, strict=True):
        with torch.no_grad():
            feature = inside.forward(sample.inputs, sample)[0][0].float().cpu().numpy()
        standing_out = int(((feature - mean) / deviation).argmax())
        relevance, cam = gradients(inside, sample, lambda made, chosen=standing_out: made[:, chosen])
        is_map &= cam is not None
        title = f"{title}, dimension {standing_out}".removeprefix(", ")
        shown.append(Row(sample, title, {"gradient × input": relevance} | ({} if cam is None else {"Grad-CAM": cam})))
    method = "what speaks for the dimension of the feature in which a sample stands out most (by its deviations)"
    if is_map:
        shown = [Row(row.sample, row.title, {"Grad-CAM": row.maps["Grad-CAM"]}) for row in shown]
        how, papers = f"Grad-CAM: {method}, by the gradient of the last map.", _GRAD_CAM
    else:
        how, papers = f"Gradient × input: {method}.", _GRADIENT
    kind = inside.model.config.model_type
    return Finding(
        "Where it looks: gradients",
        how,
        papers,
        "A gradient says what a small change would do, not what the sample would be without a part; a map of a few "
        "places is coarse, and what speaks against is cut off.",
        [f"This {kind} tells of no attention over all of a sample, so there is no roll-out."],
        [inside.show_maps(shown, folder, "gradients", f"Samples, and {method}.")],
    )


_GRAD_CAM = {"Selvaraju et al., 2017": f"{PAPERS}1610.02391"}
_GRADIENT = {"Shrikumar et al., 2016": f"{PAPERS}1605.01713"}
_OCCLUSION = {"Zeiler and Fergus, 2014": f"{PAPERS}1311.2901"}


def roll_out(inside: Inside, sample: Opened) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Roll-out and attention of the last layer by part, as shares of all parts, and the share of the roll-out that is
    on tokens of no part; `None` where there is no attention over all of the sample."""
    attentions = inside.attentions(sample)
    if attentions is None:
        return None
    read = inside.read_from(attentions[0].shape[-1], sample).to(attentions[0])
    by_token = (read @ attention_rollout(attentions)[0], read @ attentions[-1][0].mean(0))
    flow, last = (inside.parts(each.cpu(), sample) for each in by_token)
    share = 1.0 - float(flow.sum())
    return flow / max(flow.sum(), 1e-12), last / max(last.sum(), 1e-12), max(share, 0.0)


def gradients(
    inside: Inside, sample: Opened, score: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[np.ndarray, np.ndarray | None]:
    """Gradient × input of a score by part, and Grad-CAM `(height, width)` of a convolutional encoder.

    Args:
        inside ([`~hfssl.evaluation.inside.Inside`]), sample ([`~hfssl.evaluation.inside.Opened`]):
            What is looked at.
        score (`Callable[[torch.Tensor], torch.Tensor]`):
            From features `(n, dim)` to numbers `(n,)`.
    """
    inputs = sample.inputs.detach().clone().requires_grad_()
    # cuDNN has no backward pass of a recurrent network that is not in training, such as CPC's
    with torch.enable_grad(), torch.backends.cudnn.flags(enabled=False):
        feature, places = inside.forward(inputs, sample)
        wanted = [inputs] if places is None else [inputs, places]
        found = torch.autograd.grad(score(feature.float()).sum(), wanted)
    relevance = inside.cells((found[0] * inputs).detach().float().cpu(), sample)
    if places is None:
        return relevance, None
    return relevance, grad_cam(places.detach(), found[1])[0].float().cpu().numpy()


# -- dimensions -------------------------------------------------------------------------------------------------------


def dimensions_of(
    inside: Inside,
    test: "LabelledData",
    rows: np.ndarray,
    features: np.ndarray,
    at_random: np.ndarray,
    labels: Sequence[str] | None,
    chosen: Sequence[int] | None,
    folder: Path,
) -> Finding:
    """The samples that activate single dimensions of the feature most."""
    deviation = features.std(0)
    asked = chosen is not None
    chosen = list(chosen) if asked else np.argsort(-deviation, kind="stable")[:DIMENSIONS].tolist()
    groups, table = [], []
    for dimension in chosen:
        top = most_activating(features, dimension)
        values = (features[top, dimension] - features[:, dimension].mean()) / max(deviation[dimension], 1e-12)
        groups.append(
            Group(
                f"dimension {dimension}",
                [
                    (int(rows[i]), f"{labels[i]}, {value:+.1f} σ" if labels is not None else f"{value:+.1f} σ")
                    for i, value in zip(top, values, strict=True)
                ],
            )
        )
        if labels is not None:
            name, count = Counter(labels[i] for i in top).most_common(1)[0]
            table.append((str(dimension), f"{deviation[dimension]:.3g}", f"{name} ({count} of {len(top)})"))
    said = [
        f"The {len(chosen)} {'that were asked for' if asked else 'that differ most between samples'}, of "
        f"{features.shape[1]}; σ is the deviation of a dimension over {len(rows):,} samples."
    ]
    if labels is not None:
        mine = [purity(features, dimension, labels) for dimension in range(features.shape[1])]
        other = [purity(at_random, dimension, labels) for dimension in range(at_random.shape[1])]
        said.append(
            f"Of the {min(SAMPLES_OF_DIMENSION, len(rows))} samples that activate a dimension most, "
            f"{100 * np.mean(mine):.0f} % are of one class (mean over all dimensions); with random weights "
            f"{100 * np.mean(other):.0f} %."
        )
    caption = "Samples with the largest values of a dimension of the feature, one dimension after the other."
    shows = [inside.show_groups(test.samples, groups, folder, "dimensions", caption)]
    if table:
        head = ("dimension", "deviation", "most frequent class among those")
        shows.append({"table": {"head": head, "rows": table}, "caption": "Classes of these samples"})
    return Finding(
        "What dimensions stand for",
        "Most activating samples: those with the largest values of one dimension of the feature.",
        {"Zeiler and Fergus, 2014": f"{PAPERS}1311.2901"},
        "The axes of a feature space are arbitrary, and a few extreme samples do not say what a dimension does for "
        "all others: what they have in common is a guess.",
        said,
        shows,
    )


def most_activating(features: np.ndarray, dimension: int) -> np.ndarray:
    """Rows with the largest values of a dimension, the largest first."""
    return np.argsort(-features[:, dimension], kind="stable")[:SAMPLES_OF_DIMENSION]


def purity(features: np.ndarray, dimension: int, labels: Sequence[str]) -> float:
    """Share of the most frequent class among the samples that activate a dimension most."""
    top = most_activating(features, dimension)
    return Counter(labels[i] for i in top).most_common(1)[0][1] / len(top)


# -- decisions --------------------------------------------------------------------------------------------------------


def decisions(
    inside: Inside,
    test: "LabelledData",
    rows: np.ndarray,
    features: np.ndarray,
    labels: np.ndarray,
    probe: LogisticRegression,
    names: Sequence[str],
    num_train: int,
    folder: Path,
) -> Finding:
    """What decisions of a linear probe rest on, of a few that are right and of a few that are wrong."""
    logits = probe.decision(features)
    said = probe.classes[logits.argmax(1)]
    confidence = torch.from_numpy(logits).softmax(1).amax(1).numpy()
    is_right = said == labels
    chosen = [*np.flatnonzero(is_right)[:SHOWN_OF_EACH], *np.flatnonzero(~is_right)[:SHOWN_OF_EACH]]
    shown, agreement = [], []
    for i in chosen:
        sample = inside.open(test.samples, int(rows[i]))
        # beside the true class where it is wrong, else beside the next one
        order = probe.classes[np.argsort(-logits[i], kind="stable")]
        other = labels[i] if not is_right[i] and labels[i] in probe.classes else order[1]
        score = margin_of(probe, int(said[i]), int(other))
        relevance, cam = gradients(inside, sample, score)
        fall = occlusion(inside, sample, score)
        agreement.append(rank_correlation(resized(relevance, fall.shape), fall))
        maps = {"gradient × input": relevance, "occlusion": fall} | ({} if cam is None else {"Grad-CAM": cam})
        title = names[said[i]] if is_right[i] else f"{names[labels[i]]}, taken for {names[said[i]]}"
        shown.append(Row(sample, f"{title} ({100 * confidence[i]:.0f} %)", maps))
    num_right = int(is_right[chosen].sum())
    told = [
        f"The probe learned from {num_train:,} samples and is right of {100 * is_right.mean():.1f} % of {len(rows):,} "
        f"others. Shown are {num_right} that it gets right and {len(chosen) - num_right} that it gets wrong, with how "
        "sure it is.",
        f"The maps order the {inside.several_parts} alike by a rank correlation of {_mean(agreement):.2f}. Where two "
        "methods disagree, neither is to be trusted alone.",
    ]
    caption = (
        "Samples, and what speaks for the class that the probe says rather than the next one, or the true one where "
        "it is wrong."
    )
    has_map = any("Grad-CAM" in row.maps for row in shown)
    return Finding(
        "What a decision rests on",
        "The direction of a linear probe, followed back: gradient × input, and occlusion, by how much the score falls "
        f"when a {inside.part} is replaced by {inside.hidden}"
        + (", and Grad-CAM of the last map." if has_map else "."),
        _GRADIENT | _OCCLUSION | (_GRAD_CAM if has_map else {}),
        "It explains the probe on these few samples, not the encoder: another probe may rest on something else. A "
        "gradient is local; what is hidden makes a sample such as the encoder has never seen.",
        told,
        [inside.show_maps(shown, folder, "decisions", caption)] if shown else [],
    )


def margin_of(probe: LogisticRegression, said: int, other: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """How much more a probe is for one class than for another, of features `(n, dim)`."""
    columns = [int(np.flatnonzero(probe.classes == each)[0]) for each in (said, other)]
    weights = torch.as_tensor(probe.weights[:, columns[0]] - probe.weights[:, columns[1]], dtype=torch.float32)
    mean, scale = (torch.as_tensor(each, dtype=torch.float32) for each in (probe.mean, probe.scale))

    def score(features: torch.Tensor) -> torch.Tensor:
        device = features.device
        return (features - mean.to(device)) / scale.to(device) @ weights[:-1].to(device) + weights[-1].to(device)

    return score


def occlusion(
    inside: Inside, sample: Opened, score: Callable[[torch.Tensor], torch.Tensor], batch_size: int = 32
) -> np.ndarray:
    """By how much a score falls when each part of a sample is hidden."""
    variants, grid = inside.occluded(sample)
    with torch.no_grad():
        whole = score(inside.forward(sample.inputs, sample)[0].float())
        found = [score(inside.forward(some, sample)[0].float()) for some in variants.split(batch_size)]
    return (whole - torch.cat(found)).view(grid).cpu().numpy()


# -- what they share --------------------------------------------------------------------------------------------------


def check_samples(inside: Inside, data: "LabelledData", rows: np.ndarray) -> None:
    """Say which of the samples that are looked at are damaged, and so blank.

    Raises:
        EvaluationError: if too many are.
    """
    reader = inside.reader(data.samples)
    if reader is None:
        return
    samples = data.take(np.sort(rows), name=data.name).samples
    starts = range(0, len(samples), _AT_ONCE)
    read = zip(starts, reader.batches(samples, starts, _AT_ONCE), strict=True)
    bad = [start + i for start, batch in read for i, sample in enumerate(batch) if sample is None]
    check_damage(samples, bad, data.name, reader)


def layers_of(inside: Inside, data: "LabelledData", rows: np.ndarray) -> list[np.ndarray]:
    """Features of some samples by each layer, in the order of `rows`. They are read in that of the data: of a source
    with large pieces each is read once."""
    order = np.argsort(rows)
    back = np.argsort(order)
    return [each[back] for each in inside.layers(data.samples, rows[order])]


def resized(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A map of one or two axes, on a grid of another size: means over places."""
    pool = F.adaptive_avg_pool2d if values.ndim == 2 else F.adaptive_avg_pool1d
    return pool(torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None], shape)[0].numpy()


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's, of two maps on one grid; not a number where one of them is the same everywhere."""
    from scipy.stats import rankdata

    one, other = (rankdata(each.ravel()) for each in (one, other))
    one, other = one - one.mean(), other - other.mean()
    length = np.sqrt((one @ one) * (other @ other))
    return float(one @ other / length) if length > 0 else float("nan")


def _some(data: "LabelledData", most: int, part: int) -> np.ndarray:
    return keyed.permutation(len(data.samples), Use.EXPLAINED_SAMPLES, part)[:most]


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _name(names: Sequence[str], label: int) -> str:
    return str(names[label]) if label < len(names) else str(label)
