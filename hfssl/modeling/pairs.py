"""What methods share that train two encoders on pairs of two modalities, such as images and their captions."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from transformers import (
    MODEL_MAPPING,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedConfig,
    PreTrainedModel,
    SiglipConfig,
    SiglipModel,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)
from transformers import initialization as init
from transformers.utils import ModelOutput, cached_file

from ..errors import UserError
from ..losses import at_least_float32
from .base import EXTRAS, SSLPreTrainedModel
from .contrast import ContrastMixin
from .distributed import gather_with_grad, rank, world_size
from .progress import StepsMixin
from .towers import POOLER, Tower, load_tower, tower_layout


# The largest factor of the similarities: beyond it training is unstable (CLIP, Section 2.5).
MAX_SCALE = 100.0


# How the card says that vectors are made; a mean is one over the tokens or frames that are no padding.
_VECTORS = {
    POOLER: "out.pooler_output.flatten(1)",
    "cls": "out.last_hidden_state[:, 0]",
    "mean": "out.last_hidden_state.mean(1)  # of one sample: without padding, CLS and registers",
}
_LOADER = """\
from safetensors.torch import load_file
from transformers import {classes}

encoders = {{{{{loads}}}}}
extras = load_file("{{name}}/extras.safetensors")  # of the downloaded folder


def embed(side, **inputs):
    out = encoders[side](**inputs)
{lines}    if f"{{{{side}}}}.projection" in extras:
        vectors = vectors @ extras[f"{{{{side}}}}.projection"].T
    return vectors / vectors.norm(dim=-1, keepdim=True)
"""


@dataclass
class PairOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean over the pairs of this process.
        first_embeds, second_embeds (`torch.FloatTensor` of shape `(batch_size, dim)`):
            Embeddings of both sides, of length 1.
        figures (`dict[str, torch.Tensor]`):
            What the method logs beside the loss, such as `logit_scale`, the factor of the similarities.
    """

    loss: torch.FloatTensor | None = None
    first_embeds: torch.FloatTensor | None = None
    second_embeds: torch.FloatTensor | None = None
    figures: dict[str, torch.Tensor] | None = None


