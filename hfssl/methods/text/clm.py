"""Causal language modelling: predict each token of a document from the tokens before it.

Papers: Language Models are Unsupervised Multitask Learners (GPT-2), Radford et al., 2019, and Improving Language
Understanding by Generative Pre-Training (GPT), Radford et al., 2018 (equation 1); Llama, Touvron et al., 2023
(https://huggingface.co/papers/2302.13971). Reference code: https://github.com/openai/gpt-2 (the model),
https://github.com/karpathy/nanoGPT (the training); `GPT2LMHeadModel` and `LlamaForCausalLM` in transformers give the
same loss for a single document.

What is predicted: every token of a document that has a token before it, the token that ends the document included. The
token that begins a document (`<|endoftext|>`, `<s>`) is given; with a tokenizer that adds none, the first token of the
text is given instead. Nothing is predicted across the border of two documents, and no padding.

Departures from the papers: documents are packed to full rows and attention never crosses documents (GPT-2 and nanoGPT
join them to one stream and cut it anywhere); a document longer than a row is cut, and a piece begins with the last
token of the piece before it, so that each token is predicted once; the loss is normalised by the number of predicted
tokens of the whole batch, over processes and accumulation steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

from ...modeling.base import SSLPreTrainedModel, with_changes, with_dropout
from ...modeling.method import LearningRates, Method, token_chance
from ...modeling.packing import packed_inputs
from ...modeling.positions import head_inputs_at
from ...modeling.token_loss import TokenLossMixin


METHOD = Method(
    title="CLM",
    modality="text",
    causal=True,
    learning_rates=LearningRates(narrow=1e-3, wide=5e-4, checkpoint=5e-5, per_256_samples=False),
    chance=token_chance,
)


@strict
class ClmPreTrainingConfig(PreTrainedConfig):
    r"""
    Configuration of [`ClmForPreTraining`].

    Args:
        encoder_config (`dict` or [`~transformers.PreTrainedConfig`], *optional*):
            Decoder to pre-train: any model that [`~transformers.AutoModelForCausalLM`] knows. GPT-2 (124 M) when left
            out.
        dropout (`float`, *optional*):
            Dropout during pre-training, everywhere in the decoder, in [0, 1). The exported model keeps its own
            configuration. Left out, the decoder's own values are used; `recipes/clm.py` trains from scratch with 0.
    """

    model_type = "hfssl_clm"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="gpt2")}

    encoder_config: dict | PreTrainedConfig | None = None
    dropout: float | None = None

    def validate_dropout(self):
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` is a probability in [0, 1), got {self.dropout}.")


@dataclass
class ClmOutput(ModelOutput):
    r"""
    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Mean cross-entropy (nats) over the predicted tokens. The entropy of the tokens is chance, 0 is perfect.
        logits (`torch.FloatTensor` of shape `(num_targets, vocab_size)`):
            Predictions of the targets, in the order of the flattened batch; without labels
            `(batch_size, sequence_length, vocab_size)`. Left out in training mode.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None


