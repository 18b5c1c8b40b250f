"""`recipes/mlm.py` as a command: what it makes, and what it says where it cannot."""

import csv
import dataclasses
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from recipe_process import ROOT, TINY_ENCODER, printed_without_hfssl, recipe_server
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

from hfssl import MlmPreTrainingConfig, SSLTrainingArguments
from hfssl.cli.text.data import TextDataArguments


LOCK = ".hfssl.lock"


def no_way_out() -> dict[str, str]:
    """The environment of a run whose way to the Hub leads over a port where nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        proxy = f"http://127.0.0.1:{s.getsockname()[1]}"
    return {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}


def flags(**settings) -> list:
    settings = {
        "encoder_config": json.dumps(TINY_ENCODER), "vocab_size": 150, "max_length": 32, "max_steps": 4,
        "save_steps": 2, "per_device_train_batch_size": 4, "report_to": "none", "precision": "fp32", "eval_steps": 2,
        **settings,
    }  # fmt: skip
    return [word for name, value in settings.items() if value is not None for word in (f"--{name}", value)]


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return jsonl(tmp_path_factory.mktemp("corpus") / "texts.jsonl", ({"text": text} for text in tiny.texts(600)))


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory):
    """The folder of a run that ended well, not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    run = recipe_server().run(folder, *flags(dataset=corpus, output_dir=folder / "out", max_steps=8))
    assert run.poll() == 0, run.stderr
    return folder / "out"


@pytest.fixture
def copy_of_finished(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "out")


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def the_error(run) -> str:
    """The one sentence of a run that could not be."""
    assert run.poll() not in (0, None)
    assert "Traceback" not in run.stderr, run.stderr
    [error] = [line for line in run.stderr.splitlines() if "error: " in line]
    assert run.stderr.splitlines()[-1] == error
    return error.split("error: ", 1)[1]


# -- what it makes ----------------------------------------------------------------------------------------------------


def check_result(folder: Path) -> dict[str, dict]:
    """A whole result folder; returns the records of results.json by metric."""
    there = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "results.json", "pretraining"} <= there
    assert not (folder / ".staging").exists()
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in folder.iterdir())
    records = {record["metric"]: record for record in json.loads((folder / "results.json").read_text())}
    assert {"loss", "accuracy", "pseudo_perplexity"} <= set(records)
    assert records["loss"]["value"] < records["loss"]["baselines"]["before"]
    assert "unigram" in records["loss"]["baselines"]
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    with torch.no_grad():
        logits = model(**tokenizer("the quick brown fox", return_tensors="pt")).logits
    assert logits.isfinite().all()
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    scope: dict = {}
    exec(code.replace(f'"{folder.name}"', repr(str(folder))), scope)
    assert scope["feature"].shape == (2, model.config.hidden_size) and scope["feature"].isfinite().all()
    return records


def write_txt(folder: Path) -> Path:
    (folder / "texts").mkdir()
    for i in range(3):
        (folder / "texts" / f"{i}.txt").write_text("\n".join(tiny.texts(600)[200 * i : 200 * (i + 1)]))
    return folder / "texts"


def write_parquet(folder: Path) -> Path:
    pq.write_table(pa.table({"id": range(600), "text": tiny.texts(600)}), folder / "texts.parquet", row_group_size=50)
    return folder / "texts.parquet"


