import numpy as np
import pytest
from labelled import digits, save, vit

from hfssl.evaluation import EvaluationError
from hfssl.evaluation.finetune import FinetuneSettings
from hfssl.evaluation.label_efficiency import LabelEfficiencyEvaluator, draw_fraction


def test_a_share_of_each_class_and_one_at_least():
    labels = np.array([0] * 200 + [1] * 50 + [2] * 3)
    rows = draw_fraction(labels, 0.1, seed=0)
    assert np.bincount(labels[rows]).tolist() == [20, 5, 1]
    assert set(draw_fraction(labels, 0.01, 0).tolist()) <= set(rows.tolist())
    assert not np.array_equal(rows, draw_fraction(labels, 0.1, seed=1))
    assert np.array_equal(draw_fraction(labels, 1.0, 7), np.arange(253))


@pytest.mark.slow
def test_probe_and_trainings_on_each_share(tmp_path):
    train, test = digits()
    encoder = save(vit(num_hidden_layers=1), tmp_path / "encoder")
    settings = FinetuneSettings(seeds=2, epochs=0.1, min_steps=2, train_batch_size=16)
    evaluator = LabelEfficiencyEvaluator(train, test, (0.05, 1.0), settings, precision="fp32")
    results = evaluator(encoder, output_dir=tmp_path)
    found = {(result.hyperparameters["fraction"], result.hyperparameters["method"]): result for result in results}
    assert list(found) == [(share, how) for share in (0.05, 1.0) for how in ("linear probe", "fine-tuning")]
    few, all_ = found[0.05, "linear probe"], found[1.0, "linear probe"]
    assert (few.seeds, all_.seeds) == ([0, 1], [0])
    assert few.num_train == found[0.05, "fine-tuning"].num_train < 30
    assert all_.num_train == 300
    assert all_.baselines["raw_input"] > few.baselines["raw_input"] > 0.3
    assert set(few.baselines) == {"random_init", "raw_input", "simple_statistics", "majority"}
    assert set(found[1.0, "fine-tuning"].baselines) == {"random_init", "majority"}
    assert found[1.0, "fine-tuning"].seeds == [0, 1]
    assert (tmp_path / "assets" / "label_efficiency.png").stat().st_size > 5000


def test_shares_are_shares():
    with pytest.raises(EvaluationError, match="at most 1, got .*10"):
        LabelEfficiencyEvaluator(*digits(), fractions=(10,))
