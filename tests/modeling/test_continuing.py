"""What stays as it is of a checkpoint that is continued, for every method: frozen blocks, and adapters beside them."""

import copy
from types import SimpleNamespace

import pytest
import tiny
import torch
from contract import METHODS, model_and_batch
from tiny_vision import build
from transformers import AutoModelForPreTraining, CLIPConfig, GPT2Config, GPT2LMHeadModel, ViTConfig

from hfssl import Dinov2ForPreTraining
from hfssl.errors import UserError
from hfssl.evaluation.image.encoder import VisionEncoder
from hfssl.modeling.adapters import add_adapters, merge_adapters
from hfssl.modeling.depth import depths


def one_step(model, batch):
    """The names of what a step of an optimizer has changed, buffers of counts left out."""
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**batch).loss.backward()
    optimizer.step()
    if hasattr(model, "after_optimizer_step"):
        model.after_optimizer_step(0.1)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


def prefix_of(model, encoder):
    return next(name for name, part in model.named_modules() if part is encoder) + "."


@pytest.fixture(params=METHODS)
def method(request):
    return model_and_batch(request.param)


def test_the_first_blocks_stay_as_they_are(method, tmp_path):
    model, batch = method
    all_trained = trained(model)
    model.keep_of_checkpoint(freeze_layers=1)
    prefixes = {encoder: prefix_of(model, encoder) for encoder in model.trained_encoders}
    kept = {
        prefix + name
        for encoder, prefix in prefixes.items()
        for name, depth in depths(encoder)[0].items()
        if depth <= 1
    }
    assert kept and trained(model) == all_trained - kept
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path).train()
    assert trained(again) == trained(model)
    changed = one_step(again, batch)
    # of batch norms neither weights nor statistics, and the teacher's copy of them as little
    for prefix in prefixes.values():
        first = [name.removeprefix(prefix).rpartition(".")[0] for name in kept if name.startswith(prefix)]
        for copied in [prefix, *(["teacher.encoder."] if again.followers else [])]:
            of_encoder = [name.removeprefix(copied) for name in changed if name.startswith(copied)]
            assert not [name for name in of_encoder if name.rpartition(".")[0] in first]
    assert changed & trained(again)


def test_adapters_learn_and_are_merged_on_export(method, tmp_path):
    pytest.importorskip("peft")
    model, batch = method
    heads = {name for name in trained(model) if ".encoder." not in f".{name}"}
    kind = next(iter(model.encoders.values())).config.model_type
    if kind in ("resnet", "hfssl_cpc_encoder"):
        with pytest.raises(UserError, match=f"`--lora_rank 2` is for the linear layers .* this {kind} has none"):
            model.keep_of_checkpoint(lora_rank=2)
        return
    before = copy.deepcopy(model.eval())
    model.keep_of_checkpoint(lora_rank=2)
    torch.testing.assert_close(model(**batch).loss, before(**batch).loss)  # what is added begins at 0
    changed = one_step(model, batch)
    assert {name for name in trained(model) if "lora_" not in name} == heads
    assert any("lora_B" in name for name in changed)
    assert not [name for name in changed if ".encoder." in f".{name}" and "lora_" not in name]

    model.eval().save_pretrained(tmp_path / "whole")
    again = AutoModelForPreTraining.from_pretrained(tmp_path / "whole").eval()
    torch.testing.assert_close(again(**batch).loss, model(**batch).loss, rtol=0, atol=0)
    assert trained(again.train()) == trained(model)

    model.export_encoder(tmp_path / "stock")
    for name, encoder in model.encoders.items():
        folder = tmp_path / "stock" / (name if len(model.encoders) > 1 else "")
        exported = type(encoder).from_pretrained(folder).state_dict()
        first = before.encoders[name].state_dict()
        assert not [key for key in exported if "lora" in key or "base_layer" in key] and set(first) <= set(exported)
        assert any(not torch.equal(exported[key], tensor) for key, tensor in first.items())
    merged = model.eval().without_adapters()
    torch.testing.assert_close(merged(**batch).loss, model(**batch).loss, rtol=1e-4, atol=1e-5)
    assert "lora_rank" not in merged.config.to_dict() and model.config.lora_rank == 2


def test_adapters_stand_beside_the_blocks_that_are_not_frozen():
    pytest.importorskip("peft")
    model = tiny.mlm()
    model.keep_of_checkpoint(freeze_layers=1, lora_rank=2)
    assert trained(model) and all(".layer.1." in name for name in trained(model))


def test_matrices_that_are_stored_the_other_way_round_are_adapted_too():
    pytest.importorskip("peft")
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=32, n_positions=8)).eval()
    ids = torch.arange(8)[None]
    add_adapters(model, 2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    logits = model(ids).logits
    merge_adapters(model)
    torch.testing.assert_close(model(ids).logits, logits, rtol=1e-4, atol=1e-4)
    assert not [name for name in model.state_dict() if "lora" in name or "base_layer" in name]


def test_what_cannot_be_kept_is_told():
    model = tiny.mlm()
    with pytest.raises(UserError, match="`--freeze_layers 3` is more than this bert has: 2 blocks or stages. Pass 2"):
        model.keep_of_checkpoint(freeze_layers=3)
    model = tiny.mlm()
    model.keep_of_checkpoint(freeze_layers=2)
    model.keep_of_checkpoint(freeze_layers=2)  # once more is the same
    with pytest.raises(UserError, match="made with freeze_layers=2 and lora_rank=None, and is to go on with freeze_"):
        model.keep_of_checkpoint(freeze_layers=1)


@pytest.mark.parametrize("name", ["dinov2", "dinov3_vit"])
def test_what_stands_before_the_blocks_has_depth_0(name):
    encoder = build(name)
    of_name, number = depths(encoder)
    assert number == 4
    assert {depth for name, depth in of_name.items() if name.startswith("embeddings.")} == {0}
    assert {depth for name, depth in of_name.items() if name.startswith(("norm.", "layernorm."))} == {5}
    assert {1, 2, 3, 4} < set(of_name.values())
    # and as an object it is probed as a whole
    processor = SimpleNamespace(image_mean=[0.5] * 3)
    assert VisionEncoder(encoder, processor).model is encoder


def test_new_heads_of_a_narrow_checkpoint_are_as_narrow_as_from_scratch():
    record = Dinov2ForPreTraining.method
    narrow = record.fields_for(None, {"projector_hidden_dim"}, None, ViTConfig(hidden_size=192))
    assert narrow["num_prototypes"] == record.narrow_heads["num_prototypes"] and "projector_hidden_dim" not in narrow
    for wide in (ViTConfig(hidden_size=768), CLIPConfig(), None):  # one of two towers does not say it
        assert record.fields_for(None, set(), None, wide) == record.continued
    assert record.continued.items() <= narrow.items()