def write_csv(folder: Path) -> Path:
    with open(folder / "texts.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "stars"), *((text, 3) for text in tiny.texts(600))])
    return folder / "texts.csv"


def write_book(folder: Path) -> Path:
    """One text, which is one line."""
    (folder / "book.txt").write_text(" ".join(tiny.texts()))
    return folder / "book.txt"


def write_splits(folder: Path) -> Path:
    (folder / "splits").mkdir()
    jsonl(folder / "splits" / "train.jsonl", ({"text": text} for text in tiny.texts(600)))
    jsonl(folder / "splits" / "test.jsonl", ({"text": text} for text in tiny.texts(80, seed=1)))
    return folder / "splits"


DEBERTA = json.dumps(TINY_ENCODER | {"model_type": "deberta-v2"})
MODERN_BERT = TINY_ENCODER | {"model_type": "modernbert", "local_attention": 8, "global_attn_every_n_layers": 2}


@pytest.mark.parametrize(
    "write, settings, words",
    [
        (write_txt, {}, "3 txt files, 600 rows"),
        (write_parquet, {"packing": "false"}, "1 parquet file, 600 rows"),
        (write_csv, {"whole_word_masking": "true", "mask_ratio": 0.3}, "600 rows, column 'text'"),
        (write_book, {"sample_by": "document"}, "1 text: too few to hold some out. Cut into "),
        (write_splits, {"eval_split": "test"}, "Held out: 80 texts of the split test."),
        (write_txt, {"encoder_config": json.dumps(MODERN_BERT)}, "Held out"),
        (write_txt, {"encoder_config": json.dumps(TINY_ENCODER | {"model_type": "deberta-v2"}), "packing": "false"},
        ""), (write_txt, {"encoder_config": None, "encoder": "bert-tiny", "precision": "auto"}, "Held out"),
        (write_txt, {"gradient_accumulation_steps": 2, "dataloader_num_workers": 1, "gradient_checkpointing": "true",
        "max_steps": None, "max_tokens": 2 * 4 * 4 * 32}, "step 4: held-out"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_it_makes_a_stock_encoder(tmp_path, write, settings, words):
    command = flags(dataset=write(tmp_path), output_dir=tmp_path / "out", **settings)
    run = recipe_server().run(tmp_path, *command, drawn=not settings)
    assert run.poll() == 0, run.stderr
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    records = check_result(tmp_path / "out")
    assert f"{records['loss']['value']:.4f}" in run.stdout
    assert f"Result: {tmp_path / 'out'}" in run.stdout
    asked = json.loads(settings.get("encoder_config") or "{}").get("model_type", "bert")
    assert AutoConfig.from_pretrained(tmp_path / "out").model_type == asked


def test_without_a_data_set_it_takes_the_embedded_corpus(tmp_path):
    words = flags(output_dir=tmp_path / "out", vocab_size=1000, encoder="bert-tiny", encoder_config=None)
    run = recipe_server().run(tmp_path, *words, drawn=False)
    assert run.poll() == 0, run.stderr
    assert "Data: embedded corpus" in run.stderr
    check_result(tmp_path / "out")


def test_it_continues_its_own_result_with_its_tokenizer_and_figures(finished, corpus, tmp_path):
    finished = shutil.copytree(finished, tmp_path / "finished")
    tokenizer = AutoTokenizer.from_pretrained(finished)
    tokenizer.backend_tokenizer.enable_truncation(8, stride=2)
    tokenizer.backend_tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=8)
    tokenizer.save_pretrained(finished)
    run = recipe_server().run(
        tmp_path,
        *flags(
            dataset=corpus,
            output_dir=tmp_path / "out",
            encoder=finished,
            vocab_size=None,
            encoder_config='{"hidden_dropout_prob": 0.25}',
        ),
        drawn=False,
    )
    assert run.poll() == 0, run.stderr
    records = check_result(tmp_path / "out")
    first = {record["metric"]: record for record in json.loads((finished / "results.json").read_text())}
    assert records["loss"]["baselines"]["before"] == pytest.approx(first["loss"]["value"], rel=1e-5)
    # also that it truncates and pads, which rows of hfssl do not
    written = (tmp_path / "out" / "tokenizer.json").read_text()
    assert '"stride": 2' in written and written == (finished / "tokenizer.json").read_text()
    assert f"further from `{finished.name}`" in (tmp_path / "out" / "README.md").read_text()
    dropout = [AutoConfig.from_pretrained(folder).hidden_dropout_prob for folder in (finished, tmp_path / "out")]
    assert dropout == [0.1, 0.25]


def test_the_result_loads_where_hfssl_is_not(finished, tmp_path):
    code = """
        import sys

        class Gone:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "hfssl":
                    raise ModuleNotFoundError("No module named 'hfssl'")

        sys.meta_path.insert(0, Gone())
        try:
            import hfssl
        except ModuleNotFoundError:
            print("no hfssl")
        import torch
        from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

        folder = sys.argv[1]
        model, info = AutoModelForMaskedLM.from_pretrained(folder, output_loading_info=True)
        print(type(model).__name__, [sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")])
        tokens = AutoTokenizer.from_pretrained(folder)("the quick brown fox", return_tensors="pt")
        encoder = AutoModel.from_pretrained(folder)
        same = torch.equal(encoder(**tokens).last_hidden_state, model.eval().bert(**tokens).last_hidden_state)
        print(type(encoder).__name__, same)
        fill = pipeline("fill-mask", folder)
        print(len(fill(f"the quick {fill.tokenizer.mask_token} fox")))
    """
    said = printed_without_hfssl(tmp_path, code, finished).splitlines()
    assert said == ["no hfssl", "BertForMaskedLM [[], [], []]", "BertModel True", "5"]


def test_the_method_loads_from_pretraining(finished):
    model = AutoModelForPreTraining.from_pretrained(finished, subfolder="pretraining")
    assert type(model).__name__ == "MlmForPreTraining"
    stock = AutoModelForMaskedLM.from_pretrained(finished).state_dict()
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, stock[name]), name


def test_the_seed_decides_the_first_weights_in_any_process(corpus, tmp_path):
    first = {}
    for name, seed, before in [("a", 1, ""), ("b", 2, ""), ("c", 1, "import torch; torch.rand(3)")]:
        words = flags(dataset=corpus, output_dir=tmp_path / name / "out", max_steps=1, learning_rate=0, seed=seed)
        run = recipe_server().run(tmp_path / name, *words, before=before, drawn=False)
        assert run.poll() == 0, run.stderr
        first[name] = (tmp_path / name / "out" / "model.safetensors").read_bytes()
    assert first["a"] == first["c"] != first["b"]


def test_the_same_command_after_the_end_is_harmless(copy_of_finished, corpus, tmp_path):
    before = contents(copy_of_finished)
    run = recipe_server().run(
        tmp_path, *flags(dataset=corpus, output_dir=copy_of_finished, max_steps=8), before=NO_TRAINING
    )
    assert run.poll() == 0, run.stderr
    assert "The run is finished" in run.stderr
    after = contents(copy_of_finished)
    assert after.keys() == before.keys()
    for name in before:  # the card and the records name commands and folders
        if name not in ("README.md", "results.json", "run.json", "report.html", "assets/loss.png"):
            assert after[name] == before[name], name
    old, new = (json.loads(files["results.json"]) for files in (before, after))
    assert [record["value"] for record in new[-len(old) :]] == [r["value"] for r in old]


NO_TRAINING = """
from transformers import Trainer
def training_step(*args, **kwargs):
    raise AssertionError("a step was trained")
Trainer.training_step = training_step
"""


def test_help_shows_the_fields_of_method_data_and_run(tmp_path):
    run = recipe_server().run(tmp_path, "--help", COLUMNS=100)
    assert run.poll() == 0
    shown = set(re.findall(r"--(\w+)", run.stdout))
    own = set(MlmPreTrainingConfig.__annotations__) | {field.name for field in dataclasses.fields(TextDataArguments)}
    of_the_run = set(SSLTrainingArguments._help_fields) - {"contrastive_batch_size"}  # of methods that contrast
    assert own | of_the_run | {"encoder", "attention", "precision", "resume"} <= shown
    assert not {"adam_beta1", "contrastive_batch_size"} & shown
    everything = recipe_server().run(tmp_path / "all", "--help-all").stdout
    assert {"adam_beta1", "hub_strategy"} <= set(re.findall(r"--(\w+)", everything))
    assert len(run.stdout.splitlines()) < 215


def test_a_yaml_is_the_same_as_flags(corpus, tmp_path):
    words = flags(dataset=corpus, encoder_config=None, max_steps=2)
    pairs = dict(zip(words[::2], words[1::2], strict=True))
    lines = [f"{name.removeprefix('--')}: {value}" for name, value in pairs.items()]
    (tmp_path / "run.yaml").write_text(
        "\n".join([*lines, "encoder_config:", *(f"  {k}: {v}" for k, v in TINY_ENCODER.items())])
    )
    by_yaml = recipe_server().run(
        tmp_path / "a", "--config", tmp_path / "run.yaml", "--output_dir", tmp_path / "a" / "out", drawn=False
    )
    by_flags = recipe_server().run(
        tmp_path / "b", *flags(dataset=corpus, output_dir=tmp_path / "b" / "out", max_steps=2), drawn=False
    )
    assert by_yaml.poll() == by_flags.poll() == 0, by_yaml.stderr
    same = [(tmp_path / name / "out" / "model.safetensors").read_bytes() for name in "ab"]
    assert same[0] == same[1]


# -- what it says where it cannot -------------------------------------------------------------------------------------


def broken_parquet(folder):
    (folder / "broken.parquet").write_bytes(b"PAR1" + bytes(300))
    return folder / "broken.parquet"


def cut_parquet(folder):
    path = write_parquet(folder)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def empty_file(folder):
    return jsonl(folder / "empty.jsonl", [])


def empty_folder(folder):
    (folder / "none").mkdir()
    return folder / "none"


def blank_rows(folder):
    return jsonl(folder / "blank.jsonl", [{"text": " "}] * 300)


def numbers(folder):
    return jsonl(folder / "numbers.jsonl", [{"stars": 3}] * 300)


def two_columns(folder):
    return jsonl(folder / "two.jsonl", [{"title": text, "story": text} for text in tiny.texts(50)])


def images(folder):
    (folder / "images").mkdir()
    (folder / "images" / "a.png").write_bytes(b"\x89PNG")
    return folder / "images"


def damaged_rows(folder):
    rows = [json.dumps({"text": text}) for text in tiny.texts(2000)]
    (folder / "damaged.jsonl").write_text(
        "\n".join('{"text": "cut' if i % 20 == 0 else row for i, row in enumerate(rows))
    )
    return folder / "damaged.jsonl"


@pytest.mark.parametrize(
    "write, settings, words",
    [
        (lambda folder: folder / "nope.jsonl", {}, ["nope.jsonl' does not exist", "Pass an existing file or folder"]),
        (
            lambda folder: "someone/nothing",
            {},
            ["no file or folder 'someone/nothing' here", "The Hub has no data set"],
        ),
        (empty_file, {}, ["empty.jsonl' is empty"]),
        (empty_folder, {}, ["none' is empty", "Supported files are txt"]),
        (blank_rows, {}, ["300 rows", "every sample is empty or damaged", "--text_column"]),
        (numbers, {}, ["no column of type text", "'stars' (int64)"]),
        (images, {}, ["images"]),
        (two_columns, {}, ["2 columns of type text", "'title' (string), 'story' (string)", "--text_column"]),
        (two_columns, {"text_column": "storey"}, ["no column 'storey'", "Did you mean 'story'?"]),
        (broken_parquet, {}, ["broken.parquet", "not a whole Parquet file", "Download or write it again"]),
        (cut_parquet, {}, ["texts.parquet", "not a whole Parquet file"]),
        (write_txt, {"split": "dev"}, ["no split 'dev'", "'train'", "--split"]),
        (write_txt, {"eval_split": "dev"}, ["no split 'dev'", "'train'", "--eval_split"]),
        (write_txt, {"dataset_config": "en"}, ["--dataset_config"]),
        (damaged_rows, {}, ["are damaged, more than the 1.0%", "--max_bad_fraction", "damaged.jsonl"]),
    ],
)
def test_data_that_cannot_be_had(tmp_path, write, settings, words):
    command = flags(dataset=write(tmp_path), output_dir=tmp_path / "out", **settings)
    run = recipe_server().run(tmp_path, *command, drawn=not settings)
    error = the_error(run)
    for word in words:
        assert word in error
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {LOCK}


@pytest.mark.parametrize("settings, words", [
    ({"learnin_rate": 1}, ["unknown flag --learnin_rate", "Did you mean --learning_rate?"]),
    ({"config": "no.yaml"}, ["cannot read no.yaml"]),
    ({"max_steps": "many"}, ["--max_steps expects a whole number", "'many'"]),
    ({"max_steps": 0}, ["--max_steps", "at least 1, got 0"]),
    ({"max_length": 65}, ["--max_length 65", "64 positions", "--max_length 64"]),
    ({"max_length": 2}, ["--max_length 2", "no room for text", "Pass at least 3"]),
    ({"per_device_train_batch_size": 0}, ["--per_device_train_batch_size", "at least 1, got 0"]),
    ({"gradient_accumulation_steps": 0}, ["--gradient_accumulation_steps", "at least 1, got 0"]),
    ({"mask_ratio": 1.5}, ["mask_ratio", "between 0 and 1, got 1.5"]),
    ({"precision": "fp16"}, ["--precision fp16", "needs a GPU", "auto, bf16 or fp32"]),
    ({"precision": "fp8"}, ["--precision", "fp8"]),
    ({"seed": -1}, ["--seed", "-1"]),
    ({"report_to": "nobody"}, ["--report_to nobody", "tensorboard"]),
    ({"cpu_threads": 0}, ["--cpu_threads", "at least 1"]),
    ({"hub_strategy": "checkpoint"}, ["--hub_strategy checkpoint", "optimizer states"]),
    ({"load_best_model_at_end": "true"}, ["--load_best_model_at_end", "--save_total_limit"]),
    ({"attention": "nope"}, ["--attention nope", "sdpa"]),
    ({"resume": "nowhere/checkpoint-3"}, ["--resume nowhere/checkpoint-3", "there is no such folder", "--resume auto"]),
    ({"encoder": "bert-smal", "encoder_config": None}, ["--encoder bert-smal", "bert-small"]),
    ({"encoder": "nope.json", "encoder_config": None}, ["--encoder nope.json", "No such file"]),
    ({"encoder_config": '{"model_type": "brt"}'}, ["--encoder_config", "'brt'", "Did you mean bert?"]),
    ({"encoder_config": '{"model_type": "gpt2"}'}, ["no masked language model of type gpt2", "modernbert"]),
    ({"encoder_config": '{"model_type"'}, ["--encoder_config expects", "not valid JSON"]),
    ({"encoder_config": json.dumps(TINY_ENCODER | {"num_attention_heads": 3})}, ["number of attention heads (3)"]),
    ({"encoder_config": json.dumps(TINY_ENCODER | {"num_hidden_layers": "two"})}, ["num_hidden_layers"]),
    ({"encoder_config": DEBERTA}, ["cannot be packed", "--packing false"]),
    ({"encoder": "bert-tiny", "encoder_config": '{"hiden_size": 4}'}, ["bert-tiny has no field 'hiden_size'"]),
    ({"vocab_size": 3}, ["vocabulary of 3 entries is too small", "--vocab_size"]),
    ({"tokenizer": "someone/nothing"}, ["tokenizer 'someone/nothing' cannot be loaded", "The Hub has no such model"]),
    ({"held_out_fraction": 2}, ["--held_out_fraction", "between 0 and 1"]),
    ({"max_tokens": 500, "max_steps": None, "packing": "false"}, ["--max_tokens", "--max_steps"]),
    ({"max_tokens": 500}, ["--max_steps 4 and --max_tokens 500 both say how long", "Leave out --max_tokens"]),
], ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "")  # fmt: skip
def test_settings_that_cannot_work(corpus, tmp_path, settings, words):
    run = recipe_server().run(tmp_path, *flags(dataset=corpus, output_dir=tmp_path / "out", **settings))
    error = the_error(run)
    for word in words:
        assert word in error
    assert not (tmp_path / "out").exists() or {path.name for path in (tmp_path / "out").iterdir()} <= {LOCK}


@pytest.mark.parametrize("settings, words", [
    ({"dataset": "someone/data"}, ["'someone/data'", "cannot be reached", "hf download"]),
    ({"tokenizer": "someone/model"}, ["'someone/model'", "cannot be reached", "hf download"]),
    ({"encoder": "someone/model", "encoder_config": None}, ["--encoder someone/model", "cannot be reached", "hf download"]),
    ({"push_to_hub": "true", "hub_model_id": "alice/x"}, ["Cannot push to alice/x", "cannot be reached", "without"]),
], ids=["dataset", "tokenizer", "encoder", "push"])  # fmt: skip
def test_a_hub_out_of_reach(corpus, tmp_path, settings, words):
    command = flags(**({"dataset": corpus, "output_dir": tmp_path / "out"} | settings))
    run = recipe_server().run(tmp_path, *command, **no_way_out())
    error = the_error(run)
    for word in words:
        assert word in error
    assert {path.name for path in (tmp_path / "out").iterdir()} == {LOCK}


def test_a_folder_where_a_run_failed_does_not_block_the_next(corpus, tmp_path):
    settings = {"dataset": corpus, "output_dir": tmp_path / "out"}
    the_error(recipe_server().run(tmp_path / "a", *flags(**settings, text_column="body")))
    for resume in ("auto", "never"):
        the_error(recipe_server().run(tmp_path / "b", *flags(**settings, max_length=500, resume=resume)))
    run = recipe_server().run(tmp_path / "c", *flags(**settings, resume="never"), drawn=False)
    assert run.poll() == 0, run.stderr
    check_result(tmp_path / "out")


def test_tokenizers_and_encoders_that_do_not_fit(finished, corpus, tmp_path):
    tiny.tokenizer().save_pretrained(tmp_path / "small")
    big = AutoTokenizer.from_pretrained(finished)
    big.add_tokens([f"word{i}" for i in range(20)])
    big.save_pretrained(tmp_path / "big")
    no_mask = AutoTokenizer.from_pretrained(finished)
    no_mask.mask_token = None
    no_mask.save_pretrained(tmp_path / "no_mask")
    cut = shutil.copytree(finished, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-1000])
    bare = shutil.copytree(finished, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    entries = AutoConfig.from_pretrained(finished).vocab_size
    for settings, words in [
        (
            {"encoder": finished, "tokenizer": tmp_path / "big"},
            [f"{entries + 20} entries", f"embeddings for {entries}"],
        ),
        ({"encoder": finished, "tokenizer": tmp_path / "no_mask"}, ["needs a mask token"]),
        ({"encoder": finished, "max_length": 65}, ["--max_length 65", "64 positions"]),
        ({"encoder": finished / "pretraining"}, ["pretraining", "holds no tokenizer"]),
        ({"encoder": finished / "pretraining", "tokenizer": finished}, ["pretraining", "no"]),
        ({"encoder": cut}, [str(cut), "a checkpoint of a masked language model"]),
        ({"encoder": bare}, [str(bare), "model.safetensors"]),
        ({"encoder": tmp_path / "nowhere"}, ["nowhere", "no such folder"]),
        ({"encoder": finished, "encoder_config": '{"hiden_size": 4}'}, [f"{finished} has no field 'hiden_size'"]),
        ({"encoder": finished, "encoder_config": '{"num_hidden_layers": 3}'}, [f"other weights than {finished} has"]),
        ({"encoder": finished, "encoder_config": json.dumps(TINY_ENCODER)}, [str(finished), "Pass one of them"]),
    ]:
        settings = {"encoder_config": None, "vocab_size": None, **settings}
        run = recipe_server().run(tmp_path / "log", *flags(dataset=corpus, output_dir=tmp_path / "out", **settings))
        error = the_error(run)
        for word in words:
            assert word in error, settings


def test_a_folder_of_another_run_is_left_alone(copy_of_finished, corpus, tmp_path):
    before = contents(copy_of_finished)
    other = jsonl(tmp_path / "other.jsonl", [{"text": text} for text in tiny.texts(300, seed=9)])
    changed = jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in tiny.texts(600, seed=9)])
    for settings, words in [
        (
            {"learning_rate": 3e-4},
            ["holds another run: learning_rate was 0.001, is 0.0003", "Pass another `--output_dir`"],
        ),
        ({"mask_ratio": 0.3, "seed": 1}, ["mask_ratio was 0.15, is 0.3", "seed was 42, is 1"]),
        ({"dataset": other}, ["holds another run: dataset was"]),
        ({"vocab_size": 160}, ["vocab_size was 150, is 160"]),
        ({"tokenizer": copy_of_finished, "vocab_size": 150}, ["tokenizer was 'None'"]),
        ({"max_steps": 4}, ["max_steps was 8, is 4"]),
        ({"encoder_config": json.dumps(TINY_ENCODER | {"num_hidden_layers": 1})}, ["num_hidden_layers was 2, is 1"]),
        ({"resume": "never"}, ["holds another run already"]),
    ]:
        settings = {"dataset": corpus, "max_steps": 8, **settings}
        error = the_error(recipe_server().run(tmp_path / "log", *flags(output_dir=copy_of_finished, **settings)))
        for word in words:
            assert word in error, settings
    # the same path with other texts
    moved = tmp_path / "moved"
    shutil.copytree(copy_of_finished, moved)
    manifest = moved / "checkpoint-8" / "manifest.json"
    content = json.loads(manifest.read_text())
    content["settings"]["dataset"] = str(changed)
    manifest.write_text(json.dumps(content))
    state = json.loads((moved / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["global_step"] == 8
    error = the_error(recipe_server().run(tmp_path / "log", *flags(output_dir=moved, dataset=changed, max_steps=8)))
    assert "the data set has changed" in error
    assert contents(copy_of_finished) == before


def test_a_folder_with_something_else_is_left_alone(corpus, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("\\begin{document}")
    (tmp_path / "file").write_text("")
    run = recipe_server().run(tmp_path, *flags(dataset=corpus, output_dir=tmp_path / "out"))
    error = the_error(run)
    assert "not empty (thesis.tex)" in error and "Pass another `--output_dir`" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
    run = recipe_server().run(tmp_path, *flags(dataset=corpus, output_dir=tmp_path / "file"))
    assert "Cannot write to the output folder" in the_error(run)


def test_a_folder_in_use_is_left_alone_until_its_process_is_gone(corpus, tmp_path):
    settings = {"dataset": corpus, "output_dir": tmp_path / "out", "max_steps": 100_000, "save_steps": 10}
    first = recipe_server().start(tmp_path / "first", *flags(**settings))
    try:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "out").glob("checkpoint-*")):
            assert first.poll() is None and time.monotonic() < deadline, first.stderr
            time.sleep(0.01)
        error = the_error(recipe_server().run(tmp_path / "second", *flags(**settings)))
        assert f"in use by another process (pid {first.pids[0]})" in error
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    third = recipe_server().start(tmp_path / "third", *flags(**settings))
    while "Continuing from" not in third.stderr:
        assert third.poll() is None, third.stderr
        time.sleep(0.01)
    third.kill()
    third.wait()


def test_a_damaged_checkpoint_is_passed_over_and_made_again(copy_of_finished, finished, corpus, tmp_path):
    for name, step in (("optimizer.pt", 8),):
        path = copy_of_finished / f"checkpoint-{step}" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    command = flags(dataset=corpus, output_dir=copy_of_finished, max_steps=8)
    run = recipe_server().run(tmp_path, *command, drawn=False)
    assert run.poll() == 0, run.stderr
    assert run.stderr.count("checkpoint-8 is damaged (optimizer.pt was changed). Trying the one before.") == 1
    assert f"Continuing from {copy_of_finished / 'checkpoint-6'}" in run.stderr
    for name in ("model.safetensors", "checkpoint-8/model.safetensors"):
        assert (copy_of_finished / name).read_bytes() == (finished / name).read_bytes()
    assert (copy_of_finished / "damaged-checkpoint-8").is_dir()
    again = recipe_server().run(tmp_path, *command, drawn=False)
    assert again.poll() == 0 and "is damaged" not in again.stderr and "The run is finished" in again.stderr
    # none is left
    for checkpoint in copy_of_finished.glob("checkpoint-*"):
        (checkpoint / "model.safetensors").unlink()
    error = the_error(recipe_server().run(tmp_path, *command))
    assert "No whole checkpoint is left" in error and "--output_dir" in error


# -- a full disk ------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(megabytes)`: a folder on a disk of that size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(megabytes):
        command = ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "none", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("may not mount a small disk here")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], capture_output=True)


