"""GLUE on a task of our own that a tiny encoder learns in a second: does a sentence hold a good word or a bad one?"""

import json
import random
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from recipe_process import printed_without_hfssl
from text_encoder import WORDS, make_config, make_tokenizer, save_text_encoder
from transformers import AutoModel, BertModel, RobertaConfig, RobertaModel, ViTConfig

from hfssl.evaluation import EvaluationError, GlueEvaluator, read_results
from hfssl.evaluation import glue as glue_module
from hfssl.evaluation.glue import _LengthGroupedTrainer
from hfssl.evaluation.glue_tasks import TASKS, load_task, parse_tasks, subset
from hfssl.evaluation.text.encoder import TextEncoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return save_text_encoder(tmp_path_factory.mktemp("encoder"))


def make_rows(task, size, seed):
    rng = random.Random(seed)
    rows = []
    for index in range(size):
        # one label is the more frequent, so that the majority says something
        label = int(rng.random() < 0.6)
        texts = [" ".join(rng.choices(WORDS[2:], k=rng.randint(2, 9))) for _ in TASKS[task].sentences]
        texts[-1] = f"{('bad', 'good')[label]} {texts[-1]}"
        row = dict(zip(TASKS[task].sentences, texts, strict=True))
        rows.append(row | {"label": label * 4.5 if task == "stsb" else label, "idx": index})
    return rows


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A folder with the layout of the Hub's GLUE."""
    folder = tmp_path_factory.mktemp("glue")
    for task in ("sst2", "mrpc", "stsb", "mnli"):
        for seed, split in enumerate(("train", *TASKS[task].eval_splits)):
            rows = datasets.Dataset.from_list(make_rows(task, 120 if split == "train" else 40, seed))
            rows.to_parquet(folder / task / f"{split}.parquet")
    return folder


def evaluator(dataset, task="sst2", **settings):
    quick = {"seeds": 1, "epochs": 1, "learning_rate": 3e-3, "precision": "fp32", "save_model": False}
    return GlueEvaluator(task=task, dataset=str(dataset), **quick | settings)


@pytest.fixture
def trained(monkeypatch):
    """The cells that were trained, which then takes no time: the score is made up from the cell."""
    cells = []

    def train(run, task, seed, kind):
        cells.append((task, seed, kind))
        value = 0.5 + 0.1 * seed + 0.05 * (kind == "encoder")
        return {split: dict.fromkeys(TASKS[task].metrics, value) for split in TASKS[task].eval_splits}

    monkeypatch.setattr(glue_module._Run, "_train", train)
    return cells


def test_learns_above_the_majority_and_writes_it_down(encoder, dataset, tmp_path):
    run = evaluator(dataset, epochs=8, seeds=2)
    results = run(encoder, output_dir=tmp_path, command="python recipes/glue.py")
    (result,) = results
    assert (result.task, result.metric, result.split) == ("sst2", "accuracy", "validation")
    assert result.value > 0.9 > 0.7 > result.baselines["majority"]
    assert result.baselines["random_init"] > result.baselines["majority"]
    assert (result.num_train, result.num_eval, result.seeds) == (120, 40, [0, 1])
    assert result.hyperparameters["learning_rate"] == 3e-3
    assert result.hyperparameters["overridden"] == ["epochs", "learning_rate"]
    assert run.primary_metric == "accuracy" and run.score(results) == result.value
    (record,) = read_results(tmp_path / "results.json")
    assert record["value"] == result.value and record["command"] == "python recipes/glue.py"
    assert (record["protocol"], record["version"]) == ("glue", 1)


CLASSIFY = """
import json, sys
sys.modules["hfssl"] = None  # importing it fails, as where it is not installed
from transformers import pipeline

classify = pipeline(sys.argv[1], sys.argv[2])
print(json.dumps([classify(each)[0]["label"] for each in sys.argv[3:]]))
"""


def test_the_classifier_of_seed_0_stays_and_loads_where_there_is_no_hfssl(encoder, dataset, tmp_path):
    run = evaluator(dataset, epochs=8, save_model=True, random_init=False)
    run(encoder, output_dir=tmp_path)
    folder = tmp_path / "model" / "sst2"
    texts = ["bad a b c", "good x y", "bad f", "good v u"]
    said = json.loads(printed_without_hfssl(tmp_path, CLASSIFY, "text-classification", folder, *texts))
    assert said == ["negative", "positive", "negative", "positive"]
    card = (folder / "README.md").read_text()
    assert "2 classes apart: negative, positive" in card and "those of seed 0, whatever it scored" in card
    assert str(tmp_path) not in card  # it may leave this machine
    # what is lost is made again, and what is there is not
    written = (folder / "model.safetensors").stat().st_mtime_ns
    run(encoder, output_dir=tmp_path)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (folder / "config.json").unlink()
    run(encoder, output_dir=tmp_path)
    assert (folder / "config.json").is_file()


