"""Encoders and decoders of text to train from scratch, by name."""

from transformers import BertConfig, GPT2Config, LlamaConfig, ModernBertConfig


def _bert(layers: int, width: int) -> BertConfig:
    # 64 numbers a head, as in every BERT of "Well-Read Students Learn Better"
    # (https://huggingface.co/papers/1908.08962)
    return BertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64, intermediate_size=4 * width
    )


def _gpt2(layers: int, width: int) -> GPT2Config:
    return GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64)


def _llama(layers: int, width: int) -> LlamaConfig:
    # two thirds of four times the width, as in the paper (2302.13971): three matrices then cost what BERT's two do
    return LlamaConfig(
        num_hidden_layers=layers,
        hidden_size=width,
        num_attention_heads=width // 64,
        intermediate_size=-(-8 * width // 3 // 64) * 64,
        tie_word_embeddings=True,  # else a small model is mostly embeddings
    )


def _modernbert(layers: int, width: int) -> ModernBertConfig:
    # Global attention in every third layer, as in the paper (2412.13663). A classifier takes the mean, as in the
    # authors' checkpoints: masked tokens teach the CLS token nothing.
    return ModernBertConfig(
        num_hidden_layers=layers, hidden_size=width, num_attention_heads=width // 64,
        intermediate_size=width * 3 // 2, classifier_pooling="mean",
    )  # fmt: skip


TEXT_PRESETS = {
    "bert-tiny": lambda: _bert(2, 128),
    "bert-mini": lambda: _bert(4, 256),
    "bert-small": lambda: _bert(4, 512),
    "bert-base": lambda: _bert(12, 768),
    "modernbert-mini": lambda: _modernbert(4, 256),
    "modernbert-small": lambda: _modernbert(4, 512),
}


# Depth and width are those of the BERT of the same name.
CAUSAL_PRESETS = {
    "gpt2-tiny": lambda: _gpt2(2, 128),
    "gpt2-mini": lambda: _gpt2(4, 256),
    "gpt2-small": lambda: _gpt2(4, 512),
    "gpt2-base": lambda: _gpt2(12, 768),
    "llama-tiny": lambda: _llama(2, 128),
    "llama-mini": lambda: _llama(4, 256),
    "llama-small": lambda: _llama(4, 512),
    "llama-base": lambda: _llama(12, 768),
}
