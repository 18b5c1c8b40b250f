"""`SSLTrainingArguments`: the defaults of pre-training, threads, precision, and what is refused."""

import os
from pathlib import Path

import pytest
import tiny
import torch
from transformers import TrainingArguments

from hfssl import SSLTrainer, SSLTrainingArguments, machine
from hfssl.errors import UserError
from hfssl.evaluation.cells import training_arguments
from hfssl.machine import choose_precision, num_cores, use_all_cores


@pytest.fixture
def launch(monkeypatch):
    """`launch(OMP_NUM_THREADS=..., user=...)`: as if a launcher had started this process."""
    monkeypatch.setattr(machine, "num_cores", lambda: 8)
    torch.set_num_threads(1)

    def environment(user=(), **variables):
        for name in ("OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(machine, "_launcher_has", lambda name: name in user)

    return environment


ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "OMP_NUM_THREADS": "1"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(
    "variables, user, given, expected",
    [
        ({}, (), None, 8),
        (ACCELERATE, (), None, 8),
        (TORCHRUN, (), None, 8),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "2"}, (), None, 4),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "16"}, (), None, 1),
        (ACCELERATE, ("OMP_NUM_THREADS",), None, 1),  # it was the user
        ({"OMP_NUM_THREADS": "1"}, (), None, 1),  # no launcher: it was the user
        (ACCELERATE | {"OMP_NUM_THREADS": "3"}, (), None, 1),  # torch has read it already: left as it is
        (ACCELERATE, (), 3, 3),
        ({"OMP_NUM_THREADS": "1"}, ("OMP_NUM_THREADS",), 5, 5),
    ],
)
def test_threads(launch, variables, user, given, expected):
    launch(user, **variables)
    use_all_cores(given)
    assert torch.get_num_threads() == expected


def test_the_launcher_is_asked_for_what_the_user_set(monkeypatch):
    try:
        entries = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:  # another user's process, or no /proc
        entries = []
    assert machine._launcher_has("PATH") == any(entry.startswith(b"PATH=") for entry in entries)
    assert not machine._launcher_has("NO_SUCH_VARIABLE")
    assert num_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("native, expected", [(True, "bf16"), (False, "fp32")])
def test_auto_takes_bf16_where_it_is_native(monkeypatch, tmp_path, native, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert choose_precision("auto", use_cpu=True) == expected
    args = SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.bf16, args.fp16) == (expected == "bf16", False)


@pytest.mark.parametrize("precision, bf16", [("fp32", False), ("bf16", True)])
def test_precision_as_asked_for(tmp_path, precision, bf16):
    args = SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, precision=precision)
    assert (args.bf16, args.fp16) == (bf16, False)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"precision": "fp16"}, "`--precision fp16` needs a GPU"),
        ({"precision": "int8"}, "`--precision int8` is unknown. Choose auto, fp32, bf16 or fp16"),
        ({"load_best_model_at_end": True}, "not for pre-training"),
        ({"hub_strategy": "all_checkpoints"}, "would push optimizer states. Choose end .default. or every_save"),
        ({"per_device_train_batch_size": 0}, "`--per_device_train_batch_size` must be at least 1, got 0"),
        ({"gradient_accumulation_steps": 0}, "`--gradient_accumulation_steps` must be at least 1, got 0"),
        ({"weight_decay_end": -0.1}, "`--weight_decay_end` is at least 0 .* got -0.1 and 0.01"),
        ({"weight_decay_end": 0.4, "weight_decay": 0}, "reached from a `--weight_decay` above 0, got 0.4 and 0"),
        ({"seed": -1}, "`--seed` must be between 0 and"),
        ({"seed": 2**32}, "`--seed` must be between 0 and"),
        ({"cpu_threads": 0}, "`--cpu_threads` must be at least 1, got 0"),
        ({"report_to": "nobody"}, "`--report_to nobody` is unknown. Choose none or one of .*tensorboard, .*wandb"),
    ],
)
def test_what_is_refused(tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **fields)


def test_a_tracker_that_is_not_installed(tmp_path, monkeypatch):
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)
    with pytest.raises(UserError, match="needs a package that is not installed: `pip install wandb`"):
        SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="wandb")


@pytest.mark.parametrize("report_to, expected", [("none", []), (None, []), ("tensorboard", ["tensorboard"])])
def test_trackers(tmp_path, report_to, expected):
    assert SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=report_to).report_to == expected


def test_the_defaults_of_pre_training(tmp_path):
    args = SSLTrainingArguments(output_dir=str(tmp_path), use_cpu=True, gradient_accumulation_steps=3)
    assert args.global_batch_size == 96
    assert args.dataloader_num_workers == 0  # beside a CPU that has the model to compute
    assert (args.weight_decay, args.adam_beta2, args.adam_epsilon, args.warmup_steps) == (0.01, 0.98, 1e-6, 0.06)
    assert args.save_total_limit == 2 and not args.logging_nan_inf_filter and args.report_to == ["tensorboard"]
    assert args.learning_rate is None  # the recipe chooses


def test_the_folder_is_claimed_and_the_checkpoint_named(tmp_path):
    args = SSLTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    assert args.claim_output_dir() is None
    assert (tmp_path / "out" / ".hfssl.lock").exists()


def test_what_cannot_be_pushed_is_known_at_the_claim(tmp_path):
    args = SSLTrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, push_to_hub=True)
    with pytest.raises(UserError, match="nobody is logged in here.*recipes/push.py"):
        args.claim_output_dir()


def test_lanes_are_a_multiple_of_the_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(SSLTrainingArguments, "world_size", 2)
    assert SSLTrainingArguments(str(tmp_path), report_to="none", lanes=6).lanes == 6
    for lanes in (3, 0):
        with pytest.raises(
            UserError, match=f"`--lanes` must be a multiple of the number of processes, 2, got {lanes}"
        ):
            SSLTrainingArguments(str(tmp_path), report_to="none", lanes=lanes)


