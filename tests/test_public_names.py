"""The names that others import. One that is missing here is not promised; one that goes breaks somebody's code."""

import pytest

import hfssl
import hfssl.losses


PUBLIC = [
    "ByolForPreTraining",
    "ByolPreTrainingConfig",
    "ClmForPreTraining",
    "ClmPreTrainingConfig",
    "DinoForPreTraining",
    "DinoPreTrainingConfig",
    "ExactStream",
    "MaeForPreTraining",
    "MaePreTrainingConfig",
    "MethodCallback",
    "MlmForPreTraining",
    "MlmPreTrainingConfig",
    "MocoForPreTraining",
    "MocoPreTrainingConfig",
    "RecipeParser",
    "SSLTrainer",
    "SSLTrainingArguments",
    "SimclrForPreTraining",
    "SimclrPreTrainingConfig",
    "ViewArguments",
    "Views",
    "open_source",
]
LOSSES = [
    "at_least_float32",
    "byol_loss",
    "cross_entropy_sum",
    "cross_view_entropy",
    "dino_loss",
    "full_precision",
    "mae_loss",
    "moco_v3_loss",
    "nt_xent_loss",
    "sinkhorn_targets",
]


@pytest.mark.parametrize("module, names", [(hfssl, PUBLIC), (hfssl.losses, LOSSES)], ids=["hfssl", "hfssl.losses"])
def test_each_name_is_listed_and_there(module, names):
    assert sorted(module.__all__) == names
    for name in names:
        assert getattr(module, name).__module__.split(".")[0] == "hfssl"


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'SSLTrainr'"):
        hfssl.SSLTrainr  # noqa: B018
