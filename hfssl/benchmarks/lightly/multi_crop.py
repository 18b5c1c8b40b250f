"""lightly's methods with large and small crops, as in its `examples/pytorch/{dino,swav,lejepa}.py`."""

import warnings
from typing import Any

import torch
from lightly.loss import DINOLoss, LeJEPALoss, SwaVLoss
from lightly.models import utils
from lightly.models.modules import DINOProjectionHead, SwaVProjectionHead, SwaVPrototypes
from lightly.models.modules.heads import LeJEPAProjectionHead
from lightly.transforms import DINOTransform, SwaVTransform
from torch import nn
from transformers import PreTrainedModel

from ...errors import UserError
from ...modeling.drop_path import build_with_drop_path
from ...modeling.pooling import feature_size
from .base import (
    JITTERS,
    Backbone,
    LightlySide,
    build_encoder,
    color_settings,
    momentum_at,
    normalization,
    teacher_temperature_at,
)


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


class SwAV(nn.Module):
    """Its prototypes have a bias, which the paper's have not."""

    def __init__(self, encoder: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        dim, output_dim = feature_size(encoder.config, config["pooling"]), config["projector_output_dim"]
        self.backbone = Backbone(encoder, config["pooling"])
        self.projection_head = SwaVProjectionHead(dim, config["projector_hidden_dim"], output_dim)
        self.prototypes = SwaVPrototypes(output_dim, config["num_prototypes"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = nn.functional.normalize(self.projection_head(self.backbone(x)), dim=1, p=2)
        return self.prototypes(z)


class LeJEPA(nn.Module):
    def __init__(self, encoder: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        self.backbone = Backbone(encoder, config["pooling"])
        self.projection_head = LeJEPAProjectionHead(
            feature_size(encoder.config, config["pooling"]),
            config["projector_hidden_dim"],
            config["projector_output_dim"],
            config["projector_num_layers"],
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.projection_head(self.backbone(x))


def dino(settings: dict[str, Any]) -> LightlySide:
    config = settings["model"]
    require_centres(config)
    model = DINO(build_encoder(settings), config)
    teacher_temperature, epoch = config["teacher_temperature_start"], 0

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        teacher_out = [model.forward_teacher(view) for view in views[:2]]
        student_out = [model.forward(view) for view in views]
        return model.criterion(teacher_out, student_out, teacher_temp=teacher_temperature)

    def before_step(progress: float) -> None:
        nonlocal teacher_temperature, epoch
        momentum = momentum_at(progress, config)
        utils.update_momentum(model.student_backbone, model.teacher_backbone, m=momentum)
        utils.update_momentum(model.student_head, model.teacher_head, m=momentum)
        teacher_temperature = teacher_temperature_at(progress, config)
        epoch = 0 if progress < config["freeze_prototypes"] else 1

    def after_backward() -> None:
        model.student_head.cancel_last_layer_gradients(current_epoch=epoch)

    return LightlySide(model, model.teacher_backbone.encoder, crops(settings), loss_of, before_step, after_backward)


def swav(settings: dict[str, Any]) -> LightlySide:
    view, local, config = settings["views"][0], settings["local_view"] or settings["views"][0], settings["model"]
    transform = SwaVTransform(
        crop_sizes=(view["size"], local["size"]),
        crop_counts=(2, settings["num_local"]),
        crop_min_scales=(view["scale"][0], local["scale"][0]),
        crop_max_scales=(view["scale"][1], local["scale"][1]),
        gaussian_blur=view["blur_probability"],
        **color_settings(view),
        normalize=normalization(settings),
    )
    model = SwAV(build_encoder(settings), config)
    criterion = SwaVLoss(config["student_temperature"], config["sinkhorn_iterations"], config["sinkhorn_epsilon"])

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        outputs = [model(view) for view in views]
        return criterion(outputs[:2], outputs[2:])

    def before_step(progress: float) -> None:
        model.prototypes.normalize()
        model.prototypes.requires_grad_(progress >= config["freeze_prototypes"])

    return LightlySide(model, model.backbone.encoder, transform, loss_of, before_step)


def lejepa(settings: dict[str, Any]) -> LightlySide:
    config = settings["model"]
    if not settings["num_local"]:
        raise UserError("lightly's loss of LeJEPA needs small crops. Pass `--local_crops 6`, or `--against none`.")
    model = LeJEPA(build_encoder(settings), config)
    criterion = LeJEPALoss(config["sigreg_weight"], sigreg_num_vectors=config["num_directions"])

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        projections = [model(view) for view in views]
        return criterion(global_proj=torch.stack(projections[:2]), local_proj=torch.stack(projections[2:]))

    return LightlySide(model, model.backbone.encoder, crops(settings), loss_of)


def require_centres(config: dict[str, Any]) -> None:
    """Refuse what lightly's losses of teachers have not.

    Raises:
        UserError: if prototypes are to have equal shares.
    """
    if config["centering"] != "mean":
        raise UserError(
            f"lightly's losses have a centre (mean), and `centering` is {config['centering']}. Leave it out, or pass "
            "`--against none`."
        )


def crops(settings: dict[str, Any]) -> DINOTransform:
    """Its transform with our views."""
    first, second = settings["views"]
    local = settings["local_view"]
    # without small crops there is none to ask, and it is asked nothing
    small = local or first
    # its second large crop has no `cj_strength` but the default 0.5: what is jittered by is twice that of ours
    colors = {name: 2.0 * value if name in JITTERS else value for name, value in color_settings(first).items()}
    return DINOTransform(
        global_crop_size=first["size"],
        global_crop_scale=first["scale"],
        local_crop_size=small["size"],
        local_crop_scale=small["scale"],
        n_local_views=settings["num_local"],
        gaussian_blur=tuple(view["blur_probability"] for view in (first, second, small)),
        solarization_prob=second["solarize_probability"],
        **colors,
        normalize=normalization(settings),
    )
