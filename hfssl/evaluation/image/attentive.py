"""Attentive probe: what do the patches of an image know of its class, where a probe may look at them?

Protocol "attentive", version 1: one learned query attends to the frozen features of all patches (cross-attention,
heads of 64 numbers, as wide as the features), what it gathers is normalised, and a linear layer tells the classes. So
are encoders judged whose CLS token or mean is not what they were trained for (V-JEPA,
https://huggingface.co/papers/2404.08471, adds an MLP). Patches have no CLS and no registers, and are standardised with
the mean and deviation of train. AdamW, learning rate 1e-3 with cosine decay, weight decay 0.01, batches of 128, 20
epochs, at least 300 steps; nothing is chosen. Seeds 0, 1 and 2 draw weights and order. At most 5,000 images of train,
drawn by keys, the same for every encoder and baseline. Beside: random weights, and raw patches of the same grid.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from torch import nn
from transformers import PreTrainedModel

from ...functional import keyed
from ...functional.keyed import Use
from ...machine import choose_precision, compute_device, process_state
from ...modeling.base import evaluating
from ...modeling.image_processing import processed_channels
from ..evaluator import EvaluationError, Evaluator
from ..extraction import check_damage
from ..frozen import aligned_labels, classification_scores, make_results
from ..probe_features import ENCODER, RANDOM_INIT, RAW_INPUT
from ..processed_encoder import seeded
from ..progress import Progress
from ..results import Result, write_results
from .encoder import VisionEncoder
from .features import ImageReader, processed_size, range_for, resized_images
from .patch_features import PatchEncoder, raw_patches


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
class AttentiveEvaluator(Evaluator):
    r"""
    Classification by attention to frozen patch features. The protocol stands at the top of the module.

    Args:
        train, test ([`~hfssl.data.labelled.LabelledData`]):
            Labelled images to learn from and to measure on.
        batch_size (`int`, *optional*, defaults to `256`):
            Images a forward pass of the encoder.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not; `auto` takes bf16 where the hardware computes in it.
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

    train: "LabelledData"
    test: "LabelledData"
    batch_size: int = 256
    precision: Literal["auto", "fp32", "bf16"] = "fp32"
    seeds: tuple[int, ...] = (0, 1, 2)
    max_images: int = MAX_IMAGES
    epochs: int = EPOCHS
    min_steps: int = MIN_STEPS

    def __post_init__(self):
        if self.train.modality != "image":
            raise EvaluationError("The protocol attentive is for encoders of images: leave it out of `--protocol`.")
        self.labels = aligned_labels(self.train, self.test)

    def __call__(
        self,
        encoder: str | Path | PreTrainedModel,
        processor: Any = None,
        *,
        output_dir: str | Path | None = None,
        command: str | None = None,
        name: str | None = None,
    ) -> list[Result]:
        made = None
        if process_state().is_main_process:
            made = self._results(VisionEncoder(encoder, processor), command, name)
            if output_dir is not None:
                write_results(Path(output_dir) / "results.json", made)
        return broadcast_object_list([made])[0]

    def _results(self, vision: VisionEncoder, command: str | None, name: str | None) -> list[Result]:
        precision = choose_precision(self.precision, use_cpu=process_state().device.type == "cpu")
        trained, untrained = vision.load(), vision.random_init(seed=0)
        # a model that was given as an object stays where it is
        device = trained.device if vision.model is trained else process_state().device
        encoders = {
            kind: PatchEncoder(vision, model.to(device), precision)
            for kind, model in ((ENCODER, trained), (RANDOM_INIT, untrained))
        }
        train_y, test_y = self.labels
        rows = np.sort(keyed.permutation(len(train_y), Use.ATTENTIVE_PROBE)[: self.max_images])
        with evaluating(trained), evaluating(untrained):
            train_x = self._patches(vision, encoders, self.train, rows, "Patches of train")
            test_x = self._patches(vision, encoders, self.test, np.arange(len(test_y)), "Patches of test")
        scores: dict[str, dict[int, dict[str, float]]] = {}
        num_classes = train_y.shape[1] if train_y.ndim == 2 else len(self.train.class_names)
        with Progress(len(train_x) * len(self.seeds), self.title, " fits") as bar:
            for kind, x in train_x.items():
                scores[kind] = {}
                for seed in self.seeds:
                    logits = attentive_logits(
                        x, train_y[rows], test_x[kind], num_classes, seed, self.epochs, self.min_steps
                    )
                    scores[kind][seed] = classification_scores(logits.argmax(1), test_y, logits)
                    bar.update()
        settings = {
            "image_size": processed_size(vision.processor), "patches": train_x[ENCODER].shape[1],
            "dim": train_x[ENCODER].shape[2], "precision": precision, "epochs": self.epochs,
            "min_steps": self.min_steps,
        }  # fmt: skip
        return make_results(
            self, scores, (train_y[rows], test_y), model=name or vision.name, num_train=len(rows),
            hyperparameters=settings, command=command,
        )  # fmt: skip

    def _patches(
        self,
        vision: VisionEncoder,
        encoders: dict[str, PatchEncoder],
        data: "LabelledData",
        rows: np.ndarray,
        title: str,
    ) -> dict[str, torch.Tensor]:
        """Features `(num_images, num_patches, dim)` in half precision, by what they are of."""
        parts: dict[str, list[torch.Tensor]] = {kind: [] for kind in (*encoders, RAW_INPUT)}
        bad: list[int] = []
        with Progress(len(rows), title, " images") as bar:
            for start in range(0, len(rows), self.batch_size):
                images = resized_images(vision.processor, data.images, rows[start : start + self.batch_size], bad=bad)
                maps = {kind: encoder(images) for kind, encoder in encoders.items()}
                maps[RAW_INPUT] = raw_patches(images, *maps[ENCODER].shape[1:3])
                for kind, each in maps.items():
                    patches = each.flatten(1, 2).half()
                    if not patches.isfinite().all():
                        raise EvaluationError(
                            f"The features of {kind} hold values that are no numbers, or that 16 bits do not hold: if "
                            "its training diverged, take an earlier checkpoint."
                        )
                    parts[kind].append(patches)
                bar.update(len(images))
        reader = ImageReader(range_for(vision.processor, data.images), processed_channels(vision.processor))
        check_damage(data.images, bad, data.name, reader)
        return {kind: torch.cat(each) for kind, each in parts.items()}


