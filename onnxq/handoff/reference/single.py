"""Operators without a rule of their own, one node at a time, by the ONNX project's numpy reference.

Those that only move numbers are given the integers themselves; all others the reals, in float64.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from onnxq.errors import ModelError
from onnxq.handoff.reference.values import Array, Steps, Term, Value, one_scale, real, term_of

__all__ = ["MOVERS", "SingleNode"]

MOVERS = frozenset(
    {
        "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
        "Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose",
        "Unsqueeze",
    }
)  # fmt: skip


class SingleNode:
    """One node, run as numpy. Raises ModelError, naming it, if the reference does not know it."""

    def __init__(self, node: onnx.NodeProto, opset: int) -> None:
        self._node = node
        self._moves = node.op_type in MOVERS
        names = list(dict.fromkeys(name for name in node.input if name))
        values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in names]
        outputs = [
            onnx.helper.make_tensor_value_info(name, 1, None) for name in node.output if name
        ]
        graph = onnx.helper.make_graph([node], "one", values, outputs)
        try:
            self._run = ReferenceEvaluator(graph, opsets={"": opset})
        except Exception as fault:  # what it raises for an unknown operator shares no base
            raise self._refusal("has no integer rule and no numpy reference") from fault

    def __call__(self, inputs: Sequence[Value | None]) -> list[Value]:
        """All outputs. Raises ModelError, naming the node, if the operator fails on them."""
        first = inputs[0] if inputs else None
        if self._moves and isinstance(first, Steps):
            return self._moved(first, inputs[1:])
        if self._moves:
            return list(self._outputs(inputs))
        return list(self._outputs([None if value is None else real(value) for value in inputs]))

    def _moved(self, data: Steps, rest: Sequence[Value | None]) -> list[Value]:
        """Numbers moved term by term; a scale that differs from element to element moves along."""
        moved: list[list[Term]] = []
        for term in data.terms:
            whole = np.broadcast_to(term.numbers, data.shape)
            parts = self._outputs([whole, *rest])
            if one_scale(Steps((term,))) is not None:
                scales = [term.scale.reshape((1,) * part.ndim) for part in parts]
            else:
                scales = self._outputs([np.broadcast_to(term.scale, data.shape).copy(), *rest])
            moved.append([term_of(*pair) for pair in zip(parts, scales, strict=True)])
        return [Steps(tuple(terms), data.low, data.high) for terms in zip(*moved, strict=True)]

    def _outputs(self, inputs: Sequence[Value | None]) -> list[Array]:
        feeds = {
            name: value if not isinstance(value, Steps) else real(value)
            for name, value in zip(self._node.input, inputs, strict=False)
            if name and value is not None
        }
        try:
            return [np.asarray(array) for array in self._run.run(None, feeds)]
        except Exception as fault:  # see above
            raise self._refusal(f"cannot be computed by numpy: {fault}") from fault

    def _refusal(self, what: str) -> ModelError:
        return ModelError(
            f"{what}",
            where=f"{self._node.op_type} `{self._node.name or self._node.output[0]}`",
            do="compare its layers with ONNX Runtime's integers (layers.npz) alone",
        )
