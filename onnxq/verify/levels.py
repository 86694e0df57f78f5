"""How far ONNX Runtime's fusion moves the outputs of a file from what its graph says.

The two are not bit-equal even where all is right: a step in an early layer spreads. What lies far
apart shows integers that are fused wrongly, saturate, or are quantized again behind one's back.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from jaxtyping import Shaped

from onnxq.artifacts import OutputDistance
from onnxq.graph import constant_of, load_graph
from onnxq.qdq import dequantizer
from onnxq.runtime import Session, in_parallel
from onnxq.verify.distances import Distance

__all__ = ["FusedAgainstUnfused", "compare_levels"]

Array = Shaped[np.ndarray, "..."]


class FusedAgainstUnfused:
    """Adds up, run by run, how far the outputs with fusion are from those without."""

    def __init__(self, model: ir.Model) -> None:
        self._scales = {str(value.name): _scale_of(value) for value in model.graph.outputs}
        self._distance = Distance()
        self._largest = 0.0
        self._steps: float | None = 0.0
        self._runs = 0

    def add(self, unfused: Mapping[str, Array], fused: Mapping[str, Array]) -> None:
        """One run: all outputs as the graph says, and as they are with fusion."""
        self._runs += 1
        for name, reference in unfused.items():
            self._distance += Distance.between(reference, fused[name])
            difference = np.abs(reference.astype(np.float64) - fused[name].astype(np.float64))
            largest = float(difference.max(initial=0.0))
            self._largest = max(self._largest, largest)
            scale = self._scales.get(name)
            if scale is None or self._steps is None:
                self._steps = None
            else:
                self._steps = max(self._steps, largest / scale)

    @property
    def record(self) -> OutputDistance:
        """What was found over all runs."""
        return OutputDistance(
            samples=self._runs,
            largest=self._largest,
            steps=self._steps,
            **self._distance.figures,
        )


def compare_levels(
    path: Path, rows: Sequence[Mapping[str, Array]], config: Mapping[str, str]
) -> OutputDistance:
    """Run the file on all ``rows`` with full optimization and with none. Raises
    RuntimeFailureError."""
    found = FusedAgainstUnfused(load_graph(path))
    unfused = Session(path, optimization="none", config=config)
    fused = Session(path, optimization="full", config=config)

    def run(index: int) -> tuple[dict[str, Array], dict[str, Array]]:
        return unfused.run(rows[index]), fused.run(rows[index])

    for pair in in_parallel(run, len(rows)):
        found.add(*pair)
    return found.record


def _scale_of(output: ir.Value) -> float | None:
    """The scale of what an output is dequantized from; 1 for integers; None where there is none."""
    if output.dtype in {ir.DataType.INT8, ir.DataType.UINT8}:
        return 1.0
    dq = dequantizer(output)
    scale = constant_of(dq.inputs[1]) if dq is not None else None
    return float(scale.item()) if scale is not None and scale.size == 1 else None
