"""Several documents in one row, and no document sees another.

A packed row holds whole documents side by side, so that no slot is spent on padding. Stock transformers encoders let
such documents attend to each other: restarting `position_ids` separate nothing, and a mask of the wrong form is added
to the scores without an error. Three things keep documents apart, each with its own function:

- [`pack`] decides which document goes into which row.
- [`packed_inputs`] turns the document number of each token (`sequence_ids`) into the arguments of a stock model:
  positions that restart, and the attention mask in the form that the architecture and its attention implementation
  take.
- [`~hfssl.modeling.packing_checks.check_packing`] runs the model at hand on a packed row and on the documents of that
  row alone, and refuses a model that gives different hidden states.

A mask of sequence_length x sequence_length values per row is what `eager` and `sdpa` need, fine up to about a thousand
tokens. Longer rows on a GPU use `flash_attention_2` (cumulative lengths, no mask) or `flex_attention` (block mask).
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_flash_attn_2_available


def pack(lengths: np.ndarray, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack pieces into rows of `capacity` slots, longest piece first, each into the fullest row that still has room.

    Best-fit decreasing. Pieces of one length are placed together, row by row, which gives the same rows as placing
    them one at a time. What it cannot do: pieces of 70 slots in rows of 128 leave 58 slots empty in each row.

    Args:
        lengths (`np.ndarray` of shape `(num_pieces,)`):
            Length of each piece, at least 1 and at most `capacity`.
        capacity (`int`):
            Number of slots in a row.

    Returns:
        `tuple[np.ndarray, np.ndarray]`, both of shape `(num_pieces,)` and type `int64`: the row of each piece, and the
        slot in which it starts. Rows are numbered from 0 without gaps, those of the longest pieces first: permute them
        before training. The result depends on nothing but the arguments.

    Example:

    ```python
    >>> rows, starts = pack(np.array([3, 5, 2, 6]), capacity=8)
    >>> rows.tolist(), starts.tolist()
    ([1, 1, 0, 0], [5, 0, 6, 0])
    ```
    """
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or (lengths.size and not np.issubdtype(lengths.dtype, np.integer)):
        raise ValueError(
            f"`lengths` must be a vector of integers, got an array of shape {lengths.shape} and type {lengths.dtype}."
        )
    if lengths.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    shortest, longest = int(lengths.min()), int(lengths.max())
    if shortest < 1 or longest > capacity:
        raise ValueError(
            f"Every piece must have between 1 and capacity={capacity} tokens, got one of "
            f"{shortest if shortest < 1 else longest}. Drop empty documents and cut long ones before packing."
        )
    order = np.argsort(-lengths, kind="stable")
    counts = np.bincount(lengths)

    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # room[r] = open rows with r slots left
    has_room = 0  # bit r is set where room[r] is not empty: the best fit is the lowest set bit from `length` on
    num_rows = 0
    rows: list[int] = []  # of the pieces in `order`
    starts: list[int] = []
    for length in np.flatnonzero(counts)[::-1].tolist():
        left = int(counts[length])
        while left:
            fitting = has_room >> length
            if fitting:
                space = length + (fitting & -fitting).bit_length() - 1
                candidates = room[space]
            else:
                space = capacity
                needed = -(-left // (capacity // length))
                candidates = list(range(num_rows, num_rows + needed))
                num_rows += needed
            # a row that took one piece is the best fit for the next one as long as it has room
            per_row = min(space // length, left)
            chosen = candidates[: left // per_row]
            if len(chosen) == len(candidates):
                if fitting:
                    room[space] = []
                    has_room &= ~(1 << space)
            else:
                rest = candidates[len(chosen) :]
                room[space] = rest
                has_room |= 1 << space
            rows.extend(chosen * per_row)
            for used in range(per_row):
                starts.extend([capacity - space + used * length] * len(chosen))
            left -= len(chosen) * per_row
            space -= per_row * length
            if space:
                room[space].extend(chosen)
                has_room |= 1 << space
    row_of_piece = np.empty(len(lengths), np.int64)
    start_of_piece = np.empty(len(lengths), np.int64)
    row_of_piece[order] = rows
    start_of_piece[order] = starts
    return row_of_piece, start_of_piece


def packed_inputs(model: PreTrainedModel, sequence_ids: torch.Tensor, causal: bool = False) -> dict[str, Any]:
    """Arguments with which `model(input_ids=..., **arguments)` treats each document of a row as if it were alone.

    Call it inside the autocast context of the forward pass, if there is one: the float mask of `eager` takes its type
    from it (a float32 mask would promote bfloat16 scores to float32). On CPU `eager`, `sdpa` and `flex_attention` were
    compared with each document alone. Not run: `flash_attention_2`, and `flex_attention` on a GPU.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A stock text encoder or decoder, with or without a head.
            [`~hfssl.modeling.packing_checks.check_packing`] says whether it can be packed.
        sequence_ids (`torch.Tensor` of shape `(batch_size, sequence_length)`):
            1, 2, 3, ... = the document that a token belongs to within its row; 0 = padding. Documents are contiguous.
        causal (`bool`, *optional*, defaults to `False`):
            Whether a token sees only the tokens before it. Must be what the model does with a document alone.

    Returns:
        `dict[str, Any]`: `position_ids`, and `attention_mask` (a tensor, a block mask, or a dictionary of them by
        layer type) or, for `flash_attention_2`, `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and `max_length_k`.
        Padding tokens attend to one another, so nothing is ever NaN.
    """
    config = model.config.get_text_config()
    attention = attention_implementation(config)
    arguments: dict[str, Any] = {"position_ids": _position_ids(sequence_ids, _position_offset(model))}
    if "flash" in attention:
        return arguments | _flash_arguments(sequence_ids)

    dtype = None
    if attention == "eager":
        device_type = sequence_ids.device.type
        autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if autocast else model.dtype

    def mask(window: int | None = None):
        if attention == "flex_attention":
            return _block_mask(sequence_ids, causal, window)
        allowed = _boolean_mask(sequence_ids, causal, window)
        if dtype is None:
            return allowed
        return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(
            ~allowed, torch.finfo(dtype).min
        )

    layer_types = set(getattr(config, "layer_types", None) or ())
    window = sliding_window(config)
    if "sliding_attention" in layer_types:
        arguments["attention_mask"] = {"full_attention": mask(), "sliding_attention": mask(window)}
    else:
        arguments["attention_mask"] = mask(None if layer_types else window)
    return arguments


def recommended_attention(
    config: PreTrainedConfig, max_length: int, device: torch.device | str, dtype: torch.dtype | None = None
) -> str:
    """Fastest attention implementation for packed rows of `max_length` tokens.

    On CPUs, forward and backward of a BERT of 4 layers, 512 wide, 8 heads, 4096 tokens a batch: time with `sdpa` over
    time with `eager`, both with the mask of [`packed_inputs`].

    | tokens a row | 128  | 256  | 512  | 1024 |
    |--------------|------|------|------|------|
    | bfloat16     | 1.29 | 1.22 | 1.20 | 0.81 |
    | float32      | 0.99 | 0.93 | 0.84 | 0.71 |

    The backward of `sdpa` is slow on CPUs, and bfloat16 makes the matrix products of `eager` cheap; the square of the
    row length decides against `eager` in the end. The mask itself costs nothing that can be measured, up to 256 tokens
    a row. On GPUs nothing was measured, and `auto` measures there ([`~hfssl.training.attention.fastest_attention`]);
    without that it is `sdpa`, and `flash_attention_2` for rows of more than 512 tokens in half precision where it is
    installed.

    Args:
        config ([`~transformers.PreTrainedConfig`]):
            Config of the model.
        max_length (`int`):
            Tokens in a row.
        device (`torch.device` or `str`):
            Where the model will be trained.
        dtype (`torch.dtype`, *optional*):
            Type in which matrix products will run: that of autocast, or else of the parameters.

    Returns:
        `str`: `"eager"`, `"sdpa"` or `"flash_attention_2"`, and only what the architecture has.
    """
    architecture = MODEL_MAPPING.get(type(config.get_text_config()), None)
    has_sdpa = architecture is None or architecture._supports_sdpa
    has_flash = architecture is not None and architecture._supports_flash_attn and is_flash_attn_2_available()
    device_type = torch.device(device).type
    if device_type == "cpu":
        longest_eager = {torch.bfloat16: 512, None: 256}.get(dtype, 128)
        return "eager" if max_length <= longest_eager or not has_sdpa else "sdpa"
    if device_type == "cuda" and has_flash and max_length > 512 and dtype in (torch.bfloat16, torch.float16):
        return "flash_attention_2"
    return "sdpa" if has_sdpa else "eager"


def attention_candidates(
    config: PreTrainedConfig, max_length: int, device: torch.device | str, dtype: torch.dtype | None = None
) -> list[str]:
    """What may be faster than [`recommended_attention`], which stands first. `flex_attention`, which is compiled for
    minutes, is left to those who ask for it."""
    architecture = MODEL_MAPPING.get(type(config.get_text_config()), None)
    found = [recommended_attention(config, max_length, device, dtype), "eager"]
    if architecture is None or architecture._supports_sdpa:
        found.append("sdpa")
    in_half = torch.device(device).type == "cuda" and dtype in (torch.bfloat16, torch.float16)
    if in_half and architecture is not None and architecture._supports_flash_attn and is_flash_attn_2_available():
        found.append("flash_attention_2")
    return list(dict.fromkeys(found))


def attention_implementation(config: PreTrainedConfig) -> str:
    """The attention implementation of a model, which has to be one that packing has a mask for."""
    attention = config._attn_implementation or "eager"
    if attention not in ("eager", "sdpa", "flex_attention") and "flash" not in attention:
        raise ValueError(
            f"Packing has no mask for the attention implementation {attention!r}. Load the model with "
            "attn_implementation='sdpa', 'eager', 'flash_attention_2' or 'flex_attention', or use `--packing false`."
        )
    return attention


def sliding_window(config: PreTrainedConfig) -> int | None:
    """Window of the local layers: tokens on each side in an encoder, up to and including this one in a decoder."""
    if getattr(config, "use_sliding_window", None) is False:
        return None
    return getattr(config, "sliding_window", None)


def _position_table(model: PreTrainedModel) -> nn.Embedding | None:
    for name, module in model.named_modules():
        if name.rsplit(".", 1)[-1] in ("position_embeddings", "wpe") and isinstance(module, nn.Embedding):
            return module
    return None


def _position_offset(model: PreTrainedModel) -> int:
    """Position of the first token: RoBERTa and its kin keep the positions up to the padding index free."""
    table = _position_table(model)
    return 0 if table is None or table.padding_idx is None else table.padding_idx + 1


def position_limit(model: PreTrainedModel) -> int | None:
    """Longest document that the learned positions of `model` reach; `None` where positions are not learned.

    Only documents are limited by it: a packed row may be longer, since positions restart.
    """
    table = _position_table(model)
    return None if table is None else table.num_embeddings - _position_offset(model)


def _position_ids(sequence_ids: torch.Tensor, offset: int) -> torch.Tensor:
    slots = torch.arange(sequence_ids.shape[1], device=sequence_ids.device)
    starts = slots * _is_first(sequence_ids)  # the slot of each first token, 0 elsewhere
    positions = slots - starts.cummax(dim=1).values  # (batch_size, sequence_length)
    return positions * (sequence_ids > 0) + offset  # padding may be longer than the position table


def _is_first(sequence_ids: torch.Tensor) -> torch.Tensor:
    """Whether a slot begins a document, or the padding of its row."""
    first = torch.ones_like(sequence_ids, dtype=torch.bool)
    first[:, 1:] = sequence_ids[:, 1:] != sequence_ids[:, :-1]
    return first


def _boolean_mask(sequence_ids: torch.Tensor, causal: bool, window: int | None) -> torch.Tensor:
    """`True` where the query (dimension 2) sees the key (dimension 3); shape `(batch_size, 1, length, length)`."""
    allowed = sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
    if causal or window is not None:
        slots = torch.arange(sequence_ids.shape[1], device=sequence_ids.device)
        allowed = allowed & _is_near(slots[:, None], slots[None, :], causal, window)
    return allowed


def _is_near(query: torch.Tensor, key: torch.Tensor, causal: bool, window: int | None) -> torch.Tensor:
    # documents are contiguous, so a distance within the row is the distance within the document
    if causal:
        return key <= query if window is None else (key <= query) & (key > query - window)
    return (query - key).abs() <= window


def _block_mask(sequence_ids: torch.Tensor, causal: bool, window: int | None):
    from torch.nn.attention.flex_attention import create_block_mask

    def is_allowed(batch, head, query, key):
        allowed = sequence_ids[batch, query] == sequence_ids[batch, key]
        if causal or window is not None:
            allowed = allowed & _is_near(query, key, causal, window)
        return allowed

    batch_size, length = sequence_ids.shape
    device = sequence_ids.device
    # compiled, the mask is made block by block; otherwise all of it exists at once
    return create_block_mask(
        is_allowed, batch_size, None, length, length, device=device, _compile=device.type == "cuda"
    )


def _flash_arguments(sequence_ids: torch.Tensor) -> dict[str, Any]:
    """Documents as segments of the flattened batch; the padding of a row is a segment too.

    The number of segments is the shape of a tensor, so finding them waits for the device once per call. The longest
    segment is bounded by the row length instead of being looked up.
    """
    length = sequence_ids.shape[1]
    starts = _is_first(sequence_ids).flatten().nonzero().flatten()
    boundaries = nn.functional.pad(starts, (0, 1), value=sequence_ids.numel()).to(torch.int32)
    return {
        "cu_seq_lens_q": boundaries,
        "cu_seq_lens_k": boundaries,
        "max_length_q": length,
        "max_length_k": length,
    }
