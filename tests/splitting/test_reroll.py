"""Loops that an exporter wrote down step by step are found again."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.export.clean import clean
from onnxq.runtime import Session
from onnxq.splitting.manifest import PartsSession, write_parts
from onnxq.splitting.reroll import rerolled, split_steps
from tests.onnx_text import model_of

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
STEP = """
  both{0} = Add({1}, wide)
  made{0} = Gemm(both{0}, w)
  bent{0} = Tanh(made{0})
  scaled{0} = Mul(bent{0}, c{0})
  x{2} = Sub({1}, scaled{0})"""


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype(np.float32)


def sampler(steps: int, weight: str = "w", last: str = "") -> onnx.ModelProto:
    """As torch writes a sampler: the steps one behind the other, a coefficient for each."""
    body = "".join(
        STEP.format(i, "noise" if i == 0 else f"x{i}", i + 1).replace("w)", f"{weight})", 1)
        if i
        else STEP.format(i, "noise", 1)
        for i in range(steps)
    )
    text = HEAD + (
        "g (float[1,8] noise, float[1,4] seen) => (float[1,2] y) {\n wide = Gemm(seen, v)"
        + body
        + f"\n kept = Relu(x{steps}){last}\n y = Gemm(kept, u)\n}}"
    )
    coefficients = {f"c{i}": np.float32(0.1 + 0.05 * i) for i in range(steps)}
    constants = {"w": weights(8, 8), "v": weights(4, 8, seed=1), "u": weights(8, 2, seed=2)}
    return model_of(text, **constants, **coefficients, w2=weights(8, 8, seed=3))


@pytest.mark.parametrize("steps", [3, 5])
def test_steps_that_share_their_weights_become_one_body(tmp_path: Path, steps: int) -> None:
    model, _ = clean(sampler(steps))
    onnx.save(model, tmp_path / "flat.onnx")
    split = split_steps(model)
    assert split is not None
    assert f"{steps} times" in split.reasons[0]
    folder = tmp_path / "parts"
    manifest = write_parts(tmp_path / "flat.onnx", split.model, split.model, split.parts, folder)
    row = {"noise": weights(1, 8, seed=4), "seen": weights(1, 4, seed=5)}
    given = PartsSession(manifest, folder, optimization="none").run(row)
    wanted = Session(tmp_path / "flat.onnx", optimization="none").run(row)
    np.testing.assert_array_equal(given["y"], wanted["y"])
    operators = [node.op_type for node in onnx.load(folder / "Body1.onnx").graph.node]
    assert operators.count("Gemm") == 1


def test_blocks_with_weights_of_their_own_are_no_loop() -> None:
    text = HEAD + "g (float[1,8] x) => (float[1,8] y) {"
    for i in range(4):
        text += f"\n a{i} = Gemm({f'r{i - 1}' if i else 'x'}, w{i})\n r{i} = Relu(a{i})"
    model = model_of(
        text + "\n y = Exp(r3) }", **{f"w{i}": weights(8, 8, seed=i) for i in range(4)}
    )
    assert rerolled(onnx.shape_inference.infer_shapes(model)) is None


def test_a_step_whose_result_is_read_elsewhere_too_is_no_loop() -> None:
    model = sampler(4, last="")
    model.graph.output.append(onnx.helper.make_tensor_value_info("x2", 1, [1, 8]))
    assert rerolled(onnx.shape_inference.infer_shapes(model)) is None


def test_two_steps_are_too_few_to_be_called_a_loop() -> None:
    assert rerolled(onnx.shape_inference.infer_shapes(sampler(2))) is None
