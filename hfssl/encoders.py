"""Encoders to start from: presets for training from scratch, configurations, or checkpoints to continue."""

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, BertConfig, ModernBertConfig, PreTrainedConfig, PreTrainedTokenizerBase

from .errors import UserError


def _bert(layers: int, width: int) -> BertConfig:
    # 64 numbers a head, as in every BERT of "Well-Read Students Learn Better" (https://huggingface.co/papers/1908.08962)
    return BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width
    )


TEXT_PRESETS = {
    "bert-tiny": lambda: _bert(2, 128),
    "bert-mini": lambda: _bert(4, 256),
    "bert-small": lambda: _bert(4, 512),
    "bert-base": lambda: _bert(12, 768),
    # the same width and depth as bert-small; global attention in every third layer, as in the paper (2412.13663)
    "modernbert-small": lambda: ModernBertConfig(
        num_hidden_layers=4, hidden_size=512, num_attention_heads=8, intermediate_size=768
    ),
}


def text_encoder_config(
    encoder: str, tokenizer: PreTrainedTokenizerBase, overrides: dict[str, Any] | None = None
) -> PreTrainedConfig | None:
    """The configuration to train from scratch that `--encoder` names, fitted to a tokenizer.

    Args:
        encoder (`str`):
            A preset, or the path of a config file. Anything else is a checkpoint to continue: `None` is returned.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives the vocabulary size and the special tokens.
        overrides (`dict`, *optional*):
            A whole configuration with `model_type`, instead of `encoder`, or fields that differ from the preset's.
    """
    overrides = dict(overrides or {})
    if "model_type" in overrides:
        config = AutoConfig.for_model(**overrides)
    elif encoder in TEXT_PRESETS:
        config = TEXT_PRESETS[encoder]()
        unknown = [name for name in overrides if not hasattr(config, name)]
        if unknown:
            raise UserError(f"`--encoder_config`: {encoder} has no field {unknown[0]!r}.")
        config.update(overrides)
    elif encoder.endswith(".json") and Path(encoder).is_file():
        config = AutoConfig.for_model(**{**json.loads(Path(encoder).read_text()), **overrides})
    else:
        return None
    config.vocab_size = len(tokenizer)
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        if hasattr(config, f"{name}_token_id"):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))
    return config


def is_checkpoint(encoder: str) -> bool:
    """Whether `--encoder` names a checkpoint to continue, not something to train from scratch."""
    return encoder not in TEXT_PRESETS and not encoder.endswith(".json")


def build_mlm(recipe: Any, config: dict[str, Any], data: Any, args: Any) -> Any:
    """The method of `recipes/mlm.py`: a fresh encoder or a checkpoint, fitted to tokenizer, row length and attention.

    Args:
        recipe:
            Has `encoder` and `attention`.
        config (`dict[str, Any]`):
            Fields of [`MlmPreTrainingConfig`] as given; `encoder_config` are overrides.
        data ([`~hfssl.data.text_data.TextData`]):
            Tokenizer and row length.
        args ([`SSLTrainingArguments`]):
            Gets the default learning rate: 1e-3 for narrow encoders from scratch, 5e-4 for wide ones, 5e-5 for a checkpoint.

    Raises:
        UserError: where encoder, tokenizer, row length or packing do not fit each other.
    """
    from .methods.text.mlm import MlmForPreTraining, MlmPreTrainingConfig

    from .data.tokenizer import require_mask_token  # isort: skip

    require_mask_token(data.tokenizer, "Masked language modelling")
    overrides = config.pop("encoder_config", None)
    fresh = text_encoder_config(recipe.encoder, data.tokenizer, overrides)
    if fresh is not None:
        if config.get("dropout") is None:
            config["dropout"] = 0.0  # as cramming and MosaicBERT train: the data are not seen often enough to overfit
        model = MlmForPreTraining(MlmPreTrainingConfig(encoder_config=fresh, **config))
        default_learning_rate = 1e-3 if fresh.hidden_size <= 256 else 5e-4
    else:
        try:
            model = MlmForPreTraining.from_encoder(recipe.encoder, **config)
        except (OSError, ValueError) as error:
            raise UserError(
                f"`--encoder {recipe.encoder}` is neither a preset ({', '.join(TEXT_PRESETS)}), nor a folder with a checkpoint "
                f"of a masked language model, nor one that the Hub gave: {str(error).splitlines()[0]} Without a network, "
                "download it first and pass the folder."
            ) from error
        default_learning_rate = 5e-5
    if args.learning_rate is None:
        args.learning_rate = default_learning_rate
    check_fit(model.encoder, data.tokenizer, data.arguments.max_length)
    set_attention(model.encoder, recipe.attention, data.arguments.max_length, args.device)
    if data.arguments.packing:
        from .packing import check_packing

        check_packing(model.encoder, max_length=data.arguments.max_length)
    return model


def check_fit(encoder: Any, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Refuse a tokenizer or a row length that the encoder has no embeddings for."""
    from .packing import position_limit

    entries = encoder.get_input_embeddings().num_embeddings
    if len(tokenizer) > entries:
        raise UserError(
            f"The tokenizer has {len(tokenizer):,} entries, the encoder has embeddings for {entries:,}. Pass the encoder's "
            "own tokenizer with `--tokenizer`, or train an encoder from scratch."
        )
    limit = position_limit(encoder)
    if limit is not None and max_length > limit:
        raise UserError(
            f"`--max_length {max_length}` is more than the {limit} positions that {type(encoder).__name__} has. Pass at most "
            f"`--max_length {limit}`, or an encoder with more positions "
            f"(`--encoder_config '{{\"max_position_embeddings\": {max_length}}}'` from scratch)."
        )


def set_attention(encoder: Any, attention: str, max_length: int, device: Any) -> None:
    """Choose the implementation of attention; `auto` is what was measured to be fastest."""
    if attention == "auto":
        from .packing import recommended_attention

        attention = recommended_attention(encoder.config, max_length, device)
    try:
        encoder.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise UserError(f"`--attention {attention}` does not work here: {error}") from None
