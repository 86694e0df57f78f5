"""Activations of 16 bits, where a recipe asks for them."""

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from onnxq.affine import parameters_of_range
from onnxq.placement import data_inputs, fold_sources, roots_of
from onnxq.qtypes import AffineParameters, IntType, Range
from onnxq.target import Target

__all__ = ["widened"]

_WIDE = {IntType.INT8: IntType.INT16, IntType.UINT8: IntType.UINT16}


def widened(
    activations: Mapping[str, AffineParameters],
    chosen: Sequence[ir.Node],
    target: Target,
    wide: Collection[str],
) -> dict[str, AffineParameters]:
    """``activations`` with 16 bits over the same ranges for what goes into the nodes ``wide`` and
    comes out of them, and for all that shares its scale with one of these tensors.

    What shares a scale lies behind operators that only move values, or before a folded one.
    """
    if not wide:
        return dict(activations)
    roots, folds = roots_of(chosen, target), fold_sources(chosen, target)

    def origin(name: str) -> str:
        after = folds.get(name, name)
        return roots.get(after, after)

    touched = {
        origin(str(value.name))
        for node in chosen
        if str(node.name) in wide
        for value in (*data_inputs(node), *node.outputs)
    }
    return {
        name: _of_16_bits(parameters, target) if origin(name) in touched else parameters
        for name, parameters in activations.items()
    }


def _of_16_bits(parameters: AffineParameters, target: Target) -> AffineParameters:
    return parameters_of_range(
        Range.including_zero(*parameters.range),
        _WIDE[parameters.type],
        symmetric=target.activation_symmetric,
        power_of_two=target.power_of_two,
    )
