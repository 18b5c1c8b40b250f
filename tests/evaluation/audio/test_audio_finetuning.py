"""Fine-tuning on recordings: classifiers and recognisers that plain transformers loads."""

import json

import numpy as np
import pytest
import tiny_audio
import torch
from recipe_process import stock_server
from sounds import ast, feature_extractor, hubert, save, tone, tones, wav, wav2vec2_bert

from hfssl import CpcForPreTraining, CpcPreTrainingConfig
from hfssl.data.labelled import HeldSamples, LabelledData
from hfssl.evaluation import EvaluationError, metrics
from hfssl.evaluation.audio.ctc import Collator, CtcEvaluator, build_processor, said
from hfssl.evaluation.audio.encoder import make_inputs
from hfssl.evaluation.audio.finetuning import AudioFinetuning, TrainingClips
from hfssl.evaluation.encoder_folder import stock_folder
from hfssl.evaluation.finetune import FinetuneEvaluator, layer_groups
from hfssl.evaluation.finetune_settings import FinetuneSettings
from hfssl.evaluation.probes import parse_task
from hfssl.modeling.feature_extractor import build_feature_extractor


QUICK = {"seeds": 1, "epochs": 1, "min_steps": 2, "train_batch_size": 8}


def spoken(num=24):
    """Two tones one after the other, and what they are."""
    texts = ["low", "Low high!", "high low", "high"]

    def sound(row):
        pitches = {"low": 0, "high": 2}
        words = said(texts[row % 4]).split()
        return np.concatenate([tone(3 * row + pitches[word], 0.4) for word in words])

    def split(rows, name):
        return LabelledData(HeldSamples(wav(sound(row)) for row in rows), np.array([row % 4 for row in rows]), texts,
                            name, f"spoken ({name})", "audio")  # fmt: skip

    return split(range(num), "train"), split(range(num, num + 8), "test")


LOAD = """
import json, sys
import numpy as np
assert "hfssl" not in sys.modules
sys.modules["hfssl"] = None
from transformers import pipeline
task, folder = {task!r}, {folder!r}
found = pipeline(task, folder)({{"raw": np.linspace(-1, 1, 8000, dtype=np.float32), "sampling_rate": 16000}})
print(json.dumps(found))
"""


def piped(task, folder, tmp_path):
    """What a pipeline of transformers makes of a recording, where there is no hfssl."""
    script = tmp_path / "load.py"
    script.write_text(LOAD.format(task=task, folder=str(folder)))
    run = stock_server().run(tmp_path / "load", script=str(script))
    assert run.poll() == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_classifier_stays_that_a_pipeline_loads(tmp_path):
    train, test = tones()
    encoder = save(hubert(1), tmp_path / "encoder")
    [result] = FinetuneEvaluator(train, test, FinetuneSettings(**QUICK), "fp32")(encoder, output_dir=tmp_path / "out")
    assert result.protocol == "finetune" and "random_init" in result.baselines
    assert result.hyperparameters["max_seconds"] == 15.0 and "shift" not in result.hyperparameters
    found = piped("audio-classification", tmp_path / "out" / "model", tmp_path)
    assert {each["label"] for each in found} == {"low", "middle", "high"}
    assert 'pipeline("audio-classification"' in (tmp_path / "out" / "model" / "README.md").read_text()


