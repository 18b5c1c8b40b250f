"""Teachers: what they begin as, how they move, and that they are never silent."""

import copy
import math

import pytest
import torch
from tiny_vision import ENCODERS, build, crops, preset_of, resnet, two_views, vit
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForPreTraining,
    SwinConfig,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from hfssl import (
    ByolForPreTraining,
    ByolPreTrainingConfig,
    DinoForPreTraining,
    DinoPreTrainingConfig,
    MocoForPreTraining,
    MocoPreTrainingConfig,
    SSLTrainer,
    SSLTrainingArguments,
)
from hfssl.cli.image.data import ImageData, ImageDataArguments
from hfssl.data.image.views import ViewArguments, Views
from hfssl.errors import UserError
from hfssl.functional.schedules import cosine, linear
from hfssl.training.callbacks import MethodCallback
from hfssl.training.optim import Lars


HEAD = {"projector_hidden_dim": 16, "projector_output_dim": 8}
METHODS = {
    "byol": (ByolForPreTraining, ByolPreTrainingConfig, HEAD),
    "moco": (MocoForPreTraining, MocoPreTrainingConfig, HEAD | {"queue_size": 20}),
    "dino": (DinoForPreTraining, DinoPreTrainingConfig, HEAD | {"num_prototypes": 12}),
}


def small(name="byol", encoder=None, seed=0, **config):
    model_class, config_class, settings = METHODS[name]
    torch.manual_seed(seed)
    return model_class(config_class(encoder_config=encoder or vit(), **{**settings, **config}))


def batch_of(name, rows=4):
    return crops(rows) if name == "dino" else two_views(rows)


def trainable(model):
    return [p for p in model.parameters() if p.requires_grad]


def steps(model, name="byol", number=2, optimizer=None, last=None):
    """Optimizer steps of a plain loop over the first part of a run."""
    model.train()
    optimizer = optimizer or torch.optim.AdamW(trainable(model), lr=0.01)
    for step in range(number):
        optimizer.zero_grad()
        model(**batch_of(name)).loss.backward()
        optimizer.step()
        model.after_optimizer_step((step + 1) / (last or 2 * number))
    return model


def equal(first, second):
    first, second = first.state_dict(), second.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("encoder", ["vit", "resnet"])
@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_begins_as_its_student(name, encoder):
    model = small(name, ENCODERS[encoder]())
    assert equal(model.student, model.teacher)
    assert not {p.data_ptr() for p in model.student.parameters()} & {p.data_ptr() for p in model.teacher.parameters()}
    assert not any(p.requires_grad for p in model.teacher.parameters())
    assert model.progress == 0.0


@pytest.mark.parametrize("name", METHODS)
def test_saved_and_loaded_it_is_the_same_to_the_bit(name, tmp_path):
    model = steps(small(name, resnet()), name, last=3)
    assert not equal(model.student, model.teacher)
    model.save_pretrained(tmp_path)
    again = AutoModelForPreTraining.from_pretrained(tmp_path)
    assert equal(again, model)
    assert again.progress == model.progress != 2 / 3  # as it is stored, and so for a run that was not interrupted
    assert not any(p.requires_grad for p in again.train().teacher.parameters())
    fresh = small(name, resnet(), seed=1)
    assert fresh.progress == 0.0
    fresh.load_state_dict(model.state_dict())
    assert fresh.progress == model.progress


@pytest.mark.parametrize("name", METHODS)
def test_a_student_alone_gets_a_teacher_that_is_equal_to_it(name, tmp_path):
    model = steps(small(name), name)
    state = {key: tensor for key, tensor in model.state_dict().items() if key.startswith("student.")}
    model.save_pretrained(tmp_path, state_dict=state)
    again = type(model).from_pretrained(tmp_path)
    assert equal(again.student, model.student) and equal(again.teacher, again.student)
    assert again.progress == 0.0
    if name == "dino":
        assert not again.center.any()
    if name == "moco":
        assert again.queue.norm(dim=1).min() > 0.1 and again.queue_position == 0


@pytest.mark.parametrize("name", METHODS)
def test_continuing_a_checkpoint_both_begin_as_it(name, tmp_path):
    build("vit", seed=3).save_pretrained(tmp_path)
    model_class, _, settings = METHODS[name]
    model = model_class.from_encoder(str(tmp_path), **settings)
    stock = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert equal(model.student.encoder, stock) and equal(model.teacher, model.student)


