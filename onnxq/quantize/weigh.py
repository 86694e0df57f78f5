"""What computing an elementwise operator on integers saves, against the noise that it adds.

Told from the graph, the target's measured prices and the ranges; where a target has no prices (an
NPU, on which a float operator halts the hardware) integers are demanded, and nothing is weighed.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from onnxq.artifacts import Finding, TensorRange
from onnxq.gates import HardSwish, Swish, gates_of
from onnxq.graph import constant_of, dims_of, macs_of
from onnxq.placement import data_inputs, float_reasons
from onnxq.recipe import Elementwise
from onnxq.target import Target

__all__ = ["Run", "Weighing", "runs_of", "weigh"]

PERCENT_FOR_A_DECIBEL = 5.0  # of the time, that one decibel at the network's outputs is worth
_STEPS = 255
_SLOPES = {"Sigmoid": 0.25, "Softmax": 0.25}  # of the output over the input, at most


@dataclass(frozen=True)
class Run:
    """Operators that are integer or float together, in their order: a gated activation with the
    sums and products behind it, or one operator. ``loss`` is the noise that rounding inside adds,
    as a multiple of what rounding its input and its result makes anyway."""

    name: str
    nodes: tuple[ir.Node, ...]
    loss: float
    gate: HardSwish | Swish | None = None

    @property
    def result(self) -> ir.Value:
        """What the last operator gives."""
        return self.nodes[-1].outputs[0]


@dataclass(frozen=True)
class Weighing:
    """Nodes that stay float with the reason, and what was found on the way."""

    reasons: dict[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def weigh(
    model: ir.Model,
    target: Target,
    ranges: Mapping[str, TensorRange],
    exclude: Mapping[str, str],
    choice: Elementwise,
) -> Weighing:
    """Which elementwise operators stay float, beside those that ``exclude`` and the target name.

    ``choice: weigh`` leaves those float that are no faster on integers, or whose noise is not worth
    the time saved; ``integer`` leaves none, ``float`` all. Noise of one run is taken for one share
    of that of all layers, all of them alike.
    """
    nodes = [node for node in model.graph if node.op_type != "Constant"]
    if choice == "integer" or (choice == "weigh" and not target.prices):
        return Weighing()
    left = float_reasons(nodes, target, exclude)
    runs = runs_of([node for node in nodes if str(node.name) not in left], ranges)
    if choice == "float":
        return Weighing(_named(runs, "elementwise operators are asked to stay float"))
    clock = _Clock(nodes, target, set(left))
    layers = sum(macs_of(node) > 0 and str(node.name) not in left for node in nodes)
    if not layers:  # what is left has no noise to compare with, and may be all there is
        return Weighing()
    reasons: dict[str, str] = {}
    kept: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        if clock.fuses_anyway(run):
            continue
        saved, noise = 100 * clock.saved(run) / clock.whole, run.loss / layers
        if saved > 0 and saved >= PERCENT_FOR_A_DECIBEL * _db(noise):
            kept.setdefault(run.name, []).append((saved, noise))
            continue
        clock.floats |= {str(node.name) for node in run.nodes}
        reasons |= _named([run], _reason(run, target, saved, noise))
    return Weighing(reasons, tuple(_kept(name, pairs, target) for name, pairs in kept.items()))


def _named(runs: Sequence[Run], reason: str) -> dict[str, str]:
    return {str(node.name): reason for run in runs for node in run.nodes}


def _db(noise: float) -> float:
    """Decibels of SQNR that are lost where the noise grows by ``noise`` of itself."""
    return 10 * math.log10(1 + noise)


def _reason(run: Run, target: Target, saved: float, noise: float) -> str:
    what = f"{run.name} of {len(run.nodes)} operators" if run.gate else run.name
    if saved <= 0:
        return f"{what} is no faster on integers on {target.name}: {-saved:.2g} % of the time more"
    return (
        f"{what} stays float for {target.name}: integers would save {saved:.2g} % of the time and "
        f"cost {_db(noise):.2g} dB"
    )


def _kept(name: str, pairs: Sequence[tuple[float, float]], target: Target) -> Finding:
    saved, noise = (sum(column) for column in zip(*pairs, strict=True))
    return Finding(
        where=f"{len(pairs)} × {name}",
        what=f"on integers for {target.name}: an estimated {saved:.2g} % of the time saved, and "
        f"{_db(noise):.2g} dB lost",
        do="nothing; `quantize: {elementwise: float}` keeps them, and all like them, float",
    )


# --- what belongs together ----------------------------------------------------------------------


def runs_of(nodes: Sequence[ir.Node], ranges: Mapping[str, TensorRange]) -> list[Run]:
    """Runs among ``nodes``, those that would be integer; each node is in one run at most."""
    known, taken = set(nodes), set[ir.Node]()
    runs = []
    for gate in gates_of(nodes):
        if known.issuperset(gate.nodes):
            chain = (*gate.nodes, *_behind(gate.nodes[-1], known))
            taken |= set(chain)
            runs.append(Run(gate.name, chain, _loss_of_gate(gate, chain, ranges), gate))
    for node in nodes:
        if node not in taken and node.op_type in _ELEMENTWISE:
            runs.append(Run(node.op_type, (node,), _loss_of(node, known, ranges)))
    order = {node: index for index, node in enumerate(nodes)}
    return sorted(runs, key=lambda run: order[run.nodes[-1]])


_ELEMENTWISE = frozenset(
    {"Add", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid", "Softmax"}
)


def _behind(node: ir.Node, known: Collection[ir.Node]) -> Iterator[ir.Node]:
    """Sums and products with constants that alone read what is before them."""
    while True:
        value = node.outputs[0]
        uses = tuple(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return
        node = uses[0].node
        constant = any(constant_of(operand) is not None for operand in node.inputs)
        if node not in known or node.op_type not in {"Add", "Mul"} or not constant:
            return
        yield node


def _loss_of_gate(
    gate: HardSwish | Swish, chain: Sequence[ir.Node], ranges: Mapping[str, TensorRange]
) -> float:
    """Rounding of the gate, and of every result but the last, over that of input and last."""
    seen = ranges.get(str(gate.data.name))
    low, high = (seen.range.low, seen.range.high) if seen else (0.0, 0.0)
    low = max(low, gate.lowest)
    if high <= low:
        return 0.0
    ends = (-gate.offset, gate.height - gate.offset) if isinstance(gate, HardSwish) else (low, high)
    first, last = max(low, ends[0]), min(high, ends[1])
    share = max(last - first, 0.0) / (high - low)  # of the input's range where the gate moves
    square = (first**2 + first * last + last**2) / 3  # of the input there, spread evenly
    height = gate.height if isinstance(gate, HardSwish) else 1.0
    inside = share * square * (height / _STEPS) ** 2
    inside += sum(_step(node.outputs[0], ranges) ** 2 for node in chain[len(gate.nodes) - 1 : -1])
    stays = (height * (high - low) / _STEPS) ** 2 + _step(chain[-1].outputs[0], ranges) ** 2
    return inside / stays


def _loss_of(node: ir.Node, known: Collection[ir.Node], ranges: Mapping[str, TensorRange]) -> float:
    """Rounding of the result over that of the inputs, unless it is rounded for others anyway."""
    result = node.outputs[0]
    if result.is_graph_output() or any(use.node in known for use in result.uses()):
        return 0.0
    slope = _SLOPES.get(node.op_type, 1.0)
    given = sum((slope * _step(value, ranges)) ** 2 for value in data_inputs(node))
    return _step(result, ranges) ** 2 / given if given else 0.0


def _step(value: ir.Value, ranges: Mapping[str, TensorRange]) -> float:
    seen = ranges.get(str(value.name))
    return seen.range.width / _STEPS if seen is not None else 0.0


# --- time ---------------------------------------------------------------------------------------


class _Clock:
    """Estimated time of nodes, in picoseconds; ``floats`` are the names of those that are float."""

    def __init__(self, nodes: Sequence[ir.Node], target: Target, floats: set[str]) -> None:
        self.prices = {price.op: price for price in target.prices}
        self.target, self.floats = target, floats
        self.whole = max(sum(self._of(node, str(node.name) in floats) for node in nodes), 1.0)

    def saved(self, run: Run) -> float:
        """By how much the run is faster on integers, with the Q and DQ that each way needs."""
        inside = set(run.nodes)
        given = {
            value: _elements(value)
            for node in run.nodes
            for value in data_inputs(node)
            if constant_of(value) is None and value.producer() not in inside
        }
        from_float = sum(n for value, n in given.items() if not self._is_made_of_integers(value))
        from_integers = sum(given.values()) - from_float
        size = _elements(run.result)
        readers = list(self._readers(run.result))
        to_float = run.result.is_graph_output() or any(self._is_float(node) for node in readers)
        to_integers = any(not self._is_float(node) for node in readers)
        into, out_of = self._price("QuantizeLinear"), self._price("DequantizeLinear")
        integer = sum(self._of(node, False) for node in run.nodes)
        integer += into * from_float + out_of * size * to_float
        plain = sum(self._of(node, True) for node in run.nodes)
        plain += out_of * from_integers + into * size * to_integers
        return plain - integer

    def fuses_anyway(self, run: Run) -> bool:
        """Whether a single operator stands between a DQ and a Q that its neighbours need: the
        runtime then computes it on integers whatever a plan says."""
        if len(run.nodes) > 1:
            return False
        given = [value for value in data_inputs(run.nodes[0]) if constant_of(value) is None]
        return all(self._is_made_of_integers(value) for value in given) and any(
            not self._is_float(node) for node in self._readers(run.result)
        )

    def _of(self, node: ir.Node, is_float: bool) -> float:
        macs = macs_of(node)
        price = self.prices.get("Conv" if macs else node.op_type)
        if price is None:
            return 0.0
        if macs:
            return macs * (price.on_integers or 0.0)
        if node.op_type in self.target.folded_ops and not is_float:
            return 0.0
        each = price.in_float if is_float else price.on_integers
        return (each or price.in_float or 0.0) * max(
            _elements(value) for value in (*data_inputs(node), *node.outputs)
        )

    def _price(self, op: str) -> float:
        price = self.prices.get(op)
        return (price.in_float or 0.0) if price is not None else 0.0

    def _is_float(self, node: ir.Node) -> bool:
        return str(node.name) in self.floats

    def _is_made_of_integers(self, value: ir.Value) -> bool:
        maker = value.producer()
        while maker is not None and maker.op_type in self.target.data_ops:
            source = maker.inputs[0]
            maker = source.producer() if source is not None else None
        return maker is not None and not self._is_float(maker)

    def _readers(self, value: ir.Value) -> Iterator[ir.Node]:
        for use in value.uses():
            if use.node.op_type in self.target.data_ops:
                for output in use.node.outputs:
                    yield from self._readers(output)
            else:
                yield use.node


def _elements(value: ir.Value | None) -> int:
    """Elements of a tensor, a free dimension counted as 1."""
    return math.prod(1 if dim is None else dim for dim in dims_of(value) or ())
