"""How well a model predicts the next token of held-out text, in figures that do not depend on the tokenizer."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.stream import Block, Rows
from ..data.text.rows import TextRows
from ..modeling.tokenizer import working_copy
from .token_prediction import TokenPredictionEvaluator


class NextTokenEvaluator(TokenPredictionEvaluator):
    r"""
    Next-token loss, accuracy, perplexity and bits per byte on held-out texts.

    Each text is a document that ends with the end-of-text token, which is predicted too; what the tokenizer puts
    before a text is given. `loss` is the mean cross-entropy in nats over all predicted tokens, `accuracy` the share
    that is predicted right, `perplexity` is exp(loss). All three depend on the tokenizer. `bits_per_byte` is the sum
    of the cross-entropy in bits divided by the UTF-8 bytes of the texts: comparable between tokenizers that lose
    nothing of a text (byte-level BPE; not WordPiece with lower case or unknown words), at an equal `max_length`: a
    token sees the tokens of its row only.

    With a tokenizer that puts nothing before a text, such as GPT-2's, the first token is given: it is left out of all
    sums, and its bytes are not counted. `first_token_predicted` beside each figure says which it was.

    Arguments: see [`~hfssl.evaluation.token_prediction.TokenPredictionEvaluator`].
    """

    protocol: ClassVar[str] = "next_tokens"
    version: ClassVar[int] = 1
    task: ClassVar[str] = "next tokens"
    positions: ClassVar[str] = "target_positions"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "perplexity", "bits_per_byte")

    def __init__(
        self,
        texts: Sequence[str] | dict[str, Sequence[str]],
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 8,
        **kwargs,
    ):
        self.num_bytes = 0
        super().__init__(texts, tokenizer, batch_size=batch_size, **kwargs)

    def _rows(self, block: Block) -> Rows:
        transform = TextRows(self.tokenizer, self.max_length, packing=self.packing, next_tokens=True)
        self.first_token_predicted = bool(transform.begin)
        rows = transform(block)
        empty = {index for index, _ in rows.bad}
        texts = [text for i, text in enumerate(block.columns["text"]) if i not in empty]
        if not self.first_token_predicted:
            encodings = self.tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
            texts = [text[encoding.offsets[0][1] :] for text, encoding in zip(texts, encodings, strict=True)]
        self.num_bytes += sum(len(text.encode()) for text in texts)
        return rows

    def _figures(self, loss: float, accuracy: float) -> dict[str, float]:
        return {
            "loss": loss,
            "accuracy": accuracy,
            "perplexity": math.exp(min(loss, 700.0)),
            "bits_per_byte": loss * len(self.labels) / math.log(2) / max(self.num_bytes, 1),
        }

    def _hyperparameters(self) -> dict[str, Any]:
        return {
            **super()._hyperparameters(),
            "bytes": self.num_bytes,
            "first_token_predicted": self.first_token_predicted,
        }

    def _count(self, texts: list[str]) -> Counter:
        return super()._count(texts) + Counter({self.tokenizer.eos_token_id: len(texts)})

    def _method(self) -> type:
        from ..methods.text.clm import ClmForPreTraining

        return ClmForPreTraining


def continuations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    num_examples: int = 3,
    prompt_words: int = 8,
    new_tokens: int = 40,
    max_length: int = 128,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """How the model goes on with the first words of held-out texts, for a person to look at.

    Args:
        model (`PreTrainedModel`):
            A stock causal language model.
        tokenizer (`PreTrainedTokenizerBase`):
            Its tokenizer.
        texts (`Sequence[str]`):
            Held-out texts; those of fewer than twice `prompt_words` words are passed over.
        num_examples (`int`, *optional*, defaults to `3`):
            Most examples.
        prompt_words (`int`, *optional*, defaults to `8`):
            Words that the model is given.
        new_tokens (`int`, *optional*, defaults to `40`):
            Most tokens that it adds.
        max_length (`int`, *optional*, defaults to `128`):
            Most tokens of prompt and continuation.
        seed (`int`, *optional*, defaults to `0`):
            Of the sampled continuations. The random state is as before afterwards.

    Returns:
        `list[dict]` with `prompt`, `answer` (how the text goes on), and `greedy` and `sampled`, what the model makes
        of it: always the most probable token, and drawn from the 50 most probable ones.
    """
    examples, tokenizer = [], working_copy(tokenizer)
    device = next(model.parameters()).device
    for text in texts:
        words = text.split(" ")
        if len(examples) == num_examples:
            break
        if len(words) < 2 * prompt_words:
            continue
        prompt, answer = " ".join(words[:prompt_words]), " ".join(words[prompt_words : 3 * prompt_words])
        encoded = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False).to(device)
        given = encoded["input_ids"].shape[1]
        if not 0 < given < max_length:
            continue
        example = {"prompt": prompt, "answer": answer}
        for name, options in (("greedy", {"do_sample": False}), ("sampled", {"do_sample": True, "top_k": 50})):
            with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
                torch.manual_seed(seed)
                output = model.generate(**encoded, max_length=min(given + new_tokens, max_length), **options)
            example[name] = tokenizer.decode(output[0, given:], skip_special_tokens=True)
        examples.append(example)
    return examples
