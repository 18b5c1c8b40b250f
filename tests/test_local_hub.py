"""The project's Hub for tests, met by the real clients."""

import io
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset, load_dataset_builder
from huggingface_hub import HfApi, HfFileSystem, constants
from huggingface_hub.errors import (
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def client(hub, token: str | None = "hf_rw") -> HfApi:
    return HfApi(endpoint=hub.url, token=token)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "pretraining").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    (folder / "config.json").write_text('{"hidden_size": 32}')
    (folder / "model.safetensors").write_bytes(np.random.bytes(11 * 1024 * 1024))
    (folder / "pretraining" / "config.json").write_text('{"mask_ratio": 0.15}')
    return folder


def contents(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_a_folder_goes_to_a_private_repository_and_comes_back(local_hub, folder, tmp_path):
    api = client(local_hub)
    api.create_repo("alice/model", private=True)
    api.upload_folder(repo_id="alice/model", folder_path=folder, commit_message="the model")
    api.snapshot_download("alice/model", local_dir=tmp_path / "snapshot")
    assert api.whoami()["name"] == "alice" and api.model_info("alice/model").private
    assert api.list_repo_files("alice/model") == sorted([".gitattributes", *contents(folder)])
    assert local_hub.files("alice/model") == contents(folder)
    assert local_hub.commits("alice/model") == ["the model", "initial commit"]
    assert list(local_hub.lfs_objects.values()) == [contents(folder)["model.safetensors"]]
    snapshot = contents(tmp_path / "snapshot")
    del snapshot[".gitattributes"]
    assert snapshot == contents(folder)


def test_deleted_files_and_stale_parents_are_seen(local_hub):
    local_hub.create_repo("acme/model", files={"old/a.txt": b"a", "old/b.txt": b"b", "c.txt": b"c"})
    api = client(local_hub)
    first = api.model_info("acme/model").sha
    api.delete_folder("old", repo_id="acme/model")
    with pytest.raises(HfHubHTTPError) as refused:
        api.upload_file(repo_id="acme/model", path_in_repo="d", path_or_fileobj=b"d", parent_commit=first)
    assert refused.value.response.status_code == 412
    assert local_hub.files("acme/model") == {"c.txt": b"c"}


@pytest.mark.parametrize(
    "token, action, error, status",
    [
        ("hf_wrong", lambda api: api.whoami(), HfHubHTTPError, 401),
        ("hf_wrong", lambda api: api.create_repo("alice/new"), HfHubHTTPError, 401),
        ("hf_ro", lambda api: api.create_repo("bob/new"), HfHubHTTPError, 403),
        ("hf_rw", lambda api: api.create_repo("someone-else/new"), HfHubHTTPError, 403),
        (
            "hf_ro",
            lambda api: api.upload_file(repo_id="alice/open", path_in_repo="x", path_or_fileobj=b""),
            HfHubHTTPError,
            403,
        ),
        ("hf_ro", lambda api: api.model_info("alice/secret"), RepositoryNotFoundError, 404),
        (None, lambda api: api.model_info("alice/secret"), RepositoryNotFoundError, 401),
        ("hf_rw", lambda api: api.model_info("alice/missing"), RepositoryNotFoundError, 404),
        ("hf_rw", lambda api: api.model_info("alice/open", revision="v2"), RevisionNotFoundError, 404),
        ("hf_rw", lambda api: api.hf_hub_download("alice/open", "missing.txt"), RemoteEntryNotFoundError, 404),
        ("hf_rw", lambda api: api.create_repo("alice/open"), HfHubHTTPError, 409),
    ],
)
def test_refusals_are_the_clients_own_errors(local_hub, token, action, error, status):
    local_hub.create_repo("alice/open")
    local_hub.create_repo("alice/secret", private=True)
    with pytest.raises(HfHubHTTPError) as refused:
        action(client(local_hub, token))
    assert (type(refused.value), refused.value.response.status_code) == (error, status)
    assert set(local_hub.repos) == {("models", "alice/open"), ("models", "alice/secret")}
    assert local_hub.files("alice/open") == {}


def test_a_data_set_is_streamed_and_its_parquet_read_in_pieces(hub_here):
    texts = [f"document {i}" for i in range(1000)]
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"text": texts, "ballast": [np.random.bytes(8000) for _ in texts]}), buffer, row_group_size=100
    )
    hub_here.create_repo(
        "alice/streamed", "datasets", private=True, files={"data/train-00000.parquet": buffer.getvalue()}
    )
    rows = load_dataset("alice/streamed", split="train", streaming=True)
    [url] = load_dataset_builder("alice/streamed").config.data_files["train"]
    with HfFileSystem().open(url, block_size=2**16) as file:
        row_group = pq.ParquetFile(file).read_row_group(7, columns=["text"])
    assert [row["text"] for row in rows] == texts
    assert row_group["text"].to_pylist() == texts[700:800]
    assert url.startswith("hf://datasets/alice/streamed@")
    large = [status for method, path, status in hub_here.requests if method == "GET" and path.startswith("/lfs/")]
    assert len(large) > 1
    assert set(large) == {206}


def test_an_injected_fault_fails_one_upload_and_leaves_nothing(local_hub, folder):
    local_hub.create_repo("alice/model")
    local_hub.fail("POST", "/commit/", status=503)
    api = client(local_hub)
    with pytest.raises(HfHubHTTPError) as refused:
        api.upload_folder(repo_id="alice/model", folder_path=folder)
    assert refused.value.response.status_code == 503
    assert api.list_repo_files("alice/model") == [".gitattributes"]
    api.upload_folder(repo_id="alice/model", folder_path=folder)
    assert local_hub.files("alice/model") == contents(folder)


def test_tests_meet_an_empty_hub_unless_they_ask_for_one():
    assert os.environ["HF_ENDPOINT"] == constants.ENDPOINT
    assert constants.ENDPOINT.startswith("http://127.0.0.1:")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().hf_hub_download("google-bert/bert-base-uncased", "config.json")
