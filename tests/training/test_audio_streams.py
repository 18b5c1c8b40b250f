"""A run on recordings of any length, from files to units: also where rows are cut because padding would leak."""

import io

import numpy as np
import pytest
import soundfile
import tiny_audio
import torch

from hfssl import HubertForPreTraining, HubertPreTrainingConfig, SSLTrainer, SSLTrainingArguments
from hfssl.data.audio.rows import AudioFormat
from hfssl.data.audio.streams import audio_stream
from hfssl.data.sources import MemorySource


def recording(number):
    """A tone that is another one from half a second on, of a length of its own; some are longer than a window."""
    rng = np.random.default_rng(number)
    seconds = rng.uniform(0.3, 1.6)
    time = np.arange(round(16_000 * seconds)) / 16_000
    tone = np.sin(2 * np.pi * np.where(time < 0.5, 300 + 40 * number, 2500) * time)
    file = io.BytesIO()
    soundfile.write(file, 0.1 * tone + 0.001 * rng.standard_normal(len(time)), 16_000, format="FLAC")
    return file.getvalue()


class Hubert(HubertForPreTraining):
    """Keeps what it gets, and what targets are made of."""

    seen = None

    def forward(self, **batch):
        if self.training:
            self.seen = [
                *(self.seen or []),
                {name: value.clone() for name, value in batch.items() if torch.is_tensor(value)},
            ]
        return super().forward(**batch)


@pytest.mark.parametrize("norm", [pytest.param("layer", marks=pytest.mark.slow), "group"])
def test_units_of_whole_windows_reach_the_frames_that_they_are_of(tmp_path, norm):
    torch.manual_seed(0)
    encoder = tiny_audio.hubert(feat_extract_norm=norm)
    config = HubertPreTrainingConfig(encoder_config=encoder, num_units=6, kmeans_restarts=1)
    model = Hubert(config)
    source = MemorySource([recording(i) for i in range(24)], name="tones", column="audio", modality="audio")
    format = AudioFormat(encoder, config.masking, frozenset(("starts",)), max_seconds=1.0)
    stream = audio_stream(source, format, 4.0, seed=1, lanes=1)
    args = SSLTrainingArguments(
        output_dir=str(tmp_path), max_steps=4, learning_rate=1e-3, precision="fp32", report_to="none",
        eval_strategy="no", save_strategy="no", disable_tqdm=True, use_cpu=True, logging_steps=1,
    )  # fmt: skip
    trainer = SSLTrainer(model, args, stream)
    trainer.train()
    assert len(model.seen) == 4 and all(np.isfinite(e["loss"]) for e in trainer.state.log_history if "loss" in e)
    cut = 0
    for batch in model.seen:
        length = batch["mask_time_indices"].shape[1]
        units = model.units_of_frames(batch["targets"], length, batch.get("starts"))
        assert ("attention_mask" in batch) <= (norm == "layer")
        # those that are made of the piece itself, away from its ends, where differences over time look beyond it
        again = model.units_of_frames(model.units_of(batch["input_values"], batch.get("attention_mask")), length)
        there = (units >= 0) & (again >= 0)
        there[:, :6] = there[:, -6:] = False
        assert (units == again)[there].float().mean() > 0.9
        cut += int((batch["starts"] > 0).sum())
    assert (cut > 0) == (norm == "group")
