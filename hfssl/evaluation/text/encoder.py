"""A text encoder as fine-tuning needs it: its tokenizer, the length it takes, and models with a new head on it."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence

import datasets
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from ...errors import first_line
from ..encoder_folder import check_loaded, digests_of_weights, hint_of_pretraining, load_config, quiet
from ..evaluator import EvaluationError
from ..facts import given_name


logger = logging.getLogger(__name__)


class TextEncoder:
    r"""
    An encoder on disk or on the Hub, checked: that it can classify sequences, and that its tokenizer is there.

    Args:
        source (`str`):
            Folder or Hub id.
        max_length (`int`):
            Tokens after which a row is cut off; fewer where the encoder takes fewer.
    """

    def __init__(self, source: str, max_length: int):
        self.source, self.name = source, given_name(source)
        self.config = load_config(source)
        # an empty model, to learn what the architecture is like
        try:
            with torch.device("meta"), quiet():
                model = AutoModelForSequenceClassification.from_config(self.config)
        except ValueError as error:
            raise EvaluationError(
                f'{self.name} is a "{self.config.model_type}" model, for which transformers has no sequence '
                f"classification.{hint_of_pretraining(self.name)}"
            ) from error
        self.tokenizer = self._load_tokenizer()
        self.max_length = min(max_length, self.tokenizer.model_max_length, _num_positions(model))

    def _load_tokenizer(self) -> PreTrainedTokenizerBase:
        problem = ""
        try:
            with quiet():
                tokenizer = AutoTokenizer.from_pretrained(self.source)
            # a folder without tokenizer files gives a tokenizer that knows its special tokens only
            if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
                tokenizer = None
        except Exception as error:  # a missing vocabulary shows itself in many ways
            tokenizer, problem = None, f" ({first_line(error)})"
        if tokenizer is None:
            raise EvaluationError(
                f"{self.name} has no tokenizer{problem}. Save the one it was pre-trained with beside it: "
                "tokenizer.save_pretrained(folder)."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.sep_token
        if tokenizer.pad_token is None:
            raise EvaluationError(f"The tokenizer of {self.name} has no padding token, and none that could stand in.")
        if self.config.pad_token_id is None:
            self.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer

    def encode(self, data: datasets.Dataset, texts: tuple[str, ...], regression: bool = False) -> datasets.Dataset:
        """Tokens, `labels` from the column `label`, and `length` for batches of similar lengths."""
        num_types = getattr(self.config, "type_vocab_size", None)
        # RoBERTa has one type, so that the second sentence's would be out of range
        types = None if num_types is None else num_types >= 2

        def encode(rows: dict[str, list]) -> dict[str, list]:
            columns = (rows[name] for name in texts)
            encoded = dict(
                self.tokenizer(*columns, truncation=True, max_length=self.max_length, return_token_type_ids=types)
            )
            encoded["labels"] = [float(label) if regression else int(label) for label in rows["label"]]
            return encoded | {"length": [len(ids) for ids in encoded["input_ids"]]}

        # a tokenizer changes while it works, and with it the fingerprint that `datasets` would make of the function
        fingerprint = os.urandom(8).hex()
        encoded = data.map(
            encode,
            batched=True,
            remove_columns=data.column_names,
            keep_in_memory=True,
            new_fingerprint=fingerprint,
            desc="Tokenising",
        )
        ids = encoded.with_format("arrow")[:]["input_ids"].combine_chunks().flatten().to_numpy()
        self.check_tokens(ids.max(initial=0))
        return encoded

    def check_tokens(self, largest: int) -> None:
        """Refuse a tokenizer of another encoder, by the largest id that it gave."""
        if largest >= self.config.vocab_size:
            raise EvaluationError(
                f"The tokenizer of {self.name} gives token {largest}, but the encoder embeds "
                f"{self.config.vocab_size} tokens only: they do not belong together."
            )

    def tokens(self, texts: Sequence[str]) -> list[dict[str, list[int]]]:
        """What the encoder takes of each text: token ids and the like, cut off at the longest length."""
        rows = datasets.Dataset.from_dict({"text": list(texts), "label": [0] * len(texts)})
        encoded = self.encode(rows, ("text",)).remove_columns(["labels", "length"])
        return encoded.to_list()

    def warn_of_joined_pairs(self):
        separators = {self.tokenizer.sep_token_id, self.tokenizer.eos_token_id} - {None}
        if not separators & set(self.tokenizer("a", "b")["input_ids"]):
            logger.warning(
                "The tokenizer of %s joins the two sentences of a pair without a separator: tasks on pairs suffer. "
                "Give it a post-processor with a template for pairs.",
                self.name,
            )

    def load(self, labels: int | Sequence[str], seed: int, random_init: bool = False, **kwargs) -> PreTrainedModel:
        """The encoder with a new head, or its architecture with new weights throughout.

        The labels are their names, or how many there are; a single one is a regression.
        """
        config = type(self.config).from_dict(self.config.to_dict())
        names = None if isinstance(labels, int) else list(labels)
        config.num_labels = num_labels = labels if names is None else len(names)
        if names is not None:
            config.id2label = dict(enumerate(names))
            config.label2id = {name: index for index, name in config.id2label.items()}
        config.problem_type = "regression" if num_labels == 1 else "single_label_classification"
        config.dtype = torch.float32  # a checkpoint in bf16 would lose the small updates of fine-tuning
        set_seed(seed)
        with quiet():
            if random_init:
                return AutoModelForSequenceClassification.from_config(config, **kwargs)
            try:
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    self.source, config=config, dtype=torch.float32, output_loading_info=True, **kwargs
                )
            except (OSError, ValueError, RuntimeError) as error:
                raise EvaluationError(f"Cannot load the encoder {self.name}: {first_line(error)}") from error
        prefix = f"{model.base_model_prefix}."
        names = [name for name, _ in model.named_parameters() if name.startswith(prefix)]
        check_loaded(self.name, names, info["missing_keys"])
        return model

    def load_encoder(self) -> PreTrainedModel:
        """The encoder alone, without a head, with its weights."""
        try:
            with quiet():
                model, info = AutoModel.from_pretrained(
                    self.source, config=self.config, dtype=torch.float32, output_loading_info=True
                )
        except (OSError, ValueError, RuntimeError) as error:
            raise EvaluationError(f"Cannot load the encoder {self.name}: {first_line(error)}") from error
        check_loaded(self.name, [name for name, _ in model.named_parameters()], info["missing_keys"])
        return model

    def random_encoder(self, seed: int = 0) -> PreTrainedModel:
        """The architecture with new weights, without a head."""
        with torch.random.fork_rng(devices=[]), quiet():
            torch.manual_seed(seed)
            return AutoModel.from_config(self.config).float()

    def digest(self, random_init: bool) -> str:
        """Changes with the architecture, and with the weights unless they are to be drawn at random."""
        config = {key: value for key, value in self.config.to_dict().items() if key not in _INCIDENTAL}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
        if not random_init:
            # on the Hub, the commit stands for the weights
            digest.update(f"{getattr(self.config, '_commit_hash', None)}".encode())
            for each in digests_of_weights(self.source):
                digest.update(each)
        return digest.hexdigest()


_INCIDENTAL = ("_name_or_path", "name_or_path", "transformers_version", "dtype", "architectures")


def _num_positions(model: nn.Module) -> int:
    """How many tokens a model takes at most; a very large number where nothing limits it."""
    limit = getattr(model.config, "max_position_embeddings", None)
    # some models say -1 or 0 when positions are relative only
    limit = limit if isinstance(limit, int) and limit > 0 else 2**31
    for name, module in model.named_modules():
        # RoBERTa and its kin count positions from padding_idx + 1 on
        if (
            isinstance(module, nn.Embedding)
            and name.endswith("position_embeddings")
            and module.padding_idx is not None
        ):
            limit = min(limit, module.num_embeddings - module.padding_idx - 1)
    return limit
