"""How well a model predicts masked tokens of held-out text: the same tokens for every model, run and precision."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from ..data.stream import Block, Rows
from ..data.text.rows import TextRows
from ..modeling.tokenizer import working_copy
from .token_prediction import TokenPredictionEvaluator


class MaskedTokenEvaluator(TokenPredictionEvaluator):
    r"""
    Masked-token loss, accuracy and pseudo-perplexity on held-out texts.

    15 % of the tokens are masked as BERT does (80/10/10), whatever ratio the model was trained with; which, and as
    what, depends on the text alone. `loss` is the mean cross-entropy in nats over all masked tokens, `accuracy` the
    share that is predicted right, `pseudo_perplexity` is exp(loss): not that of Salazar et al. (2020), who mask one
    token at a time. Figures of different tokenizers are not comparable.

    Arguments: see [`~hfssl.evaluation.token_prediction.TokenPredictionEvaluator`].
    """

    protocol: ClassVar[str] = "masked_tokens"
    version: ClassVar[int] = 1
    task: ClassVar[str] = "masked tokens"
    loss_term: ClassVar[str] = "mlm"
    positions: ClassVar[str] = "masked_positions"
    metrics: ClassVar[tuple[str, ...]] = ("loss", "accuracy", "pseudo_perplexity")

    def _rows(self, block: Block) -> Rows:
        return TextRows(self.tokenizer, self.max_length, packing=self.packing, masking={"mask_ratio": 0.15})(block)

    def _figures(self, loss: float, accuracy: float) -> dict[str, float]:
        return {"loss": loss, "accuracy": accuracy, "pseudo_perplexity": math.exp(min(loss, 700.0))}

    def _hyperparameters(self) -> dict[str, Any]:
        return {**super()._hyperparameters(), "mask_ratio": 0.15}

    def _method(self) -> type:
        from ..methods.text.mlm import MlmForPreTraining

        return MlmForPreTraining


def fill_mask_examples(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    num_examples: int = 4,
    top_k: int = 3,
) -> list[dict[str, Any]]:
    """What the model says where a word of a held-out text is hidden, for a person to look at.

    Returns:
        `list[dict]` with `text` (with the mask token), `answer`, and `predictions`, a list of `(token, probability)`.
    """
    examples, tokenizer = [], working_copy(tokenizer)
    device = next(model.parameters()).device
    for text in texts:
        if len(examples) == num_examples:
            break
        words = text.split()
        if not len(words) >= 8:
            continue
        words = words[:24]
        # a word in the middle that is one token, so that the answer can be given
        for position in sorted(range(2, len(words) - 2), key=lambda i: abs(i - len(words) // 2)):
            answer = words[position].strip(".,;:!?\"'()")
            if answer.isalpha() and len(answer) > 3 and len(tokenizer.tokenize(answer)) == 1:
                break
        else:
            continue
        words[position] = words[position].replace(answer, tokenizer.mask_token)
        encoded = tokenizer(" ".join(words), return_tensors="pt", truncation=True, max_length=64).to(device)
        at = (encoded["input_ids"][0] == tokenizer.mask_token_id).nonzero()
        if len(at) != 1:
            continue
        with torch.no_grad():
            logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
        top = logits[0, at.item()].float().softmax(-1).topk(top_k)
        predictions = [(tokenizer.decode([int(i)]).strip(), float(p)) for p, i in zip(*top, strict=True)]
        examples.append({"text": " ".join(words), "answer": answer, "predictions": predictions})
    return examples
