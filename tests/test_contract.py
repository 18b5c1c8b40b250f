"""How a method is found by the tests that are common to all, and what they say where it is not."""

import pytest
import tiny
from contract import METHODS, Contract, contract, file_of, model_and_batch, variants_of

import hfssl.methods


def test_a_method_without_a_contract_is_told_what_to_add(monkeypatch, tmp_path):
    class NewForPreTraining:
        __module__ = "hfssl.methods.vision.new"

    monkeypatch.setattr(hfssl.methods, "NewForPreTraining", NewForPreTraining, raising=False)
    words = r"NewForPreTraining has no contract: tests/methods/vision/test_new.py has to hold `CONTRACT = Contract\("
    assert not file_of("NewForPreTraining").exists()
    with pytest.raises(AssertionError, match=words):
        contract("NewForPreTraining")
    assert variants_of("NewForPreTraining") == [None]  # so that its first test says it, and not the collection
    monkeypatch.setattr("contract.file_of", lambda method: tmp_path / "test_new.py")
    monkeypatch.setattr("contract.TESTS", tmp_path.parent)
    (tmp_path / "test_new.py").write_text("CONTRACT = None")
    with pytest.raises(AssertionError, match=r"NewForPreTraining has no contract: .*test_new.py has to hold"):
        contract("NewForPreTraining")


def test_another_gradient_needs_a_reason():
    for cut in ("accumulation", "processes"):
        with pytest.raises(ValueError, match="needs a reason: `why_not=`"):
            Contract(encoder=tiny.bert_config, batch=dict, **{cut: False})


def test_each_test_gets_a_model_of_its_own():
    first, _ = model_and_batch(METHODS[0])
    next(first.parameters()).data.fill_(7.0)
    again, _ = model_and_batch(METHODS[0])
    assert not (next(again.parameters()) == 7.0).all()
