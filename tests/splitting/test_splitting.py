from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx.reference import ReferenceEvaluator

from onnxq.artifacts import Manifest
from onnxq.errors import ExportError
from onnxq.graph import load_model
from onnxq.recipe import SplitSection
from onnxq.runtime import Session
from onnxq.splitting.manifest import PartsSession, write_parts
from onnxq.splitting.propose import propose
from tests.onnx_text import model_of

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
# six frames of 8 × 8 pixels, each seen by the same convolution, then all of them by a Gemm
VIDEO = (
    HEAD
    + """video (float[1,6,8,8,3] x) => (float[1,2] y) {
  moved = Transpose<perm = [0, 1, 4, 2, 3]>(x)
  rows = Constant<value = int64[4] {6, 3, 8, 8}>()
  frames = Reshape(moved, rows)
  seen = Conv<pads = [1, 1, 1, 1]>(frames, w)
  bent = Relu(seen)
  pooled = GlobalAveragePool(bent)
  long = Constant<value = int64[2] {1, 24}>()
  series = Reshape(pooled, long)
  y = Gemm(series, v, b)
}"""
)
FRAMES = {"tensor": "frames", "name": "frame"}
POOLED = {"tensor": "pooled", "name": "features"}


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype(np.float32)


def written(path: Path, text: str, **constants: np.ndarray) -> Path:
    model = model_of(text, **constants)
    for index, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}_{index}"
    onnx.save(model, path)
    return path


def video(folder: Path) -> Path:
    constants = {"w": weights(4, 3, 3, 3), "v": weights(24, 2, seed=1), "b": weights(2, seed=2)}
    return written(folder / "video.onnx", VIDEO, **constants)


def section(*parts: dict[str, object]) -> SplitSection:
    return SplitSection.model_validate({"parts": parts})


def in_two(features: list[int] | None = None, series: list[int] | None = None) -> SplitSection:
    end = POOLED | ({"shape": features} if features else {})
    begin = POOLED | ({"shape": series} if series else {})
    return section(
        {"name": "Frame", "each_row": True, "inputs": [FRAMES], "outputs": [end]},
        {"name": "Series", "inputs": [begin], "outputs": [{"tensor": "y"}]},
    )


def cut(path: Path, split: SplitSection) -> tuple[Manifest, PartsSession]:
    model, folder = load_model(path), path.parent / "parts"
    manifest = write_parts(path, model, model, split.parts, folder)
    return manifest, PartsSession(manifest, folder, optimization="none")


def one_input(shape: tuple[int, ...], name: str = "x", seed: int = 3) -> dict[str, np.ndarray]:
    return {name: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}


@pytest.mark.parametrize("shapes", [(None, None), ([1, 4], [1, 6, 4]), ([1, 4], None)])
def test_parts_compute_what_the_whole_does_bit_for_bit(
    tmp_path: Path, shapes: tuple[list[int] | None, list[int] | None]
) -> None:
    path, row = video(tmp_path), one_input((1, 6, 8, 8, 3))
    _, parts = cut(path, in_two(*shapes))
    whole = ReferenceEvaluator(onnx.load(path)).run(None, row)[0]
    np.testing.assert_array_equal(
        parts.run(row)["y"], Session(path, optimization="none").run(row)["y"]
    )
    np.testing.assert_allclose(parts.run(row)["y"], whole, rtol=1e-4, atol=1e-5)


def test_a_part_that_runs_each_row_has_a_batch_of_one_and_its_rows_keep_their_order(
    tmp_path: Path,
) -> None:
    manifest, parts = cut(video(tmp_path), in_two([1, 4], [1, 6, 4]))
    frame, series = manifest.parts
    assert [(v.name, v.shape) for v in frame.inputs] == [("frame", (1, 3, 8, 8))]
    assert [(v.name, v.shape) for v in frame.outputs] == [("features", (1, 4))]
    assert [(v.name, v.shape) for v in series.inputs] == [("features", (1, 6, 4))]
    row = one_input((1, 6, 8, 8, 3))
    values = parts.values(row)
    third = np.ascontiguousarray(row["x"][0, 2].transpose(2, 0, 1))
    np.testing.assert_array_equal(values["Frame.frame"][2], third)
    runs = [step for step in manifest.steps if step.kind == "run"]
    assert [(run.part, run.times) for run in runs] == [("Frame", 6), ("Series", 1)]


