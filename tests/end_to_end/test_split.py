"""A recipe whose graph ships in parts: they are what is judged, and they are the whole graph."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

from tests.onnx_text import model_of

PARTS = [
    {
        "name": "Features",
        "inputs": [{"tensor": "picture"}],
        "outputs": [{"tensor": "globalaveragepool_1", "name": "features", "shape": [1, 8]}],
    },
    {
        "name": "Head",
        "inputs": [{"tensor": "globalaveragepool_1", "name": "features", "shape": [1, 8]}],
        "outputs": [{"tensor": "brightness"}],
    },
]


@pytest.mark.parametrize("target", ["ort-x86", "stm32n6"])
def test_the_parts_are_judged_and_equal_the_whole(tiny, onnxq, target):
    tiny.values |= {"target": target, "split": {"parts": PARTS}}

    result = onnxq(*tiny.arguments("--to", "verify"))

    assert result.code == 0, result.err
    report = tiny.record("verify", "report.json")
    assert report["parts"]["max_as_written"] == 0
    assert [part["name"] for part in report["parts"]["parts"]] == ["Features.onnx", "Head.onnx"]
    hops = {hop["hop"]: hop for hop in report["parity"]}
    assert hops["whole graph → parts"]["max_absolute"] <= 1e-4


def test_neighbouring_parts_share_scale_and_zero_point(tiny, onnxq):
    tiny.values |= {"split": {"parts": PARTS}}

    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0

    folder = tiny.build / "quantize" / "parts"
    ends = []
    for name, op_type, index in (
        ("Features", "DequantizeLinear", -1),
        ("Head", "QuantizeLinear", 0),
    ):
        graph = onnx.load(folder / f"{name}.onnx").graph
        constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
        nodes = [
            node
            for node in graph.node
            if node.op_type == op_type and node.input[0] not in constants
        ]
        ends.append([constants[name] for name in nodes[index].input[1:]])
    np.testing.assert_equal(ends[0], ends[1])


def test_parts_for_other_targets_leave_the_graph_whole(tiny, onnxq):
    tiny.values |= {"split": {"targets": ["stm32n6"], "parts": PARTS}}

    assert onnxq(*tiny.arguments("--to", "verify")).code == 0

    assert tiny.record("verify", "report.json")["parts"] is None
    assert not (tiny.build / "quantize" / "parts").exists()


def test_a_part_that_was_changed_on_disk_is_found_out(tiny, onnxq):
    tiny.values |= {"split": {"parts": PARTS}}
    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0
    part = tiny.build / "quantize" / "parts" / "Head.onnx"
    part.write_bytes(part.read_bytes() + b"\n")

    result = onnxq(*tiny.arguments("--to", "verify"))

    assert result.code == 0  # the stage is not current any more, and is run again
    assert "✓ quantize" in result.out


def test_a_cut_at_a_tensor_that_is_not_there_names_the_nearest(tiny, onnxq):
    wrong = [PARTS[0] | {"outputs": [{"tensor": "globalaveragepool1"}]}, PARTS[1]]
    tiny.values |= {"split": {"parts": wrong}}

    result = onnxq(*tiny.arguments())

    assert result.code == 2
    assert "globalaveragepool_1" in result.err


def test_cuts_are_proposed_as_lines_for_a_recipe(tiny, onnxq):
    result = onnxq("export", str(tiny.recipe), "--build-dir", str(tiny.build), "--propose-split")

    assert result.code == 0, result.err
    assert "no cut to propose" in result.out


def test_every_proposed_part_is_judged_by_the_rules_of_the_target(onnxq, tmp_path):
    text = """<ir_version: 9, opset_import: ["": 17]>
    heads (float[1,8] x) => (float[1,3] class, float[1,4] box) {
      a = Gemm(x, w)
      t = Relu(a)
      class = Gemm(t, u)
      b = Gemm(t, v)
      e = CumSum(b, axis)
      box = Sigmoid(e)
    }"""
    rng = np.random.default_rng(0)
    shapes = {"w": (8, 8), "u": (8, 3), "v": (8, 4)}
    constants = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    onnx.save(model_of(text, **constants, axis=np.array(1)), tmp_path / "heads.onnx")
    flags = ("--target", "stm32n6", "-o", tmp_path / "out")

    told = onnxq("export", tmp_path / "heads.onnx", "--propose-split", *flags, "--json")
    said = onnxq("export", tmp_path / "heads.onnx", "--propose-split", *flags)

    (proposal,) = told.json["proposals"]
    assert proposal["target"] == "stm32n6"
    places = {name: {r["node"] for r in rules} for name, rules in proposal["rules"].items()}
    judged = onnxq("check", tmp_path / "out" / "fp32.onnx", "--target", "stm32n6", "--json")
    everywhere = {rule["node"] for rule in judged.json["rules"] if rule["node"]}
    assert set(places) == {"Trunk", "Head1", "Head2"}
    assert any("cumsum" in node for node in places["Head2"] & everywhere)
    assert not any("cumsum" in node for node in places["Trunk"] | places["Head1"])
    assert "Head2 is warned by stm32n6.software-op: CumSum" in said.out


@pytest.mark.slow
def test_the_bundle_of_a_split_model_checks_itself_without_onnxq(tiny, onnxq):
    tiny.values |= {"target": "stm32n6", "split": {"parts": PARTS}}
    ended = onnxq(*tiny.arguments())
    assert ended.code == 0, ended.err
    bundle = tiny.build / "handoff"

    done = subprocess.run(
        [sys.executable, bundle / "selftest.py", "--runs", "0", "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    answers = json.loads(done.stdout)["answers"]
    assert {line["part"] for line in answers} == {"", "Features", "Head"}
    assert all(line["differing"] == 0 for line in answers)
    assert not (bundle / "int8.onnx").exists()  # what ships are the parts
    features, head = (
        json.loads((bundle / name / "contract.json").read_text()) for name in ("Features", "Head")
    )
    ends = [features["outputs"][0]["quantization"], head["inputs"][0]["quantization"]]
    assert len({(end["type"], end["scale"], end["zero_point"]) for end in ends}) == 1
    readme = (bundle / "README.md").read_text()
    assert "Run `Features` once" in readme
    assert "Features.onnx --target stm32n6" in readme


@pytest.mark.slow
def test_a_changed_part_of_a_bundle_is_found_by_its_self_test(tiny, onnxq):
    tiny.values |= {"split": {"parts": PARTS}}
    assert onnxq(*tiny.arguments()).code == 0
    part = tiny.build / "handoff" / "Head" / "Head.onnx"
    part.write_bytes(part.read_bytes()[:-1])

    done = subprocess.run(
        [sys.executable, tiny.build / "handoff" / "selftest.py", "--runs", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert "CHANGED: Head/Head.onnx" in done.stdout


def test_broken_rules_end_a_run_before_calibration(tiny, onnxq):
    tiny.values |= {"target": "stm32n6"}
    tiny.values["export"]["network"] = "tiny.system:Quarters"

    result = onnxq(*tiny.arguments())

    assert result.code == 1, result.err
    assert "stm32n6.batch" in result.err
    assert "`split`" in result.err
    assert not (tiny.build / "calibrate").exists()
