"""How the sides of the benchmarks for images train: our recipes, the shortest loop around their parts, `run_mae.py`.

lightly's are in `hfssl.benchmarks.lightly`. Each function runs in a process of its own, on plain `settings`; see
[`~hfssl.benchmarks.vision.contenders`].
"""

import tempfile
from typing import Any

import torch

from ..cli.image.data import ImageData, ImageDataArguments
from ..cli.image.encoders import VisionEncoderArguments, make_views
from ..cli.modality import build_method
from ..data.image.views import ViewArguments, Views
from ..machine import use_one_gpu
from ..methods import METHODS
from ..modeling.vision import SSLVisionModel
from .base import Pace
from .by_crop import take_crop_by_crop
from .training import Timed, train_bare_loop


def make_benchmark_views(method: str, recipe: dict[str, str], data: ImageData, image_size: int | None) -> Views:
    """The views of a recipe, with what the other side has otherwise."""
    record = METHODS[method].method
    arguments = ViewArguments(image_size=image_size, **record.benchmark.views)
    given = set(record.benchmark.views)
    return make_views(METHODS[method], VisionEncoderArguments(**recipe), {}, data, arguments, given)


def build_benchmark_model(method: str, recipe: dict[str, str], views: Views, args: Any) -> SSLVisionModel:
    """The method of a recipe without flags, with what the other side has otherwise."""
    config = dict(METHODS[method].method.benchmark.config)
    return build_method(METHODS[method], VisionEncoderArguments(**recipe), config, views, args, set(config))


def num_images(batch: dict[str, torch.Tensor]) -> int:
    return len(batch["pixel_values"])


def train_ours(pace: Pace, settings: dict[str, Any]) -> float:
    """`recipes/simclr.py`, `mae.py`, `byol.py`, `dino.py` and the like without its evaluation and its result.

    With `by_crop` in the settings each crop goes through encoder and head by itself.
    """
    from ..training.trainer import SSLTrainer

    class TimedTrainer(Timed, SSLTrainer):
        pass

    args = _our_arguments(pace, settings)
    pace.data_is_readable()
    data, views, model, stream = _our_parts(args, settings)
    if settings.get("by_crop"):
        take_crop_by_crop(model, settings["batch_size"], len(settings["views"]))
    trainer = TimedTrainer(pace, num_images, model, args, stream, settings=data.settings | views.settings)
    trainer.train()
    return trainer.flops()


def train_bare(pace: Pace, settings: dict[str, Any]) -> float:
    """Our model and stream in the shortest loop that does the same."""
    args = _our_arguments(pace, settings)
    pace.data_is_readable()
    _, _, model, stream = _our_parts(args, settings)
    return train_bare_loop(pace, num_images, model, args, stream)


def _our_arguments(pace: Pace, settings: dict[str, Any]) -> Any:
    from ..training.arguments import SSLTrainingArguments

    return SSLTrainingArguments(
        **_run(pace, settings), precision=settings["precision"], cpu_threads=torch.get_num_threads()
    )


def _run(pace: Pace, settings: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a trainer, ours or theirs."""
    return {
        "output_dir": _new_folder(settings), "max_steps": pace.num_steps, "seed": settings["seed"],
        "use_cpu": settings["device"] == "cpu", "per_device_train_batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"], "dataloader_num_workers": settings["num_workers"],
        **settings["training"],
    }  # fmt: skip


def _our_parts(args: Any, settings: dict[str, Any]) -> tuple[ImageData, Views, Any, Any]:
    """Data, views, model and stream."""
    data = ImageData(ImageDataArguments(**settings["data"]))
    method, recipe = settings["method"], settings["recipe"]
    views = make_benchmark_views(method, recipe, data, settings["views"][0]["size"])
    model = build_benchmark_model(method, recipe, views, args)
    return data, views, model, data.stream(args, views)


def train_run_mae(pace: Pace, settings: dict[str, Any]) -> float:
    """`examples/pytorch/image-pretraining/run_mae.py` of transformers."""
    from datasets import load_dataset
    from torchvision.transforms import Compose, Lambda, Normalize, RandomHorizontalFlip, RandomResizedCrop, ToTensor
    from torchvision.transforms.functional import InterpolationMode
    from transformers import Trainer, TrainingArguments, ViTMAEConfig, ViTMAEForPreTraining, set_seed

    class TimedTrainer(Timed, Trainer):
        pass

    bf16 = settings["precision"] == "bf16"
    args = TrainingArguments(**_run(pace, settings), bf16=bf16, remove_unused_columns=False)
    use_one_gpu(args)  # as our side
    set_seed(args.seed)
    pace.data_is_readable()
    # a cache of its own: as on the first run on these data
    options = {"split": "train", "cache_dir": _new_folder(settings)}
    dataset = load_dataset("imagefolder", data_dir=settings["images"], **options)
    view, model = settings["views"][0], settings["model"]
    transforms = Compose(
        [
            Lambda(lambda image: image.convert("RGB") if image.mode != "RGB" else image),
            RandomResizedCrop(view["size"], scale=view["scale"], interpolation=InterpolationMode.BICUBIC),
            RandomHorizontalFlip(),
            ToTensor(),
            Normalize(mean=settings["mean"], std=settings["std"]),
        ]
    )

    def preprocess_images(examples):
        examples["pixel_values"] = [transforms(image) for image in examples["image"]]
        return examples

    def collate(examples):
        return {"pixel_values": torch.stack([example["pixel_values"] for example in examples])}

    dataset.set_transform(preprocess_images)
    encoder = {name: value for name, value in model["encoder_config"].items() if name in ViTMAEConfig().to_dict()}
    decoder = {name: value for name, value in model.items() if name.startswith("decoder_")}
    decoder["decoder_intermediate_size"] = decoder["decoder_intermediate_size"] or 4 * decoder["decoder_hidden_size"]
    config = ViTMAEConfig(
        **{name: value for name, value in encoder.items() if name != "model_type"}, **decoder,
        mask_ratio=model["mask_ratio"], norm_pix_loss=model["norm_pix_loss"],
    )  # fmt: skip
    trainer = TimedTrainer(
        pace, num_images, model=ViTMAEForPreTraining(config), args=args, train_dataset=dataset, data_collator=collate
    )
    trainer.train()
    return trainer.flops()


def _new_folder(settings: dict[str, Any]) -> str:
    return tempfile.mkdtemp(dir=settings["folder"])
