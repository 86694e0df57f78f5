import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.errors import ExportError, UsageError
from onnxq.export.clean import REWRITES, TARGET_REWRITES, clean, cleaning
from onnxq.target import load_target, target_names

from .networks import graph, operators, random


def assert_same(model: onnx.ModelProto, cleaned: onnx.ModelProto, **feeds: np.ndarray) -> None:
    expected = ReferenceEvaluator(model).run(None, feeds)
    got = ReferenceEvaluator(cleaned).run(None, feeds)
    for left, right in zip(expected, got, strict=True):
        assert left.shape == right.shape
        np.testing.assert_allclose(left, right, atol=1e-6)


def small() -> onnx.ModelProto:
    """A graph with a Constant, an Identity, a Dropout, a dead node and an unread constant."""
    return graph(
        "g (float[1,3,6,6] x) => (float[1,4] y) {"
        "i = Identity(x)\n"
        "c = Conv(i, w, b)\n"
        "dead = Relu(c)\n"
        "r = Relu(c)\n"
        "d = Dropout(r)\n"
        "p = ReduceMean<axes = [2, 3], keepdims = 0>(d)\n"
        "two = Constant<value = float {2.0}>()\n"
        "y = Mul(p, two) }",
        w=random(4, 3, 3, 3),
        b=random(4),
        unread=random(99),
    )


def test_the_canonical_form_computes_the_same_with_fewer_nodes():
    model = small()
    cleaned, steps = clean(model)
    assert operators(cleaned) == ["Conv", "Relu", "GlobalAveragePool", "Flatten", "Mul"]
    assert_same(model, cleaned, x=random(1, 3, 6, 6))
    assert steps[1] == "made GlobalAveragePool of 1 ReduceMean"


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("d = Dropout(x)\ny = Relu(d)", ["Relu"]),
        ("d, m = Dropout(x, share)\ny = Relu(d)", ["Relu"]),
        ("d = Dropout(x, share, no)\ny = Relu(d)", ["Relu"]),
        ("y = Dropout(x, share, no)", ["Identity"]),
        ("d = Dropout(x, share, yes)\ny = Relu(d)", ["Dropout", "Relu"]),
    ],
)
def test_a_dropout_is_dropped_unless_it_trains(body, left):
    known = {"share": np.float32(0.5), "no": np.array(False), "yes": np.array(True)}
    used = {name: np.array(value) for name, value in known.items() if name in body}
    model = graph(f"g (float[4] x) => (float[4] y) {{ {body} }}", **used)
    cleaned, _ = clean(model)
    assert operators(cleaned) == left
    if "yes" not in body:
        assert_same(model, cleaned, x=random(4))


def test_a_rewrite_that_there_is_not_is_corrected():
    with pytest.raises(UsageError, match="did you mean `conv1d to conv2d`"):
        clean(small(), rewrites=("conv1d to conv3d",))


def test_two_rewrites_that_undo_each_other_are_found_out(monkeypatch):
    def swap(graph_: ir.Model) -> int:
        """Relu → Abs, or Abs → Relu: one at a time, for ever."""
        found = [node for node in graph_.graph if node.op_type == "Relu"]
        for node in found:
            node.op_type = "Abs"
        return len(found)

    def back(graph_: ir.Model) -> int:
        found = [node for node in graph_.graph if node.op_type == "Abs"]
        for node in found:
            node.op_type = "Relu"
        return len(found)

    monkeypatch.setitem(TARGET_REWRITES, "swap", ("swapped {}", swap))
    monkeypatch.setitem(TARGET_REWRITES, "back", ("put back {}", back))
    with pytest.raises(ExportError, match="every one of 8 rounds"):
        clean(small(), rewrites=("swap", "back"))


def test_a_constant_output_of_another_shape_than_declared_is_an_error_of_ours():
    model = graph(
        "g (float[2] x) => (float[2] y, float[7] z) { y = Relu(x)\nz = Add(a, a) }", a=random(3)
    )
    with pytest.raises(ExportError, match="contradict"):
        clean(model)


