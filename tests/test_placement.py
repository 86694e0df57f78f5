"""Which tensors are looked at follows from graph and targets, and suffices for every plan."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from quantize.nets import HEAD, RESIDUAL, TARGETS, save, weights

from onnxq.artifacts import TensorRange
from onnxq.errors import StaleRecordError
from onnxq.placement import float_reasons, observed_tensors, roots_of
from onnxq.quantize.plan import make_plan
from onnxq.target import load_target

X86, ARM, STM = (load_target(name) for name in TARGETS)
RESIDUAL_CONSTANTS = {
    "w1": weights(8, 3, 3, 3),
    "b1": weights(8),
    "w2": weights(8, 1, 3, 3),
    "b2": weights(8),
    "w3": weights(10, 8),
    "b3": weights(10),
    "zero": weights() * 0,
    "six": weights() * 0 + 6,
}


@pytest.fixture
def graph_of(tmp_path):
    """The graph of a network given as text."""

    def graph(text: str, **constants: object) -> ir.Graph:
        path = save(tmp_path / "m.onnx", HEAD + text, **constants)  # type: ignore[arg-type]
        model = onnx.shape_inference.infer_shapes(onnx.load(path), data_prop=True)
        return ir.from_proto(model).graph

    return graph


def conv_then(rest: str, result: str = "float[1,4,4,4] y") -> str:
    return f"""g (float[1,3,4,4] x) => ({result}) {{
        [conv] c = Conv<kernel_shape=[1,1]>(x, w) {rest} }}"""


def test_a_folded_relu_is_looked_at_in_place_of_what_goes_into_it(graph_of):
    graph = graph_of(conv_then("[relu] r = Relu(c)  [add] y = Add(r, r)"), w=weights(4, 3, 1, 1))
    assert observed_tensors(graph, [X86], {}) == ("x", "r", "y")


def test_what_goes_into_a_relu_and_elsewhere_is_looked_at_too(graph_of):
    graph = graph_of(conv_then("[relu] r = Relu(c)  [add] y = Add(r, c)"), w=weights(4, 3, 1, 1))
    assert observed_tensors(graph, [X86], {}) == ("x", "c", "r", "y")


def test_behind_data_movers_the_tensor_that_they_began_with_is_looked_at(graph_of):
    text = conv_then(
        """[relu] r = Relu(c)
           [pool] p = MaxPool<kernel_shape=[2,2]>(r)
           [turn] t = Transpose<perm=[0,2,3,1]>(p)
           [add] y = Add(t, t)""",
        "float[1,3,3,4] y",
    )
    graph = graph_of(text, w=weights(4, 3, 1, 1))
    assert observed_tensors(graph, [X86], {}) == ("x", "r", "y")
    assert roots_of(list(graph), X86) == {"p": "r", "t": "r"}


def test_an_excluded_node_takes_its_tensors_out_but_never_inputs_and_outputs(graph_of):
    text = conv_then("[relu] r = Relu(c)  [soft] s = Softmax(r)  [two] y = Conv(s, v)")
    constants = {"w": weights(4, 3, 1, 1), "v": weights(4, 4, 1, 1)}
    graph = graph_of(text, **constants)
    assert observed_tensors(graph, [X86], {}) == ("x", "r", "s", "y")
    assert observed_tensors(graph, [X86], {"two": "", "soft": ""}) == ("x", "r", "y")
    assert observed_tensors(graph, [X86], dict.fromkeys(("conv", "soft", "two"), "")) == ("x", "y")


def test_of_two_targets_each_gets_what_it_needs(graph_of):
    text = conv_then("[sub] d = Sub(c, k)  [abs] a = Abs(d)  [two] y = Conv(a, v)")
    graph = graph_of(text, w=weights(4, 3, 1, 1), k=weights(4, 1, 1), v=weights(4, 4, 1, 1))
    x86, stm, both = (observed_tensors(graph, t, {}) for t in ([X86], [STM], [X86, STM]))
    assert "d" not in x86
    assert "d" in stm
    assert set(both) == {*x86, *stm}
    assert both == observed_tensors(graph, [STM, X86], {})


@pytest.mark.parametrize("target", [X86, ARM, STM], ids=TARGETS)
def test_a_pad_with_a_fill_is_looked_at_on_both_sides(graph_of, target):
    def observed(fill: float) -> tuple[str, ...]:
        text = """g (float[1,3,4,4] x) => (float[1,4,6,6] y) {
            [one] c = Conv<kernel_shape=[1,1]>(x, w)
            [pad] p = Pad(c, pads, fill)
            [two] y = Conv<kernel_shape=[1,1]>(p, v) }"""
        graph = graph_of(
            text,
            w=weights(4, 3, 1, 1),
            v=weights(4, 4, 1, 1),
            pads=np.array([0, 0, 1, 1, 0, 0, 1, 1]),
            fill=np.float32(fill),
        )
        return observed_tensors(graph, [target], {})

    assert observed(-9) == ("x", "c", "p", "y")
    moves = "Pad" in target.data_ops
    assert observed(0) == (("x", "c", "y") if moves else ("x", "c", "p", "y"))


def test_integers_and_constants_are_not_looked_at(graph_of):
    graph = graph_of(
        """g (int64[1,3] i, float[1,4] x) => (float[1,4] y, int64[1,1] n) {
            [hot] e = Gather<axis=0>(table, i)
            [sum] s = ReduceSum<keepdims=0>(e, one)
            [add] y = Add(s, x)
            [arg] n = ArgMax<axis=1>(y) }""",
        table=weights(7, 4),
        one=np.array([1]),
    )
    assert not {"i", "n", "table", "one"} & set(observed_tensors(graph, [X86, STM], {}))


NETS = {
    "residual": (RESIDUAL.removeprefix(HEAD), RESIDUAL_CONSTANTS),
    "movers": (
        """g (float[1,3,4,4] x) => (float[1,16,4] y) {
            [turn] t = Transpose<perm=[0,1,3,2]>(x)
            [conv] c = Conv<kernel_shape=[1,1]>(t, w)
            [clip] d = Relu(c)
            [shape] r = Reshape(d, to)
            [back] b = Transpose<perm=[0,2,1]>(r)
            [mm] y = MatMul(b, v) }""",
        {"w": weights(4, 3, 1, 1), "v": weights(4, 4), "to": np.array([1, 4, 16])},
    ),
    "attention": (
        """g (float[1,6,8] x) => (float[1,6,8] y) {
            [q] q = MatMul(x, w)  [k] k = MatMul(x, v)
            [turn] t = Transpose<perm=[0,2,1]>(k)
            [qk] s = MatMul(q, t)  [soft] p = Softmax(s)  [pv] o = MatMul(p, x)
            [join] j = Concat<axis=2>(o, x)  [out] y = MatMul(j, u) }""",
        {"w": weights(8, 8), "v": weights(8, 8), "u": weights(16, 8)},
    ),
}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("names", [*((name,) for name in TARGETS), TARGETS])
def test_what_is_looked_at_suffices_for_the_plan_of_every_target(graph_of, tmp_path, net, names):
    text, constants = NETS[net]
    graph = graph_of(text, **constants)
    targets = [load_target(name) for name in names]
    for exclude in ({}, *({str(node.name): "by test"} for node in graph)):
        ranges = {
            name: TensorRange(low=-1, high=2, observed_low=-1, observed_high=2, values=9, zeros=0)
            for name in observed_tensors(graph, targets, exclude)
        }
        for target in targets:
            plan = make_plan(ir.Model(graph, ir_version=9), target, ranges, exclude)
            reasons = float_reasons(list(graph), target, exclude)
            assert {node.node for node in plan.float_nodes} == set(reasons)
            assert plan.activations


def test_a_range_that_was_not_looked_at_is_missed_by_the_plan(graph_of):
    """The test above would not pass by chance."""
    text, constants = NETS["residual"]
    graph = graph_of(text, **constants)
    whole = observed_tensors(graph, [X86], {})
    seen = TensorRange(low=-1, high=2, observed_low=-1, observed_high=2, values=9, zeros=0)
    for missing in whole:
        ranges = dict.fromkeys((name for name in whole if name != missing), seen)
        with pytest.raises(StaleRecordError, match=missing):
            make_plan(ir.Model(graph, ir_version=9), X86, ranges, {})


NEIGHBOURS = """g (float[1,8,3] pos, float[1,3,8] f) => (float[1,4,4] y) {
    [turn] t = Transpose<perm=[0,2,1]>(pos)
    [dots] d = MatMul(pos, t)
    [rows] r = ReduceSum(d, last)
    [near] v, i = TopK(r, four)
    [pick] p = Gather<axis=2>(f, i0)
    [conv] y = Conv<kernel_shape=[1]>(p, w)
}"""


def test_what_positions_are_chosen_by_stays_float_with_the_chooser_named(graph_of):
    text = NEIGHBOURS.replace("i0)", "j)").replace("[pick]", "[flat] j = Reshape(i, flat) [pick]")
    graph = graph_of(
        text, w=weights(4, 3, 1), last=np.array([2]), four=np.array([4]), flat=np.array([4])
    )
    reasons = float_reasons(list(graph), X86, {})
    for node in ("turn", "dots", "rows"):
        assert reasons[node] == "TopK `near` chooses by it, and would choose others"
    assert "conv" not in reasons
    assert "pick" not in reasons


def test_what_was_learned_is_quantized_though_the_best_is_chosen_of_it(graph_of):
    graph = graph_of(
        conv_then("[best] y = ArgMax<axis=1>(c)", "int64[1,1,4,4] y"), w=weights(4, 3, 1, 1)
    )
    assert "conv" not in float_reasons(list(graph), X86, {})
