"""Loops unrolled, judged by ONNX Runtime, which runs the loop itself."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.errors import ExportError
from onnxq.export.clean import clean
from onnxq.export.rewrites.unroll_loop import unroll_loops
from onnxq.plain.export import export_file
from onnxq.target import load_target

from .growing import applied, assert_same_function
from .networks import graph, operators, random

SAMPLER = """g (float[1,8] x, float[1,8] seen) => (float[1,8] y, float[{runs},1,8] path) {{
  y, path = Loop (runs, , x) <body = step (int64 i, bool go, float[1,8] s)
    => (bool on, float[1,8] next, float[1,8] trace) {{
      on = Identity(go)
      share = Gather<axis = 0>(table, i)
      both = Add(s, seen)
      made = Gemm(both, w)
      bent = Tanh(made)
      next = Mul(bent, share)
      trace = Sub(s, next)
  }}>
}}"""


def sampler(runs: int) -> onnx.ModelProto:
    return graph(SAMPLER.format(runs=runs), runs=np.array(runs), table=random(runs), w=random(8, 8))


@pytest.mark.parametrize("runs", [1, 5])
def test_every_run_of_a_loop_is_a_copy_that_shares_its_weights(runs):
    cleaned, steps = clean(sampler(runs))
    assert operators(cleaned).count("Gemm") == runs
    assert "Loop" not in operators(cleaned)
    weights = {node.input[1] for node in cleaned.graph.node if node.op_type == "Gemm"}
    assert len(weights) == 1
    assert "Gather" not in operators(cleaned)  # a run's number is a constant
    assert any(step.startswith("unrolled 1 loops") for step in steps)
    assert_same_function(sampler(runs), cleaned)


def test_a_loop_inside_a_loop_is_unrolled_too():
    model = graph(
        """g (float[1,3] x) => (float[1,3] y) {
      y = Loop (runs, , x) <body = a (int64 i, bool go, float[1,3] s)
        => (bool on, float[1,3] t) {
          on = Identity(go)
          d = Sin(s)
          t = Loop (runs, , d) <body = b (int64 j, bool gone, float[1,3] u)
            => (bool onward, float[1,3] v) {
              onward = Identity(gone)\n e = Add(u, s)\n v = Tanh(e)
          }>
      }>
    }""",
        runs=np.array(3),
    )
    cleaned, _ = clean(model)
    assert operators(cleaned).count("Tanh") == 9
    assert_same_function(model, cleaned)


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize(("axis", "out"), [(0, 0), (1, 0), (2, 1), (1, 2), (-1, -1)])
def test_a_scan_keeps_its_axes_and_directions(axis, out, back):
    given, made = [1, 4], [1, 4]
    given.insert(axis % 3, 5)
    made.insert(out % 3, 5)
    model = graph(
        f"""g (float{given} x, float[1,4] s0) => (float[1,4] s, float{made} y) {{
      s, y = Scan <num_scan_inputs = 1, scan_input_axes = [{axis}], scan_output_axes = [{out}],
        scan_input_directions = [{back}], scan_output_directions = [{1 - back}],
        body = b (float[1,4] state, float[1,4] row) => (float[1,4] after, float[1,4] told)
          {{ both = Add(state, row)\n after = Tanh(both)\n told = Mul(after, row) }}> (s0, x)
    }}"""
    )
    unrolled = applied(model, unroll_loops)
    assert "Scan" not in operators(unrolled)
    assert_same_function(model, unrolled)


@pytest.mark.parametrize(
    ("runs", "says"), [(65, "runs 65 times: unrolled, it would have 455 nodes"), (0, "never runs")]
)
def test_a_loop_that_is_too_long_or_never_runs_is_refused_by_name(runs, says):
    with pytest.raises(ExportError, match=says) as caught:
        unroll_loops(ir.from_proto(sampler(runs)))
    assert "Loop `y`" in str(caught.value)


def test_a_damaged_number_of_runs_is_found_before_anything_runs(tmp_path):
    model = sampler(5)
    runs = next(t for t in model.graph.initializer if t.name == "runs")
    runs.CopyFrom(onnx.numpy_helper.from_array(np.array(2**62), "runs"))
    model.graph.output[1].type.tensor_type.shape.dim[0].dim_param = "n"
    onnx.save(model, tmp_path / "endless.onnx")
    with pytest.raises(ExportError, match="may be damaged"):
        export_file(tmp_path / "endless.onnx", load_target("ort-x86"), {}, tmp_path)


def test_a_scan_along_a_free_axis_is_refused():
    model = graph(
        """g (float[n,4] x, float[4] s0) => (float[4] s) {
      s = Scan <num_scan_inputs = 1, body = b (float[4] state, float[4] row) => (float[4] after)
          { both = Add(state, row)\n after = Tanh(both) }> (s0, x)
    }"""
    )
    with pytest.raises(ExportError, match="whose number is free"):
        unroll_loops(ir.from_proto(model))


def test_a_graph_without_loops_is_left_alone():
    model = graph("g (float[1,3] x) => (float[1,3] y) { y = Relu(x) }")
    assert unroll_loops(ir.from_proto(model)) == 0
