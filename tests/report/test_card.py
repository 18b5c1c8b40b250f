"""The card: what the Hub reads of it, what it says, and what joins it later."""

import json
import re

import pytest
from huggingface_hub import ModelCard
from report_records import a_probe, a_run

from hfssl.errors import UserError
from hfssl.evaluation.results import Result
from hfssl.report.card import add_to_card, write_card
from hfssl.report.record import read_record


def written(folder) -> ModelCard:
    write_card(folder / "README.md", read_record(folder))
    return ModelCard.load(folder / "README.md")


def test_the_hub_reads_it(tmp_path):
    hub = {"id": "uoft-cs/cifar10", "config": "plain_text", "split": "train", "revision": "0b2714987fa4"}
    folder = a_run(
        tmp_path / "run", license="apache-2.0", language=["en"], base_model="facebook/vit-mae-base", hub_data=[hub],
        pipeline_tag="image-feature-extraction",
    )  # fmt: skip
    card = written(a_probe(folder, task="uoft-cs/cifar10"))
    data = card.data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", ["en"], "transformers")
    assert data.datasets == ["uoft-cs/cifar10"] and data.base_model == "facebook/vit-mae-base"
    assert data.pipeline_tag == "image-feature-extraction" and {"hfssl", "mae"} <= set(data.tags)
    [result] = data.eval_results
    assert (result.metric_type, result.metric_value, result.task_type) == ("accuracy", 0.875, "image-classification")
    assert (result.dataset_type, result.dataset_split) == ("uoft-cs/cifar10", "test")
    assert (result.dataset_config, result.dataset_revision) == ("plain_text", "0b2714987fa4")
    assert result.metric_args["seeds"] == [0] and result.metric_args["baselines"]["random_init"] == 0.5
    for said in (
        "further from `facebook/vit-mae-base`", "split train, revision 0b2714987fa4", "Biases: not evaluated",
        "2 min on CPU", "3 damaged, 1 empty samples", "20 samples, never trained on", "max_steps=4", "| mask_ratio | 0.6 |",
        "@article{mae}", "@software{hfssl", "| **0.875** | 0.5 | 0.5625 | 0.4375 |", "abc123", "`linear` v2",
    ):  # fmt: skip
        assert said in card.content, said


def test_what_is_not_known_is_not_claimed(tmp_path):
    """No folder of this machine is a data set or a model of the Hub, and no licence is made up."""
    card = written(a_run(tmp_path / "run", base_model="stock", base_model_is_local=True))
    for name in ("license", "language", "datasets", "base_model", "eval_results", "pipeline_tag"):
        assert getattr(card.data, name) is None, name
    assert "Licence: not stated" in card.content and "labels of any kind: not evaluated" in card.content
    assert "It has not seen all of its data once." in card.content and "What was measured" not in card.content


def test_names_stay_in_their_place(tmp_path):
    card = written(a_probe(a_run(tmp_path / "run", data="a | b\n# c <b>"), task="x|y\nz"))
    assert "| Data | a \\| b # c &lt;b> |" in card.content and "| x\\|y z | accuracy |" in card.content
    assert card.data.eval_results[0].dataset_type == "x-y-z"


def test_what_is_no_gain_for_some_labels_is_told_of_these(tmp_path):
    folder = a_probe(a_probe(a_run(tmp_path / "run"), num_eval=1000), value=0.5, task="birds", num_eval=1000)
    card = written(folder)
    assert "For the labels of birds it is no gain: 0.5 (" in card.content and "labels of pets it" not in card.content
    assert "pets: For these labels: useful." in card.content


def test_how_alike_layers_are_is_no_score_of_it(tmp_path):
    folder = a_probe(a_run(tmp_path / "run"))
    a_probe(folder, protocol="cka", metric="linear_cka", hyperparameters={"beside": "random weights"}, details={})
    card = written(folder)
    assert [each.metric_type for each in card.data.eval_results] == ["accuracy"] and "linear_cka" not in card.content