def test_the_loss_of_a_step_is_one_mean_over_all_processes(tmp_path, monkeypatch):
    fields = {"use_cpu": True, "report_to": "none", "average_tokens_across_devices": False}
    assert SSLTrainingArguments(str(tmp_path), **fields).world_size == 1  # where it makes no difference
    monkeypatch.setattr(SSLTrainingArguments, "world_size", 2)
    with pytest.raises(UserError, match="divide the gradient by the 2 processes once too often.*Leave the flag out"):
        SSLTrainingArguments(str(tmp_path), **fields)


@pytest.mark.parametrize("make", [SSLTrainingArguments, lambda folder, **_: training_arguments(folder, "fp32")])
def test_one_process_trains_on_one_gpu_of_several(tmp_path, monkeypatch, caplog, make):
    """As if there were two: nothing is wrapped in `nn.DataParallel`, and the batch is what was said."""

    set_up = TrainingArguments.__dict__["_setup_devices"].func

    def two_gpus(args):
        if not hasattr(args, "distributed_state"):
            set_up(args)
            args._n_gpu = 2
        return torch.device("cpu")

    monkeypatch.setattr(TrainingArguments, "_setup_devices", property(two_gpus))
    monkeypatch.setattr("sys.argv", ["/somewhere/mlm.py", "--seed", "1"])
    args = make(str(tmp_path), report_to="none", per_device_train_batch_size=8)
    assert args.n_gpu == 1 and args.train_batch_size == 8
    assert "2 GPUs are visible" in caplog.text
    assert "torchrun --nproc_per_node 2 mlm.py with the same flags" in caplog.text
    if make is SSLTrainingArguments:
        args.eval_strategy = "no"
        trainer = SSLTrainer(tiny.mlm(), args)
        assert trainer._wrap_model(trainer.model) is trainer.model


@pytest.mark.parametrize(
    "given, launched, flag",
    [
        ({"fsdp": True}, {}, "--fsdp"),
        ({"fsdp": "full_shard"}, {}, "--fsdp"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, {}, "--deepspeed"),
        ({}, {"ACCELERATE_USE_FSDP": "true"}, "--fsdp"),
        ({}, {"ACCELERATE_USE_DEEPSPEED": "True"}, "--deepspeed"),
    ],
)
def test_weights_that_are_shared_out_are_refused(tmp_path, monkeypatch, given, launched, flag):
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=f"`{flag}` would share the weights out.*torchrun --nproc_per_node"):
        SSLTrainingArguments(str(tmp_path), report_to="none", **given)


def a_machine_with(monkeypatch, accelerator, cores=16, processes=1):
    """As if there were such an accelerator; only what is decided before anything is sent there."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda *_, **__: torch.device(accelerator))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator == "cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: False)
    monkeypatch.setattr(TrainingArguments, "__post_init__", lambda self: None)
    for name in ("use_one_gpu", "_check_tracker"):
        monkeypatch.setattr(f"hfssl.training.arguments.{name}", lambda _: None)
    monkeypatch.setattr(SSLTrainingArguments, "world_size", 1)
    for module in ("hfssl.training.arguments", "hfssl.machine"):
        monkeypatch.setattr(f"{module}.num_cores", lambda: cores)
        monkeypatch.setattr(f"{module}.local_world_size", lambda: processes)


def test_apples_gpus_are_refused(tmp_path, monkeypatch):
    a_machine_with(monkeypatch, "mps")
    with pytest.raises(UserError, match="float64.*`--use_cpu true`"):
        SSLTrainingArguments(str(tmp_path), report_to=[])
    SSLTrainingArguments(str(tmp_path), report_to=[], use_cpu=True)


@pytest.mark.parametrize("cores, processes, workers", [(16, 1, 15), (128, 8, 15), (128, 1, 16), (4, 4, 1), (1, 1, 1)])
def test_beside_a_gpu_data_are_prepared_on_all_cores_but_one(tmp_path, monkeypatch, caplog, cores, processes, workers):
    a_machine_with(monkeypatch, "cuda", cores, processes)
    with caplog.at_level("INFO", "hfssl"):
        args = SSLTrainingArguments(str(tmp_path), report_to=[])
    assert args.dataloader_num_workers == workers
    assert f"{workers} process(es) prepare data beside each GPU" in caplog.text
    assert "`--tf32 true`" in caplog.text
    assert SSLTrainingArguments(str(tmp_path), report_to=[], use_cpu=True).dataloader_num_workers == 0


def test_passes_over_the_data_are_steps(tmp_path):
    from types import SimpleNamespace

    from hfssl.training.settings import set_length

    fields = {"output_dir": str(tmp_path), "report_to": "none", "use_cpu": True, "per_device_train_batch_size": 8}
    args = SSLTrainingArguments(**fields, epochs=2.5, gradient_accumulation_steps=2)
    stream = SimpleNamespace(
        unit="images", batch_cost=None, exclude=frozenset("ab"), source=SimpleNamespace(num_rows=66)
    )
    set_length(args, stream)
    assert args.max_steps == 10  # 2.5 x 64 / 16
    stream.unit = "tokens"
    with pytest.raises(UserError, match="`--epochs 2.5` is for samples that come one by one; texts are joined"):
        set_length(args, stream)
    with pytest.raises(UserError, match="`--epochs` is a number of passes over the data, more than 0, got 0"):
        SSLTrainingArguments(**fields, epochs=0)
    with pytest.raises(UserError, match="`--budget_minutes 1` and `--epochs 3.0` both say how long"):
        SSLTrainingArguments(**fields, epochs=3.0, budget_minutes=1)
