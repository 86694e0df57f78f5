import numpy as np

from onnxq.export.lint import lint, unreachable_parameters

from .networks import graph, random


def rows(*names: str) -> list[dict[str, np.ndarray]]:
    return [{name: random(1, 2, seed=10 * i + j) for j, name in enumerate(names)} for i in range(4)]


def found(model, *names: str) -> list[str]:
    return [f"{f.where}: {f.what}" for f in lint(model, rows(*names))]


def test_a_sound_graph_has_no_findings():
    model = graph("g (float[1,2] x, float[1,2] t) => (float[1,2] y) { y = Add(x, t) }")
    assert found(model, "x", "t") == []


def test_an_input_that_nothing_connects_is_named():
    model = graph(
        "g (float[1,2] x, float[1,2] time) => (float[1,2] y) { dead = Relu(time)\ny = Abs(x) }"
    )
    (line,) = found(model, "x", "time")
    assert line.startswith("input time: influences no output")


def test_an_input_that_is_multiplied_by_zero_is_named():
    model = graph(
        "g (float[1,2] x, float[1,2] time) => (float[1,2] y) {h = Mul(time, zero)\ny = Add(x, h) }",
        zero=np.zeros(1, np.float32),
    )
    (line,) = found(model, "x", "time")
    assert line == "input time: changed no output in 4 trials"


def test_an_output_that_never_moves_is_named():
    model = graph(
        "g (float[1,2] x) => (float[1,2] y, float[1,2] z) { h = Mul(x, zero)\n"
        "y = Add(h, one)\nz = Relu(x) }",
        zero=np.zeros(1, np.float32),
        one=np.ones(1, np.float32),
    )
    (line,) = found(model, "x")
    assert line.startswith("output y: was the same for 4 different inputs")


def test_shared_and_repeated_weights_are_named():
    weight = random(4, 4)
    model = graph(
        "g (float[1,4] x) => (float[1,4] y) { [a] h = MatMul(x, w)\n[b] i = MatMul(h, w)\n"
        "[c] y = MatMul(i, v) }",
        w=weight,
        v=weight,
    )
    feeds = [{"x": random(1, 4, seed=i)} for i in range(3)]
    lines = [f"{f.where}: {f.what}" for f in lint(model, feeds)]
    assert lines == ["w: is shared by a, b", "v: holds the same values as w"]


def test_unreachable_parameters_are_counted_and_named():
    (finding,) = unreachable_parameters([f"time.{i}.weight" for i in range(7)], 12_345)
    assert "12,345 parameters in 7 tensors" in finding.what
    assert "time.0.weight" in finding.what
    assert "2 more" in finding.what
    assert unreachable_parameters([], 0) == ()