def test_no_value_of_a_part_has_more_dimensions_than_what_it_computes_on(tmp_path: Path) -> None:
    cut(video(tmp_path), in_two([1, 4], [1, 6, 4]))
    for name in ("Frame", "Series"):
        graph = onnx.shape_inference.infer_shapes(onnx.load(tmp_path / "parts" / f"{name}.onnx"))
        ranks = {
            len(value.type.tensor_type.shape.dim)
            for value in (*graph.graph.input, *graph.graph.value_info, *graph.graph.output)
        }
        assert max(ranks) <= 4


def test_every_move_between_parts_means_what_the_operator_means(tmp_path: Path) -> None:
    text = (
        HEAD
        + """moves (float[1,6,4] x) => (float[1,3,2] y) {
      a = Relu(x)
      left, right = Split<axis = 2>(a)
      s = Constant<value = int64[1] {5}>()
      e = Constant<value = int64[1] {-9223372036854775807}>()
      axes = Constant<value = int64[1] {1}>()
      back = Constant<value = int64[1] {-1}>()
      turned = Slice(left, s, e, axes, back)
      joined = Concat<axis = -1>(turned, right)
      pick = Constant<value = int64[3] {4, 0, 2}>()
      some = Gather<axis = 1>(joined, pick)
      first = Constant<value = int64[1] {1}>()
      last = Constant<value = int64[1] {3}>()
      two = Constant<value = int64[1] {2}>()
      cut = Slice(some, first, last, two)
      y = Sigmoid(cut)
    }"""
    )
    path = written(tmp_path / "moves.onnx", text)
    split = section(
        {"name": "A", "inputs": [{"tensor": "x"}], "outputs": [{"tensor": "a"}]},
        {"name": "B", "inputs": [{"tensor": "cut"}], "outputs": [{"tensor": "y"}]},
    )
    manifest, parts = cut(path, split)
    row = one_input((1, 6, 4))
    assert {step.op for step in manifest.steps if step.kind == "host"} == {
        "Slice", "Concat", "Gather",
    }  # fmt: skip
    wanted = ReferenceEvaluator(onnx.load(path)).run(None, row)[0]
    np.testing.assert_allclose(parts.run(row)["y"], wanted, rtol=1e-6)


def test_a_computing_node_outside_of_all_parts_is_refused_by_name(tmp_path: Path) -> None:
    split = section({"name": "Series", "inputs": [POOLED], "outputs": [{"tensor": "y"}]})
    with pytest.raises(ExportError, match="GlobalAveragePool"):
        cut(video(tmp_path), split)


def test_a_misspelt_tensor_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    split = section(
        {"name": "Frame", "inputs": [{"tensor": "frame"}], "outputs": [{"tensor": "pooled"}]}
    )
    with pytest.raises(ExportError, match="frames"):
        cut(video(tmp_path), split)


def test_a_shape_that_does_not_hold_the_tensor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="does not hold"):
        cut(video(tmp_path), in_two([1, 5]))


def test_rows_that_are_mixed_inside_a_part_are_no_part_of_their_own(tmp_path: Path) -> None:
    split = section(
        {"name": "All", "each_row": True, "inputs": [FRAMES], "outputs": [{"tensor": "y"}]}
    )
    with pytest.raises(ExportError):
        cut(video(tmp_path), split)


def test_two_parts_of_the_same_name_are_refused() -> None:
    part = {"name": "A", "inputs": [{"tensor": "x"}], "outputs": [{"tensor": "y"}]}
    with pytest.raises(ValueError, match="same name"):
        section(part, part)


def test_a_body_that_runs_on_many_rows_is_proposed_as_a_part(tmp_path: Path) -> None:
    path = video(tmp_path)
    (proposal,) = propose(load_model(path))
    assert "6 rows" in proposal.reason
    body = next(part for part in proposal.split.parts if part.each_row)
    assert [value.tensor for value in body.inputs] == ["frames"]
    assert [value.tensor for value in body.outputs] == ["pooled"]
    row = one_input((1, 6, 8, 8, 3))
    _, parts = cut(path, proposal.split)
    np.testing.assert_array_equal(
        parts.run(row)["y"], Session(path, optimization="none").run(row)["y"]
    )


