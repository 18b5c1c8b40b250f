"""Targets made of the whole corpus: when, of which samples, for which batches, and after a kill in the middle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_vision import resnet
from torch import nn
from transformers import TrainerCallback

from hfssl import (
    DeepclusterForPreTraining,
    DeepclusterPreTrainingConfig,
    ExactStream,
    SSLTrainer,
    SSLTrainingArguments,
)
from hfssl.data.sources import MemorySource, identity
from hfssl.data.stream import Rows
from hfssl.errors import UserError
from hfssl.modeling.corpus_targets import NO_TARGET
from hfssl.training import corpus_targets
from hfssl.training.checkpoints import list_checkpoints


SAMPLES = [f"{number:03d}" for number in range(200)]
DAMAGED, HELD_OUT = "017", "123"
STEPS, TIMES = 6, 3


class Views:
    """Two views of an image that is drawn from the number of the sample."""

    def __call__(self, block):
        [samples] = block.columns.values()
        kept = [i for i, sample in enumerate(samples) if sample != DAMAGED]
        pixels = np.empty((len(kept), 2, 3, 16, 16), np.float32)
        for row, i in enumerate(kept):
            number = int(samples[i])
            image = np.random.default_rng(number % 7).standard_normal((1, 3, 16, 16))
            pixels[row] = image + 0.1 * np.random.default_rng(int(block.keys[i])).standard_normal((2, 3, 16, 16))
        bad = [(i, "torn") for i in range(len(samples)) if i not in kept]
        numbers = np.array([int(samples[i]) for i in kept], np.int64)
        return Rows({"pixel_values": pixels, "number": numbers}, np.ones(len(kept), np.int64), bad, block.places[kept])


class Model(DeepclusterForPreTraining):
    """Keeps what it is asked for."""

    def __init__(self, config):
        super().__init__(config)
        self.seen, self.calls, self.killed_at = [], [], None

    def forward(self, pixel_values, number=None, targets=None, return_loss=True):
        if self.training:
            self.seen.append((int(self.target_passes), number, targets))
        return super().forward(pixel_values, targets=targets)

    def corpus_features(self, batch):
        if len(self.calls) == self.killed_at:
            raise KeyboardInterrupt
        self.calls.append(batch["number"])
        return super().corpus_features(batch)

    def make_targets(self, features, seed):
        made = super().make_targets(features, seed)
        self.made = [*getattr(self, "made", []), made[0]["targets"]]
        return made


def trainer(folder, killed_at=None, rank=0, world_size=1, times=TIMES, held_out=HELD_OUT, **settings):
    torch.manual_seed(1)
    config = DeepclusterPreTrainingConfig(
        encoder_config=resnet(), projector_hidden_dim=16, projector_output_dim=8, num_heads=2, num_prototypes=5,
        num_clusterings=times,
    )  # fmt: skip
    model = Model(config)
    model.killed_at = killed_at
    args = SSLTrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=16 // world_size, learning_rate=1e-2,
        precision="fp32", report_to="none", eval_strategy="no", save_strategy="steps", save_steps=1, disable_tqdm=True,
        seed=5, use_cpu=True, logging_steps=1,
    )  # fmt: skip
    source = MemorySource(SAMPLES, name="numbers", piece_bytes=12)
    stream = ExactStream(
        source, Views(), lambda columns: {name: torch.from_numpy(values) for name, values in columns.items()},
        16 // world_size, seed=5, rank=rank, world_size=world_size, block_bytes=60, max_bad_fraction=0.1,
        exclude=frozenset([identity(held_out)]),
    )  # fmt: skip
    return SSLTrainer(model, args, stream, settings=settings)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = trainer(tmp_path_factory.mktemp("whole"))
    run.train()
    return run


def test_they_are_made_of_all_samples_but_the_held_out_ones_at_the_stated_steps(whole):
    assert [made for made, _, _ in whole.model.seen] == [1, 1, 2, 2, 3, 3]
    numbers = torch.cat(whole.model.calls).tolist()
    there = [number for number in range(200) if number != int(DAMAGED)]
    assert numbers == TIMES * there  # in the order of the data
    assert [made.shape for made in whole.model.made] == TIMES * [(198, 2)]
    assert not (Path(whole.args.output_dir) / "targets").exists()


def test_each_sample_of_a_batch_has_its_own(whole):
    rows = {number: row for row, number in enumerate(n for n in range(200) if n not in (17, 123))}
    for made, numbers, targets in whole.model.seen:
        assert targets.shape == (16, 2) and int(HELD_OUT) not in numbers.tolist()
        expected = whole.model.made[made - 1][[rows[number] for number in numbers.tolist()]]
        assert np.array_equal(targets.numpy(), expected)


def test_a_place_without_a_target_is_said_so(whole):
    places = np.array([[0, 0, int(HELD_OUT), 0], [0, 0, 5, 0], [1, 9, 9, 9]])
    found = whole.targets.of(places)["targets"]
    assert (found[[0, 2]] == NO_TARGET).all() and (found[1] >= 0).all()


def test_a_run_that_is_killed_while_they_are_made_goes_on_with_those_that_are_missing(whole, tmp_path):
    calls = len(whole.model.calls) // TIMES
    assert calls >= 4
    run = trainer(tmp_path, killed_at=calls + 2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert list_checkpoints(tmp_path)[0].name == "checkpoint-1"
    parts = list(tmp_path.glob("targets/0002-*/features/*.arrow"))
    assert 0 < len(parts) < calls
    again = trainer(tmp_path)
    again.train()
    # what was finished is not made a second time
    assert len(again.model.calls) == calls - len(parts) + calls
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    [losses, expected] = ([e["loss"] for e in r.state.log_history if "loss" in e] for r in (again, whole))
    assert losses == expected and len(losses) == STEPS


def test_a_run_that_is_killed_when_all_features_are_there_makes_targets_of_them(whole, tmp_path):
    run = trainer(tmp_path)
    make_targets = run.model.make_targets

    def killed_the_second_time(*args):
        if run.model.num_passes_made == 1:
            raise KeyboardInterrupt
        return make_targets(*args)

    run.model.make_targets = killed_the_second_time
    with pytest.raises(KeyboardInterrupt):
        run.train()
    again = trainer(tmp_path)
    again.train()
    # none of the second pass, all of the third
    assert len(again.model.calls) == len(whole.model.calls) // TIMES
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name


def test_features_of_other_weights_are_not_taken(tmp_path, whole):
    run = trainer(tmp_path, killed_at=2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    other = trainer(tmp_path)
    nn.init.zeros_(other.model.branch.projector[0].weight)
    other.args.max_steps = 1
    other.train()
    assert len(other.model.calls) >= len(whole.model.calls) // TIMES


@pytest.mark.parametrize("change", [{"held_out": "124"}, {"interpolation": "bicubic"}])
def test_features_of_other_data_or_settings_are_not_taken(tmp_path, whole, change):
    run = trainer(tmp_path, killed_at=2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    other = trainer(tmp_path, **change)
    other.args.max_steps = 1
    other.train()
    assert len(other.model.calls) >= len(whole.model.calls) // TIMES


class StopAfter(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def made_together(rank, world_size, folder):
    """Clusters and centroids of the first pass, and the features that this process made."""
    run = trainer(folder, rank=rank, world_size=world_size, times=1)
    run.add_callback(StopAfter())
    run.train()
    return {
        "prototypes": run.model.prototypes, "targets": torch.from_numpy(run.targets._columns["targets"]),
        "own": len(torch.cat(run.model.calls)),
    }  # fmt: skip


@pytest.mark.distributed
def test_two_processes_share_the_pass_and_have_the_same_targets(pair, tmp_path):
    alone = made_together(0, 1, tmp_path / "alone")
    together = pair.ask(Path(__file__), "made_together", folder=tmp_path / "together")
    assert sum(found["own"] for found in together) == alone["own"] and all(found["own"] for found in together)
    for found in together:
        assert torch.equal(found["targets"], alone["targets"]) and torch.equal(
            found["prototypes"], alone["prototypes"]
        )


def fails_alone(rank, world_size, folder, failing):
    """What each process raises where one of them does."""
    run = trainer(folder, rank=rank, world_size=world_size, times=1)
    if rank == 0 and failing == "make_targets":
        run.model.make_targets = fail
    if rank == 1 and failing == "corpus_features":
        run.model.corpus_features = fail
    try:
        run.train()
    except (UserError, OSError) as error:
        return f"{type(error).__name__}: {error}"


def fail(*_):
    raise OSError("the disk is full")


@pytest.mark.distributed
@pytest.mark.parametrize("failing, rank", [("make_targets", 0), ("corpus_features", 1)])
def test_nobody_waits_for_a_process_that_has_failed(pair, tmp_path, failing, rank):
    raised = pair.ask(Path(__file__), "fails_alone", folder=tmp_path, failing=failing)
    assert raised[rank] == "OSError: the disk is full"
    told = f"The targets cannot be made: process {rank} has ended with OSError: the disk is full."
    assert raised[1 - rank] == f"UserError: {told}"


def test_a_failure_is_forgotten_when_the_run_goes_on(tmp_path):
    assert fails_alone(0, 1, tmp_path, "make_targets") == "OSError: the disk is full"
    assert len(list(tmp_path.glob("targets/*/failure.txt"))) == 1
    run = trainer(tmp_path, times=1)
    run.train()
    assert not run.model.calls and len(run.model.made) == 1  # all features were there


def test_an_output_folder_that_is_not_shared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus_targets, "SEEN_WITHIN", 0.0)
    with pytest.raises(
        UserError, match="Process 3 does not see .*elsewhere, which process 0 has made.*`--output_dir`"
    ):
        corpus_targets._check_shared(tmp_path / "elsewhere", 3)
    corpus_targets._check_shared(tmp_path, 3)


# -- sequences, and windows of long samples -----------------------------------------------------------------------------


class Clips:
    """Ramps of different lengths; long ones are cut into windows, which come in any order."""

    most = 40

    def __call__(self, block):
        [samples] = block.columns.values()
        clips, places = [], []
        for i in np.argsort(block.keys):
            length = 3 * int(samples[i]) % 101 + 1
            for number, start in enumerate(range(0, length, self.most)):
                clips.append(np.arange(start, min(length, start + self.most)) + 1000.0 * int(samples[i]))
                places.append([*block.places[i, :3], number])
        lengths = np.array([len(clip) for clip in clips], np.int64)
        return Rows({"clip": clips}, lengths, [], np.array(places, np.int64).reshape(-1, 4))


def cut(columns):
    """A piece of each clip: never what targets are made of."""
    return {"clip": torch.tensor([clip[0] for clip in columns["clip"]])}


def whole_by_length(columns):
    lengths = np.array([len(clip) for clip in columns["clip"]])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        yield rows, {"clip": torch.tensor(np.stack([columns["clip"][i] for i in rows]))}


class UnitModel(Model):
    def corpus_features(self, batch):
        self.calls.append(batch["clip"].shape)
        # as encoders do: fewer frames than samples
        return {"frames": [clip[::2, None].float() for clip in batch["clip"]], "first": batch["clip"][:, 0]}

    def make_targets(self, features, seed):
        self.features = features
        units = [frames[:, 0].astype(np.int64) % 997 for frames in features["frames"]]
        return {"targets": units, "first": features["first"].astype(np.int64)}, {}


def unit_trainer(folder):
    run = trainer(folder)
    run.model.__class__ = UnitModel
    stream = run.stream
    stream.transform, stream.collate, stream.collate_whole = Clips(), cut, whole_by_length
    return run


def expected_units(number, window):
    length = 3 * number % 101 + 1
    clip = 1000 * number + np.arange(length)[40 * window : 40 * (window + 1)]
    return (clip[::2] % 997).tolist()


def test_a_target_may_be_a_sequence_for_each_window_of_a_sample(tmp_path):
    run = unit_trainer(tmp_path / "run")
    run.targets._make(1)
    places = [[0, 0, number, window] for number in range(200) for window in range((3 * number % 101 + 40) // 40)]
    places = [place for place in places if place[2] != int(HELD_OUT)]
    assert len(run.model.features["frames"]) == len(places) == len(run.targets._places)
    assert len(set(run.model.calls)) > 30  # batches of `collate_whole`, of the same length each
    for place in places:
        found = run.targets.of(np.array([place]))
        assert found["targets"].dtype == torch.int64 and found["targets"].tolist() == [expected_units(*place[2:])]
        assert found["first"].tolist() == [1000 * place[2] + 40 * place[3]]


def test_sequences_in_a_batch_are_filled_up_and_a_checkpoint_has_them(tmp_path):
    run = unit_trainer(tmp_path / "run")
    run.targets._make(1)
    run.targets.save(tmp_path)
    again = unit_trainer(tmp_path / "again")
    again.targets.load(tmp_path)
    places = np.array([[0, 0, 30, 2], [0, 0, int(HELD_OUT), 0], [0, 0, 13, 0], [0, 0, 1, 5]])
    short, long = expected_units(30, 2), expected_units(13, 0)
    assert 0 < len(short) < len(long)
    for each in (run, again):
        found = each.targets.of(places)["targets"]
        nothing = [NO_TARGET] * len(long)
        assert found.tolist() == [short + nothing[len(short) :], nothing, long, nothing]
        assert each.targets.of(places[1:2])["targets"].tolist() == [[NO_TARGET]]
    with np.load(tmp_path / "targets.npz") as arrays:
        assert arrays["column.targets"].dtype == np.int16  # below 997


def test_windows_without_a_number_are_no_windows(tmp_path):
    run = unit_trainer(tmp_path)

    class Gap(Clips):
        def __call__(self, block):
            rows = super().__call__(block)
            rows.places[:, 3] *= 2
            return rows

    run.stream.transform = Gap()
    with pytest.raises(ValueError, match="numbered from 0 without a gap"):
        run.targets._make(1)
