"""Attention by measurement: of what there is the fastest, the same on a resume, and nothing else changes."""

import json
from types import SimpleNamespace

import pytest
import tiny
import tiny_vision
import torch
from huggingface_hub import constants
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.cli.image.encoders import set_attention, set_memory_format
from hfssl.cli.text import encoders as text_encoders
from hfssl.methods import METHODS
from hfssl.modeling.attention import lean_attention
from hfssl.training import attention
from hfssl.training.attention import (
    CHANNELS_FIRST,
    CHANNELS_LAST,
    attention_of,
    choose,
    fastest_attention,
    is_measured,
)


def arguments(folder, **changes):
    return SSLTrainingArguments(
        output_dir=str(folder), max_steps=2, save_steps=1, report_to="none", precision="fp32", use_cpu=True,
        per_device_train_batch_size=2, learning_rate=1e-3, eval_strategy="no", disable_tqdm=True,
        **changes,
    )  # fmt: skip


@pytest.fixture
def args(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return arguments(tmp_path / "out")


@pytest.fixture
def slow_attention(monkeypatch):
    """An implementation that takes twice as long by the clock, one that cannot run, and what was called."""
    clock, calls = [0.0], []

    def register(name, seconds):
        def attend(*args, **kwargs):
            calls.append(name)
            clock[0] += seconds
            if not seconds:
                raise RuntimeError("no such kernel")
            return lean_attention(*args, **kwargs)

        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, eager_mask)

    for name, seconds in {"slow": 2.0, "quick": 1.0, "broken": 0.0}.items():
        register(name, seconds)
    monkeypatch.setattr(attention, "_now", lambda device: clock[0])
    return calls


def test_the_first_is_taken_unless_another_is_clearly_faster():
    assert choose(["a", "b"], {"a": 1.0, "b": 0.97}) == "a"
    assert choose(["a", "b"], {"a": 1.0, "b": 0.9}) == "b"
    assert choose(["a", "b"], {"b": 2.0}) == "b" and choose(["a", "b"], {}) == "a"


def test_on_a_cpu_only_who_asks_is_given_a_measurement():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert is_measured("auto", gpu) and is_measured("measured", cpu)
    assert not is_measured("auto", cpu) and not is_measured("sdpa", gpu)


def test_the_fastest_that_runs_is_found_once_and_nothing_else_changes(args, slow_attention):
    encoder = tiny_vision.build("vit")
    before = {name: p.clone() for name, p in encoder.state_dict().items()}
    implementation, state = encoder.config._attn_implementation, torch.get_rng_state()

    def run(tried):
        return tried(torch.zeros(2, 3, 16, 16)).last_hidden_state

    for _ in range(2):
        assert fastest_attention(encoder, ["slow", "broken", "quick"], run, "2 images", args) == "quick"
        measured = len(slow_attention)
        assert measured > 0 and slow_attention.count("broken") == 1
    assert len(slow_attention) == measured  # the second time it was known
    assert encoder.config._attn_implementation == implementation and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], p) for name, p in encoder.state_dict().items())
    assert all(p.grad is None for p in encoder.parameters())


def test_a_frozen_encoder_is_measured_by_its_forward_pass(args, slow_attention):
    encoder = tiny_vision.build("vit").requires_grad_(False)

    def run(tried):
        return tried(torch.zeros(2, 3, 16, 16)).last_hidden_state

    assert fastest_attention(encoder, ["slow", "broken", "quick"], run, "2 images", args) == "quick"
    known = len(slow_attention)
    # what is known of it is not known of one that learns
    assert fastest_attention(encoder.requires_grad_(True), ["slow", "quick"], run, "2 images", args) == "quick"
    assert fastest_attention(encoder, ["slow", "broken", "quick"], run, "2 images", args) == "quick"
    assert slow_attention.count("broken") == 2 and len(slow_attention) > 2 * known


@pytest.mark.parametrize("name", ["simclr", "dino", "mae"])
def test_student_teacher_and_decoder_have_one_each_and_it_is_said(name, args, caplog):
    caplog.set_level("INFO", "hfssl")
    model = METHODS[name](METHODS[name].config_class(encoder_config=tiny_vision.two_layers()))
    set_attention(model, "measured", args)
    found = attention_of(model)
    [line] = [record.message for record in caplog.records if record.message.startswith("Attention: ")]
    assert len({found[path] for path in found if path.endswith("encoder")}) == 1
    assert line.startswith(
        f"Attention: {model.encoder.config._attn_implementation}, measured at 2 images of 16 pixels"
    )
    assert "lean" in line and "sdpa" in line


