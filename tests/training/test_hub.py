"""Results on their way to the Hub: recipes in processes of their own, with the real client, against the Hub of
`local_hub.py`."""

import json
import shlex
import shutil
import socket
import tempfile
from pathlib import Path

import pytest
import tiny
from image_recipes import few_images, flags
from recipe_process import ROOT, TINY_ENCODER, printed_without_hfssl, recipe_server
from sounds import NAMES, SMALL_WAVE, tone, wav

from local_hub import User


TOKEN = "hf_0123456789abcdef"
PUSHED = {
    "README.md", "results.json", "run.json", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "assets/loss.png", "assets/health.png", "pretraining/config.json", "pretraining/model.safetensors",
}  # fmt: skip


@pytest.fixture
def hub(hub_here, monkeypatch):
    tokens = {TOKEN: User("alice", organizations=("acme",)), "hf_read_only_0": User("bob", can_write=False)}
    monkeypatch.setattr(hub_here, "tokens", tokens)
    return hub_here


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in tiny.texts(600)))
    return path


@pytest.fixture
def push(hub, corpus, tmp_path):
    """`push("alice/x", token, flag=value)`: run the recipe that pushes there."""

    def run(repo, token=TOKEN, ranks=1, before="", drawn=False, **settings):
        settings = {
            "dataset": corpus, "output_dir": tmp_path / "out", "encoder_config": json.dumps(TINY_ENCODER),
            "vocab_size": 150, "max_length": 32, "max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 4,
            "precision": "fp32", "push_to_hub": "true", "hub_model_id": repo, **settings,
        }  # fmt: skip
        words = [word for name, value in settings.items() if value is not None for word in (f"--{name}", value)]
        environment = {"HF_TOKEN": token} if token else {}
        return recipe_server().run(tmp_path / "log", *words, ranks=ranks, before=before, drawn=drawn, **environment)

    return run


def test_the_result_arrives_and_nothing_else(hub, push, tmp_path):
    run = push("alice/arrived", hub_token=TOKEN, drawn=True)
    assert run.poll() == 0, run.stderr
    assert f"Pushed to {hub.url}/alice/arrived" in run.stderr
    out = tmp_path / "out"
    assert any((out / "runs").rglob("events.*"))  # what must not be pushed is there
    arrived = hub.files("alice/arrived")
    assert set(arrived) == PUSHED
    for name, content in arrived.items():
        assert content == (out / name).read_bytes(), name
        if not name.endswith((".png", ".safetensors")):
            assert TOKEN not in content.decode()
            assert socket.gethostname() not in content.decode()
    assert hub.commits("alice/arrived") == ["End of training", "initial commit"]
    assert not hub.repos["models", "alice/arrived"].private
    assert not (out / ".staging").exists()

    code = """
        import sys

        sys.modules["hfssl"] = None  # importing it fails
        from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer

        _, info = AutoModelForMaskedLM.from_pretrained("alice/arrived", output_loading_info=True)
        print([sorted(info[key]) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")])
        tokens = AutoTokenizer.from_pretrained("alice/arrived")("the quick brown fox", return_tensors="pt")
        print(tuple(AutoModel.from_pretrained("alice/arrived")(**tokens).last_hidden_state.shape))
        del sys.modules["hfssl"]
        import hfssl

        print(type(AutoModelForPreTraining.from_pretrained("alice/arrived", subfolder="pretraining")).__name__)
        """
    answer = printed_without_hfssl(tmp_path, code).splitlines()
    assert answer == ["[[], [], []]", "(1, 6, 32)", "MlmForPreTraining"]


