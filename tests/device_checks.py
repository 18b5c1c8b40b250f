"""What has to hold on any device that trains. `tests/gpu` asks it of a GPU, `test_device_checks.py` of the CPU.

Each check takes the name of a device and raises where something does not hold.
"""

import copy
import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_pairs
import tiny_vision
import torch
import torch.nn.functional as F
from batch_makers import made
from contract import build, checkpoint_activations, contract, model_and_batch, split
from host_waits import WithoutWaits, as_collated, no_waits
from numbered import collate, numbered_stream
from PIL import Image
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForPreTraining

import hfssl.methods
from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.data.image.digits import digits
from hfssl.data.image.views import ViewArguments, Views
from hfssl.data.sources import MemorySource
from hfssl.data.stream import Block, ExactStream
from hfssl.evaluation.masked_tokens import MaskedTokenEvaluator
from hfssl.functional import keyed
from hfssl.functional.keyed import Use
from hfssl.losses import cross_entropy_sum
from hfssl.modeling.base import load_plain_encoder
from hfssl.modeling.corpus_targets import CorpusTargetsMixin
from hfssl.modeling.image_processing import build_image_processor
from hfssl.modeling.packing import packed_inputs


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# of the loss, which has 8 and 11 bits
TOLERANCE = {"bf16": 5e-2, "fp16": 1e-2}
# Least cosine of all gradients with those of fp32. Batch norm over a few rows of noise divides by little.
COSINE = {"bf16": 0.9, "fp16": 0.98}


# Of a family of methods, the one that has most of what the others have.
_FOR_OTHERS = ("DinoForPreTraining", "MaeForPreTraining", "MlmForPreTraining", "VicregForPreTraining")


def one_of_each_family(methods):
    """For what takes long and hardly differs among methods of one modality that are built on the same base."""
    families = {}
    for name in methods:
        method = getattr(hfssl.methods, name)
        bases = [base.__name__ for base in method.__mro__[1:]]
        base = next(base for base in bases if base == "TeacherMixin" or base.endswith("Model"))
        families.setdefault((method.method.modality, base), []).append(name)
    return [next((name for name in _FOR_OTHERS if name in family), family[0]) for family in families.values()]


def on(device, batch):
    return {name: tensor.to(device) for name, tensor in batch.items()}


def arguments(device, folder, **changes):
    fields = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "precision": "fp32", "report_to": "none", "eval_strategy": "no", "save_strategy": "steps", "save_steps": 3,
        "logging_steps": 2, "disable_tqdm": True, "seed": 5, "use_cpu": device == "cpu",
        "dataloader_num_workers": 0,
    }  # fmt: skip
    return SSLTrainingArguments(**fields | changes)


# -- a step -----------------------------------------------------------------------------------------------------------


def loss_and_gradients(model, batch, device, precision="fp32"):
    """In float32, on the CPU. In fp16 the loss is scaled as a GradScaler does: by less where something is too large."""
    scale = 1024.0 if precision == "fp16" else 1.0
    while True:
        model.zero_grad()
        with torch.autocast(device, DTYPES[precision], enabled=precision != "fp32"):
            loss = model(**batch).loss
        (scale * loss).backward()
        gradients = {n: p.grad.float().cpu() / scale for n, p in model.named_parameters() if p.grad is not None}
        if scale <= 1.0 or all(gradient.isfinite().all() for gradient in gradients.values()):
            return loss.detach().cpu(), gradients
        scale /= 4


def assert_near(found, expected, tolerance):
    """Loss and gradients, each as a share of the largest of its kind."""
    assert abs(found[0] - expected[0]) <= tolerance * max(1.0, abs(expected[0].item())), (found[0], expected[0])
    assert found[1].keys() == expected[1].keys()
    largest = max(gradient.abs().max() for gradient in expected[1].values())
    for name, gradient in expected[1].items():
        assert (found[1][name] - gradient).abs().max() <= tolerance * largest, name


def loss_and_gradients_are_those_of_the_cpu(method, device, precision):
    model, batch = model_and_batch(method)
    batch = as_collated(model, batch)
    expected = loss_and_gradients(model.train(), batch, "cpu")
    found = loss_and_gradients(copy.deepcopy(model).to(device), on(device, batch), device, precision)
    if precision == "fp32":
        assert_near(found, expected, 2e-3)
        return
    assert abs(found[0] - expected[0]) <= TOLERANCE[precision] * max(1.0, abs(expected[0].item()))
    all_found, all_expected = (torch.cat([g.flatten() for g in each[1].values()]) for each in (found, expected))
    cosine = F.cosine_similarity(all_found, all_expected, dim=0).item()
    assert cosine >= COSINE[precision], cosine


