"""Random graphs keep their function; damaged files get an error of ours and nothing else."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.errors import OnnxqError
from onnxq.export.clean import REWRITES, TARGET_REWRITES, clean, cleaning

from . import damaging
from .growing import Growing, assert_same_function
from .networks import operators

GRAPHS, FILES, A_TEST = 500, 500, 50
ALL = tuple(name for name in TARGET_REWRITES if name != "hard swish to one")  # undoes another
ALL_REWRITES = REWRITES | dict(TARGET_REWRITES[name] for name in ALL)


def grown(seed: int) -> onnx.ModelProto:
    """A graph of one to ten steps; every fifth of opset 18, which moved the axes of sums."""
    return Growing(seed, opset=18 if seed % 5 == 0 else 17).grow(1 + seed % 10).model()


def negative_pads(model: onnx.ModelProto) -> list[str]:
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    return [
        n.name for n in model.graph.node if n.op_type == "Pad" and min(constants[n.input[1]]) < 0
    ]


def check_seed(seed: int) -> None:
    model = grown(seed)
    cleaned, _ = clean(model, rewrites=ALL)
    try:
        assert_same_function(model, cleaned, seed)
    except (AssertionError, OnnxqError):
        for step in cleaning(model, rewrites=ALL):
            assert_same_function(model, step.model, seed, f"seed {seed}, {step.what}")
        raise
    onnx.checker.check_model(cleaned, full_check=True)
    left = {"Einsum", "LpNormalization", "Dropout", "Expand", "ReduceL2", "ReduceSumSquare", "Loop"}
    assert not left & set(operators(cleaned)), f"seed {seed}"
    assert not negative_pads(cleaned), f"seed {seed}"
    for name, rewrite in ALL_REWRITES.items():
        shaped = onnx.shape_inference.infer_shapes(cleaned, data_prop=True)
        assert rewrite(ir.from_proto(shaped)) == 0, f"seed {seed}: {name} is not done at once"


@pytest.mark.parametrize("seed", range(-12, 0))
def test_a_few_random_graphs_keep_their_function(seed):
    check_seed(-seed + GRAPHS)


def in_blocks(count: int) -> list[object]:
    """Where each block begins; all but the first two are for `make test-all`."""
    starts = range(0, count, A_TEST)
    marks = [pytest.mark.slow if start < 2 * A_TEST else pytest.mark.long for start in starts]
    return [pytest.param(start, marks=mark) for start, mark in zip(starts, marks, strict=True)]


@pytest.mark.parametrize("start", in_blocks(GRAPHS))
def test_random_graphs_keep_their_function_through_all_rewrites(start):
    for seed in range(start, start + A_TEST):
        check_seed(seed)


def damaged(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    return damaging.damage(Growing(seed).grow(1 + seed % 8).model(), rng)


@pytest.mark.parametrize("start", in_blocks(FILES))
def test_a_damaged_file_gives_an_error_screen(start, tmp_path: Path):
    files = []
    for seed in range(start, start + A_TEST):
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(damaged(seed))
        files.append(path)
    verdicts = damaging.judged(files)
    assert sorted(verdicts) == sorted(path.name for path in files)
    bad = {name: said for name, said in verdicts.items() if said not in ("taken", "refused")}
    assert not bad, bad


@pytest.mark.slow
def test_most_damage_is_refused_and_some_files_are_still_sound(tmp_path: Path):
    """Else the test above would say little."""
    files = []
    for seed in range(1000, 1040):
        files.append(tmp_path / f"{seed}.onnx")
        files[-1].write_bytes(damaged(seed))
    said = list(damaging.judged(files).values())
    assert said.count("refused") > 20
    assert "taken" in said


def test_a_worker_that_dies_or_hangs_would_be_noticed(tmp_path: Path):
    files = [tmp_path / name for name in ("dies.onnx", "hangs.onnx", "raises.onnx", "well.onnx")]
    for path in files:
        path.write_bytes(b"")
    script = (
        "import sys, os, time, pathlib\n"
        "def judge(path):\n"
        "    name = pathlib.Path(path).stem\n"
        "    if name == 'dies': os.abort()\n"
        "    if name == 'hangs': time.sleep(60)\n"
        "    if name == 'raises': raise KeyError(name)\n"
        "    return 'taken'\n"
    )
    verdicts = damaging.judged(files, prelude=script, seconds=1)
    assert verdicts["well.onnx"] == "taken"
    assert verdicts["raises.onnx"].startswith("KeyError")
    assert verdicts["dies.onnx"] == "died of signal 6"
    assert verdicts["hangs.onnx"] == "hung"