@pytest.mark.parametrize("make", [ast, wav2vec2_bert])
def test_other_encoders_are_classified_with(make, tmp_path):
    train, test = tones()
    finetuning = AudioFinetuning(str(save(make(), tmp_path)), None, train, test, FinetuneSettings(**QUICK))
    model = finetuning.classifier(train.class_names, 0, random_init=False)
    rows = finetuning.training_rows(train.labels, np.arange(45), 4, 0)
    batch = finetuning.collator(model)([rows[i] for i in range(4)])
    model(**batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_nothing_is_hidden_or_skipped_at_random_while_it_is_fine_tuned(tmp_path):
    train, test = tones()
    encoder = save(hubert(mask_time_prob=0.5, layerdrop=0.5, hidden_dropout=0.0, attention_dropout=0.0,
                          activation_dropout=0.0, feat_proj_dropout=0.0, final_dropout=0.0), tmp_path)  # fmt: skip
    finetuning = AudioFinetuning(str(encoder), None, train, test, FinetuneSettings(**QUICK))
    model = finetuning.classifier(train.class_names, 0, random_init=False).train()
    rows = finetuning.training_rows(train.labels, np.arange(45), 4, 0)
    batch = finetuning.collator(model)([rows[i] for i in range(4)])
    assert torch.equal(model(**batch).logits, model(**batch).logits)


def test_long_recordings_give_another_part_in_each_epoch():
    clips = TrainingClips([np.arange(100.0), np.arange(30.0)], [0, 1], np.arange(2), 40, 0, 30)
    parts = [clips[i] for i in range(40)]
    starts = {part["clip"][0] for part in parts if part["labels"] == 0}
    assert len(starts) > 10 and all(len(part["clip"]) == 30 for part in parts) and max(starts) <= 70
    assert all(part["clip"][0] == 0 for part in parts if part["labels"] == 1)
    np.testing.assert_array_equal(clips[7]["clip"], parts[7]["clip"])


def test_a_recogniser_stays_that_a_pipeline_loads(tmp_path):
    train, test = spoken()
    encoder = save(hubert(1), tmp_path / "encoder")
    evaluator = CtcEvaluator(train, test, FinetuneSettings(**QUICK), "fp32")
    cer, wer = evaluator(encoder, output_dir=tmp_path / "out")
    assert (cer.metric, wer.metric) == ("cer", "wer") and not cer.greater_is_better
    assert cer.value >= 0 and set(cer.baselines) == {"random_init"}
    found = piped("automatic-speech-recognition", tmp_path / "out" / "model", tmp_path)
    assert set(found["text"].lower()) <= set("highlow ")
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "to write down what is said, in 9 tokens" in card


def test_both_sides_of_recognition_learn_at_one_rate(tmp_path, monkeypatch):
    """Head and blocks, of the pre-trained encoder and of the one from scratch; pre-trained convolutions not at all."""
    train, test = spoken()
    rates, frozen = [], []

    def noted(model, learning_rate, layer_decay, weight_decay):
        groups = layer_groups(model, learning_rate, layer_decay, weight_decay)
        rates.append({group["lr"] for group in groups})
        kept = (name for name, p in model.named_parameters() if not p.requires_grad)
        frozen.append({name.split(".")[1] for name in kept})
        return groups

    monkeypatch.setattr("hfssl.evaluation.finetune.layer_groups", noted)
    cer, _ = CtcEvaluator(train, test, FinetuneSettings(**QUICK), "fp32")(save(hubert(1), tmp_path / "encoder"))
    assert rates == [{1e-3}, {1e-3}] and cer.version == 3
    assert frozen == [{"feature_extractor", "masked_spec_embed"}, {"masked_spec_embed"}]
    assert (cer.hyperparameters["layer_decay"], cer.hyperparameters["learning_rate"]) == (1.0, 1e-3)


def test_a_recogniser_learns_of_whole_recordings_and_is_measured_on_them(tmp_path, caplog, monkeypatch):
    """A part of a recording is not what its transcript says."""
    train, test = spoken()  # of one word 0.4 s, of two 0.8
    encoder = save(hubert(1), tmp_path / "encoder")
    seen = []
    real = Collator.__call__
    monkeypatch.setattr(Collator, "__call__", lambda self, items: (seen.extend(items), real(self, items))[1])
    lengths = []
    monkeypatch.setattr(
        "hfssl.evaluation.audio.ctc.make_inputs",
        lambda model, processor, clips, *rest: (lengths.extend(map(len, clips)), make_inputs(model, processor, clips))[
            1
        ],
    )
    settings = FinetuneSettings(**QUICK, max_seconds=0.5, random_init=False)
    cer, _ = CtcEvaluator(train, test, settings, "fp32")(encoder)
    assert cer.num_train == 12 and seen and {len(item["clip"]) for item in seen} == {6400}
    assert {len("low"), len("high")} >= {len(item["labels"]) for item in seen}
    assert set(lengths) == {6400, 12800}  # test is whole
    assert "12 of 24 recordings to learn from are longer than 0.5 s (`--max_seconds`)" in caplog.text
    with pytest.raises(EvaluationError, match="All of 24 recordings to learn from are longer than 0.3 s"):
        CtcEvaluator(train, test, FinetuneSettings(**QUICK, max_seconds=0.3, random_init=False), "fp32")(encoder)


def test_characters_are_those_that_are_said():
    assert said("  Don’t — stop, 3 times! well-known ") == "don’t stop 3 times well known"
    # files write a letter with its accent as one character or as two, some only in one case
    assert said("Caf\u00e9") == said("CAFE\u0301") == "caf\u00e9" and said("J\u030c") == said("\u01f0") == "\u01f0"
    processor = build_processor(feature_extractor(hubert()), ["Ab, c", "B-a"])
    assert processor.tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "|": 2, "a": 3, "b": 4, "c": 5}
    ids = processor.tokenizer("ab c").input_ids
    assert ids == [3, 4, 2, 5]
    # what repeats is one, unless a blank is between
    assert processor.tokenizer.decode([3, 3, 0, 4, 0, 4, 2, 5, 5]) == "abb c"
    with pytest.raises(EvaluationError, match="None of the transcripts to learn from has a letter"):
        build_processor(feature_extractor(hubert()), ["!", "…"])


