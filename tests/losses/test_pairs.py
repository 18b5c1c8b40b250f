"""The losses of pairs against their definitions and against transformers, however they are cut."""

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from hfssl.losses import clip_loss, siglip_loss


IMAGES = F.normalize(torch.tensor([[1.0, 2, 0], [0, 1, -1], [2, 0, 1]]), dim=-1)
TEXTS = F.normalize(torch.tensor([[1.0, 1, 0], [1, 1, -1], [2, -1, 1]]), dim=-1)
TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def pairs(number=7, dim=5):
    """Embeddings of pairs, and a scale and a bias, that all want gradients."""
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(2, number, dim, dtype=torch.float64), dim=-1)
    return [x.clone().requires_grad_() for x in (images, texts, torch.tensor(5.0), torch.tensor(-3.0))]


def clip_by_hand(images, texts, scale, bias=None):
    total = 0.0
    for anchors, others in ((images, texts), (texts, images)):
        for i, anchor in enumerate(anchors):
            agreements = torch.stack([torch.exp(scale * (anchor @ other)) for other in others])
            total = total - torch.log(agreements[i] / agreements.sum()) / (2 * len(images))
    return total


def siglip_by_hand(images, texts, scale, bias):
    total = 0.0
    for i, image in enumerate(images):
        for j, text in enumerate(texts):
            sign = 1 if i == j else -1
            total = total - torch.log(torch.sigmoid(sign * (scale * (image @ text) + bias))) / len(images)
    return total


def clip(images, texts, scale, bias, **options):
    return clip_loss(images, texts, scale, **options)


CASES = [pytest.param(clip, clip_by_hand, id="clip"), pytest.param(siglip_loss, siglip_by_hand, id="siglip")]


def test_known_values():
    assert clip_loss(IMAGES, TEXTS, 10.0).item() == pytest.approx(0.137192, abs=1e-6)
    assert siglip_loss(IMAGES, TEXTS, 10.0, -10.0).item() == pytest.approx(1.439481, abs=1e-6)


@pytest.mark.parametrize("chunk_size", [1024, 7, 3, 1])
@pytest.mark.parametrize("loss, by_hand", CASES)
def test_loss_and_gradient_are_those_of_the_definition_in_chunks_of_any_size(loss, by_hand, chunk_size):
    expected, found = pairs(), pairs()
    value = by_hand(*expected)
    value.backward()
    chunked = loss(*found, chunk_size=chunk_size)
    chunked.backward()
    torch.testing.assert_close(chunked, value)
    for a, b in zip(found[: 3 if loss is clip else 4], expected, strict=False):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize("loss, by_hand", CASES)
def test_the_mean_over_the_parts_of_a_batch_against_all_of_it_is_the_loss_of_the_batch(loss, by_hand):
    images, texts, scale, bias = pairs(6)
    parts = []
    for first in (0, 2, 4):
        everything = {"all_text_embeds": texts, "first": first}
        if loss is clip:
            everything["all_image_embeds"] = images
        rows = slice(first, first + 2)
        parts.append(loss(images[rows], texts[rows], scale, bias, **everything))
    torch.testing.assert_close(torch.stack(parts).mean(), by_hand(images, texts, scale, bias))


def test_they_keep_float32_under_autocast():
    images, texts = IMAGES.bfloat16(), TEXTS.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = clip_loss(images, texts, 10.0), siglip_loss(images, texts, 10.0, -10.0)
    assert found[0].dtype == found[1].dtype == torch.float32
    torch.testing.assert_close(found[0], clip_loss(images.float(), texts.float(), 10.0), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_they_are_those_of_transformers(kind):
    config_class, model_class = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
    text = {**TOWER, "vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 19, "projection_size": 16}
    vision = {**TOWER, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    model = model_class(config_class(text_config=text, vision_config=vision, projection_dim=16)).eval()
    ids = torch.randint(0, 18, (5, 8))
    ids[:, -1] = 19
    out = model(input_ids=ids, pixel_values=torch.randn(5, 3, 8, 8), return_loss=True)
    scale = model.logit_scale.exp()
    found = clip_loss(out.image_embeds, out.text_embeds, scale)
    if kind == "siglip":
        found = siglip_loss(out.image_embeds, out.text_embeds, scale, model.logit_bias)
    torch.testing.assert_close(found, out.loss)


def test_the_similarities_of_all_rows_are_never_in_memory_at_once():
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    images, texts, scale, bias = pairs(64)
    with Watch():
        (
            clip_loss(images, texts, scale, chunk_size=8) + siglip_loss(images, texts, scale, bias, chunk_size=8)
        ).backward()
    assert 64 * 8 <= largest < 64 * 64


@pytest.mark.parametrize("chunk_size", [1024, 2])
@pytest.mark.parametrize("loss", [clip, siglip_loss])
def test_pairs_with_a_side_in_common_are_no_negatives(loss, chunk_size):
    """The first and the last image have one text, the first two texts one image; the others nothing in common."""
    images, texts, scale, bias = pairs(5)
    content = torch.tensor([[7, 1], [7, 2], [8, 3], [9, 4], [5, 1]])
    free = [(0, 1), (1, 0), (0, 4), (4, 0)]
    total = 0.0
    for i in range(5):
        negatives = [j for j in range(5) if j != i and (i, j) not in free]
        if loss is clip:
            for anchors, others in ((images, texts), (texts, images)):
                logits = scale * others[[i, *negatives]] @ anchors[i]
                total = total - logits.log_softmax(0)[0] / 10
        else:
            logits = scale * texts[[i, *negatives]] @ images[i] + bias
            total = total - F.logsigmoid(torch.cat([logits[:1], -logits[1:]])).sum() / 5
    torch.testing.assert_close(loss(images, texts, scale, bias, content=content, chunk_size=chunk_size), total)


def test_an_impossible_chunk_is_named():
    with pytest.raises(ValueError, match="`chunk_size` must be at least 1, got 0"):
        clip_loss(IMAGES, TEXTS, 1.0, chunk_size=0)
