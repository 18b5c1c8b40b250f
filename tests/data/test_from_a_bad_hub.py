"""Data sets of a Hub that is busy, hangs up or refuses: the real client, in this process."""

import io
import time
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from contract import build, contract
from labelled import png
from numbered import Numbered, collate
from sounds import tone, wav
from transformers import TrainerCallback

from hfssl import ExactStream, SSLTrainer, SSLTrainingArguments
from hfssl.data.modality import Input
from hfssl.data.sources import open_source
from hfssl.errors import DataError
from local_hub import ANY, CUT


ROWS = 18
TEXTS = [f"text {i} of {ROWS}" for i in range(ROWS)]
IMAGES = [png(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)) for i in range(ROWS)]
SOUNDS = [wav(tone(i, 0.1)) for i in range(ROWS)]
OF_PAIRS = {"image": Input("image", "image"), "text": Input("text", "text")}


def table(**columns):
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=6)
    return {"data/train-00000.parquet": file.getvalue()}


def files(samples, ending):
    return {f"train/{'ab'[i % 2]}/{i:02}.{ending}": sample for i, sample in enumerate(samples)}


def zipped():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, image in files(IMAGES, "png").items():
            archive.writestr(name, image)
    return {"train.zip": file.getvalue()}


def tarred():
    import tarfile

    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for i, image in enumerate(IMAGES):
            for ending, content in (("png", image), ("txt", TEXTS[i].encode())):
                member = tarfile.TarInfo(f"{i:02}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return {"train-00000.tar": file.getvalue()}


# what the repository holds, and how it is opened
DATA = {
    "text": (lambda: table(text=TEXTS), {"modality": "text"}),
    "lines": (lambda: {"train.txt": "\n".join(TEXTS).encode()}, {"modality": "text"}),
    "packed": (lambda: {"train.jsonl.gz": packed()}, {"modality": "text"}),
    "image": (lambda: table(image=IMAGES), {"modality": "image"}),
    "images": (lambda: files(IMAGES, "png"), {"modality": "image"}),
    "zip": (zipped, {"modality": "image"}),
    "audio": (lambda: table(audio=SOUNDS), {"modality": "audio"}),
    "sounds": (lambda: files(SOUNDS, "wav"), {"modality": "audio"}),
    "pairs": (lambda: table(image=IMAGES, text=TEXTS), {"inputs": OF_PAIRS}),
    "tar": (tarred, {"inputs": OF_PAIRS | {"text": Input("text", "txt"), "image": Input("image", "png")}}),
}


def packed():
    import gzip
    import json

    return gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode())


def some(*quick, of):
    """Those that are tried each time, and the others, which are slow together."""
    return [kind if kind in quick else pytest.param(kind, marks=pytest.mark.slow) for kind in of]


def opened(hub, kind, name, namespace="alice", **options):
    make, how = DATA[kind]
    hub.create_repo(f"{namespace}/{name}", "datasets", files=make(), **{"private": True, **options})
    return open_source(f"{namespace}/{name}", **how)