def checkpointed_activations_have_the_same_gradients(method, device):
    model, batch = model_and_batch(method)
    model, batch = model.to(device).train(), on(device, as_collated(model, batch))
    expected = loss_and_gradients(model, batch, device)
    for encoder in model.encoders.values():
        if not encoder.supports_gradient_checkpointing:  # of a ResNet
            pytest.skip(f"{type(encoder).__name__} keeps its activations")
    checkpoint_activations(model, {"use_reentrant": False})
    assert_near(loss_and_gradients(model, batch, device), expected, 1e-4)


def compiled_it_is_the_same_and_is_compiled_once(method, device, backend="inductor", variant=None):
    torch.compiler.reset()
    model = build(method, variant).to(device).train()
    batch = on(device, as_collated(model, contract(method).batch(6)))
    expected = loss_and_gradients(model, batch, device)
    compiled = torch.compile(copy.deepcopy(model), backend=backend)
    graphs = []
    for step in range(4):
        found = loss_and_gradients(compiled, batch, device)
        if step:  # a second accumulation step
            loss_and_gradients(compiled, batch, device)
        else:
            found = found[0], {name.removeprefix("_orig_mod."): gradient for name, gradient in found[1].items()}
            assert_near(found, expected, 2e-3)
        if hasattr(model, "after_optimizer_step"):
            compiled._orig_mod.after_optimizer_step((step + 1) / 8)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    # the second step may find other state than the first
    assert graphs[1] == graphs[-1] > 0, graphs


def nothing_waits_within_a_step(method, device):
    model, batch = model_and_batch(method)
    model, batch = model.to(device).train(), on(device, as_collated(model, batch))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step(progress):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if hasattr(model, "after_optimizer_step"):
            model.after_optimizer_step(progress)

    step(0.25)  # what is made once is made here
    with no_waits(device):
        step(0.5)


class PeakMemory(TorchDispatchMode):
    """Most bytes that the tensors made within have held at a time, on any device; `given` ones do not count."""

    def __init__(self, *given: torch.Tensor):
        super().__init__()
        self.given = {tensor.untyped_storage()._cdata for tensor in given}
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, tuple | list) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self.given:
                storage = tensor.untyped_storage()
                self.held[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.held = {key: held for key, held in self.held.items() if not held[0].expired()}
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self.held.values()))
        return made


def the_loss_of_a_large_vocabulary_takes_little_memory(device):
    """Beside the logits their gradient, and pieces of float32."""
    tokens, vocabulary = (16_384, 50_257) if device == "cuda" else (512, 30_522)
    logits = torch.randn(tokens, vocabulary, device=device, dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(vocabulary, (tokens,), device=device)
    some = slice(0, 64)
    expected = F.cross_entropy(logits[some].float(), labels[some], reduction="sum")
    torch.testing.assert_close(cross_entropy_sum(logits[some], labels[some]), expected, rtol=1e-5, atol=1e-3)
    with PeakMemory(logits) as memory:
        [gradient] = torch.autograd.grad(cross_entropy_sum(logits, labels), logits)
    assert logits.nbytes <= memory.peak <= 1.5 * logits.nbytes, (memory.peak, logits.nbytes)
    sums = gradient.float().sum(1)  # a softmax less a one
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=0.1)


# -- runs -------------------------------------------------------------------------------------------------------------


