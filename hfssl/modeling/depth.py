"""How deep in a model each of its parameters lies: by it go learning rates, and what stays as it is."""

import copy
import hashlib

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig

from .trial import FAILURES, blank_image, is_grid, once_per_config, sizes_to_try, with_one_block


# Values of a waveform, enough for one frame at least of any encoder of recordings, and tokens of a text.
_SAMPLES, _TOKENS = 16_000, 8


def blocks_of(model: nn.Module) -> tuple[str, nn.ModuleList | None]:
    """The list of blocks that a model is a stack of, and its name; stages where there are stages.

    Of the lists that lie in no other list it is the one with the most parameters: convolutions before a transformer,
    or the heads after it, are a list as well in some models. `None` where there is no list.
    """
    lists = {name: part for name, part in model.named_modules() if isinstance(part, nn.ModuleList)}
    outermost = {
        name: part for name, part in lists.items() if not any(name.startswith(f"{other}.") for other in lists if other)
    }
    name = max(outermost, key=lambda each: sum(p.numel() for p in outermost[each].parameters()), default="")
    return name, outermost.get(name)


def depths(model: nn.Module) -> tuple[dict[str, int], int]:
    """The depth of each parameter of a model by its name, and the number of its blocks.

    What comes before the blocks (embeddings) has depth 0, the first block 1, and what comes after the last one (a
    norm, a head) the number of blocks + 1: so has all of a model without blocks. What comes when is the order of a
    forward pass; of what takes no part in one as a module, the order in which the model declares it.
    """
    prefix, blocks = blocks_of(model)
    number = 0 if blocks is None else len(blocks)
    # a head may be declared before what it stands on
    base = f"{getattr(model, 'base_model_prefix', '')}."
    has_base = prefix.startswith(base)
    config = getattr(model, "config", None)
    is_after = after_the_blocks(config) if isinstance(config, PreTrainedConfig) and blocks is not None else {}
    found, seen = {}, blocks is None
    for name, _ in model.named_parameters():
        if has_base and not name.startswith(base):
            found[name] = number + 1
            continue
        if blocks is not None and name.startswith(f"{prefix}."):
            seen = True
            found[name] = int(name.removeprefix(f"{prefix}.").partition(".")[0]) + 1
        else:
            module = name.removeprefix(base if has_base else "").rpartition(".")[0]
            found[name] = number + 1 if is_after.get(module, seen) else 0
    return found, number


def digest_of_depths(config: PreTrainedConfig) -> str:
    """Changes with the depth of any parameter of the encoder of a config."""
    try:
        found = depths(_blank(config))
    except FAILURES:
        return ""
    return hashlib.sha256(repr(found).encode()).hexdigest()[:16]


@once_per_config
def after_the_blocks(config: PreTrainedConfig) -> dict[str, bool]:
    """Of the modules that a forward pass of an encoder goes through outside its blocks: whether after the first one.

    Found on the `meta` device, which costs no arithmetic, or with one block where numbers are needed; nothing where
    the architecture runs on no blank input.
    """
    for tried, device in ((config, "meta"), (with_one_block(config), "cpu")):
        try:
            # of the whole: one block may be smaller than another list
            return _after_the_blocks(_blank(tried, device), blocks_of(_blank(config))[0], device)
        except FAILURES as error:
            if "meta" not in str(error):  # it was not for want of numbers
                break
    return {}


def _after_the_blocks(encoder: nn.Module, prefix: str, device: str) -> dict[str, bool]:
    met: list[str] = []
    for name, module in encoder.named_modules():
        module.register_forward_pre_hook(lambda *_, name=name: met.append(name))
    with torch.no_grad():
        encoder(**_blank_inputs(encoder, device))
    order = list(dict.fromkeys(met))
    inside = [name.startswith(f"{prefix}.") for name in order]
    return {name: any(inside[:i]) for i, name in enumerate(order) if not inside[i]} if any(inside) else {}


def _blank(config: PreTrainedConfig, device: str = "meta") -> nn.Module:
    config = copy.deepcopy(config)
    config._attn_implementation = "eager"  # other implementations want a GPU, or numbers
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return AutoModel.from_config(config).float().eval()


def _blank_inputs(encoder: nn.Module, device: str) -> dict[str, torch.Tensor]:
    config, name = encoder.config, encoder.main_input_name
    if name == "pixel_values" or is_grid(config):
        return {name: blank_image(config, sizes_to_try(config)[0], device)}
    if name == "input_ids":
        # any but that of padding, of which transformers would warn
        token = 0 if getattr(config, "pad_token_id", None) else 1
        return {name: torch.full((1, _TOKENS), token, device=device)}
    return {name: torch.zeros(1, _SAMPLES, device=device)}