def content(source):
    return sorted(map(repr, (sample for i in range(len(source)) for sample in source.samples(source.read(i)))))


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited for; nobody waits."""
    waited = []
    monkeypatch.setattr(time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize(
    "status", [503, pytest.param(429, marks=pytest.mark.slow), CUT], ids=["busy", "too often", "cut"]
)
@pytest.mark.parametrize("kind", some("text", "images", "audio", "pairs", "tar", of=DATA))
def test_what_fails_for_the_moment_is_asked_for_again(hub_here, waits, kind, status):
    expected = content(opened(hub_here, kind, f"{kind}-whole"))
    assert len(expected) == ROWS and not waits
    for offset in (0, 4) if status == 503 else (2,):
        for after in range(offset, 120, 7):  # of eight requests one
            hub_here.fail(ANY, "", status, after=after)
        assert content(opened(hub_here, kind, f"{kind}-{status}-{offset}")) == expected
        assert waits and sum(fault.times for fault in hub_here.faults) < len(hub_here.faults)
        hub_here.faults.clear()


def test_what_stays_so_is_said(hub_here, waits):
    source = opened(hub_here, "text", "gone")
    hub_here.fail("GET", "/resolve/|/lfs/", times=1000)
    with pytest.raises(
        DataError, match=r"could not be fetched \(HfHubHTTPError.*Check the connection and start again"
    ):
        source.read(0)
    # longer and longer
    assert [wait for wait in waits if wait in (1, 4, 16)] and max(waits) == 16


@pytest.mark.parametrize("token, namespace, options, words", [
    (None, "alice", {}, "The Hub has no data set .* either, or it is private: check the name, or log in with `hf auth"),
    ("hf_ro", "alice", {}, "The Hub has no data set .* either, or it is private"),
    ("hf_gone", "alice", {}, r"The Hub refuses access to .* \(status 401\). Log in with `hf auth login` and a token that"),
    (None, "alice", {"gated": True, "private": False}, "is gated on the Hub: accept its conditions at http.* and log in"),
    ("hf_rw", "carol", {"gated": True, "private": False}, "is gated on the Hub: accept its conditions at"),
], ids=["no token", "of others", "wrong token", "gated, no token", "gated"])  # fmt: skip
@pytest.mark.parametrize("kind", ["text", "images", "sounds", "pairs"])
def test_what_may_not_be_read_is_said(hub_here, monkeypatch, kind, token, namespace, options, words):
    monkeypatch.setenv("HF_TOKEN", token) if token else monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DataError, match=words):
        opened(hub_here, kind, f"{kind}-{token}-{len(options)}", namespace, **options)


class Known(Numbered):
    """Makes of the sample that the data set has as number 7 row 7 of a batch of the contract."""

    def __init__(self, batch, samples):
        super().__init__(batch)
        self.number = {sample: i for i, sample in enumerate(samples)}

    def __call__(self, block):
        [first, *_] = block.columns.values()
        columns = {"number": [self.number[sample] for sample in first]}
        return super().__call__(type(block)(columns, block.keys, block.key, block.places))


class Died(BaseException):
    """In place of a signal that nothing can be done about."""


class Die(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise Died


METHODS = {
    "text": ("MlmForPreTraining", TEXTS), "image": ("SimclrForPreTraining", IMAGES),
    "audio": ("HubertForPreTraining", SOUNDS), "pairs": ("ClipForPreTraining", IMAGES),
}  # fmt: skip


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", some("text", "image", of=METHODS))
def test_a_run_that_dies_in_the_middle_of_a_shard_goes_on_to_the_same_end(hub_here, waits, tmp_path, kind, workers):
    method, samples = METHODS[kind]

    def run(folder, *callbacks):
        source = open_source(f"alice/{kind}-{workers}", **DATA[kind][1])
        torch.manual_seed(1)
        transform = Known(contract(method).batch(ROWS), samples)
        stream = ExactStream(source, transform, collate, 4, seed=5, lanes=2)
        args = SSLTrainingArguments(
            str(tmp_path / folder), max_steps=6, per_device_train_batch_size=4, learning_rate=1e-2, precision="fp32",
            report_to="none", eval_strategy="no", save_steps=2, logging_steps=1, disable_tqdm=True, seed=5, use_cpu=True,
            dataloader_num_workers=workers,
        )  # fmt: skip
        trainer = SSLTrainer(build(method, **contract(method).noise), args, stream, callbacks=list(callbacks))
        trainer.train()
        return trainer

    hub_here.create_repo(f"alice/{kind}-{workers}", "datasets", private=True, files=DATA[kind][0]())
    whole = run("whole")
    with pytest.raises(Died):
        run("cut", Die())
    for after in range(1, 60, 2):
        hub_here.fail(ANY, "", CUT if after % 4 == 1 else 503, after=after)
    again = run("cut")
    assert again.resumed_from.name == "checkpoint-2" and waits
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name
    assert again.stream.state_dict() == whole.stream.state_dict()