def test_the_loss_is_that_of_the_transcripts_alone(tmp_path):
    """Padding, of sounds and of transcripts, changes nothing."""
    train, test = spoken()
    finetuning = AudioFinetuning(str(save(hubert(), tmp_path)), None, train, test, FinetuneSettings(**QUICK))
    from transformers import AutoModelForCTC

    config = finetuning.encoder.fresh_config()
    config.vocab_size, config.pad_token_id, config.ctc_loss_reduction = 6, 0, "sum"
    model = finetuning.encoder.with_head(AutoModelForCTC, config, 0, False, "speech recognition").eval()
    items = [{"clip": tone(row, seconds), "labels": labels} for row, seconds, labels in
             ((0, 0.3, [3, 4]), (1, 0.6, [3, 4, 5, 3]))]  # fmt: skip
    collate = Collator(finetuning, model)
    with torch.no_grad():
        together = model(**collate(items)).loss
        alone = sum(model(**collate([item])).loss for item in items)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-3)


def test_error_rates():
    assert metrics.load("cer").compute(predictions=["kitten", ""], references=["sitting", "a"]) == {"cer": 4 / 8}
    assert metrics.load("wer").compute(predictions=["a b  c", "x"], references=["a c", "x y"]) == {"wer": 2 / 4}
    assert metrics.load("wer").compute(predictions=["a b c d"], references=["z"]) == {"wer": 4.0}
    assert metrics.load("cer").compute(predictions=[""], references=[""]) == {"cer": 0.0}


def test_recognition_is_for_encoders_of_sound():
    assert parse_task("ctc", "audio") == "ctc" and parse_task("classification", "text") == "finetune"
    with pytest.raises(
        EvaluationError, match="`--task ctc` is nothing to train an encoder of images for: there is classification"
    ):
        parse_task("ctc", "image")


def test_an_encoder_that_transformers_recognises_nothing_with_is_refused_in_a_sentence(tmp_path):
    train, test = spoken()
    with pytest.raises(EvaluationError, match="speech recognition"):
        CtcEvaluator(train, test, FinetuneSettings(**QUICK), "fp32")(save(ast(), tmp_path / "encoder"))


@pytest.mark.parametrize("evaluator, data", [(FinetuneEvaluator, tones), (CtcEvaluator, spoken)])
def test_the_sentence_names_the_result_that_was_given(tmp_path, monkeypatch, evaluator, data):
    monkeypatch.chdir(tmp_path)
    model = CpcForPreTraining(CpcPreTrainingConfig(encoder_config=tiny_audio.cpc()))
    model.export_encoder("out/cpc", processor=build_feature_extractor(model.encoder.config))
    model.save_pretrained("out/cpc/pretraining")
    with pytest.raises(EvaluationError) as raised:
        evaluator(*data(), FinetuneSettings(**QUICK), "fp32")(stock_folder("out/cpc"))
    said = str(raised.value)
    assert said.startswith('out/cpc is a "hfssl_cpc_encoder" model, and transformers has none for ')
    assert "recipes/probe.py" in said and "recipes/hubert.py" in said and "/tmp" not in said and "<class" not in said


@pytest.mark.parametrize("make, what", [(hubert, "frozen"), (wav2vec2_bert, "none")])
def test_what_of_the_encoder_is_frozen_is_in_the_result(tmp_path, make, what):
    train, test = spoken(8)
    settings = FinetuneSettings(**QUICK, random_init=False)
    cer, _ = CtcEvaluator(train, test, settings, "fp32")(save(make(), tmp_path / "encoder"))
    assert cer.hyperparameters["pretrained_convolutions"] == what
