"""Known answers as C arrays, and a C program that judges conversions by them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped

from onnxq.affine import dequantize, quantize
from onnxq.handoff.c_header import contract_header
from onnxq.handoff.c_source import C_TYPES, Names, array_literal, comment, line_of, names_of
from onnxq.handoff.contract import Contract, InputOutput, QuantizationFacts

__all__ = ["MOST_NUMBERS", "answers_header", "self_test", "vectors_that_fit", "write_c_files"]

Array = Shaped[np.ndarray, "..."]
MOST_NUMBERS = 200_000  # in known_answers.h: about 2.5 MB of text


def write_c_files(folder: Path, contract: Contract, answers: Mapping[str, Array]) -> None:
    """``contract.h``, ``known_answers.h`` and ``self_test.c`` (see ``self_test``) in ``folder``."""
    texts = {
        "contract.h": contract_header(contract),
        "known_answers.h": answers_header(contract, answers),
        "self_test.c": self_test(contract),
    }
    for name, text in texts.items():
        if text:
            (folder / name).write_text(text, encoding="utf-8")


def vectors_that_fit(contract: Contract, answers: Mapping[str, Array]) -> int:
    """How many of the known answers go into ``known_answers.h``; 0 if not even one does."""
    numbers = sum(
        _of(value, answers)[0].size * (2 if value.quantization else 1)
        for value in (*contract.inputs, *contract.outputs)
    )
    total = len(_of(contract.outputs[0], answers))
    return int(min(total, MOST_NUMBERS // max(numbers, 1)))


def answers_header(contract: Contract, answers: Mapping[str, Array]) -> str:
    """The text of ``known_answers.h``: for each input and output ``<model>_<value>_known`` of shape
    ``[vectors][count]``, in its own type (the integers, where it has an integer form), and
    ``_real``, the same as real numbers.

    ``_edges`` and ``_edge_integers`` are real numbers that are easily got wrong: half steps, values
    beyond both ends, infinities. ``answers`` are the arrays of ``known_answers.npz``.
    """
    names = names_of(contract)
    model, count = names[""].capital, vectors_that_fit(contract, answers)
    guard = f"ONNXQ_{model}_KNOWN_ANSWERS_H"
    head = comment(
        f"Inputs of {contract.model} and what it makes of them: {count} of the vectors of "
        "known_answers.npz.",
        f"At most {MOST_NUMBERS} numbers are written here; the .npz file holds them all.",
    )
    parts = [
        f"{head}\n\n#ifndef {guard}\n#define {guard}",
        '#include "contract.h"',
        f"#define {model}_VECTORS {count}",
    ]
    for value in (*contract.inputs, *contract.outputs):
        if count:
            parts += _vectors(value, names[value.name], _of(value, answers)[:count])
        if value.quantization is not None:
            parts += _edges(names[value.name], value.quantization)
    return "\n\n".join([*parts, f"#endif {comment(guard)}"]) + "\n"


def _of(value: InputOutput, answers: Mapping[str, Array]) -> Array:
    return answers[f"{value.direction}.{value.name}"]


def _vectors(value: InputOutput, names: Names, array: Array) -> list[str]:
    """The arrays of one input or output; none for a type that C99 has not."""
    rows = array.reshape(len(array), -1)
    known = value.quantization
    if known is None:
        kind = C_TYPES.get(value.dtype)
        return [] if kind is None else [_array(names, "known", kind, rows)]
    if rows.dtype.kind == "f":
        reals = rows.astype(np.float32)
        integers = quantize(reals, known.scale, known.zero_point, known.type)
    else:
        integers, reals = rows, dequantize(rows, known.scale, known.zero_point)
    return [
        _array(names, "known", f"{names.small}_t", integers),
        _array(names, "real", "float", reals),
    ]


def _array(names: Names, what: str, kind: str, array: Array) -> str:
    sizes = "".join(f"[{size}]" for size in array.shape)
    return f"static const {kind} {names.small}_{what}{sizes} = {array_literal(array)};"


def _edges(names: Names, known: QuantizationFacts) -> list[str]:
    reals = edges(known)
    integers = quantize(reals, known.scale, known.zero_point, known.type)
    return [
        _array(names, "edges", "float", reals),
        _array(names, "edge_integers", f"{names.small}_t", integers),
    ]


def edges(known: QuantizationFacts) -> Float32[np.ndarray, " n"]:
    """Real numbers whose integers are easily got wrong.

    Half steps that float32 meets exactly (odd and even, below and above zero), numbers just beside
    them, both ends of the grid and far beyond, infinities, both zeros.
    """
    scale, low, high = np.float32(known.scale), known.real_low, known.real_high
    halves = (np.arange(known.type.qmin, known.type.qmax) - known.zero_point + 0.5).astype(
        np.float32
    )
    exact = halves[(halves * scale) / scale == halves]
    ties = exact[np.linspace(0, len(exact) - 1, min(len(exact), 24)).round().astype(int)] * scale
    around = [np.nextafter(ties, np.float32(side)) for side in (-np.inf, np.inf)]
    ends = [low - scale, low, 0.0, -0.0, high, high + scale, 1e30, -1e30, np.inf, -np.inf]
    return np.concatenate([ties, *around, np.array(ends, np.float32)]).astype(np.float32)


def self_test(contract: Contract) -> str:
    """The text of ``self_test.c``, which needs ``contract.h`` and ``known_answers.h`` beside it.

    Empty if neither an input nor an output has an integer form: there is nothing to judge.
    """
    names = names_of(contract)
    values = [v for v in (*contract.inputs, *contract.outputs) if v.quantization is not None]
    if not values:
        return ""
    body = [_checks(value, names[value.name], names[""].capital) for value in values]
    first = names[values[0].name]
    head = comment(
        f"Judges how numbers become integers for {contract.model}, by known answers:",
        "    gcc -std=c99 -Wall -Wextra -Werror -pedantic self_test.c -o self_test -lm",
        "    ./self_test",
        "Exit code 0: right. 1: wrong; a line says what.",
        "Your own conversions are judged in place of those of contract.h if you name them:",
        f"    gcc -include yours.h '-D{first.capital}_QUANTIZE(x)=yours(x)' self_test.c -lm",
        "and likewise _DEQUANTIZE(q) and, where contract.h has it, _FROM_BYTE(byte).",
    )
    macros = [_macros(value, names[value.name]) for value in values]
    return "\n\n".join(
        [
            head,
            '#include <stdio.h>\n\n#include "contract.h"\n#include "known_answers.h"',
            *macros,
            _PREAMBLE,
            *(f"static void check_{names[v.name].small}(void)\n{{\n{text}\n}}"
              for v, text in zip(values, body, strict=True)),
            _main([names[value.name] for value in values], names[""].capital),
        ]
    ) + "\n"  # fmt: skip


_PREAMBLE = """\
static long checked, wrong;

