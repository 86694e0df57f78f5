"""What is odd about a graph that computes what it should: inputs and weights without effect, and
operators that no rewrite could bring into a plainer form."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from jaxtyping import Shaped

from onnxq.artifacts import Finding
from onnxq.runtime import Session

__all__ = [
    "idle_inputs",
    "left_einsums",
    "lint",
    "shared_weights",
    "still_outputs",
    "unreachable_parameters",
]

Row = Mapping[str, Shaped[np.ndarray, "..."]]
_LARGE = 16  # elements from which a repeated constant is worth a word


def lint(model: onnx.ModelProto, rows: Sequence[Row]) -> tuple[Finding, ...]:
    """Findings about a graph; ``rows`` are inputs to try it on, at least two that differ."""
    session = Session(model.SerializeToString(), optimization="none")
    return (
        *idle_inputs(model, session, rows),
        *still_outputs(model, session, rows),
        *shared_weights(model),
        *left_einsums(model),
    )


def idle_inputs(model: onnx.ModelProto, session: Session, rows: Sequence[Row]) -> Iterator[Finding]:
    """Inputs that no output depends on: not connected, or without effect on any value tried."""
    connected = _ancestors(model)
    base = dict(rows[0])
    expected = session.run(base)
    for name, value in base.items():
        if name not in connected:
            yield Finding(
                where=f"input {name}",
                what="influences no output: nothing connects it to one",
                do="drop it from the network's forward, or mend the branch that should read it",
            )
        elif all(
            _equal(expected, session.run({**base, name: row[name]}))
            for row in rows
            if row[name].shape == value.shape
        ):
            yield Finding(
                where=f"input {name}",
                what=f"changed no output in {len(rows)} trials",
                do="check that its branch is not multiplied by zero or saturated",
            )


def _ancestors(model: onnx.ModelProto) -> set[str]:
    """Every tensor that a graph output is computed from."""
    needed = {value.name for value in model.graph.output}
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            needed |= set(node.input)
    return needed


def _equal(left: Row, right: Row) -> bool:
    return all(np.array_equal(left[name], right[name], equal_nan=True) for name in left)


def still_outputs(
    model: onnx.ModelProto, session: Session, rows: Sequence[Row]
) -> Iterator[Finding]:
    """Outputs that are the same for all inputs tried, whether or not they should be."""
    alike = [row for row in rows if all(row[n].shape == rows[0][n].shape for n in row)]
    results = [session.run(row) for row in alike]
    for value in model.graph.output:
        first = results[0][value.name]
        if len(results) > 1 and all(
            np.array_equal(first, result[value.name], equal_nan=True) for result in results
        ):
            yield Finding(
                where=f"output {value.name}",
                what=f"was the same for {len(results)} different inputs",
                do="check the checkpoint and the input domain: a dead network has no accuracy",
            )


def shared_weights(model: onnx.ModelProto) -> Iterator[Finding]:
    """Constants that several nodes read, and constants that are stored twice."""
    readers: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node.name)
    contents: dict[tuple[object, ...], str] = {}
    for tensor in model.graph.initializer:
        if np.prod(tensor.dims, dtype=np.int64) < _LARGE:
            continue
        users = readers.get(tensor.name, [])
        if len(users) > 1:
            yield Finding(where=tensor.name, what="is shared by " + ", ".join(users))
        content = onnx.numpy_helper.to_array(tensor)
        key = (tensor.data_type, *tensor.dims, content.tobytes())
        if key in contents:
            yield Finding(
                where=tensor.name,
                what=f"holds the same values as {contents[key]}",
                do="tie them in the network if they are meant to be one",
            )
        contents.setdefault(key, tensor.name)


def left_einsums(model: onnx.ModelProto) -> Iterator[Finding]:
    """Every Einsum that is no batched product of two matrices: it runs in float, if at all."""
    for node in model.graph.node:
        if node.op_type == "Einsum":
            equation = onnx.helper.get_node_attr_value(node, "equation").decode()
            yield Finding(
                where=node.name,
                what=f"the Einsum `{equation}` is no product of two matrices, and stays",
                do="write it with MatMul, Mul and sums in the network; it is not quantized",
            )


def unreachable_parameters(names: Sequence[str], elements: int) -> tuple[Finding, ...]:
    """A finding for the parameters of a network that its outputs do not depend on."""
    if not names:
        return ()
    listed = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        Finding(
            where="network",
            what=f"{elements:,} parameters in {len(names)} tensors reach no output: {listed}",
            do="mend the forward that should use them, or delete them",
        ),
    )
