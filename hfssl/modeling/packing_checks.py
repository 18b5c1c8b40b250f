"""Can this model be packed, and is it a decoder? Both are found by running it.

So there is no list of supported architectures to keep up to date.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import UserError
from .packing import attention_implementation, packed_inputs, position_limit, sliding_window


# layer types of `config.layer_types` whose attention a mask describes; others carry a state from token to token
_MASKED_LAYER_TYPES = {"full_attention", "sliding_attention"}
_LONGEST_CHECKED_ROW = 1024


@torch.no_grad()
def check_packing(model: PreTrainedModel, causal: bool = False, max_length: int = 512) -> None:
    """Run `model` on packed documents and on each document alone, and refuse it if the hidden states differ.

    The documents are random tokens, in rows of `max_length` slots (at most 1024). The longest one reaches past the
    sliding window, where the model has one that is shorter than `max_length`. Parameters, training mode and random
    state are as before afterwards. The cost is that of two such rows, and of four short documents, without the head.

    In float32 a packed document must equal itself alone to 1e-4 of the largest hidden state. Where that cannot be had
    (half-precision parameters, reduced-precision matrix products, `flash_attention_2`) the bound is 5e-2, and beyond
    that the hidden states of a document must not move when the other documents of its row are replaced. A wrong
    sliding window can hide under that bound.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model to be trained, as it will be trained: device and attention implementation matter.
        causal (`bool`, *optional*, defaults to `False`):
            As in [`~hfssl.modeling.packing.packed_inputs`]. The wrong value is refused as well.
        max_length (`int`, *optional*, defaults to `512`):
            Length of a row in training, and of the longest document.

    Raises:
        UserError: The model cannot keep packed documents apart. The message says what to do instead.
    """
    config = model.config.get_text_config()
    name = f"{type(model).__name__} with {config._attn_implementation or 'eager'} attention"
    remedy = "Use `--packing false`: every document then gets a row of its own, padded to the longest of the batch."
    stateful = sorted(set(getattr(config, "layer_types", None) or ()) - _MASKED_LAYER_TYPES)
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{name} cannot be packed: it is an encoder-decoder, and its decoder sees whole rows. {remedy}"
        )
    if stateful:
        raise UserError(
            f"{name} cannot be packed: its layers of type {', '.join(stateful)} carry a state from one document to "
            f"the next, which no attention mask stops. {remedy}"
        )
    attention = attention_implementation(config)
    device = model.device
    if "flash" in attention and device.type == "cpu":
        raise UserError(
            f"{name} runs on GPUs only, and the model is on {device}. Move it to the GPU first, or choose sdpa or "
            "eager attention."
        )

    flash = "flash" in attention
    exact = model.dtype == torch.float32 and not flash and _has_exact_products()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=flash and model.dtype == torch.float32)
    try:
        with _undisturbed(model), autocast:
            difference, leak = _packing_errors(model, causal, max_length, with_leak=not exact)
    except Exception as error:  # whatever a model raises on inputs that it was not made for
        reason = f"{type(error).__name__}: {error}".strip().split("\n")[0]
        raise UserError(f"{name} cannot be packed: it does not run on packed inputs ({reason}). {remedy}") from error
    # written so that NaN is refused
    if not difference <= (1e-4 if exact else 5e-2):
        raise UserError(
            f"{name} cannot keep packed documents apart: the hidden states of a packed document differ from those of "
            f"the same document alone by {difference:.1e} of the largest one (causal={causal}). {remedy}"
        )
    if not leak <= 1e-3:
        raise UserError(
            f"{name} cannot keep packed documents apart: the hidden states of a packed document move by {leak:.1e} of "
            f"the largest one when the other documents of its row are replaced. {remedy}"
        )


@torch.no_grad()
def check_causal(model: PreTrainedModel) -> None:
    """Refuse a model whose tokens see the tokens after them: it would read what it is to predict.

    Raises:
        UserError: The model is no decoder.
    """
    config = model.config.get_text_config()
    generator = torch.Generator().manual_seed(0)
    same, *ends = torch.randint(config.vocab_size, (3, 1, 8), generator=generator).to(model.device)
    with _undisturbed(model):
        states = [
            _hidden_states(model, input_ids=torch.cat([same, end], dim=1), use_cache=False)[:, : same.shape[1]]
            for end in ends
        ]
    # a decoder does the very same sums twice; fresh weights mix the tokens but little
    difference = (states[0] - states[1]).abs().max() / states[0].abs().max()
    if not difference <= 1e-5:
        raise UserError(
            f"{type(model).__name__} is no decoder: a token sees the tokens after it, which it is to predict. Choose "
            "one such as gpt2-mini or llama-mini; BERT and its kin become one with "
            '`--encoder_config \'{"model_type": "bert", "is_decoder": true}\'`.'
        )


def _has_exact_products() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set through `torch.backends.*.fp32_precision`, as `TrainingArguments(tf32=True)` does
        return False


def _packing_errors(model: PreTrainedModel, causal: bool, max_length: int, with_leak: bool) -> tuple[float, float]:
    """Largest change against alone, and against other neighbours, as parts of the largest hidden state."""
    config = model.config.get_text_config()
    longest = min(max_length, max(64, (sliding_window(config) or 0) + 9), position_limit(model) or max_length)
    lengths = [min(length, longest) for length in (5, longest, 1, 12)]
    # rows as long as in training, for models that change their attention with the length
    num_padding = max(6, min(max_length, _LONGEST_CHECKED_ROW) - sum(lengths))
    # two rows with the documents in another order
    orders = [(0, 1, 2, 3), (1, 3, 2, 0)]
    sequence_ids = torch.zeros(2, sum(lengths) + num_padding, dtype=torch.long)
    for row, order in enumerate(orders):
        sequence_ids[row, :-num_padding] = torch.repeat_interleave(
            torch.arange(1, 5), torch.tensor([lengths[i] for i in order])
        )
    sequence_ids = sequence_ids.to(model.device)

    special = [getattr(config, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "mask")]
    special = torch.tensor([token for token in special if isinstance(token, int)], dtype=torch.long)
    usable = torch.arange(config.vocab_size)
    usable = usable[~torch.isin(usable, special)]
    generator = torch.Generator().manual_seed(0)

    def random_documents() -> list[torch.Tensor]:
        return [usable[torch.randint(len(usable), (length,), generator=generator)] for length in lengths]

    def run(input_ids: torch.Tensor, **arguments) -> torch.Tensor:
        if causal:
            arguments["use_cache"] = False
        return _hidden_states(model, input_ids=input_ids.to(model.device), **arguments)

    def run_packed(documents: list[torch.Tensor]) -> list[torch.Tensor]:
        padding = usable.new_zeros(num_padding)
        input_ids = torch.stack([torch.cat([documents[i] for i in order] + [padding]) for order in orders])
        packed = run(input_ids, **packed_inputs(model, sequence_ids, causal))
        if not packed.isfinite().all():
            raise FloatingPointError("the hidden states of a row with padding are not finite")
        pieces = []
        for row, order in enumerate(orders):
            by_place = packed[row].split([lengths[i] for i in order] + [num_padding])
            pieces += [by_place[order.index(i)] for i in range(len(lengths))]
        return pieces  # of the first row, then of the second, each in the order of `documents`

    documents = random_documents()
    packed = run_packed(documents)
    alone = [run(document[None])[0] for document in documents]
    scale = torch.cat(alone).abs().max()
    difference = torch.stack([(a - b).abs().max() for a, b in zip(packed, alone * 2, strict=True)]).max() / scale
    leak = 0.0
    if with_leak:
        others = random_documents()
        for kept in ((1, 3), (0, 2)):
            mixed = run_packed([documents[i] if i in kept else others[i] for i in range(len(documents))])
            for i in (*kept, *(len(documents) + i for i in kept)):
                leak = max(leak, ((mixed[i] - packed[i]).abs().max() / scale).item())
    return difference.item(), leak


class _HiddenStatesSeen(Exception):
    """Ends a forward pass before the head: logits over a vocabulary would cost more than the encoder."""


def _hidden_states(model: PreTrainedModel, **arguments) -> torch.Tensor:
    """What comes out of the stack under the head of `model`, when `model` itself is called."""
    seen = []

    def stop(module, inputs, output):
        seen.append(output[0].float())
        raise _HiddenStatesSeen

    hook = model.base_model.register_forward_hook(stop)
    try:
        output = model(**arguments)
        return output[0].float()  # the head calls parts of the base model, not the base model: these are the logits
    except _HiddenStatesSeen:
        return seen[0]
    finally:
        hook.remove()


@contextlib.contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within; the mode of every module and all random states as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    device = next(model.parameters()).device
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else [], device_type=device.type):
            model.eval()
            yield
    finally:
        for module, training in modes:
            module.training = training
        random.setstate(python_state)
        np.random.set_state(numpy_state)
