"""The integer reference, judged by onnxruntime at both levels and by onnx.reference."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx.parser
import onnx.version_converter
import pytest
from onnx.reference import ReferenceEvaluator

from handoff.qdq_models import with_constants
from handoff.reference_nets import HEAD, NETS
from handoff.runtime_integers import agreement, normal, quantized, runtime_integers
from onnxq.errors import DataError, ModelError
from onnxq.graph import load_model
from onnxq.handoff.reference.evaluate import Reference
from onnxq.runtime import Session, with_outputs

BESIDE_THE_MIDDLE = 1e-3  # steps by which float32 moves a value; the most seen is 6e-5
MIXED = """<ir_version: 10, opset_import: ["" : 21]>
net (float[1,4,6] x) => (float[1,4,6] y) {
    q = QuantizeLinear (x, s, zq)
    d = DequantizeLinear (q, s, zq)
    wd = DequantizeLinear <axis=1, block_size=3> (w, ws)
    m = MatMul (d, wd)
    r = Relu (m)
    f = Softplus (r)
    c = Concat <axis=1> (f, d)
    l = Slice (c, zero, four, one)
    n = ReduceMean <keepdims=1> (l, two)
    t = Sub (l, n)
    o = QuantizeLinear (t, so, zo)
    y = DequantizeLinear (o, so, zo)
}"""


@pytest.fixture(scope="module", params=["uint8", "int8"])
def paths(request, tmp_path_factory):
    """Every net, quantized by onnxruntime with activations of one type."""
    folder = tmp_path_factory.mktemp(request.param)
    return {
        name: quantized(folder / name, net.text, net.rows(), request.param, **net.constants)
        for name, net in NETS.items()
    }


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("level", ["none", "full"])
def test_every_layer_is_onnxruntimes_but_for_one_step_beside_a_middle(paths, name, level):
    found = agreement(paths[name], NETS[name].rows()[0], level)
    assert len(found) >= 3
    for layer, judged in found.items():
        assert judged.steps <= 1, layer
        if (name, level, layer) == ("transformer", "full", "p"):
            continue  # QLinearSoftmax adds up a table of whole exponentials: one step anywhere
        assert judged.from_middle <= BESIDE_THE_MIDDLE, layer


@pytest.mark.parametrize("name", sorted(set(NETS) - {"transformer", "one and three axes"}))
@pytest.mark.parametrize("level", ["none", "full"])
def test_where_no_value_lies_on_a_middle_nothing_differs(paths, name, level):
    """Of random weights; ties come with scales that are halves and thirds of one another."""
    found = agreement(paths[name], NETS[name].rows()[1], level)
    assert max(judged.differing for judged in found.values()) <= 1e-3


@pytest.mark.parametrize("name", NETS)
def test_every_layer_is_that_of_onnx_reference(paths, name):
    newer = onnx.version_converter.convert_version(onnx.load(paths[name]), 19)
    model, feed = onnx.shape_inference.infer_shapes(newer), NETS[name].rows()[2]
    reference = Reference(model)
    exposed = with_outputs(model, [layer.integers for layer in reference.layers])
    given = ReferenceEvaluator(exposed).run(None, feed)
    wanted = dict(zip((layer.name for layer in reference.layers), given, strict=True))
    for layer, computed in reference.each(feed, wanted):
        away = np.abs(computed.integers.astype(int) - wanted[layer.name])
        middle = np.abs(computed.exact % 1 - 0.5)[away > 0]
        assert away.max() <= 1, layer.name
        assert middle.max(initial=0) <= BESIDE_THE_MIDDLE, layer.name


@pytest.mark.parametrize("name", NETS)
def test_a_whole_run_ends_within_two_steps_of_onnxruntime(paths, name):
    """Nothing is taken over between layers: what differs by a step goes on through the graph."""
    model, feed = load_model(paths[name]), NETS[name].rows()[3]
    layers, outputs = Reference(model).run(feed)
    wanted = runtime_integers(model, feed, "none")
    assert list(layers) == list(wanted)
    last = list(wanted)[-1]
    assert np.abs(layers[last].astype(int) - wanted[last]).max() <= 2
    (y,) = outputs.values()
    (exact,) = Session(paths[name], optimization="none").run(feed).values()
    assert (y.dtype, y.shape) == (exact.dtype, exact.shape)
    scale = Reference(model).layers[-1].grid.scale
    np.testing.assert_allclose(y, exact, atol=2.01 * scale)


def test_weights_in_blocks_and_operators_between_are_computed_too():
    model = onnx.shape_inference.infer_shapes(_mixed())
    feed = {"x": normal(1, 4, 6, seed=3, size=1.0)}
    wanted = runtime_integers(model, feed, "none")
    for layer, computed in Reference(model).each(feed, wanted):
        away = np.abs(computed.integers.astype(int) - wanted[layer.name])
        assert away.max() <= 1
        assert np.abs(computed.exact % 1 - 0.5)[away > 0].max(initial=0) <= BESIDE_THE_MIDDLE
    (_, last) = Reference(model).layers
    assert (last.name, last.sources) == ("y", ("x",))


def test_convolutions_and_means_are_known_as_integers_and_a_sigmoid_is_not(paths):
    found = agreement(paths["residual"], NETS["residual"].rows()[0], "none")
    assert {found[name].by for name in ("a", "r", "g", "e", "m", "u", "p", "q", "y")} == {"integer"}
    assert {found[name].by for name in ("x", "h")} == {"float64"}


def test_a_layer_is_made_of_the_integers_it_is_given(paths):
    model, feed = load_model(paths["residual"]), NETS["residual"].rows()[0]
    reference = Reference(model)
    layers, _ = reference.run(feed)
    changed = layers["h"].copy()
    changed[:] = changed.max()
    product = reference.layer("m", {}, {"r": layers["r"], "h": changed}).integers
    assert not np.array_equal(product, layers["m"])
    behind, _ = reference.run(feed, {"h": changed})
    np.testing.assert_array_equal(behind["m"], product)
    np.testing.assert_array_equal(behind["h"], layers["h"])


def test_layers_know_their_nodes_and_what_they_are_made_of(paths):
    layers = {layer.name: layer for layer in Reference(load_model(paths["residual"])).layers}
    product = layers["m"]
    assert (product.op_type, set(product.sources)) == ("Mul", {"r", "h"})
    assert layers["x"].op_type == "Input"
    assert layers["x"].sources == ()


def _mixed(**changes: np.ndarray) -> onnx.ModelProto:
    constants: Mapping[str, np.ndarray] = {
        "s": np.float32(0.03), "zq": np.int8(3), "ws": np.abs(normal(6, 2, seed=1)) / 20,
        "w": np.random.default_rng(2).integers(-128, 127, (6, 6), np.int8),
        "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "four": np.array([4]),
        "so": np.float32(0.05), "zo": np.int8(-5),
    }  # fmt: skip
    return with_constants(MIXED, **(dict(constants) | changes))


# --- what it refuses ----------------------------------------------------------------------------

ONE = (
    HEAD
    + """net (float[1,4] x) => (float[1,4] y) {
    q = QuantizeLinear (x, s, z)
    d = DequantizeLinear (q, s, z)
    [odd_1] y = %s
}"""
)


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("com.microsoft.Gelu (d)", "odd_1.*com.microsoft.Gelu"),
        ("QLinearAdd (q, s, z, q, s, z, s, z)", "odd_1.*QLinearAdd"),
        ("DynamicQuantizeLinear (d)", "odd_1.*DynamicQuantizeLinear"),
        ("Nonsense (d)", "Nonsense `odd_1`: has no integer rule and no numpy reference"),
    ],
)
def test_an_operator_that_is_not_computed_is_refused_by_node_and_name(node, said):
    model = with_constants(ONE % node, s=np.float32(0.1), z=np.int8(0))
    with pytest.raises(ModelError, match=said):
        Reference(model)


def test_an_operator_that_fails_is_named():
    model = with_constants(ONE % "Pow (d, three)", s=np.float32(0.1), z=np.int8(0))
    model.graph.initializer.append(onnx.numpy_helper.from_array(normal(3), "three"))
    with pytest.raises(ModelError, match="Pow `odd_1`: cannot be computed"):
        Reference(model).run({"x": normal(1, 4)})


@pytest.mark.parametrize(
    ("constants", "said"),
    [
        ({"s": np.float32(0.1), "z": np.int16(0)}, "makes int16, not 8 bits"),
        ({"s": normal(4) ** 2, "z": np.zeros(4, np.int8)}, "no single constant scale"),
    ],
)
def test_activations_of_other_grids_are_refused(constants, said):
    model = with_constants(ONE % "Relu (d)", **constants)
    with pytest.raises(ModelError, match=said):
        Reference(model)


def test_a_missing_input_is_named(paths):
    with pytest.raises(DataError, match=r"input `x`.*is missing; did you mean `xx`"):
        Reference(load_model(paths["residual"])).run({"xx": normal(1, 6, 8, 8)})


def test_a_graph_inside_a_node_is_refused():
    text = (
        HEAD
        + """net (float[1,4] x, bool c) => (float[1,4] y) {
        y = If (c) <then_branch = a () => (t) { t = Identity (x) },
                    else_branch = b () => (e) { e = Neg (x) }>
    }"""
    )
    with pytest.raises(ModelError, match="holds a graph inside it"):
        Reference(onnx.parser.parse_model(text))