def test_a_disk_that_is_too_small_is_seen_before_training(small_disk, corpus, tmp_path):
    out = small_disk(1) / "out"
    error = the_error(recipe_server().run(tmp_path / "log", *flags(dataset=corpus, output_dir=out)))
    assert "GB left" in error and "--output_dir" in error
    assert {path.name for path in out.iterdir()} == {LOCK}


def test_a_disk_that_fills_up_costs_no_checkpoint(small_disk, corpus, tmp_path):
    out = small_disk(4) / "out"
    settings = {"dataset": corpus, "max_steps": 30, "save_steps": 1, "eval_steps": 30}
    run = recipe_server().run(tmp_path / "full", *flags(**settings, output_dir=out, save_total_limit=99))
    error = the_error(run)
    assert "No space left for checkpoint-" in error and "Last good checkpoint: " in error
    last = int(re.search(r"Last good checkpoint: \S+checkpoint-(\d+)", error)[1])
    assert {path.name for path in out.glob("checkpoint-*")} == {f"checkpoint-{i}" for i in range(1, last + 1)}
    assert not any(out.glob(".staging/*"))
    for i in range(1, last):
        shutil.rmtree(out / f"checkpoint-{i}")
    words = flags(**settings, output_dir=out, save_total_limit=1)
    again = recipe_server().run(tmp_path / "again", *words, drawn=False)
    assert again.poll() == 0, again.stderr
    words = flags(**settings, output_dir=tmp_path / "whole" / "out")
    whole = recipe_server().run(tmp_path / "whole", *words, drawn=False)
    assert whole.poll() == 0, whole.stderr
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "whole" / "out" / "model.safetensors").read_bytes()