def test_heads_behind_a_common_trunk_are_proposed(tmp_path: Path) -> None:
    text = (
        HEAD
        + """heads (float[1,8] x) => (float[1,3] class, float[1,4] box) {
      a = Gemm(x, w)
      t = Relu(a)
      class = Gemm(t, u)
      b = Gemm(t, v)
      box = Sigmoid(b)
    }"""
    )
    constants = {"w": weights(8, 8), "u": weights(8, 3), "v": weights(8, 4)}
    path = written(tmp_path / "heads.onnx", text, **constants)
    (proposal,) = propose(load_model(path))
    assert [part.name for part in proposal.split.parts] == ["Trunk", "Head1", "Head2"]
    row = one_input((1, 8))
    _, parts = cut(path, proposal.split)
    whole = Session(path, optimization="none").run(row)
    got = parts.run(row)
    for name, array in whole.items():
        np.testing.assert_array_equal(got[name], array)


def test_the_computation_of_indices_is_proposed_as_a_part_for_the_host(tmp_path: Path) -> None:
    text = (
        HEAD
        + """points (float[1,16,3] x) => (float[1,4] y) {
      far = ReduceSum(x, axes)
      sizes = Squeeze(far, axes)
      values, which = TopK(sizes, k)
      near = Gather<axis = 1>(x, one)
      deep = Unsqueeze(which, axes)
      real = Cast<to = 1>(deep)
      both = Add(near, real)
      long = Reshape(both, shape)
      y = Gemm(long, w)
    }"""
    )
    constants = {
        "axes": np.array([2]),
        "k": np.array([4]),
        "one": np.array([0, 1, 2, 3]),
        "shape": np.array([1, 12]),
        "w": weights(12, 4),
    }
    path = written(tmp_path / "points.onnx", text, **constants)
    (proposal,) = propose(load_model(path))
    geometry = proposal.split.parts[0]
    assert geometry.name == "Geometry"
    assert "which" in [value.tensor for value in geometry.outputs]
    assert "TopK" in proposal.reason
    row = one_input((1, 16, 3))
    manifest, parts = cut(path, proposal.split)
    assert {v.name: v.dtype for v in manifest.parts[1].inputs}["deep"] == "int64"
    np.testing.assert_array_equal(
        parts.run(row)["y"], Session(path, optimization="none").run(row)["y"]
    )


def test_nothing_is_proposed_for_a_plain_network(tmp_path: Path) -> None:
    text = HEAD + "plain (float[1,8] x) => (float[1,8] y) { a = Gemm(x, w)\n y = Relu(a) }"
    path = written(tmp_path / "plain.onnx", text, w=weights(8, 8))
    assert propose(load_model(path)) == ()


def test_a_part_without_outputs_is_refused() -> None:
    with pytest.raises(ValueError, match="needs `inputs` and `outputs`"):
        section({"name": "A", "inputs": [{"tensor": "x"}], "outputs": []})


def test_a_part_whose_input_the_host_makes_of_a_graph_input_has_its_domain(tmp_path: Path) -> None:
    path = video(tmp_path)
    model = load_model(path)
    manifest = write_parts(
        path, model, model, in_two().parts, tmp_path / "parts", {"x": (0.0, 1.0), "y": (-5.0, 5.0)}
    )
    frame, series = manifest.parts
    assert [value.domain for value in (*frame.inputs, *frame.outputs)] == [(0.0, 1.0), None]
    assert [value.domain for value in (*series.inputs, *series.outputs)] == [None, (-5.0, 5.0)]


def test_values_at_computed_positions_are_gathered_by_the_network_and_not_by_the_host(
    tmp_path: Path,
) -> None:
    text = (
        HEAD
        + """points (float[1,16,3] x, float[1,3,16] f) => (float[1,3,4] y) {
      turned = Transpose<perm = [0, 2, 1]>(x)
      products = MatMul(x, turned)
      sizes = ReduceSum<keepdims = 0>(products, axes)
      values, which = TopK(sizes, k)
      long = Reshape(which, flat)
      near = Gather<axis = 2>(f, long)
      y = Relu(near)
    }"""
    )
    constants = {"axes": np.array([2]), "k": np.array([4]), "flat": np.array([4])}
    path = written(tmp_path / "points.onnx", text, **constants)
    (proposal,) = propose(load_model(path))
    geometry, network = proposal.split.parts
    assert [value.tensor for value in geometry.outputs] == ["which"]
    assert [value.tensor for value in network.inputs] == ["f", "long"]
    row = one_input((1, 16, 3)) | {"f": weights(1, 3, 16)}
    _, parts = cut(path, proposal.split)
    np.testing.assert_array_equal(
        parts.run(row)["y"], Session(path, optimization="none").run(row)["y"]
    )