class PairModel(StepsMixin, ContrastMixin, SSLPreTrainedModel):
    """Base of methods that train two towers, `first` and `second`, on pairs of two modalities (`config.pair`).

    The name of a tower is its modality: `model.encoders["image"]`.
    """

    figures = ("logit_scale",)

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.names = names_of(config)
        dim = self.embedding_size()
        towers = [
            Tower(
                name, side, pooling, dim, is_frozen=config.frozen_tower == name,
                patch_dropout=config.patch_dropout if name == "image" else 0.0,
            )
            for name, side, pooling in zip(
                self.names, (config.first_config, config.second_config),
                (config.first_pooling, config.second_pooling), strict=True,
            )
        ]  # fmt: skip
        self.first, self.second = towers
        if self.first.dim != self.second.dim:
            raise UserError(
                f"Embeddings of {self.names[0]} have {self.first.dim} numbers and those of {self.names[1]} "
                f"{self.second.dim}: they cannot be compared. Pass a `projection_dim`."
            )
        if self.first.main_input == self.second.main_input:
            raise UserError(
                f"Both encoders take `{self.first.main_input}`: a batch could not tell what is whose. Choose encoders "
                "of two modalities."
            )
        if config.patch_dropout and "image" not in self.names:
            raise UserError(f"`patch_dropout` is for images, and the pair is {config.pair}. Leave it out.")
        self.main_input_name = self.first.main_input
        self.add_parameters()
        self.post_init()

    def add_parameters(self) -> None:
        """The parameters of the loss."""
        self.logit_scale = nn.Parameter(torch.tensor(math.log(self.config.logit_scale_init)))

    def embedding_size(self) -> int | None:
        """Size of what both towers project to; `None` where the encoders' own vectors are compared."""
        return self.config.projection_dim

    # -- the encoders -----------------------------------------------------------------------------------------------

    @property
    def towers(self) -> dict[str, Tower]:
        """Both, by their names."""
        return dict(zip(self.names, (self.first, self.second), strict=True))

    @property
    def encoders(self) -> dict[str, PreTrainedModel]:
        return {name: tower.encoder for name, tower in self.towers.items()}

    def config_of(self, name: str) -> PreTrainedConfig:
        return self.towers[name].encoder_config

    @property
    def trained_encoders(self) -> list[PreTrainedModel]:
        return [tower.encoder for tower in self.towers.values() if not tower.is_frozen]

    def freeze(self) -> None:
        """Also take out a tower that is frozen, and what an encoder does not use."""
        super().freeze()
        for tower in self.towers.values():
            for name, parameter in tower.encoder.named_parameters():
                if tower.is_frozen or name in tower.unused:
                    parameter.requires_grad_(False)

    @torch.no_grad()
    def initialize_weights(self):
        super().initialize_weights()
        for tower in self.towers.values():
            if isinstance(tower.projection, nn.Linear):
                init.normal_(tower.projection.weight, std=tower.projection.in_features**-0.5)
        init.constant_(self.logit_scale, math.log(self.config.logit_scale_init))

    @torch.no_grad()
    def after_optimizer_step(self, progress: float) -> None:
        """Keep the scale in its bounds. [`~hfssl.training.callbacks.MethodCallback`] calls it."""
        super().after_optimizer_step(progress)
        # a stock pair may have learned a larger one: it is not torn down at the first step
        self.logit_scale.clamp_(0.0, math.log(max(MAX_SCALE, self.config.logit_scale_init)))

    @classmethod
    def from_encoders(
        cls, first: str | PreTrainedConfig, second: str | PreTrainedConfig, **config: Any
    ) -> "PairModel":
        """Begin with two encoders.

        Args:
            first, second (`str` or `PreTrainedConfig`):
                Each a checkpoint (folder or Hub id; of one of two encoders, such as CLIP, that one is taken), or a
                configuration, which is trained from scratch.
            config (`dict`, *optional*):
                Other fields of the method's config.
        """
        names = names_of(cls.config_class(**{k: v for k, v in config.items() if k in ("pair", "frozen_tower")}))
        stock: dict[str, PreTrainedModel] = {}
        for side, given, name in zip(("first", "second"), (first, second), names, strict=True):
            config[f"{side}_config"] = given
            if isinstance(given, str | Path):
                encoder, pooling = load_tower(str(given), name, config.get(f"{side}_pooling"))
                stock[side], config[f"{side}_config"], config[f"{side}_pooling"] = encoder, encoder.config, pooling
            elif config.get("frozen_tower") == name:
                raise UserError(f"The tower {name!r} is frozen and has random weights. Pass a checkpoint for it.")
        model = cls(cls.config_class(**config))
        for side, encoder in stock.items():
            _load(getattr(model, side).encoder, encoder)
        return model

    @classmethod
    def from_pair(cls, name_or_path: str, **config: Any) -> "PairModel":
        """Continue from a stock model of images and texts: `CLIPModel`, `SiglipModel`, `VisionTextDualEncoderModel`.

        Args:
            name_or_path (`str`):
                Folder or Hub id.
            config (`dict`, *optional*):
                Other fields of the method's config.
        """
        stock = AutoModel.from_pretrained(name_or_path, dtype=torch.float32)
        if not all(hasattr(stock, name) for name in ("vision_model", "text_model", "logit_scale")):
            raise UserError(
                f"{name_or_path} is a {stock.config.model_type}, and no model of images and texts such as clip, "
                "siglip or vision-text-dual-encoder. To begin with one encoder for each, pass both."
            )
        projection = getattr(stock, "visual_projection", None)
        config["projection_dim"] = None if projection is None else projection.out_features
        config["logit_scale_init"] = max(stock.logit_scale.exp().item(), 1.0)
        sides = {
            "first": (stock.vision_model, projection),
            "second": (stock.text_model, getattr(stock, "text_projection", None)),
        }
        model = cls(
            cls.config_class(
                pair="image,text",
                first_config=stock.vision_model.config,
                second_config=stock.text_model.config,
                **config,
            )
        )
        for side, (encoder, head) in sides.items():
            _load(getattr(model, side).encoder, encoder)
            if head is not None:
                getattr(model, side).projection.load_state_dict(head.state_dict())
        with torch.no_grad():
            model.logit_scale.copy_(stock.logit_scale.reshape(()))
            bias = _bias_of(stock, name_or_path)
            if hasattr(model, "logit_bias") and bias is not None:
                model.logit_bias.copy_(bias.reshape(()))
        return model

    # -- the loss ---------------------------------------------------------------------------------------------------

    def embed(self, **inputs: torch.Tensor | None) -> dict[str, torch.Tensor]:
        found = {}
        for (name, tower), prefix in zip(self.towers.items(), ("a_", "b_"), strict=True):
            samples = inputs.get(tower.main_input)
            if samples is None:
                raise ValueError(
                    f"{self.method.title} compares {' with '.join(self.names)}: the batch has no "
                    f"`{tower.main_input}`, which the encoder of {name} takes."
                )
            masks = (inputs.get(f"{prefix}attention_mask"), inputs.get("attention_mask"))
            # the one without a prefix is of the side that it fits
            mask = next((each for each in masks if each is not None and each.shape == samples.shape[:2]), None)
            found[name] = F.normalize(at_least_float32(tower(samples, mask)), dim=-1)
        sizes = {name: len(embeddings) for name, embeddings in found.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"A batch has as many of one as of the other, got {sizes}.")
        contents = [inputs[f"{name}_content"] for name in self.names if inputs.get(f"{name}_content") is not None]
        return found | ({"content": torch.stack(contents, dim=1)} if contents else {})

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.LongTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        input_features: torch.FloatTensor | None = None,
        a_attention_mask: torch.LongTensor | None = None,
        b_attention_mask: torch.LongTensor | None = None,
        image_content: torch.LongTensor | None = None,
        text_content: torch.LongTensor | None = None,
        audio_content: torch.LongTensor | None = None,
        return_loss: bool = True,
    ) -> PairOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`, *optional*):
                Images.
            input_ids (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
                Texts. SigLIP's own encoder reads the last token: all are padded to the length it was made for.
            attention_mask (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
                1 = content, 0 = padding, of the side that has some. SigLIP's own encoder of texts sees padding too.
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)`, *optional*):
                Recordings, as waveforms; as spectrograms they have the shape `(batch_size, num_frames, num_mel_bins)`.
            input_features (`torch.FloatTensor` of shape `(batch_size, num_frames, dim)`, *optional*):
                Recordings, as filter banks.
            a_attention_mask, b_attention_mask (`torch.LongTensor` of shape `(batch_size, length)`, *optional*):
                Instead of `attention_mask`, of the first and of the second side, where both have padding.
            image_content, text_content, audio_content (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                Equal where pairs have the same content on a side: those are no negatives of each other.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        self.require_advanced()
        return self.compare(
            pixel_values=pixel_values, input_ids=input_ids, attention_mask=attention_mask, input_values=input_values,
            input_features=input_features, a_attention_mask=a_attention_mask, b_attention_mask=b_attention_mask,
            image_content=image_content, text_content=text_content, audio_content=audio_content,
        )  # fmt: skip

    def gathered(self, embeddings: dict[str, torch.Tensor], *names: str) -> dict[str, Any]:
        """Of all processes while it trains, by what the losses call it: what is compared, and where its own begins.

        Args:
            embeddings (`dict[str, torch.Tensor]`):
                Of [`embed`].
            names (`str`):
                What the losses call the embeddings that are candidates.
        """
        sides = {"all_image_embeds": self.names[0], "all_text_embeds": self.names[1], "all_content": "content"}
        wanted = {name: embeddings.get(sides[name]) for name in (*names, "all_content")}
        found: dict[str, Any] = {"content": embeddings.get("content"), "first": 0}
        if not (self.training and world_size() > 1):
            return found
        found["first"] = rank() * len(embeddings[self.names[0]])
        return found | {name: gather_with_grad(each) for name, each in wanted.items() if each is not None}

    def compared_embeddings(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Embeddings of both sides, `(batch_size, 2, dim)`."""
        names = ("attention_mask", "a_attention_mask", "b_attention_mask")
        names += tuple(tower.main_input for tower in self.towers.values())
        found = self.embed(**{name: batch[name] for name in names if name in batch})
        return torch.stack([found[name] for name in self.names], dim=1)

    # -- the result -------------------------------------------------------------------------------------------------

    @property
    def export_kind(self) -> str:
        return "stock" if self.stock_class is not None else "stock + extras"

    @property
    def loader(self) -> str:
        """For the card, of what no stock class holds: Python that defines `embed(side, **inputs)`."""
        if self.export_kind == "stock":
            return ""
        kinds = {name: type(encoder).__name__ for name, encoder in self.encoders.items()}
        loads = ", ".join(
            f'"{name}": {kind}.from_pretrained("{{name}}", subfolder="{name}")' for name, kind in kinds.items()
        )
        vectors = {name: _VECTORS.get(tower.pooling, _VECTORS["mean"]) for name, tower in self.towers.items()}
        lines = "".join(f'    if side == "{name}":\n        vectors = {vector}\n' for name, vector in vectors.items())
        return _LOADER.format(classes=", ".join(sorted(set(kinds.values()))), loads=loads, lines=lines)

    def extras(self) -> dict[str, torch.Tensor]:
        of_loss = {name: getattr(self, name) for name in ("logit_scale", "logit_bias") if hasattr(self, name)}
        if self.stock_class is not None:
            # the dual encoder has no bias, by which no pair is ranked, but with which training goes on
            without = self.stock_class is VisionTextDualEncoderModel
            return {name: tensor for name, tensor in of_loss.items() if without and name == "logit_bias"}
        projections = {
            f"{name}.projection": tower.projection.weight
            for name, tower in self.towers.items()
            if isinstance(tower.projection, nn.Linear)
        }
        return of_loss | projections

    @property
    def stock_class(self) -> type[PreTrainedModel] | None:
        """The class of transformers that holds both towers, `None` where there is none."""
        if self.names != ("image", "text"):
            return None
        kinds = tuple(tower.encoder_config.model_type for tower in self.towers.values())
        projects = isinstance(self.first.projection, nn.Linear)
        if kinds == ("clip_vision_model", "clip_text_model") and projects:
            return CLIPModel
        is_siglip = kinds == ("siglip_vision_model", "siglip_text_model")
        if is_siglip and not projects and hasattr(self, "logit_bias"):
            return SiglipModel
        # it projects from the `hidden_size` of encoders that `AutoModel` makes
        fits = all(
            tower.is_flat
            and isinstance(tower.projection, nn.Linear)
            and type(tower.encoder_config) in MODEL_MAPPING
            and getattr(tower.encoder_config, "hidden_size", None) == tower.projection.in_features
            for tower in (self.first, self.second)
        )
        return VisionTextDualEncoderModel if fits else None

    def joint_model(self) -> PreTrainedModel | None:
        """Both towers as one stock model, `None` where transformers has no class for them."""
        stock_class = self.stock_class
        if stock_class is None:
            return None
        fields: dict[str, Any] = {
            "vision_config": self.first.encoder_config.to_dict(), "text_config": self.second.encoder_config.to_dict(),
        }  # fmt: skip
        config_class = {CLIPModel: CLIPConfig, SiglipModel: SiglipConfig}.get(stock_class, VisionTextDualEncoderConfig)
        if stock_class is not SiglipModel:
            fields["projection_dim"] = self.first.dim
        with torch.random.fork_rng(devices=[]):
            joint = stock_class(config_class(**fields))
        _load(joint.vision_model, self.first.encoder)
        _load(joint.text_model, self.second.encoder)
        with torch.no_grad():
            for name in ("logit_scale", "logit_bias"):
                if hasattr(joint, name):
                    target = getattr(joint, name)
                    target.copy_(getattr(self, name).detach().cpu().expand_as(target))
            if stock_class is not SiglipModel:
                joint.visual_projection.load_state_dict(self.first.projection.state_dict())
                joint.text_projection.load_state_dict(self.second.projection.state_dict())
        return joint.eval()

    def export_encoder(
        self,
        folder: str | Path,
        name: str | None = None,
        state_dict: dict[str, torch.Tensor] | None = None,
        processor: Any = None,
    ) -> None:
        """Write the joint stock model, or the weights that no stock class has, and each encoder in `<name>/`.

        See [`~hfssl.modeling.base.SSLPreTrainedModel.export_encoder`]; with a `name`, that encoder alone.
        """
        if name is not None:
            return super().export_encoder(folder, name, state_dict, processor)
        for each in self.names:
            super().export_encoder(Path(folder) / each, each, state_dict, part_of(processor, each))
        joint = self.without_adapters().joint_model()
        if joint is not None:
            joint.save_pretrained(folder)
        if self.extras():
            self.write_extras(folder)
        if processor is not None:
            processor.save_pretrained(folder)


def names_of(config: PreTrainedConfig) -> tuple[str, str]:
    """The names of both towers, which are modalities."""
    first, _, second = config.pair.replace(" ", "").partition(",")
    return first, second


def check_pair(config: PreTrainedConfig) -> None:
    """Refuse an impossible pair; for the `validate_…` methods of configs.

    Raises:
        ValueError: unless there are two modalities, one of which may be frozen, and shares are shares.
    """
    names = names_of(config)
    if "" in names or names[0] == names[1] or "," in names[1]:
        raise ValueError(f"`pair` names two modalities, such as image,text, got {config.pair!r}.")
    if config.frozen_tower not in (None, *names):
        raise ValueError(f"`frozen_tower` is one of {', '.join(names)}, got {config.frozen_tower!r}.")
    if not 0.0 <= config.patch_dropout < 1.0:
        raise ValueError(
            f"`patch_dropout` is a share of the patches, at least 0 and below 1, got {config.patch_dropout}."
        )
    if config.projection_dim is not None and config.projection_dim < 1:
        raise ValueError(f"`projection_dim` must be at least 1, got {config.projection_dim}.")
    if not 1.0 <= config.logit_scale_init < math.inf:
        raise ValueError(f"`logit_scale_init` must be at least 1, got {config.logit_scale_init}.")


def feature_sizes(config: PreTrainedConfig) -> tuple[int, int]:
    """Sizes of the vectors of both encoders of a method's configuration."""
    first, second = names_of(config)
    return (
        tower_layout(config.first_config, first, config.first_pooling).dim,
        tower_layout(config.second_config, second, config.second_pooling).dim,
    )


def _bias_of(stock: PreTrainedModel, name_or_path: str) -> torch.Tensor | None:
    """The logit bias of a stock pair, which lies beside it where its class has none."""
    if hasattr(stock, "logit_bias"):
        return stock.logit_bias
    path = cached_file(name_or_path, EXTRAS, _raise_exceptions_for_missing_entries=False)
    return None if path is None else load_file(path).get("logit_bias")


def part_of(processor: Any, name: str) -> Any:
    """The part of a processor that is for one modality: its tokenizer for text."""
    part = {"image": "image_processor", "text": "tokenizer", "audio": "feature_extractor"}.get(name, "")
    return getattr(processor, part, None)


def _load(target: PreTrainedModel, source: PreTrainedModel) -> None:
    """Give an encoder the weights of another; what only the source has, such as a pooler, stays behind."""
    state = source.state_dict()
    missing, _ = target.load_state_dict(state, strict=False)
    # a checkpoint may have been written without the vector that stands in place of hidden frames
    lost = [name for name in missing if name != "masked_spec_embed"]
    if lost:
        raise UserError(f"The checkpoint does not hold the weights of its own encoder: {lost[0]} is missing.")
