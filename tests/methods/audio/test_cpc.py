"""CPC: what is predicted from what, an encoder that never looks ahead, and its export without a stock class."""

import pytest
import tiny_audio
import torch
import torch.nn.functional as F
from contract import Contract
from recipe_process import printed_without_hfssl
from transformers import AutoFeatureExtractor, AutoModel, Trainer, TrainingArguments

from hfssl import CpcForPreTraining, CpcPreTrainingConfig
from hfssl.errors import UserError
from hfssl.evaluation.audio.encoder import AudioEncoder
from hfssl.evaluation.audio.features import EncoderLayers
from hfssl.evaluation.encoder_folder import stock_folder
from hfssl.evaluation.facts import read_facts, write_facts
from hfssl.methods.audio import cpc as module
from hfssl.modeling.base import load_plain_encoder
from hfssl.modeling.feature_extractor import build_feature_extractor


HEAD = {"num_steps": 3, "num_negatives": 5}


def clips(rows=6, num_samples=4000):
    length = tiny_audio.frames_of(tiny_audio.cpc(), num_samples)
    negatives = tiny_audio.masks(rows, length, mask_ratio=0.0, num_negatives=5)
    return {"input_values": tiny_audio.waveforms(rows, num_samples), **negatives}


def all_alike(change):
    """Each frame is nothing: there is nothing to predict, and nothing to tell it from."""
    forward = module.CpcEncoder.forward

    def nothing(self, *args, **kwargs):
        out = forward(self, *args, **kwargs)
        return type(out)(0.0 * out.last_hidden_state, 0.0 * out.extract_features, out.hidden_states)

    change(module.CpcEncoder, "forward", nothing)
    return {}


CONTRACT = Contract(encoder=tiny_audio.cpc, batch=clips, settings=HEAD, collapse=all_alike)


def model_of(seed=0, encoder=None, **config):
    torch.manual_seed(seed)
    return CpcForPreTraining(CpcPreTrainingConfig(encoder_config=encoder or tiny_audio.cpc(), **{**HEAD, **config}))


def test_the_defaults_are_those_of_the_second_paper():
    config = CpcPreTrainingConfig()
    assert (config.num_steps, config.num_negatives) == (12, 128)
    encoder = config.encoder_config
    assert (encoder.conv_kernel, encoder.conv_stride) == ((10, 8, 4, 4, 4), (5, 4, 2, 2, 2))
    assert encoder.hidden_size == 256 and encoder.conv_dim == (256,) * 5


def test_the_loss_is_that_of_the_paper():
    model, batch = model_of().eval(), clips(2)
    out = model.encoder(batch["input_values"])
    length = out.last_hidden_state.shape[1]
    terms = []
    for step, predictor in enumerate(model.predictors, start=1):
        for clip in range(2):
            for frame in range(length - step):
                others = (batch["negative_indices"][clip, frame].long() + step) % length
                candidates = out.extract_features[clip][[frame + step, *others.tolist()]]
                scores = candidates @ predictor(out.last_hidden_state[clip, frame])
                terms.append(-scores.log_softmax(0)[0] / (length - step))
    torch.testing.assert_close(model(**batch).loss, torch.stack(terms).sum() / (2 * 3))


def test_no_frame_sees_what_comes_after_it():
    encoder = model_of().encoder.eval()
    waveforms = tiny_audio.waveforms(1)
    before, after = encoder(waveforms), encoder(torch.cat([waveforms[:, :3000], torch.randn(1, 1000)], dim=1))
    whole = tiny_audio.frames_of(tiny_audio.cpc(), 3000)
    torch.testing.assert_close(before.last_hidden_state[:, :whole], after.last_hidden_state[:, :whole])
    assert not torch.allclose(before.last_hidden_state[:, whole + 1 :], after.last_hidden_state[:, whole + 1 :])