def test_a_model_in_memory_gives_the_same_as_its_folder(encoder, dataset):
    model = AutoModel.from_pretrained(encoder, add_pooling_layer=False)
    run = evaluator(dataset, max_train_samples=32, random_init=False)
    (from_folder,), (from_model,) = run(encoder), run(model, make_tokenizer())
    assert from_folder.per_seed == from_model.per_seed
    with pytest.raises(ValueError, match="BertModel given as an object needs its tokenizer"):
        run(model)


def test_a_regression_and_a_pair_of_splits(encoder, dataset):
    run = evaluator(dataset, "stsb,mnli", epochs=15, batch_size=8, random_init=False)
    results = run(encoder)
    assert [(result.task, result.split, result.metric) for result in results] == [
        ("stsb", "validation", "pearsonr"),
        ("stsb", "validation", "spearmanr"),
        ("mnli", "validation_matched", "accuracy"),
        ("mnli", "validation_mismatched", "accuracy"),
    ]
    values = [result.value for result in results]
    assert values[0] > 0.8 and values[2] > 0.8
    assert results[0].baselines["majority"] == 0.0
    assert run.primary_metric == "glue_score"
    assert run.score(results) == pytest.approx(np.mean([np.mean(values[:2]), np.mean(values[2:])]))


def test_the_protocol_is_that_of_the_task_unless_overridden(encoder, dataset, trained):
    results = GlueEvaluator(task="mrpc", dataset=str(dataset), precision="bf16")(encoder)
    assert [result.metric for result in results] == ["accuracy", "f1"]
    chosen = results[0].hyperparameters
    assert (chosen["learning_rate"], chosen["batch_size"], chosen["epochs"]) == (8e-5, 32, 10)
    assert (chosen["overridden"], chosen["max_length"], chosen["precision"]) == ([], 64, "bf16")
    assert results[0].seeds == [0, 1, 2]


def test_seeds_and_baseline_are_put_where_they_belong(encoder, dataset, trained):
    (result,) = evaluator(dataset, seeds=3)(encoder)
    assert result.per_seed == pytest.approx([0.55, 0.65, 0.75])
    assert (result.value, result.std) == (pytest.approx(0.65), pytest.approx(0.1))
    assert result.baselines["random_init"] == pytest.approx(0.6)


def test_goes_on_where_it_was_interrupted(encoder, dataset, tmp_path, monkeypatch, trained):
    train, budget = glue_module._Run._train, [3]

    def killed_later(*cell):
        if not budget[0]:
            raise KeyboardInterrupt
        budget[0] -= 1
        return train(*cell)

    run = evaluator(dataset, "sst2,mrpc", seeds=2)
    monkeypatch.setattr(glue_module._Run, "_train", killed_later)
    with pytest.raises(KeyboardInterrupt):
        run(encoder, output_dir=tmp_path)
    assert len(json.loads((tmp_path / "cells.json").read_text())) == 3
    assert not (tmp_path / "results.json").exists()

    budget[0] = 100
    run(encoder, output_dir=tmp_path)
    assert len(trained) == len(set(trained)) == 8
    trained.clear()
    assert run(encoder, output_dir=tmp_path)[0].per_seed == pytest.approx([0.55, 0.65])
    assert trained == []


def test_more_seeds_or_other_settings_train_only_what_is_new(encoder, dataset, tmp_path, trained):
    evaluator(dataset, seeds=1)(encoder, output_dir=tmp_path)
    trained.clear()
    evaluator(dataset, seeds=2)(encoder, output_dir=tmp_path)
    assert trained == [("sst2", 1, "encoder"), ("sst2", 1, "random_init")]
    trained.clear()
    evaluator(dataset, learning_rate=1e-3)(encoder, output_dir=tmp_path)
    assert len(trained) == 2


def test_other_weights_are_other_cells_but_the_random_initialisation_stays(encoder, dataset, tmp_path, trained):
    run = evaluator(dataset)
    run(encoder, output_dir=tmp_path)
    trained.clear()
    other = tmp_path / "other"
    torch.manual_seed(1)
    BertModel(make_config(), add_pooling_layer=False).save_pretrained(other)
    make_tokenizer().save_pretrained(other)
    run(other, output_dir=tmp_path)
    assert trained == [("sst2", 0, "encoder")]


