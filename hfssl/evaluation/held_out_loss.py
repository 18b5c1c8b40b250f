"""The loss of a method on held-out images: always the same views of the same images."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from ..data.held_out import content_keys
from ..data.image.views import Views
from ..data.sources import identity
from ..data.stream import Block
from ..errors import UserError
from ..functional import keyed
from ..functional.keyed import Use
from ..modeling.method import LossContext
from .evaluator import Evaluator
from .results import Result


# Enough for two digits of a loss, and little memory at 224 pixels.
MOST_SAMPLES = 256


class HeldOutLossEvaluator(Evaluator):
    r"""
    Mean loss over held-out images. Of contrastive methods it depends on the number of images that are contrasted.

    Args:
        images (`Sequence[bytes]`):
            Encoded held-out images, of which the first 256 are taken.
        views ([`~hfssl.data.image.views.Views`]):
            Of the run. What is random about the views of an image depends on the image only.
        batch_size (`int`, *optional*, defaults to `64`):
            Images a forward pass, at most; the batches are equally large, give or take one.
        rank, world_size (`int`, *optional*):
            This process measures its share of the batches, and the sums are added up.
    """

    protocol: ClassVar[str] = "held_out_loss"
    version: ClassVar[int] = 1
    primary_metric = "loss"
    greater_is_better: ClassVar[bool] = False
    task: ClassVar[str] = "held-out images"

    def __init__(
        self, images: Sequence[bytes], views: Views, *, batch_size: int = 64, rank: int = 0, world_size: int = 1
    ):
        # of an image that is cut up there are several
        images = list(images)[: MOST_SAMPLES // (views.tiles.most if views.tiles else 1) or 1]
        self.measured_on = frozenset(map(identity, images))
        keys = content_keys(images)
        rows = views.rows(Block({"image": images}, keyed.key(Use.HELD_OUT_SAMPLE, keys), key=0))
        if not len(rows):
            reason = rows.bad[0][1] if rows.bad else "there is none"
            raise UserError(
                f"None of {len(images)} held-out images can be decoded. The first: {reason}. Pass other data."
            )
        self.views, self.num_samples = views, len(rows)
        num_batches = -(-len(rows) // batch_size)
        self.batch_size = -(-len(rows) // num_batches)
        cuts = np.array_split(np.arange(len(rows)), num_batches)[rank::world_size]
        self.batches = [{name: column[cut] for name, column in rows.columns.items()} for cut in cuts]
        self.world_size = world_size
        self._target_variance: float | None = None

    def batch(self, device: torch.device | str, index: int = 0) -> dict[str, torch.Tensor]:
        """What the model gets of one batch of this process."""
        return self.views.collator(device)(self.batches[index])

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """The loss of a pre-training model in evaluation mode, as it is."""
        device = next(model.parameters()).device
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        with torch.no_grad():
            for index in range(len(self.batches)):
                batch = self.batch(device, index)
                count = len(next(iter(batch.values())))
                sums += torch.stack([model(**batch).loss.double() * count, sums.new_tensor(count)])
        if self.world_size > 1:
            dist.all_reduce(sums)
        loss, count = sums.tolist()
        return {"loss": loss / count}

    def loss_context(self, model: torch.nn.Module) -> LossContext:
        """With the variance of what a model reconstructs (`targets`) around its mean over all patches."""
        if hasattr(model, "targets") and self._target_variance is None:
            self._target_variance = self._variance(model)
        return LossContext(self.batch_size, target_variance=self._target_variance)

    def _variance(self, model: torch.nn.Module) -> float:
        device = next(model.parameters()).device
        with torch.no_grad():
            size = self.views.image_size
            dim = model.targets(torch.zeros(1, self.views.num_channels, size, size, device=device))[0].shape[-1]
            # as large in a process that has no batch
            count = torch.zeros((), dtype=torch.float64, device=device)
            total, squares = torch.zeros(2, dim, dtype=torch.float64, device=device)
            for index in range(len(self.batches)):
                targets = model.targets(self.batch(device, index)["pixel_values"])[0].double().flatten(0, 1)
                count, total, squares = count + len(targets), total + targets.sum(0), squares + targets.square().sum(0)
        sums = torch.cat([count[None], total, squares])
        if self.world_size > 1:
            dist.all_reduce(sums)
        mean, mean_square = (sums[1:] / sums[0]).chunk(2)
        return (mean_square - mean.square()).mean().item()

    def __call__(self, encoder, processor=None, *, output_dir=None, command=None) -> list[Result]:
        """The record of a pre-training model."""
        return self.results(self.measure(encoder.eval()), model=encoder.name_or_path or type(encoder).__name__)

    def results(self, measured: dict[str, float], model: str, **baselines: dict[str, float]) -> list[Result]:
        """The records of what was measured, beside baselines given by name."""
        return [
            Result.from_scores(
                {0: measured["loss"]},
                {name: figures["loss"] for name, figures in baselines.items()},
                protocol=self.protocol, version=self.version, model=model, task=self.task, split="held out",
                metric="loss", num_train=0, num_eval=self.num_samples, greater_is_better=False,
                hyperparameters=self.get_config_dict(),
            )
        ]  # fmt: skip

    def get_config_dict(self) -> dict[str, Any]:
        return {"images": self.num_samples, "batch_size": self.batch_size}
