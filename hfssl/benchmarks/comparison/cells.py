"""What a cell of a comparison does: build a side, train it, stop the clock at the points of its curve and measure."""

import dataclasses
import functools
import logging
import random
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from ...cli.image.data import ImageData, ImageDataArguments
from ...cli.image.encoders import VisionEncoderArguments, make_views
from ...cli.labelled import load_splits
from ...cli.modality import build_method
from ...data.image.views import ViewArguments
from ...evaluation.frozen import aligned_labels
from ...evaluation.image.features import PixelFeatures, encode, normalized, resized_images
from ...evaluation.knn import knn_predict
from ...evaluation.linear_probe import linear_probe_predict
from ...functional.schedules import cosine
from ...methods import METHODS
from ...modeling.base import evaluating
from ...modeling.pooling import check_pooling
from ..training import NOTHING_BESIDE, Timed
from .plan import OURS, Cell, Comparison


logger = logging.getLogger(__name__)

# Neighbours and temperature of the protocol "knn".
NEIGHBOURS, TEMPERATURE = (20, 200), 0.07
_ROWS_AT_ONCE = 256


class Probe:
    """The same images for all encoders of a table: resized once, then features, k-NN and linear probe in fp32.

    Args:
        arguments ([`Comparison`]):
            Which images.
        processor:
            The image processor that goes with the encoder.
    """

    def __init__(self, arguments: Comparison, processor: Any):
        self.processor = processor
        self.labelled, test = load_splits(
            arguments.dataset or "letters", arguments.split, arguments.test_split,
            max_train_samples=arguments.max_train_samples, max_test_samples=arguments.max_test_samples,
        )  # fmt: skip
        self.samples = test.images
        self.train_y, self.test_y = aligned_labels(self.labelled, test)
        self.train, self.test = (resized_images(processor, split.images) for split in (self.labelled, test))

    def features(self, encoder: PreTrainedModel) -> list[np.ndarray]:
        """Pooled features of train and of test, `(num_images, dim)` each."""
        device, pooling = next(encoder.parameters()).device, check_pooling(encoder.config)
        features = []
        with evaluating(encoder):
            for pixels in (self.train, self.test):
                parts = [
                    encode(encoder, normalized(self.processor, part, device), pooling).float().cpu()
                    for part in pixels.split(_ROWS_AT_ONCE)
                ]
                # a run that diverges shows in its loss
                features.append(torch.cat(parts).nan_to_num().numpy())
        return features

    def knn(self, train_x: np.ndarray, test_x: np.ndarray) -> dict[str, float]:
        """Accuracy for each number of neighbours."""
        found = knn_predict(train_x, self.train_y, test_x, NEIGHBOURS, TEMPERATURE)
        return {f"knn_{k}": float(np.mean(rows == self.test_y)) for k, rows in found.items()}

    def linear(self, train_x: np.ndarray, test_x: np.ndarray) -> float:
        """Accuracy of the linear probe."""
        return float(np.mean(linear_probe_predict(train_x, self.train_y, test_x)[0] == self.test_y))


