"""Attentive probe: what do the patches of an image know of its class, where a probe may look at them?

Protocol "attentive", version 1: one learned query attends to the frozen features of all patches (cross-attention,
heads of 64 numbers, as wide as the features), what it gathers is normalised, and a linear layer tells the classes. So
are encoders judged whose CLS token or mean is not what they were trained for (V-JEPA,
https://huggingface.co/papers/2404.08471, adds an MLP). Patches have no CLS and no registers, and are standardised with
the mean and deviation of train. AdamW, learning rate 1e-3 with cosine decay, weight decay 0.01, batches of 128, 20
epochs, at least 300 steps; nothing is chosen. Seeds 0, 1 and 2 draw weights and order. At most 5,000 images of train,
drawn by keys, the same for every encoder and baseline. Beside: random weights, and raw patches of the same grid.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from ...functional import keyed
from ...functional.keyed import Use
from ...machine import compute_device
from ...modeling.image_processing import processed_channels
from ..evaluator import EvaluationError
from ..extraction import check_damage
from ..frozen import aligned_labels, classification_scores, make_results
from ..probe_features import ENCODER
from ..processed_encoder import seeded
from ..progress import Progress
from ..results import Result
from .features import ImageReader, processed_size, range_for, resized_images
from .patch_evaluator import PatchEvaluator, PatchMaps


if TYPE_CHECKING:
    from ...data.labelled import LabelledData

MAX_IMAGES, EPOCHS, MIN_STEPS, BATCH_SIZE = 5_000, 20, 300, 128
LEARNING_RATE, WEIGHT_DECAY, HEAD = 1e-3, 0.01, 64


class AttentiveClassifier(nn.Module):
    """One query that attends to patches, and a linear layer on what it gathers.

    Args:
        dim (`int`):
            Size of the feature of a patch.
        num_classes (`int`):
            Classes.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        width = -(-dim // HEAD) * HEAD
        self.query = nn.Parameter(torch.randn(width // HEAD, HEAD) * 0.02)
        self.key, self.value = nn.Linear(dim, width), nn.Linear(dim, width)
        self.norm, self.classifier = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """Logits `(batch_size, num_classes)` of patches `(batch_size, num_patches, dim)`."""
        keys, values = (each(patches).unflatten(-1, (-1, HEAD)).transpose(1, 2) for each in (self.key, self.value))
        query = self.query[None, :, None].expand(len(patches), -1, -1, -1)
        gathered = F.scaled_dot_product_attention(query, keys, values)  # (batch_size, heads, 1, HEAD)
        return self.classifier(self.norm(gathered.flatten(1)))


@dataclass
class AttentiveEvaluator(PatchEvaluator):
    r"""
    Classification by attention to frozen patch features. The protocol stands at the top of the module.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Labelled images to learn from and to measure on.
        batch_size (`int`, *optional*, defaults to `256`), precision (`str`, *optional*, defaults to `"fp32"`):
            See [`~hfssl.evaluation.image.patch_evaluator.PatchEvaluator`].
        beside (`dict[str, str | Path | PreTrainedModel]`, *optional*):
            Likewise.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(0, 1, 2)`):
            Of the weights and the order.
        max_images (`int`, *optional*, defaults to `5000`):
            Of train, so many images at most.
        epochs (`int`, *optional*, defaults to `20`):
            Passes over them.
        min_steps (`int`, *optional*, defaults to `300`):
            So many steps at least.
    """

    protocol: ClassVar[str] = "attentive"
    version: ClassVar[int] = 1
    title: ClassVar[str] = "attentive probe"
    primary_metric = "accuracy"

    seeds: tuple[int, ...] = (0, 1, 2)
    max_images: int = MAX_IMAGES
    epochs: int = EPOCHS
    min_steps: int = MIN_STEPS

    def __post_init__(self):
        if self.train.modality != "image":
            raise EvaluationError("The protocol attentive is for encoders of images: leave it out of `--protocol`.")
        self.labels = aligned_labels(self.train, self.test)

    def results(
        self, encoders: PatchMaps, output_dir: str | Path | None, command: str | None, name: str | None
    ) -> list[Result]:
        train_y, test_y = self.labels
        rows = np.sort(keyed.permutation(len(train_y), Use.ATTENTIVE_PROBE)[: self.max_images])
        num_classes = train_y.shape[1] if train_y.ndim == 2 else len(self.train.class_names)
        parts: dict[str, list[torch.Tensor]] = {kind: [] for kind in encoders.kinds}
        for patches in self._patches(encoders, self.train, rows, "Patches of train"):
            for kind, each in patches.items():
                parts[kind].append(each)
        settings = {
            "image_size": processed_size(encoders.vision.processor), "patches": parts[ENCODER][0].shape[1],
            "dim": parts[ENCODER][0].shape[2], "precision": encoders.precision, "epochs": self.epochs,
            "min_steps": self.min_steps,
        }  # fmt: skip
        probes = {}
        with Progress(len(parts) * len(self.seeds), self.title, " fits") as bar:
            for kind in encoders.kinds:
                x = torch.cat(parts.pop(kind))
                for seed in self.seeds:
                    probes[kind, seed] = fit_attentive(
                        x, train_y[rows], num_classes, seed, self.epochs, self.min_steps
                    )
                    bar.update()
        # of test no features are kept: they would be many times those of train
        logits: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in probes}
        for patches in self._patches(encoders, self.test, np.arange(len(test_y)), "Images of test"):
            for (kind, seed), probe in probes.items():
                logits[kind, seed].append(probe(patches[kind]))
        scores: dict[str, dict[int, dict[str, float]]] = {kind: {} for kind in encoders.kinds}
        for (kind, seed), each in logits.items():
            of_test = np.concatenate(each)
            scores[kind][seed] = classification_scores(of_test.argmax(1), test_y, of_test)
        return make_results(
            self, scores, (train_y[rows], test_y), model=name or encoders.vision.name, num_train=len(rows),
            hyperparameters=settings, command=command,
        )  # fmt: skip

    def _patches(
        self, encoders: PatchMaps, data: "LabelledData", rows: np.ndarray, title: str
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Features `(n, num_patches, dim)` in half precision of some images after the others, by what they are of."""
        processor, bad = encoders.vision.processor, []
        with Progress(len(rows), title, " images") as bar:
            for start in range(0, len(rows), self.batch_size):
                images = resized_images(processor, data.images, rows[start : start + self.batch_size], bad=bad)
                patches = {kind: each.flatten(1, 2).half() for kind, each in encoders.maps(images).items()}
                for kind, each in patches.items():
                    if not each.isfinite().all():
                        raise EvaluationError(
                            f"The features of {kind} hold values above 65,504, which 16 bits do not hold: if its "
                            "training diverged, take an earlier checkpoint."
                        )
                yield patches
                bar.update(len(images))
        reader = ImageReader(range_for(processor, data.images), processed_channels(processor))
        check_damage(data.images, bad, data.name, reader)


@torch.enable_grad()
def fit_attentive(
    x: torch.Tensor, y: np.ndarray, num_classes: int, seed: int, epochs: int = EPOCHS, min_steps: int = MIN_STEPS
) -> Callable[[torch.Tensor], np.ndarray]:
    """Learn from patches `(num_images, num_patches, dim)` of images of classes `y`.

    Returns:
        `Callable`: from such patches to logits `(num_images, num_classes)`.
    """
    device = compute_device()
    mean, scale = (each.to(device) for each in _mean_and_deviation(x))

    def standardised(x: torch.Tensor) -> torch.Tensor:
        return (x.to(device).float() - mean) / scale

    with seeded(seed):
        model = AttentiveClassifier(x.shape[2], num_classes)
    model.to(device)
    target = torch.as_tensor(y, device=device)
    batch = min(BATCH_SIZE, len(x))
    a_pass = len(x) // batch
    steps = max(min_steps, epochs * a_pass)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = np.zeros(0, np.int64)
    for step in range(steps):
        if step % a_pass == 0:
            order = keyed.permutation(len(x), Use.ATTENTIVE_PROBE, seed, step // a_pass)
        rows = torch.from_numpy(order[step % a_pass * batch :][:batch])
        logits = model(standardised(x[rows]))
        wanted = target[rows.to(device)]
        if wanted.ndim == 2:
            loss = F.binary_cross_entropy_with_logits(logits, wanted.float())
        else:
            loss = F.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    @torch.no_grad()
    def logits_of(x: torch.Tensor) -> np.ndarray:
        parts = [model(standardised(rows)).cpu() for rows in x.split(BATCH_SIZE)]
        return torch.cat(parts).double().numpy()

    return logits_of


def _mean_and_deviation(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each number of the patches of some images; never of all of them in a higher precision at once."""
    total = squares = torch.zeros(x.shape[2], dtype=torch.float64)
    for rows in x.split(BATCH_SIZE):
        total = total + rows.double().sum((0, 1))
    mean = total / (len(x) * x.shape[1])
    for rows in x.split(BATCH_SIZE):
        squares = squares + (rows.double() - mean).square().sum((0, 1))
    return mean.float(), (squares / (len(x) * x.shape[1])).sqrt().clamp(min=1e-6).float()