def test_no_folder_of_this_machine_arrives(hub, push, tmp_path):
    """Whatever was recorded: neither of data, nor of a checkpoint that is continued, nor of the result."""
    home = tmp_path / "home of" / "jdoe"
    home.mkdir(parents=True)
    texts = home / "my texts [2024].txt"
    texts.write_text("\n".join(tiny.texts(600)))
    before = f"import os; os.environ['HOME'] = {str(home)!r}"
    first = push("alice/first", dataset=texts, output_dir=home / "runs" / "first", before=before, drawn=True)
    assert first.poll() == 0, first.stderr
    continued = {"encoder": home / "runs" / "first", "encoder_config": None, "vocab_size": None}
    others = texts.with_name("others.txt")
    others.write_text("\n".join(tiny.texts(300, seed=1)))
    mixture = f"{texts}:0.7,{others}:0.3"
    second = push("alice/second", dataset=mixture, output_dir=home / "runs" / "x", before=before, **continued)
    assert second.poll() == 0, second.stderr
    classes = home / "classes"
    for i, image in enumerate(Path(few_images().name).iterdir()):
        (classes / str(i % 2)).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, classes / str(i % 2))
    words = flags(
        dataset=classes, probe_dataset=classes, output_dir=home / "pictures", push_to_hub="true",
        hub_model_id="alice/pictures", max_steps=1,
    )  # fmt: skip
    third = recipe_server().run(tmp_path / "log", *words, script="recipes/simclr.py", before=before, HF_TOKEN=TOKEN)
    assert third.poll() == 0, third.stderr
    for repo in ("alice/first", "alice/second", "alice/pictures"):
        check_what_arrived(hub.files(repo), tmp_path)
    card = hub.files("alice/second")["README.md"].decode()
    # what is left says what it was
    assert "--dataset 'my texts [2024].txt:0.7,others.txt:0.3'" in card
    assert "further from `first`" in card and "base_model:" not in card
    assert "--output_dir 'x'" in card


def check_what_arrived(arrived, folder):
    """A whole result, without a pickle, and with nothing of this machine and of who ran it there."""
    assert {"README.md", "results.json", "run.json", "pretraining/model.safetensors"} < set(arrived)
    for name, content in arrived.items():
        assert Path(name).suffix in (".json", ".md", ".png", ".safetensors", ".txt"), name
        for word in (str(folder), "jdoe", "home of", str(ROOT), tempfile.gettempdir(), TOKEN):
            assert word.encode() not in content, (name, word)
        if name.endswith((".md", ".json")):
            assert socket.gethostname() not in content.decode(), name


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hubert", "cpc", "clip"])
def test_no_folder_of_this_machine_arrives_of_sounds_and_pairs(hub, tmp_path, method):
    home = tmp_path / "home of" / "jdoe"
    data, out = home / "my data [2024]", home / "runs" / method
    for i in range(60):
        (data / NAMES[i % 3]).mkdir(parents=True, exist_ok=True)
        if method == "clip":
            shutil.copy(Path(few_images().name) / f"{i}.png", data / NAMES[i % 3] / f"{i}.png")
            (data / NAMES[i % 3] / f"{i}.txt").write_text(tiny.texts()[i])
        else:
            (data / NAMES[i % 3] / f"{i}.wav").write_bytes(wav(tone(i, 0.6)))
    small = {
        "hubert": {
            "encoder_config": json.dumps(SMALL_WAVE), "batch_seconds": 4, "max_seconds": 2, "num_units": 8,
            "kmeans_restarts": 1, "probe_dataset": data,
        },
        "cpc": {"batch_seconds": 32, "probe_dataset": data},
        "clip": {"per_device_train_batch_size": 8, "max_held_out": 20, "max_lost_fraction": 1},
    }[method]  # fmt: skip
    settings = {
        "dataset": data, "output_dir": out, "max_steps": 2, "report_to": "tensorboard", "precision": "fp32",
        "push_to_hub": "true", "hub_model_id": f"alice/{method}", "hub_token": TOKEN, **small,
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    before = f"import os; os.environ['HOME'] = {str(home)!r}"
    run = recipe_server().run(tmp_path / "log", *words, script=f"recipes/{method}.py", before=before)
    assert run.poll() == 0, run.stderr
    check_what_arrived(hub.files(f"alice/{method}"), tmp_path)


def test_a_private_repository_of_an_organization_and_two_processes(hub, push):
    run = push("acme/novels", ranks=2, hub_private_repo="true")
    assert run.poll() == 0, run.stderr
    assert hub.repos["models", "acme/novels"].private
    assert set(hub.files("acme/novels")) == PUSHED
    assert hub.commits("acme/novels") == ["End of training", "initial commit"]


@pytest.mark.parametrize(
    "repo, token, words",
    [
        ("alice/refused", "hf_wrong_token", "no longer, valid (it answered 401)"),
        ("alice/refused", None, "nobody is logged in here (it answered 401)"),
        ("bob/refused", "hf_read_only_0", "the token of bob may only read (the Hub answered 403)"),
        ("someone/refused", TOKEN, "alice may not write to someone (the Hub answered 403)"),
        ("a/b/refused", TOKEN, "is no name of a repository"),
    ],
)
def test_what_cannot_be_pushed_is_known_before_the_training(hub, push, tmp_path, repo, token, words):
    run = push(repo, token)
    assert run.poll() == 1
    [error] = run.stderr.splitlines()  # not even the data were opened
    assert error.startswith("error: ") and words in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".hfssl.lock"]
    assert not any(name.endswith("/refused") for _, name in hub.repos)


