"""Recordings from the command line: a method, then what is done with its encoder."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recipe_process import recipe_server
from sounds import NAMES, RATE, tone, wav
from transformers import AutoFeatureExtractor, AutoModel


TINY = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "conv_dim": [8] * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
TINY_BERT = {name: value for name, value in TINY.items() if "conv" not in name}
METHODS = {
    "hubert": (TINY, "HubertModel", ("--num_units", 8, "--kmeans_restarts", 1)),
    "wav2vec2": (TINY, "Wav2Vec2Model", ("--num_negatives", 5)),
    "best_rq": (TINY_BERT, "Wav2Vec2BertModel", ("--num_codes", 16)),
}


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Recordings in class folders, and the same as a table with what is said."""
    folder = tmp_path_factory.mktemp("spoken")
    recordings = [wav(tone(row, 0.5 + 0.1 * (row % 3)), RATE) for row in range(90)]
    for row, recording in enumerate(recordings):
        (folder / "sounds" / NAMES[row % 3]).mkdir(parents=True, exist_ok=True)
        (folder / "sounds" / NAMES[row % 3] / f"{row}.wav").write_bytes(recording)
    texts = [NAMES[row % 3] for row in range(90)]
    pq.write_table(pa.table({"audio": recordings, "text": texts}), folder / "spoken.parquet")
    return folder


def pretrained(spoken, out, method, log):
    config, _, others = METHODS[method]
    flags = [
        "--dataset", spoken / "sounds", "--probe_dataset", spoken / "sounds", "--output_dir", out, "--max_steps", 2,
        "--encoder_config", json.dumps(config), "--batch_seconds", 4, "--max_seconds", 2, "--report_to", "none",
        "--precision", "fp32", "--eval_strategy", "no", *others,
    ]  # fmt: skip
    run = recipe_server().run(log, *flags, script=f"recipes/{method}.py")
    assert run.poll() == 0, run.stderr
    return run


def check(run, out, method):
    encoder = AutoModel.from_pretrained(out)
    assert type(encoder).__name__ == METHODS[method][1]
    assert AutoFeatureExtractor.from_pretrained(out).sampling_rate == RATE
    records = json.loads((out / "results.json").read_text())
    assert {record["protocol"] for record in records} >= {"held_out_loss", "knn", "linear", "layers"}
    assert "mfcc_statistics" in records[-1]["baselines"]
    page = (out / "assets" / "recordings.html").read_text()
    assert page.count("<audio") == 6 and (out / "assets" / "recordings.png").is_file()
    assert ("units " in page) == (method == "hubert") == (out / "assets" / "units.png").is_file()
    if method == "hubert":
        found = {record["metric"]: record for record in records if record["protocol"] == "unit_quality"}
        assert found["purity"]["task"] == "units and label" and "majority" in found["purity"]["baselines"]
        assert "Units and label of " in run.stderr and "normalised mutual information" in run.stderr
    assert (out / "assets" / "layers.png").is_file() and "Held-out loss" in run.stdout
    assert json.loads((out / "hfssl.json").read_text())["modality"] == "audio"


def test_hubert_ends_with_a_table_by_layer(spoken, tmp_path):
    out = tmp_path / "out"
    run = pretrained(spoken, out, "hubert", tmp_path / "log")
    check(run, out, "hubert")
    followed = [line.split() for line in run.stdout.split("Next:")[1].splitlines() if line.strip()]
    assert [words[2].rpartition("/")[2] for words in followed] == ["probe.py", "finetune.py", "embed.py", "hubert.py"]
    # the encoder's folder says what it takes, and what its run was probed on
    flags = ["--encoder", out, "--layer", 1, "--dataset", spoken / "sounds", "--output_dir", tmp_path / "features"]
    done = recipe_server().run(tmp_path / "log", *flags, script="recipes/embed.py")
    assert done.poll() == 0, done.stderr
    assert "90 features of 16 numbers" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("method", ["wav2vec2", "best_rq"])
def test_other_methods_end_so_too(spoken, tmp_path, method):
    check(pretrained(spoken, tmp_path / "out", method, tmp_path / "log"), tmp_path / "out", method)


@pytest.mark.slow
def test_what_is_done_with_an_encoder(spoken, tmp_path):
    out = tmp_path / "out"
    pretrained(spoken, out, "hubert", tmp_path / "log")
    quick = ["--seeds", 1, "--epochs", 1, "--min_steps", 2, "--precision", "fp32"]
    for script, flags, said in (
        ("probe", ["--protocol", "knn,layers"], "linear probe, weighted sum"),
        ("finetune", quick, "The trained model (seed 0)"),
        ("finetune", ["--task", "ctc", "--dataset", spoken / "spoken.parquet", *quick], "recognition (CTC)  wer"),
    ):
        folder = tmp_path / f"{script}-{len(flags)}"
        done = recipe_server().run(
            tmp_path / "log", "--encoder", out, "--output_dir", folder, *flags, script=f"recipes/{script}.py"
        )
        assert done.poll() == 0, done.stderr
        assert said in done.stdout
        assert (folder / "results.json").is_file()
