"""Random small graphs, made of what exporters write, and their comparison by ONNX Runtime."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxq.runtime import Session
from onnxq.splitting.loop_body import names_read

MOST_ELEMENTS = 2048
Shape = tuple[int, ...]
FLOAT = onnx.TensorProto.FLOAT


class Growing:
    """A graph that grows node by node; ``shapes`` are those of its float values."""

    def __init__(self, seed: int, opset: int = 17) -> None:
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        rank = int(self.rng.integers(2, 6))
        self.input = (1, *(int(n) for n in self.rng.integers(1, 7, rank - 1)))
        self.shapes: dict[str, Shape] = {"x": self.input}
        self.last = "x"

    def pick(self, items):
        return items[int(self.rng.integers(len(items)))]

    def chance(self, share: float = 0.5) -> bool:
        return bool(self.rng.random() < share)

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.ascontiguousarray(array)
        return name

    def weight(self, *shape: int) -> str:
        return self.constant(self.rng.uniform(-1, 1, shape).astype(np.float32))

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def add(self, op: str, *inputs: str, outputs: int = 1, **attributes) -> list[str]:
        """A node; its outputs' shapes are ONNX's own inference."""
        names = [f"v{len(self.nodes)}_{i}" for i in range(outputs)]
        node = helper.make_node(op, inputs, names, **attributes)
        types = {name: helper.make_tensor_type_proto(FLOAT, s) for name, s in self.shapes.items()}
        data = {}
        for name in inputs:
            if name in self.constants:
                tensor = numpy_helper.from_array(self.constants[name], name)
                types[name] = helper.make_tensor_type_proto(tensor.data_type, tensor.dims)
                data[name] = tensor
        schema = onnx.defs.get_schema(op, self.opset)
        made = onnx.shape_inference.infer_node_outputs(
            schema,
            node,
            {name: types[name] for name in inputs if name},
            data,
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        self.nodes.append(node)
        for name in names:
            self.shapes[name] = tuple(d.dim_value for d in made[name].tensor_type.shape.dim)
        return names

    def one(self, op: str, *inputs: str, **attributes) -> str:
        return self.add(op, *inputs, **attributes)[0]

    def reshape(self, value: str, shape: Shape) -> str:
        return self.one("Reshape", value, self.ints(*shape))

    def factors(self, value: str, rank: int) -> Shape:
        """The shape of ``value`` with another number of axes."""
        rest, shape = int(np.prod(self.shapes[value])), []
        for _ in range(rank - 1):
            divisors = [n for n in range(1, rest + 1) if rest % n == 0 and n <= 12]
            shape.append(self.pick(divisors))
            rest //= shape[-1]
        order = self.rng.permutation(rank)
        return tuple([*shape, rest][i] for i in order)

    def too_large(self, value: str) -> bool:
        return int(np.prod(self.shapes[value])) > MOST_ELEMENTS

    def grow(self, steps: int) -> "Growing":
        while steps:
            production = self.pick(PRODUCTIONS)
            before = len(self.nodes), dict(self.shapes)
            value = production(self, self.last)
            if value is None or not 1 < len(self.shapes[value]) < 6 or self.too_large(value):
                del self.nodes[before[0] :]
                self.shapes = before[1]
                continue
            self.last = value
            steps -= 1
        return self

    def model(self) -> onnx.ModelProto:
        """With the last value as output, and now and then one from inside."""
        outputs = [self.last]
        inner = [name for name in self.shapes if name not in ("x", self.last)]
        if inner and self.chance(0.2):
            outputs.append(self.pick(inner))
        used = set(names_read(self.nodes))
        graph = helper.make_graph(
            self.nodes,
            "g",
            [helper.make_tensor_value_info("x", FLOAT, self.input)],
            [helper.make_tensor_value_info(name, FLOAT, self.shapes[name]) for name in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in used],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        onnx.checker.check_model(model, full_check=True)
        return model


# --- productions: each adds to the graph, or gives None where the value does not suit it --------


def convolution(g: Growing, v: str) -> str | None:
    _, channels, *space = shape = g.shapes[v]
    if len(shape) not in (3, 4):
        return None
    kernel = [int(g.rng.integers(1, 4)) for _ in space]
    dilation = [int(g.rng.integers(1, 3)) for _ in space]
    stride = [int(g.rng.integers(1, 3)) for _ in space]
    pads = [int(g.rng.integers(0, 2)) for _ in range(2 * len(space))]
    group = g.pick([n for n in range(1, channels + 1) if channels % n == 0])
    made = group * int(g.rng.integers(1, 4))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(n + pads[i] + pads[i + len(space)] < reach[i] for i, n in enumerate(space)):
        return None
    inputs = [v, g.weight(made, channels // group, *kernel)]
    if g.chance():
        inputs.append(g.weight(made))
    return g.one("Conv", *inputs, strides=stride, pads=pads, dilations=dilation, group=group)


def transposed_convolution(g: Growing, v: str) -> str | None:
    _, channels, *space = shape = g.shapes[v]
    if len(shape) not in (3, 4):
        return None
    kernel = [int(g.rng.integers(1, 4)) for _ in space]
    group = g.pick([n for n in range(1, channels + 1) if channels % n == 0])
    inputs = [v, g.weight(channels, int(g.rng.integers(1, 3)), *kernel)]
    stride = [int(g.rng.integers(1, 3)) for _ in space]
    grown = [int(g.rng.integers(0, s)) for s in stride]
    return g.one("ConvTranspose", *inputs, strides=stride, output_padding=grown, group=group)


def norm(g: Growing, v: str) -> str | None:
    if len(g.shapes[v]) < 2:
        return None
    channels = g.shapes[v][1]
    shift = g.weight(channels) if g.chance() else g.constant(np.zeros(channels, np.float32))
    mean = g.weight(channels) if g.chance() else g.constant(np.zeros(channels, np.float32))
    spread = g.constant(g.rng.uniform(0.5, 2, channels).astype(np.float32))
    return g.one("BatchNormalization", v, g.weight(channels), shift, mean, spread)


def linear(g: Growing, v: str) -> str | None:
    shape = g.shapes[v]
    if len(shape) < 2:
        return None
    made = int(g.rng.integers(1, 6))
    if len(shape) > 2 or g.chance(0.3):
        value = g.one("MatMul", v, g.weight(shape[-1], made))
        return g.one("Add", value, g.weight(made)) if g.chance() else value
    if g.chance():
        return g.one("Gemm", v, g.weight(made, shape[1]), g.weight(made), transB=1)
    return g.one("Gemm", v, g.weight(shape[1], made), alpha=0.5)


def activation(g: Growing, v: str) -> str:
    op = g.pick(["Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSwish", "Abs"])
    if op == "HardSwish" and g.opset < 14:
        return number(g, v)
    if op == "Clip":
        low, high = (g.constant(np.array(b, np.float32)) for b in (-0.5, 0.5))
        return g.one("Clip", v, low, high)
    return g.one(op, v)


def number(g: Growing, v: str) -> str:
    constant = g.constant(np.array(1.5, np.float32).reshape([1] * int(g.rng.integers(0, 2))))
    inputs = [v, constant] if g.chance() else [constant, v]
    return g.one(g.pick(["Add", "Mul", "Sub", "Max"]), *inputs)


def residual(g: Growing, v: str) -> str:
    return g.one(g.pick(["Add", "Mul"]), v, g.one("Tanh", v))


def pad(g: Growing, v: str) -> str | None:
    shape = g.shapes[v]
    pads = g.rng.integers(-2, 3, (2, len(shape)))
    pads[:, :1] = 0
    if (np.array(shape) + pads.sum(axis=0) < 1).any():
        return None
    if (np.array(shape) + np.minimum(pads, 0).sum(axis=0) < 1).any():
        return None
    inputs = [v, g.ints(*pads.ravel())]
    if g.chance():
        inputs.append(g.constant(np.array(0.5, np.float32)))
    return g.one("Pad", *inputs)


def einsum(g: Growing, v: str) -> str | None:
    shape = g.shapes[v]
    n = int(g.rng.integers(1, 5))
    b, c = shape[0], shape[1] if len(shape) > 1 else 1
    last = shape[-1]
    known = {
        2: [
            ("ij,jk->ik", (last, n)),
            ("kj,ij->ki", (n, last)),
            ("ij,j->ij", (last,)),
            ("ij,ij->i", (b, last)),
            ("ij,k->kij", (n,)),
            ("ij->ji", None),
        ],
        3: [
            ("bij,jk->bik", (last, n)),
            ("bij,bkj->bki", (b, n, last)),
            ("bij,bij->bi", shape),
            ("...j,kj->...k", (n, last)),
            ("bij,ik->bkj", (c, n)),
            ("bij->jbi", None),
        ],
        4: [
            ("bhqd,bhkd->bhqk", "self"),
            ("bcij,ck->bkij", (c, n)),
            ("bcij,cijk->kb", (*shape[1:], n)),
            ("bcij,bc->bcij", (b, c)),
            ("bcij,bcij->", shape),
        ],
    }
    if len(shape) not in known:
        return None
    equation, other = g.pick(known[len(shape)])
    if other is None:
        return g.one("Einsum", v, equation=equation)
    second = v if other == "self" else g.weight(*other)
    inputs = [second, v] if equation.startswith("kj") else [v, second]
    return g.one("Einsum", *inputs, equation=equation)


def shuffle(g: Growing, v: str) -> str:
    """Reshape, Transpose, Reshape, some of it of high rank."""
    value = g.reshape(v, g.factors(v, int(g.rng.integers(2, 8))))
    if g.chance(0.3):
        value = activation(g, value)
    rank = len(g.shapes[value])
    value = g.one("Transpose", value, perm=[int(i) for i in g.rng.permutation(rank)])
    if g.chance(0.3):
        inner = g.pick([activation, reduction, softmax, pieces, cut, residual, taken, joined])
        value = inner(g, value) or value
    return g.reshape(value, g.factors(value, int(g.rng.integers(2, 5))))


def one_axis_more_or_less(g: Growing, v: str) -> str:
    shape = g.shapes[v]
    ones = [axis for axis, n in enumerate(shape) if n == 1]
    if len(shape) > 2 and ones and g.chance():
        return g.one("Squeeze", v, g.ints(g.pick(ones)))
    if len(shape) < 5:
        return g.one("Unsqueeze", v, g.ints(int(g.rng.integers(len(shape) + 1))))
    return g.one("Flatten", v, axis=1)


def joined(g: Growing, v: str) -> str:
    return g.one("Concat", v, g.one("Relu", v), axis=int(g.rng.integers(-1, len(g.shapes[v]))))


def expand(g: Growing, v: str) -> str:
    shape = g.shapes[v]
    wide = tuple(int(g.rng.integers(1, 4)) if n == 1 else n for n in shape)
    if g.chance():
        wide = (int(g.rng.integers(1, 4)), *wide)
    value = g.one("Expand", v, g.ints(*wide))
    return value if g.chance() else g.one("Mul", value, g.weight(*wide))


def cut(g: Growing, v: str) -> str:
    shape = g.shapes[v]
    axis = int(g.rng.integers(len(shape)))
    start = int(g.rng.integers(shape[axis]))
    end = g.pick([shape[axis], 2**62, -1 if start < shape[axis] - 1 else shape[axis]])
    return g.one("Slice", v, g.ints(start), g.ints(end), g.ints(axis))


def taken(g: Growing, v: str) -> str | None:
    shape = g.shapes[v]
    axis = int(g.rng.integers(len(shape)))
    if len(shape) < 3:
        return None
    index = g.constant(np.array(int(g.rng.integers(shape[axis])), np.int64))
    return g.one("Gather", v, index, axis=axis)


def pieces(g: Growing, v: str) -> str | None:
    shape = g.shapes[v]
    even = [axis for axis, n in enumerate(shape) if n % 2 == 0]
    if not even:
        return None
    parts = {"num_outputs": 2} if g.opset >= 18 else {}
    first, second = g.add("Split", v, outputs=2, axis=g.pick(even), **parts)
    return g.one(g.pick(["Add", "Sub"]), second, first)


def pool(g: Growing, v: str) -> str | None:
    space = g.shapes[v][2:]
    if len(g.shapes[v]) not in (3, 4):
        return None
    op = g.pick(["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"])
    if op.startswith("Global"):
        return g.one(op, v)
    kernel = [min(2, n) for n in space]
    return g.one(op, v, kernel_shape=kernel, strides=[int(g.rng.integers(1, 3)) for _ in space])


def reduction(g: Growing, v: str) -> str | None:
    rank = len(g.shapes[v])
    axes = sorted(int(a) for a in g.rng.permutation(rank)[: int(g.rng.integers(1, rank + 1))])
    keep = 1 if rank - len(axes) < 2 else int(g.chance())
    op = g.pick(["ReduceMean", "ReduceL2", "ReduceMax", "ReduceSumSquare", "ReduceSum"])
    if op == "ReduceSum" or g.opset >= 18:
        return g.one(op, v, g.ints(*axes), keepdims=keep)
    return g.one(op, v, axes=axes, keepdims=keep)


def softmax(g: Growing, v: str) -> str:
    axis = int(g.rng.integers(-1, len(g.shapes[v])))
    if g.chance(0.3):
        return g.one("LpNormalization", v, axis=axis, p=g.pick([1, 2]))
    return g.one("Softmax", v, axis=axis)


def nothing(g: Growing, v: str) -> str:
    return g.one(g.pick(["Identity", "Dropout"]), v)


def patches(g: Growing, v: str) -> str | None:
    """A batch that the graph makes itself, and a convolution on it."""
    _, channels, *space = shape = g.shapes[v]
    many = [n for n in range(2, 5) if channels % n == 0]
    if len(shape) not in (3, 4) or shape[0] != 1 or not many:
        return None
    n = g.pick(many)
    value = convolution(g, g.reshape(v, (n, channels // n, *space)))
    if value is None or g.chance(0.3):
        return value
    value = pool(g, activation(g, value))
    return value if value is None else g.reshape(value, (1, -1, *g.shapes[value][2:]))


def loop(g: Growing, v: str) -> str | None:
    """A few runs of a layer on a state that keeps its shape; what is stacked is joined again."""
    shape, times = g.shapes[v], int(g.rng.integers(1, 4))
    n = len(g.nodes)
    dims, state = list(shape), f"s{n}"
    info = helper.make_tensor_value_info
    weight = g.weight(shape[-1], shape[-1])
    ends = (f"t{n}", f"r{n}")
    inside = [
        helper.make_node("Identity", [f"go{n}"], [f"on{n}"]),
        helper.make_node("MatMul", [state, weight], [f"m{n}"]),
        helper.make_node("Tanh", [f"m{n}"], [ends[0]]),
        helper.make_node("Sub", [ends[0], v if g.chance() else state], [ends[1]]),
    ]
    body = helper.make_graph(
        inside,
        f"body{n}",
        [
            info(f"i{n}", onnx.TensorProto.INT64, []),
            info(f"go{n}", onnx.TensorProto.BOOL, []),
            info(state, FLOAT, dims),
        ],
        [info(f"on{n}", onnx.TensorProto.BOOL, []), *(info(end, FLOAT, dims) for end in ends)],
    )
    count = g.constant(np.array(times))
    made, rows = f"v{n}_0", f"v{n}_1"
    g.nodes.append(helper.make_node("Loop", [count, "", v], [made, rows], body=body))
    g.shapes |= {made: shape, rows: (times, *shape)}
    if g.chance() or len(shape) > 4:
        return made
    sum_of_runs = g.one("ReduceSum", rows, g.ints(0), keepdims=0)
    return g.one("Add", made, sum_of_runs)


PRODUCTIONS: list[Callable[[Growing, str], str | None]] = [
    convolution, convolution, transposed_convolution, norm, norm, linear, activation, number,
    residual, pad, einsum, shuffle, shuffle, one_axis_more_or_less, joined, expand, cut, taken,
    pieces, pool, reduction, softmax, nothing, patches, loop,
]  # fmt: skip


def applied(model: onnx.ModelProto, rewrite: Callable[[ir.Model], int]) -> onnx.ModelProto:
    """The graph after a rewrite that is repeated until it finds nothing; it must end."""
    for _ in range(20):
        graph = ir.from_proto(onnx.shape_inference.infer_shapes(model, data_prop=True))
        if not rewrite(graph):
            return model
        model = ir.to_proto(graph)
        del model.graph.value_info[:]
    raise AssertionError("the rewrite finds something every time")


def assert_same_function(
    model: onnx.ModelProto, other: onnx.ModelProto, seed: int = 0, what: str = ""
) -> None:
    """ONNX Runtime, without optimization, gives the same for both: 1e-4, or 1e-5 of the largest."""
    left, right = (Session(m.SerializeToString(), optimization="none") for m in (model, other))
    rng = np.random.default_rng(seed)
    feeds = {
        value.name: rng.uniform(
            -1, 1, [d.dim_value or 2 for d in value.type.tensor_type.shape.dim]
        ).astype(np.float32)
        for value in model.graph.input
        if value.name in left.input_names
    }
    wanted, got = left.run(feeds), right.run(feeds)
    assert list(wanted) == list(got), what
    for name, array in wanted.items():
        assert array.shape == got[name].shape, f"{what}: {name}"
        limit = max(1e-4, 1e-5 * float(np.abs(array).max(initial=0)))
        np.testing.assert_allclose(got[name], array, rtol=0, atol=limit, err_msg=f"{what}: {name}")
