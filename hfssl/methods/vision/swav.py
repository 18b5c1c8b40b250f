"""SwAV: predict from one crop of an image which prototypes another crop of it belongs to.

Paper: Unsupervised Learning of Visual Features by Contrasting Cluster Assignments, Caron et al., 2020
(https://huggingface.co/papers/2006.09882). Reference code: https://github.com/facebookresearch/swav.

Prototypes are directions that learn with the encoder. The code of a large crop is made of its similarities with them,
such that over the images of a step every prototype gets the same share (Sinkhorn-Knopp): all images cannot have the
same one. Each other crop of the image, large or small, predicts it. Crops of one size go through the encoder together,
all crops through the head together.

The images of a step are those of all processes: they share the prototypes, the queue and the statistics of batch norm,
so 2 processes of N images are 1 of 2N. Accumulation steps are batches of their own.

Departures from the paper: the queue is one for all processes and takes their images after the step, not before; the
prototypes are normalised again after each step, which is before the next; similarities are computed in float32.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, PreTrainedConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...errors import UserError
from ...functional.views import View, ViewPreset
from ...losses import at_least_float32, cross_view_entropy, full_precision, swav_codes, swav_loss
from ...modeling.branch import OneBranchModel, VisionBranch, check_two_views, crop_by_crop
from ...modeling.distributed import convert_batch_norm, gather_with_grad, rank, world_size
from ...modeling.heads import MlpHead
from ...modeling.method import BenchmarkSettings, LearningRates, Method
from ...modeling.pooling import check_pooling, feature_size
from ...modeling.progress import ProgressMixin, not_trained
from ...modeling.vision import build_vision_encoder


# Appendix A.1, and its code. PIL's blur, which it used, has no kernel size: as wide as sigma wants it.
_LARGE_VIEW = View(
    scale=(0.14, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=0.8, grey_probability=0.2, blur_probability=0.5,
    blur_width=None,
)  # fmt: skip
_SMALL_VIEW = View(
    scale=(0.05, 0.14), jitter=(0.8, 0.8, 0.8, 0.2), jitter_probability=0.8, grey_probability=0.2,
    blur_probability=0.5, blur_width=None,
)  # fmt: skip


def _collapse_hints(config: PreTrainedConfig) -> dict[str, str]:
    return {
        "constant": f"all images have the same code. With a loss that stays at log({config.num_prototypes}) codes are "
        f"too soft to tell them apart: lower `sinkhorn_epsilon={config.sinkhorn_epsilon:g}`; else show it more images "
        f"a step or pass `queue_size`, so that there are enough for {config.num_prototypes} prototypes, or lower "
        "`--learning_rate`",
        "few directions": "prototypes run into each other before the features know anything: freeze them for longer "
        f"with a larger `freeze_prototypes={config.freeze_prototypes:g}`, pass fewer than "
        f"`num_prototypes={config.num_prototypes}`, or lower `--learning_rate`",
    }


METHOD = Method(
    title="SwAV",
    modality="image",
    # small images: jitter at half its strength, as for SimCLR
    views=ViewPreset((_LARGE_VIEW, _LARGE_VIEW), local=_SMALL_VIEW, num_local=6, small_jitter=(0.4, 0.4, 0.4, 0.1)),
    learning_rates=LearningRates(lars=0.3, narrow=1e-3, wide=5e-4, checkpoint=1e-4),
    narrow_heads={"projector_hidden_dim": 512, "num_prototypes": 256},
    # a digit is its brightness: recoloured, views of one are no more alike than two digits
    embedded_views={"digits": {"jitter": (0.0, 0.0, 0.0, 0.0)}},
    collapse_hints=_collapse_hints,
    chance=lambda config, context: {"loss": math.log(config.num_prototypes)},
    benchmark=BenchmarkSettings(
        views={"local_crops": 6},
        short_config={"sinkhorn_epsilon": 0.03, "freeze_prototypes": 0.3},  # as its recipe
        notes={
            "lightly": "lightly's prototypes have a bias. Its similarities and codes are computed at the precision of "
            "the run, ours in fp32."
        },
    ),
)


@strict
class SwavPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`SwavForPreTraining`]. The defaults are the paper's, for 800 epochs of ImageNet with 4096 images
    a step (Appendix A).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model for images that [`~transformers.AutoModel`] knows and that takes crops of
            any size. ResNet-50 when left out.
        pooling (`str`, *optional*):
            The feature that is projected: cls, mean, cls+mean or last4. Left out: cls where the encoder has such a
            token, else mean.
        projector_num_layers (`int`, *optional*, defaults to `2`):
            Linear layers of the projector.
        projector_hidden_dim (`int`, *optional*, defaults to `2048`):
            Width of the projector.
        projector_output_dim (`int`, *optional*, defaults to `128`):
            Size of a projection and of a prototype, which are normalised.
        num_prototypes (`int`, *optional*, defaults to `3000`):
            Prototypes (K), at least 2.
        freeze_prototypes (`float`, *optional*, defaults to `0.00125`):
            Share of the run for which the prototypes stay as they are, in [0, 1]: 1 of 800 epochs.
        student_temperature (`float`, *optional*, defaults to `0.1`):
            Divisor of the similarities that predict a code (τ), above 0.
        sinkhorn_epsilon (`float`, *optional*, defaults to `0.05`):
            How soft codes are (ε), above 0. Lower it where the loss stays at that of chance.
        sinkhorn_iterations (`int`, *optional*, defaults to `3`):
            Iterations of Sinkhorn-Knopp, at least 1.
        queue_size (`int`, *optional*, defaults to `0`):
            Images of earlier steps that take part in the codes, for steps of fewer images than there are prototypes.
            The paper has 3840 for 256 images a step, and none for 4096.
        queue_start (`float`, *optional*, defaults to `0.075`):
            Share of the run at which the queue begins to fill, in [0, 1]: 15 of 200 epochs. It counts when it is full.
    """

    model_type = "hfssl_swav"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="resnet")}

    encoder_config: dict | PreTrainedConfig | None = None
    pooling: str | None = None
    projector_num_layers: int = 2
    projector_hidden_dim: int = 2048
    projector_output_dim: int = 128
    num_prototypes: int = 3000
    freeze_prototypes: float = 0.00125
    student_temperature: float = 0.1
    sinkhorn_epsilon: float = 0.05
    sinkhorn_iterations: int = 3
    queue_size: int = 0
    queue_start: float = 0.075

    def validate_temperatures(self):
        for name in ("student_temperature", "sinkhorn_epsilon"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")

    def validate_shares(self):
        for name in ("freeze_prototypes", "queue_start"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"`{name}` must be between 0 and 1, got {getattr(self, name)}.")

    def validate_numbers(self):
        least = dict.fromkeys(
            ("projector_num_layers", "projector_hidden_dim", "projector_output_dim", "sinkhorn_iterations"), 1
        )
        for name, number in {**least, "num_prototypes": 2, "queue_size": 0}.items():
            if getattr(self, name) < number:
                raise ValueError(f"`{name}` must be at least {number}, got {getattr(self, name)}.")

    def validate_pooling(self):
        if self.pooling is not None:
            check_pooling(self.encoder_config, self.pooling)


@dataclass
class SwavOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Cross-entropy, mean over the batch and over all pairs of a large crop and another one.
            log(num_prototypes) is chance.
        projections (`torch.FloatTensor` of shape `(num_crops, batch_size, projector_output_dim)`):
            Normalised, of the large crops and then of the small ones. Left out in training mode.
        logits (`torch.FloatTensor` of shape `(num_crops, batch_size, num_prototypes)`):
            Their similarities with the prototypes. Left out in training mode.
    """

    loss: torch.FloatTensor | None = None
    projections: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class SwavForPreTraining(ProgressMixin, OneBranchModel):
    config_class = SwavPreTrainingConfig
    method = METHOD
    paper = {
        "title": "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
        "id": "2006.09882",
        "citation": "@inproceedings{caron2020unsupervised,\n  title = {Unsupervised Learning of Visual Features by "
        "Contrasting Cluster Assignments},\n  author = {Caron, Mathilde and Misra, Ishan and Mairal, Julien and "
        "Goyal, Priya and Bojanowski, Piotr and Joulin, Armand},\n  booktitle = {NeurIPS},\n  year = {2020}\n}",
    }

    def __init__(self, config: SwavPreTrainingConfig):
        super().__init__(config)
        self.branch = VisionBranch(
            build_vision_encoder(config.encoder_config),
            MlpHead(
                feature_size(config.encoder_config, config.pooling), config.projector_hidden_dim,
                config.projector_output_dim, config.projector_num_layers, bias=True,
            ),
            config.encoder_config,
            config.pooling,
        )  # fmt: skip
        self.prototypes = nn.Linear(config.projector_output_dim, config.num_prototypes, bias=False)
        convert_batch_norm(self)
        self.track_progress()
        if config.queue_size:
            self.register_buffer("queue", torch.zeros(2, config.queue_size, config.projector_output_dim))
            self.register_buffer("queue_count", torch.zeros((), dtype=torch.long))  # images that ever entered
            # the same in all processes, and DDP would send it around before every forward
            self._ddp_params_and_buffers_to_ignore = ["queue"]
        self._queue_count: int | None = None
        self._for_queue: list[torch.Tensor] = []
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        weight = self.prototypes.weight
        init.kaiming_uniform_(weight, a=math.sqrt(5))  # as torch draws linear layers, and the reference code
        init.copy_(weight, F.normalize(weight, dim=-1))

    def waiting_parameters(self) -> list[nn.Parameter]:
        return [self.prototypes.weight] if self.progress < self.config.freeze_prototypes else []

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        local_pixel_values: torch.FloatTensor | None = None,
        return_loss: bool = True,
    ) -> SwavOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, 2, num_channels, height, width)`):
                Two large crops of each image.
            local_pixel_values (`torch.FloatTensor` of shape
                `(batch_size, num_small_crops, num_channels, local_height, local_width)`, *optional*):
                Small crops of each image, which only predict.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        self.require_advanced()
        check_two_views(pixel_values, "SwAV")
        batch_size = len(pixel_values)
        if self.training and batch_size * world_size() == 1:
            raise UserError(
                "SwAV shares its prototypes out among the images of a batch, and its batch norm needs several too, "
                "but the batch has 1 image. Pass a larger `--per_device_train_batch_size`."
            )
        crops = [crop_by_crop(each) for each in (pixel_values, local_pixel_values) if each is not None]
        projections = F.normalize(at_least_float32(self.branch(*crops)), dim=-1)
        logits = self._similarities(projections).unflatten(0, (-1, batch_size))
        projections = projections.unflatten(0, (-1, batch_size))
        loss = swav_loss(logits, self.config.student_temperature, **self._code_options())
        if not self.training:
            return SwavOutput(loss=loss, projections=projections, logits=logits)
        if self.config.queue_size and torch.is_grad_enabled() and self.progress >= self.config.queue_start:
            self._enqueue(projections[:2].detach())
        return SwavOutput(loss=loss)

    @torch.compiler.disable  # what waits has another length in each accumulation step: all would be compiled again
    def _enqueue(self, large: torch.Tensor) -> None:
        self._for_queue.append(gather_with_grad(large.transpose(0, 1).contiguous()).transpose(0, 1))

    def _similarities(self, projections: torch.Tensor) -> torch.Tensor:
        weight = at_least_float32(self.prototypes.weight)
        if self.training and self.waiting_parameters():
            weight = not_trained(weight)
        with full_precision(projections):
            return F.linear(projections, weight)

    @torch.compiler.disable  # counts what is in the queue, which is more after each step
    @torch.no_grad()
    def _code_options(self) -> dict:
        """How codes are made now, see [`~hfssl.losses.swav_codes`]."""
        config, queue_logits = self.config, None
        together = self.all_reduce
        if self.config.queue_size and self._num_queued() >= config.queue_size:
            # sums over processes are to count each of them once
            mine = self.queue[:, rank() :: world_size()] if together else self.queue
            queue_logits = self._similarities(mine)
        return {
            "epsilon": config.sinkhorn_epsilon, "iterations": config.sinkhorn_iterations, "queue_logits": queue_logits,
            "all_reduce": together,
        }  # fmt: skip

    def _num_queued(self) -> int:
        if self._queue_count is None:
            self._queue_count = int(self.queue_count)
        return self._queue_count

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        waited = bool(self.waiting_parameters())
        super().after_optimizer_step(progress)
        if not waited:
            self.prototypes.weight.copy_(F.normalize(self.prototypes.weight, dim=-1))
        if self._for_queue:
            # the newest where there are more than places
            new = torch.cat(self._for_queue, dim=1).to(self.queue.dtype)[:, -self.config.queue_size :]
            places = self._num_queued() + torch.arange(new.shape[1], device=new.device)
            self.queue.index_copy_(1, places % self.config.queue_size, new)
            self.queue_count.add_(new.shape[1])
            self._queue_count += new.shape[1]
            self._for_queue.clear()

    def target_margin(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """By how much the loss grows with the codes of other images: `(batch_size,)`, the mean for each.

        A share of log(num_prototypes), the loss of chance. 0 where the codes of all images are the same. For models in
        evaluation mode.
        """
        output = self(batch["pixel_values"])
        codes = swav_codes(output.logits, **self._code_options())
        others = cross_view_entropy(output.logits, codes.roll(1, dims=1), self.config.student_temperature)
        share = (others - output.loss) / math.log(self.config.num_prototypes)
        return share.expand(len(batch["pixel_values"]))

    def _load_from_state_dict(self, *args, **kwargs):
        super()._load_from_state_dict(*args, **kwargs)
        self._queue_count = None
