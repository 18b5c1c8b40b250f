"""Encoders written as graphs: they say the same as the encoder, for batches and lengths that they were not made at."""

import importlib.util
import json

import pytest
import sounds
import torch
from contract import build, contract
from labelled import save, vit
from recipe_process import printed_without_hfssl
from text_encoder import save_text_encoder
from transformers import AutoModel

from hfssl.errors import UserError
from hfssl.evaluation.graph import FORMATS, OUTPUTS, Graph, check_format, export_encoder


needs = {
    name: [each for each in packages if importlib.util.find_spec(each) is None]
    for name, (packages, _) in FORMATS.items()
}
formats = [
    pytest.param(name, marks=pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed"))
    for name, missing in needs.items()
]


def saved(kind, folder):
    if kind == "image":
        return save(vit(num_hidden_layers=1), folder)
    if kind == "text":
        return save_text_encoder(folder)
    return sounds.save(sounds.hubert(), folder)


@pytest.mark.parametrize("format", formats)
@pytest.mark.parametrize("kind", ["image", "text", "audio"])
def test_what_is_written_says_what_the_encoder_says(tmp_path, kind, format):
    encoder = saved(kind, tmp_path / kind)
    made = export_encoder(str(encoder), format, tmp_path / "out")
    assert made.path.is_file() and made.difference <= made.allowed and min(made.milliseconds.values()) > 0
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    shapes = {name: found["shape"] for name, found in record["inputs"].items()}
    assert (
        shapes
        == {
            "image": {"pixel_values": ["batch", 3, 16, 16]},
            "text": {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"]},
            "audio": {"input_values": ["batch", "length"]},
        }[kind]
    )
    assert str(tmp_path) not in json.dumps(record)
    if format == "torch_export":
        # by somebody who has never heard of hfssl
        code = """
            import sys

            sys.modules["hfssl"] = sys.modules["transformers"] = None
            import torch

            inputs = torch.load(sys.argv[2])
            outputs = torch.export.load(sys.argv[1]).module()(**inputs)
            torch.save(list(outputs), sys.argv[3])
            """
        sizes = {"pixel_values": (7, 3, 16, 16), "input_ids": (7, 9), "input_values": (7, 6000)}
        inputs = {name: torch.rand(sizes[name]) for name in shapes if name in sizes}
        if kind == "text":
            inputs = {"input_ids": (inputs["input_ids"] * 20).long(), "attention_mask": torch.ones(7, 9).long()}
        torch.save(inputs, tmp_path / "inputs.pt")
        printed_without_hfssl(tmp_path, code, made.path, tmp_path / "inputs.pt", tmp_path / "outputs.pt")
        hidden, feature = torch.load(tmp_path / "outputs.pt")
        with torch.no_grad():
            expected = AutoModel.from_pretrained(encoder).eval()(**inputs).last_hidden_state
        torch.testing.assert_close(hidden, expected, rtol=1e-4, atol=1e-5)
        assert feature.shape == (7, record["outputs"]["feature"]["size"])
        assert list(record["outputs"]) == list(OUTPUTS)


def test_what_says_something_else_is_not_kept(tmp_path, monkeypatch):
    from hfssl.evaluation import graph

    monkeypatch.setattr(graph, "_compare", lambda graph, run: (0.5, 1e-4))
    with pytest.raises(UserError, match="differs from it by 5.0e-01, more than 1.0e-04: it is not kept"):
        export_encoder(str(saved("image", tmp_path / "vit")), "torch_export", tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_the_comparison_sees_what_differs(tmp_path):
    from hfssl.evaluation.graph import _compare

    module = torch.nn.Linear(2, 2)

    class Twice(torch.nn.Module):
        def forward(self, x):
            return module(x), module(x)

    graph = Graph(Twice(), lambda samples, length: {"x": torch.ones(samples, 2)}, {"x": {0: "batch"}}, None, "mean")
    with torch.no_grad():
        assert _compare(graph, lambda inputs: graph.module(**inputs))[0] == 0
        difference, allowed = _compare(graph, lambda inputs: [each + 0.25 for each in graph.module(**inputs)])
        assert difference == pytest.approx(0.25) and allowed < 0.25
        cut = _compare(graph, lambda inputs: [each[:1] for each in graph.module(**inputs)])
    assert cut[0] == float("inf")


def test_mistakes(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="`--format onnx` needs onnx, onnxscript, onnxruntime: `pip install onnx onnx"):
        check_format("onnx")
    check_format("torch_export")
    pair = build("ClipForPreTraining", **contract("ClipForPreTraining").settings)
    pair.export_encoder(tmp_path / "pair")
    with pytest.raises(UserError, match="holds two encoders. Name one of them: .*pair/image, .*pair/text"):
        export_encoder(str(tmp_path / "pair"), "torch_export", tmp_path / "out")