FILL_THE_DISK = """
import hfssl.training.trainer as trainer
write_result = trainer.write_result
def fill_and_write(run, output_dir, *args, **kwargs):
    with open(output_dir / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    return write_result(run, output_dir, *args, **kwargs)
trainer.write_result = fill_and_write
"""


def test_a_disk_without_room_for_the_result_costs_no_training(small_disk, corpus, tmp_path):
    out = small_disk(4) / "out"
    command = flags(dataset=corpus, output_dir=out)
    error = the_error(recipe_server().run(tmp_path / "full", *command, before=FILL_THE_DISK))
    assert "No space left for the result" in error and "checkpoint-4" in error
    assert not (out / "config.json").exists()
    (out / "ballast").unlink()
    again = recipe_server().run(tmp_path / "again", *command, before=NO_TRAINING, drawn=False)
    assert again.poll() == 0, again.stderr
    check_result(out)


# -- as the README says -----------------------------------------------------------------------------------------------


def launched(*command, cwd=ROOT, **environment):
    env = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    words = [sys.executable, *map(str, command)]
    return subprocess.run(
        words, cwd=cwd, env=env | {"PYTHONPATH": str(ROOT)} | environment, capture_output=True, text=True, timeout=500
    )


# slow: mistakes above end in forks, real commands below train
@pytest.mark.slow
def test_a_mistake_in_a_real_command(tmp_path):
    process = launched("recipes/mlm.py", "--dataset", tmp_path / "nope.txt", "--output_dir", tmp_path / "out")
    assert process.returncode == 1
    assert process.stderr.startswith("error: ") and process.stderr.count("\n") == 1
    assert "nope.txt' does not exist" in process.stderr


