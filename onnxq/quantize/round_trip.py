"""Is what ships what was trained? Constants to the last bit, integers code for code.

Three comparisons, which together lead from the training graph to what ONNX Runtime executes:

1. every scale, zero point, weight and bias of the file is that of the training graph;
2. the graph computed on integers, as the kernels do, gives the runtime's codes on real samples;
3. the training graph in float32 gives those codes from the same codes before, but where a value
   lies in the middle between two: there the order of float32 sums decides.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.affine import dequantize
from onnxq.artifacts import CodeDifference, RoundTrip
from onnxq.errors import DataError
from onnxq.graph import WEIGHTED, constants_of
from onnxq.kernels import expected
from onnxq.qdq import DEQUANTIZE, QDQ, QUANTIZE
from onnxq.quantize.torch_graph import IntegerNodes, TorchGraph
from onnxq.quantize.torch_graph.trainable import MOVING
from onnxq.runtime import Session, with_outputs
from onnxq.shapes import infer_shapes

__all__ = ["integer_nodes", "prove_round_trip"]

Array = Shaped[np.ndarray, "..."]
_INT8_KERNELS = {"session.qdqisint8allowed": "1"}
_EXACT_PRODUCTS = {"session.x64quantprecision": "1"}  # also on x86 without VNNI
_NUMBERS: tuple[str, ...] = ("codes", "outputs", "outputs_differ", "ties", "levels_differ")
_TIE = 0.01  # steps from the middle between two codes; float32 sums are 1e-4 apart
_SAME_IN_FLOAT = MOVING | {  # operators that round once, or not: the same on every machine
    "Abs", "Add", "Cast", "Clip", "Div", "Max", "MaxPool", "Min", "Mul", "Neg", "Pad", "Relu",
    "ReduceMax", "ReduceMin", "Resize", "Sub", "Where",
}  # fmt: skip
_COARSE = {
    "Softmax": "takes 1 / scale as a whole number",
    "AveragePool": "adds real values up one by one",
}


def integer_nodes(model: onnx.ModelProto, *, int8_kernels: bool) -> IntegerNodes:
    """The nodes of a Q/DQ graph that ONNX Runtime computes on integers, by ``kernels.expected``.

    ``int8_kernels`` on ARM64, or with ``session.qdqisint8allowed=1``; else x86 turns int8 to uint8.
    """
    found = frozenset(
        str(node.outputs[0].name)
        for node in ir.from_proto(model).graph
        if node.op_type not in QDQ
        and expected(node, int8_fuses=int8_kernels).runs in ("integer", "folded")
    )
    return IntegerNodes(found, as_uint8=not int8_kernels)


def prove_round_trip(
    model: onnx.ModelProto,
    rows: Iterable[Mapping[str, Array]],
    trained: TorchGraph,
    given: Mapping[str, Array] | None = None,
) -> RoundTrip:
    """Compare the Q/DQ file ``model`` with the training graph that it was written from.

    ``trained`` has the file's Q and DQ nodes under their names; it may take weights, biases and
    scales from ``given``, or hold them as constants. ``rows`` are inputs of the graph, in real
    values. Where activations are int8, the kernels for int8 are proven, which run on ARM: on x86
    ONNX Runtime 1.31 cannot deliver the integers that it turns into uint8.
    Raises DataError without rows or where ``trained`` lacks one of the file's tensors.
    """
    missing = [name for name in _codes(model) if name not in trained.grids]
    if missing:
        raise DataError(
            f"the training graph does not quantize `{missing[0]}`",
            where="round trip",
            do="compare a file with the graph that it was written from",
        )
    proof = _Proof(model, trained, given or {})
    for row in rows:
        proof.add(row)
    if not proof.runs:
        raise DataError("there is no sample", where="round trip", do="give one at least")
    return proof.record()


@dataclass
class _Count:
    """What was found of one quantized tensor."""

    codes: int = 0
    largest: int = 0


@dataclass
class _Proof:
    model: onnx.ModelProto
    trained: TorchGraph
    given: Mapping[str, Array]
    runs: int = 0
    numbers: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_NUMBERS, 0))
    farthest: float = 0.0
    differing: dict[str, _Count] = field(default_factory=dict)
    untied: dict[str, _Count] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kinds = {str(array.dtype) for array in _zero_points(self.model).values()}
        self.int8 = "int8" in kinds
        config = _INT8_KERNELS if self.int8 else _EXACT_PRODUCTS
        self.nodes = integer_nodes(self.model, int8_kernels=self.int8)
        self.exact = TorchGraph(self.model, self.nodes)
        self.names = _codes(self.model)
        self.stored = constants_of(self.model)
        self.makers = {made: node for node in self.model.graph.node for made in node.output}
        self.outputs = [value.name for value in self.model.graph.output]
        inferred = infer_shapes(self.model, "round trip")
        every = [*self.outputs, *(name for name in self.names if name not in self.outputs)]
        shown = with_outputs(inferred, every).SerializeToString()
        self.shipped = Session(self.model.SerializeToString(), config=config)
        self.full = Session(shown, config=config)
        self.plain = Session(shown, optimization="none")
        self.constants: tuple[int, tuple[str, ...]] | None = None

    def add(self, row: Mapping[str, Array]) -> None:
        """Compare one run."""
        if self.constants is None:
            self.constants = self._compared_constants(row)
        shipped, full, plain = (s.run(row) for s in (self.shipped, self.full, self.plain))
        exact = self.exact.run(row, self.names)
        for name in self.outputs:
            apart = exact[name] != shipped[name]
            self.numbers["outputs"] += apart.size
            self.numbers["outputs_differ"] += int(apart.sum())
        for name in self.names:
            steps = _steps(exact[name], full[name])
            self.numbers["codes"] += steps.size
            self.numbers["levels_differ"] += int(np.count_nonzero(full[name] != plain[name]))
            _note(self.differing, name, steps[steps > 0])
        self._count_ties(row, full)
        self.runs += 1

    def _count_ties(self, row: Mapping[str, Array], full: Mapping[str, Array]) -> None:
        """Where the training graph, of the runtime's codes before, gives another code."""
        instead = {name: full[name] for name in self.names}
        grids = {name: self.trained.grids[name] for name in self.names}
        wanted = [*self.names, *(name for grid in grids.values() for name in grid[:2])]
        found = self.trained.run({**row, **self.given}, wanted, instead)
        for name in self.names:
            steps = _steps(found[name], full[name])
            value, scale = (found[each].astype(np.float64) for each in grids[name][:2])
            place, apart = (value / scale)[steps > 0], steps[steps > 0]
            away = np.abs(place - np.floor(place) - 0.5) + apart - 1
            self.numbers["ties"] += int(np.count_nonzero(away <= _TIE))
            self.farthest = max(self.farthest, float(away[away <= _TIE].max(initial=0)))
            _note(self.untied, name, apart[away > _TIE])

    def _compared_constants(self, row: Mapping[str, Array]) -> tuple[int, tuple[str, ...]]:
        """How many constants there are, and which are not those of the training graph."""
        pairs = {name: (name, array) for name, array in _dequantized(self.model).items()}
        zeros, scales = _zero_points(self.model), _scales(self.model)
        for codes, (_, scale, zero) in self.trained.grids.items():
            if codes in scales:
                pairs[f"scale of {codes}"] = (scale, scales[codes])
                if zero:
                    pairs[f"zero point of {codes}"] = (zero, zeros[codes])
        found = self.trained.run({**row, **self.given}, [name for name, _ in pairs.values()])
        differ = tuple(
            what
            for what, (name, array) in pairs.items()
            if not np.array_equal(found[name].reshape(array.shape), array)
        )
        return len(pairs), differ

    def record(self) -> RoundTrip:
        """All that was found."""
        constants, differ = self.constants or (0, ())
        differing, untied = (
            tuple(
                CodeDifference(
                    tensor=name, codes=count.codes, largest_step=count.largest, reason=why(name)
                )
                for name, count in counts.items()
            )
            for counts, why in (
                (self.differing, self._why),
                (self.untied, lambda name: self._why(name, trained=True)),
            )
        )
        return RoundTrip(
            runs=self.runs,
            tensors=len(self.names),
            constants=constants,
            constants_differ=differ,
            differing=differing,
            farthest_tie=self.farthest,
            approximated=untied,
            int8_kernels=self.int8,
            **self.numbers,
        )

    def _why(self, name: str, *, trained: bool = False) -> str:
        """Why a tensor differs: what is before it, float32, or nothing that is known.

        With ``trained`` of the training graph in float32, whose codes before are the runtime's.
        """
        between = list(self._before(name))
        for node in [] if trained else between:
            if node.op_type == QUANTIZE and node.output[0] in self.differing:
                return f"`{node.output[0]}`, which it is computed of, differs"
        for node in between:
            what = f"{node.op_type} `{node.name or node.output[0]}`"
            if node.op_type in QDQ:
                continue
            if node.output[0] in self.nodes.outputs:
                if trained and node.op_type in _COARSE:
                    return f"the integer kernel of {what} {_COARSE[node.op_type]}"
            elif node.op_type in WEIGHTED and node.input[1] in self.stored:
                return f"{what} has float weights, which ONNX Runtime rounds to int8 at load"
            elif node.op_type not in _SAME_IN_FLOAT:
                return f"{what} runs in float32, and its last bits are another library's"
        return "not known"

    def _before(self, name: str) -> Iterator[onnx.NodeProto]:
        """The nodes between a Q and the Qs before it, those included."""
        waiting = [self.makers[name].input[0]]
        while waiting:
            node = self.makers.get(waiting.pop())
            if node is None:
                continue
            yield node
            if node.op_type != QUANTIZE:
                waiting += node.input