static void expect(int right, const char *what, long index, double got, double wanted)
{
    ++checked;
    if (right) return;
    if (++wrong <= 20)
        printf("WRONG: %s[%ld] is %.9g, not %.9g\\n", what, index, got, wanted);
}"""


def _macros(value: InputOutput, names: Names) -> str:
    known = value.quantization
    forms = {"QUANTIZE": "quantize", "DEQUANTIZE": "dequantize"}
    if known is not None and known.byte_divisor is not None:
        forms["FROM_BYTE"] = "from_byte"
    return "\n".join(
        f"#ifndef {names.capital}_{macro}\n"
        f"#define {names.capital}_{macro}(x) {names.small}_{function}(x)\n#endif"
        for macro, function in forms.items()
    )


def _checks(value: InputOutput, names: Names, model: str) -> str:
    """The body of the function that judges one input or output."""
    known, small, capital = value.quantization, names.small, names.capital
    lines = [f"    {comment(line_of(value))}", "    long i;"]
    if value.dtype.startswith("float"):
        lines += _loop(
            f"for (i = 0; i < (long)(sizeof {small}_edges / sizeof {small}_edges[0]); ++i)",
            f"{capital}_QUANTIZE({small}_edges[i])",
            f"{small}_edge_integers[i]",
            f"{small}_quantize of edge",
        )
    lines += [
        f"#if {model}_VECTORS > 0",
        f"    const long width = (long)(sizeof {small}_real[0] / sizeof {small}_real[0][0]);",
    ]
    every = f"for (i = 0; i < {model}_VECTORS * width; ++i)"
    real, integer = (f"{small}_{what}[i / width][i % width]" for what in ("real", "known"))
    lines += _loop(every, f"{capital}_QUANTIZE({real})", integer, f"{small}_quantize")
    if value.direction == "output" or not value.dtype.startswith("float"):
        lines += _loop(every, f"{capital}_DEQUANTIZE({integer})", real, f"{small}_dequantize")
    lines.append("#endif")
    if known is not None and known.byte_divisor is not None:
        lines += _loop(
            "for (i = 0; i < 256; ++i)",
            f"{capital}_FROM_BYTE((uint8_t)i)",
            f"{small}_quantize((float)i / {float(known.byte_divisor)}f)",
            f"{small}_from_byte of byte",
        )
    return "\n".join(lines)


def _loop(head: str, got: str, wanted: str, what: str) -> list[str]:
    return [
        f"    {head} {{",
        f"        const double got = (double)({got});",
        f"        const double wanted = (double)({wanted});",
        f'        expect(got == wanted, "{what}", i, got, wanted);',
        "    }",
    ]


def _main(names: Sequence[Names], model: str) -> str:
    calls = "\n".join(f"    check_{name.small}();" for name in names)
    return (
        f"int main(void)\n{{\n{calls}\n"
        '    printf("%ld numbers checked, of %d vectors: %ld wrong\\n",\n'
        f"           checked, {model}_VECTORS, wrong);\n"
        "    return wrong ? 1 : 0;\n}"
    )
