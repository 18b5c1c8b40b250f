"""lightly's sides of the benchmarks for images: what its examples build, around an encoder of transformers.

As in its `examples/pytorch/{simclr,mae,byol,dino}.py`: a `LightlyDataset` of image files, one of its transforms, a
plain `DataLoader`, its heads, losses and functions on tokens, and a loop of a few lines; one forward pass a view; a
teacher that moves before each step, by its schedules. The encoder is the module that hfssl trains; lightly's MAE
reaches it through lightly's own interface for masked transformers. The views have the parameters of ours, heads and
losses the sizes, temperatures and momenta of ours, and the optimizer is the same fused AdamW.

This module and what it imports is all that lightly's process loads.
"""

import copy
import inspect
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from lightly.data import LightlyDataset
from lightly.loss import DINOLoss, NegativeCosineSimilarity, NTXentLoss
from lightly.models import utils
from lightly.models.modules import (
    BYOLPredictionHead,
    BYOLProjectionHead,
    DINOProjectionHead,
    MAEDecoder,
    SimCLRProjectionHead,
)
from lightly.models.modules.masked_vision_transformer import MaskedVisionTransformer
from lightly.transforms import BYOLTransform, DINOTransform, MAETransform, SimCLRTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from lightly.utils.scheduler import cosine_schedule
from torch import nn
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode
from transformers import AutoConfig, PreTrainedModel

from ..functional.schedules import linear
from ..modeling.branch import build_with_drop_path
from ..modeling.pooling import feature_size, pool_features
from ..modeling.vision import build_vision_encoder, side
from .base import Pace, count_flops_of


# lightly's schedule counts steps: here one is a millionth of the run.
_TICKS = 1_000_000


@dataclass
class LightlySide:
    """A method as lightly's example has it, without its loop.

    Args:
        model (`nn.Module`):
            Everything that is trained, and the teacher where there is one.
        backbone (`PreTrainedModel`):
            The encoder that the paper evaluates: the student's, for DINO the teacher's.
        transform (`Callable`):
            From an image of Pillow to its views.
        loss_of (`Callable[[list[torch.Tensor]], torch.Tensor]`):
            From the views of a batch, each `(batch_size, num_channels, height, width)`, to the loss.
        before_step (`Callable[[float], None]`):
            To be called with the share of the run that is done, in [0, 1), before each step: moves the teacher and
            what follows a schedule.
        after_backward (`Callable[[], None]`):
            To be called between `backward` and the optimizer's step.
    """

    model: nn.Module
    backbone: PreTrainedModel
    transform: Callable
    loss_of: Callable[[list[torch.Tensor]], torch.Tensor]
    before_step: Callable[[float], None] = lambda progress: None
    after_backward: Callable[[], None] = lambda: None


class Backbone(nn.Module):
    """An encoder of transformers as lightly's examples have theirs: from images of any size to one vector each."""

    def __init__(self, encoder: PreTrainedModel, pooling: str | None = None):
        super().__init__()
        self.encoder, self.pooling = encoder, pooling
        self.interpolates = "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        config, options = self.encoder.config, {}
        if self.interpolates and x.shape[-1] != side(config.image_size):
            options["interpolate_pos_encoding"] = True
        return pool_features(self.encoder(x, **options), config, self.pooling)


