"""The loss without logits. Liger's kernel runs on GPUs only: what stands in for it here shows that it gets the right
numbers and that gradients come back, not what it does with them."""

import sys
import types

import pytest
import tiny
import torch
import torch.nn.functional as F
from transformers import GPT2Config, LlamaConfig

from hfssl import ClmForPreTraining, ClmPreTrainingConfig
from hfssl.errors import UserError
from hfssl.methods import METHODS
from hfssl.modeling import token_loss
from hfssl.modeling.token_loss import use_liger


SMALL = {"vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2}
LLAMA = LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, **SMALL)
GPT2 = GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, **SMALL)
GPU = torch.device("cuda", 0)


@pytest.fixture
def calls(monkeypatch):
    found = []

    class LigerFusedLinearCrossEntropyLoss:
        def __init__(self, reduction):
            self.reduction = reduction

        def __call__(self, weight, inputs, labels, bias=None):
            found.append(inputs.shape)
            return F.cross_entropy(F.linear(inputs, weight, bias), labels, reduction=self.reduction)

    module = types.ModuleType("liger_kernel.transformers")
    module.LigerFusedLinearCrossEntropyLoss = LigerFusedLinearCrossEntropyLoss
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", module)
    monkeypatch.setattr(token_loss, "is_liger_kernel_available", lambda: True)
    return found


def clm(config):
    torch.manual_seed(0)
    return ClmForPreTraining(ClmPreTrainingConfig(encoder_config=config, dropout=0.0))


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("make", [lambda: clm(GPT2), lambda: clm(LLAMA), tiny.mlm], ids=["gpt2", "llama", "bert"])
def test_the_same_loss_and_gradients_without_logits(make, calls):
    model = make().train()
    tokens = torch.randint(5, 90, (2, 12))
    labels = tokens.masked_fill(torch.rand(2, 12) < 0.5, -100)
    batch = {"input_ids": tokens, "labels": labels}
    expected = loss_and_gradients(model, batch)
    assert not calls
    use_liger(model, GPU)
    found = loss_and_gradients(model, batch)
    assert len(calls) == 1 and calls[0][0] <= labels.ne(-100).sum() and calls[0][1] == 32
    torch.testing.assert_close(found[0], expected[0])
    for ours, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert model.eval()(**batch).logits.shape[-1] == model.encoder.get_output_embeddings().out_features
    assert len(calls) == 1


def test_a_model_that_caps_its_logits_is_refused(calls):
    from transformers import Gemma2Config

    sizes = {"num_key_value_heads": 1, "head_dim": 16, "hidden_size": 32, "intermediate_size": 64}
    config = Gemma2Config(**SMALL, **sizes, num_hidden_layers=1, num_attention_heads=2, final_logit_softcapping=30.0)
    with pytest.raises(UserError, match="does not know what Gemma2ForCausalLM does to its logits"):
        use_liger(clm(config), GPU)


def test_what_it_cannot_be_used_for_is_said(calls, monkeypatch):
    from tiny_vision import two_layers

    with pytest.raises(UserError, match="needs a GPU"):
        use_liger(clm(GPT2), torch.device("cpu"))
    with pytest.raises(UserError, match="is for losses over a vocabulary, and SimclrForPreTraining has none"):
        use_liger(METHODS["simclr"](METHODS["simclr"].config_class(encoder_config=two_layers())), GPU)
    monkeypatch.setattr(token_loss, "is_liger_kernel_available", lambda: False)
    with pytest.raises(UserError, match="pip install liger-kernel"):
        use_liger(clm(GPT2), GPU)
