"""The best state of a run beside the last, and the end of one that becomes no better."""

import pytest
import tiny
import torch
from transformers import AutoModel, AutoTokenizer

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.cli.finish import _tell_best
from hfssl.data.seen import SEEN
from hfssl.errors import UserError
from hfssl.evaluation.evaluator import Evaluator
from hfssl.evaluation.facts import read_facts, write_facts


class Scripted(Evaluator):
    """Says what it is told to, and keeps what the encoder was like."""

    protocol, version, primary_metric = "scripted", 1, "loss"

    def __init__(self, name, *values):
        self.name, self.values, self.seen = name, list(values), []

    def measure(self, model):
        self.seen.append({name: tensor.clone() for name, tensor in model.encoder.base_model.state_dict().items()})
        return {"loss": 1.0, self.name: self.values.pop(0)}

    def __call__(self, *args, **kwargs):
        raise NotImplementedError


def run(folder, *evaluators, **overrides):
    fields = {
        "output_dir": str(folder), "max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2,
        "precision": "fp32", "report_to": "none", "eval_strategy": "steps", "eval_steps": 1, "save_steps": 3,
        "logging_steps": 1, "disable_tqdm": True, "seed": 5,
    }  # fmt: skip
    args = SSLTrainingArguments(**{**fields, **overrides})
    stream = tiny.stream(args.per_device_train_batch_size, seed=args.seed)
    trainer = SSLTrainer(tiny.mlm(), args, stream, evaluators, processing_class=tiny.tokenizer())
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "name, values, best", [("loss", (0, 5, 3, 4, 3, 6, 7), 2), ("knn_accuracy", (9, 0.5, 0.4, 0.6, 0.6, 0.2, 0.1), 3)]
)
def test_the_best_is_kept_beside_the_last(tmp_path, name, values, best):
    evaluator = Scripted(name, *values)  # what is measured before training does not count, nor does a tie
    run(tmp_path, evaluator, keep="best")
    facts = read_facts(tmp_path / "best")
    assert (facts["step"], facts["chosen_by"], facts["value"]) == (best, name, values[best])
    assert (facts["method"], facts["modality"]) == ("mlm", "text")
    kept = AutoModel.from_pretrained(tmp_path / "best").state_dict()
    for parameter, tensor in evaluator.seen[best].items():
        assert torch.equal(kept[parameter], tensor), parameter
    assert len(AutoTokenizer.from_pretrained(tmp_path / "best")) == len(tiny.tokenizer())


def test_a_run_ends_when_it_becomes_no_better(tmp_path, caplog):
    caplog.set_level("INFO", logger="hfssl")
    trainer = run(tmp_path, Scripted("loss", 9, 5, 3, 4, 3.5, 1, 1), early_stopping=2)
    assert trainer.state.global_step == 4 and not (tmp_path / "best").exists()
    assert (
        "has not become better in 2 evaluations: the run ends at step 4. Its best was 3.0000, at step 2" in caplog.text
    )
    assert (tmp_path / "checkpoint-4").is_dir()
    # the same command again: it is over, and a larger number continues it
    again = run(tmp_path, Scripted("loss"), early_stopping=2)
    assert again.state.global_step == 4 and "A larger `--early_stopping` continues it" in caplog.text
    assert run(tmp_path, Scripted("loss", 1, 1), early_stopping=3).state.global_step == 6


def test_neither_is_there_unless_it_is_asked_for(tmp_path):
    assert run(tmp_path, Scripted("loss", *range(7))).state.global_step == 6
    assert not (tmp_path / "best").exists()


def test_what_cannot_be_chosen_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="`--keep best` goes by what is measured"):
        run(tmp_path, keep="best", eval_strategy="no")
    with pytest.raises(UserError, match="`--early_stopping` is a number of evaluations, at least 1, got 0"):
        run(tmp_path, early_stopping=0)


def test_the_best_knows_of_its_data_what_the_last_knows(tmp_path):
    (tmp_path / "best").mkdir()
    write_facts(tmp_path, modality="image", image_size=32, labelled={"dataset": "letters"})
    write_facts(tmp_path / "best", modality="image", step=3)
    (tmp_path / SEEN).write_bytes(b"digests")
    _tell_best(tmp_path)
    assert read_facts(tmp_path / "best") == {
        "modality": "image", "image_size": 32, "labelled": {"dataset": "letters"}, "step": 3,
    }  # fmt: skip
    assert (tmp_path / "best" / SEEN).read_bytes() == b"digests"