def _note(counts: dict[str, _Count], name: str, steps: Shaped[np.ndarray, " codes"]) -> None:
    if steps.size:
        count = counts.setdefault(name, _Count())
        count.codes += int(steps.size)
        count.largest = max(count.largest, int(steps.max()))


def _steps(one: Array, other: Array) -> Shaped[np.ndarray, "..."]:
    return np.abs(one.astype(np.int64) - other.astype(np.int64))


def _codes(model: onnx.ModelProto) -> list[str]:
    """What every QuantizeLinear of an activation makes."""
    constants = constants_of(model)
    return [
        node.output[0]
        for node in model.graph.node
        if node.op_type == QUANTIZE and node.input[0] not in constants
    ]


def _scales(model: onnx.ModelProto) -> dict[str, Array]:
    return _of_quantizers(model, 1)


def _zero_points(model: onnx.ModelProto) -> dict[str, Array]:
    return _of_quantizers(model, 2)


def _of_quantizers(model: onnx.ModelProto, number: int) -> dict[str, Array]:
    """An argument of every QuantizeLinear that has it, by the codes that are made."""
    constants = constants_of(model)
    return {
        node.output[0]: constants[node.input[number]]
        for node in model.graph.node
        if node.op_type == QUANTIZE and len(node.input) > number and node.input[number]
    }


def _dequantized(model: onnx.ModelProto) -> dict[str, Array]:
    """The weights and biases that the file's integers stand for, by the output of their DQ."""
    constants = dict(constants_of(model))
    found = {}
    for node in model.graph.node:
        if node.op_type == "Cast" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]].astype(np.int8)
        if node.op_type != DEQUANTIZE or node.input[0] not in constants:
            continue
        integers, scale = constants[node.input[0]], constants[node.input[1]]
        zero = [*(constants[name] for name in node.input[2:]), np.zeros_like(scale, np.int8)][0]
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if dim == axis % integers.ndim else 1 for dim in range(integers.ndim)]
        shape = shape if scale.size > 1 else [1] * integers.ndim
        found[node.output[0]] = dequantize(
            integers, scale.reshape(shape), zero.astype(np.int64).reshape(shape)
        )
    return found
