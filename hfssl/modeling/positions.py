"""Logits at the predicted positions only.

The head of a language model costs as much as several layers, and much of what it computes has no label: 85 % of the
tokens of a masked language model, padding and the last token of each document in a causal one. Within the contexts
here, the logits of a stock model have shape `(1, num_positions, vocab_size)`; `positions` are indices into the
flattened batch.
"""

from contextlib import contextmanager

import torch


@contextmanager
def hidden_states_at(encoder: torch.nn.Module, positions: torch.LongTensor):
    """Let the token head of a stock model see only the hidden states at some positions of the flattened batch.

    All heads of masked language models in transformers take the last hidden state of the base model, so a hook there
    serves each of them without knowing its name. A next-sentence head takes the pooled first token, which the base
    model has made before.
    """

    def gather(module, args, kwargs, output):
        output.last_hidden_state = _at(output.last_hidden_state, positions)
        return output

    handle = encoder.base_model.register_forward_hook(gather, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def head_inputs_at(encoder: torch.nn.Module, positions: torch.LongTensor):
    """Let the output layer of a stock `...ForCausalLM` see only some positions of the flattened batch.

    The hook sits on the output layer, not on the base model: the heads of OPT and of BART call parts of the base
    model.
    """

    def gather(module, args):
        return (_at(args[0], positions), *args[1:])

    handle = encoder.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


def _at(hidden: torch.Tensor, positions: torch.LongTensor) -> torch.Tensor:
    """`(batch_size, sequence_length, hidden_size)` to `(1, num_positions, hidden_size)`."""
    # the backward of index_select is deterministic, that of hidden[positions] is not
    return hidden.flatten(0, 1).index_select(0, positions).unsqueeze(0)