def trains_saves_and_exports(method, device, precision, folder: Path):
    """A run of each precision, with accumulation; its checkpoint loads, and its encoder is a stock one."""
    args = arguments(
        device,
        folder,
        precision=precision,
        max_steps=2,
        save_steps=2,
        gradient_accumulation_steps=2,
        max_grad_norm=1.0,
    )
    trainer = SSLTrainer(build(method), args, numbered_stream(method))
    before = {name: p.detach().cpu().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    assert all(np.isfinite(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry)
    after = {name: p.detach().cpu() for name, p in trainer.model.named_parameters()}
    assert any(not torch.equal(after[name], values) for name, values in before.items())
    again = AutoModelForPreTraining.from_pretrained(folder / "checkpoint-2")
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.cpu()), name
    trainer.model.export_encoder(folder / "encoder")
    is_plain = trainer.model.export_kind == "plain"
    encoders = trainer.model.encoders
    for part, encoder in encoders.items():
        load = load_plain_encoder if is_plain else type(encoder).from_pretrained
        stock = load(folder / "encoder" / part if len(encoders) > 1 else folder / "encoder")
        for name, tensor in encoder.state_dict().items():
            assert torch.equal(stock.state_dict()[name], tensor.cpu()), name


class Parts(SSLTrainer):
    """Trains on parts of a batch that are given, and keeps the gradients of its last step."""

    def __init__(self, model, args, parts):
        super().__init__(model, args, train_dataset=parts)
        self.parts, self.gradients = parts, {}

    def get_train_dataloader(self):
        return self.parts

    def create_optimizer(self, model=None):
        optimizer = super().create_optimizer(model)
        optimizer.register_step_pre_hook(self.keep)
        return optimizer

    def keep(self, *_):
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        self.gradients = {name: p.grad.cpu().clone() for name, p in named if p.grad is not None}


def a_batch_in_parts_has_the_gradient_of_the_whole(device, folder: Path):
    """With dropout: against a graph of all parts at once, each from its own seed, which the cache does without."""
    encoders = tiny_pairs.vit_and_bert(hidden_dropout_prob=0.3)
    torch.manual_seed(0)
    config = hfssl.methods.ClipPreTrainingConfig(**encoders, projection_dim=8, patch_dropout=0.5)
    model = hfssl.methods.ClipForPreTraining(config).to(device).train()
    parts = split(on(device, tiny_pairs.images_and_texts(12)), 3)
    embedded = []
    for number, part in enumerate(parts):
        torch.manual_seed(keyed.torch_seed(Use.TRAINING_STEP, 5, 0, number, 0))
        embedded.append(model.embed(**part))
    loss = model.contrast({name: torch.cat([part[name] for part in embedded]) for name in embedded[0]}).loss
    loss.backward()
    expected = {name: p.grad.cpu() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    args = arguments(
        device, folder, max_steps=1, contrastive_batch_size=12, max_grad_norm=0.0, save_strategy="no", logging_steps=1
    )
    trainer = Parts(model, args, parts)
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert logged["logit_scale"] == pytest.approx(1 / 0.07, rel=1e-4)
    assert_near((loss.detach().cpu(), trainer.gradients), (loss.detach().cpu(), expected), 1e-5)


def resumed_it_is_the_same_run(method, device, precision, folder: Path):
    """Same samples, same losses, and the same weights to the bit: call it with deterministic algorithms."""

    def run(name, **changes):
        args = arguments(device, folder / name, precision=precision, logging_steps=1, **changes)
        model = build(method, seed=len(name), **contract(method).noise)
        trainer = SSLTrainer(model, args, numbered_stream(method))
        trainer.train()
        return trainer

    whole = run("whole")
    again = run("again", resume=str(folder / "whole" / "checkpoint-3"))
    assert again.stream.state_dict() == whole.stream.state_dict()
    losses = [[entry["loss"] for entry in each.state.log_history if "loss" in entry] for each in (whole, again)]
    assert losses[0] == losses[1]
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def the_trainer_waits_for_nothing_between_two_logs(device, folder: Path, methods=()):
    """Text, whose batches come from the CPU, images, whose views are made on the device, and runs of some methods on
    batches of their contracts; all accumulate. Methods with targets of the whole corpus make these between steps."""
    changes = {"max_steps": 3, "logging_steps": 3, "save_strategy": "no", "gradient_accumulation_steps": 2}
    text = SSLTrainer(tiny.mlm(), arguments(device, folder / "text", **changes), tiny.stream(4))
    args = arguments(device, folder / "images", weight_decay_end=0.1, **changes)
    images = SSLTrainer(build("SimclrForPreTraining"), args, digit_stream(device, "simclr"))
    trainers = [text, images]
    for method in methods:
        model, stream = build(method), numbered_stream(method)
        if not isinstance(model, CorpusTargetsMixin):
            stream.collate = partial(_collated, model)
            trainers.append(SSLTrainer(model, arguments(device, folder / method, **changes), stream))
    for trainer in trainers:
        watch = WithoutWaits.of(trainer, device, after=1)
        trainer.train()
        assert watch.steps == 3


def _collated(model, columns):
    return as_collated(model, collate(columns))


def digit_stream(device, method, batch_size=8):
    views = Views(tiny_vision.preset_of(method), ViewArguments(image_size=16), is_grey=True, patch_size=4)
    source = MemorySource(digits("train")["image"][:200], name="digits", modality="image")
    return ExactStream(source, views.rows, views.collator(device), batch_size, seed=5, block_bytes=4_000)


def health_and_evaluators_run(device, folder: Path, precision="fp32"):
    """Text with an evaluator, and images with the views of the run."""
    changes = {
        "precision": precision,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "max_steps": 2,
        "save_strategy": "no",
    }
    held_out = list(tiny.texts(40, seed=1))
    evaluator = MaskedTokenEvaluator(held_out, tiny.tokenizer(), max_length=32)
    text = SSLTrainer(
        tiny.mlm(), arguments(device, folder / "text", **changes), tiny.stream(4), evaluators=[evaluator],
        held_out=held_out, processing_class=tiny.tokenizer(),
    )  # fmt: skip
    text.train()
    for method in ("SimclrForPreTraining", "DinoForPreTraining"):
        name = method.removesuffix("ForPreTraining").lower()
        stream = digit_stream(device, name)
        images = SSLTrainer(
            build(method), arguments(device, folder / name, **changes), stream, held_out=digits("test")["image"][:40],
            processing_class=build_image_processor(16),
        )  # fmt: skip
        images.train()
        for trainer in (text, images):
            measured = [entry for entry in trainer.state.log_history if "health_verdict" in entry]
            assert [entry["step"] for entry in measured] == [0, 2]
            assert all(np.isfinite(entry["health_rankme"]) for entry in measured)
    assert all(np.isfinite(entry["eval_loss"]) for entry in text.state.log_history if "eval_loss" in entry)


# -- data -------------------------------------------------------------------------------------------------------------


def views_are_those_of_the_cpu(method, device, size):
    """Colour, blur and normalising: of the same crops the same pixels."""
    preset = getattr(hfssl.methods, method).method.views
    views = Views(preset, ViewArguments(image_size=size), is_grey=False, patch_size=8)
    coarse = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8)
    encoded = []
    for pixels in coarse:
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((size + 9, size + 30), Image.BICUBIC).save(buffer, "PNG")
        encoded.append(buffer.getvalue())
    rows = views.rows(Block({"image": encoded}, keyed.key(3, np.arange(6)), 9))
    expected, found = (views.collator(where)(rows.columns) for where in ("cpu", device))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].device.type == device
        torch.testing.assert_close(found[name].cpu(), values, rtol=1e-3, atol=2e-3)


