"""Results of every family on their way to the Hub, and what may stand in the way: the real client, in this process."""

import json
import logging
import re
import runpy
import shlex
import socket
import sys
from pathlib import Path

import pytest
from contract import build, contract
from numbered import numbered_stream
from recipe_process import ROOT, printed_without_hfssl
from report_records import a_probe, a_run, history
from transformers import AutoModelForPreTraining

from hfssl import SSLTrainer, SSLTrainingArguments
from hfssl.errors import UserError
from hfssl.training.hub import check_push, push_result, renamed
from hfssl.training.repository import Repository


# by family: the method, what its root has, and what of it plain transformers finds
FAMILIES = {
    "text": ("MlmForPreTraining", {"config.json"}, {"": "BertModel"}),
    "image": ("SimclrForPreTraining", {"config.json"}, {"": "ResNetModel"}),
    "audio": ("HubertForPreTraining", {"config.json"}, {"": "HubertModel"}),
    "pairs": (
        "ClipForPreTraining", {"config.json", "image/config.json", "image/model.safetensors", "text/config.json"},
        {"": "CLIPModel", "image": "CLIPVisionModel", "text": "CLIPTextModel"},
    ),
    "plain": ("CpcForPreTraining", {"encoder.json"}, {}),
}  # fmt: skip
ALWAYS = {"README.md", "run.json", "model.safetensors", "pretraining/config.json", "pretraining/model.safetensors"}


def trainer(family, folder, **settings):
    method = FAMILIES[family][0]
    args = SSLTrainingArguments(
        str(folder), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-3, precision="fp32", report_to="none",
        eval_strategy="no", logging_steps=1, save_steps=1, disable_tqdm=True, use_cpu=True, **settings,
    )  # fmt: skip
    return SSLTrainer(build(method, **contract(method).settings), args, numbered_stream(method))


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """A finished run that was not pushed."""
    run = trainer("text", tmp_path_factory.mktemp("results") / "my-run")
    run.train()
    return run.finish()


