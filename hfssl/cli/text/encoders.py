"""Encoders to start from: presets for training from scratch, configurations, or checkpoints to continue."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ...data.text.tokenizer import require_mask_token, require_prompt_tokenizer
from ...errors import UserError
from ...modeling.base import SSLPreTrainedModel
from ...modeling.method import width_of
from ...modeling.packing import attention_candidates, packed_inputs, position_limit, recommended_attention
from ...modeling.packing_checks import check_causal, check_packing
from ...modeling.tokenizer import table_size
from ...modeling.vocabulary import extend_model
from ...training.arguments import SSLTrainingArguments
from ...training.attention import attention_so_far, fastest_attention, is_measured
from .. import encoders
from .data import TextData
from .presets import CAUSAL_PRESETS, TEXT_PRESETS


@dataclass
class TextEncoderArguments:
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"modernbert-mini"`):
            bert-tiny, bert-mini, bert-small, bert-base, modernbert-mini or modernbert-small from scratch; a config
            file; or a Hub id or folder to continue from.
        attention (`str`, *optional*, defaults to `"auto"`):
            auto, measured (the fastest here, as auto chooses on a GPU), eager, sdpa, flash_attention_2 or
            flex_attention.
    """

    modality: ClassVar[str] = "text"

    encoder: str = "modernbert-mini"
    attention: str = "auto"

    def __post_init__(self):
        self.encoder = encoders.preset_name(self.encoder, TEXT_PRESETS | CAUSAL_PRESETS)

    @property
    def base_model(self) -> str | None:
        """The checkpoint to continue, `None` where the encoder is trained from scratch."""
        return self.encoder if is_checkpoint(self.encoder) else None


@dataclass
class CausalEncoderArguments(TextEncoderArguments):
    r"""
    > Encoder

    Args:
        encoder (`str`, *optional*, defaults to `"gpt2-mini"`):
            gpt2- or llama- tiny, mini, small or base from scratch (depth and width of the BERT of that name); a config
            file; or a Hub id or folder to continue from.
    """

    encoder: str = "gpt2-mini"


def text_encoder_config(
    encoder: str,
    tokenizer: PreTrainedTokenizerBase,
    overrides: dict[str, Any] | None = None,
    causal: bool = False,
) -> PreTrainedConfig | None:
    """The configuration to train from scratch that `--encoder` names, fitted to a tokenizer.

    Args:
        encoder (`str`):
            A preset, or the path of a config file. Anything else is a checkpoint to continue: `None` is returned.
        tokenizer (`PreTrainedTokenizerBase`):
            Gives the vocabulary size and the special tokens.
        overrides (`dict`, *optional*):
            A whole configuration with `model_type`, instead of `encoder`, or fields that differ from the preset's.
        causal (`bool`, *optional*, defaults to `False`):
            Whether the presets are decoders.
    """
    presets, others = (CAUSAL_PRESETS, TEXT_PRESETS) if causal else (TEXT_PRESETS, CAUSAL_PRESETS)
    if encoder in others and "model_type" not in (overrides or {}):
        raise UserError(
            f"`--encoder {encoder}` is {'an encoder' if causal else 'a decoder'}, for "
            f"`recipes/{'mlm' if causal else 'clm'}.py`. Choose one of {', '.join(presets)}."
        )
    # those of the other kind are no checkpoints, where a whole configuration stands beside them
    config = encoders.fresh_config(encoder, presets | others, overrides)
    if config is None:
        return None
    fit_to_tokenizer(config, tokenizer)
    return config


