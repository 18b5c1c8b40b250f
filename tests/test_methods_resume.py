"""Every method: a run that is stopped in the middle and goes on ends to the bit as one that nobody stopped.

In one process, by SIGTERM. What SIGKILL leaves behind is tried by `test_kill.py`, which is slow.
"""

import os
import signal

import pytest
import torch
from contract import METHODS, build, contract
from numbered import numbered_stream
from transformers import TrainerCallback

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.training.checkpoints import list_checkpoints


STEPS, STOP = 5, 2
# stopped while only the heads learn, and after the teacher was kept that anchors the patches later
RUNS = [(method, None) for method in METHODS] + [("Dinov2ForPreTraining", "as a checkpoint goes on")]


class SendSigterm(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == STOP - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def trainer(method, variant, folder, seed=0, callbacks=None):
    args = SSLTrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=1e-2, precision="fp32",
        report_to="none", eval_strategy="no", save_strategy="steps", save_steps=100, logging_steps=1, disable_tqdm=True,
        seed=5, use_cpu=True, gradient_accumulation_steps=2,
    )  # fmt: skip
    model = build(method, variant, seed=seed, **contract(method).noise)
    return SSLTrainer(model, args, numbered_stream(method), callbacks=callbacks)


def outcome(run):
    """Weights, buffers and moments of the optimizer, losses, and where the stream stands."""
    moments = [value for state in run.optimizer.state_dict()["state"].values() for value in state.values()]
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
    return list(run.model.state_dict().values()) + moments, losses, run.stream.state_dict()


@pytest.mark.parametrize("method, variant", RUNS)
def test_a_run_that_is_stopped_goes_on_to_the_same_end(tmp_path, method, variant):
    whole = trainer(method, variant, tmp_path / "whole")
    begin = [p.clone() for p in whole.model.parameters()]
    whole.train()
    assert not all(torch.equal(p, b) for p, b in zip(whole.model.parameters(), begin, strict=True))
    assert min(at["pass"] for at in whole.stream.positions.values()) > 0

    with pytest.raises(SystemExit):
        trainer(method, variant, tmp_path / "cut", callbacks=[SendSigterm()]).train()
    assert [checkpoint.name for checkpoint in list_checkpoints(tmp_path / "cut")] == [f"checkpoint-{STOP}"]
    again = trainer(method, variant, tmp_path / "cut", seed=99)
    again.train()
    assert again.resumed_from.name == f"checkpoint-{STOP}"

    tensors, losses, position = outcome(again)
    expected_tensors, expected_losses, expected_position = outcome(whole)
    assert losses == expected_losses and len(losses) == STEPS
    assert position == expected_position
    assert len(tensors) == len(expected_tensors)
    assert all(torch.equal(a, b) for a, b in zip(tensors, expected_tensors, strict=True))