def recipe(monkeypatch, capsys, *words):
    """What `recipes/push.py` says, and its exit status."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "recipes" / "push.py"), *map(str, words)])
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, said.out if status == 0 else said.err


@pytest.mark.parametrize("family", FAMILIES)
def test_a_push_that_fails_costs_nothing_and_is_made_up_for(hub_here, family, tmp_path, monkeypatch, capsys, caplog):
    repo = f"alice/late-{family}"
    hub_here.fail("POST", "/commit/", status=503)
    run = trainer(family, tmp_path / "out", push_to_hub=True, hub_model_id=repo)
    run.train()
    with caplog.at_level(logging.INFO, "hfssl"):
        out = run.finish()
    assert hub_here.files(repo) == {}
    [said] = [record.getMessage() for record in caplog.records if "The push to" in record.getMessage()]
    assert "trouble of its own (it answered 503). Try again later." in said and f"is safe in {out}" in said
    status, answer = recipe(monkeypatch, capsys, *shlex.split(said.partition("To push it later: ")[2])[2:])
    assert status == 0, answer
    arrived = hub_here.files(repo)
    assert answer == f"{hub_here.url}/{repo}: {len(arrived)} files sent, 0 were there already.\n"
    _, root, loads = FAMILIES[family]
    assert ALWAYS | root <= set(arrived)
    for name, content in arrived.items():
        assert content == (out / name).read_bytes(), name
        assert Path(name).suffix in (".json", ".safetensors", ".md", ".png", ".txt"), name
        if Path(name).suffix in (".json", ".md"):
            assert str(tmp_path) not in content.decode() and socket.gethostname() not in content.decode(), name
    # once more: nothing is sent
    sent = [(method, path) for method, path, _ in hub_here.requests if method in ("PUT", "POST")]
    assert recipe(monkeypatch, capsys, out, "--repo_id", repo)[1].endswith(
        f" 0 files sent, {len(arrived)} were there already.\n"
    )
    new = [path for method, path, _ in hub_here.requests if method in ("PUT", "POST")][len(sent) :]
    assert [path.rpartition("/")[0] for path in new] == ["/api/repos", f"/api/models/{repo}/preupload"]
    whole = AutoModelForPreTraining.from_pretrained(repo, subfolder="pretraining")
    assert type(whole).__name__ == FAMILIES[family][0]
    code = """
        import sys

        sys.modules["hfssl"] = None  # importing it fails
        from transformers import AutoModel

        for part in sys.argv[2:]:
            print(type(AutoModel.from_pretrained(sys.argv[1], subfolder=part)).__name__)
        """
    assert printed_without_hfssl(tmp_path, code, repo, *loads).split() == list(loads.values())


def test_a_push_to_a_branch_is_made_up_for_there(hub_here, result, monkeypatch, capsys):
    repo = hub_here.create_repo("alice/branches")
    repo.branches["trial"] = repo.branches["main"]
    command = Repository("alice/branches", revision="trial").command(result)
    status, answer = recipe(monkeypatch, capsys, *shlex.split(command)[2:])
    assert status == 0, answer
    assert "model.safetensors" in repo.resolve("trial").tree and "model.safetensors" not in repo.resolve("main").tree
    with pytest.raises(UserError, match="it has no branch 'gone'"):
        push_result(result, "alice/branches", revision="gone")


def test_a_run_is_pushed_as_what_it_is_called(hub_here, tmp_path):
    run = trainer("text", tmp_path / "novels", push_to_hub=True)
    assert run.args.hub_model_id == "alice/novels"
    run.train()
    card = (run.finish() / "README.md").read_text()
    assert hub_here.files("alice/novels")["README.md"].decode() == card
    assert 'from_pretrained("alice/novels", subfolder="pretraining")' in card


# who asks, for which repository, what the Hub answers, and what is said of it
OBSTACLES = {
    "no token": (None, "alice/x", None, "nobody is logged in here (it answered 401). Make a token that may write at"),
    "wrong token": ("hf_gone", "alice/x", None, "the token is not, or no longer, valid (it answered 401). Make another"),
    "read-only": ("hf_ro", "bob/x", None, "the token of bob may only read (the Hub answered 403). Make one that may write"),
    "of others": ("hf_rw", "carol/x", None, "alice may not write to carol (the Hub answered 403). Pass `FLAG alice/x`, or "),
    "of others, public": ("hf_rw", "carol/open", None, "alice may not write to carol (the Hub answered 403). Pass"),
    "of others, private": ("hf_rw", "carol/secret", None, "alice may not write to carol (the Hub answered 403). Pass"),
    "of others, gated": ("hf_rw", "carol/gated", None, "alice may not write to carol (the Hub answered 403). Pass"),
    "no name": ("hf_rw", "a/b/c", None, "`FLAG a/b/c` is no name of a repository"),
    "too often": ("hf_rw", "alice/x", 429, "asked too often (it answered 429). Wait some minutes"),
    "down": ("hf_rw", "alice/x", 502, "the Hub has trouble of its own (it answered 502). Try again later."),
    "storage": ("hf_rw", "alice/x", 403, "the Hub answered 403 (injected fault). If the token of alice is fine-grained"),
}  # fmt: skip


@pytest.mark.parametrize("training", [False, True], ids=["push.py", "training"])
@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_stands_in_the_way_is_said_with_what_to_do(hub_here, result, monkeypatch, tmp_path, obstacle, training):
    token, repo, status, words = OBSTACLES[obstacle]
    hub_here.create_repo("carol/open", files={"config.json": b"{}"})
    hub_here.create_repo("carol/secret", private=True)
    hub_here.create_repo("carol/gated", gated=True)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    if status is not None:
        hub_here.fail("POST", "/api/repos/create", status=status)
    with pytest.raises(UserError) as raised:
        if training:
            check_push(
                SSLTrainingArguments(str(tmp_path), max_steps=1, use_cpu=True, push_to_hub=True, hub_model_id=repo)
            )
        else:
            push_result(result, repo)
    said = str(raised.value)
    assert said.startswith(f"Cannot push to {repo}: ")
    assert words.replace("FLAG", "--hub_model_id" if training else "--repo_id") in said
    later = f"Or train without `--push_to_hub`; `python recipes/push.py {tmp_path} --repo_id {repo}` pushes the result"
    assert (later in said) == training
    assert ("alice", "x") not in [tuple(repo.split("/")) for _, repo in hub_here.repos]


def test_a_hub_that_is_not_there(hub_here, result, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set. Unset it"):
        push_result(result, "alice/x")


def test_a_private_one(hub_here, result):
    push_result(result, "acme/private", private=True)
    assert hub_here.repos["models", "acme/private"].private
    push_result(result, "alice/public")
    with pytest.raises(
        UserError, match=r"alice/public is public, and is to be private. Make it so at http.*/settings"
    ):
        push_result(result, "alice/public", private=True)
    hub_here.create_repo("acme/gated", gated=True)
    assert push_result(result, "acme/gated").sent


def test_an_upload_that_was_cut_is_completed(hub_here, result):
    hub_here.fail("PUT", "/lfs/", status=400, after=1)
    with pytest.raises(UserError, match="the Hub answered 400"):
        push_result(result, "alice/cut")
    before = [path for method, path, status in hub_here.requests if method == "PUT" and status == 200]
    assert before and hub_here.files("alice/cut") == {}
    assert push_result(result, "alice/cut").there == 0
    arrived = [path for method, path, status in hub_here.requests if method == "PUT" and status == 200]
    assert len(arrived) == len(set(arrived)) > len(before)
    assert hub_here.files("alice/cut")["model.safetensors"] == (result / "model.safetensors").read_bytes()


def test_what_has_changed_since_is_sent_and_nothing_else(hub_here, tmp_path):
    run = trainer("text", tmp_path / "out")
    run.train()
    out = run.finish()
    push_result(out, "alice/again")
    card = (out / "README.md").read_text()
    (out / "README.md").write_text(card + "\nMore.\n")
    # weights in other pieces, of an earlier state
    repo = hub_here.repos["models", "alice/again"]
    head = repo.resolve("main")
    old = {
        "pretraining/model-00001-of-00002.safetensors": head.tree["model.safetensors"],
        "mine.md": head.tree["README.md"],
    }
    repo.commit("main", head.tree | old, "by hand", "alice")
    pushed = push_result(out, "alice/again")
    assert (pushed.sent, pushed.there) == (1, len(hub_here.files("alice/again")) - 2)
    assert hub_here.files("alice/again")["README.md"].decode().endswith("\nMore.\n")
    assert "mine.md" in hub_here.files("alice/again")
    assert not [name for name in hub_here.files("alice/again") if "00001" in name]
    # the run goes on, and it is still the same one
    longer = trainer("text", out, push_to_hub=True, hub_model_id="alice/again")
    longer.args.max_steps = 3
    longer.train()
    longer.finish()
    assert json.loads(hub_here.files("alice/again")["run.json"])["step"] == 3


def test_something_else_is_not_replaced_unless_asked_to(hub_here, result, tmp_path, monkeypatch, capsys):
    others = {"config.json": b"{}", "pytorch_model.bin": b"x", "run.json": b"[]", "results.json": b"{}"}
    hub_here.create_repo("alice/taken", files=others)
    with pytest.raises(UserError) as raised:
        push_result(result, "alice/taken")
    said = str(raised.value)
    assert "holds something else than this result (config.json, pytorch_model.bin, results.json and 1 more)" in said
    assert hub_here.files("alice/taken") == others
    with pytest.raises(UserError, match="Choose another `--hub_model_id`, or train without `--push_to_hub`, then let"):
        trainer("text", tmp_path / "new", push_to_hub=True, hub_model_id="alice/taken")
    # a new repository with a card from the pages of the Hub is not something else
    hub_here.create_repo("alice/new-one", files={"README.md": b"---\nlicense: mit\n---\n"})
    assert push_result(result, "alice/new-one").sent
    # nor another run of hfssl the same
    other = trainer("image", tmp_path / "other")
    other.train()
    with pytest.raises(UserError, match="holds something else"):
        push_result(other.finish(), "alice/new-one")
    # both ways that it names
    words = shlex.split(re.search(r"`python recipes/push.py (.*?)`", said)[1])
    status, answer = recipe(monkeypatch, capsys, *words)
    assert status == 0, answer
    arrived = hub_here.files("alice/taken")
    assert "pytorch_model.bin" not in arrived and set(arrived) >= ALWAYS
    assert recipe(monkeypatch, capsys, result, "--repo_id", "alice/another")[0] == 0


def test_pictures_that_the_card_does_not_show_stay_here(hub_here, tmp_path):
    folder = a_run(tmp_path / "run")
    (folder / "README.md").write_text("# my-run\n")
    for name in ("model.safetensors", "assets/loss.png", "assets/mistakes.png"):
        (folder / name).write_text(name)
    push_result(folder, "alice/pictures")
    assert {name for name in hub_here.files("alice/pictures") if "assets" in name} == {
        "assets/loss.png", "assets/views.png",
    }  # fmt: skip


def test_another_run_of_the_same_seed_is_not_replaced(hub_here, tmp_path):
    """Before the first step it is like this one, whatever its settings."""

    def written(name, log):
        folder = a_run(tmp_path / name, history=log)
        (folder / "README.md").write_text("# my-run\n")
        (folder / "model.safetensors").write_text(name)
        return folder

    slow, fast = history(), history()
    for entry in fast[1:]:
        entry |= {"learning_rate": 1e-2} if "loss" in entry else {}
    assert slow[0] == fast[0] and slow != fast
    push_result(written("slow", slow), "alice/sweep")
    with pytest.raises(UserError, match="alice/sweep holds something else than this result"):
        push_result(written("fast", fast), "alice/sweep")
    assert hub_here.files("alice/sweep")["model.safetensors"] == b"slow"
    # the same one, longer
    assert push_result(written("longer", history(steps=8)), "alice/sweep").sent
    # and one that has logged no loss yet
    push_result(written("short", [entry for entry in slow if "loss" not in entry]), "alice/short")
    assert push_result(written("slow", slow), "alice/short").sent


def test_a_classifier_goes_with_its_figures(hub_here, result, tmp_path):
    folder = a_probe(tmp_path / "finetune-mae", protocol="finetune")
    with pytest.raises(
        UserError, match=r"figures and no model.*`recipes/probe.py` writes them there with `--update_card"
    ):
        push_result(folder)
    for task in ("a", "b"):
        (folder / "model" / task).mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (folder / "model" / task / name).write_bytes((result / name).read_bytes())
        (folder / "model" / task / "README.md").write_text(
            '# model\n\npipeline("text-classification", "outputs/model/a")\n'
        )
    (folder / "model" / "a" / "optimizer.pt").touch()
    with pytest.raises(UserError, match="holds several models. Name one of them: .*model/a, .*model/b"):
        push_result(folder)
    assert push_result(folder / "model" / "a").url.endswith("/alice/finetune-mae")
    arrived = hub_here.files("alice/finetune-mae")
    assert set(arrived) == {"config.json", "model.safetensors", "README.md", "results.json"}
    assert arrived["results.json"] == (folder / "results.json").read_bytes()
    assert arrived["README.md"].decode() == (
        '# alice/finetune-mae\n\npipeline("text-classification", "alice/finetune-mae")\n'
    )
    # trained again with more seeds it is the same one
    records = json.loads((folder / "results.json").read_text())
    records[0]["per_seed"].append(0.5)
    (folder / "results.json").write_text(json.dumps(records))
    assert push_result(folder / "model" / "a", "alice/finetune-mae").sent == 1


def test_what_is_no_result_is_named(hub_here, result, tmp_path):
    for folder, words in (
        (tmp_path / "nowhere", "There is no folder"),
        (tmp_path, r"is no result folder: it has no card \(README.md\) beside weights"),
        (result / "pretraining", "is no result folder"),
        (result / "checkpoint-2", "has not ended, or a checkpoint of one. The command of the run, once more"),
    ):
        with pytest.raises(UserError, match=words):
            push_result(folder, "alice/x")
    unfinished = trainer("text", tmp_path / "cut")
    unfinished.train()
    with pytest.raises(UserError, match="of a run that has not ended"):
        push_result(tmp_path / "cut", "alice/x")
    whole = tmp_path / "whole"
    a_run(whole / "encoder")
    (whole / "plan.json").write_text(json.dumps({"steps": [], "parts": ["encoder"]}))
    with pytest.raises(UserError, match="none that is done yet"):
        push_result(whole, "alice/x")
    for name in ("README.md", "model.safetensors"):
        (whole / "encoder" / name).touch()
    with pytest.raises(UserError, match=rf"Name the folder of one with a model: {whole}/encoder\.$"):
        push_result(whole, "alice/x")
    assert not hub_here.repos


def test_a_card_names_the_repository_where_it_named_the_folder():
    card = (
        '# out\n\nencoder = AutoModel.from_pretrained("outputs/out")\nfill = pipeline("fill-mask", "out")\n'
        'other = AutoModel.from_pretrained("facebook/dinov2-small")\n# not out\n`from_pretrained("out", subfolder="x")`\n'
    )
    assert renamed(card, {"out"}, "alice/x") == (
        '# alice/x\n\nencoder = AutoModel.from_pretrained("alice/x")\nfill = pipeline("fill-mask", "alice/x")\n'
        'other = AutoModel.from_pretrained("facebook/dinov2-small")\n# not out\n`from_pretrained("alice/x", subfolder="x")`\n'
    )