class Curve:
    """What an encoder is worth as it is trained. It is the pace of a trainer ([`Timed`]) whose clock can be stopped.

    Args:
        title (`str`):
            For the log.
        probe ([`Probe`]):
            What measures.
        steps (`Sequence[int]`):
            After which it is measured; the last ends the run.
        images_per_step (`int`):
            Of the run.
        check (`Callable[[int, list[dict], float], dict]`, *optional*):
            From the steps that are done, the points before and the share of the run to what is measured of its health.
    """

    def __init__(
        self,
        title: str,
        probe: Probe,
        steps: Sequence[int],
        images_per_step: int,
        check: Callable[[int, list[dict[str, Any]], float], dict[str, Any]] | None = None,
    ):
        self.title, self.probe, self.check = title, probe, check
        self.steps, self.images_per_step = steps, images_per_step
        self.points: list[dict[str, Any]] = []
        self.step, self.measured, self.loss, self.seconds, self.cpu_seconds = 0, 0, 0.0, 0.0, 0.0

    def begin(self, encoder: PreTrainedModel) -> None:
        """Measure the encoder as it starts, then let the clock run."""
        self.encoder = encoder
        self._measure()
        self._go_on()

    def mark(self) -> None:
        """A moment of a GPU, which is not asked for its."""

    def fetched(self, *_: Any) -> None:
        """A batch was waited for, which the clock has counted."""

    def stepped(self, loss: torch.Tensor) -> None:
        """An optimizer step is done."""
        self.step += 1
        self.loss = self.loss + loss.detach()
        if self.step in self.steps:
            self.loss = float(self.loss) / (self.step - self.measured)  # waits for the device
            self.seconds += time.perf_counter() - self._began
            self.cpu_seconds += time.process_time() - self._cpu_began
            self._measure()
            self.measured = self.step
            self._go_on()

    def _go_on(self) -> None:
        self.loss, self._began, self._cpu_began = 0.0, time.perf_counter(), time.process_time()

    def _measure(self) -> None:
        self.features = self.probe.features(self.encoder)
        point = {"step": self.step, "images": self.step * self.images_per_step}
        point |= {"seconds": round(self.seconds, 2), "cpu_seconds": round(self.cpu_seconds, 2)}
        point |= {"loss": self.loss if self.step else None, **self.probe.knn(*self.features)}
        if self.check is not None:
            point |= self.check(self.step, self.points, self.step / self.steps[-1])
        self.points.append(point)
        said = ", ".join(f"k = {k}: {100 * point[f'knn_{k}']:.1f} %" for k in NEIGHBOURS)
        loss = f", loss {self.loss:.4f}" if self.step else ""
        logger.info("%s: step %d, %.0f s%s, k-NN %s", self.title, self.step, self.seconds, loss, said)


def measure_baselines(arguments: Comparison, images: Path) -> dict[str, Any]:
    """The encoder as it starts, for each seed; raw pixels; the most frequent class."""
    probe, at_random = None, {}
    for seed in arguments.seed_list:
        parts = build_ours(arguments, "simclr", seed, images)
        probe = probe or Probe(arguments, parts.processor)
        logger.info("Baselines: the encoder at random, seed %d.", seed)
        features = probe.features(parts.model.encoder)
        at_random[str(seed)] = probe.knn(*features) | {"linear": probe.linear(*features)}
    logger.info("Baselines: raw pixels.")
    extract = PixelFeatures(parts.processor, probe.labelled)
    features = [
        np.concatenate([extract(list(part)) for part in pixels.split(_ROWS_AT_ONCE)])
        for pixels in (probe.train, probe.test)
    ]
    return {
        "random_init": at_random,
        "raw_input": probe.knn(*features) | {"linear": probe.linear(*features)},
        "majority": float(np.mean(probe.test_y == np.bincount(probe.train_y).argmax())),
    }


def train_cell(arguments: Comparison, cell: Cell, images: Path) -> dict[str, Any]:
    """Train, write the encoder as a stock folder, and return the curve and what it was trained with."""
    parts = build_ours(arguments, cell.method, cell.seed, images)
    probe, steps = Probe(arguments, parts.processor), arguments.points(parts.args.max_steps)
    curve = Curve(cell.name, probe, steps, arguments.batch_size)
    folder = Path(arguments.output_dir) / cell.name
    if cell.side == OURS:
        shutil.rmtree(parts.args.output_dir, ignore_errors=True)  # its clock is lost: it starts again
        train_ours(parts, curve)
        shutil.rmtree(parts.args.output_dir, ignore_errors=True)
        parts.model.export_encoder(folder)
    else:
        train_lightly(arguments, cell.method, parts, images, curve).save_pretrained(folder)
    parts.processor.save_pretrained(folder)
    linear = curve.probe.linear(*curve.features)
    logger.info("%s: linear probe %.1f %%", cell.name, 100 * linear)
    return {
        "curve": curve.points, "linear": linear, "seconds": curve.points[-1]["seconds"],
        "cpu_seconds": curve.points[-1]["cpu_seconds"], "steps": parts.args.max_steps,
        "num_images": parts.data.num_images, "precision": "bf16" if parts.args.bf16 else "fp32",
        "views": parts.views.description, "model": parts.model.config.to_dict(),
    }  # fmt: skip


