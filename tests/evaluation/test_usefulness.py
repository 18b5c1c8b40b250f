"""Whether an encoder is of use for some labels, and what is advised where it is not."""

import re

import numpy as np
import pytest
from labelled import digits, processor
from tiny_vision import vit

from hfssl import RecipeParser
from hfssl.cli.image.probes import ImageProbeArguments
from hfssl.data.image.views import ViewArguments
from hfssl.evaluation.image.features import ChannelStatistics, extract, probe_features
from hfssl.evaluation.probe_features import (
    BEFORE,
    ENCODER,
    MFCC_STATISTICS,
    RANDOM_INIT,
    RAW_INPUT,
    STATISTICS,
    ProbeFeatures,
)
from hfssl.evaluation.results import Result
from hfssl.evaluation.usefulness import (
    _WHAT_TO_TRY,
    WHEN_WORSE,
    change_line,
    usefulness,
    usefulness_line,
    usefulness_lines,
)
from hfssl.training.arguments import SSLTrainingArguments


def result(value, random_init, raw_input, statistics=0.1, protocol="linear", num_eval=1000, **more):
    baselines = {RANDOM_INIT: random_init, RAW_INPUT: raw_input, STATISTICS: statistics}
    fields = {
        "protocol": protocol, "version": 1, "model": "m", "task": "t", "split": "test", "metric": "accuracy",
        "num_train": 1000, "num_eval": num_eval, "hyperparameters": {"k": 20} if protocol == "knn" else {},
    }  # fmt: skip
    return Result.from_scores({0: value}, baselines, **{**fields, **more})


def test_it_is_useful_where_it_beats_what_needs_no_training():
    assert usefulness([result(0.9, 0.8, 0.7)]) == ("useful", "")
    assert usefulness([result(0.9, 0.8, 0.91)]) == ("useful", "")  # within two standard errors of raw input
    assert usefulness([result(0.81, 0.8, 0.7)])[0] == "no better than untrained"
    assert usefulness([result(0.7, 0.8, 0.7)])[0] == "no better than untrained"
    assert usefulness([result(0.9, 0.8, 0.99)])[0] == "worse than raw input"
    # k-NN of six numbers on tiles of a landscape
    assert usefulness([result(0.64, 0.5, 0.24, 0.68, num_eval=5000)])[0] == "worse than simple statistics"
    # the fewer are measured, the less is certain
    assert usefulness([result(0.9, 0.8, 0.7, num_eval=50)])[0] == "no better than untrained"
    # also where all of them, or none, are right
    assert usefulness([result(1.0, 8 / 9, 0.7, num_eval=9)])[0] == "no better than untrained"
    assert usefulness([result(1.0, 0.95, 0.99, num_eval=1000)]) == ("useful", "")


def test_what_was_measured_on_other_labels_does_not_count():
    good, bad = result(0.9, 0.5, 0.4), result(0.5, 0.8, 0.4, task="hard", metric="auroc")
    assert usefulness_lines([good]) == ["For these labels: useful."]
    said = usefulness_lines([good, bad])
    assert said[0] == "t: For these labels: useful." and said[1].startswith("hard: For these labels: no better than")


def test_two_probes_count_together_and_others_not_at_all():
    knn = result(0.9, 0.4, 0.5, protocol="knn")
    assert usefulness([knn, result(0.9, 0.91, 0.5)]) == ("useful", "")
    others = [
        result(0.1, 0.9, 0.9, protocol="few_shot"), result(0.1, 0.9, 0.9, metric="macro_f1"),
        result(0.1, 0.9, 0.9, protocol="knn", hyperparameters={"k": 200}),
    ]  # fmt: skip
    assert usefulness([knn, *others]) == ("useful", "")
    assert usefulness(others) == ("", "") and usefulness_line(others) == ""


def continued(value, before, **more):
    made = result(value, 0.4, 0.4, **more)
    made.baselines[BEFORE] = before
    return made


def test_a_checkpoint_that_got_worse_is_said_to_have():
    worse = change_line([continued(0.8, 0.9), continued(0.78, 0.86, protocol="knn")])
    assert "got worse for these labels: 0.880 before, 0.790 now (linear probe and k-NN)" in worse
    assert "`--lora_rank 8`" in worse
    assert "got better for these labels: 0.800 before, 0.900 now" in change_line([continued(0.9, 0.8)])
    assert "is as good for these labels as it came" in change_line([continued(0.81, 0.8)])
    assert "as it came" in change_line([continued(0.78, 0.86, num_eval=50)])  # of few nothing is certain
    assert change_line([result(0.8, 0.4, 0.4)]) == ""


def test_what_to_try_with_a_checkpoint_are_flags():
    given = [word for flags in re.findall(r"`(--[^`]*)`", WHEN_WORSE) for word in flags.split()]
    given.insert(given.index("--learning_rate") + 1, "1e-4")
    parser = RecipeParser(SSLTrainingArguments, defaults={"output_dir": "out", "max_steps": 1})
    [args] = parser.parse(given)
    assert (args.layer_decay, args.freeze_layers, args.lora_rank) == (0.7, 1, 8)


@pytest.mark.parametrize("kind", [RANDOM_INIT, RAW_INPUT, STATISTICS])
def test_the_sentence_says_what_to_try_with_flags_that_there_are(kind):
    baselines = {"random_init": 0.5, "raw_input": 0.5, "statistics": 0.5}
    baselines[{STATISTICS: "statistics"}.get(kind, kind)] = 0.95
    line = usefulness_line([result(0.8, **baselines)])
    assert line.startswith("For these labels: ") and "What to try: " in line
    words = [word for flags in re.findall(r"`(--[^`]*)`", _WHAT_TO_TRY[kind]) for word in flags.split()]
    with_values = {"--max_steps": ["10"], "--learning_rate": ["0.1"]}
    given = [each for word in words for each in (word, *with_values.get(word, []))]
    parser = RecipeParser(ViewArguments, ImageProbeArguments, SSLTrainingArguments, defaults={"output_dir": "out"})
    parser.parse([*given, "--max_steps", "10"] if "--max_steps" not in given else given)
    assert set(parser.given) >= {word[2:] for word in words if word.startswith("--")}


def test_nothing_is_said_of_views_where_there_are_none():
    of_images, of_sound = result(0.5, 0.5, 0.4), result(0.5, 0.5, 0.4)
    of_sound.baselines = {RANDOM_INIT: 0.5, MFCC_STATISTICS: 0.6}
    assert "recipes/show_views.py" in usefulness_line([of_images])
    line = usefulness_line([of_sound])
    assert line.endswith("raise `--learning_rate`.") and "image" not in line and "view" not in line


def test_statistics_are_mean_and_deviation_of_each_channel():
    train, test = digits()
    features = probe_features(vit_model(), processor(), train, test)
    assert isinstance(features, ProbeFeatures) and set(features.train) == {ENCODER, RANDOM_INIT, RAW_INPUT, STATISTICS}
    found = features.train[STATISTICS]
    assert found.shape == (len(train.images), 6)
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(found.std(0), 1, atol=1e-3)
    plain = extract(test, {"x": ChannelStatistics()})["x"]
    assert plain.min() >= 0 and plain.max() <= 1
    of_train = extract(train, {"x": ChannelStatistics()})["x"]
    expected = (plain - of_train.mean(0)) / (of_train.std(0) + 1e-6)  # scaled by what is known of train
    np.testing.assert_allclose(features.test[STATISTICS], expected, rtol=1e-4, atol=1e-4)


def vit_model():
    from transformers import AutoModel

    return AutoModel.from_config(vit()).eval()