def test_encoder_and_random_initialisation_start_from_what_their_names_say(encoder):
    source = TextEncoder(str(encoder), max_length=128)
    loaded, fresh = source.load(2, seed=0), source.load(2, seed=0, random_init=True)
    pretrained = AutoModel.from_pretrained(encoder, add_pooling_layer=False).state_dict()
    for name, tensor in pretrained.items():
        torch.testing.assert_close(loaded.bert.state_dict()[name], tensor)
    name = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(fresh.bert.state_dict()[name], pretrained[name])
    assert loaded.num_labels == 2 and loaded.dtype == torch.float32


def test_rows_are_in_the_same_order_whatever_the_random_state(encoder, tmp_path):
    from transformers import TrainingArguments

    rows = datasets.Dataset.from_dict({"input_ids": [[1]] * 40, "length": list(range(40))})
    orders = []
    for _ in range(2):
        torch.rand(len(orders) + 1)
        args = TrainingArguments(
            tmp_path, use_cpu=True, seed=3, train_sampling_strategy="group_by_length", report_to="none"
        )
        model = BertModel(make_config())
        sampler = _LengthGroupedTrainer(model, args, train_dataset=rows)._get_train_sampler()
        orders.append([list(sampler), list(sampler)])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][1], "each epoch has an order of its own"


def test_a_subset_is_always_the_same_and_lies_in_a_larger_one(dataset):
    rows = load_task(str(dataset), "sst2")["train"]
    small, again, large = subset(rows, 10)["idx"][:], subset(rows, 10)["idx"][:], subset(rows, 50)["idx"][:]
    assert small == again and set(small) < set(large) and len(large) == 50
    assert len(subset(rows, 1000)) == 120