def test_a_padded_recording_has_the_loss_of_itself():
    model, batch = model_of().eval(), clips(2)
    alone = model(**batch)
    padded = {
        "input_values": F.pad(batch["input_values"], (0, 2560)),
        "attention_mask": F.pad(torch.ones(2, 4000, dtype=torch.long), (0, 2560)),
        "negative_indices": F.pad(batch["negative_indices"], (0, 0, 0, 10)),
    }
    out = model(**padded)
    torch.testing.assert_close(out.loss, alone.loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(out.figures["contrastive_accuracy"], alone.figures["contrastive_accuracy"])


def test_all_parameters_learn_with_the_plain_trainer(tmp_path):
    model = model_of()
    before = {name: p.clone() for name, p in model.named_parameters()}
    whole = clips(8)
    data = [{name: tensor[i] for name, tensor in whole.items()} for i in range(8)]
    arguments = TrainingArguments(
        output_dir=tmp_path, max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=data).train()
    assert {name for name, p in model.named_parameters() if torch.equal(p, before[name])} == set()


def test_what_is_exported_is_loaded_by_the_lines_of_the_card_without_hfssl(tmp_path):
    model = model_of().eval()
    model.export_encoder(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "encoder.json"}
    said = printed_without_hfssl(
        tmp_path,
        model.loader.format(name=tmp_path) + "\nimport sys\nassert 'hfssl' not in sys.modules\n"
        "print(encoder(torch.linspace(-1, 1, 2000)[None]).sum().item())",
    )
    expected = model.encoder(torch.linspace(-1, 1, 2000)[None]).last_hidden_state.sum().item()
    assert float(said) == pytest.approx(expected, rel=1e-4, abs=1e-4)
    again = load_plain_encoder(tmp_path)
    assert type(again) is module.CpcEncoder
    further = CpcForPreTraining.from_encoder(str(tmp_path), **HEAD)
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert torch.equal(further.encoder.state_dict()[name], tensor)


def test_a_result_folder_is_evaluated_as_others_are(tmp_path):
    model = model_of().eval()
    model.export_encoder(tmp_path, processor=build_feature_extractor(model.encoder.config))
    model.save_pretrained(tmp_path / "pretraining")
    write_facts(tmp_path, method="cpc", dataset="mine", labelled={"dataset": "ours"})
    folder = stock_folder(str(tmp_path))
    assert read_facts(folder)["dataset"] == "mine" and read_facts(folder)["labelled"] == {"dataset": "ours"}
    assert AutoFeatureExtractor.from_pretrained(folder).sampling_rate == 16_000
    assert torch.equal(AutoModel.from_pretrained(folder).norms[0].weight, model.encoder.norms[0].weight)


def test_a_result_is_taken_before_the_checkpoints_of_its_run(tmp_path, caplog):
    model = model_of().eval()
    model.export_encoder(tmp_path, processor=build_feature_extractor(model.encoder.config))
    model.save_pretrained(tmp_path / "pretraining")
    model_of(seed=1).save_pretrained(tmp_path / "checkpoint-9")
    caplog.set_level("INFO", logger="hfssl")
    encoder = AutoModel.from_pretrained(stock_folder(str(tmp_path)))
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(encoder.state_dict()[name], tensor)
    assert "has not ended" not in caplog.text


@pytest.mark.parametrize("width, layers", [(32, 1), (16, 2)])
def test_layers_are_of_one_width(tmp_path, width, layers):
    model = model_of(encoder=tiny_audio.cpc(hidden_size=width)).eval()
    model.encoder.save_pretrained(tmp_path)
    build_feature_extractor(model.encoder.config).save_pretrained(tmp_path)
    audio = AudioEncoder(tmp_path)
    sounds = list(tiny_audio.waveforms(2).numpy())
    made = EncoderLayers(audio, audio.load()).layers(sounds)
    assert made.shape == (2, layers, width)
    inputs = audio.processor(sounds, sampling_rate=16_000, return_tensors="pt").input_values
    contexts = model.encoder(inputs).last_hidden_state.mean(1)
    torch.testing.assert_close(torch.from_numpy(made[:, -1]), contexts.detach(), atol=1e-4, rtol=1e-4)


def test_frames_that_are_all_alike_are_seen(monkeypatch):
    model, batch = model_of().eval(), clips()
    assert model(**batch).figures["contrastive_accuracy"] > 0
    all_alike(monkeypatch.setattr)
    assert model(**batch).figures["contrastive_accuracy"] == 0


def test_what_is_missing_is_explained():
    model, batch = model_of(), clips()
    with pytest.raises(UserError, match="`negative_indices` is missing"):
        model(batch["input_values"])
    with pytest.raises(ValueError, match=r"has shape \(6, 14, 5\), but the encoder makes 15 frames"):
        model(batch["input_values"], negative_indices=batch["negative_indices"][:, :14])
    with pytest.raises(UserError, match="a wav2vec2 sees the whole recording"):
        model_of(encoder=tiny_audio.wav2vec2())


@pytest.mark.parametrize(
    "config, words",
    [
        ({"num_steps": 0}, "num_steps.*at least 1, got 0"),
        ({"num_negatives": 0}, "num_negatives.*at least 1, got 0"),
    ],
)
def test_bad_settings_are_named(config, words):
    with pytest.raises(Exception, match=words):
        model_of(**config)


def test_convolutions_have_all_their_numbers():
    with pytest.raises(Exception, match="one number for each convolution, got 3, 2 and 3"):
        tiny_audio.cpc(conv_kernel=(10, 8))
