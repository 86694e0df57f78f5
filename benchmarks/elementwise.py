"""What operators without weights cost on integers and in float, and what Q and DQ between cost.

    python -m benchmarks.elementwise [--json FILE]

Every operator runs alone on ONNX Runtime, one thread, all of them in turn, round after round: once
between DQ and Q as its integer kernel, once on floats. Printed are picoseconds an element (the
smallest of the rounds); what the table `prices` of ort-x86 holds are these numbers, and only their
ratios matter.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from onnxq.runtime import Session

__all__ = ["OPERATORS", "main", "prices"]

CHANNELS, WIDTH = 64, 1920
SHAPE = f"1,{CHANNELS},24,{WIDTH // 24}"
ELEMENTS = CHANNELS * WIDTH
HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
QUANTIZED = "z = uint8 {120}, s = float {0.03}, t = float {0.02}"
OPERATORS = {
    "Add": "Add(a, b)",
    "Mul": "Mul(a, b)",
    "Sigmoid": "Sigmoid(a)",
    "Softmax": "Softmax<axis = -1>(a)",
    "Concat": "Concat<axis = 1>(a, b)",
    "LeakyRelu": "LeakyRelu<alpha = 0.1>(a)",
    "GlobalAveragePool": "GlobalAveragePool(a)",
}
_ALONE = ("Clip", "HardSigmoid", "QuantizeLinear", "DequantizeLinear", "Conv")
_ROUNDS, _RUNS = 12, 10
_GRAPHS = {
    "Clip": "f = Clip(x, low, high)",
    "HardSigmoid": "f = HardSigmoid(x)",
}


def _result(op: str) -> str:
    pooled = f"1,{CHANNELS},1,1" if op == "GlobalAveragePool" else SHAPE
    return SHAPE.replace(f",{CHANNELS},", f",{2 * CHANNELS},", 1) if op == "Concat" else pooled


def _graphs(op: str) -> dict[str, str]:
    """The operator on integers and in float, as ONNX text."""
    body, shape = OPERATORS[op], _result(op)
    two = ", b)" in body
    inputs = f"{{0}}[{SHAPE}] x" + (f", {{0}}[{SHAPE}] w" if two else "")
    loaded = "a = DequantizeLinear(x, s, z)" + (" b = DequantizeLinear(w, t, z)" if two else "")
    integer = (
        f"g ({inputs.format('uint8')}) => (uint8[{shape}] y) <uint8 z = {{120}}, "
        f"float s = {{0.03}}, float t = {{0.02}}> "
        f"{{ {loaded} r = {body} y = QuantizeLinear(r, t, z) }}"
    )
    plain = body.replace("(a", "(x").replace(", b)", ", w)")
    return {
        "integer": integer,
        "float": f"g ({inputs.format('float')}) => (float[{shape}] y) {{ y = {plain} }}",
    }


def _alone(op: str) -> str:
    constants = "<uint8 z = {120}, float s = {0.03}, float low = {0}, float high = {6}>"
    body, given, made = {
        "Clip": ("Clip(x, low, high)", "float", "float"),
        "HardSigmoid": ("HardSigmoid(x)", "float", "float"),
        "QuantizeLinear": ("QuantizeLinear(x, s, z)", "float", "uint8"),
        "DequantizeLinear": ("DequantizeLinear(x, s, z)", "uint8", "float"),
    }[op]
    return f"g ({given}[{SHAPE}] x) => ({made}[{SHAPE}] y) {constants} {{ y = {body} }}"


def _convolution() -> onnx.ModelProto:
    """A 1 × 1 convolution of integers, CHANNELS to CHANNELS."""
    text = (
        f"g (uint8[{SHAPE}] x) => (uint8[{SHAPE}] y) <uint8 z = {{120}}, int8 n = {{0}}, "
        "float s = {0.03}, float t = {0.02}> { a = DequantizeLinear(x, s, z) "
        "b = DequantizeLinear(v, t, n) r = Conv(a, b) y = QuantizeLinear(r, s, z) }"
    )
    model = onnx.parser.parse_model(HEAD + text)
    weight = np.random.default_rng(0).integers(-127, 128, (CHANNELS, CHANNELS, 1, 1), np.int8)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "v"))
    return model


def _jobs() -> dict[str, onnx.ModelProto]:
    """Every graph to time, by operator and kind."""
    texts = {f"{op}/{kind}": text for op in OPERATORS for kind, text in _graphs(op).items()}
    texts |= {f"{op}/float": _alone(op) for op in _ALONE if op != "Conv"}
    models = {name: onnx.parser.parse_model(HEAD + text) for name, text in texts.items()}
    return models | {"Conv/integer": _convolution()}


def _feeds(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    feeds = {}
    for value in model.graph.input:
        shape = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        numbers = rng.uniform(0, 255, shape) if kind == np.uint8 else rng.uniform(-4, 4, shape)
        feeds[value.name] = numbers.astype(kind)
    return feeds


def prices() -> dict[str, dict[str, float]]:
    """Picoseconds an element (for Conv: a multiply-accumulate) of every operator, by kind."""
    jobs = {
        name: (Session(m.SerializeToString(), threads=1), _feeds(m)) for name, m in _jobs().items()
    }
    best = dict.fromkeys(jobs, float("inf"))
    for _ in range(_ROUNDS):
        for name, (session, feeds) in jobs.items():
            for _ in range(_RUNS):
                start = time.perf_counter()
                session.run(feeds)
                best[name] = min(best[name], time.perf_counter() - start)
    found: dict[str, dict[str, float]] = {}
    for name, seconds in best.items():
        op, kind = name.split("/")
        each = ELEMENTS * {"Conv": CHANNELS, "Concat": 2}.get(op, 1)
        found.setdefault(op, {})[kind] = round(seconds * 1e12 / each, 1 if op == "Conv" else 0)
    return found


def main(arguments: Sequence[str]) -> int:
    """Print the table. 0."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    table = prices()
    sys.stdout.write("| operator | on integers | in float |\n|---|---|---|\n")
    for op, found in table.items():
        cells = (f"{found[kind]:g}" if kind in found else "" for kind in ("integer", "float"))
        sys.stdout.write(f"| {op} | {' | '.join(cells)} |\n")
    if asked.json:
        asked.json.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
