"""What makes stock encoders lighter changes nothing that they compute."""

import pytest
import tiny_pairs
import torch
from transformers import AutoModel
from transformers.activations import QuickGELUActivation

from hfssl.modeling.lighter import QuickGelu, lighten


def activated(activation, x):
    kept, x = [], x.clone().requires_grad_()

    def keep(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        result = activation(2 * x)  # of something that is kept by nobody else
    (result * torch.arange(x.shape[-1])).sum().backward()
    return result, x.grad, len({tensor.data_ptr() for tensor in kept if tensor.numel() > 1})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_is_that_of_transformers_and_keeps_less(dtype):
    torch.manual_seed(0)
    x = (3 * torch.randn(50, 20)).to(dtype)
    ours, theirs = activated(QuickGelu(), x), activated(QuickGELUActivation(), x)
    tolerances = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-1}
    for one, other in zip(ours[:2], theirs[:2], strict=True):
        torch.testing.assert_close(one, other, **tolerances)
    assert (ours[2], theirs[2]) == (1, 2)


@pytest.mark.parametrize("side", ["first_config", "second_config"])
def test_the_towers_of_clip_compute_what_they_did(side):
    torch.manual_seed(0)
    encoder, batch = AutoModel.from_config(tiny_pairs.clip_towers()[side]), tiny_pairs.images_and_texts(3)
    inputs = {encoder.main_input_name: batch[encoder.main_input_name]}
    before = encoder(**inputs).pooler_output
    lighten(encoder)
    torch.testing.assert_close(encoder(**inputs).pooler_output, before)
    kinds, seen = [type(module) for module in encoder.modules()], []
    assert kinds.count(QuickGelu) == 2 and QuickGELUActivation not in kinds
    for module in encoder.modules():
        if hasattr(module, "q_proj"):
            module.q_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        encoder(**inputs)
    assert seen == [torch.bfloat16] * 2