class SimCLR(nn.Module):
    def __init__(self, encoder: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        self.backbone = Backbone(encoder, config["pooling"])
        dim = feature_size(encoder.config, config["pooling"])
        self.projection_head = SimCLRProjectionHead(dim, dim, config["projector_output_dim"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection_head(self.backbone(x))


class BYOL(nn.Module):
    def __init__(self, encoder: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        hidden_dim, output_dim = config["projector_hidden_dim"], config["projector_output_dim"]
        self.backbone = Backbone(encoder, config["pooling"])
        self.projection_head = BYOLProjectionHead(
            feature_size(encoder.config, config["pooling"]), hidden_dim, output_dim
        )
        self.prediction_head = BYOLPredictionHead(output_dim, hidden_dim, output_dim)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.projection_head_momentum = copy.deepcopy(self.projection_head)
        utils.deactivate_requires_grad(self.backbone_momentum)
        utils.deactivate_requires_grad(self.projection_head_momentum)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.prediction_head(self.projection_head(self.backbone(x)))

    def forward_momentum(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection_head_momentum(self.backbone_momentum(x)).detach()


class DINO(nn.Module):
    """The student has stochastic depth, the teacher has not. Their heads begin with weights of their own."""

    def __init__(self, encoder: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        student = build_with_drop_path(encoder.config, config["drop_path_rate"])
        student.load_state_dict(encoder.state_dict())
        self.student_backbone = Backbone(student, config["pooling"])
        self.student_head = self._head(encoder, config)
        self.teacher_backbone = Backbone(encoder, config["pooling"])
        self.teacher_head = self._head(encoder, config)
        utils.deactivate_requires_grad(self.teacher_backbone)
        utils.deactivate_requires_grad(self.teacher_head)
        # its centre belongs to the device of the model
        self.criterion = DINOLoss(
            config["num_prototypes"],
            student_temp=config["student_temperature"],
            center_momentum=config["center_momentum"],
        )

    @staticmethod
    def _head(encoder: PreTrainedModel, config: dict[str, Any]) -> DINOProjectionHead:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it uses what torch would rather see replaced
            return DINOProjectionHead(
                feature_size(encoder.config, config["pooling"]),
                config["projector_hidden_dim"],
                config["projector_output_dim"],
                config["num_prototypes"],
                batch_norm=config["projector_batch_norm"],
                freeze_last_layer=1,
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.student_head(self.student_backbone(x))

    def forward_teacher(self, x: torch.Tensor) -> torch.Tensor:
        return self.teacher_head(self.teacher_backbone(x))


class MaskedViT(MaskedVisionTransformer):
    """A `ViTModel` behind lightly's interface."""

    def __init__(self, vit: PreTrainedModel):
        super().__init__()
        self.vit = vit
        positions = vit.embeddings.position_embeddings
        utils.initialize_positional_embedding(positions, strategy="sincos", num_prefix_tokens=1)

    @property
    def sequence_length(self) -> int:
        return self.vit.embeddings.position_embeddings.shape[1]

    def forward(self, images, idx_mask=None, idx_keep=None, mask=None) -> torch.Tensor:
        return self.encode(images, idx_mask, idx_keep, mask)[:, 0]

    def forward_intermediates(self, images, idx_mask=None, idx_keep=None, norm=False, mask=None):
        raise NotImplementedError

    def encode(self, images, idx_mask=None, idx_keep=None, mask=None) -> torch.Tensor:
        tokens = self.preprocess(images, idx_mask, idx_keep, mask)
        for layer in self.vit.layers:
            tokens = layer(tokens)
        return self.vit.layernorm(tokens)

    def images_to_tokens(self, images: torch.Tensor) -> torch.Tensor:
        return self.vit.embeddings.patch_embeddings(images)

    def prepend_prefix_tokens(self, x: torch.Tensor) -> torch.Tensor:
        return utils.prepend_class_token(x, self.vit.embeddings.cls_token)

    def add_pos_embed(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.vit.embeddings.position_embeddings


class MAE(nn.Module):
    """With the decoder that lightly has without timm."""

    def __init__(self, vit: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        self.mask_ratio, self.norm_pix_loss = config["mask_ratio"], config["norm_pix_loss"]
        self.patch_size = vit.config.patch_size
        self.backbone = MaskedViT(vit)
        self.sequence_length = self.backbone.sequence_length
        dim = config["decoder_hidden_size"]
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.decoder = MAEDecoder(
            seq_length=self.sequence_length,
            num_layers=config["decoder_num_hidden_layers"],
            num_heads=config["decoder_num_attention_heads"],
            embed_input_dim=vit.config.hidden_size,
            hidden_dim=dim,
            mlp_dim=config["decoder_intermediate_size"] or 4 * dim,
            out_dim=self.patch_size**2 * 3,
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        size = (len(images), self.sequence_length)
        idx_keep, idx_mask = utils.random_token_mask(size=size, mask_ratio=self.mask_ratio, device=images.device)
        encoded = self.decoder.embed(self.backbone.encode(images=images, idx_keep=idx_keep))
        masked = utils.repeat_token(self.mask_token, size)
        masked = utils.set_at_index(masked, idx_keep, encoded.type_as(masked))
        decoded = self.decoder.decode(masked)
        prediction = self.decoder.predict(utils.get_at_index(decoded, idx_mask))
        # patches are counted without the class token
        target = utils.get_at_index(utils.patchify(images, self.patch_size), idx_mask - 1)
        if self.norm_pix_loss:
            target = utils.normalize_mean_var(target, dim=-1)
        return prediction, target


def lightly_side(method: str, settings: dict[str, Any]) -> LightlySide:
    """A method of lightly, with weights from the global generator of torch.

    Args:
        method (`str`):
            simclr, mae, byol or dino.
        settings (`dict[str, Any]`):
            Of [`~hfssl.benchmarks.vision.contenders`]: `model` is the config of our method, `views`, `local_view`,
            `num_local`, `mean` and `std` are our views.
    """
    return {"simclr": _simclr, "mae": _mae, "byol": _byol, "dino": _dino}[method](settings)


def _simclr(settings: dict[str, Any]) -> LightlySide:
    view, config = settings["views"][0], settings["model"]
    transform = SimCLRTransform(
        input_size=view["size"],
        min_scale=view["scale"][0],
        gaussian_blur=view["blur_probability"],
        **_colors(view),
        normalize=_normalize(settings),
    )
    model = SimCLR(_encoder(settings), config)
    criterion = NTXentLoss(temperature=config["contrastive_temperature"])

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        x0, x1 = views
        return criterion(model(x0), model(x1))

    return LightlySide(model, model.backbone.encoder, transform, loss_of)


def _mae(settings: dict[str, Any]) -> LightlySide:
    view = settings["views"][0]
    transform = MAETransform(input_size=view["size"], min_scale=view["scale"][0], normalize=_normalize(settings))
    model = MAE(_encoder(settings), settings["model"])
    criterion = nn.MSELoss()
    return LightlySide(model, model.backbone.vit, transform, lambda views: criterion(*model(views[0])))


def _byol(settings: dict[str, Any]) -> LightlySide:
    transforms = []
    for kind, view in zip((BYOLView1Transform, BYOLView2Transform), settings["views"], strict=True):
        transform = kind(
            input_size=view["size"],
            min_scale=view["scale"][0],
            gaussian_blur=view["blur_probability"],
            solarization_prob=view["solarize_probability"],
            **_colors(view),
            normalize=_normalize(settings),
        )
        # it has no argument for this, and is bilinear
        transform.transform.transforms[0].interpolation = InterpolationMode(view["interpolation"])
        transforms.append(transform)
    config = settings["model"]
    model = BYOL(_encoder(settings), config)
    criterion = NegativeCosineSimilarity()

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        x0, x1 = views
        p0, z0 = model(x0), model.forward_momentum(x0)
        p1, z1 = model(x1), model.forward_momentum(x1)
        return 0.5 * (criterion(p0, z1) + criterion(p1, z0))

    def before_step(progress: float) -> None:
        momentum = _momentum(progress, config)
        utils.update_momentum(model.backbone, model.backbone_momentum, m=momentum)
        utils.update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)

    return LightlySide(model, model.backbone.encoder, BYOLTransform(*transforms), loss_of, before_step)


def _dino(settings: dict[str, Any]) -> LightlySide:
    first, second = settings["views"]
    local, config = settings["local_view"], settings["model"]
    # without small crops there is none to ask, and it is asked nothing
    small = local or first
    # its second large crop has no `cj_strength` but the default 0.5: what is jittered by is twice that of ours
    colors = {name: 2.0 * value if name in _JITTERS else value for name, value in _colors(first).items()}
    transform = DINOTransform(
        global_crop_size=first["size"],
        global_crop_scale=first["scale"],
        local_crop_size=small["size"],
        local_crop_scale=small["scale"],
        n_local_views=settings["num_local"],
        gaussian_blur=tuple(view["blur_probability"] for view in (first, second, small)),
        solarization_prob=second["solarize_probability"],
        **colors,
        normalize=_normalize(settings),
    )
    model = DINO(_encoder(settings), config)
    teacher_temperature, epoch = config["teacher_temperature_start"], 0

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        teacher_out = [model.forward_teacher(view) for view in views[:2]]
        student_out = [model.forward(view) for view in views]
        return model.criterion(teacher_out, student_out, teacher_temp=teacher_temperature)

    def before_step(progress: float) -> None:
        nonlocal teacher_temperature, epoch
        momentum = _momentum(progress, config)
        utils.update_momentum(model.student_backbone, model.teacher_backbone, m=momentum)
        utils.update_momentum(model.student_head, model.teacher_head, m=momentum)
        start, end, warmup = (config[f"teacher_temperature_{name}"] for name in ("start", "end", "warmup"))
        teacher_temperature = linear(start, end, progress / warmup if warmup else 1.0)
        epoch = 0 if progress < config["freeze_prototypes"] else 1

    def after_backward() -> None:
        model.student_head.cancel_last_layer_gradients(current_epoch=epoch)

    return LightlySide(model, model.teacher_backbone.encoder, transform, loss_of, before_step, after_backward)


_JITTERS = ("cj_bright", "cj_contrast", "cj_sat", "cj_hue")


def _colors(view: dict[str, Any]) -> dict[str, Any]:
    """What all transforms that recolour call the same."""
    jitter = dict(zip(_JITTERS, view["jitter"], strict=True))
    return jitter | {
        "cj_prob": view["jitter_probability"], "random_gray_scale": view["grey_probability"],
        "sigmas": view["blur_sigma"], "hf_prob": view["flip_probability"],
    }  # fmt: skip


def _normalize(settings: dict[str, Any]) -> dict[str, list[float]]:
    return {"mean": settings["mean"], "std": settings["std"]}


def _momentum(progress: float, config: dict[str, Any]) -> float:
    return cosine_schedule(round(progress * _TICKS), _TICKS + 1, config["momentum_start"], config["momentum_end"])


def _encoder(settings: dict[str, Any]) -> PreTrainedModel:
    return build_vision_encoder(AutoConfig.for_model(**settings["model"]["encoder_config"]))


def train(pace: Pace, settings: dict[str, Any]) -> float:
    """The loop of lightly's examples, and the FLOPs of an image. `settings`: of `hfssl.benchmarks.vision`."""
    torch.manual_seed(settings["seed"])
    pace.data_is_readable()
    theirs = lightly_side(settings["method"], settings)
    device = torch.device(settings["device"])
    theirs.model.to(device).train()
    loader = DataLoader(
        LightlyDataset(settings["images"], transform=theirs.transform),
        batch_size=settings["batch_size"],
        shuffle=True,
        drop_last=True,
        num_workers=settings["num_workers"],
    )
    training = settings["training"]
    optimizer = torch.optim.AdamW(
        [parameter for parameter in theirs.model.parameters() if parameter.requires_grad],
        lr=settings["learning_rate"],
        betas=(training["adam_beta1"], training["adam_beta2"]),
        eps=training["adam_epsilon"],
        weight_decay=training["weight_decay"],
        fused=True,
    )
    batches = endless(loader)
    for step in range(pace.num_steps):
        theirs.before_step(step / pace.num_steps)
        begin, mark = time.perf_counter(), pace.mark()
        views = [view.to(device) for view in next(batches)[0]]
        pace.fetched(time.perf_counter() - begin, len(views[0]), len(views[0]), (mark, pace.mark()))
        with torch.autocast(device.type, torch.bfloat16, enabled=settings["precision"] == "bf16"):
            loss = theirs.loss_of(views)
        loss.backward()
        theirs.after_backward()
        optimizer.step()
        optimizer.zero_grad()
        pace.stepped(loss)
    return count_flops_of(lambda: theirs.loss_of(views)) / len(views[0])


def endless(loader: DataLoader) -> Iterator[Any]:
    """Batches, pass after pass."""
    while True:
        yield from loader