@pytest.mark.parametrize("name, exported", [("byol", "student"), ("moco", "student"), ("dino", "teacher")])
def test_exported_is_the_one_that_the_paper_evaluates(name, exported, tmp_path):
    model = steps(small(name, resnet()), name)
    assert model.encoder is getattr(model, exported).encoder
    model.export_encoder(tmp_path / "a")
    model.export_encoder(tmp_path / "b", state_dict={k: v.clone() for k, v in model.state_dict().items()})
    for folder in ("a", "b"):
        assert equal(AutoModel.from_pretrained(tmp_path / folder), getattr(model, exported).encoder)


def test_the_average_is_exact():
    model = small()
    with torch.no_grad():
        for p in model.student.parameters():
            p.add_(torch.randn_like(p))
    before = [p.double() for p in model.teacher.parameters()]
    model.update_teacher(0.996)
    for student, teacher, old in zip(model.student.parameters(), model.teacher.parameters(), before, strict=True):
        expected = 0.996 * old + 0.004 * student.detach().double()
        torch.testing.assert_close(teacher.double(), expected, rtol=2e-7, atol=1e-8)
    frozen = copy.deepcopy(model.teacher)
    model.update_teacher(1.0)
    assert equal(model.teacher, frozen)
    model.update_teacher(0.0)
    assert all(map(torch.equal, model.teacher.parameters(), model.student.parameters()))
    model.update_teacher(0.5)  # of two equals
    assert all(map(torch.equal, model.teacher.parameters(), model.student.parameters()))


def test_the_momentum_follows_the_run():
    model = small(momentum_start=0.5, momentum_end=1.0)
    student, teacher = next(model.student.parameters()), next(model.teacher.parameters())
    for progress, momentum in (
        (0.0, 0.5),
        (0.25, 0.5 + 0.5 * (1 - math.cos(math.pi / 4)) / 2),
        (0.5, 0.75),
        (1.0, 1.0),
    ):
        with torch.no_grad():
            student.fill_(1.0)
            teacher.fill_(0.0)
        model.after_optimizer_step(progress)
        torch.testing.assert_close(teacher, torch.full_like(teacher, 1.0 - momentum))
        assert model.progress == model.schedule_position.item() == progress
    with pytest.raises(ValueError, match="between 0 and 1, got 1.5"):
        model.after_optimizer_step(1.5)


def test_schedules_at_their_ends():
    assert (cosine(0.3, 0.9, 0.0), cosine(0.3, 0.9, 1.0)) == (pytest.approx(0.3), 0.9)
    assert cosine(0.9, 0.9, 0.3) == 0.9
    assert [linear(1.0, 3.0, p) for p in (0.0, 0.5, 1.0, 7.0)] == [1.0, 2.0, 3.0, 3.0]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "adamw fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),  # which changes no version of a tensor
    "adamw foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "lars": lambda p: Lars(p, lr=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_silent_teacher_is_an_error(optimizer):
    model = small("byol", resnet()).train()
    optimizer = OPTIMIZERS[optimizer](trainable(model))
    model(**two_views()).loss.backward()
    model(**two_views()).loss.backward()  # accumulation: no step, nothing to follow
    optimizer.step()
    with pytest.raises(UserError, match=r"its teacher was not told.*after_optimizer_step\(progress\)"):
        model(**two_views())
    model.eval()(**two_views())
    with torch.no_grad():
        model.train()(**two_views())
    model.after_optimizer_step(0.1)
    model(**two_views())


