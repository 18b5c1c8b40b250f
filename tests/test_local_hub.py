"""The project's Hub for tests, met by the real clients."""

import io
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest


def run_client(code: str, env: dict[str, str]):
    """Run `code` in a fresh process and return what it left in `answer`."""
    code = f"import json\n{textwrap.dedent(code)}\nprint(json.dumps(answer))"
    process = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


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


def test_a_folder_goes_to_a_private_repository_and_comes_back(local_hub, hub_env, folder, tmp_path):
    answer = run_client(
        f"""
        from huggingface_hub import HfApi, snapshot_download

        api = HfApi()
        api.create_repo("alice/model", private=True)
        api.upload_folder(repo_id="alice/model", folder_path={str(folder)!r}, commit_message="the model")
        snapshot_download("alice/model", local_dir={str(tmp_path / "snapshot")!r})
        answer = [api.whoami()["name"], api.model_info("alice/model").private, api.list_repo_files("alice/model")]
        """,
        hub_env(local_hub, "hf_rw"),
    )
    assert answer == ["alice", True, sorted([".gitattributes", *contents(folder)])]
    assert local_hub.files("alice/model") == contents(folder)
    assert local_hub.commits("alice/model") == ["the model", "initial commit"]
    assert list(local_hub.lfs_objects.values()) == [contents(folder)["model.safetensors"]]
    snapshot = contents(tmp_path / "snapshot")
    del snapshot[".gitattributes"]
    assert snapshot == contents(folder)


def test_deleted_files_and_stale_parents_are_seen(local_hub, hub_env):
    local_hub.create_repo("acme/model", files={"old/a.txt": b"a", "old/b.txt": b"b", "c.txt": b"c"})
    answer = run_client(
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi()
        first = api.model_info("acme/model").sha
        api.delete_folder("old", repo_id="acme/model")
        try:
            api.upload_file(repo_id="acme/model", path_in_repo="d", path_or_fileobj=b"d", parent_commit=first)
        except HfHubHTTPError as error:
            answer = error.response.status_code
        """,
        hub_env(local_hub, "hf_rw"),
    )
    assert answer == 412
    assert local_hub.files("acme/model") == {"c.txt": b"c"}


@pytest.mark.parametrize(
    "token, action, error, status",
    [
        ("hf_wrong", "api.whoami()", "HfHubHTTPError", 401),
        ("hf_wrong", "api.create_repo('alice/new')", "HfHubHTTPError", 401),
        ("hf_ro", "api.create_repo('bob/new')", "HfHubHTTPError", 403),
        ("hf_rw", "api.create_repo('someone-else/new')", "HfHubHTTPError", 403),
        (
            "hf_ro",
            "api.upload_file(repo_id='alice/open', path_in_repo='x', path_or_fileobj=b'')",
            "HfHubHTTPError",
            403,
        ),
        ("hf_ro", "api.model_info('alice/secret')", "RepositoryNotFoundError", 404),
        (None, "api.model_info('alice/secret')", "RepositoryNotFoundError", 401),
        ("hf_rw", "api.model_info('alice/missing')", "RepositoryNotFoundError", 404),
        ("hf_rw", "api.model_info('alice/open', revision='v2')", "RevisionNotFoundError", 404),
        ("hf_rw", "api.hf_hub_download('alice/open', 'missing.txt')", "RemoteEntryNotFoundError", 404),
        ("hf_rw", "api.create_repo('alice/open')", "HfHubHTTPError", 409),
    ],
)
def test_refusals_are_the_clients_own_errors(local_hub, hub_env, token, action, error, status):
    local_hub.create_repo("alice/open")
    local_hub.create_repo("alice/secret", private=True)
    answer = run_client(
        f"""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        api, answer = HfApi(), None
        try:
            {action}
        except HfHubHTTPError as error:
            answer = [type(error).__name__, error.response.status_code]
        """,
        hub_env(local_hub, token),
    )
    assert answer == [error, status]
    assert set(local_hub.repos) == {("models", "alice/open"), ("models", "alice/secret")}
    assert local_hub.files("alice/open") == {}


def test_a_data_set_is_streamed_and_its_parquet_read_in_pieces(local_hub, hub_env):
    texts = [f"document {i}" for i in range(1000)]
    buffer = io.BytesIO()
    pq.write_table(
        pa.table({"text": texts, "ballast": [np.random.bytes(8000) for _ in texts]}), buffer, row_group_size=100
    )
    local_hub.create_repo(
        "alice/rows", "datasets", private=True, files={"data/train-00000.parquet": buffer.getvalue()}
    )
    env = hub_env(local_hub, "hf_rw")
    answer = run_client(
        """
        import pyarrow.parquet as pq
        from datasets import load_dataset, load_dataset_builder
        from huggingface_hub import HfFileSystem

        rows = load_dataset("alice/rows", split="train", streaming=True)
        [url] = load_dataset_builder("alice/rows").config.data_files["train"]
        with HfFileSystem().open(url, block_size=2**16) as file:
            row_group = pq.ParquetFile(file).read_row_group(7, columns=["text"])
        answer = {"texts": [row["text"] for row in rows], "url": url, "row_group": row_group["text"].to_pylist()}
        """,
        env,
    )
    assert answer["texts"] == texts
    assert answer["row_group"] == texts[700:800]
    assert answer["url"].startswith("hf://datasets/alice/rows@")
    large = [status for method, path, status in local_hub.requests if method == "GET" and path.startswith("/lfs/")]
    assert len(large) > 1
    assert set(large) == {206}


def test_an_injected_fault_fails_one_upload_and_leaves_nothing(local_hub, hub_env, folder):
    local_hub.create_repo("alice/model")
    local_hub.fail("POST", "/commit/", status=503)
    upload = f"""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        answer = []
        for _ in range(2):
            try:
                HfApi().upload_folder(repo_id="alice/model", folder_path={str(folder)!r})
                answer.append("uploaded")
            except HfHubHTTPError as error:
                answer.append(error.response.status_code)
                files = HfApi().list_repo_files("alice/model")
        answer.append(files)
        """
    assert run_client(upload, hub_env(local_hub, "hf_rw")) == [503, "uploaded", [".gitattributes"]]
    assert local_hub.files("alice/model") == contents(folder)


def test_tests_meet_an_empty_hub_unless_they_ask_for_one():
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    assert os.environ["HF_ENDPOINT"] == constants.ENDPOINT
    assert constants.ENDPOINT.startswith("http://127.0.0.1:")
    with pytest.raises(RepositoryNotFoundError):
        HfApi().hf_hub_download("google-bert/bert-base-uncased", "config.json")
