"""Encoders of timm, by the stock wrapper of transformers: trained, exported and adapted like all others."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, TimmWrapperConfig

from hfssl import Dinov2ForPreTraining, SimclrForPreTraining
from hfssl.cli.image.finish import _usage
from hfssl.modeling.channels import with_num_channels
from hfssl.modeling.image_processing import build_image_processor
from hfssl.modeling.method import width_of
from hfssl.modeling.trial import num_channels_of
from hfssl.training.optim import set_rates_apart


pytest.importorskip("timm")

# made for tests, by timm
SMALL = {"test_resnet": None, "test_vit": {"img_size": 32, "patch_size": 8}}


@pytest.mark.parametrize("architecture", SMALL)
def test_a_checkpoint_of_timm_is_continued(architecture, tmp_path):
    torch.manual_seed(0)
    config = TimmWrapperConfig(architecture=architecture, model_args=SMALL[architecture])
    AutoModel.from_config(config).save_pretrained(tmp_path / "timm")
    assert width_of(AutoConfig.from_pretrained(tmp_path / "timm")) == {"test_resnet": 96, "test_vit": 64}[architecture]
    model = SimclrForPreTraining.from_encoder(tmp_path / "timm", image_size=32, num_channels=5).train()
    model(torch.randn(4, 2, 5, 32, 32)).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval().export_encoder(tmp_path / "out")
    exported, pixels = AutoModel.from_pretrained(tmp_path / "out").eval(), torch.randn(2, 5, 32, 32)
    assert type(exported).__name__ == "TimmWrapperModel" and num_channels_of(exported.config) == 5
    with torch.no_grad():
        torch.testing.assert_close(exported(pixels).last_hidden_state, model.encoder(pixels).last_hidden_state)


@pytest.mark.parametrize("any_size", [False, True])
def test_patches_of_a_checkpoint_of_timm_are_masked(any_size, tmp_path):
    torch.manual_seed(0)
    fields = {**SMALL["test_vit"], **({"dynamic_img_size": True} if any_size else {})}
    AutoModel.from_config(TimmWrapperConfig(architecture="test_vit", model_args=fields)).save_pretrained(
        tmp_path / "timm"
    )
    heads = {"num_prototypes": 16, "projector_hidden_dim": 16, "projector_output_dim": 8}
    model = Dinov2ForPreTraining.from_encoder(tmp_path / "timm", image_size=32, drop_path_rate=0.2, **heads).train()
    masked = torch.tensor([[1, 2, 5, 17], [0, 3, -1, -1], [20, 21, 22, -1], [31, -1, -1, -1]])
    small = {"local_pixel_values": torch.randn(4, 2, 3, 16, 16)} if any_size else {}
    model(torch.randn(4, 2, 3, 32, 32), masked_patches=masked, **small).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    model.eval()
    hidden = model.hidden_pixels({"pixel_values": torch.zeros(4, 2, 3, 32, 32), "masked_patches": masked})
    assert hidden.sum((1, 2, 3)).tolist() == [4 * 64, 2 * 64, 3 * 64, 64]
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    set_rates_apart(optimizer, model, model, patch_embed_rate=0.2)
    embedding = model.student.encoder.get_parameter("timm_model.patch_embed.proj.weight")
    assert [g["lr"] for g in optimizer.param_groups if any(embedding is p for p in g["params"])] == [
        pytest.approx(0.2)
    ]
    # what is masked is not seen, and the rest is
    images, mask = torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True
    others = [images.clone(), images.clone()]
    others[0][:, :, 8:16, 8:16] += 1.0
    others[1][:, :, 8:16, 16:24] += 1.0
    with torch.no_grad():
        seen = [model.student.encode(each, bool_masked_pos=mask).last_hidden_state for each in (images, *others)]
        plain = model.student.encode(images).last_hidden_state
    torch.testing.assert_close(seen[1], seen[0])
    assert not torch.allclose(seen[2], seen[0]) and not torch.allclose(plain, seen[0])
    model.export_encoder(tmp_path / "out")
    exported = AutoModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(exported(images).last_hidden_state, model.encoder(images).last_hidden_state)


def test_the_card_loads_the_processor_of_the_run(tmp_path):
    config = TimmWrapperConfig(architecture="test_vit", model_args=SMALL["test_vit"])
    AutoModel.from_config(config).save_pretrained(tmp_path / "timm")
    model = SimclrForPreTraining.from_encoder(tmp_path / "timm", image_size=32, num_channels=5).eval()
    folder = tmp_path / "out"
    model.export_encoder(folder)
    build_image_processor(32, [0.1] * 5, [0.2] * 5).save_pretrained(folder)
    names = {"image": np.zeros((5, 40, 40), np.uint8)}
    exec(_usage(model, str(folder), SimpleNamespace(image_size=32, value_range=None, colors=()), "cls"), names)
    assert list(names["processor"].image_mean) == [0.1] * 5 and names["feature"].shape == (1, 64)


def test_channels_that_are_alike_give_the_same_features():
    torch.manual_seed(0)
    encoder = AutoModel.from_config(TimmWrapperConfig(architecture="test_resnet")).eval()
    grey = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        before = encoder(grey.expand(-1, 3, -1, -1)).last_hidden_state
        after = with_num_channels(encoder, 4)(grey.expand(-1, 4, -1, -1)).last_hidden_state
    torch.testing.assert_close(after, before, rtol=1e-3, atol=1e-4)
