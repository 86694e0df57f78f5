"""The detector of saturation, held against ONNX Runtime's integers and a plain loop over pairs."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from onnxq.artifacts import SaturationRow
from onnxq.pair_sums import SAFE_WEIGHT
from onnxq.runtime import Session, with_outputs
from onnxq.samples import Samples
from onnxq.verify.integer_products import Product, products_of
from onnxq.verify.saturation import effect, saturation, saturation_findings

from .products import full_range, inputs, madd, one_product

CASES = {
    "1x1": ("Conv", (8, 6, 1, 1), (1, 6, 5, 5), {}),
    "3x3": ("Conv", (8, 4, 3, 3), (1, 4, 6, 6), {"pads": [1, 1, 1, 1]}),
    "odd channels, strided": (
        "Conv", (8, 3, 3, 3), (1, 3, 9, 9), {"pads": [1, 0, 1, 0], "strides": [2, 1]},
    ),
    "dilated": ("Conv", (4, 4, 3, 3), (1, 4, 9, 9), {"dilations": [2, 2]}),
    "grouped": ("Conv", (6, 4, 3, 3), (1, 8, 5, 5), {"group": 2}),
    "one input channel": ("Conv", (8, 1, 5, 5), (1, 1, 9, 9), {}),
    "depth multiplier": ("Conv", (8, 1, 3, 3), (1, 4, 5, 5), {"group": 4}),
    "same": ("Conv", (4, 4, 3, 2), (1, 4, 7, 7), {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "1-D": ("Conv", (8, 4, 5), (1, 4, 20), {"pads": [2, 2]}),
    "Gemm": ("Gemm", (12, 9), (3, 9), {"transB": 1}),
    "MatMul": ("MatMul", (10, 7), (2, 3, 10), {}),
}  # fmt: skip


def made(folder, case, kind="u8", limit=127, **more):
    op_type, weight, shape, attributes = CASES[case]
    values = full_range(*weight, limit=limit)
    channels = weight[0] if op_type == "Conv" or attributes else weight[-1]
    if op_type != "MatMul":
        more["bias"] = np.arange(channels) * 100 - 300
    path = one_product(folder / "m.onnx", op_type, values, shape, kind=kind, **attributes, **more)
    return path, inputs(shape)


def run(path, row, tensors, optimization):
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    session = Session(with_outputs(model, tensors).SerializeToString(), optimization=optimization)
    return [session.run({"x": row})[name] for name in tensors]


def only(path) -> Product:
    (product,) = products_of(ir.from_proto(onnx.shape_inference.infer_shapes(onnx.load(path))))
    return product


def everywhere(product, integers):
    activations = product.unsigned(integers)
    return activations, np.arange(product.count(activations))


def as_rows(product, integers):
    """Outputs of ONNX Runtime as (positions, channels)."""
    if product.window is not None:
        integers = np.moveaxis(integers, 1, -1)
    return integers.reshape(-1, integers.shape[-1])


@pytest.mark.parametrize("kind", ["u8", "s8"])
@pytest.mark.parametrize("case", CASES)
def test_exact_integers_are_those_of_onnxruntime(tmp_path, case, kind):
    """With weights of ±64, which saturate nowhere."""
    path, rows = made(tmp_path, case, kind, limit=SAFE_WEIGHT)
    product = only(path)
    for row in rows:
        integers, wanted = run(path, row, ["xq", "yq"], "full")
        found = effect(product, *everywhere(product, integers))
        assert found.count == 0
        assert np.array_equal(found.exact, as_rows(product, wanted))
        assert np.array_equal(found.saturated, found.exact)


@pytest.mark.parametrize("kind", ["u8", "s8"])
@pytest.mark.parametrize("case", CASES)
def test_saturated_integers_are_those_of_a_loop_over_pairs(tmp_path, case, kind):
    path, rows = made(tmp_path, case, kind)
    product = only(path)
    (integers,) = run(path, rows[0], ["xq"], "none")
    activations, positions = everywhere(product, integers)
    found = effect(product, activations, positions)
    windows = product.windows(activations, positions)
    each = len(product.rows) // product.groups
    change = np.zeros_like(found.exact)
    for place, window in enumerate(windows):
        for channel, weights in enumerate(product.rows):
            met = window[channel // each]
            change[place, channel] = madd(met, weights) - met.astype(int) @ weights.astype(int)
    wanted = product.requantized(product.sums(windows) + change)
    assert np.array_equal(found.saturated, wanted)
    assert np.array_equal(found.exact, product.requantized(product.sums(windows)))
    assert (found.count > 0) == bool(change.any())


def test_some_case_does_saturate(tmp_path):
    path, rows = made(tmp_path, "3x3")
    (row,) = saturation(path, Samples("s", {"x": rows[:, 0]}))
    assert row.verdict == "does"
    assert row.saturated
    assert row.changed
    assert row.largest_change


# --- what is not listed -------------------------------------------------------------------------


def test_a_depthwise_conv_is_not_listed(tmp_path):
    weight = full_range(8, 1, 3, 3)
    path = one_product(tmp_path / "m.onnx", "Conv", weight, (1, 8, 6, 6), group=8)
    assert saturation(path) == ()


def test_uint8_weights_are_not_listed(tmp_path):
    path, _ = made(tmp_path, "1x1")
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name in {"w", "wz"}:
            array = numpy_helper.to_array(tensor).astype(np.int16) + 128
            tensor.CopyFrom(numpy_helper.from_array(array.astype(np.uint8), tensor.name))
    onnx.save(model, path)
    assert saturation(path) == ()


def test_a_conv_without_q_behind_it_is_not_listed(tmp_path):
    path, _ = made(tmp_path, "1x1")
    model = onnx.load(path)
    del model.graph.node[-2:]
    model.graph.output[0].name = "p"
    onnx.save(model, path)
    assert saturation(path) == ()


def test_a_product_of_two_activations_is_not_listed(tmp_path):
    scale, zero = np.float32(0.1), np.uint8(128)
    pairs = [
        helper.make_node(op, [tensor, "s", "z"], [made])
        for name in "ab"
        for op, tensor, made in (
            ("QuantizeLinear", name, f"{name}q"),
            ("DequantizeLinear", f"{name}q", f"{name}d"),
        )
    ]
    values = [helper.make_tensor_value_info(name, 1, [4, 4]) for name in "aby"]
    nodes = [*pairs, helper.make_node("MatMul", ["ad", "bd"], ["y"], "mm")]
    constants = [numpy_helper.from_array(np.asarray(v), n) for n, v in (("s", scale), ("z", zero))]
    graph = helper.make_graph(nodes, "g", values[:2], values[2:], constants)
    path = tmp_path / "m.onnx"
    imports = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=9), path)
    assert saturation(path) == ()


# --- verdicts -----------------------------------------------------------------------------------


def test_weights_of_64_cannot_saturate(tmp_path):
    path, rows = made(tmp_path, "3x3", limit=SAFE_WEIGHT)
    for samples in (None, Samples("s", {"x": rows[:, 0]})):
        (row,) = saturation(path, samples)
        assert (row.verdict, row.channels) == ("cannot", 0)
        assert saturation_findings((row,)) == ()


def test_without_data_a_node_can(tmp_path):
    path, _ = made(tmp_path, "Gemm")
    (row,) = saturation(path)
    assert (row.verdict, row.positions) == ("can", None)
    assert 0 < row.channels <= row.of_channels == 12


def test_channels_at_risk_are_counted_one_by_one(tmp_path):
    weight = np.zeros((5, 4, 1, 1), np.int8)
    weight[1, :, 0, 0] = [100, 28, 0, 0]  # 128: just inside
    weight[2, :, 0, 0] = [0, 100, 29, 0]  # 129, but no neighbours
    weight[3, :, 0, 0] = [0, 0, 100, 29]
    weight[4, :, 0, 0] = [-100, -29, 0, 0]
    path = one_product(tmp_path / "m.onnx", "Conv", weight, (1, 4, 2, 2))
    (row,) = saturation(path)
    assert row.channels == 2
    assert abs(row.worst_sum) == 255 * 129


def test_dark_data_do_not_saturate_and_their_extremes_say_so(tmp_path):
    path, rows = made(tmp_path, "3x3", zero_point=0)
    (row,) = saturation(path, Samples("s", {"x": np.clip(rows[:, 0], 0, 1)}))
    assert row.verdict == "not on the data"
    assert row.ruled_out
    assert row.saturated == 0
    assert "did not on the data" in saturation_findings((row,))[0].what


@pytest.mark.parametrize("op", ["Sigmoid", "Softmax"])
def test_what_comes_before_bounds_the_input(tmp_path, op):
    """A Sigmoid gives at most 1, which is step 32 of the grid: no pair sum can leave int16."""
    path, _ = made(tmp_path, "1x1", before=op, zero_point=0)
    (row,) = saturation(path)
    assert (row.low, row.high, row.verdict) == (0, 32, "cannot")


def test_a_relu_bounds_the_input_from_below(tmp_path):
    path, _ = made(tmp_path, "1x1", before="Relu")
    (row,) = saturation(path)
    assert (row.low, row.high) == (128, 255)


def test_padding_belongs_to_the_input(tmp_path):
    weight = full_range(8, 4, 3, 3)
    path = one_product(
        tmp_path / "m.onnx", "Conv", weight, (1, 4, 6, 6), zero_point=10, before="Sigmoid",
        pads=[1, 1, 1, 1],
    )  # fmt: skip
    (row,) = saturation(path)
    assert (row.low, row.high) == (10, 42)


def test_positions_are_bounded_and_every_sample_is_looked_at(tmp_path):
    path, rows = made(tmp_path, "3x3")
    (row,) = saturation(path, Samples("s", {"x": rows[:, 0]}), positions=10)
    assert row.positions == 10
    assert row.pair_sums == 10 * 8 * 18


def test_the_worst_node_stands_first_in_the_findings():
    def row(node: str, changed: float | None, verdict) -> SaturationRow:
        return SaturationRow(
            node=node, op_type="Conv", low=0, high=255, channels=2, of_channels=4,
            worst_sum=40000, pair_sums=9, saturated=3, changed=changed, largest_change=7,
            verdict=verdict,
        )  # fmt: skip

    rows = (row("a", None, "can"), row("b", 0.5, "does"), row("c", None, "cannot"))
    findings = saturation_findings(rows)
    assert ["`b`" in findings[0].where, "`a`" in findings[1].where] == [True, True]
    assert "50.00%" in findings[0].what
    assert "saturation: narrow" in findings[0].do


def test_a_whole_file_is_looked_at_node_by_node(tmp_path):
    first, _ = made(tmp_path, "3x3", after="Relu")
    (row,) = saturation(first)
    assert (row.node, row.op_type, row.of_channels) == ("op", "Conv", 8)
