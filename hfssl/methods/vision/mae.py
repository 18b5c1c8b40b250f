"""MAE: hide most patches of an image and reconstruct their pixels from the rest.

Paper: Masked Autoencoders Are Scalable Vision Learners, He et al., 2021 (https://huggingface.co/papers/2111.06377).
Reference code: https://github.com/facebookresearch/mae; `ViTMAEForPreTraining` in transformers gives the same loss
with the same weights and noise.

The encoder sees only the visible patches, with a CLS token; a narrow decoder gets them back in their places, with one
learned token for every hidden patch. Positions are fixed sines and cosines. What is exported is the encoder as a plain
`ViTModel`: `ViTMAEModel` hides patches whenever it is used.

Departures from the paper: none in the method. An encoder that is continued from a checkpoint keeps the positions of
the checkpoint, and they are not trained; with encoders other than `ViTModel` (Dinov2 with and without registers, DeiT,
MSN, I-JEPA) the decoder gets all the tokens that the encoder has of its own.
"""

from dataclasses import dataclass

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, ViTConfig
from transformers import initialization as init
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...functional.views import View, ViewPreset
from ...losses import mae_loss
from ...modeling.method import BenchmarkSettings, LearningRates, LossContext, Method
from ...modeling.pooling import num_own_tokens
from ...modeling.vision import (
    SSLVisionModel,
    build_vision_encoder,
    encode_visible,
    patches_a_side,
    patchify,
    select,
    side,
    sine_positions,
    takes_visible_tokens,
    unpatchify,
)


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    return {} if context.target_variance is None else {"loss": context.target_variance}


METHOD = Method(
    title="MAE",
    modality="image",
    # appendix A
    views=ViewPreset((View(scale=(0.2, 1.0), interpolation="bicubic"),), has_noise=True),
    learning_rates=LearningRates(lars=0.3, narrow=1e-3, wide=1.5e-4, checkpoint=1.5e-4),
    # there is no view to compare with
    embedded_views=dict.fromkeys(("letters", "scenes"), {"jitter_probability": 0.0, "grey_probability": 0.0}),
    # Half of the patches are ground of one colour. Normalised, three quarters of what is to be predicted are colours
    # of patches (measured on 600 views), and a linear probe after 150 steps is no better than untrained.
    embedded_config=dict.fromkeys(("letters", "scenes"), {"norm_pix_loss": False}),
    # the paper's decoder has 2/3 of the width of its encoder
    narrow_heads={"decoder_hidden_size": 128, "decoder_num_attention_heads": 4, "decoder_num_hidden_layers": 2},
    chance=_chance,
    benchmark=BenchmarkSettings(
        encoder="vit-tiny-patch4",
        short_training={"adam_beta2": 0.95},
        against=("lightly", "transformers"),
        notes={
            "lightly": "lightly's decoder is its own, of the same depth and width, and predicts masked patches only.",
            "transformers": "ViTMAEForPreTraining decides what it hides itself; ours gets it from the stream.",
        },
    ),
)