def test_a_run_goes_on_with_the_attention_that_it_had(args, tmp_path, monkeypatch):
    def model():
        torch.manual_seed(0)
        return METHODS["simclr"](METHODS["simclr"].config_class(encoder_config=tiny_vision.two_layers()))

    first = model()
    set_attention(first, "eager", args)
    data = [{"pixel_values": torch.randn(2, 3, 16, 16)} for _ in range(8)]
    SSLTrainer(first, args, data).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    args = arguments(tmp_path / "other", resume=str(checkpoint))
    assert args.claim_output_dir() == checkpoint
    assert json.loads((checkpoint / attention.FILE).read_text()) == {"encoder": "eager"} == attention_of(first)
    monkeypatch.setattr(attention, "_measure", lambda *_: pytest.fail("it was measured again"))
    for flag in ("auto", "measured"):
        again = model()
        set_attention(again, flag, args)
        assert attention_of(again) == {"encoder": "eager"}
    asked = model()
    set_attention(asked, "sdpa", args)  # who names one, gets it
    assert attention_of(asked) == {"encoder": "sdpa"}


def convolutional(name="simclr"):
    torch.manual_seed(0)
    return METHODS[name](METHODS[name].config_class(encoder_config=tiny_vision.resnet()))


def seen_by(encoder, run):
    """Whether the first convolution was given images with the channels of a pixel side by side."""
    found = []
    first = next(part for part in encoder.modules() if isinstance(part, torch.nn.Conv2d))
    handle = first.register_forward_pre_hook(
        lambda _, args: found.append(args[0].is_contiguous(memory_format=torch.channels_last))
    )
    run()
    handle.remove()
    assert len(set(found)) == 1
    return found[0]


def test_images_lie_as_convolutions_are_faster_and_it_is_said(args, caplog):
    caplog.set_level("INFO", "hfssl")
    set_memory_format(convolutional(), "measured", 16, args)
    [line] = [record.message for record in caplog.records if record.message.startswith("Memory format: ")]
    assert "measured at 2 images of 16 pixels in fp32 on this CPU" in line
    assert all(f"{name} " in line for name in (CHANNELS_FIRST, CHANNELS_LAST)) and "attention" not in line.lower()
    caplog.clear()
    set_memory_format(
        METHODS["simclr"](METHODS["simclr"].config_class(encoder_config=tiny_vision.vit())), "measured", 16, args
    )
    assert not caplog.records


@pytest.mark.parametrize("name", ["simclr", "byol", "rotnet"])
def test_images_lie_in_memory_as_was_chosen(name, args, monkeypatch):
    model = convolutional(name).eval()
    shape = (2, 3, 16, 16) if name == "rotnet" else (2, 2, 3, 16, 16)

    def run():
        model(torch.randn(shape))

    assert seen_by(model.encoder, run)
    set_memory_format(model, "auto", 16, args)
    assert seen_by(model.encoder, run)  # on a CPU nothing is measured
    monkeypatch.setattr(attention, "_measure", lambda *_: {CHANNELS_LAST: 2.0, CHANNELS_FIRST: 1.0})
    set_memory_format(model, "measured", 16, args)
    for part in (model.student, model.teacher) if name == "byol" else (model,):
        assert not seen_by(part.encoder, run)


def test_a_run_goes_on_with_images_as_they_lay(args, tmp_path, monkeypatch):
    monkeypatch.setattr(attention, "_measure", lambda *_: {CHANNELS_LAST: 2.0, CHANNELS_FIRST: 1.0})
    first = convolutional()
    set_memory_format(first, "measured", 16, args)
    data = [{"pixel_values": torch.randn(2, 3, 16, 16)} for _ in range(8)]
    SSLTrainer(first, args, data).train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    args = arguments(tmp_path / "other", resume=str(checkpoint))
    args.claim_output_dir()
    monkeypatch.setattr(attention, "_measure", lambda *_: pytest.fail("it was measured again"))
    for flag in ("auto", "measured"):
        again = convolutional()
        set_memory_format(again, flag, 16, args)
        assert again.encoder.channels_last is False
    # that of a run from before there was a choice
    (checkpoint / attention.FORMAT_FILE).unlink()
    set_memory_format(again, "measured", 16, args)
    assert again.encoder.channels_last is True


@pytest.mark.parametrize("packing", [True, False])
def test_texts_are_measured_as_rows_of_the_run(packing, args, caplog):
    caplog.set_level("INFO", "hfssl")
    data = SimpleNamespace(arguments=SimpleNamespace(max_length=32, packing=packing))
    text_encoders.set_attention(tiny.mlm(), "measured", data, args)
    [line] = [record.message for record in caplog.records if record.message.startswith("Attention: ")]
    assert "measured at 2 x 32 tokens in fp32 on this CPU (" in line and "eager" in line and "sdpa" in line
