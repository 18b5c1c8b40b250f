"""The loss of a method on held-out samples: always the same views of the same samples."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from ..data.held_out import content_keys
from ..data.modality import modality as find_modality
from ..data.sources import identity
from ..data.stream import Block
from ..errors import UserError
from ..functional import keyed
from ..functional.keyed import Use
from ..modeling.method import LossContext
from .evaluator import Evaluator, name_of
from .results import Result


if TYPE_CHECKING:
    from ..data.audio.views import AudioViews
    from ..data.image.views import Views

# Enough for two digits of a loss, and little memory at 224 pixels.
MOST_SAMPLES = 256


class HeldOutLossEvaluator(Evaluator):
    r"""
    Mean loss over held-out images, or over recordings of which there are views. Of contrastive methods it depends on
    the number of those that are contrasted.

    Args:
        samples (`Sequence[bytes]`):
            Encoded held-out images or recordings, of which the first 256 are taken.
        views ([`~hfssl.data.image.views.Views`] or [`~hfssl.data.audio.views.AudioViews`]):
            Of the run. What is random about the views of a sample depends on the samples only.
        modality (`str`, *optional*, defaults to `"image"`):
            What the samples are.
        batch_size (`int`, *optional*, defaults to `64`):
            Samples a forward pass, at most; the batches are equally large, give or take one.
        rank, world_size (`int`, *optional*):
            This process measures its share of the batches, and the sums are added up.
    """

    protocol: ClassVar[str] = "held_out_loss"
    version: ClassVar[int] = 1
    primary_metric = "loss"
    greater_is_better: ClassVar[bool] = False
    # Of a loss of several terms the one that is measured.
    loss_term: ClassVar[str | None] = None

    def __init__(
        self,
        samples: Sequence[bytes],
        views: "Views | AudioViews",
        *,
        modality: str = "image",
        batch_size: int = 64,
        rank: int = 0,
        world_size: int = 1,
    ):
        # of an image that is cut up there are several
        tiles = getattr(views, "tiles", None)
        of_each = 1 if tiles is None else tiles.most
        samples, self.samples = list(samples)[: MOST_SAMPLES // of_each or 1], find_modality(modality).samples
        self.measured_on = frozenset(map(identity, samples))
        keys = content_keys(samples)
        rows = views.rows(Block({modality: samples}, keyed.key(Use.HELD_OUT_SAMPLE, keys), key=0))
        if not len(rows):
            reason = rows.bad[0][1] if rows.bad else "there is nothing in it"
            raise UserError(
                f"None of {len(samples)} held-out {self.samples} can be used. The first: {reason}. Pass other data."
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
        return self.results(self.measure(encoder.eval()), model=name_of(encoder))

    def results(self, measured: dict[str, float], model: str, **baselines: dict[str, float]) -> list[Result]:
        """The records of what was measured, beside baselines given by name."""
        return [
            Result.from_scores(
                {0: measured["loss"]},
                {name: figures["loss"] for name, figures in baselines.items()},
                protocol=self.protocol, version=self.version, model=model, task=f"held-out {self.samples}",
                split="held out", metric="loss", num_train=0, num_eval=self.num_samples, greater_is_better=False,
                hyperparameters=self.get_config_dict(),
            )
        ]  # fmt: skip

    def get_config_dict(self) -> dict[str, Any]:
        return {self.samples: self.num_samples, "batch_size": self.batch_size}
