"""Where nodes run: by the profile of the N6, and as ONNX Runtime's own optimized graph shows it."""

import onnx
import pytest
from onnxruntime.quantization import QuantType

from handoff.qdq_models import quantized_net, small_net
from handoff.test_rules import N6, WEIGHT, between, data, graph
from handoff.test_rules_onnxruntime import unsigned
from onnxq.handoff.prediction import predict
from onnxq.runtime import executed_operators
from onnxq.target import load_target

X86 = load_target("ort-x86")


def places(model, target=N6, **options):
    return {node.op_type: node.runs for node in predict(model, target, **options).nodes}


def flat(body, **options):
    """A float graph: ``xd`` is the input, and what is made is the output."""
    return graph(body.replace("xd", "x").replace("r = ", "y = "), **options)


@pytest.mark.parametrize(
    ("operator", "runs"),
    [
        ("r = Sigmoid(xd)", "hardware"),
        ("r = Softmax(xd)", "software integer"),
        ("r = ReduceSum(xd, i1)", "software float"),
        ("r = LogSoftmax(xd)", "unknown"),
        ("r = DepthToSpace<blocksize=2>(xd)", "software"),
        ('r = Einsum<equation="bchw->bhwc">(xd)', "refused"),
        ("r = Identity(xd)", "folded"),
        ("r = TopK(xd, i1)", "importer only"),
    ],
)
@pytest.mark.parametrize("build", [between, flat])
def test_an_operator_runs_where_the_table_says(build, operator, runs):
    if "DepthToSpace" in operator and build is flat:
        runs = "software float"  # as the quantizer leaves it
    if "TopK" in operator:
        operator = operator.replace("r =", "r, other =")
        operator = operator if build is between else operator.replace("r, other", "y, other")
    model = build(operator)
    assert places(model)[operator.split("= ")[1].split("(")[0].split("<")[0]] == runs


@pytest.mark.parametrize(
    ("operator", "runs"),
    [
        ("r = MatMul(xd, xd)", "software"),
        ("od = DequantizeLinear(z, s) r = Div(od, xd)", "software integer"),
        ("od = DequantizeLinear(z, s) r = Sub(od, xd)", "software"),
        ("r = ReduceMean<axes=[1]>(xd)", "software float"),
        ('r = Resize<mode="linear">(xd, roi, scales)', "software"),
        ("r = Reshape<allowzero=1>(xd, shape4)", "refused"),
        ("r = Slice(xd, i0, huge, i2)", "refused"),
        ("r = Slice(xd, i0, i2, i2)", "hardware"),
    ],
)
def test_a_rule_that_a_node_breaks_moves_it(operator, runs):
    prediction = predict(between(operator), N6)
    (node,) = prediction.nodes
    assert node.runs == runs
    assert runs == "hardware" or node.why.startswith("stm32n6.")


def test_a_value_of_high_rank_takes_down_all_that_touch_it():
    lower = "cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z) r = Sigmoid(cd)"
    model = between(f"a = Reshape(xd, five) b = Relu(a) c = Reshape(b, shape4) {lower}")
    runs = [node.runs for node in predict(model, N6).nodes]
    assert runs == ["refused", "refused", "refused", "hardware"]


def test_one_bool_takes_all_quantization_away():
    runs = places(between("m = Greater(xd, one) e = Where(m, xd, one) r = Sigmoid(e)"))
    assert runs["Sigmoid"] == "software float"
    assert places(between("r = Sigmoid(xd)"))["Sigmoid"] == "hardware"


@pytest.mark.parametrize(
    ("operator", "window"),
    [
        ("r = MaxPool<kernel_shape=[2,3]>(xd)", ""),
        ("r = MaxPool<kernel_shape=[4,2]>(xd)", "4 x 2 is decomposed: 3 x 3 at once"),
        ("r = Conv<kernel_shape=[1,1]>(xd, wd)", ""),
        ("r = Conv<kernel_shape=[7,7], pads=[3,3,3,3]>(xd, wd)", "7 x 7 is decomposed: 3 x 6"),
        (
            "r = Conv<kernel_shape=[7,7], pads=[3,3,3,3], strides=[2,2]>(xd, wd)",
            "7 x 7 is decomposed: 3 x 12",
        ),
        ("r = Conv<kernel_shape=[1,9], pads=[0,4,0,4]>(xd, wd)", ""),  # height 1 lifts the limit
    ],
)
def test_a_window_that_the_hardware_takes_in_pieces_is_told(operator, window):
    (node,) = predict(between(WEIGHT + operator), N6).nodes
    assert node.runs == "hardware"
    assert window in node.why
    assert ("decomposed:" in node.why) is bool(window)


def test_without_qdq_an_operator_is_a_float_epoch():
    model = graph(data() + "r = Sigmoid(xd) y = Tanh(r)")
    assert places(model) == {"Sigmoid": "software float", "Tanh": "software float"}


PAIR = "{0}q = QuantizeLinear({0}, s, z) {0}d = DequantizeLinear({0}q, s, z) "


def test_a_float_island_between_hardware_costs_its_borders_too():
    island = f"a = Sigmoid(xd) {PAIR.format('a')} b = ReduceSum(ad, i1) {PAIR.format('b')}"
    inside = predict(between(f"{island} r = Sigmoid(bd)"), N6)
    assert (inside.borders, inside.software_epochs) == (2, 3)
    assert predict(between("r = ReduceSum(xd, i1)"), N6).software_epochs == 1  # at input and output
    assert predict(between("r = Softmax(xd)"), N6).software_epochs == 1
    assert predict(between("r = Sigmoid(xd)"), N6).software_epochs == 0


