"""One run for two targets: int8 activations for one, uint8 for the other, the same numbers."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxq.store import sha256_of_file


@pytest.fixture
def both(tiny, onnxq):
    tiny.values |= {"target": "stm32n6", "quantize": {"also_for": ["ort-x86"]}}
    ended = onnxq(*tiny.arguments())
    assert ended.code == 0, ended.err
    return tiny, ended


def test_each_file_has_a_verdict_on_its_own_hash_and_a_bundle(both):
    tiny, ended = both
    for place, file in ((".", "int8.onnx"), ("ort-x86", "int8-u8.onnx")):
        digest = sha256_of_file(tiny.build / "quantize" / file)
        assert tiny.record(f"verify/{place}", "report.json")["int8"]["sha256"] == digest
        bundle = tiny.record(f"handoff/{place}", "bundle.json")
        assert bundle["verdict"] == "passed"
        assert bundle["model"]["sha256"] == digest
    assert "tiny on stm32n6: passed" in ended.out
    assert "tiny on ort-x86: passed" in ended.out


def test_both_files_give_the_same_outputs_to_the_last_bit(both):
    tiny, _ = both
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    feed = {"picture": np.random.default_rng(5).random((1, 2, 8, 8), np.float32)}
    outputs = [
        ort.InferenceSession(str(tiny.build / "quantize" / name), options).run(None, feed)[0]
        for name in ("int8.onnx", "int8-u8.onnx")
    ]
    np.testing.assert_array_equal(*outputs)


def test_the_types_are_those_of_the_targets(both):
    tiny, _ = both
    found = {}
    for name in ("int8.onnx", "int8-u8.onnx"):
        graph = onnx.load(tiny.build / "quantize" / name).graph
        kinds = {t.name: t.data_type for t in graph.initializer}
        found[name] = {
            onnx.TensorProto.DataType.Name(kinds[node.input[2]])
            for node in graph.node
            if node.op_type == "QuantizeLinear"
        }
    assert found == {"int8.onnx": {"INT8"}, "int8-u8.onnx": {"UINT8"}}


def test_a_target_of_the_same_activations_takes_the_file_itself(tiny, onnxq):
    tiny.values |= {"target": "ort-x86", "quantize": {"also_for": ["ort-arm64", "ort-x86"]}}

    assert onnxq(*tiny.arguments()).code == 0

    digest = sha256_of_file(tiny.build / "quantize" / "int8.onnx")
    assert tiny.record("handoff/ort-arm64", "bundle.json")["model"]["sha256"] == digest
    assert not (tiny.build / "handoff" / "ort-x86").exists()


def test_the_first_bundle_tells_of_the_other(both):
    tiny, _ = both
    assert "`ort-x86/` is a bundle of its own" in (tiny.build / "handoff" / "README.md").read_text()
