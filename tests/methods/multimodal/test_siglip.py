"""SigLIP: its loss, its export, and the texts that its encoder wants."""

import math

import pytest
import tiny_pairs
import torch
from contract import Contract
from tiny_pairs import images_and_texts
from transformers import AutoModel, SiglipModel, VisionTextDualEncoderModel

from hfssl import SiglipForPreTraining, SiglipPreTrainingConfig
from hfssl.errors import UserError
from hfssl.methods.multimodal import siglip as siglip_module


def without_negatives(change):
    """Only what belongs together counts: one vector for everything is best."""
    change(siglip_module, "siglip_loss", lambda a, b, scale, bias, /, **_: (1 - (a * b).sum(-1)).mean() + 0 * scale)
    return {}


CONTRACT = Contract(
    encoder=tiny_pairs.siglip_towers,
    batch=images_and_texts,
    # where the gradient is not that of the bias alone
    settings={"logit_bias_init": -2.0},
    noise={"patch_dropout": 0.5},
    accumulation=False,
    why_not="Negatives are those of an accumulation step; `--contrastive_batch_size` makes one batch of all.",
    collapse=without_negatives,
    variants={"vit-bert": (tiny_pairs.vit_and_bert, {"projection_dim": 16})},
)


def siglip(encoders=None, seed=0, **config):
    torch.manual_seed(seed)
    return SiglipForPreTraining(SiglipPreTrainingConfig(**(encoders or tiny_pairs.siglip_towers()), **config))


def batch(rows=6):
    torch.manual_seed(1)
    return images_and_texts(rows)


def test_the_defaults_are_the_papers():
    config = SiglipPreTrainingConfig()
    assert (config.first_config.model_type, config.second_config.model_type) == (
        "siglip_vision_model",
        "siglip_text_model",
    )
    assert (config.logit_scale_init, config.logit_bias_init, config.projection_dim) == (10.0, -10.0, None)


def test_loss_and_embeddings_are_those_of_transformers_before_and_after_the_export(tmp_path):
    model = siglip().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))
    inputs = batch()
    out = model(**inputs)
    model.export_encoder(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path)
    assert type(stock) is SiglipModel
    # as its own processor has it, without a mask
    expected = stock(pixel_values=inputs["pixel_values"], input_ids=inputs["input_ids"], return_loss=True)
    torch.testing.assert_close(out.loss, expected.loss)
    torch.testing.assert_close(out.second_embeds, expected.text_embeds)
    again = SiglipForPreTraining.from_pair(str(tmp_path)).eval()
    torch.testing.assert_close(again(**inputs).loss, out.loss)
    torch.testing.assert_close(again.logit_bias, model.logit_bias)


def test_encoders_of_different_sizes_are_projected_to_the_smaller_one():
    other = siglip(tiny_pairs.vit_and_bert(hidden_size=64))
    assert other.first.projection.weight.shape == (32, 32) and other.second.projection.weight.shape == (32, 64)
    assert other.stock_class is VisionTextDualEncoderModel
    assert isinstance(siglip().first.projection, torch.nn.Identity)


def test_a_pair_without_a_class_that_has_a_bias_goes_on_with_its_own(tmp_path):
    model = siglip(tiny_pairs.vit_and_bert(), projection_dim=16)
    with torch.no_grad():
        model.logit_bias.fill_(-7.5)
    model.export_encoder(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is VisionTextDualEncoderModel
    again = SiglipForPreTraining.from_pair(str(tmp_path))
    assert again.logit_bias.item() == -7.5
    torch.testing.assert_close(again.eval()(**batch()).loss, model.eval()(**batch()).loss)
    (tmp_path / "extras.safetensors").unlink()  # as whoever has only the stock class wrote it
    assert SiglipForPreTraining.from_pair(str(tmp_path)).logit_bias.item() == -10.0


def test_a_stock_pair_is_not_changed_by_a_bound_that_it_did_not_have(tmp_path):
    model = siglip()
    stock = model.joint_model()
    stock.logit_scale.data.fill_(math.log(112.33))
    stock.save_pretrained(tmp_path)
    again = SiglipForPreTraining.from_pair(str(tmp_path))
    scale = again.logit_scale.clone()
    again.after_optimizer_step(0.0)
    assert torch.equal(again.logit_scale, scale) and scale.exp().item() == pytest.approx(112.33)
    with torch.no_grad():
        again.logit_scale.add_(1.0)
        model.logit_scale.add_(9.0)
    for each, most in ((again, 112.33), (model, 100.0)):
        each.after_optimizer_step(0.0)
        assert each.logit_scale.exp().item() == pytest.approx(most)


def test_texts_of_another_length_are_explained():
    inputs = batch()
    inputs["input_ids"] = inputs["input_ids"][:, :6]
    with pytest.raises(UserError, match="made for 8 tokens, got 6. Pad all texts to that length"):
        siglip()(**inputs)


def test_padding_is_seen_as_its_authors_have_it():
    model, inputs = siglip().eval(), batch()
    found = model(**inputs).second_embeds
    torch.testing.assert_close(
        model(**inputs | {"attention_mask": torch.ones_like(inputs["input_ids"])}).second_embeds, found
    )
