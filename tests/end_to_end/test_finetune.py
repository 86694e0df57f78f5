"""Fine-tuning from a recipe and from the command line; and the networks that others left float."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from test_plain import save_net, save_pictures

from onnxq.export.from_torch import export_network

STEPS = {"steps": ["finetune"], "finetune": {"epochs": 2, "batch": 8}}


@pytest.mark.slow
def test_a_recipe_that_fine_tunes_runs_to_a_bundle_and_says_what_it_did(tiny, onnxq):
    tiny.values["quantize"] = {
        **STEPS,
        "finetune": {"epochs": 2, "batch": 8, "task_loss": "mae", "learning_rate": 0.02},
    }
    ended = onnxq(*tiny.arguments())
    assert ended.code == 0, ended.out + ended.err
    record = tiny.record("quantize", "int8.json")
    tuning = record["finetuning"]
    assert [epoch["epoch"] for epoch in tuning["epochs"]] == [1, 2]
    assert tuning["options"]["task_loss"] == "mae"
    assert record["steps"][-1].startswith("finetune: ")
    assert (record["round_trip"] is not None) == tuning["is_kept"]
    assert not (tiny.build / ".finetune").exists()


def test_training_samples_that_are_among_those_of_evaluation_are_refused(tiny, onnxq):
    tiny.values["quantize"] = STEPS
    tiny.values["data"]["training"] = {"source": "tiny.system:evaluation"}
    ended = onnxq(*tiny.arguments("--to", "quantize", "--json"))
    assert ended.code == 2
    assert ended.json["error"]["kind"] == "LeakageError"
    assert "share 12 group(s)" in ended.json["error"]["what"]


def test_training_samples_without_the_step_are_refused(tiny, onnxq):
    tiny.values["data"]["training"] = {"source": "tiny.system:calibration"}
    ended = onnxq(*tiny.arguments("--json"))
    assert ended.code == 2
    assert "`data: training` is read by the step `finetune`" in ended.json["error"]["what"]


class OwnConv(torch.nn.Conv2d):
    """A subclass, which tools that look for classes pass over."""


class Wrapped(torch.nn.Module):
    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def planted(kind: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    torch.manual_seed(0)
    if kind == "subclassed":
        return torch.nn.Sequential(OwnConv(2, 4, 3), torch.nn.ReLU(), OwnConv(4, 3, 3)), (2, 8, 8)
    if kind == "wrapped":
        inner = [Wrapped(torch.nn.Conv2d(2, 4, 3)), Wrapped(torch.nn.ReLU())]
        return torch.nn.Sequential(*inner, Wrapped(Wrapped(OwnConv(4, 3, 3)))), (2, 8, 8)
    if kind == "Conv1d":
        layers = [torch.nn.Conv1d(2, 4, 3), torch.nn.ReLU(), torch.nn.Conv1d(4, 3, 3)]
        return torch.nn.Sequential(*layers), (2, 16)
    layers = [torch.nn.ConvTranspose2d(2, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.ConvTranspose2d(4, 3, 2)).eval(), (2, 5, 5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["subclassed", "wrapped", "Conv1d", "ConvTranspose"])
def test_networks_that_eager_training_left_float_are_integer_in_the_file(
    kind, tmp_path, onnxq, monkeypatch
):
    """B5.4, A5.4, A5.5."""
    monkeypatch.chdir(tmp_path)
    network, shape = planted(kind)
    example = {"x": np.zeros((1, *shape), np.float32)}
    onnx.save(export_network(network.eval(), example, ["y"], opset=18, batch="one"), "fp32.onnx")
    random = np.random.default_rng(0)
    np.savez("calib.npz", x=random.standard_normal((24, *shape)).astype(np.float32))
    ended = onnxq(
        "quantize", "fp32.onnx", "--data", "calib.npz", "--step", "finetune", "--epochs", "1",
        "--target", "stm32n6" if kind == "ConvTranspose" else "ort-x86", "-o", "int8.onnx",
    )  # fmt: skip
    assert ended.code == 0, ended.out + ended.err
    graph = onnx.load("int8.onnx").graph
    makers = {name: node for node in graph.node for name in node.output}
    types = {t.name: t.data_type for t in graph.initializer}
    layers = [node for node in graph.node if node.op_type.startswith("Conv")]
    assert len(layers) == 2
    for layer in layers:
        assert makers[layer.input[0]].op_type == "DequantizeLinear"
        assert types[makers[layer.input[1]].input[0]] == onnx.TensorProto.INT8
    record = json.loads((tmp_path / "int8.json").read_text())
    assert record["float_nodes"] == []
    assert record["finetuning"]["epochs"]
    ort.InferenceSession("int8.onnx")


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "model.onnx")
    save_pictures(tmp_path / "calib.npz", 24, seed=1)
    return tmp_path


def test_more_devices_than_there_are_end_with_2(files, onnxq):
    ended = onnxq(
        "quantize", "model.onnx", "--data", "calib.npz", "--step", "finetune", "--devices", "999",
        "-o", "int8.onnx", "--json",
    )  # fmt: skip
    assert ended.code == 2
    assert "999 devices are asked for" in ended.json["error"]["what"]
    assert not (files / "int8.onnx").exists()


def test_flags_of_fine_tuning_without_the_step_are_refused(files, onnxq):
    ended = onnxq(
        "quantize", "model.onnx", "--data", "calib.npz", "--epochs", "2", "-o", "int8.onnx",
        "--json",
    )  # fmt: skip
    assert ended.code == 2
    assert "--step finetune" in ended.json["error"]["do"]
