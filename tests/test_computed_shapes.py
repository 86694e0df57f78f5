"""Shapes that constants decide are those that ONNX Runtime gives."""

import numpy as np
import onnx
import onnxruntime
import pytest
from handoff.qdq_models import with_constants

from onnxq.computed_shapes import with_computed_shapes
from onnxq.errors import ModelError
from onnxq.handoff.check import check
from onnxq.handoff.ledger import ledger
from onnxq.handoff.prediction import predict
from onnxq.target import load_target
from onnxq.verify.fusion import audit_fusion

# What torch writes for F.pad before a Conv1d.
PADDED = """<ir_version: 8, opset_import: ["" : 17]>
padded (float[1,4,20] x) => (float[a,b,c] y) {
    zeros = ConstantOfShape<value = int64[1] {0}>(four)
    all = Concat<axis=0>(two, zeros)
    rows = Reshape(all, to_rows)
    back = Slice(rows, last, first, axis, step)
    turned = Transpose<perm=[1,0]>(back)
    row = Reshape(turned, flat)
    pads = Cast<to=7>(row)
    p = Pad(x, pads)
    y = Conv<kernel_shape=[3]>(p, w)
}"""
CONSTANTS = {
    "four": np.array([4]),
    "two": np.array([1, 2]),
    "to_rows": np.array([-1, 2]),
    "last": np.array([-1]),
    "first": np.array([-(2**63) + 1]),
    "axis": np.array([0]),
    "step": np.array([-1]),
    "flat": np.array([-1]),
    "w": np.ones((5, 4, 3), np.float32),
}


def test_shapes_are_those_of_a_run():
    model = with_constants(PADDED, **CONSTANTS)
    graph = with_computed_shapes(model).graph
    found = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    found |= {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.output}
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info("p"))
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    y, p = session.run(["y", "p"], {"x": np.zeros((1, 4, 20), np.float32)})
    assert found["y"] == list(y.shape)
    assert found["p"] == list(p.shape)
    assert [node.op_type for node in graph.node] == [node.op_type for node in model.graph.node]


def test_static_shapes_are_kept_and_multiply_accumulates_counted():
    model = with_constants(PADDED, **CONSTANTS)
    n6 = load_target("stm32n6")
    assert "stm32n6.static-shapes" not in {result.rule for result in check(model, n6, phase="any")}
    assert sum(node.macs for node in predict(model, n6).nodes) == 5 * 21 * 4 * 3


def test_what_cannot_be_computed_is_named():
    model = with_constants(PADDED, **CONSTANTS | {"to_rows": np.array([4, 2])})
    with pytest.raises(ModelError, match="Reshape `n2`"):
        with_computed_shapes(model)


def test_what_is_executed_and_what_it_costs_count_the_same(tmp_path):
    onnx.save(with_constants(PADDED, **CONSTANTS), tmp_path / "padded.onnx")
    products = 5 * 21 * 4 * 3  # outputs × products summed into each
    assert sum(row.macs for row in audit_fusion(tmp_path / "padded.onnx").nodes) == products
    assert ledger(tmp_path / "padded.onnx", load_target("ort-x86")).macs == products
