"""What refine steps work on: a float graph with the parameters that it will be quantized with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.errors import QuantizationError
from onnxq.graph import constant_of
from onnxq.progress import Progress
from onnxq.qtypes import IntType
from onnxq.quantize.plan import Plan, WeightParameters
from onnxq.quantize.qdq import insert_qdq
from onnxq.samples import Samples
from onnxq.target import Target

__all__ = ["LEAST_RUNS", "Draft", "Evidence", "cut_to_grid", "draft_of"]

LEAST_RUNS = _HELD_BACK = 4  # every fourth run is for judging
_MOST_RUNS = 64


@dataclass(frozen=True)
class Draft:
    """A float graph whose constants, rounded by ``plan``, are those of the file to be written.

    ``narrow`` says that weights must not saturate on x86 without VNNI.
    """

    graph: ir.Model
    plan: Plan
    target: Target
    narrow: bool = False

    def quantized(self) -> onnx.ModelProto:
        """The Q/DQ form."""
        return insert_qdq(ir.to_proto(self.graph), self.plan, self.target)

    def copy(self) -> ir.Model:
        """The graph, to be changed by a step."""
        return ir.from_proto(ir.to_proto(self.graph))


def draft_of(graph: ir.Model, plan: Plan, target: Target, *, narrow: bool = False) -> Draft:
    """The draft of ``graph``, which is left as it is: its 4-bit weights, whose scales of least
    error do not reach all of them, are cut to the ends of their grids."""
    draft = Draft(graph, plan, target, narrow)
    four = {name: each for name, each in plan.weights.items() if each.type is IntType.INT4}
    if not four:
        return draft
    copy = draft.copy()
    cut_to_grid(copy, four)
    return Draft(copy, plan, target, narrow)


def cut_to_grid(graph: ir.Model, weights: Mapping[str, WeightParameters]) -> None:
    """Bring what of ``weights`` lies beyond ±127 (±7) steps to the end of the grid, in place."""
    for name, parameters in weights.items():
        value = graph.graph.initializers.get(name)
        weight = constant_of(value)
        if value is None or weight is None:
            continue
        ends = parameters.type.qmax * parameters.steps(weight.shape)
        cut = np.clip(weight, -ends, ends).astype(np.float32)
        value.const_value = ir.tensor(cut, name=value.name)


class Evidence:
    """Samples, as runs of the graph, and the FP32 graph that they are to be answered like.

    At most 64 runs, spread over all ``samples``; every fourth is held back: steps measure on the
    others and are judged on it. ``places`` are the numbers of the runs among all that the samples
    make, ``batch`` of them a run. Raises QuantizationError if there are fewer than four.
    """

    def __init__(
        self, original: onnx.ModelProto, samples: Samples, batch: int, progress: Progress
    ) -> None:
        self.original, self.progress = original, progress
        self.samples, self.batch = samples, batch
        count = len(samples) // batch
        if count < _HELD_BACK:
            raise QuantizationError(
                f"{len(samples)} samples make {count} runs, and steps need {_HELD_BACK} at least",
                where="quantize: steps",
                do="calibrate on more samples, or leave the steps out",
            )
        spread = np.linspace(0, count - 1, min(count, _MOST_RUNS)).round()
        self.places = spread.astype(np.int64)
        self.is_held_back = np.arange(len(self)) % _HELD_BACK == _HELD_BACK - 1

    def __len__(self) -> int:
        return len(self.places)

    def run(self, index: int) -> dict[str, Shaped[np.ndarray, "..."]]:
        """Inputs of run ``index``, with a batch axis in front."""
        return self.samples.batch(int(self.places[index]) * self.batch, self.batch)

    def held_back(self) -> Iterator[int]:
        """The runs that are for judging."""
        return (int(index) for index in np.flatnonzero(self.is_held_back))