@strict
class MaePreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`MaeForPreTraining`]. The defaults are the paper's, for ImageNet (Section 4, table 1).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: a ViT, or another encoder whose patches can be left out (Dinov2 with and without
            registers, DeiT, MSN, I-JEPA). ViT-B/16 when left out.
        mask_ratio (`float`, *optional*, defaults to `0.75`):
            Share of the patches that are hidden, in (0, 1).
        norm_pix_loss (`bool`, *optional*, defaults to `True`):
            Predict the pixels of a patch less their mean, divided by their standard deviation. `recipes/mae.py` does
            not on the embedded letters, most of whose patches are flat.
        decoder_hidden_size (`int`, *optional*, defaults to `512`):
            Width of the decoder, a multiple of 4 and of its heads.
        decoder_num_hidden_layers (`int`, *optional*, defaults to `8`):
            Blocks of the decoder.
        decoder_num_attention_heads (`int`, *optional*, defaults to `16`):
            Heads of each of them.
        decoder_intermediate_size (`int`, *optional*):
            Width of their hidden layers. Left out: 4 times that of the decoder.
    """

    model_type = "hfssl_mae"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="vit")}

    encoder_config: dict | PreTrainedConfig | None = None
    mask_ratio: float = 0.75
    norm_pix_loss: bool = True
    decoder_hidden_size: int = 512
    decoder_num_hidden_layers: int = 8
    decoder_num_attention_heads: int = 16
    decoder_intermediate_size: int | None = None

    def validate_encoder(self):
        if not takes_visible_tokens(self.encoder_config):
            raise ValueError(
                f"MAE runs its encoder on the visible patches alone, which a {self.encoder_config.model_type} cannot. "
                "Choose a vit (such as vit-tiny-patch4 or vit-base-patch16) or a dinov2, or another method."
            )

    def validate_masking(self):
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(f"`mask_ratio` is the share of hidden patches, between 0 and 1, got {self.mask_ratio}.")
        if takes_visible_tokens(self.encoder_config) and not 0 < self.num_visible < self.num_patches:
            raise ValueError(
                f"`mask_ratio={self.mask_ratio}` leaves {self.num_visible} of {self.num_patches} patches visible, but "
                "at least one has to be visible and one hidden. Change it, or use larger images or smaller patches."
            )

    def validate_decoder(self):
        size, heads = self.decoder_hidden_size, self.decoder_num_attention_heads
        if size < 4 or heads < 1 or size % 4 or size % heads:
            raise ValueError(
                "`decoder_hidden_size` must be a multiple of 4 and of `decoder_num_attention_heads`, got "
                f"{size} and {heads}."
            )

    @property
    def num_patches(self) -> int:
        return patches_a_side(self.encoder_config) ** 2

    @property
    def num_visible(self) -> int:
        """Patches that the encoder sees, rounded as the reference code does."""
        return int(self.num_patches * (1 - self.mask_ratio))


@dataclass
class MaeOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean squared error of the hidden pixels; with `norm_pix_loss`, 1 is what each patch's mean gives.
        logits (`torch.FloatTensor` of shape `(batch_size, num_patches, patch_size² * num_channels)`):
            Prediction of every patch; only those of hidden ones mean anything. Left out in training mode.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch_size, num_patches)`):
            Which patches were hidden.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    bool_masked_pos: torch.BoolTensor | None = None


class MaeForPreTraining(SSLVisionModel):
    config_class = MaePreTrainingConfig
    method = METHOD
    base_model_prefix = "encoder"
    frozen = ("encoder.embeddings.position_embeddings", "decoder_pos_embed")
    paper = {
        "title": "Masked Autoencoders Are Scalable Vision Learners",
        "id": "2111.06377",
        "citation": "@inproceedings{he2022masked,\n  title = {Masked Autoencoders Are Scalable Vision Learners},\n"
        "  author = {He, Kaiming and Chen, Xinlei and Xie, Saining and Li, Yanghao and Doll{\\'a}r, Piotr and "
        "Girshick, Ross},\n  booktitle = {CVPR},\n  year = {2022}\n}",
    }

    def __init__(self, config: MaePreTrainingConfig):
        super().__init__(config)
        encoder = config.encoder_config
        self.encoder = build_vision_encoder(encoder)
        self.patch_size, self.num_own = side(encoder.patch_size), num_own_tokens(encoder)
        size = config.decoder_hidden_size
        self.decoder_embed = nn.Linear(encoder.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, self.num_own + config.num_patches, size))
        # a stock ViT for its blocks and its last norm
        self.decoder = AutoModel.from_config(
            ViTConfig(
                hidden_size=size, num_hidden_layers=config.decoder_num_hidden_layers,
                num_attention_heads=config.decoder_num_attention_heads,
                intermediate_size=config.decoder_intermediate_size or 4 * size, layer_norm_eps=encoder.layer_norm_eps,
                image_size=self.patch_size, patch_size=self.patch_size,
            ),
            add_pooling_layer=False,
        )  # fmt: skip
        self.decoder.embeddings = None
        self.decoder_pred = nn.Linear(size, self.patch_size**2 * encoder.num_channels)
        self.post_init()

    @torch.no_grad()
    def initialize_weights(self):
        """Weights of fresh models, and of what a checkpoint lacks: `init` leaves tensors that were loaded alone."""
        super().initialize_weights()
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                # the reference code draws query, key and value as one matrix
                gain = 0.5**0.5 if name.endswith(("q_proj", "k_proj", "v_proj")) else 1.0
                init.xavier_uniform_(module.weight, gain=gain)
        patches = self.encoder.embeddings.patch_embeddings.projection.weight
        if not getattr(patches, "_is_hf_initialized", False):
            init.xavier_uniform_(patches.view(len(patches), -1))
        init.normal_(self.mask_token, std=0.02)
        side_length = patches_a_side(self.config.encoder_config)
        for positions in (self.encoder.embeddings.position_embeddings, self.decoder_pos_embed):
            num_own = positions.shape[1] - side_length**2
            init.copy_(positions, sine_positions(side_length, positions.shape[2], num_own))

    def forward(
        self, pixel_values: torch.FloatTensor, noise: torch.FloatTensor | None = None, return_loss: bool = True
    ) -> MaeOutput:
        r"""
        Args:
            pixel_values (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
                Images.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches)`, *optional*):
                The patches with the smallest numbers are visible. Drawn from the global generator when left out.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        size = side(self.config.encoder_config.image_size)
        if pixel_values.ndim != 4 or pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"MAE was built for images of {size} x {size} pixels: `pixel_values` has shape "
                f"{tuple(pixel_values.shape)}, expected (batch_size, num_channels, {size}, {size})."
            )
        if noise is None:
            noise = torch.rand(len(pixel_values), self.config.num_patches, device=pixel_values.device)
        order, places = self.order(noise)
        num_visible = self.config.num_visible
        hidden = encode_visible(self.encoder, pixel_values, order[:, :num_visible])
        prediction = self.decode(hidden, places)
        bool_masked_pos = places >= num_visible
        target, _, _ = self.targets(pixel_values)
        loss = mae_loss(prediction, target, bool_masked_pos)
        return MaeOutput(loss=loss, logits=None if self.training else prediction, bool_masked_pos=bool_masked_pos)

    @staticmethod
    def order(noise: torch.FloatTensor) -> tuple[torch.LongTensor, torch.LongTensor]:
        """The patches, those first that are visible, and where in this order each patch stands."""
        order = noise.argsort(dim=1, stable=True)
        return order, order.argsort(dim=1)

    def hidden_pixels(self, batch: dict[str, torch.Tensor]) -> torch.BoolTensor:
        """Which pixels of the images of a batch are hidden, of shape `(batch_size, 1, height, width)`."""
        _, places = self.order(batch["noise"])
        hidden = (places >= self.config.num_visible)[..., None]
        return unpatchify(hidden.expand(-1, -1, self.patch_size**2), self.patch_size)

    def decode(self, hidden: torch.Tensor, places: torch.LongTensor) -> torch.Tensor:
        """Predict all patches from the encoded visible ones.

        Args:
            hidden (`torch.Tensor` of shape `(batch_size, num_own + num_visible, hidden_size)`):
                What the encoder gives.
            places (`torch.LongTensor` of shape `(batch_size, num_patches)`):
                For each patch, which of the visible ones it is; from `num_visible` on it is hidden.
        """
        hidden = self.decoder_embed(hidden)
        num_masked = self.num_own + places.shape[1] - hidden.shape[1]
        mask_tokens = self.mask_token.to(hidden.dtype).expand(len(hidden), num_masked, -1)
        hidden = select(torch.cat([hidden, mask_tokens], dim=1), places, self.num_own) + self.decoder_pos_embed
        for block in self.decoder.layers:
            hidden = block(hidden)
        return self.decoder_pred(self.decoder.layernorm(hidden)[:, self.num_own :])

    def targets(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | float, torch.Tensor | float]:
        """What is to be predicted, and the mean and the standard deviation that turn it into pixels again."""
        target = patchify(pixel_values, self.patch_size)
        if not self.config.norm_pix_loss:
            return target, 0.0, 1.0
        mean, deviation = target.mean(-1, keepdim=True), (target.var(-1, keepdim=True) + 1e-6).sqrt()
        return (target - mean) / deviation, mean, deviation

    @torch.no_grad()
    def reconstruct(
        self, pixel_values: torch.FloatTensor, noise: torch.FloatTensor | None = None
    ) -> tuple[torch.Tensor, torch.BoolTensor]:
        """Images with their hidden patches as predicted, and which pixels those are.

        With `norm_pix_loss` the model predicts no brightness and no contrast: each patch gets those that it has.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_channels, height, width)` and `torch.BoolTensor` of shape
            `(batch_size, 1, height, width)`, `True` where pixels were hidden.
        """
        was_training = self.training
        out = self.eval()(pixel_values, noise)
        self.train(was_training)
        _, mean, deviation = self.targets(pixel_values)
        predicted = unpatchify(out.logits.float() * deviation + mean, self.patch_size)
        hidden = unpatchify(out.bool_masked_pos[..., None].expand(-1, -1, self.patch_size**2), self.patch_size)
        return torch.where(hidden, predicted, pixel_values), hidden
