"""The integer kernels against ONNX Runtime with full optimization: every code is the same."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.errors import UsageError
from onnxq.quantize.round_trip import integer_nodes
from onnxq.quantize.torch_graph import TorchGraph
from onnxq.runtime import Session, executed_operators

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
INT8 = {"session.qdqisint8allowed": "1"}


def two(op: str, type_: str, grids: list[tuple[float, int]], shapes: tuple[str, str]) -> str:
    """DQ, an operator of two operands, and Q; ``grids`` of the operands and of the result."""
    (a, za), (b, zb), (y, zy) = grids
    return (
        HEAD
        + f"""g ({type_}[{shapes[0]}] qa, {type_}[{shapes[1]}] qb) => ({type_}[n,m] q)
        <float sa = {{{a}}}, {type_} za = {{{za}}}, float sb = {{{b}}}, {type_} zb = {{{zb}}},
         float sy = {{{y}}}, {type_} zy = {{{zy}}}> {{
        a = DequantizeLinear(qa, sa, za)
        b = DequantizeLinear(qb, sb, zb)
        [op] y = {op}(a, b)
        q = QuantizeLinear(y, sy, zy)
    }}"""
    )


def one(op: str, type_: str, grids: list[tuple[float, int]], shape: str) -> str:
    (a, za), (y, zy) = grids
    return (
        HEAD
        + f"""g ({type_}[{shape}] qa) => ({type_}[{"o," * shape.count(",")}p] q)
        <float sa = {{{a}}}, {type_} za = {{{za}}}, float sy = {{{y}}}, {type_} zy = {{{zy}}}> {{
        a = DequantizeLinear(qa, sa, za)
        [op] y = {op}(a)
        q = QuantizeLinear(y, sy, zy)
    }}""".replace("o,o,o,p", "o,p,r,s")
    )


def drawn_grids(count: int, type_: str, seed: int) -> list[tuple[float, int]]:
    """Scales, some of which are simple multiples, so that values lie midway between codes."""
    random = np.random.default_rng(seed)
    low, high = (0, 256) if type_ == "uint8" else (-128, 128)
    scales = random.uniform(0.004, 0.1, count).astype(np.float32)
    if seed % 2:
        scales = (scales[0] * 2.0 ** random.integers(-1, 2, count)).astype(np.float32)
    return [(float(s), int(random.integers(low, high))) for s in scales]


def codes(type_: str, *shape: int, seed: int = 0) -> np.ndarray:
    limits = np.iinfo(type_)
    random = np.random.default_rng(seed)
    return random.integers(limits.min, limits.max + 1, shape).astype(type_)


def assert_same(text: str, kernel: str, folder: Path, **inputs: np.ndarray) -> None:
    """Every code of ``q``; the runtime has to have made one kernel of the three nodes."""
    model = onnx.parser.parse_model(text)
    onnx.save(model, folder / "m.onnx")
    executed = {node.op_type for node in executed_operators(folder / "m.onnx", INT8).graph.node}
    assert kernel in executed
    expected = Session(model.SerializeToString(), config=INT8).run(inputs)["q"]
    nodes = integer_nodes(model, int8_kernels=True)
    assert "y" in nodes.outputs
    found = TorchGraph(model, nodes).run(inputs)["q"]
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("type_", ["uint8", "int8"])
@pytest.mark.parametrize("op", ["Add", "Mul"])
def test_all_pairs_of_codes_are_added_and_multiplied_as_by_the_kernel(tmp_path, op, type_, seed):
    limits = np.iinfo(type_)
    every = np.arange(limits.min, limits.max + 1).astype(type_)
    grids = drawn_grids(3, type_, seed)
    left, right = np.meshgrid(every, every, indexing="ij")
    text = two(op, type_, grids, ("n,m", "n,m"))
    assert_same(text, f"QLinear{op}", tmp_path, qa=left.copy(), qb=right.copy())


@pytest.mark.parametrize("type_", ["uint8", "int8"])
@pytest.mark.parametrize("shapes", [("n,m", "n,1"), ("n,1", "n,m"), ("n,m", "1,m"), ("n,m", "m")])
def test_what_is_broadcast_is_added_in_the_kernels_order(tmp_path, shapes, type_):
    sizes = {"n": 64, "m": 96, "1": 1}
    arrays = [
        codes(type_, *(sizes[c] for c in shape.split(",")), seed=i)
        for i, shape in enumerate(shapes)
    ]
    for seed in range(6):
        text = two("Add", type_, drawn_grids(3, type_, seed), shapes)
        assert_same(text, "QLinearAdd", tmp_path, qa=arrays[0], qb=arrays[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("type_", ["uint8", "int8"])
@pytest.mark.parametrize(
    ("op", "kernel"),
    [
        ("GlobalAveragePool", "QLinearGlobalAveragePool"),
        ("AveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]>", "QLinearAveragePool"),
        (
            "AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>",
            "QLinearAveragePool",
        ),
    ],
)
def test_means_are_rounded_as_by_the_kernel(tmp_path, op, kernel, type_, seed):
    text = one(op, type_, drawn_grids(2, type_, seed), "2,8,9,10")
    assert_same(text, kernel, tmp_path, qa=codes(type_, 2, 8, 9, 10, seed=seed))


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize(("type_", "zero"), [("uint8", 0), ("int8", -128)])
@pytest.mark.parametrize("seed", range(3))
def test_softmax_is_that_of_the_kernels_table(tmp_path, type_, zero, axis, seed):
    (grid,) = drawn_grids(1, type_, seed)
    text = one(f"Softmax<axis={axis}>", type_, [grid, (1 / 255, zero)], "3,17,40")
    assert_same(text, "QLinearSoftmax", tmp_path, qa=codes(type_, 3, 17, 40, seed=seed))


LAYERS = {
    "Conv": (
        """<pads=[1,0,2,1], strides=[2,1], group=2>(x, wd, bd)""",
        "QLinearConv",
        (8, 3, 3, 3),
        0,
        (2, 6, 11, 10),
    ),
    "Gemm": ("<transB=1>(x, wd, bd)", "QGemm", (24, 40), 0, (9, 40)),
    "MatMul": ("(x, wd)", "QLinearMatMul", (40, 24), 1, (3, 9, 40)),
}


@pytest.mark.parametrize("type_", ["uint8", "int8"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("op", LAYERS)
def test_products_are_summed_exactly_and_rounded_once(tmp_path, op, seed, type_):
    how, kernel, shape, axis, data = LAYERS[op]
    random, channels = np.random.default_rng(seed), shape[axis]
    (x, zx), (y, zy) = drawn_grids(2, type_, seed)
    y = float(np.float32(y * 60))
    given, made = ",".join(map(str, data)), ",".join("abcd"[: len(data)])
    model = onnx.parser.parse_model(
        HEAD
        + f"""g ({type_}[{given}] qa) => ({type_}[{made}] q)
        <float sx = {{{x}}}, {type_} zx = {{{zx}}}, float sy = {{{y}}}, {type_} zy = {{{zy}}}> {{
        x = DequantizeLinear(qa, sx, zx)
        wd = DequantizeLinear<axis={axis}>(w, sw, zw)
        bd = DequantizeLinear<axis=0>(b, sb)
        [op] y = {op}{how}
        q = QuantizeLinear(y, sy, zy)
    }}"""
    )
    scales = random.uniform(0.001, 0.02, channels).astype(np.float32)
    arrays = {
        "w": codes("int8", *shape, seed=seed),
        "sw": scales,
        "zw": np.zeros(channels, np.int8),
        "b": random.integers(-20000, 20000, channels).astype(np.int32),
        "sb": np.float32(x) * scales,
    }
    for name, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    assert_same(onnx.printer.to_text(model), kernel, tmp_path, qa=codes(type_, *data, seed=seed))


CHAIN = """g (float[2,3] x) => (float[2,3] y)
    <float s = {0.25}, uint8 z = {8}, float t = {0.5}> {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    e = Add(d, d)
    r = QuantizeLinear(e, t, z)
    y = DequantizeLinear(r, t, z)
}"""


def test_what_follows_is_computed_of_codes_given_instead_and_the_computed_are_delivered():
    model = onnx.parser.parse_model(HEAD + CHAIN)
    x, codes_ = np.full((2, 3), 1.0, np.float32), np.full((2, 3), 20, np.uint8)
    found = TorchGraph(model).run({"x": x}, ["q", "r"], {"q": codes_})
    assert np.array_equal(found["q"], np.full((2, 3), 12))
    assert np.array_equal(found["r"], np.full((2, 3), 20))
    assert np.array_equal(found["y"], np.full((2, 3), 6.0))


def test_the_inside_of_an_integer_node_cannot_be_asked_for():
    model = onnx.parser.parse_model(HEAD + CHAIN)
    graph = TorchGraph(model, integer_nodes(model, int8_kernels=False))
    row = {"x": np.ones((2, 3), np.float32)}
    assert graph.run(row, ["r"])["r"].dtype == np.uint8
    with pytest.raises(UsageError, match="no tensor `e`"):
        graph.run(row, ["e"])


def test_int8_that_x86_turns_into_uint8_keeps_its_codes(tmp_path):
    """The sums of zero points and ratios are rounded otherwise then; the outputs say whether."""
    for seed in range(4):
        text = two("Add", "int8", drawn_grids(3, "int8", seed), ("n,m", "n,m"))
        codes_in = "int8[n,m] qa, int8[n,m] qb) => (int8[n,m] q)"
        real = text.replace(codes_in, "float[n,m] xa, float[n,m] xb) => (float[n,m] real)")
        real = real.replace("a = Deq", "qa = QuantizeLinear(xa, sa, za)\n a = Deq", 1)
        real = real.replace("b = Deq", "qb = QuantizeLinear(xb, sb, zb)\n b = Deq", 1)
        real = real.replace("(y, sy, zy)", "(y, sy, zy)\n real = DequantizeLinear(q, sy, zy)")
        model = onnx.parser.parse_model(real)
        onnx.save(model, tmp_path / "m.onnx")
        executed = executed_operators(tmp_path / "m.onnx")
        added = next(node for node in executed.graph.node if node.op_type == "QLinearAdd")
        (zero,) = (t for t in executed.graph.initializer if t.name == added.input[2])
        assert zero.data_type == onnx.TensorProto.UINT8
        random = np.random.default_rng(seed)
        row = {name: random.uniform(-8, 8, (90, 70)).astype(np.float32) for name in ("xa", "xb")}
        expected = Session(model.SerializeToString()).run(row)["real"]
        graph = TorchGraph(model, integer_nodes(model, int8_kernels=False))
        assert np.array_equal(graph.run(row)["real"], expected)