@pytest.mark.parametrize(
    "method, path, status",
    # the client tries again for half a minute where a server is only busy
    [("POST", "/commit/", 503), ("POST", "/preupload/", 403), ("PUT", "/lfs/", 403)],
)
def test_a_push_that_fails_at_the_end_does_not_cost_the_run(hub, push, tmp_path, method, path, status):
    repo = f"alice/later{path.replace('/', '-').rstrip('-')}"
    # before the training it is asked twice whether one may write
    hub.fail(method, path, status=status, times=1000, after=2 if path == "/preupload/" else 0)
    seed = len(path)  # weights that the Hub does not have yet
    run = push(repo, seed=seed)
    assert run.poll() == 0, run.stderr
    assert any(asked == method and path in where and got == status for asked, where, got in hub.requests)
    assert "Traceback" not in run.stderr
    out = tmp_path / "out"
    there = {file.relative_to(out).as_posix() for file in out.rglob("*")}
    assert there >= PUSHED
    assert not (out / ".staging").exists()
    assert hub.files(repo) == {}
    [line] = [line for line in run.stderr.splitlines() if f"The push to {repo} failed" in line]
    assert f"The result is safe in {out}" in line
    hub.faults.clear()
    # what it says, and the same command again
    if path == "/commit/":
        words = shlex.split(line.partition("To push it later: python ")[2])
        later = recipe_server().run(tmp_path / "later", *words[1:], script=words[0], HF_TOKEN=TOKEN)
    else:
        later = push(repo, before=NO_TRAINING, seed=seed)
    assert later.poll() == 0, later.stderr
    assert set(hub.files(repo)) == PUSHED


NO_TRAINING = """
from transformers import Trainer
def training_step(*args, **kwargs):
    raise AssertionError("a step was trained")
Trainer.training_step = training_step
"""


def test_every_save_pushes_a_result(hub, push, tmp_path):
    hub.fail("POST", "/api/models/alice/often/commit/", status=503)  # the first of them, which costs nothing
    run = push("alice/often", hub_strategy="every_save", max_steps=6)
    assert run.poll() == 0, run.stderr
    assert "The push to alice/often failed" in run.stderr
    titles = hub.commits("alice/often")
    assert titles[0] == "End of training"
    assert "step 4" in titles and "step 2" not in titles
    repo = hub.repos["models", "alice/often"]
    commit = repo.branches["main"]
    while commit.title != "step 4":
        commit = commit.parent
    assert {"config.json", "model.safetensors", "tokenizer.json", "pretraining/model.safetensors"} <= set(commit.tree)
    assert set(commit.tree) <= PUSHED | {".gitattributes"}
    assert set(hub.files("alice/often")) == PUSHED
    # the result of a step is that of its checkpoint, and the last one that of the run
    assert commit.tree["model.safetensors"].content != hub.files("alice/often")["model.safetensors"]
    assert hub.files("alice/often")["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_pushing_changes_nothing_of_the_training(push, tmp_path):
    assert push("alice/same", hub_strategy="every_save", dropout=0.1).poll() == 0
    out = tmp_path / "plain"
    assert push("alice/same", push_to_hub="false", dropout=0.1, output_dir=out).poll() == 0
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()
