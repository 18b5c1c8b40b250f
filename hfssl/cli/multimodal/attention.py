"""The implementation of attention in each of two towers."""

import torch
from transformers import PreTrainedModel

from ...errors import UserError
from ...modeling.packing import attention_candidates, recommended_attention
from ...modeling.pairs import PairModel
from ...modeling.towers import Tower
from ...modeling.vision import patches_a_side, uses_attention
from ...training.arguments import SSLTrainingArguments
from ...training.attention import attention_so_far, fastest_attention, is_measured
from ..image.encoders import fastest_for_patches, recommended_for_patches


def set_attention(model: PairModel, attention: str, max_length: int | None, args: SSLTrainingArguments) -> None:
    """Choose the implementation of attention in each tower; `auto` is what was measured to be fastest.

    A run that goes on has what it had.

    Args:
        model ([`~hfssl.modeling.pairs.PairModel`]):
            The method.
        attention (`str`):
            As the user asked for it.
        max_length (`int`, *optional*):
            Tokens of a text.
        args ([`~hfssl.training.arguments.SSLTrainingArguments`]):
            Device, precision and batch.
    """
    is_chosen = is_measured(attention, args.device) or attention == "auto"
    so_far = attention_so_far(args) if is_chosen else {}
    for end in ("first", "second"):
        tower = getattr(model, end)
        if not uses_attention(tower.encoder):
            continue
        choice = attention
        if is_chosen:
            choice = so_far.get(f"{end}.encoder") or _choice(tower, attention, max_length, args)
        if choice is None:
            continue
        try:
            tower.encoder.set_attn_implementation(choice)
        except (ValueError, ImportError) as error:
            raise UserError(
                f"`--attention {attention}` does not work here, in the encoder of {tower.modality}: {error}"
            ) from None


def _choice(tower: Tower, attention: str, max_length: int | None, args: SSLTrainingArguments) -> str | None:
    """What is best for a tower; `None` where it stays what it is."""
    encoder, config = tower.encoder, tower.encoder_config
    if tower.modality == "image":
        if not hasattr(config, "image_size") or not hasattr(config, "patch_size"):
            return None
        choice = recommended_for_patches(config, patches_a_side(config) ** 2, args)
        return fastest_for_patches(encoder, choice, args) if is_measured(attention, args.device) else choice
    if tower.modality != "text":
        return None
    length = config.max_position_embeddings if tower.reads_last_token else max_length
    dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
    if not is_measured(attention, args.device):
        return recommended_attention(config, length, args.device, dtype)
    rows = args.per_device_train_batch_size

    def run(tried: PreTrainedModel) -> torch.Tensor:
        return tried(torch.zeros(rows, length, dtype=torch.long, device=args.device)).last_hidden_state

    candidates = attention_candidates(config, length, args.device, dtype)
    return fastest_attention(encoder, candidates, run, f"{rows} x {length} tokens", args)
