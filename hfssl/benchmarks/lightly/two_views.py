"""lightly's methods with two views, as in its `examples/pytorch/{simclr,byol,simsiam,barlowtwins,vicreg}.py`."""

import copy
from typing import Any

import torch
from lightly.loss import BarlowTwinsLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from lightly.models import utils
from lightly.models.modules import (
    BarlowTwinsProjectionHead,
    BYOLPredictionHead,
    BYOLProjectionHead,
    SimCLRProjectionHead,
    SimSiamPredictionHead,
    SimSiamProjectionHead,
)
from lightly.models.modules.heads import VICRegProjectionHead
from lightly.transforms import BYOLTransform, SimCLRTransform, SimSiamTransform
from lightly.transforms.byol_transform import BYOLView1Transform, BYOLView2Transform
from torch import nn
from torchvision.transforms import InterpolationMode
from transformers import PreTrainedModel

from ...modeling.pooling import feature_size
from .base import Backbone, LightlySide, build_encoder, color_settings, momentum_at, normalization


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


class SimSiam(nn.Module):
    """Its projector has three layers."""

    def __init__(self, encoder: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        output_dim = config["projector_output_dim"]
        dim = feature_size(encoder.config, config["pooling"])
        self.backbone = Backbone(encoder, config["pooling"])
        self.projection_head = SimSiamProjectionHead(dim, config["projector_hidden_dim"], output_dim)
        self.prediction_head = SimSiamPredictionHead(output_dim, config["predictor_hidden_dim"], output_dim)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = self.projection_head(self.backbone(x))
        return z.detach(), self.prediction_head(z)


class Projected(nn.Module):
    """An encoder and a projector of three layers, for losses on both views' projections."""

    def __init__(self, encoder: PreTrainedModel, config: dict[str, Any], head: type[nn.Module]):
        super().__init__()
        dim = feature_size(encoder.config, config["pooling"])
        self.backbone = Backbone(encoder, config["pooling"])
        self.projection_head = head(dim, config["projector_hidden_dim"], config["projector_output_dim"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection_head(self.backbone(x))


def simclr(settings: dict[str, Any]) -> LightlySide:
    view, config = settings["views"][0], settings["model"]
    transform = SimCLRTransform(
        input_size=view["size"],
        min_scale=view["scale"][0],
        gaussian_blur=view["blur_probability"],
        **color_settings(view),
        normalize=normalization(settings),
    )
    model = SimCLR(build_encoder(settings), config)
    criterion = NTXentLoss(temperature=config["contrastive_temperature"])

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        x0, x1 = views
        return criterion(model(x0), model(x1))

    return LightlySide(model, model.backbone.encoder, transform, loss_of)


def byol(settings: dict[str, Any]) -> LightlySide:
    config = settings["model"]
    model = BYOL(build_encoder(settings), config)
    criterion = NegativeCosineSimilarity()

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        x0, x1 = views
        p0, z0 = model(x0), model.forward_momentum(x0)
        p1, z1 = model(x1), model.forward_momentum(x1)
        return 0.5 * (criterion(p0, z1) + criterion(p1, z0))

    def before_step(progress: float) -> None:
        momentum = momentum_at(progress, config)
        utils.update_momentum(model.backbone, model.backbone_momentum, m=momentum)
        utils.update_momentum(model.projection_head, model.projection_head_momentum, m=momentum)

    return LightlySide(model, model.backbone.encoder, _two_kinds_of_views(settings), loss_of, before_step)


def simsiam(settings: dict[str, Any]) -> LightlySide:
    view = settings["views"][0]
    transform = SimSiamTransform(
        input_size=view["size"],
        min_scale=view["scale"][0],
        gaussian_blur=view["blur_probability"],
        **color_settings(view),
        normalize=normalization(settings),
    )
    model, criterion = SimSiam(build_encoder(settings), settings["model"]), NegativeCosineSimilarity()

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        x0, x1 = views
        z0, p0 = model(x0)
        z1, p1 = model(x1)
        return 0.5 * (criterion(p0, z1) + criterion(p1, z0))

    return LightlySide(model, model.backbone.encoder, transform, loss_of)


def barlow_twins(settings: dict[str, Any]) -> LightlySide:
    config = settings["model"]
    model = Projected(build_encoder(settings), config, BarlowTwinsProjectionHead)
    criterion = BarlowTwinsLoss(lambda_param=config["redundancy_weight"])

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        x0, x1 = views
        return criterion(model(x0), model(x1))

    return LightlySide(model, model.backbone.encoder, _two_kinds_of_views(settings), loss_of)


def vicreg(settings: dict[str, Any]) -> LightlySide:
    config = settings["model"]
    model = Projected(build_encoder(settings), config, VICRegProjectionHead)
    weights = (config[f"{name}_weight"] for name in ("invariance", "variance", "covariance"))
    criterion = VICRegLoss(*weights)

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        x0, x1 = views
        return criterion(model(x0), model(x1))

    return LightlySide(model, model.backbone.encoder, _two_kinds_of_views(settings), loss_of)


def _two_kinds_of_views(settings: dict[str, Any]) -> BYOLTransform:
    transforms = []
    for kind, view in zip((BYOLView1Transform, BYOLView2Transform), settings["views"], strict=True):
        transform = kind(
            input_size=view["size"],
            min_scale=view["scale"][0],
            gaussian_blur=view["blur_probability"],
            solarization_prob=view["solarize_probability"],
            **color_settings(view),
            normalize=normalization(settings),
        )
        # it has no argument for this, and is bilinear
        transform.transform.transforms[0].interpolation = InterpolationMode(view["interpolation"])
        transforms.append(transform)
    return BYOLTransform(*transforms)
