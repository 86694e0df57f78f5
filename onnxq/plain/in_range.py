"""Samples to run a quantized file on: those that are given, or random numbers in its range."""

from pathlib import Path

import onnx

from onnxq.errors import DataError
from onnxq.graph import constants_of, load_model, values_of
from onnxq.sample_checks import made_up_samples
from onnxq.samples import Samples
from onnxq.sources import open_source

__all__ = ["samples_in_range"]

_RUNS = 4  # runs on random numbers
_SEED = 0
_BOUNDS = {"int8": (-128, 127), "uint8": (0, 255)}


def samples_in_range(model: Path, source: str | None, runs: int = _RUNS) -> Samples:
    """Samples of ``source`` for as many runs of ``model``; without one, uniform random numbers over
    the range that each input is quantized to.

    Raises DataError as ``open_source`` does, or if random numbers cannot be made because another
    dimension than the first is free.
    """
    proto = load_model(model)
    inputs, _ = values_of(proto, _ranges(proto))
    batch = max((v.shape[0] for v in inputs if v.shape and isinstance(v.shape[0], int)), default=1)
    if source is not None:
        names = tuple(value.name for value in inputs)
        return open_source(source, {}, names, inputs=inputs, limit=runs * batch)
    for value in inputs:
        free = [dim for dim in value.shape[1:] if isinstance(dim, str)]
        if free:
            raise DataError(
                f"its dimension `{free[0]}` is free, and random numbers need a size",
                where=f"{model.name}, input `{value.name}`",
                do="give samples with --data",
            )
    return made_up_samples(inputs, runs * batch, _SEED)


def _ranges(model: onnx.ModelProto) -> dict[str, tuple[float, float] | None]:
    """What each input can be without saturating: the range of its Q, or of its integer type."""
    constants = constants_of(model)
    ranges: dict[str, tuple[float, float] | None] = {}
    for value in values_of(model)[0]:
        if value.dtype in _BOUNDS:
            low, high = _BOUNDS[value.dtype]
            ranges[value.name] = (low, high + 1)  # cut to an integer, so that the last is drawn too
    for node in model.graph.node:
        scale = constants.get(node.input[1]) if node.op_type == "QuantizeLinear" else None
        zero_point = constants.get(node.input[2]) if len(node.input) > 2 else None
        kind = "uint8" if zero_point is None else str(zero_point.dtype)
        if scale is not None and scale.size == 1 and kind in _BOUNDS:
            zero = 0.0 if zero_point is None else float(zero_point.item())
            low, high = ((bound - zero) * scale.item() for bound in _BOUNDS[kind])
            ranges[node.input[0]] = (low, high)
    return ranges