class ClmForPreTraining(TokenLossMixin, SSLPreTrainedModel):
    config_class = ClmPreTrainingConfig
    method = METHOD
    base_model_prefix = "encoder"
    main_input_name = "input_ids"
    accepts_loss_kwargs = True
    paper = {
        "title": "Language Models are Unsupervised Multitask Learners",
        "url": "https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
        "citation": "@techreport{radford2019language,\n"
        "  title = {Language Models are Unsupervised Multitask Learners},\n  author = {Radford, Alec and Wu, Jeffrey "
        "and Child, Rewon and Luan, David and Amodei, Dario and Sutskever, Ilya},\n"
        "  institution = {OpenAI},\n  year = {2019}\n}",
    }

    def __init__(self, config: ClmPreTrainingConfig):
        super().__init__(config)
        # by this a plain `Trainer` knows that the first label of a row is not a target, and counts the others
        self.loss_type = "ForCausalLM"
        self.encoder = AutoModelForCausalLM.from_config(with_dropout(config.encoder_config, config.dropout))
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):  # where Trainer and tokenizers look for them
            setattr(config, name, getattr(config.encoder_config, name, None))
        self.post_init()

    @classmethod
    def from_encoder(
        cls, name_or_path: str, encoder_changes: Mapping[str, Any] | None = None, **config: Any
    ) -> "ClmForPreTraining":
        """Continue from a stock checkpoint; `config`: fields of [`ClmPreTrainingConfig`] beside `encoder_config`, and
        of that `encoder_changes` are those that are to be others, see [`~hfssl.modeling.base.with_changes`]."""
        stock = AutoModelForCausalLM.from_pretrained(name_or_path, dtype=torch.float32)
        build = AutoModelForCausalLM.from_config
        encoder_config = with_changes(stock.config, encoder_changes, name_or_path, build)
        model = cls(ClmPreTrainingConfig(encoder_config=encoder_config, **config))
        model.encoder.load_state_dict(stock.state_dict())
        model.encoder.generation_config = stock.generation_config
        return model

    def loss_items(self, batch: dict[str, Any]) -> torch.Tensor | None:
        if "target_positions" in batch:
            return torch.tensor(batch["target_positions"].numel())
        if "labels" not in batch:
            return None
        return is_target(batch["labels"], batch.get("sequence_ids"), batch.get("attention_mask")).sum()

    def forward(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        sequence_ids: torch.LongTensor | None = None,
        target_positions: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        return_loss: bool = True,
    ) -> ClmOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Tokens.
            attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                1 = token, 0 = padding. For rows of one document each.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                As in transformers: the tokens themselves (the shift is made here), -100 where a token is not to be
                predicted. The first token of a document and padding are never predicted; a plain `Trainer`, which
                counts the labels, needs -100 there too, but for the first token of a row.
            sequence_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                For packed rows: 1, 2, 3 … = the document of each token, 0 = padding. Documents do not see each other.
            target_positions (`torch.LongTensor` of shape `(num_targets,)`, *optional*):
                Indices of the tokens to predict in the flattened batch; each is predicted from the position before it.
                Found from `labels` when left out, which makes a GPU wait for the CPU.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Predicted tokens in the whole batch (all processes, all accumulation steps). The loss is divided by it
                instead of by the number of predicted tokens here.
            return_loss (`bool`, *optional*, defaults to `True`):
                Always `True`; `Trainer` looks for this name before it reports an `eval_loss`.
        """
        inputs = {"input_ids": input_ids, "use_cache": False}  # a cache would keep every key and value of the batch
        if sequence_ids is not None:
            inputs |= packed_inputs(self.encoder, sequence_ids, causal=True)
        elif attention_mask is not None:
            inputs["attention_mask"] = attention_mask
        if labels is None:
            return ClmOutput(logits=self.encoder(**inputs).logits)
        if target_positions is None:
            target_positions = is_target(labels, sequence_ids, attention_mask).flatten().nonzero().squeeze(1)
        with self.output_layer() as layer, head_inputs_at(self.encoder, target_positions - 1):
            logits = self.encoder(**inputs).logits.squeeze(0)  # (num_targets, vocab_size)
        loss = self.token_loss(logits, layer, labels.flatten().index_select(0, target_positions))
        if num_items_in_batch is None:
            num_items_in_batch = max(target_positions.numel(), 1)
        # Accelerate turns outputs to float32: a copy of the largest tensor there is, which training has no use for
        return ClmOutput(loss=loss / num_items_in_batch, logits=None if self.training else logits)


def is_target(
    labels: torch.LongTensor, sequence_ids: torch.LongTensor | None = None, attention_mask: torch.Tensor | None = None
) -> torch.BoolTensor:
    """Which tokens are predicted: those with a label and, in the position before them, a token of the same document.

    All arguments and the result have the shape `(batch_size, sequence_length)`.
    """
    target = labels != -100
    if sequence_ids is not None:
        target[:, 1:] &= (sequence_ids[:, 1:] == sequence_ids[:, :-1]) & (sequence_ids[:, 1:] > 0)
    elif attention_mask is not None:
        target[:, 1:] &= (attention_mask[:, 1:] > 0) & (attention_mask[:, :-1] > 0)
    target[:, 0] = False
    return target