def batches_are_those_of_the_cpu(name, device):
    """Of all that a run makes on the device, and nothing waits for it."""
    rows, columns, left = made(name)
    expected = rows.collator("cpu")(columns)
    collate = rows.collator(device)
    collate(columns)
    with no_waits(device):
        found = collate(columns)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key].device.type == ("cpu" if key in left else device)
        torch.testing.assert_close(found[key].cpu(), values, rtol=1e-3, atol=2e-3)


def packed_documents_equal_each_alone(config, device, attention, causal, auto_class, dtype=torch.float32):
    """Hidden states of a row of documents, and of each document alone."""
    torch.manual_seed(0)
    model = auto_class.from_config(copy.deepcopy(config)).eval().to(device, dtype)
    model.set_attn_implementation(attention)
    lengths = [5, 40, 1, 12]
    documents = [torch.randint(5, config.vocab_size, (length,), device=device) for length in lengths]
    row = F.pad(torch.cat(documents), (0, 6))[None]
    numbers = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(lengths))
    sequence_ids = F.pad(numbers, (0, 6))[None].to(device)
    with torch.no_grad():
        packed = model.base_model(row, **packed_inputs(model, sequence_ids, causal)).last_hidden_state[0]
        alone = torch.cat([model.base_model(document[None]).last_hidden_state[0] for document in documents])
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    assert packed.isfinite().all()
    assert (packed[: len(alone)] - alone).abs().max() <= tolerance * alone.abs().max()
