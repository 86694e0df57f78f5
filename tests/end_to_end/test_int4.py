"""4-bit weights from a recipe and from the command line, through every stage."""

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto
from test_plain import save_net, save_pictures

ALL_4 = [{"name": "*", "weights": "int4"}]  # the tiny network is nothing but ends


def four_bits(path) -> list[str]:
    return [t.name for t in onnx.load(path).graph.initializer if t.data_type == TensorProto.INT4]


@pytest.mark.long
@pytest.mark.parametrize("block", [None, 16])
def test_a_recipe_with_4_bit_weights_hands_off_a_bundle_that_holds_them(tiny, onnxq, block):
    asked = {"weights": "int4", "precision": ALL_4, "also_for": ["ort-arm64"], "block": block}
    tiny.values |= {
        "quantize": asked,
        "verify": {"gate": [{"metric": "mae_to_fp32", "max": 20.0}]},
    }

    ended = onnxq(*tiny.arguments())

    assert ended.code == 0, ended.out + ended.err
    handed = tiny.build / "handoff"
    (shipped,) = handed.glob("*.onnx")
    assert four_bits(shipped)
    record = tiny.record("quantize", "int8.json")
    assert {each["stored"] for each in record["weight_precision"].values()} == {"int4"}
    assert record["weight_precision"]["conv_1"]["block"] == (9 if block else 0)  # of 18
    report = tiny.record("verify", "report.json")
    assert {row["weight_type"] for row in report["audit"] if row["weight_type"]} == {"int4"}
    assert report["coverage"]["macs"]["integer"] == report["coverage"]["macs"]["total"]
    memory = json.loads((handed / "memory.json").read_text())
    integers = sum(
        np.prod(t.dims) for t in onnx.load(shipped).graph.initializer if t.data_type == 22
    )
    assert memory["weights_bytes"] < integers  # half a byte each, and the int32 biases
    assert (handed / "layers.npz").is_file()
    told = (handed / "LAYERS.md").read_text("utf-8")
    assert "The integer reference, given the same integers, gives the same" in told
    ended = onnxq("rebuild", handed, "--json")
    assert ended.code == 0, ended.err


def test_a_target_without_4_bits_ends_the_run_before_calibration(tiny, onnxq):
    tiny.values |= {"target": "stm32n6", "quantize": {"weights": "int4"}}

    ended = onnxq(*tiny.arguments("--json"))

    assert ended.code == 1
    assert ended.json["error"]["kind"] == "TargetRuleError"
    assert "storage: int8" in ended.json["error"]["do"]
    assert not (tiny.build / "calibrate").exists()


def test_a_further_target_without_4_bits_ends_it_too(tiny, onnxq):
    tiny.values |= {"quantize": {"weights": "int4", "also_for": ["stm32n6"]}}
    ended = onnxq(*tiny.arguments("--json"))
    assert ended.code == 1
    assert ended.json["error"]["where"].startswith("stm32n6")


def test_such_a_target_takes_the_numbers_a_byte_each(tiny, onnxq):
    tiny.values |= {
        "target": "stm32n6",
        "quantize": {"weights": "int4", "storage": "int8", "precision": ALL_4},
        "verify": {"gate": [{"metric": "mae_to_fp32", "max": 20.0}]},
    }
    ended = onnxq(*tiny.arguments())
    assert ended.code == 0, ended.out + ended.err
    assert not four_bits(next((tiny.build / "handoff").glob("*.onnx")))


def test_a_node_kept_float_by_precision_needs_no_range(tiny, onnxq):
    tiny.values |= {"quantize": {"precision": [{"name": "conv_1", "weights": "float"}]}}
    ended = onnxq(*tiny.arguments("--to", "quantize"))
    assert ended.code == 0, ended.out + ended.err
    record = tiny.record("quantize", "int8.json")
    assert {node["node"]: node["reason"] for node in record["float_nodes"]}["conv_1"] == (
        "precision: float weights"
    )


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "model.onnx")
    save_pictures(tmp_path / "calib.npz", 32, seed=1)
    return tmp_path


def test_the_flags_make_a_file_with_4_bits_where_they_say(files, onnxq):
    ended = onnxq(
        "quantize", "model.onnx", "--data", "calib.npz", "--weights", "int4",
        "--precision", "*=int4", "--precision", "gemm_*=int8", "-o", "int4.onnx", "--json",
    )  # fmt: skip

    assert ended.code == 0, ended.err
    record = ended.json["record"]["weight_precision"]
    bits = {name: (each["stored"], each["reason"]) for name, each in record.items()}
    assert set(bits.values()) == {("int4", "--precision"), ("int8", "--precision")}
    assert {each["stored"] for name, each in record.items() if "gemm" in name} == {"int8"}
    assert len(four_bits("int4.onnx")) == sum(each[0] == "int4" for each in bits.values())
    ort.InferenceSession("int4.onnx")


@pytest.mark.parametrize("text", ["conv_1", "conv_1=int5", "=int4"])
def test_a_precision_that_cannot_be_read_is_refused(files, onnxq, text):
    ended = onnxq(
        "quantize", "model.onnx", "--data", "calib.npz", "--precision", text, "-o", "x.onnx"
    )
    assert ended.code == 2
    assert "NODE=BITS" in ended.err


def test_inspect_names_4_bits_that_are_dequantized_as_they_are(files, onnxq):
    assert onnxq(
        "quantize", "model.onnx", "--data", "calib.npz", "--precision", "*=int4", "-o", "int4.onnx"
    ).code == 0  # fmt: skip
    ended = onnxq("inspect", "int4.onnx", "--no-time", "--json")
    assert {node["runs"] for node in ended.json["nodes"]} <= {"integer", "folded", "data"}
    model = onnx.load("int4.onnx")  # the planted defect: the Cast taken out
    casts = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    kept = [node for node in model.graph.node if node.op_type != "Cast"]
    points = {}
    for node in kept:
        if node.input[0] in casts:
            node.input[0] = casts[node.input[0]]
            points[node.input[2]] = None
    for tensor in model.graph.initializer:
        if tensor.name in points:
            count = int(np.prod(tensor.dims))
            packed = onnx.helper.make_tensor(
                tensor.name, TensorProto.INT4, tensor.dims, [0] * count
            )
            tensor.CopyFrom(packed)
    del model.graph.node[:]
    model.graph.node.extend(kept)
    onnx.save(model, "slow.onnx")

    ended = onnxq("inspect", "slow.onnx", "--no-time", "--json")

    causes = {node["node"]: node["cause"] for node in ended.json["nodes"] if node["cause"]}
    assert set(causes.values()) == {"int4 without Cast"}
    assert len(causes) == len(casts)
