"""How deep in a model each of its parameters lies: by it go learning rates, and what stays as it is."""

from torch import nn
from transformers import MODEL_MAPPING


def is_bare(model: nn.Module) -> bool:
    """Whether this is a stock model without a head, the class of `AutoModel` for its configuration.

    What such a model calls its `base_model` may be a part of itself: the blocks of a DINOv3.
    """
    bare = MODEL_MAPPING.get(type(getattr(model, "config", None)), ())
    return isinstance(model, bare if isinstance(bare, tuple) else (bare,))


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

    What stands before the blocks (embeddings) has depth 0, the first block 1, and what stands after the last one
    (a norm, a head) the number of blocks + 1: so has all of a model without blocks.
    """
    prefix, blocks = blocks_of(model)
    number = 0 if blocks is None else len(blocks)
    # a head may be declared before what it stands on
    base = f"{getattr(model, 'base_model_prefix', '')}."
    has_base = not is_bare(model) and prefix.startswith(base)
    found, seen = {}, blocks is None
    for name, _ in model.named_parameters():
        if has_base and not name.startswith(base):
            found[name] = number + 1
            continue
        if blocks is not None and name.startswith(f"{prefix}."):
            seen = True
            found[name] = int(name.removeprefix(f"{prefix}.").partition(".")[0]) + 1
        else:
            found[name] = number + 1 if seen else 0
    return found, number
