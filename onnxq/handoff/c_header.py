"""The contract as a C header: what goes in, what comes out, and how numbers become integers."""

from math import prod

import numpy as np

from onnxq.handoff.c_source import (
    C_TYPES,
    Names,
    array_literal,
    comment,
    float_literal,
    line_of,
    names_of,
)
from onnxq.handoff.contract import Contract, InputOutput, QuantizationFacts, byte_table

__all__ = ["contract_header"]


def contract_header(contract: Contract) -> str:
    """The text of ``contract.h``: C99, self-contained, all functions ``static inline``.

    For each input and output there are its type ``<model>_<value>_t``, macros
    ``<MODEL>_<VALUE>_RANK``, ``_SHAPE``, ``_COUNT``, ``_LAYOUT``, ``_SCALE``, ``_ZERO_POINT``,
    ``_DOMAIN_LOW`` and ``_DOMAIN_HIGH``, and functions ``_is_valid``, ``_quantize``,
    ``_dequantize`` and ``_from_byte``, each where it has a meaning.
    The arithmetic is that of ONNX's QuantizeLinear and DequantizeLinear.
    """
    names = names_of(contract)
    guard = f"ONNXQ_{names[''].capital}_CONTRACT_H"
    values = [_value(value, names[value.name]) for value in (*contract.inputs, *contract.outputs)]
    head = comment(
        f"What goes into {contract.model} and comes out of it. Generated from that file by onnxq.",
        f"{contract.rounding}.",
        "Infinities saturate. NaN becomes the zero point; `_is_valid` says 0 of it.",
        "Compile without -ffast-math, in the rounding mode that C starts with.",
    )
    return "\n\n".join(
        [
            head,
            f"#ifndef {guard}\n#define {guard}",
            "#ifdef __FAST_MATH__\n"
            '#error "-ffast-math changes rounding and drops NaN: compile without it"\n#endif',
            "#include <math.h>\n#include <stdint.h>",
            f'#define {names[""].capital}_SHA256 "{contract.sha256}"',
            *values,
            f"#endif {comment(guard)}",
        ]
    ) + "\n"  # fmt: skip


def _value(value: InputOutput, names: Names) -> str:
    """Macros, type and functions of one input or output."""
    known = value.quantization
    kind = C_TYPES.get(known.type if known else value.dtype)
    parts = [comment(*_told(value))]
    macros = {"RANK": str(len(value.shape)), **_sizes(value), "LAYOUT": f'"{value.layout}"'}
    if value.domain is not None:
        low, high = (f"({float_literal(end)})" for end in value.domain)
        macros |= {"DOMAIN_LOW": low, "DOMAIN_HIGH": high}
    if known is not None:
        macros |= {"SCALE": float_literal(known.scale), "ZERO_POINT": f"({known.zero_point})"}
    parts += [f"#define {names.capital}_{name} {text}" for name, text in macros.items()]
    if kind is not None:
        parts.append(f"typedef {kind} {names.small}_t;")
    if value.domain is not None:
        parts.append(_is_valid(names, "float" if known or kind is None else kind))
    if known is not None:
        parts += [_quantize(names, known), _dequantize(names)]
        if known.byte_divisor is not None:
            parts.append(_from_byte(names, known, known.byte_divisor))
    return "\n".join(parts)


def _sizes(value: InputOutput) -> dict[str, str]:
    sizes = [size if isinstance(size, int) else -1 for size in value.shape]
    shape = {"SHAPE": "{" + ", ".join(map(str, sizes)) + "}"} if sizes else {}
    return {**shape, "COUNT": str(prod(max(size, 1) for size in sizes))}


def _told(value: InputOutput) -> list[str]:
    """What a reader should know of it."""
    known, lines = value.quantization, [line_of(value)]
    if any(isinstance(size, str) for size in value.shape):
        lines.append("-1 is an axis of free length; COUNT is for a length of 1.")
    if value.domain is not None:
        lines.append(f"Real values lie in [{value.domain[0]:g}, {value.domain[1]:g}].")
    if known is not None:
        lines.append(f"scale {known.scale!r}, zero point {known.zero_point}")
        if known.byte_image:
            lines.append(f"Picture bytes: {known.byte_image}.")
    return [*lines, value.note] if value.note else lines


def _is_valid(names: Names, real: str) -> str:
    capital = names.capital
    return (
        f"\nstatic inline int {names.small}_is_valid({real} x)\n{{\n"
        f"    return x >= {capital}_DOMAIN_LOW && x <= {capital}_DOMAIN_HIGH;\n}}"
    )


def _quantize(names: Names, known: QuantizationFacts) -> str:
    """Compares before it converts: a float that no int can hold may not be converted in C."""
    lowest, highest = known.type.qmin, known.type.qmax
    point, small = known.zero_point, names.small
    return (
        f"\nstatic inline {small}_t {small}_quantize(float x)\n{{\n"
        f"    const float steps = rintf((float)(x / {names.capital}_SCALE));\n"
        f"    if (steps != steps) return {names.capital}_ZERO_POINT;\n"
        f"    if (steps <= {float(lowest - point)}f) return {lowest};\n"
        f"    if (steps >= {float(highest - point)}f) return {highest};\n"
        f"    return ({small}_t)((int)steps + {names.capital}_ZERO_POINT);\n}}"
    )


def _dequantize(names: Names) -> str:
    small, capital = names.small, names.capital
    return (
        f"\nstatic inline float {small}_dequantize({small}_t q)\n{{\n"
        f"    return (float)((float)((int)q - {capital}_ZERO_POINT) * {capital}_SCALE);\n}}"
    )


def _from_byte(names: Names, known: QuantizationFacts, divisor: int) -> str:
    """The subtraction that gives the 256 integers, or their table."""
    small, lowest = names.small, known.type.qmin
    head = f"\nstatic inline {small}_t {small}_from_byte(uint8_t byte)\n{{\n"
    table = byte_table(known.affine, divisor)
    if np.array_equal(table, np.arange(256) + lowest):
        short = f"({small}_t)((int)byte - {-lowest})" if lowest else "byte"
        return f"{head}    return {short};\n}}"
    numbers = array_literal(table.astype(known.type.value))
    return f"{head}    static const {small}_t table[256] = {numbers};\n    return table[byte];\n}}"