def test_other_optimizers_are_none_of_its_business():
    model, other = small("byol", resnet()).train(), nn.Linear(2, 2)
    copied = copy.deepcopy(model)
    model(**two_views())
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    other(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    model(**two_views())
    copied(**two_views()).loss.backward()
    torch.optim.SGD(trainable(copied), lr=0.1).step()
    model(**two_views())
    with pytest.raises(UserError, match="was not told"):
        copied(**two_views())


def plain_trainer(model, folder, **kwargs):
    args = TrainingArguments(
        output_dir=str(folder), max_steps=3, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to="none", disable_tqdm=True, save_strategy="no", gradient_accumulation_steps=2,
    )  # fmt: skip
    data = [{"pixel_values": torch.randn(2, 3, 16, 16)} for _ in range(8)]
    return Trainer(model, args, train_dataset=data, **kwargs)


def test_with_a_plain_trainer_it_needs_the_callback(tmp_path):
    with pytest.raises(UserError, match="MethodCallback"):
        plain_trainer(small(), tmp_path).train()
    model = small()
    before = copy.deepcopy(model.teacher)
    plain_trainer(model, tmp_path, callbacks=[MethodCallback()]).train()
    assert model.progress == 1.0 and not equal(model.teacher, before) and not equal(model.teacher, model.student)


@pytest.mark.parametrize("name", METHODS)
def test_no_optimizer_has_a_parameter_of_the_teacher(name, tmp_path):
    model = small(name)
    model.save_pretrained(tmp_path / "model")
    model = type(model).from_pretrained(tmp_path / "model").train()
    args = SSLTrainingArguments(
        str(tmp_path / "out"), max_steps=1, learning_rate=0.1, report_to="none", eval_strategy="no"
    )
    optimizer = SSLTrainer(model, args).create_optimizer()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainable(model)}
    assert not held & {id(p) for p in model.teacher.parameters()}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_killed_and_continued_is_the_same_to_the_bit(name, tmp_path):
    """Teacher, centre and queue, progress and weight decay included."""
    data = ImageData(ImageDataArguments())
    views = Views(
        preset_of("dino" if name == "dino" else "byol"), ViewArguments(image_size=16, **{"local_crops": 2} if name == "dino" else {}),
        is_grey=True, patch_size=4,
    )  # fmt: skip

    # prototypes that begin to learn after the checkpoint
    config = {"freeze_prototypes": 0.6, "drop_path_rate_end": 0.5} if name == "dino" else {}

    def trainer(folder, seed=0, callbacks=None):
        args = SSLTrainingArguments(
            str(tmp_path / folder), max_steps=4, per_device_train_batch_size=4, gradient_accumulation_steps=2,
            learning_rate=1e-2, precision="fp32", report_to="none", eval_strategy="no", save_steps=1, use_cpu=True,
            weight_decay=0.1, weight_decay_end=0.5, disable_tqdm=True,
        )  # fmt: skip
        model = small(name, seed=seed, **config)
        return SSLTrainer(model, args, data.stream(args, views), callbacks=callbacks)

    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise KeyboardInterrupt

    whole = trainer("whole")
    whole.train()
    with pytest.raises(KeyboardInterrupt):
        trainer("cut", callbacks=[Kill()]).train()
    again = trainer("cut", seed=99)
    again.train()
    assert again.resumed_from.name == "checkpoint-2"
    assert equal(again.model, whole.model) and again.model.progress == 1.0
    assert not equal(whole.model.teacher, small(name).teacher)
    for first, second in zip(whole.optimizer.param_groups, again.optimizer.param_groups, strict=True):
        assert first["weight_decay"] == second["weight_decay"]
    if name == "dino":
        prototypes = [t.model.student.projector.prototypes.weight for t in (whole, again)]
        fresh = small(name, **config).student.projector.prototypes.weight
        assert torch.equal(*prototypes) and not torch.equal(prototypes[0], fresh)
        taken = [t.optimizer.state[p]["step"].item() for t, p in zip((whole, again), prototypes, strict=True)]
        assert taken == [1, 1]


def test_a_teacher_drops_nothing_but_normalises_by_its_batch():
    noisy = SwinConfig(
        embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=2, image_size=16, patch_size=4, drop_path_rate=0.5,
        hidden_dropout_prob=0.3,
    )  # fmt: skip
    images = torch.randn(4, 3, 16, 16)
    for encoder in (noisy, vit()):
        model = small("byol", encoder).train()
        assert torch.equal(model.teacher(images), model.teacher(images))
    model = small("byol", resnet()).train()
    torch.testing.assert_close(model.teacher(images), model.student(images))  # both by the statistics of the batch
    statistics = model.teacher.projector[1].running_mean.clone()
    model.eval()
    assert not torch.allclose(model.teacher(images), model.train().teacher(images))
    assert not torch.equal(model.teacher.projector[1].running_mean, statistics)
    model.eval()(**two_views())
    assert not any(module.training for module in model.modules())


def test_half_precision_is_refused():
    model = small().bfloat16()
    with pytest.raises(UserError, match="moves by 0.004 of its distance.*bfloat16 rounds away.*--precision bf16"):
        model.update_teacher(0.996)


@pytest.mark.parametrize("start, end", [(-0.1, 1.0), (0.5, 1.2), (0.9, 0.5)])
@pytest.mark.parametrize("name", METHODS)
def test_bad_momenta_are_named(name, start, end):
    with pytest.raises(Exception, match=f"momentum_start={start} and momentum_end={end}"):
        small(name, momentum_start=start, momentum_end=end)


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_that_would_never_move_is_refused(name):
    with pytest.raises(Exception, match="momentum_start=1.0 and momentum_end=1.0 the teacher would never move"):
        small(name, momentum_start=1.0, momentum_end=1.0)
    small(name, momentum_start=0.999, momentum_end=1.0)