def attentive_logits(
    train_x: torch.Tensor,
    train_y: np.ndarray,
    test_x: torch.Tensor,
    num_classes: int,
    seed: int,
    epochs: int = EPOCHS,
    min_steps: int = MIN_STEPS,
) -> np.ndarray:
    """Logits `(num_test, num_classes)` of images by their patches `(num_images, num_patches, dim)`."""
    device = compute_device()
    flat = train_x.flatten(0, 1).float()
    mean, scale = flat.mean(0).to(device), flat.std(0, correction=0).clamp(min=1e-6).to(device)

    def standardised(x: torch.Tensor) -> torch.Tensor:
        return (x.to(device).float() - mean) / scale

    with seeded(seed):
        model = AttentiveClassifier(train_x.shape[2], num_classes)
    model.to(device)
    target = torch.as_tensor(train_y, device=device)
    batch = min(BATCH_SIZE, len(train_x))
    a_pass = len(train_x) // batch
    steps = max(min_steps, epochs * a_pass)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order = np.zeros(0, np.int64)
    for step in range(steps):
        if step % a_pass == 0:
            order = keyed.permutation(len(train_x), Use.ATTENTIVE_PROBE, seed, step // a_pass)
        rows = torch.from_numpy(order[step % a_pass * batch :][:batch])
        logits = model(standardised(train_x[rows]))
        wanted = target[rows.to(device)]
        if wanted.ndim == 2:
            loss = F.binary_cross_entropy_with_logits(logits, wanted.float())
        else:
            loss = F.cross_entropy(logits, wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        parts = [model(standardised(test_x[i : i + BATCH_SIZE])).cpu() for i in range(0, len(test_x), BATCH_SIZE)]
    return torch.cat(parts).double().numpy()
