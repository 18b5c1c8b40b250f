"""How likely a language model finds sentences: the score by which two that differ in a few words are compared."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from difflib import SequenceMatcher

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from ...errors import first_line
from ...machine import choose_precision, compute_device
from ...modeling.base import evaluating
from ...modeling.positions import hidden_states_at
from ..encoder_folder import check_loaded, quiet
from ..evaluator import EvaluationError
from ..progress import Progress
from .encoder import TextEncoder


# What a score is of, as it stands beside the figures.
PSEUDO = "pseudo-log-likelihood of the unmodified tokens"
WHOLE = "log-likelihood of the whole sentence"
# Tokens that a sentence is cut off at, fewer where the model takes fewer.
MAX_LENGTH = 512


@dataclass
class LanguageModel:
    r"""
    A stock language model with its head, and the scores of pairs of sentences.

    Args:
        text ([`~hfssl.evaluation.text.encoder.TextEncoder`]):
            Folder or Hub id of the encoder, checked, with its tokenizer.
        random_seed (`int`, *optional*):
            Take the architecture with new weights.
        batch_size (`int`, *optional*, defaults to `256`):
            Tokens that are scored in a forward pass.
        precision (`str`, *optional*, defaults to `"fp32"`):
            Autocast to bf16 or not.
    """

    text: TextEncoder
    random_seed: int | None = None
    batch_size: int = 256
    precision: str = "fp32"

    def __post_init__(self):
        self.is_causal = is_causal(self.text)
        self.device = compute_device()
        self.precision = choose_precision(self.precision, use_cpu=self.device.type == "cpu")
        self.model = self._load().to(self.device)

    @property
    def score(self) -> str:
        """What [`pair_scores`] gives, in words."""
        return WHOLE if self.is_causal else PSEUDO

    def pair_scores(self, pairs: Sequence[tuple[str, str]], title: str = "pairs") -> np.ndarray:
        """The scores of both sentences of each pair, of shape `(num_pairs, 2)`; NaN where they cannot be compared.

        That is so where a sentence is longer than the model takes, or a masked model has no token that both share.
        """
        tokenizer, longest = self.text.tokenizer, self.text.max_length
        sentences = [sentence for pair in pairs for sentence in pair]
        encoded = tokenizer(sentences, return_special_tokens_mask=True, return_attention_mask=False, verbose=False)
        ids = [np.array(each, np.int64) for each in encoded["input_ids"]]
        self.text.check_tokens(max((int(each.max(initial=0)) for each in ids), default=0))
        special = [np.array(each, bool) for each in encoded["special_tokens_mask"]]
        scores = np.full((len(pairs), 2), np.nan)
        # pair, for which of its sentences, tokens, and those of them that are scored
        rows: list[tuple[int, slice, np.ndarray, np.ndarray]] = []
        for i in range(len(pairs)):
            both, masks = ids[2 * i : 2 * i + 2], special[2 * i : 2 * i + 2]
            if self.is_causal:
                both = [self._with_beginning(each) for each in both]
                scored = [np.arange(1, len(each)) for each in both]
            else:
                scored = shared_positions(*both, *masks)
            if max(map(len, both)) <= longest and all(map(len, scored)):
                # what is the same to the model has one score, whatever rounding makes of it in another batch
                sides = (slice(0, 2),) if np.array_equal(*both) else (slice(0, 1), slice(1, 2))
                rows += [(i, side, both[side.start], scored[side.start]) for side in sides]
        with Progress(len(rows), f"Scores of {title}", " sentences") as bar, evaluating(self.model):
            for i, side, found in self._log_likelihoods(rows):
                scores[i, side] = found
                bar.update()
        return scores

    def _log_likelihoods(self, rows: list) -> Iterator[tuple[int, slice, float]]:
        """The score of each row: the sum over its scored tokens."""
        rows = sorted(rows, key=lambda row: len(row[2]))  # equally long ones together: little padding
        of_row = [len(positions) for *_, positions in rows]
        # each scored token has logits of the whole vocabulary, and a masked one is a row of a forward pass
        start = 0
        while start < len(rows):
            stop, number = start + 1, of_row[start]
            while stop < len(rows) and number + of_row[stop] <= self.batch_size:
                number += of_row[stop]
                stop += 1
            some = rows[start:stop]
            found = self._causal(some) if self.is_causal else self._masked(some)
            sums = np.add.reduceat(found, np.cumsum([0, *of_row[start : stop - 1]]))
            for (i, side, *_), total in zip(some, sums, strict=True):
                yield i, side, float(total)
            start = stop

    def _masked(self, rows: list) -> np.ndarray:
        """Log-probability of each scored token, which alone is masked in a row of its own."""
        sentences = [ids for _, _, ids, positions in rows for _ in positions]
        at = np.concatenate([positions for *_, positions in rows])
        input_ids, mask = self._padded(sentences)
        row = torch.arange(len(at))
        at = torch.from_numpy(at)
        labels = input_ids[row, at].clone()
        input_ids[row, at] = self.text.tokenizer.mask_token_id
        found = []
        for start in range(0, len(at), self.batch_size):  # a long sentence has more tokens than fit
            some = slice(start, start + self.batch_size)
            ids, flat = input_ids[some], torch.arange(len(at[some])) * input_ids.shape[1] + at[some]
            with hidden_states_at(self.model, flat.to(self.device)), self._autocast():
                logits = self.model(input_ids=ids.to(self.device), attention_mask=mask[some].to(self.device)).logits
            found.append(_chosen(logits[0], labels[some]))
        return np.concatenate(found)

    def _causal(self, rows: list) -> np.ndarray:
        input_ids, mask = self._padded([ids for _, _, ids, _ in rows])
        with self._autocast():
            logits = self.model(input_ids=input_ids.to(self.device), attention_mask=mask.to(self.device)).logits
        is_scored = mask[:, 1:].bool()
        return _chosen(logits[:, :-1][is_scored.to(self.device)], input_ids[:, 1:][is_scored])

    def _padded(self, sentences: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = np.array([len(ids) for ids in sentences])
        there = np.arange(lengths.max()) < lengths[:, None]
        ids = np.full(there.shape, self.text.tokenizer.pad_token_id, np.int64)
        ids[there] = np.concatenate(sentences)
        return torch.from_numpy(ids), torch.from_numpy(there.astype(np.int64))

    def _with_beginning(self, ids: np.ndarray) -> np.ndarray:
        """With the token that texts begin with, where there is one: else the first word would have no probability."""
        first = self.text.tokenizer.bos_token_id
        return ids if first is None or len(ids) and ids[0] == first else np.concatenate([[first], ids])

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else nullcontext()

    def _load(self) -> PreTrainedModel:
        source, config = self.text.source, self.text.config
        kind = AutoModelForCausalLM if self.is_causal else AutoModelForMaskedLM
        with torch.random.fork_rng(devices=[]), quiet():
            if self.random_seed is not None:
                torch.manual_seed(self.random_seed)
                return kind.from_config(config).float()
            try:
                model, info = kind.from_pretrained(
                    source, config=config, dtype=torch.float32, output_loading_info=True
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise EvaluationError(f"Cannot load the language model {source}: {first_line(error)}") from error
        prefix = f"{model.base_model_prefix}."
        names = [name for name, _ in model.named_parameters()]
        lacking = sorted(name for name in set(info["missing_keys"]) & set(names) if not name.startswith(prefix))
        if lacking:
            raise EvaluationError(
                f"{source} has no head that predicts tokens (it lacks {lacking[0]}), and sentences are compared by "
                "how likely they are. Pass the result folder of `recipes/mlm.py` or `recipes/clm.py`, or a checkpoint "
                f"that {kind.__name__} loads with its head; association tests (WEAT, SEAT) need none."
            )
        check_loaded(source, [name for name in names if name.startswith(prefix)], info["missing_keys"])
        return model


def is_causal(text: TextEncoder) -> bool:
    """Whether a model predicts the next token, or masked ones.

    Raises:
        EvaluationError: where it does neither.
    """
    kind = text.config.model_type
    if text.config.is_encoder_decoder:
        raise EvaluationError(
            f'{text.source} is a "{kind}" model of an encoder and a decoder: pass a masked or a causal language '
            "model, such as a BERT or a GPT-2."
        )
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(text.config, "is_decoder", False):
        if text.tokenizer.mask_token_id is None:
            raise EvaluationError(
                f"The tokenizer of {text.source} has no mask token, and sentences are compared by how likely their "
                'masked tokens are. Name the one of its training: tokenizer.mask_token = "[MASK]", then '
                "tokenizer.save_pretrained(folder)."
            )
        return False
    if kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    raise EvaluationError(
        f'{text.source} is a "{kind}" model, of which transformers has no head that predicts tokens: pass one such as '
        "a BERT or a GPT-2, or association tests (WEAT, SEAT), which need none."
    )


def shared_positions(
    first: np.ndarray, second: np.ndarray, first_special: np.ndarray, second_special: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where two sentences have the same tokens in the same order, without special ones: positions in each."""
    blocks = SequenceMatcher(None, first.tolist(), second.tolist(), autojunk=False).get_matching_blocks()
    pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    pairs = [(a, b) for a, b in pairs if not (first_special[a] or second_special[b])]
    at = np.array(pairs, np.int64).reshape(-1, 2)
    return at[:, 0], at[:, 1]


def _chosen(logits: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Log-probabilities of `labels` by logits of shape `(num_tokens, vocab_size)`."""
    labels = labels.to(logits.device)
    return logits.float().log_softmax(-1).gather(1, labels[:, None])[:, 0].double().cpu().numpy()