def test_names_are_short_and_say_what_makes_the_tensor():
    cleaned, _ = clean(small())
    assert [node.name for node in cleaned.graph.node] == [
        "conv_1",
        "relu_1",
        "globalaveragepool_1",
        "flatten_1",
        "mul_1",
    ]
    assert {tensor.name for tensor in cleaned.graph.initializer} == {
        "conv_1.weight",
        "conv_1.bias",
        "mul_1.b",
    }
    assert [list(node.output) for node in cleaned.graph.node][:2] == [["conv_1"], ["relu_1"]]
    assert [value.name for value in cleaned.graph.input] == ["x"]
    assert [value.name for value in cleaned.graph.output] == ["y"]


def test_cleaning_leaves_its_input_alone_and_gives_the_same_bytes_every_time():
    model = small()
    before = model.SerializeToString(deterministic=True)
    first, second = (clean(model)[0].SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert model.SerializeToString(deterministic=True) == before


def test_what_is_clean_already_stays_as_it_is():
    cleaned, _ = clean(small())
    again, _ = clean(cleaned)
    assert again.SerializeToString(deterministic=True) == cleaned.SerializeToString(
        deterministic=True
    )


def test_a_small_file_holds_nothing_but_graph_and_weights():
    model = small()
    model.metadata_props.add(key="author", value="x" * 1000)
    model.graph.node[0].doc_string = "y" * 1000
    model.opset_import.add(domain="foreign", version=1)
    cleaned, _ = clean(model)
    weights = sum(len(tensor.raw_data) for tensor in cleaned.graph.initializer)
    assert cleaned.ByteSize() < weights + 700
    assert [entry.domain for entry in cleaned.opset_import] == [""]
    assert cleaned.ir_version == 8


def test_an_output_that_is_an_input_survives():
    model = graph("g (float[2] x) => (float[2] y, float[2] z) { y = Identity(x)\nz = Relu(x) }")
    cleaned, _ = clean(model)
    assert_same(model, cleaned, x=random(2))


@pytest.mark.parametrize(
    "body",
    [
        "y = Relu(x)\nz = Identity(y)",
        "z = Relu(x)\ny = Identity(z)",
        "y = Identity(x)\nz = Identity(x)",
        "a = Relu(x)\ny = Identity(a)\nz = Identity(a)",
        "y = Relu(x)\na = Unsqueeze(y, k)\nz = Squeeze(a, k)",
        "y = Relu(x)\na = Identity(c)\nz = Identity(a)",
    ],
)
def test_outputs_that_are_the_same_keep_their_names(body):
    used = {"k": np.array([0]), "c": random(2)}
    constants = {n: a for n, a in used.items() if f"{n})" in body and f"{n} = " not in body}
    model = graph(f"g (float[2] x) => (float[2] y, float[2] z) {{ {body} }}", **constants)
    cleaned, _ = clean(model)
    assert [value.name for value in cleaned.graph.output] == ["y", "z"]
    assert_same(model, cleaned, x=random(2))


def test_inputs_with_a_default_are_constants():
    model = graph("g (float[2,3] x, float[3] b) => (float[2,3] y) { y = Add(x, b) }", b=random(3))
    cleaned, _ = clean(model)
    assert [value.name for value in cleaned.graph.input] == ["x"]


def test_a_graph_input_may_be_called_like_a_node():
    model = graph("g (float[2] relu_1) => (float[2] y) { h = Relu(relu_1)\ny = Sqrt(h) }")
    cleaned, _ = clean(model)
    assert [node.name for node in cleaned.graph.node] == ["relu_2", "sqrt_1"]
    assert_same(model, cleaned, relu_1=random(2))


def test_several_outputs_of_a_node_are_numbered():
    model = graph("g (float[4] x) => (float[2] y) { a, b = Split(x)\nc = Mul(a, b)\ny = Sqrt(c) }")
    cleaned, _ = clean(model)
    assert list(cleaned.graph.node[0].output) == ["split_1.1", "split_1.2"]


def test_matmul_and_bias_become_gemm_even_with_a_free_batch():
    model = graph(
        "g (float[n,4] x) => (float[n,3] y) { h = MatMul(x, w)\ny = Add(b, h) }",
        w=random(4, 3),
        b=random(3),
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Gemm"]
    assert cleaned.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert_same(model, cleaned, x=random(5, 4))


def test_a_linear_layer_over_sequences_becomes_gemm_too():
    model = graph(
        "g (float[2,5,4] x) => (float[2,5,3] y) { h = MatMul(x, w)\ny = Add(h, b) }",
        w=random(4, 3),
        b=random(3),
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Reshape", "Gemm", "Reshape"]
    assert_same(model, cleaned, x=random(2, 5, 4))


@pytest.mark.parametrize(
    ("axes", "rank", "pooled"),
    [([2, 3], 4, True), ([-1, -2], 4, True), ([2], 3, True), ([3], 4, False), ([1, 2], 3, False)],
)
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("opset", [17, 18])
def test_only_the_mean_over_all_pixels_is_a_global_pool(axes, rank, pooled, keepdims, opset):
    shape = [2, 3, 4, 5][:rank]
    x = random(*shape)
    out = list(x.mean(axis=tuple(axes), keepdims=bool(keepdims)).shape)
    head = f'<ir_version: 8, opset_import: ["": {opset}]>'
    call = (
        f"ReduceMean<axes = {axes}, keepdims = {keepdims}>(x)"
        if opset < 18
        else f"ReduceMean<keepdims = {keepdims}>(x, a)"
    )
    constants = {} if opset < 18 else {"a": np.array(axes, np.int64)}
    model = graph(f"{head} g (float{shape} x) => (float{out} y) {{ y = {call} }}", **constants)
    cleaned, _ = clean(model)
    assert ("GlobalAveragePool" in operators(cleaned)) is pooled
    assert_same(model, cleaned, x=x)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("a = Reshape(x, s1)\ny = Reshape(a, s2)", ["Reshape"]),
        ("a = Flatten(x)\ny = Reshape(a, s2)", ["Reshape"]),
        ("a = Transpose<perm = [1, 0, 2]>(x)\ny = Transpose<perm = [1, 0, 2]>(a)", ["Identity"]),
        ("a = Reshape(x, s1)\nb = Flatten<axis = 0>(a)\ny = Reshape(b, s3)", ["Identity"]),
        ("a = Transpose<perm = [1, 0, 2]>(x)\ny = Transpose<perm = [0, 2, 1]>(a)", ["Transpose"]),
    ],
)
def test_chains_that_move_nothing_twice_become_one(body, expected):
    shapes = {"s1": np.array([6, 4]), "s2": np.array([4, 6]), "s3": np.array([2, 3, 4])}
    used = {name: array for name, array in shapes.items() if name in body}
    out = "[4,6]" if "s2" in body else "[2,3,4]" if expected == ["Identity"] else "[3,4,2]"
    model = graph(f"g (float[2,3,4] x) => (float{out} y) {{ {body} }}", **used)
    cleaned, _ = clean(model)
    assert operators(cleaned) == expected
    assert_same(model, cleaned, x=random(2, 3, 4))


def test_a_transpose_that_moves_no_element_becomes_a_reshape():
    model = graph(
        "g (float[2,3,1,1] x) => (float[2,3] y) {"
        "a = Transpose<perm = [0, 2, 3, 1]>(x)\ny = Reshape(a, s) }",
        s=np.array([2, 3]),
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Reshape"]
    assert_same(model, cleaned, x=random(2, 3, 1, 1))


def test_a_transpose_between_reshapes_stays():
    model = graph(
        "g (float[2,12] x) => (float[2,12] y) { a = Reshape(x, s)\n"
        "b = Transpose<perm = [0, 2, 1]>(a)\ny = Reshape(b, t) }",
        s=np.array([2, 3, 4]),
        t=np.array([2, 12]),
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == ["Reshape", "Transpose", "Reshape"]
    assert_same(model, cleaned, x=random(2, 12))


def test_every_step_leaves_a_graph_that_computes_the_same():
    model, x = small(), random(1, 3, 6, 6)
    steps = list(cleaning(model))
    assert len(steps) >= 3
    for step in steps:
        onnx.checker.check_model(step.model, full_check=True)
        assert_same(model, step.model, x=x)


def test_every_rewrite_counts_in_its_line():
    wanted = [line for line, _ in TARGET_REWRITES.values()]
    assert all(line.count("{}") == 1 for line in (*REWRITES, *wanted))


def test_every_rewrite_that_a_target_wants_is_one():
    for name in target_names():
        assert set(load_target(name).rewrites) <= set(TARGET_REWRITES)
    assert "conv1d to conv2d" in load_target("stm32n6").rewrites


@pytest.mark.parametrize(("kind", "expected"), [("float", ["Mul"]), ("int32", ["Cast", "Mul"])])
def test_a_cast_to_the_type_of_another_tensor_is_resolved(kind, expected):
    model = graph(
        f"g (float[2] x, {kind}[2] t) => (float[2] y) {{ c = CastLike(t, x)\ny = Mul(x, c) }}"
    )
    cleaned, _ = clean(model)
    assert operators(cleaned) == expected
    assert_same(model, cleaned, x=random(2), t=np.ones(2, np.float32 if kind == "float" else "i4"))


def test_attributes_at_their_default_are_dropped_and_others_kept():
    model = graph(
        "g (float[1,2,4,4] x) => (float[1,2,2,2] y) {"
        'y = MaxPool<auto_pad = "NOTSET", ceil_mode = 0, storage_order = 0, kernel_shape = [2, 2],'
        "strides = [2, 2]>(x) }"
    )
    cleaned, _ = clean(model)
    names = {attribute.name for attribute in cleaned.graph.node[0].attribute}
    assert names == {"kernel_shape", "strides"}
    assert_same(model, cleaned, x=random(1, 2, 4, 4))


@pytest.mark.parametrize(
    ("attributes", "whole"),
    [
        ("kernel_shape = [4, 6]", True),
        ("kernel_shape = [4, 6], strides = [4, 6]", True),
        ("kernel_shape = [2, 6]", False),
        ("kernel_shape = [4, 6], pads = [0, 0, 0, 1]", False),
    ],
)
def test_only_an_average_pool_over_the_whole_map_is_a_global_pool(attributes, whole):
    columns = 2 if "pads" in attributes else 1
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[2,3,4,6] x) => (float[2,3,{3 if "[2, 6]" in attributes else 1},{columns}] y)
        {{ y = AveragePool<{attributes}>(x) }}"""
    )
    cleaned, _ = clean(model)
    assert [node.op_type for node in cleaned.graph.node] == [
        "GlobalAveragePool" if whole else "AveragePool"
    ]
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    wanted, got = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (model, cleaned))
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_constants_that_folding_makes_equal_are_stored_once_and_cleaning_again_changes_nothing():
    norm = {name: random(4) ** 2 + 0.5 for name in ("scale", "shift", "mean", "spread")}
    model = graph(
        "g (float[1,3,6,6] x) => (float[1,4,4,4] y) {"
        "m = Neg(x)\n"
        "a = Conv(x, w)\n"
        "c = BatchNormalization(a, scale, shift, mean, spread)\n"
        "b = Conv(m, w)\n"
        "d = BatchNormalization(b, scale, shift, mean, spread)\n"
        "y = Add(c, d) }",
        w=random(4, 3, 3, 3),
        **norm,
    )
    once, _ = clean(model)
    assert len(once.graph.initializer) == 2
    assert clean(once)[0] == once
    assert_same(model, once, x=random(1, 3, 6, 6))
