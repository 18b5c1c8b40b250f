"""A modality is added by a folder on each of three floors: numbers in a csv, all the way to a trained encoder."""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils import ModelOutput

import hfssl.cli
import hfssl.data
import hfssl.evaluation
from hfssl import ExactStream, SSLTrainer, SSLTrainingArguments, methods, open_source
from hfssl.cli.modality import build_method, cli_modality
from hfssl.data.held_out import held_out_samples
from hfssl.data.modality import modality
from hfssl.data.sources import identity
from hfssl.data.stream import Rows
from hfssl.errors import UserError
from hfssl.evaluation.modality import evaluation_modality, modality_of_input
from hfssl.modeling.base import SSLPreTrainedModel
from hfssl.modeling.method import LearningRates, Method


ADDED = Path(__file__).parent / "toy_modality"
FLOORS = {"data": hfssl.data, "evaluation": hfssl.evaluation, "cli": hfssl.cli}


@pytest.fixture
def numbers():
    """Makes the folders visible, and undoes it."""
    for name, package in FLOORS.items():
        package.__path__.append(str(ADDED / name))
    yield
    for name, package in FLOORS.items():
        package.__path__.remove(str(ADDED / name))
        sys.modules.pop(f"hfssl.{name}.numbers", None)
        if hasattr(package, "numbers"):
            del package.numbers


@strict
class RowsPreTrainingConfig(PreTrainedConfig):
    """Config of a method that fills in the last half of a row."""

    model_type = "hfssl_rows"
    sub_configs_defaults = {"encoder_config": SubConfigSpec(config_class=AutoConfig, model_type="patchtst")}

    encoder_config: dict | PreTrainedConfig | None = None
    head_bias: bool = True


@dataclass
class RowsOutput(ModelOutput):
    loss: torch.FloatTensor | None = None


class RowsForPreTraining(SSLPreTrainedModel):
    config_class = RowsPreTrainingConfig
    method = Method(
        title="Rows", modality="numbers", narrow_heads={"head_bias": False},
        learning_rates=LearningRates(narrow=1e-2, wide=1e-3, checkpoint=1e-4, per_256_samples=False),
    )  # fmt: skip
    base_model_prefix = "encoder"
    main_input_name = "input_values"
    paper = {"title": "Rows", "id": "0000.00001", "citation": "@misc{rows}"}

    def __init__(self, config):
        super().__init__(config)
        self.encoder = AutoModel.from_config(config.encoder_config)
        self.head = nn.Linear(config.encoder_config.d_model, 4, bias=config.head_bias)
        self.post_init()

    def forward(self, input_values: torch.FloatTensor, return_loss: bool = True) -> RowsOutput:
        seen = torch.cat([input_values[:, :4], torch.zeros_like(input_values[:, 4:])], dim=1)[..., None]
        hidden = self.encoder(past_values=seen).last_hidden_state  # (batch_size, 1, num_patches, d_model)
        return RowsOutput(loss=(self.head(hidden[:, 0, 0]) - input_values[:, 4:]).square().mean())


def to_rows(block):
    return Rows({"input_values": np.array(block.columns["numbers"], np.float32)}, np.full(len(block.keys), 8))


def collate(columns):
    return {"input_values": torch.from_numpy(columns["input_values"])}


@pytest.fixture
def rows(tmp_path):
    """600 noisy waves, as a parquet of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    waves = np.sin(np.arange(8) + rng.uniform(0, 6, (600, 1))) + 0.05 * rng.standard_normal((600, 8))
    pq.write_table(pa.table({"wave": pa.array(waves.tolist(), pa.list_(pa.float64()))}), tmp_path / "waves.parquet")
    return tmp_path / "waves.parquet"


def test_a_modality_is_added_by_its_folders(numbers, rows, tmp_path, monkeypatch):
    methods.register(RowsForPreTraining)
    monkeypatch.setattr(methods, "METHODS", {n: m for n, m in methods.METHODS.items() if n != "rows"})
    command_line = cli_modality("numbers")
    assert modality("numbers").unit == "numbers" and evaluation_modality("numbers").main_inputs == ("past_values",)
    assert modality_of_input("past_values").name == "numbers"
    args = SSLTrainingArguments(
        str(tmp_path / "out"), max_steps=30, per_device_train_batch_size=32, precision="fp32", report_to="none",
        use_cpu=True, eval_strategy="no", logging_steps=1, disable_tqdm=True,
    )  # fmt: skip
    source = open_source(rows, modality="numbers")
    held_out = held_out_samples(source, fraction=0.1)
    stream = ExactStream(
        source, to_rows, collate, 32, exclude=frozenset(map(identity, held_out)), block_bytes=4000
    )  # fmt: skip
    model = build_method(RowsForPreTraining, command_line.encoder_arguments(), {}, None, args, set())
    assert model.config.head_bias is False and args.learning_rate == 1e-2
    trainer = SSLTrainer(model, args, stream, settings={"dataset": str(rows)})
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    assert trainer.state.log_history[0]["numbers"] == 32 * 8
    trainer.finish(data=source.description)
    assert type(AutoModel.from_pretrained(tmp_path / "out")).__name__ == "PatchTSTModel"
    embedder = evaluation_modality("numbers").make_embedder(held_out, None)
    assert embedder.num_batches == 1 and len(embedder.batches[0]) == len(held_out)


def test_a_modality_that_nobody_declared_is_refused_by_name():
    with pytest.raises(UserError, match="the modality 'numbers': hfssl/cli/numbers/ declares none"):
        cli_modality("numbers")
    with pytest.raises(UserError, match="the modality 'numbers': hfssl/evaluation/numbers/ declares none"):
        evaluation_modality("numbers")
