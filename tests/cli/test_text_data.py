"""The flags about texts, and the stream that comes of them."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

from hfssl.cli.text.data import TextData, TextDataArguments
from hfssl.errors import UserError


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"batch_tokens": 4096}, "--batch_tokens 4096` is for documents with a row each.*--packing false"),
        ({"batch_tokens": 100, "packing": False}, "--batch_tokens 100` must hold a row of `--max_length 128`.*Pass at least 128"),
    ],
)  # fmt: skip
def test_batches_by_tokens_need_rows_without_packing(settings, words):
    with pytest.raises(UserError, match=words):
        TextDataArguments(**settings)


def test_batches_by_tokens_have_little_padding(tmp_path):
    # lengths as of real documents: many short ones, a few that are cut
    rng = np.random.default_rng(0)
    lengths = np.clip(np.exp(rng.normal(3.6, 1.0, 6000)), 2, 2000).astype(int)
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(rng.choice(tiny.WORDS, length)) for length in lengths))
    data = TextData(
        TextDataArguments(
            dataset=str(tmp_path / "texts.txt"), packing=False, max_length=128, batch_tokens=2048, vocab_size=150
        )
    )
    args = SimpleNamespace(
        per_device_train_batch_size=32, seed=0, lanes=None, process_index=0, world_size=1, dataloader_num_workers=0
    )
    stream = data.stream(args, {"mask_ratio": 0.15})
    there = slots = 0
    for batch in itertools.islice(stream, 150):
        assert batch["input_ids"].numel() <= 2048
        there, slots = there + int(batch["attention_mask"].sum()), slots + batch["input_ids"].numel()
    assert there == stream.counts["units"] and 1 - there / slots < 0.05
    assert data.settings["batch_tokens"] == 2048
