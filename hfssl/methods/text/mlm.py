"""Masked language modelling: predict hidden tokens from the text around them.

Papers: BERT, Devlin et al., 2018 (https://huggingface.co/papers/1810.04805); RoBERTa, Liu et al., 2019
(https://huggingface.co/papers/1907.11692), whose dynamic masking, without next-sentence prediction, this is by
default. With `next_sentence_objective` it is BERT's own sum of two losses, on the pairs of
`hfssl/data/text/sentence_pairs.py`. Reference code: https://github.com/google-research/bert; `BertForMaskedLM` and
`BertForPreTraining` in transformers give the same losses.

Departures from the papers: 15 % of the tokens are chosen on average, not exactly in each sequence; documents are
packed to full rows and attention never crosses documents (RoBERTa joins documents with a separator); the loss is
normalised by the number of masked tokens of the whole batch, over processes and accumulation steps (that of the next
sentence by the number of pairs).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.auto.modeling_auto import MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES
from transformers.utils import ModelOutput

from ...modeling.base import SSLPreTrainedModel, with_changes, with_dropout
from ...modeling.method import BenchmarkSettings, LearningRates, LossContext, Method, token_chance
from ...modeling.packing import packed_inputs
from ...modeling.positions import hidden_states_at
from ...modeling.token_loss import TokenLossMixin


def _chance(config: PreTrainedConfig, context: LossContext) -> dict[str, float]:
    levels = token_chance(config, context)
    if config.next_sentence_objective:
        pairs = math.log(2)
        levels = {"loss_nsp": pairs} | ({"loss": levels["loss"] + pairs, "loss_mlm": levels["loss"]} if levels else {})
    return levels


METHOD = Method(
    title="MLM",
    modality="text",
    learning_rates=LearningRates(narrow=1e-3, wide=5e-4, checkpoint=5e-5, per_256_samples=False),
    chance=_chance,
    benchmark=BenchmarkSettings(against=("transformers",)),
)


@strict
class MlmPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`MlmForPreTraining`]. The defaults are BERT's (Section 3.1 and Appendix A.1).

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Encoder to pre-train: any model that [`~transformers.AutoModelForMaskedLM`] knows. BERT base when left out.
        mask_ratio (`float`, *optional*, defaults to `0.15`):
            Share of the tokens that are predicted, in (0, 1). 0.3 is common in newer recipes (MosaicBERT, ModernBERT).
        mask_token_ratio (`float`, *optional*, defaults to `0.8`):
            Share of the predicted tokens that the encoder sees as the mask token.
        random_token_ratio (`float`, *optional*, defaults to `0.1`):
            Share of the predicted tokens that the encoder sees as a random token. The rest it sees unchanged.
        whole_word_masking (`bool`, *optional*, defaults to `False`):
            Hide all tokens of a word or none. In scripts without spaces a segmenter finds the words where one is
            installed (`pip install "hfssl[scripts]"`), else a letter with its marks counts as one.
        dropout (`float`, *optional*):
            Dropout during pre-training, everywhere in the encoder, in [0, 1). The exported encoder keeps its own
            configuration. Left out, the encoder's own values are used; `recipes/mlm.py` trains from scratch with 0.
        next_sentence_objective (`bool`, *optional*, defaults to `False`):
            Also tell whether the second half of a row follows the first in its document or comes from another one.
            Rows are pairs of segments, padded instead of packed. For BERT, ERNIE, FNet, Megatron-BERT and MobileBERT.
    """

    model_type = "hfssl_mlm"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="bert")}

    encoder_config: dict | PreTrainedConfig | None = None
    mask_ratio: float = 0.15
    mask_token_ratio: float = 0.8
    random_token_ratio: float = 0.1
    whole_word_masking: bool = False
    dropout: float | None = None
    next_sentence_objective: bool = False

    def validate_masking(self):
        if not 0.0 < self.mask_ratio < 1.0:
            raise ValueError(
                f"`mask_ratio` is the share of tokens to predict, between 0 and 1, got {self.mask_ratio}."
            )
        shares = (self.mask_token_ratio, self.random_token_ratio)
        if min(shares) < 0.0 or sum(shares) > 1.0:
            raise ValueError(
                "`mask_token_ratio` and `random_token_ratio` are shares of the predicted tokens and add up to 1 at "
                f"most, got {shares[0]} and {shares[1]}."
            )

    def validate_dropout(self):
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` is a probability in [0, 1), got {self.dropout}.")

    def validate_next_sentence(self):
        encoder = self.encoder_config
        if not self.next_sentence_objective:
            return
        if encoder.model_type not in MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES:
            known = ", ".join(MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES)
            raise ValueError(
                "`next_sentence_objective` needs an architecture with a next-sentence head: transformers has one for "
                f"{known}, but the encoder is {encoder.model_type}. Choose one of them, or leave the objective out."
            )
        if encoder.type_vocab_size < 2:
            raise ValueError(
                "`next_sentence_objective` tells two segments apart by their token types, but the encoder has "
                f"`type_vocab_size={encoder.type_vocab_size}`. Give it 2 at least."
            )

    @property
    def masking(self) -> dict[str, Any]:
        """The arguments of [`~hfssl.data.text.rows.TextRows`] that this method sets."""
        names = ("mask_ratio", "mask_token_ratio", "random_token_ratio", "whole_word_masking")
        return {name: getattr(self, name) for name in names}


@dataclass
class MlmOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean cross-entropy (nats) over the masked tokens. Their entropy is chance, 0 is perfect. With labels for
            the next sentence, plus that of the pairs (chance is log 2).
        loss_terms (`dict[str, torch.FloatTensor]` of shape `()`):
            With labels for the next sentence: both summands, `mlm` and `nsp`, without gradient.
        logits (`torch.FloatTensor` of shape `(num_masked, vocab_size)`):
            Predictions at the masked positions only, in the order of the flattened batch; without labels
            `(batch_size, sequence_length, vocab_size)`. Left out in training mode.
        next_sentence_logits (`torch.FloatTensor` of shape `(batch_size, 2)`):
            With `next_sentence_objective`: 0 = the second segment follows the first, 1 = it comes from elsewhere.
    """

    loss: torch.FloatTensor | None = None
    loss_terms: dict[str, torch.FloatTensor] | None = None
    logits: torch.FloatTensor | None = None
    next_sentence_logits: torch.FloatTensor | None = None


class MlmForPreTraining(TokenLossMixin, SSLPreTrainedModel):
    config_class = MlmPreTrainingConfig
    method = METHOD
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    paper = {
        "title": "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding",
        "id": "1810.04805",
        "citation": "@inproceedings{devlin2019bert,\n  title = {{BERT}: Pre-training of Deep Bidirectional "
        "Transformers for Language Understanding},\n  author = {Devlin, Jacob and Chang, Ming-Wei and Lee, Kenton and "
        "Toutanova, Kristina},\n  booktitle = {NAACL-HLT},\n  year = {2019}\n}",
    }

    def __init__(self, config: MlmPreTrainingConfig):
        super().__init__(config)
        auto_class = stock_class(config.next_sentence_objective)
        self.encoder = auto_class.from_config(with_dropout(config.encoder_config, config.dropout))
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # where Trainer and tokenizers look for them
            setattr(config, name, getattr(config.encoder_config, name, None))
        if config.next_sentence_objective:
            self.loss_units = {"mlm": "nats", "nsp": "nats"}
        self.post_init()

    @classmethod
    def from_encoder(
        cls, name_or_path: str, encoder_changes: Mapping[str, Any] | None = None, **config: Any
    ) -> "MlmForPreTraining":
        """Continue from a stock checkpoint: `config` are the fields of the method's config beside `encoder_config`,
        and of that `encoder_changes` are those that are to be others, see [`~hfssl.modeling.base.with_changes`].

        A head that the checkpoint lacks, such as that of the next sentence, starts from random weights.
        """
        auto_class = stock_class(config.get("next_sentence_objective", False))
        stock = auto_class.from_pretrained(name_or_path, dtype=torch.float32)
        encoder_config = with_changes(stock.config, encoder_changes, name_or_path, auto_class.from_config)
        model = cls(MlmPreTrainingConfig(encoder_config=encoder_config, **config))
        model.encoder.load_state_dict(stock.state_dict())
        return model

    def loss_items(self, batch: dict[str, Any]) -> torch.Tensor | dict[str, torch.Tensor] | None:
        if "labels" not in batch:
            return None
        if "masked_positions" in batch:
            num_masked = torch.tensor(batch["masked_positions"].numel())
        else:
            num_masked = batch["labels"].ne(-100).sum()
        if "next_sentence_label" in batch:
            return {"mlm": num_masked, "nsp": torch.tensor(len(batch["next_sentence_label"]))}
        return num_masked

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        masked_positions: torch.LongTensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        next_sentence_label: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | dict[str, torch.Tensor] | None = None,
        return_loss: bool = True,
    ) -> MlmOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Tokens, corrupted where they are to be predicted.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 = token, 0 = padding. For rows of one document each.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                The original token at masked positions, -100 elsewhere.
            sequence_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                For packed rows: 1, 2, 3 … = the document of each token, 0 = padding. Documents do not see each
                other.
            masked_positions (`torch.LongTensor` of shape `(num_masked,)`, *optional*):
                Indices of the masked positions in the flattened batch. Found from `labels` when left out, which
                makes a GPU wait for the CPU.
            token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                0 = first segment of a pair, 1 = second.
            next_sentence_label (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 = the second segment follows the first, 1 = it comes from another document. In training with
                `next_sentence_objective` it must be there.
            num_items_in_batch (`torch.Tensor`, `int` or `dict`, *optional*):
                Masked tokens in the whole batch (all processes, all accumulation steps). The loss is divided by it
                instead of by the number of masked tokens here. With pairs `{"mlm": masked tokens, "nsp": pairs}`;
                where only the masked tokens are counted (plain `Trainer`), the pairs here weigh by their share.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        inputs = {"input_ids": input_ids}
        if sequence_ids is not None:
            inputs |= packed_inputs(self.encoder, sequence_ids)
        elif attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        if token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if labels is None:
            return MlmOutput(**logits_of(self.encoder(**inputs)))
        has_pairs, trains_pairs = next_sentence_label is not None, self.config.next_sentence_objective
        if trains_pairs and self.training and not has_pairs or has_pairs and not trains_pairs:
            raise ValueError(
                f"With `next_sentence_objective={trains_pairs}` rows are {'pairs' if trains_pairs else 'no pairs'}, "
                f"got a batch {'with' if has_pairs else 'without'} `next_sentence_label`. "
                "`SentencePairRows` (hfssl.data.text.sentence_pairs) makes pairs, `TextRows` other rows."
            )
        labels = labels.flatten()
        if masked_positions is None:
            masked_positions = labels.ne(-100).nonzero().squeeze(1)
        with self.output_layer() as layer, hidden_states_at(self.encoder, masked_positions):
            out = logits_of(self.encoder(**inputs))
        logits = out.pop("logits").squeeze(0)  # (num_masked, vocab_size)
        num_masked = max(masked_positions.numel(), 1)
        items = num_items_in_batch if isinstance(num_items_in_batch, dict) else {"mlm": num_items_in_batch}
        num_tokens = num_masked if items["mlm"] is None else items["mlm"]
        losses = {"loss": self.token_loss(logits, layer, labels.index_select(0, masked_positions)) / num_tokens}
        if next_sentence_label is not None:
            num_pairs = items.get("nsp", len(next_sentence_label) * num_tokens / num_masked)
            next_sentence_logits = out["next_sentence_logits"].float()
            pairs = F.cross_entropy(next_sentence_logits, next_sentence_label, reduction="sum") / num_pairs
            losses = self.sum_terms({"mlm": losses["loss"], "nsp": pairs})
        # Accelerate turns outputs to float32: a copy of the largest tensor there is, which training has no use for
        return MlmOutput(**losses, logits=None if self.training else logits, **out)


def stock_class(next_sentence_objective: bool) -> type:
    """The Auto class of the module under `encoder`: `BertForMaskedLM` or `BertForPreTraining`, for BERT."""
    return AutoModelForPreTraining if next_sentence_objective else AutoModelForMaskedLM


def logits_of(output: ModelOutput) -> dict[str, torch.Tensor]:
    """What a stock `...ForMaskedLM` or a `...ForPreTraining` with a next-sentence head predicts, under one name."""
    if "seq_relationship_logits" not in output:
        return {"logits": output.logits}
    return {"logits": output.prediction_logits, "next_sentence_logits": output.seq_relationship_logits}
