"""Einsum as matrix products, judged by numpy's einsum and by ONNX Runtime's."""

from string import ascii_lowercase

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxq.export.clean import clean
from onnxq.export.lint import left_einsums
from onnxq.export.rewrites.einsum import einsum_to_matmul
from onnxq.runtime import Session

from .growing import applied, assert_same_function
from .networks import graph, operators, random

SIZES = dict(zip(ascii_lowercase, (2, 3, 4, 5, 2, 3, 4, 2), strict=False))


def of(equation: str, *shapes, made, constants=()) -> onnx.ModelProto:
    names = ["x", "w"][: len(shapes)] if len(shapes) < 3 else ["x", "w", "z"]
    fed = ", ".join(
        f"float{list(shape)} {name}"
        for name, shape in zip(names, shapes, strict=True)
        if name not in constants
    )
    arrays = {n: random(*s) for n, s in zip(names, shapes, strict=True) if n in constants}
    text = f'y = Einsum<equation = "{equation}">({", ".join(names)})'
    return graph(f"g ({fed}) => (float{list(made)} y) {{ {text} }}", **arrays)


def assert_numpy_agrees(model: onnx.ModelProto, other: onnx.ModelProto, equation: str) -> None:
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    feeds = {
        value.name: random(*[d.dim_value for d in value.type.tensor_type.shape.dim], seed=i)
        for i, value in enumerate(model.graph.input)
    }
    values = [(feeds | constants)[name] for name in model.graph.node[0].input]
    expected = np.einsum(equation, *(value.astype(np.float64) for value in values))
    got = Session(other.SerializeToString(), optimization="none").run(feeds)["y"]
    np.testing.assert_allclose(got, expected, atol=1e-5)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_every_product_of_two_that_sums_over_shared_indices_is_a_matrix_product(data):
    kinds = {
        letter: data.draw(st.sampled_from(["batch", "summed", "row", "column"]))
        for letter in "abcdef"[: data.draw(st.integers(1, 6))]
    }
    left = data.draw(st.permutations([i for i, k in kinds.items() if k != "column"]))
    right = data.draw(st.permutations([i for i, k in kinds.items() if k != "row"]))
    result = data.draw(st.permutations([i for i, k in kinds.items() if k != "summed"]))
    equation = f"{''.join(left)},{''.join(right)}->{''.join(result)}"
    shapes = [[SIZES[i] for i in letters] for letters in (left, right)]
    constant = data.draw(st.sampled_from([(), ("x",), ("w",)]))
    if min(map(len, shapes)) == 0:
        return
    model = of(equation, *shapes, made=[SIZES[i] for i in result], constants=constant)
    rewritten = applied(model, einsum_to_matmul)
    assert set(operators(rewritten)) <= {"MatMul", "Mul", "Reshape", "Transpose"}
    assert_numpy_agrees(model, rewritten, equation)
    assert_same_function(model, rewritten)


@pytest.mark.parametrize(
    ("equation", "shapes", "made", "expected"),
    [
        ("bld,hd->blh", [(2, 3, 4), (5, 4)], (2, 3, 5), ["Reshape", "Gemm", "Reshape"]),
        ("hd,bd->bh", [(5, 4), (2, 4)], (2, 5), ["MatMul"]),
        ("...d,dh->...h", [(2, 3, 4), (4, 5)], (2, 3, 5), None),
    ],
)
def test_a_constant_operand_becomes_the_second_one_in_its_final_order(
    equation, shapes, made, expected
):
    constant = "x" if equation.startswith("hd") else "w"
    model = of(equation, *shapes, made=made, constants=(constant,))
    rewritten = applied(model, einsum_to_matmul)
    product = next(node for node in rewritten.graph.node if node.op_type == "MatMul")
    assert product.input[1] in {tensor.name for tensor in rewritten.graph.initializer}
    assert "Transpose" not in operators(rewritten)
    assert_numpy_agrees(model, rewritten, equation)


@pytest.mark.parametrize(
    ("equation", "shapes", "made"),
    [
        ("bhqd,bhkd->bhqk", [(1, 2, 3, 4), (1, 2, 5, 4)], (1, 2, 3, 5)),
        ("bhqk,bhkd->bqhd", [(1, 2, 3, 5), (1, 2, 5, 4)], (1, 3, 2, 4)),
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)], None),
        ("ij,ij", [(2, 3), (2, 3)], ()),
        ("...ij,...jk->...ik", [(2, 2, 3, 4), (2, 2, 4, 5)], (2, 2, 3, 5)),
        ("b i j , b j -> b i", [(2, 3, 4), (2, 4)], (2, 3)),
    ],
)
def test_equations_as_people_write_them(equation, shapes, made):
    made = made if made is not None else np.einsum(equation, *map(np.ones, shapes)).shape
    model = of(equation, *shapes, made=made)
    rewritten = applied(model, einsum_to_matmul)
    assert "Einsum" not in operators(rewritten)
    assert_numpy_agrees(model, rewritten, equation)


def test_a_permutation_of_one_operand_is_a_transpose():
    model = of("bij->jbi", (2, 3, 4), made=(4, 2, 3))
    assert operators(applied(model, einsum_to_matmul)) == ["Transpose"]
    assert_same_function(model, applied(model, einsum_to_matmul))


@pytest.mark.parametrize(
    ("equation", "shapes", "made"),
    [
        ("ii->i", [(3, 3)], (3,)),
        ("ij->i", [(2, 3)], (2,)),
        ("ijk,jl->il", [(2, 3, 4), (3, 5)], (2, 5)),
        ("ij,jk,kl->il", [(2, 3), (3, 4), (4, 5)], (2, 5)),
        ("ij,jk->ik", [(2, 1), (3, 4)], (2, 4)),
    ],
)
def test_what_is_no_product_of_two_matrices_is_left_with_a_finding(equation, shapes, made):
    model = of(equation, *shapes, made=made)
    assert einsum_to_matmul(ir.from_proto(model)) == 0
    cleaned, _ = clean(model)
    assert [equation in finding.what for finding in left_einsums(cleaned)] == [True]


def test_one_free_dimension_is_a_view_and_two_are_not():
    one = graph(
        'g (float[n,3,4] x) => (float[n,3,5] y) { y = Einsum<equation = "bld,dh->blh">(x, w) }',
        w=random(4, 5),
    )
    assert "MatMul" in operators(applied(one, einsum_to_matmul))
    assert_same_function(one, applied(one, einsum_to_matmul))
    two = graph(
        'g (float[n,m,4] x) => (float[n,m,5] y) { y = Einsum<equation = "bld,dh->blh">(x, w) }',
        w=random(4, 5),
    )
    assert einsum_to_matmul(ir.from_proto(two)) == 0
