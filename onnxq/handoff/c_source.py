"""C99 words: identifiers, literals, comments. What several generated files need."""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
from jaxtyping import Shaped

from onnxq.handoff.contract import Contract, InputOutput

__all__ = [
    "C_TYPES",
    "Names",
    "array_literal",
    "comment",
    "float_literal",
    "line_of",
    "names_of",
]

Array = Shaped[np.ndarray, "..."]
C_TYPES: Mapping[str, str] = {
    "float32": "float",
    "float64": "double",
    "bool": "uint8_t",
    **{f"{sign}int{bits}": f"{sign}int{bits}_t" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_WIDTH = 96


class Names:
    """How a value is called in C: ``<model>_<value>`` in small letters, and in capitals."""

    def __init__(self, small: str) -> None:
        self.small, self.capital = small, small.upper()


def names_of(contract: Contract) -> dict[str, Names]:
    """A name for every input and output, no two alike; ``""`` is that of the model itself."""
    model = _identifier(contract.model.removesuffix(".onnx"))
    taken: dict[str, Names] = {"": Names(model)}
    for value in (*contract.inputs, *contract.outputs):
        wanted = f"{model}_{_identifier(value.name)}"
        used = {names.small for names in taken.values()}
        number, name = 2, wanted
        while name in used:
            name, number = f"{wanted}_{number}", number + 1
        taken[value.name] = Names(name)
    return taken


def _identifier(name: str) -> str:
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "value"
    return f"m{word}" if word[0].isdigit() else word


def float_literal(value: float) -> str:
    """A float32 as C99 writes it, to the last bit."""
    number = float(np.float32(value))
    if math.isnan(number):
        return "NAN"
    if math.isinf(number):
        return "INFINITY" if number > 0 else "-INFINITY"
    mantissa, exponent = number.hex().split("p")
    return f"{mantissa.rstrip('0').rstrip('.') if '.' in mantissa else mantissa}p{exponent}f"


def array_literal(array: Array) -> str:
    """The numbers of an array of one or two axes, in braces, over several lines."""
    if array.ndim > 1:
        return "{\n" + ",\n".join(array_literal(row) for row in array) + "\n}"
    return "{\n" + "\n".join(_lines(_literal(number) for number in array)) + "\n}"


def _literal(number: np.generic) -> str:
    if number.dtype == np.float32:
        return float_literal(float(number))
    if number.dtype == np.float64:
        return float(number).hex() if np.isfinite(number) else float_literal(float(number))
    if number.dtype == bool:
        return str(int(number))
    if number == np.iinfo(np.int64).min:
        return "INT64_MIN"
    if number.itemsize > 2:
        return f"{str(number.dtype).upper()}_C({number})"
    return str(number)


def _lines(words: Iterable[str]) -> list[str]:
    lines, line = [], ""
    for word in words:
        if len(line) + len(word) > _WIDTH:
            lines.append(line.rstrip())
            line = ""
        line += f"{word}, "
    return [*lines, line.rstrip(" ,")]


def comment(*lines: str) -> str:
    """A comment that no name of a tensor can end."""
    text = [line.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?") for line in lines]
    return "/* " + "\n * ".join(text) + " */"


def line_of(value: InputOutput) -> str:
    """A value in one line."""
    kind = value.quantization.type if value.quantization else value.dtype
    return f"{value.direction} `{value.name}`: {kind} {list(value.shape)}, {value.layout}"