def test_of_a_float_graph_what_the_quantizer_would_leave_float_is_float():
    model = flat("a = Sigmoid(xd) r = Exp(a)")
    prediction = predict(model, N6)
    assert [node.runs for node in prediction.nodes] == ["hardware", "software float"]
    assert prediction.nodes[1].why == "stm32n6 has no integer Exp"


def test_what_is_computed_from_constants_alone_costs_nothing():
    assert places(graph("a = Neg(one) y = Add(x, a)"))["Neg"] == "folded"


def test_nodes_without_names_are_told_apart():
    model = flat("a = Sigmoid(xd) r = Exp(a)")
    for node in model.graph.node:
        node.name = ""
    assert [node.node for node in predict(model, N6).nodes] == ["a", "y"]


def test_the_share_of_a_place_is_that_of_its_multiply_accumulates():
    body = WEIGHT + "c = Conv(xd, wd) cq = QuantizeLinear(c, s, z) cd = DequantizeLinear(cq, s, z) "
    prediction = predict(between(body + "r = MatMul(cd, cd)"), N6)
    conv, product = 4 * 16 * 4, 4 * 16 * 4
    assert [(line.runs, line.nodes, line.macs) for line in prediction.shares] == [
        ("hardware", 1, conv),
        ("software", 1, product),
    ]
    assert sum(line.share for line in prediction.shares) == 1
    assert prediction.of == "quantized"
    assert prediction.tool_version == "ST Edge AI Core 4.0.1"


def test_a_graph_without_weights_has_shares_of_nothing():
    (line,) = predict(between("r = Sigmoid(xd)"), N6).shares
    assert (line.nodes, line.macs, line.share) == (1, 0, 0)


def test_a_version_of_the_tool_predicts_by_its_own_table():
    model = between("r = Sqrt(xd)")
    assert places(model)["Sqrt"] == "hardware"
    assert places(model, load_target("stm32n6@2.2"))["Sqrt"] == "software float"


# --- onnxruntime --------------------------------------------------------------------------------


def test_a_net_that_is_predicted_integer_is_executed_so(tmp_path):
    path = quantized_net(tmp_path, QuantType.QUInt8)
    prediction = predict(onnx.load(path), X86)
    assert {line.runs for line in prediction.shares} == {"software integer"}
    executed = {node.op_type for node in executed_operators(path).graph.node}
    assert not executed & {"Conv", "FusedConv", "Gemm", "FusedGemm", "Add"}
    assert {"QLinearConv", "QLinearAdd", "QGemm"} <= executed


def test_the_float_net_is_predicted_as_its_quantized_file_is(tmp_path):
    prediction = predict(small_net(), X86)
    assert prediction.of == "float"
    quantized = predict(onnx.load(quantized_net(tmp_path, QuantType.QUInt8)), X86)
    there = {node.op_type: node.runs for node in quantized.nodes}
    assert {node.op_type: node.runs for node in prediction.nodes if node.op_type in there} == there


ON_INTEGERS = [
    "r = Sigmoid(xd)",
    "r = LeakyRelu(xd)",
    "r = Softmax(xd)",
    "r = GlobalAveragePool(xd)",
    "r = AveragePool<kernel_shape=[2,2]>(xd)",
    "r = Add(xd, xd)",
    "r = Mul(xd, xd)",
    "r = Concat<axis=1>(xd, xd)",
    "r = Reshape(xd, flat)",
    "r = Flatten(xd)",
    "r = Transpose<perm=[0,2,3,1]>(xd)",
    "r = Unsqueeze(xd, i1)",
    "r = Squeeze(xd, i0)",
    "r = Slice(xd, i0, i2, i2)",
    "r = Tile(xd, axes1)",
    "r = Expand(xd, shape4)",
    "r = Gather<axis=1>(xd, i1)",
    "r = MaxPool<kernel_shape=[2,2]>(xd)",
    "r = DepthToSpace<blocksize=2>(xd)",
    'r = Resize<mode="nearest">(xd, roi, scales)',
    "r = ReduceMax<axes=[1]>(xd)",
    "r = ReduceMin<axes=[1]>(xd)",
]
IN_FLOAT = [
    *(f"r = {op}(xd)" for op in ("Tanh", "HardSwish", "HardSigmoid", "Elu", "Erf", "Softplus")),
    *(f"r = {op}(xd)" for op in ("Exp", "Sqrt", "Abs", "Neg", "LogSoftmax", "GlobalMaxPool")),
    "r = Sub(xd, high)",
    "r = Div(xd, high)",
    "r = Pow(xd, high)",
    "r = PRelu(xd, low)",
    "r = Pad(xd, pads)",
    "r = ReduceMean<axes=[2,3]>(xd)",
    "r = ReduceSum(xd, i1)",
    "r = SpaceToDepth<blocksize=2>(xd)",
    'r = Resize<mode="linear">(xd, roi, scales)',
    "r = InstanceNormalization(xd, row, row)",
]


@pytest.mark.parametrize("operator", [*ON_INTEGERS, *IN_FLOAT])
def test_the_table_agrees_with_the_optimized_graph(tmp_path, operator):
    model = unsigned(operator)
    onnx.save(model, tmp_path / "m.onnx")
    (node,) = predict(model, X86).nodes
    assert node.runs == ("software float" if operator in IN_FLOAT else "software integer")
    executed = executed_operators(tmp_path / "m.onnx").graph.node
    real = {output for n in executed if n.op_type == "DequantizeLinear" for output in n.output}
    in_float = [n.op_type for n in executed if real & set(n.input)]
    assert bool(in_float) is (operator in IN_FLOAT)
