"""`recipes/glue.py` as a command."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pytest
from recipe_process import recipe_server
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast


ROOT = Path(__file__).parents[2]
SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoder")
    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]").save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=12, **sizes), add_pooling_layer=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glue")
    rows = {"sentence": ["a b c", "d e f", "g h", "a"] * 8, "label": [0, 1, 1, 1] * 8}
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(rows).to_parquet(folder / "cola" / f"{split}.parquet")
    return folder


def run(folder, *flags, **options):
    return recipe_server().run(folder, *flags, script="recipes/glue.py", **options)


def command(*flags):
    return [sys.executable, "recipes/glue.py", *map(str, flags)]


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def figures(output_dir):
    return [
        (record["metric"], record["per_seed"], record["baselines"]) for record in read(output_dir / "results.json")
    ]


def read(path):
    return json.loads(path.read_text())


def test_ends_with_a_table_and_a_file(encoder, dataset, tmp_path):
    flags = ["--encoder", encoder, "--task", "cola", "--dataset", dataset, "--output_dir", tmp_path]
    flags += ["--seeds", 1, "--epochs", 1, "--max_train_samples", 16, "--precision", "fp32"]
    result = run(tmp_path / "log", *flags)
    assert result.poll() == 0, result.stderr
    assert "cola, seed 0, random init: matthews_correlation" in result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("task  metric                encoder  random init  majority") for line in lines), lines
    (record,) = read(tmp_path / "results.json")
    assert record["command"].startswith(f"python recipes/glue.py --encoder {encoder.name} --task cola")
    assert (record["num_train"], record["num_eval"]) == (16, 32)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--task", "sst-2"], 'There is no GLUE task "sst-2".* Did you mean "sst2"?'),
        (["--task", "rte"], 'The task "rte" needs'),
    ],
)
def test_mistakes_end_in_one_sentence(encoder, dataset, tmp_path, flags, message):
    result = run(tmp_path, "--encoder", encoder, "--dataset", dataset, "--task", "cola", *flags)
    assert result.poll() in (1, 2)
    assert "Traceback" not in result.stderr
    before, _, after = message.partition(".*")
    assert before in result.stderr and after in result.stderr


@pytest.mark.distributed
def test_a_batch_is_dealt_to_all_processes(encoder, dataset, tmp_path):
    flags = ["--encoder", encoder, "--task", "cola", "--dataset", dataset, "--batch_size", 3]
    result = run(tmp_path, *flags, "--output_dir", tmp_path / "out", ranks=2)
    assert result.poll() == 2 and "3 rows cannot be dealt to 2 processes evenly" in result.stderr


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_command(encoder, dataset, tmp_path):
    flags = ["--encoder", encoder, "--task", "cola", "--dataset", dataset, "--seeds", 3, "--epochs", 30]
    flags += ["--precision", "fp32"]
    whole = run(tmp_path / "log", *flags, "--output_dir", tmp_path / "whole")
    assert whole.poll() == 0, whole.stderr

    cut = tmp_path / "cut"
    process = subprocess.Popen(
        command(*flags, "--output_dir", cut), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while not (cut / "cells.json").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = read(cut / "cells.json")
    assert 0 < len(kept) < 6

    resumed = run(tmp_path / "log again", *flags, "--output_dir", cut)
    assert f"{len(kept)} of 6 cells are done already" in resumed.stderr
    assert resumed.stderr.count("cola, seed") == 6 - len(kept)
    assert figures(cut) == figures(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes(encoder, dataset, tmp_path):
    flags = ["--encoder", encoder, "--task", "cola", "--dataset", dataset, "--seeds", 1, "--epochs", 3]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run(
        [*torchrun, *command(*flags, "--output_dir", tmp_path)[1:]],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("Written to") == 1
    (record,) = read(tmp_path / "results.json")
    assert record["num_eval"] == 32