# Stops the recipe where it would train, and says how many threads it would have trained with.
THREADS = """
import runpy, sys
import torch
from hfssl import SSLTrainer
def train(self):
    sys.stdout.write(f"threads {torch.get_num_threads()}\\n")  # at once: processes share the pipe
    sys.stdout.flush()
    sys.exit(0)
SSLTrainer.train = train
sys.argv[0] = "recipes/mlm.py"
runpy.run_path(sys.argv[0], run_name="__main__")
"""
ACCELERATE = ("-m", "accelerate.commands.launch", "--num_processes", 1, "--num_machines", 1, "--mixed_precision", "no")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2)
CORES = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    "launcher, environment, settings, expected",
    [
        (ACCELERATE, {}, {}, [CORES]),
        pytest.param(ACCELERATE, {"OMP_NUM_THREADS": "1"}, {}, [1], marks=pytest.mark.slow),
        pytest.param(ACCELERATE, {}, {"cpu_threads": 1}, [1], marks=pytest.mark.slow),
        pytest.param(ACCELERATE, {"OMP_NUM_THREADS": "1"}, {"cpu_threads": CORES}, [CORES], marks=pytest.mark.slow),
        pytest.param(TORCHRUN, {}, {}, [max(1, CORES // 2)] * 2, marks=[pytest.mark.slow, pytest.mark.distributed]),
        pytest.param((), {}, {}, [CORES], marks=pytest.mark.slow),
        pytest.param((), {"OMP_NUM_THREADS": "1"}, {}, [1], marks=pytest.mark.slow),
    ],
)
def test_all_cores_are_used_unless_the_user_set_a_number(corpus, tmp_path, launcher, environment, settings, expected):
    (tmp_path / "threads.py").write_text(THREADS)
    words = flags(dataset=corpus, output_dir=tmp_path / "out", **settings)
    process = launched(*launcher, tmp_path / "threads.py", *words, **environment)
    assert process.returncode == 0, process.stderr
    assert re.findall(r"threads (\d+)", process.stdout) == [str(number) for number in expected]


@pytest.mark.slow
def test_the_command_of_the_readme(tmp_path):
    """No flags at all, in a folder of its own: minutes."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    process = launched(*ACCELERATE, "recipes/mlm.py", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    records = check_result(tmp_path / "outputs" / "mlm")
    assert records["accuracy"]["value"] > 1.5 * records["accuracy"]["baselines"]["unigram"]
    assert "Next:" in process.stdout and "the model, with its probabilities:" in process.stdout
    assert load_file(tmp_path / "outputs" / "mlm" / "model.safetensors")
