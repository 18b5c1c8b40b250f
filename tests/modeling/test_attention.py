"""`lean` attention: what `eager` gives, with less kept for the backward pass; and what a method's encoder casts."""

import pytest
import torch
from tiny_vision import ENCODERS, build, images_with_noise
from transformers import AutoConfig
from transformers.models.vit.modeling_vit import eager_attention_forward

from hfssl import MaeForPreTraining, MaePreTrainingConfig
from hfssl.modeling.attention import LEAN, lean_attention, takes_lean_attention
from hfssl.modeling.vision import select


def attend(function, dtype, mask=None):
    torch.manual_seed(0)
    inputs = [torch.randn(3, 10, 2, 8).to(dtype).requires_grad_() for _ in range(3)]
    kept = []

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result, probabilities = function(
            torch.nn.Module().train(), *(x.transpose(1, 2) for x in inputs), mask, scaling=0.3, dropout=0.0
        )
    (result * torch.arange(8)).sum().backward()
    return result, probabilities, [x.grad for x in inputs], sum(x.nbytes for x in kept if x.shape[-1] == 10)


@pytest.mark.parametrize("masked", [False, True])
def test_the_same_as_eager(masked):
    mask = torch.zeros(3, 1, 10, 10).index_fill(3, torch.tensor([7, 8, 9]), float("-inf")) if masked else None
    for ours, theirs in zip(
        attend(lean_attention, torch.float32, mask), attend(eager_attention_forward, torch.float32, mask), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_half_precision_gives_the_same_result_and_keeps_less():
    result, probabilities, gradients, kept = attend(lean_attention, torch.bfloat16)
    expected, theirs, expected_gradients, kept_by_eager = attend(eager_attention_forward, torch.bfloat16)
    assert torch.equal(result, expected) and torch.equal(probabilities, theirs)
    for ours, exact in zip(gradients, expected_gradients, strict=True):
        assert (ours - exact).abs().max() < 2e-2 * exact.abs().max()
    assert kept < kept_by_eager


LEAN_MODELS = ("vit", "vit_msn", "deit", "ijepa", "dinov2", "dinov2_with_registers", "dinov3_vit")


@pytest.mark.parametrize("name", ENCODERS)
def test_who_takes_it_is_found_by_trying(name):
    assert takes_lean_attention(ENCODERS[name]()) == (name in LEAN_MODELS)


@pytest.mark.parametrize("name", LEAN_MODELS)
def test_stock_encoders_take_it_and_do_not_export_it(name, tmp_path):
    encoder, images = build(name).eval(), torch.randn(2, 3, 16, 16)
    encoder.set_attn_implementation("eager")
    expected = encoder(images).last_hidden_state
    encoder.set_attn_implementation(LEAN)
    torch.testing.assert_close(encoder(images).last_hidden_state, expected)
    encoder.save_pretrained(tmp_path)
    assert LEAN not in (tmp_path / "config.json").read_text()
    assert AutoConfig.from_pretrained(tmp_path)._attn_implementation != LEAN


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_query_key_and_value_share_one_cast(name):
    model = MaeForPreTraining(
        MaePreTrainingConfig(
            encoder_config=ENCODERS[name](), decoder_hidden_size=16, decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
        )
    )  # fmt: skip
    seen = []
    for module in model.modules():
        if hasattr(module, "q_proj"):
            module.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    batch = images_with_noise()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(**batch).loss
    assert set(seen) == {torch.bfloat16} and len(seen) == 5
    assert loss.dtype == torch.float32
    seen.clear()
    exact = model(**batch).loss
    assert set(seen) == {torch.float32}
    assert loss.item() == pytest.approx(exact.item(), rel=2e-2)


def test_selected_tokens_and_their_gradient():
    tokens = torch.randn(2, 2 + 4, 3, requires_grad=True)
    indices = torch.tensor([[3, 0], [1, 2]])
    chosen = select(tokens, indices, num_own=2)
    assert torch.equal(chosen, torch.stack([tokens[0, [0, 1, 5, 2]], tokens[1, [0, 1, 3, 4]]]))
    assert torch.equal(select(tokens, indices), torch.stack([tokens[0, [3, 0]], tokens[1, [1, 2]]]))
    chosen.sum().backward()
    assert tokens.grad[..., 0].tolist() == [[1, 1, 1, 0, 0, 1], [1, 1, 0, 1, 1, 0]]