def later(value, **fields):
    known = {
        "protocol": "knn", "version": 1, "model": "run", "task": "pets", "split": "test", "metric": "accuracy",
        "num_train": 40, "num_eval": 16, "hyperparameters": {"k": 20},
    }  # fmt: skip
    return Result.from_scores({0: value}, {"majority": 0.25}, **known | fields)


def without_limits(card):
    """What stands behind the figures, but for what of the limits follows from them."""
    behind = card.content.split("## My own words")[1]
    return re.sub("<!-- hfssl writes from here -->.*<!-- to here -->", "", behind, flags=re.S)


@pytest.mark.parametrize("has_figures", [True, False])
def test_a_probe_joins_it_and_what_a_person_wrote_stays(tmp_path, has_figures):
    folder = a_run(tmp_path / "run")
    written(a_probe(folder) if has_figures else folder)
    path = folder / "README.md"
    limits = "## Limits and known biases\n"
    path.write_text(
        path.read_text().replace(limits, f"## My own words\n\nFor pets only.\n\n{limits}\nNot for cows.\n")
    )
    before = ModelCard.load(path)
    for value in (0.5, 0.75):  # the newer one replaces the older
        assert add_to_card(folder, [later(value)]) == path
    card = ModelCard.load(path)
    assert [each.metric_value for each in card.data.eval_results] == [0.875, 0.75][not has_figures :]
    assert card.content.count("## What was measured") == 1 and "**0.75**" in card.content
    assert "**0.5**" not in card.content and "## My own words\n\nFor pets only." in card.content
    assert card.content.index("## What was measured") < card.content.index("## My own words")
    assert without_limits(before) == without_limits(card)
    # what follows from figures is said of these
    assert ("labels of any kind: not evaluated" in before.content) != has_figures
    assert "labels of any kind: not evaluated" not in card.content
    assert len(json.loads((folder / "results.json").read_text())) == 1 + has_figures


@pytest.mark.parametrize(
    "limits, stays",
    [
        (
            "## Limits\n\n- Use for labels of any kind: not evaluated.\n- Biases: not evaluated. Once.\n\nNot for cows.\n",
            True,
        ),
        ("## Limits and known biases\n\nNot for cows.\n", True),
        ("## Limits and known biases\n\n<!-- hfssl writes from here -->\n\nNot for cows.\n", True),
        ("", False),
    ],
    ids=["of an older version", "without marks", "without the last mark", "none"],
)
def test_limits_are_told_once(tmp_path, limits, stays):
    folder = a_run(tmp_path / "run")
    (folder / "README.md").write_text(f"# my-run\n\n{limits}\n## How it was made\n\nWith care.\n")
    for value in (0.5, 0.75):
        add_to_card(folder, [later(value)])
    text = (folder / "README.md").read_text()
    assert text.count("## Limits") == text.count("Biases: not evaluated.") == 1
    assert ("Not for cows." in text) == stays and "labels of any kind: not evaluated" not in text
    assert text.index("## Limits") < text.index("## How it was made") and "`recipes/probe.py --group_column`" in text


def test_figures_of_an_encoder_that_lay_there_before_are_not_told_of_this_one(tmp_path):
    folder = a_run(tmp_path / "run", encoder="new" * 5)
    written(folder)
    add_to_card(folder, [later(0.5, task="old pets")], "old" * 5)
    path = add_to_card(folder, [later(0.75), later(0.25, protocol="linear", hyperparameters={})], "new" * 5)
    text = path.read_text()
    assert "old pets" not in text and "**0.75**" in text
    assert "All are of the weights after step 4 (sha256 newnewnewnew)." in text
    record = read_record(folder)
    assert [each.value for each in record.results] == [0.75, 0.25]
    assert "1 of its figures are of an encoder that lay here before this one" in record.missing[0]
    assert len(json.loads((folder / "results.json").read_text())) == 3  # and they are still there


def test_only_a_card_that_is_there_can_be_joined(tmp_path):
    with pytest.raises(UserError, match="has no README.md to write figures into. `--update_card` is for the result"):
        add_to_card(tmp_path, [later(0.5)])