def test_length_is_that_which_the_encoder_takes(tmp_path):
    # RoBERTa counts positions from padding_idx + 1 on
    RobertaModel(make_config(RobertaConfig, max_position_embeddings=20, pad_token_id=0)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert TextEncoder(str(tmp_path), max_length=128).max_length == 19
    assert TextEncoder(str(tmp_path), max_length=12).max_length == 12


def test_second_sentences_are_marked_where_the_encoder_knows_types(encoder, tmp_path):
    rows = datasets.Dataset.from_dict({"sentence1": ["a b"], "sentence2": ["c"], "label": [1]})
    encoded = TextEncoder(str(encoder), 128).encode(rows, ("sentence1", "sentence2"))
    assert encoded[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
    RobertaModel(make_config(RobertaConfig, type_vocab_size=1, pad_token_id=0)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    assert (
        "token_type_ids" not in TextEncoder(str(tmp_path), 128).encode(rows, ("sentence1", "sentence2")).column_names
    )


def test_pairs_without_a_separator_are_warned_of(encoder, dataset, tmp_path, trained, caplog):
    BertModel(make_config()).save_pretrained(tmp_path)
    make_tokenizer(pairs=False).save_pretrained(tmp_path)
    evaluator(dataset, "mrpc")(tmp_path)
    assert "joins the two sentences of a pair without a separator" in caplog.text
    caplog.clear()
    evaluator(dataset, "mrpc")(encoder)
    assert "separator" not in caplog.text


# What a user can get wrong


@pytest.mark.parametrize("text, nearest", [("sst-2", "sst2"), ("STSB,mrcp", "mrpc"), ("cola,QNL", "qnli")])
def test_unknown_task_is_answered_with_the_nearest(text, nearest):
    with pytest.raises(ValueError, match=f'There is no GLUE task .* and all. Did you mean "{nearest}"'):
        parse_tasks(text)


def test_tasks():
    assert parse_tasks("MRPC, cola,mrpc") == ["mrpc", "cola"]
    assert len(parse_tasks("all")) == 9
    with pytest.raises(ValueError, match="No task is named"):
        parse_tasks(",")


@pytest.mark.parametrize(
    "setting", [{"seeds": 0}, {"learning_rate": -1.0}, {"max_train_samples": 0}, {"max_length": 2}]
)
def test_settings_out_of_range(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"`{name}` must be .*, got {value}"):
        GlueEvaluator(**setting)


def test_a_batch_that_cannot_be_dealt_is_refused_before_any_data_is_read(monkeypatch):
    monkeypatch.setattr(glue_module, "process_state", lambda: SimpleNamespace(num_processes=3))
    assert GlueEvaluator(task="cola", batch_size=6, dataset="no/such/folder")
    with pytest.raises(EvaluationError, match="32 rows cannot be dealt to 3 processes"):
        GlueEvaluator(task="cola", dataset="no/such/folder")


def test_missing_data(dataset, tmp_path):
    with pytest.raises(ValueError, match="There is no dataset folder ./nowhere"):
        load_task("./nowhere", "sst2")
    with pytest.raises(
        ValueError, match=f'task "rte" needs {dataset}/rte/train.parquet and .* holds mnli, mrpc, sst2'
    ):
        load_task(str(dataset), "rte")
    with pytest.raises(ValueError, match=f'task "cola" needs {dataset}/sst2/cola/train'):
        load_task(str(dataset / "sst2"), "cola")
    with pytest.raises(ValueError, match=f'task "sst2" needs {tmp_path}/train.parquet .* holds nothing'):
        load_task(str(tmp_path), "sst2")


def test_no_hub(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(ValueError, match='Cannot read the task "cola" of nyu-mll/glue .*Couldn.t reach.* --dataset'):
        load_task("nyu-mll/glue", "cola")


def test_the_folder_of_one_task_and_its_sharded_files(dataset, tmp_path):
    assert len(load_task(str(dataset / "sst2"), "sst2")["train"]) == 120
    for index in range(2):
        rows = datasets.Dataset.from_list(make_rows("rte", 5, seed=index))
        rows.to_parquet(tmp_path / f"train-0000{index}-of-00002.parquet")
    datasets.Dataset.from_list(make_rows("rte", 4, seed=2)).to_json(tmp_path / "validation.jsonl")
    rows = load_task(str(tmp_path), "rte")
    assert (len(rows["train"]), len(rows["validation"])) == (10, 4)


@pytest.mark.parametrize(
    "columns, message",
    [
        ({"sentence": ["a", "b"]}, "has no column label; it has sentence"),
        (
            {"sentence": ["a", "b"], "label": [1, -1]},
            "lacks labels: 1 of 2 rows have -1 .* -1 stands for a label that is w",
        ),
        ({"sentence": ["a", "b"], "label": [1, 2]}, "1 of 2 rows have 2 instead of a whole number from 0 to 1"),
        ({"sentence": ["a", "b"], "label": [1, None]}, "1 of 2 rows have nan"),
        ({"sentence": ["a", "b"], "label": ["no", "yes"]}, "labels that are no numbers, such as 'no'"),
        ({"sentence": ["a", None], "label": [1, 0]}, "rows whose sentence is no text"),
    ],
)
def test_rows_that_cannot_be_learned_from(tmp_path, columns, message):
    for split in ("train", "validation"):
        datasets.Dataset.from_dict(columns).to_parquet(tmp_path / f"{split}.parquet")
    with pytest.raises(ValueError, match=f"split train, .*{message}"):
        load_task(str(tmp_path), "cola")


def test_damaged_file(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / f"{split}.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(ValueError, match=f"Cannot read {tmp_path}/train.parquet"):
        load_task(str(tmp_path), "cola")


def test_encoders_that_are_none(encoder, dataset, tmp_path):
    run = evaluator(dataset)
    with pytest.raises(ValueError, match="There is no encoder folder ./nowhere"):
        run("./nowhere")
    with pytest.raises(ValueError, match="is no encoder: it has no config.json"):
        run(tmp_path)
    BertModel(make_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no tokenizer.*tokenizer.save_pretrained"):
        run(tmp_path)
    ViTConfig().save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match='is a "vit" model, for which transformers has no sequence classification'):
        run(tmp_path / "vit")


def test_an_encoder_smaller_than_its_tokenizer(dataset, tmp_path):
    BertModel(make_config(vocab_size=10)).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="gives token 32, but the encoder embeds 10 tokens only"):
        evaluator(dataset)(tmp_path)


def test_weights_that_are_not_the_encoders(encoder, dataset, tmp_path):
    torch.save({"something.weight": torch.zeros(2)}, tmp_path / "pytorch_model.bin")
    make_config().save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="lacks 21 of the 21 weights of the encoder"):
        evaluator(dataset)(tmp_path)


@pytest.mark.parametrize("task", ["cola", "mrpc", "rte", "sst2", "wnli"])
def test_the_real_data_have_the_layout_that_is_expected(shared_data, task):
    rows = load_task(str(shared_data / "glue"), task)
    assert set(rows) == {"train", *TASKS[task].eval_splits}
    assert len(rows["train"]) > 600 and len(rows["validation"]) > 70


def test_the_hub_is_read_by_task(monkeypatch):
    calls = []

    def load_dataset(path, name, split):
        calls.append((path, name, split))
        return datasets.Dataset.from_list(make_rows("mnli", 3, seed=0))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_task("nyu-mll/glue", "mnli")
    splits = ("train", "validation_matched", "validation_mismatched")
    assert calls == [("nyu-mll/glue", "mnli", split) for split in splits]