def fit_to_tokenizer(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Give an encoder from scratch the size and the special tokens of a tokenizer."""
    config.vocab_size = table_size(tokenizer)
    for name in ("pad", "bos", "eos", "cls", "sep", "mask"):
        if hasattr(config, f"{name}_token_id"):
            setattr(config, f"{name}_token_id", getattr(tokenizer, f"{name}_token_id"))


def is_checkpoint(encoder: str) -> bool:
    """Whether `--encoder` names a checkpoint to continue, not something to train from scratch."""
    return encoders.is_checkpoint(encoder, TEXT_PRESETS | CAUSAL_PRESETS)


def build(
    method: type[SSLPreTrainedModel],
    recipe: TextEncoderArguments,
    config: dict[str, Any],
    data: TextData,
    args: SSLTrainingArguments,
    given: set[str],
) -> SSLPreTrainedModel:
    """A method for text, fitted to tokenizer, row length and attention; see [`~hfssl.cli.modality.build_method`].

    Of causal ones, generation stops where the rows of training ended.

    Raises:
        UserError: where encoder, tokenizer, row length or packing do not fit each other.
    """
    record, causal = method.method, method.method.causal
    kind = "causal" if causal else "masked"
    if causal:
        require_prompt_tokenizer(data.tokenizer, recipe.base_model)
    else:
        require_mask_token(data.tokenizer, base_model=recipe.base_model)
    torch.manual_seed(args.seed)  # Trainer sets it when the weights are there already
    overrides = config.pop("encoder_config", None)
    fresh = text_encoder_config(recipe.encoder, data.tokenizer, overrides, causal)
    if fresh is not None:
        config |= record.fields_for(fresh, given)
        if config.get("dropout") is None:
            config["dropout"] = 0.0  # as cramming and MosaicBERT train: the data are not seen often enough to overfit
        if type(fresh) not in (MODEL_FOR_CAUSAL_LM_MAPPING if causal else MODEL_FOR_MASKED_LM_MAPPING):
            raise UserError(
                f"transformers has no {kind} language model of type {fresh.model_type} (`--encoder_config`). Choose "
                f"another, such as {'gpt2 or llama' if causal else 'bert, roberta or modernbert'}."
            )
        method_config = method.config_class(encoder_config=fresh, **config)
        try:
            model = method(method_config)
        except (ValueError, TypeError, RuntimeError, ZeroDivisionError) as error:
            raise UserError(
                f"No {fresh.model_type} can be made with these settings: {encoders.brief(error)}. Change "
                "`--encoder_config`."
            ) from error
    else:
        try:
            model = method.from_encoder(recipe.encoder, encoder_changes=overrides, **config)
        except (UserError, StrictDataclassError):
            raise
        except Exception as error:  # a damaged or foreign file shows itself in many ways
            presets = CAUSAL_PRESETS if causal else TEXT_PRESETS
            raise encoders.no_encoder(recipe.encoder, presets, f"a {kind} language model", error) from error
        extend_model(model, data.new_tokens)
    if args.learning_rate is None:
        rate = record.learning_rates.choose(args.optim, width_of(model.encoder.config), fresh is not None)
        args.set_learning_rate(rate, record.learning_rates.per_256_samples)
    check_fit(model.encoder, data.tokenizer, data.arguments.max_length, from_scratch=fresh is not None)
    set_attention(model, recipe.attention, data, args)
    if causal:
        check_causal(model.encoder)
        _set_generation(model.encoder, data, fresh is not None)
    if data.arguments.packing:
        check_packing(model.encoder, causal=causal, max_length=data.arguments.max_length)
    return model


def _set_generation(decoder: PreTrainedModel, data: TextData, from_scratch: bool) -> None:
    """Let generation stop where the rows of training ended."""
    generation, tokenizer = decoder.generation_config, data.tokenizer
    if from_scratch:
        generation.max_length = data.arguments.max_length  # positions after it were never trained
        generation.bos_token_id, generation.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    if generation.pad_token_id is None:
        pad = tokenizer.pad_token_id
        generation.pad_token_id = tokenizer.eos_token_id if pad is None else pad


def check_fit(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int, from_scratch: bool
) -> None:
    """Refuse a tokenizer or a row length that the encoder has no embeddings for."""
    entries, needed = encoder.get_input_embeddings().num_embeddings, table_size(tokenizer)
    if needed > entries:
        raise UserError(
            f"The tokenizer has {needed:,} entries (its highest id is {needed - 1:,}), the encoder has embeddings for "
            f"{entries:,}. Pass the encoder's own tokenizer with `--tokenizer`, or train an encoder from scratch."
        )
    limit = position_limit(encoder)
    if limit is not None and max_length > limit:
        # RoBERTa and its kin keep some positions free
        positions = encoder.config.max_position_embeddings + max_length - limit
        more = f', or `"max_position_embeddings": {positions}` in `--encoder_config`' if from_scratch else ""
        raise UserError(
            f"`--max_length {max_length}` is more than the {limit} positions that {type(encoder).__name__} has for a "
            f"text. Pass at most `--max_length {limit}`{more}."
        )


def set_attention(model: SSLPreTrainedModel, attention: str, data: TextData, args: SSLTrainingArguments) -> None:
    """Choose the implementation of attention; `auto` is what was measured to be fastest, or what a run has so far."""
    encoder, wanted = model.encoder, attention
    if is_measured(attention, args.device) or attention == "auto":
        attention = attention_so_far(args).get("encoder") or _choose_attention(model, attention, data, args)
    try:
        encoder.set_attn_implementation(attention)
    except (ValueError, ImportError) as error:
        raise UserError(f"`--attention {wanted}` does not work here: {error}") from None
    if "flash" in attention:
        encoder.to(args.device)  # where alone it can be checked


def _choose_attention(model: SSLPreTrainedModel, attention: str, data: TextData, args: SSLTrainingArguments) -> str:
    config, length, rows = model.encoder.config, data.arguments.max_length, args.per_device_train_batch_size
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    if not is_measured(attention, args.device):
        return recommended_attention(config, length, args.device, dtype)

    def run(encoder: PreTrainedModel) -> torch.Tensor:
        tokens = torch.zeros(rows, length, dtype=torch.long, device=args.device)
        # four documents a row, where rows are packed
        document = 1 + torch.arange(length, device=args.device) * 4 // length
        packed = data.arguments.packing
        inputs = packed_inputs(encoder, document.expand(rows, -1), model.method.causal) if packed else {}
        return encoder.base_model(tokens, **inputs).last_hidden_state

    candidates = attention_candidates(config, length, args.device, dtype)
    return fastest_attention(model.encoder, candidates, run, f"{rows} x {length} tokens", args)
