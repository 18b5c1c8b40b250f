"""A run on pairs: what is looked at while it trains, and what it leaves behind."""

import contract
import numpy as np
import pytest
import torch
from numbered import collate
from transformers import AutoModelForPreTraining, CLIPModel

from hfssl import ExactStream, SSLTrainer, SSLTrainingArguments
from hfssl.data.sources import MemorySource
from hfssl.data.stream import Rows
from hfssl.functional.embedding_figures import effective_rank, modality_gap


class NumberedPairs:
    """Makes of the sample "007" pair 7 of a batch; of held-out samples both sides are there."""

    def __init__(self, batch):
        self.batch, self.seen = batch, []

    def __call__(self, block):
        self.seen.append(sorted(block.columns))
        rows = [int(sample) for sample in next(iter(block.columns.values()))]
        columns = {name: values[rows].numpy() for name, values in self.batch.items()}
        return Rows(columns, np.ones(len(rows), dtype=np.int64), places=block.places)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    torch.manual_seed(1)
    transform = NumberedPairs(contract.contract("ClipForPreTraining").batch(100))
    names = [f"{i:03d}" for i in range(100)]
    stream = ExactStream(MemorySource(names, name="numbers", piece_bytes=30), transform, collate, 8, block_bytes=60)
    args = SSLTrainingArguments(
        str(tmp_path_factory.mktemp("pairs")), max_steps=3, per_device_train_batch_size=8, learning_rate=1e-3,
        precision="fp32", report_to="none", eval_steps=3, save_strategy="no", logging_steps=1, disable_tqdm=True,
        use_cpu=True,
    )  # fmt: skip
    held_out = {stream.source.leading: names[60:], "caption": [f"caption {name}" for name in names[60:]]}
    trainer = SSLTrainer(contract.build("ClipForPreTraining"), args, stream, held_out=held_out)
    trainer.train()
    return trainer


def test_both_towers_and_the_gap_between_them_are_looked_at(trainer):
    first, last = [entry for entry in trainer.state.log_history if "health_verdict" in entry]
    assert (first["health_verdict"], last["step"]) == ("untrained", 3)
    transform = trainer.stream.transform
    batch = {name: tensor[60:] for name, tensor in transform.batch.items()}
    with torch.no_grad():
        image, text = trainer.model.eval().compared_embeddings(batch).unbind(1)
    assert last["health_rankme_image"] == pytest.approx(effective_rank(image), rel=1e-4)
    assert last["health_rankme_text"] == pytest.approx(effective_rank(text), rel=1e-4)
    assert last["health_modality_gap"] == pytest.approx(modality_gap(image, text), rel=1e-4)
    # what makes rows of them is given both sides
    assert sorted(["caption", trainer.stream.source.leading]) in transform.seen


def test_the_scale_is_logged_and_held_out_pairs_are_not_trained_on(trainer):
    scales = [entry["logit_scale"] for entry in trainer.state.log_history if "logit_scale" in entry]
    assert len(scales) == 3 and scales[0] == pytest.approx(1 / 0.07) and len(set(scales)) == 3
    assert len(trainer.stream.exclude) == 40


def test_the_result_is_the_stock_pair_with_its_card(trainer):
    folder = trainer.finish()
    assert type(CLIPModel.from_pretrained(folder)) is CLIPModel
    card = (folder / "README.md").read_text()
    assert "A `CLIPVisionModel` and a `CLIPTextModel`" in card and "projection_dim=16" in card
    assert {path.name for path in folder.iterdir() if path.is_dir()} >= {"image", "text", "pretraining", "assets"}
    again = AutoModelForPreTraining.from_pretrained(folder / "pretraining")
    for name, tensor in trainer.model.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], tensor, rtol=0, atol=0)
