"""MAE: the loss and the gradients of transformers' own, and what comes out."""

import pytest
import torch
from contract import Contract
from tiny_vision import ENCODERS, build, images_with_noise, two_layers, vit
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
)
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from hfssl import MaeForPreTraining, MaePreTrainingConfig
from hfssl.modeling.vision import encode_visible, patchify, sine_positions, unpatchify


DECODER = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 2}
TAKES = ["vit", "vit_msn", "deit", "ijepa", "dinov2", "dinov2_with_registers"]


def at_a_rate_too_high(change):
    """One answer to everything."""
    return {"learning_rate": 0.1, "warmup_steps": 0}


CONTRACT = Contract(
    encoder=two_layers,
    batch=images_with_noise,
    settings={"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2},
    collapse=at_a_rate_too_high,
)


def mae(encoder=None, seed=0, **config):
    torch.manual_seed(seed)
    return MaeForPreTraining(MaePreTrainingConfig(encoder_config=encoder or vit(), **{**DECODER, **config}))


def theirs(model):
    """`ViTMAEForPreTraining` with the weights of one of ours."""
    config = model.config
    fields = {**config.encoder_config.to_dict(), **DECODER, "decoder_intermediate_size": 64}
    for name in ("model_type", "architectures", "transformers_version"):
        fields.pop(name, None)
    reference = ViTMAEForPreTraining(
        ViTMAEConfig(**fields, mask_ratio=config.mask_ratio, norm_pix_loss=config.norm_pix_loss)
    )
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("decoder.layers.", "decoder.decoder_layers.")
        name = name.replace("decoder.layernorm.", "decoder.decoder_norm.")
        if name.startswith(("decoder_embed", "decoder_pred", "decoder_pos_embed", "mask_token")):
            name = f"decoder.{name}"
        state[name.replace("encoder.", "vit.", 1) if name.startswith("encoder.") else name] = tensor
    reference.load_state_dict(state)
    return reference


def renamed(name):
    name = name.replace("vit.", "encoder.", 1) if name.startswith("vit.") else name
    name = name.replace("decoder.decoder_layers.", "decoder.layers.").replace(
        "decoder.decoder_norm.", "decoder.layernorm."
    )
    return name if name.startswith(("decoder.layers", "decoder.layernorm")) else name.removeprefix("decoder.")


@pytest.mark.parametrize("norm_pix_loss", [True, False])
@pytest.mark.parametrize("mask_ratio", [0.75, 0.4])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_loss_and_gradients_are_those_of_transformers(norm_pix_loss, mask_ratio, attention):
    model = mae(norm_pix_loss=norm_pix_loss, mask_ratio=mask_ratio).train()
    for part in (model.encoder, model.decoder):
        part.set_attn_implementation(attention)
    reference, batch = theirs(model).train(), images_with_noise()
    ours, expected = model(**batch), reference(**batch)
    torch.testing.assert_close(ours.loss, expected.loss)
    assert torch.equal(ours.bool_masked_pos, expected.mask.bool())
    ours.loss.backward()
    expected.loss.backward()
    gradients = dict(model.named_parameters())
    compared = 0
    for name, parameter in reference.named_parameters():
        mine = gradients[renamed(name)]
        assert mine.requires_grad == parameter.requires_grad, name
        if parameter.requires_grad:
            torch.testing.assert_close(mine.grad, parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
            compared += 1
    assert compared == sum(p.requires_grad for p in model.parameters()) > 60


def test_predictions_are_those_of_transformers():
    model, batch = mae().eval(), images_with_noise()
    torch.testing.assert_close(model(**batch).logits, theirs(model).eval()(**batch).logits)
    assert model.train()(**batch).logits is None


def test_positions_are_those_of_the_reference():
    model = mae()
    for positions, size in ((model.encoder.embeddings.position_embeddings, 32), (model.decoder_pos_embed, 16)):
        expected = build_2d_sinusoidal_position_embedding(4, 4, size, cls_token=True)
        half = size // 2
        torch.testing.assert_close(positions[0], torch.cat([expected[:, half:], expected[:, :half]], dim=1))
        assert not positions.requires_grad
    assert sine_positions(4, 16, num_own=2)[0, :2].eq(0).all()


def test_the_weights_start_as_in_the_reference_code():
    model = mae(ViTConfig(hidden_size=256, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4))
    layer = model.encoder.layers[0]
    bound = (6 / (256 + 3 * 256)) ** 0.5  # xavier on query, key and value as one matrix
    assert layer.attention.q_proj.weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
    assert layer.attention.o_proj.weight.abs().max().item() == pytest.approx((6 / 512) ** 0.5, rel=1e-2)
    patches = model.encoder.embeddings.patch_embeddings.projection.weight
    assert patches.abs().max().item() == pytest.approx((6 / (256 + 48)) ** 0.5, rel=1e-2)
    assert layer.attention.q_proj.bias.eq(0).all() and model.mask_token.std() > 0.01


def test_the_encoder_sees_visible_patches_only():
    model, batch = mae().eval(), images_with_noise(2)
    seen = []
    model.encoder.layers[0].register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    out = model(**batch)
    assert seen == [(2, 1 + 4, 32)]
    assert out.bool_masked_pos.sum(1).tolist() == [12, 12]
    assert torch.equal(out.bool_masked_pos, batch["noise"] > batch["noise"].sort(dim=1).values[:, 3:4])
    # what is hidden changes the target, never the prediction
    hidden = unpatchify(out.bool_masked_pos[..., None].expand(-1, -1, 16), 4)
    changed = torch.where(hidden, torch.randn(2, 3, 16, 16), batch["pixel_values"])
    torch.testing.assert_close(model(changed, batch["noise"]).logits, out.logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", TAKES)
def test_vit_like_encoders_and_every_parameter_learns(name):
    model = mae(ENCODERS[name]()).train()
    out = model(**images_with_noise())
    out.loss.backward()
    assert [key for key, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    with torch.no_grad():  # all patches, in their order: what the encoder says of the whole image
        images = torch.randn(2, 3, 16, 16)
        model.eval()
        everything = encode_visible(model.encoder, images, torch.arange(16).expand(2, -1))
        torch.testing.assert_close(everything, model.encoder(images).last_hidden_state)


@pytest.mark.parametrize("name", [name for name in ENCODERS if name not in TAKES])
def test_other_encoders_are_refused_by_name(name):
    with pytest.raises(Exception, match=f"MAE runs its encoder on the visible patches alone, which a {name} cannot"):
        mae(ENCODERS[name]())


def test_it_comes_out_as_a_plain_vit(tmp_path):
    model = mae().eval()
    model.export_encoder(tmp_path)
    stock = AutoModel.from_pretrained(tmp_path).eval()
    assert type(stock).__name__ == "ViTModel"
    images = torch.randn(2, 3, 16, 16)
    reference = theirs(model).eval()
    reference.config.mask_ratio = 0.0
    with torch.no_grad():
        features = stock(images).last_hidden_state
        torch.testing.assert_close(features, model.encoder(images).last_hidden_state, rtol=0, atol=0)
        torch.testing.assert_close(
            features, reference.vit(images, noise=torch.arange(16.0).expand(2, -1)).last_hidden_state
        )
    assert AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3)(images).logits.shape == (2, 3)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, batch = mae().eval(), images_with_noise()
    with torch.no_grad():
        model.encoder.embeddings.position_embeddings.add_(0.1)  # as those of a checkpoint
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    torch.testing.assert_close(again(**batch).loss, model(**batch).loss, rtol=0, atol=0)
    again.train()
    assert not again.encoder.embeddings.position_embeddings.requires_grad and not again.decoder_pos_embed.requires_grad


def test_a_decoder_that_a_checkpoint_lacks_starts_like_a_fresh_one(tmp_path):
    model = mae()
    state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("encoder.")}
    model.save_pretrained(tmp_path, state_dict=state)
    again = MaeForPreTraining.from_pretrained(tmp_path)
    torch.testing.assert_close(again.decoder_pos_embed, model.decoder_pos_embed)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(again.encoder.state_dict()[name], tensor), name
    assert again.decoder_embed.weight.abs().max().item() == pytest.approx((6 / 48) ** 0.5, rel=0.1)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_a_checkpoint_is_continued_at_another_size(name, tmp_path):
    build(name, seed=3).save_pretrained(tmp_path)
    same = MaeForPreTraining.from_encoder(str(tmp_path), **DECODER)
    assert torch.equal(same.encoder.embeddings.position_embeddings, build(name, seed=3).embeddings.position_embeddings)
    larger = MaeForPreTraining.from_encoder(str(tmp_path), image_size=24, **DECODER)
    assert larger.config.num_patches == 36 and larger.config.encoder_config.image_size == 24
    out = larger(torch.randn(2, 3, 24, 24))
    assert out.bool_masked_pos.shape == (2, 36) and out.loss.isfinite()


def test_the_checkpoint_of_a_vit_mae_is_continued(tmp_path):
    reference = theirs(mae(seed=2))
    reference.save_pretrained(tmp_path)
    model = MaeForPreTraining.from_encoder(str(tmp_path), **DECODER)
    assert model.config.encoder_config.model_type == "vit"
    for name, tensor in reference.vit.state_dict().items():
        assert torch.equal(model.encoder.state_dict()[name], tensor), name


def test_patches_go_round():
    images = torch.randn(2, 3, 8, 8)
    patches = patchify(images, 4)
    assert patches.shape == (2, 4, 48)
    assert torch.equal(patches[0, 1].view(4, 4, 3), images[0, :, :4, 4:].permute(1, 2, 0))
    assert torch.equal(unpatchify(patches, 4), images)


def test_a_reconstruction_keeps_what_was_visible():
    model, batch = mae().train(), images_with_noise(3)
    images, hidden = model.reconstruct(**batch)
    assert model.training and images.shape == (3, 3, 16, 16) and hidden.shape == (3, 1, 16, 16)
    assert hidden.float().mean() == 0.75
    same = torch.isclose(images, batch["pixel_values"])
    assert same[~hidden.expand_as(same)].all() and not same[hidden.expand_as(same)].any()


def test_without_noise_it_draws_its_own():
    model, images = mae().eval(), torch.randn(2, 3, 16, 16)
    first, second = model(images), model(images)
    assert not torch.equal(first.bool_masked_pos, second.bool_masked_pos)


def test_images_of_another_size_are_explained():
    with pytest.raises(
        ValueError, match=r"built for images of 16 x 16 pixels: `pixel_values` has shape \(2, 3, 24, 24\)"
    ):
        mae()(torch.randn(2, 3, 24, 24))


@pytest.mark.parametrize(
    "config, words",
    [
        ({"mask_ratio": 0.0}, "mask_ratio.*between 0 and 1, got 0"),
        ({"mask_ratio": 0.99}, "leaves 0 of 16 patches visible"),
        ({"decoder_hidden_size": 18}, "multiple of 4 and of `decoder_num_attention_heads`, got 18 and 2"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        mae(**config)


def test_it_learns_to_fill_in():
    """Images of one colour each: a few steps are enough to see what the hidden patches are."""
    model = mae(norm_pix_loss=False, mask_ratio=0.5).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(60):
        images = torch.randn(32, 3, 1, 1).expand(-1, -1, 16, 16).contiguous()
        loss = model(images).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