def build_ours(arguments: Comparison, method: str, seed: int, images: Path) -> SimpleNamespace:
    """What the recipe of a method builds: `args`, `data`, `views`, `model` and `processor`.

    The other side takes the settings of its views and of its model and its first weights from it.
    """
    from ...training.arguments import SSLTrainingArguments

    recipe = VisionEncoderArguments(encoder=arguments.encoder)
    data = ImageData(ImageDataArguments(dataset=str(images), max_held_out=1))
    data.exclude = frozenset()  # both sides train on all images: what is measured on is another split
    args = SSLTrainingArguments(
        output_dir=Path(arguments.output_dir) / f".{method}-{seed}", seed=seed,  # written to by a run that is stopped
        max_steps=arguments.num_steps(data.num_images),
        per_device_train_batch_size=arguments.batch_size, learning_rate=arguments.learning_rate,
        warmup_steps=arguments.warmup, lr_scheduler_type="cosine", precision=arguments.precision,
        dataloader_num_workers=arguments.num_workers, use_cpu=arguments.use_cpu,
        cpu_threads=torch.get_num_threads(), **arguments.training(method), **NOTHING_BESIDE,
    )  # fmt: skip
    config = {**arguments.config(method), "encoder_config": arguments.encoder_config}
    has_local = METHODS[method].method.views.local is not None
    local = {"local_crops": arguments.local_crops, "local_size": arguments.local_size} if has_local else {}
    view_arguments = ViewArguments(image_size=arguments.image_size, **local)
    views = make_views(METHODS[method], recipe, config, data, view_arguments, set(local))
    model = build_method(METHODS[method], recipe, config, views, args, set(config))
    processor = views.image_processor()
    return SimpleNamespace(args=args, data=data, views=views, model=model, processor=processor)


def train_ours(parts: SimpleNamespace, curve: Curve) -> None:
    """`SSLTrainer` as the recipe uses it, without its evaluations and checkpoints; health by the test images."""
    from ...training.health import HealthMonitor
    from ...training.trainer import SSLTrainer

    class TimedTrainer(Timed, SSLTrainer):
        pass

    stream = parts.data.stream(parts.args, parts.views)
    monitor = HealthMonitor(curve.probe.samples, parts.processor, parts.model.method.modality, stream)
    curve.check = functools.partial(monitor.check, parts.model)
    trainer = TimedTrainer(
        curve, lambda batch: len(batch["pixel_values"]), parts.model, parts.args, stream,
        settings=parts.data.settings | parts.views.settings,
    )  # fmt: skip
    curve.begin(parts.model.encoder)
    trainer.train()


def train_lightly(
    arguments: Comparison, method: str, parts: SimpleNamespace, images: Path, curve: Curve
) -> PreTrainedModel:
    """lightly's model, loss and views in a loop with our optimizer, schedules and clipping; returns its encoder."""
    from lightly.data import LightlyDataset
    from torch.utils.data import DataLoader

    from ..lightly import endless, lightly_side

    args, views = parts.args, parts.views
    settings = {
        "method": method, "model": parts.model.config.to_dict(), "mean": views.mean, "std": views.std,
        "views": [dataclasses.asdict(view) for view in views.views], "num_local": views.num_local,
        "local_view": dataclasses.asdict(views.local) if views.num_local else None,
    }  # fmt: skip
    torch.manual_seed(args.seed)
    random.seed(args.seed)  # its masks
    theirs = lightly_side(method, settings)
    start = parts.model.encoder.state_dict()
    for module in theirs.model.modules():  # student and teacher
        if isinstance(module, type(parts.model.encoder)):
            module.load_state_dict(start)
    theirs.model.to(args.device).train()
    loader = DataLoader(
        LightlyDataset(str(images), transform=theirs.transform), batch_size=arguments.batch_size, shuffle=True,
        drop_last=True, num_workers=arguments.num_workers, persistent_workers=arguments.num_workers > 0,
    )  # fmt: skip
    trained = [parameter for parameter in theirs.model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1]
    others = [parameter for parameter in trained if parameter.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon, fused=True,
    )  # fmt: skip
    schedule = get_cosine_schedule_with_warmup(optimizer, args.get_warmup_steps(args.max_steps), args.max_steps)
    curve.begin(theirs.backbone)
    batches = endless(loader)
    for step in range(args.max_steps):
        progress = step / args.max_steps
        theirs.before_step(progress)
        if args.weight_decay_end is not None:
            decay = cosine(args.weight_decay, args.weight_decay_end, progress)
            optimizer.param_groups[0]["weight_decay"] = decay
        batch = [view.to(args.device) for view in next(batches)[0]]
        with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):
            loss = theirs.loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, args.max_grad_norm)
        theirs.after_backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        curve.stepped(loss)
    return theirs.backbone
