"""What runs on integers and why not, judged by the graph that ONNX Runtime saves."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType, quantize_static

from onnxq.artifacts import FusionAudit
from onnxq.calibrate.readers import SampleReader
from onnxq.cli import main
from onnxq.graph import load_model
from onnxq.kernels import _FOLDED, _INTEGER, _MOVERS
from onnxq.target import load_target
from onnxq.verify.audit import audit, gives_wrong_numbers
from onnxq.verify.fusion import audit_fusion, executed, fusion_lines, numbered
from tests.quantize.nets import Net, residual

from .files import graph
from .qdq import CONV, IN, LINEAR, MATMUL, OUT, write

MIDDLE = OUT.replace("z)", "mid)")
RESCALED = OUT.replace("s, z", "s2, z")


def operators(path, config=()) -> Counter[str]:
    """Operators of the graph that onnxruntime itself saves."""
    saved = path.with_name("optimized.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(saved)
    options.log_severity_level = 4
    for key, value in config:
        options.add_session_config_entry(key, value)
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(saved).graph.node)


def of(found: FusionAudit, name: str):
    (node,) = (node for node in found.nodes if node.node == name)
    return node


# --- the causes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "cause", "says"),
    [
        (IN + "[op] o = Tanh(d)\n" + OUT, "uint8", "no integer kernel", "no integer Tanh"),
        (IN + "[op] o = ReduceMean(d, t2)\n" + OUT, "uint8", "no integer kernel", "ReduceMean"),
        (IN + CONV + "[op] y = Conv(d, wd)\n", "uint8", "no Q on its output", "a graph output"),
        (IN + CONV + "[op] o = Conv(d, wd)\n y = Tanh(o)\n", "uint8", "no Q on its output", "no Q"),
        (
            IN + CONV + "[op] o = Conv(d, wd)\n" + OUT.replace("y =", "v =")
            + "[tanh] u = Tanh(o)\n y = Add(u, v)\n",
            "uint8", "used as float too", "goes to Tanh `tanh` as well",
        ),
        (
            IN + CONV + "[op] c = Conv(d, wd)\n o = Relu(c)\n" + MIDDLE,
            "uint8", "activation not folded", "more than Relu lets through",
        ),
        (
            IN + CONV + "[op] c = Conv(d, wd)\n o = Clip(c, zero, six)\n" + OUT,
            "uint8", "activation not folded", "more than Clip lets through",
        ),
        (
            IN + CONV + "[op] c = Conv(d, wd)\n" + OUT.replace("(o,", "(c,").replace("y =", "v =")
            + " a = Tanh(v)\n y = Add(a, v)\n",
            "int8", "int8 activations on x86", "`r` is int8 and has several uses",
        ),
        (
            IN + "[op] o = Transpose<perm=[0,2,3,1]>(d)\n" + RESCALED,
            "uint8", "re-scaled data mover", "`o` has another scale",
        ),
        (
            IN + "w4 = Cast<to=22>(w)\n wd = DequantizeLinear<axis=0>(w4, ws)\n"
            "[op] o = Conv(d, wd)\n" + OUT,
            "uint8", "int4 without Cast", "dequantized from int4",
        ),
        (IN + CONV + "[op] o = Conv(d, wd)\n" + OUT, "int16", "16-bit activations", "int16"),
        (CONV + "[op] o = Conv(x, wd)\n" + OUT, "uint8", "float input", "its input `x` is float"),
        ("[op] y = Tanh(x)\n", "uint8", "not quantized", "no Q/DQ around it"),
    ],
)  # fmt: skip
def test_a_float_node_is_told_with_its_cause(tmp_path, body, kind, cause, says):
    path = write(tmp_path / "m.onnx", body, kind, opset=21)
    found = audit_fusion(path)
    node = of(found, "op")
    assert (node.runs, node.expected, node.cause) == ("float", "float", cause)
    assert says in node.why
    assert node.do
    assert not any(name.startswith(("QLinear", "QGemm")) for name in operators(path))


MATMULS = {
    "MatMul": MATMUL + "[op] o = MatMul(A, wd)\n",
    "Gemm": LINEAR + "[op] o = Gemm<transB=1>(A, wd, b)\n",
    "Gemm, int32 bias": LINEAR + "bd = DequantizeLinear<axis=0>(bi, bs)\n"
    "[op] o = Gemm<transB=1>(A, wd, bd)\n",
    "Gemm, no bias": MATMUL + "[op] o = Gemm(A, wd)\n",
}
NODES = {
    "Conv": CONV + "[op] o = Conv(A, wd)\n",
    "Conv, zero points": CONV.replace("wz", "wodd") + "[op] o = Conv(A, wd)\n",
    "Conv, float weight": "[op] o = Conv(A, wf)\n",
    "ConvRelu": CONV + "[op] c = Conv(A, wd)\n[relu] o = Relu(c)\n",
    "ConvClip": CONV + "[op] c = Conv(A, wd)\n[clip] o = Clip(c, zero, six)\n",
    "ConvMove": CONV + "[op] c = Conv(A, wd)\n[move] o = Transpose<perm=[0,2,3,1]>(c)\n",
    "ConvReluMove": CONV
    + "[op] c = Conv(A, wd)\n[relu] e = Relu(c)\n[move] o = Reshape(e, shape)\n",
    "ConvReluFlatten": CONV + "[op] c = Conv(A, wd)\n[relu] e = Relu(c)\n[move] o = Flatten(e)\n",
    "MoveConv": CONV + "[move] c = Transpose<perm=[0,1,3,2]>(A)\n[op] o = Conv(c, wd)\n",
    "Add": "[op] o = Add(A, A)\n",
    "AddRelu": "[op] e = Add(A, A)\n[relu] o = Relu(e)\n",
    "Add, float constant": "[op] o = Add(A, half)\n",
    "Mul": "[op] o = Mul(A, A)\n",
    "Sub": "[op] o = Sub(A, A)\n",
    "Concat": "[op] o = Concat<axis=1>(A, A)\n",
    "Where": "[op] o = Where(yes, A, A)\n",
    "Sigmoid": "[op] o = Sigmoid(A)\n",
    "Softmax": "[op] o = Softmax<axis=1>(A)\n",
    "LeakyRelu": "[op] o = LeakyRelu(A)\n",
    "Relu": "[op] o = Relu(A)\n",
    "AveragePool": "[op] o = AveragePool<kernel_shape=[2,2]>(A)\n",
    "GlobalAveragePool": "[op] o = GlobalAveragePool(A)\n",
    "ReduceMean": "[op] o = ReduceMean(A, t2)\n",
    "MaxPool": "[op] o = MaxPool<kernel_shape=[2,2]>(A)\n",
    "Reshape": "[op] o = Reshape(A, shape)\n",
    "Transpose": "[op] o = Transpose<perm=[0,2,3,1]>(A)\n",
    "Flatten": "[op] o = Flatten(A)\n",
    "Squeeze": "[op] o = Squeeze(A, t0)\n",
    "Unsqueeze": "[op] o = Unsqueeze(A, t2)\n",
    "Slice": "[op] o = Slice(A, t0, t4, t2)\n",
    "Expand": "[op] o = Expand(A, wide)\n",
    "Tile": "[op] o = Tile(A, twice)\n",
    "Gather": "[op] o = Gather<axis=1>(A, two)\n",
    "ReduceMax": "[op] o = ReduceMax(A, t2)\n",
    "Resize": '[op] o = Resize<mode="nearest">(A, , by2)\n',
    "Resize linear": '[op] o = Resize<mode="linear">(A, , by2)\n',
    "DepthToSpace": "[op] o = DepthToSpace<blocksize=2>(A)\n",
    "Identity": "[op] o = Identity(A)\n",
    "HardSwish": "[op] o = HardSwish(A)\n",
} | MATMULS  # fmt: skip
SURROUNDINGS = {
    "both": (IN, OUT),
    "re-scaled": (IN, RESCALED),
    "zero point in the middle": (IN, MIDDLE),
    "float before": ("d = Tanh(x)\n", OUT),
    "float behind": (IN, "y = Tanh(o)\n"),
    "used as float too": (
        IN, OUT.replace("y =", "v =") + "u = Tanh(o)\n y = Add(u, v)\n",
    ),
    "input used as float too": (
        IN, OUT.replace("y =", "v =") + "n = Tanh(d)\n m = ReduceMean(n)\n y = Add(m, v)\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["uint8", "int8"])
@pytest.mark.parametrize("around", SURROUNDINGS)
def test_the_table_says_of_every_operator_what_the_runtime_makes_of_it(tmp_path, around, kind):
    before, behind = SURROUNDINGS[around]
    wrong = {}
    for name, text in NODES.items():
        shape = "8,8" if name.startswith("Gemm") else "1,4,8,8"
        body = text.replace("(A", "(d").replace(", A", ", d")
        path = write(tmp_path / "m.onnx", before + body + behind, kind, shape=shape)
        found = audit_fusion(path).findings
        wrong[name] = [f"{f.where}: {f.what}" for f in found if "it should be" in f.what]
    assert {name: found for name, found in wrong.items() if found} == {}


# --- whole files --------------------------------------------------------------------------------


def theirs(net: Net, kind: QuantType) -> Net:
    quantize_static(
        net.path, net.path.with_name("theirs.onnx"), SampleReader(net.samples),
        per_channel=True, activation_type=kind, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return net.path.with_name("theirs.onnx")


def test_our_own_file_runs_on_integers_and_holds_no_surprise(tmp_path):
    found = audit_fusion(residual(tmp_path).quantize("ort-x86").path)
    assert {node.runs for node in found.nodes} == {"integer", "data"}
    assert found.findings == ()
    assert found.integer_macs == found.macs > 0
    assert of(found, "conv_1").executed_as == "QLinearConv"


def test_a_residual_int8_file_is_float_around_the_branch_here_and_integer_on_arm(tmp_path):
    path = theirs(residual(tmp_path), QuantType.QInt8)
    found = audit_fusion(path)
    assert found.findings == ()
    floating = [node for node in found.nodes if node.runs == "float"]
    assert {node.cause for node in floating} == {"int8 activations on x86"}
    assert all("onnxq convert --target ort-x86" in node.do for node in floating)
    assert {node.elsewhere for node in floating} == {"integer"}
    convolutions = sum(node.op_type == "Conv" for node in floating)
    assert convolutions == operators(path)["Conv"] + operators(path)["FusedConv"] > 0
    allowed = [("session.qdqisint8allowed", "1")]
    assert operators(path, allowed)["QLinearConv"] == 2
    assert 0 < found.integer_macs < found.macs


def test_an_int8_file_is_told_for_processors_without_vnni_too(tmp_path):
    """There weights become uint8, which no kernel takes where int8 activations fuse."""
    path = theirs(residual(tmp_path), QuantType.QInt8)
    exact = load_target("ort-x86-avx2").session_options
    found, plain = audit_fusion(path, exact), audit_fusion(path)
    assert [node.elsewhere for node in found.nodes] == [node.elsewhere for node in plain.nodes]
    assert {node.elsewhere for node in found.nodes if node.op_type == "Conv"} == {"integer"}


def test_a_foreign_uint8_file_holds_no_surprise(tmp_path):
    found = audit_fusion(theirs(residual(tmp_path), QuantType.QUInt8))
    assert found.findings == ()
    assert "float" not in {node.runs for node in found.nodes}


def test_lines_count_what_computes_by_operator(tmp_path):
    lines = fusion_lines(audit_fusion(theirs(residual(tmp_path), QuantType.QInt8)))
    found = {line.op_type: (line.integer, line.total) for line in lines}
    assert found["Add"] == (0, 1)
    assert found["Conv"][1] == 2
    assert "MaxPool" not in found


def test_a_runtime_that_fuses_otherwise_than_the_table_says_is_a_finding(tmp_path):
    path = residual(tmp_path).quantize("ort-x86").path
    found = audit_fusion(path, {"session.disable_quant_qdq": "1"})
    says = [f.what for f in found.findings if f.where == "Conv `conv_1`"]
    assert len(says) == 1
    assert "(float), and it should be integer" in says[0]
    assert of(found, "conv_1").cause == "unknown"


def test_a_weight_only_product_is_told_to_quantize_its_input_behind_ones_back(tmp_path):
    body = "t = Tanh(x)\n" + MATMULS["MatMul"].replace("(A", "(t") + "y = Tanh(o)\n"
    path = write(tmp_path / "m.onnx", body)
    assert operators(path)["MatMulNBits"] == 1
    (finding,) = audit_fusion(path).findings
    assert "accuracy level 4" in finding.what
    assert "qdq_matmulnbits_accuracy_level" in finding.do


def test_every_node_of_the_file_is_found_in_what_is_executed(tmp_path):
    path = theirs(residual(tmp_path), QuantType.QInt8)
    model = load_model(path)
    with numbered(model) as copy:
        saved = tmp_path / "o.onnx"
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(saved)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(copy, options, providers=["CPUExecutionProvider"])
    found = executed(model, onnx.load(saved))
    assert found.keys() == set(range(len(model.graph.node)))
    shown = Counter(one.operator for n, one in found.items() if one.operator)
    computing = {"Conv", "FusedConv", "QLinearConv", "Add", "QGemm", "QLinearGlobalAveragePool"}
    for kind in computing & operators(path).keys():
        assert shown[kind] == operators(path)[kind]


# --- a weight dequantized along another axis ----------------------------------------------------


SQUARE = IN + "wd = DequantizeLinear<axis=AXIS>(k, kx, kz)\n[op] o = MatMul(d, wd)\n" + OUT


def test_a_weight_along_another_axis_is_refused_as_the_runtime_computes_wrong_numbers(
    tmp_path, capsys
):
    found = {}
    for axis in (0, 1):
        path = write(tmp_path / f"{axis}.onnx", SQUARE.replace("AXIS", str(axis)))
        model = onnx.load(path)
        scales = np.geomspace(0.001, 0.03, 8, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(scales, "kx"))
        onnx.save(model, path)
        row = {"x": np.random.default_rng(3).standard_normal((1, 4, 8, 8)).astype("f") * 5}
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        plain = onnxruntime.InferenceSession(path, options).run(None, row)[0]
        fused = onnxruntime.InferenceSession(path).run(None, row)[0]
        rows = audit(graph(path))
        found[axis] = (float(np.abs(plain - fused).max()) > 0.2, gives_wrong_numbers(rows))
        with pytest.raises(SystemExit) as ended:
            main(["inspect", str(path), "--no-time", "--json"])
        assert ended.value.code == (1 if found[axis][1] else 0)
    assert found == {0: (True, True), 1: (False, False)}
    assert "computes wrong numbers from that" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["ort-x86", "ort-arm64"])
def test_the_profile_of_the_target_names_the_same_operators_as_integer(name):
    runs = {entry.op: entry.runs for entry in load_target(name).operators}
    integer = {op for op, where in runs.items() if where == "software integer"}
    assert integer == _INTEGER | _MOVERS | {"ArgMax"}
    assert {op for op, where in runs.items() if where == "folded"} >= _FOLDED
