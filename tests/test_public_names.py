"""The names that others import. One that is missing here is not promised; one that goes breaks somebody's code."""

import pytest

import hfssl
import hfssl.losses


PUBLIC = [
    "BarlowTwinsForPreTraining",
    "BarlowTwinsPreTrainingConfig",
    "BestRqForPreTraining",
    "BestRqPreTrainingConfig",
    "ByolForPreTraining",
    "ByolPreTrainingConfig",
    "ClipForPreTraining",
    "ClipPreTrainingConfig",
    "ClmForPreTraining",
    "ClmPreTrainingConfig",
    "CpcForPreTraining",
    "CpcPreTrainingConfig",
    "DeepclusterForPreTraining",
    "DeepclusterPreTrainingConfig",
    "DinoForPreTraining",
    "DinoPreTrainingConfig",
    "Dinov2ForPreTraining",
    "Dinov2PreTrainingConfig",
    "ExactStream",
    "HubertForPreTraining",
    "HubertPreTrainingConfig",
    "LejepaForPreTraining",
    "LejepaPreTrainingConfig",
    "MaeForPreTraining",
    "MaePreTrainingConfig",
    "MethodCallback",
    "MlmForPreTraining",
    "MlmPreTrainingConfig",
    "MocoForPreTraining",
    "MocoPreTrainingConfig",
    "RecipeParser",
    "RotnetForPreTraining",
    "RotnetPreTrainingConfig",
    "SSLTrainer",
    "SSLTrainingArguments",
    "SiglipForPreTraining",
    "SiglipPreTrainingConfig",
    "SimclrForPreTraining",
    "SimclrPreTrainingConfig",
    "SimsiamForPreTraining",
    "SimsiamPreTrainingConfig",
    "SwavForPreTraining",
    "SwavPreTrainingConfig",
    "VicregForPreTraining",
    "VicregPreTrainingConfig",
    "ViewArguments",
    "Views",
    "Wav2vec2ForPreTraining",
    "Wav2vec2PreTrainingConfig",
    "open_source",
]
LOSSES = [
    "at_least_float32",
    "barlow_twins_loss",
    "barlow_twins_terms",
    "byol_loss",
    "clip_loss",
    "code_perplexity",
    "cpc_loss",
    "cross_entropy_sum",
    "cross_view_entropy",
    "deepcluster_loss",
    "dino_loss",
    "frame_contrast",
    "full_precision",
    "gram_loss",
    "hubert_loss",
    "ibot_loss",
    "koleo_loss",
    "lejepa_terms",
    "mae_loss",
    "moco_v3_loss",
    "nearest_neighbours",
    "nnclr_loss",
    "nt_xent_loss",
    "perplexity_of",
    "siglip_loss",
    "sigreg_loss",
    "simsiam_loss",
    "sinkhorn_targets",
    "swav_codes",
    "swav_loss",
    "unit_logits",
    "vicreg_loss",
    "vicreg_terms",
    "wav2vec2_loss",
]


@pytest.mark.parametrize("module, names", [(hfssl, PUBLIC), (hfssl.losses, LOSSES)], ids=["hfssl", "hfssl.losses"])
def test_each_name_is_listed_and_there(module, names):
    assert sorted(module.__all__) == names
    for name in names:
        assert getattr(module, name).__module__.split(".")[0] == "hfssl"


def test_another_name_is_refused():
    with pytest.raises(AttributeError, match="has no attribute 'SSLTrainr'"):
        hfssl.SSLTrainr  # noqa: B018


def test_all_names_of_the_evaluators_are_there():
    import hfssl.evaluation

    for name in hfssl.evaluation.__all__:
        assert getattr(hfssl.evaluation, name).__name__ == name
