"""What a run records of itself."""

import json

import tiny

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.training.record import record_of


def test_settings_say_what_was_changed_and_no_folder_of_this_machine(tmp_path):
    args = SSLTrainingArguments(
        str(tmp_path / "out"), max_steps=3, learning_rate=2e-3, report_to="none", use_cpu=True, eval_strategy="no", hub_token="hf_0123456789",
        hub_license="mit", per_device_train_batch_size=8,
    )  # fmt: skip
    home = tmp_path / "home of" / "jdoe"
    home.mkdir(parents=True)
    settings = {
        "dataset": f"mine.txt:0.5,{home}/my texts.txt:0.5",
        "tokenizer": f"{home}/words",
        "split": "train",
        "x": {},
    }
    trainer = SSLTrainer(tiny.mlm(), args, tiny.stream(8), settings=settings, processing_class=tiny.tokenizer())
    told = record_of(trainer).as_json(data="texts")
    assert told["settings"]["data"] == {
        "dataset": "mine.txt:0.5,my texts.txt:0.5", "tokenizer": "words", "split": "train", "x": "{}",
    }  # fmt: skip
    # what tells whether a command would make the same
    assert told["identity"]["data"] == trainer.stream.source.fingerprint
    assert (told["identity"]["learning_rate"], told["identity"]["dataset"]) == (2e-3, "mine.txt:0.5,my texts.txt:0.5")
    text = json.dumps(told)
    assert "jdoe" not in text and "hf_0123" not in text and str(tmp_path) not in text
    assert {"max_steps", "learning_rate", "per_device_train_batch_size"} <= set(told["changed"])
    # what is as it is by default, and what is of the machine
    assert not {"seed", "optim", "eval_steps", "activation_checkpointing", "disable_tqdm"} & set(told["changed"])
    assert "dataloader_pin_memory" not in told["settings"]["run"] and told["license"] == "mit"
    assert told["settings"]["method"]["mask_ratio"] == trainer.model.config.mask_ratio
    assert (told["method"], told["device"], told["cost"]) == ("mlm", "CPU", {"seconds": 0.0})
