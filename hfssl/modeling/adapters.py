"""LoRA: small matrices beside those of an encoder that learn in their place, by the library `peft`.

Paper: LoRA: Low-Rank Adaptation of Large Language Models, Hu et al., 2021 (https://huggingface.co/papers/2106.09685).
"""

from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import UserError
from .depth import blocks_of


def add_adapters(encoder: nn.Module, rank: int, first_block: int = 0) -> None:
    """Put a pair of matrices beside each matrix of the blocks of an encoder; all but these pairs is to stay as it is.

    What a pair adds is 0 at first, and is scaled by 2, as is usual (`lora_alpha` is twice the rank).

    Args:
        encoder (`nn.Module`):
            Is changed.
        rank (`int`):
            Width of the pairs, at least 1.
        first_block (`int`, *optional*, defaults to 0):
            The blocks before it get none.

    Raises:
        UserError: where peft is not installed, or there is nothing to adapt.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError('`--lora_rank` needs peft: `pip install "hfssl[lora]"`.') from error

    if rank < 1:
        raise UserError(f"`--lora_rank` is the width of the matrices that are trained, at least 1, got {rank}.")
    prefix, blocks = blocks_of(encoder)
    matrices = {
        f"{prefix}.{i}.{name}": part
        for i, block in enumerate(blocks or ())
        for name, part in block.named_modules()
        if i >= first_block and isinstance(part, nn.Linear | Conv1D)
    }
    if not matrices:
        raise UserError(
            f"`--lora_rank {rank}` is for the linear layers of transformer blocks, and this "
            f"{encoder.config.model_type} has none that are trained. Leave it out; `--layer_decay 0.7` or "
            "`--freeze_layers 1` change a checkpoint less as well."
        )
    turned = all(isinstance(part, Conv1D) for part in matrices.values())  # stored the other way round
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(matrices), fan_in_fan_out=turned)
    inject_adapter_in_model(config, encoder)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to a pair of [`add_adapters`]."""
    return ".lora_" in name


def merge_adapters(encoder: nn.Module) -> None:
    """Add what the pairs have learned to the matrices beside which they stand, and take them out: a stock module."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, part in list(encoder.named_modules()):
        if isinstance(part, BaseTunerLayer):
            part.merge()
            parent, _, last = name.rpartition(".")
            setattr(encoder.get_submodule(parent), last, part.get_base_layer())
    del encoder.peft_config
