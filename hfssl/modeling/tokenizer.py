"""What is asked of any tokenizer: how large a table for its ids is, and a copy of it to work with."""

import copy

import numpy as np
from transformers import PreTrainedTokenizerBase


def table_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Rows of a table with one for each id: the highest id + 1.

    `len(tokenizer)` is the number of entries, which is smaller where ids have holes: a vocabulary file with a line
    twice, or tokens that were taken out.
    """
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def token_ids(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """All ids that the tokenizer gives, in order. Of one without holes, `0, 1, …, table_size - 1`."""
    return np.array(sorted(set(tokenizer.get_vocab().values())), np.int32)


def working_copy(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A copy that neither truncates nor pads.

    Each call of a tokenizer sets truncation and padding of its backend to what the call says, and `save_pretrained`
    writes them: the tokenizer that a run saves beside its encoder is called through copies alone, or it would not be
    the one that came in.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer
