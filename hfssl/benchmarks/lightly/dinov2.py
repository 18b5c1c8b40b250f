"""lightly's DINOv2, as in its `examples/pytorch/dinov2.py`, around a `ViTModel` of transformers."""

from typing import Any

import torch
import torch.nn.functional as F
from lightly.loss import DINOLoss, IBOTPatchLoss, KoLeoLoss
from lightly.models import utils
from lightly.models.modules import DINOv2ProjectionHead
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from ...modeling.drop_path import build_with_drop_path
from ...modeling.pooling import feature_size, pool_features
from .base import LightlySide, build_encoder, momentum_at, teacher_temperature_at
from .masked import MaskedViT
from .multi_crop import crops, require_centres


# Of the patches of a masked crop, at least; and of a block, where so few are so many. As `random_block_mask` has them.
_LEAST_SHARE, _LEAST_OF_A_BLOCK = 0.1, 4


class DINOv2(nn.Module):
    """The student has stochastic depth, the teacher has not. Their heads begin with weights of their own."""

    def __init__(self, encoder: PreTrainedModel, config: dict[str, Any]):
        super().__init__()
        student = build_with_drop_path(encoder.config, config["drop_path_rate"])
        student.load_state_dict(encoder.state_dict())
        self.encoder_config, self.pooling = encoder.config, config["pooling"]
        self.student_backbone = MaskedViT(student, has_mask_token=True)
        self.teacher_backbone = MaskedViT(encoder, has_mask_token=True)
        self.student_head, self.teacher_head = self._heads(config), self._heads(config)
        utils.deactivate_requires_grad(self.teacher_backbone)
        utils.deactivate_requires_grad(self.teacher_head)
        # their centres belong to the device of the model
        settings = {"student_temp": config["student_temperature"], "center_momentum": config["center_momentum"]}
        self.dino_criterion = DINOLoss(config["num_prototypes"], **settings)
        patch_prototypes = config["patch_num_prototypes"] or config["num_prototypes"]
        self.ibot_criterion, self.koleo_criterion = IBOTPatchLoss(patch_prototypes, **settings), KoLeoLoss()

    def _heads(self, config: dict[str, Any]) -> nn.ModuleDict:
        """Of crops and of patches, which may be the same."""

        def head(pooling: str | None, output_dim: int, num_prototypes: int) -> DINOv2ProjectionHead:
            return DINOv2ProjectionHead(
                feature_size(self.encoder_config, pooling),
                config["projector_hidden_dim"],
                output_dim,
                num_prototypes,
                batch_norm=config["projector_batch_norm"],
            )

        sizes = config["projector_output_dim"], config["num_prototypes"]
        of_crops = of_patches = head(self.pooling, *sizes)
        if config["patch_head"] == "separate":
            own = config["patch_projector_output_dim"], config["patch_num_prototypes"]
            of_patches = head("mean", *(size or other for size, other in zip(own, sizes, strict=True)))
        return nn.ModuleDict({"dino": of_crops, "ibot": of_patches})

    def pool(self, tokens: torch.Tensor) -> torch.Tensor:
        return pool_features(BaseModelOutput(last_hidden_state=tokens), self.encoder_config, self.pooling)

    def forward_teacher(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.teacher_backbone.encode(x)
        return self.teacher_head["dino"](self.pool(tokens)), self.teacher_head["ibot"](tokens[mask])


def dinov2(settings: dict[str, Any]) -> LightlySide:
    config = settings["model"]
    require_centres(config)
    model = DINOv2(build_encoder(settings), config)
    side = model.teacher_backbone.patches_a_side
    temperature, trains_prototypes = config["teacher_temperature_start"], False

    def loss_of(views: list[torch.Tensor]) -> torch.Tensor:
        large = torch.cat(views[:2])
        block_mask = utils.random_block_mask(
            size=(len(large), side, side),
            min_num_masks_per_block=max(1, min(_LEAST_OF_A_BLOCK, int(_LEAST_SHARE * side**2))),
            device=large.device,
        )
        mask = F.pad(block_mask.flatten(1), (1, 0))  # never the class token
        with torch.no_grad():
            teacher_out, teacher_masked_out = model.forward_teacher(large, mask)
        tokens = model.student_backbone.encode(large, mask=mask)
        features, head = model.pool(tokens), model.student_head["dino"]
        student_out = [head(features)]
        if len(views) > 2:
            student_out.append(head(model.pool(model.student_backbone.encode(torch.cat(views[2:])))))
        loss = config["dino_weight"] * model.dino_criterion(
            teacher_out.chunk(2), torch.cat(student_out).chunk(len(views)), teacher_temp=temperature
        )
        loss = loss + config["ibot_weight"] * model.ibot_criterion(
            teacher_masked_out, model.student_head["ibot"](tokens[mask]), block_mask, teacher_temp=temperature
        )
        return loss + config["koleo_weight"] * sum(model.koleo_criterion(each) for each in features.chunk(2))

    def before_step(progress: float) -> None:
        nonlocal temperature, trains_prototypes
        momentum = momentum_at(progress, config)
        utils.update_momentum(model.student_backbone, model.teacher_backbone, m=momentum)
        utils.update_momentum(model.student_head, model.teacher_head, m=momentum)
        temperature = teacher_temperature_at(progress, config)
        trains_prototypes = progress >= config["freeze_prototypes"]

    def after_backward() -> None:
        for head in model.student_head.values():
            for parameter in () if trains_prototypes else head.last_layer.parameters():
                parameter.grad = None

    return LightlySide(model, model.teacher_backbone.vit, crops(settings), loss_of, before_step, after_backward)
