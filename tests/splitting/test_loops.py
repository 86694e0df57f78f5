"""Bodies of loops as parts: the host runs them as ONNX Runtime runs the loop."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.artifacts import LoopStep, Manifest
from onnxq.errors import ExportError
from onnxq.graph import load_model
from onnxq.runtime import Session
from onnxq.splitting.loops import split_loops
from onnxq.splitting.manifest import PartsSession, write_parts
from tests.onnx_text import model_of

HEAD = '<ir_version: 9, opset_import: ["": 17]>\n'
# a sampler: noise, a condition that every step sees, a table of coefficients read by the counter
SAMPLER = (
    HEAD
    + """sampler (float[1,8] noise, float[1,4] seen) => (float[1,2] picture, float[6,1,8] path) {
  wide = Gemm(seen, v)
  latent, path = Loop (trips, , noise) <body = step (int64 i, bool go, float[1,8] x)
    => (bool on, float[1,8] next, float[1,8] trace) {
      on = Identity(go)
      share = Gather<axis = 0>(coefficients, i)
      joined = Add(x, wide)
      moved = Gemm(joined, w)
      bent = Tanh(moved)
      scaled = Mul(bent, share)
      next = Add(x, scaled)
      trace = Sub(x, next)
  }>
  kept = Relu(latent)
  picture = Gemm(kept, u)
}"""
)


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * 0.4).astype(np.float32)


def sampler(folder: Path, text: str = SAMPLER, **more: np.ndarray) -> Path:
    constants = {
        "trips": np.array(6),
        "coefficients": weights(6, seed=1),
        "w": weights(8, 8, seed=2),
        "v": weights(4, 8, seed=3),
        "u": weights(8, 2, seed=4),
    }
    onnx.save(model_of(text, **(constants | more)), folder / "sampler.onnx")
    return folder / "sampler.onnx"


def cut(path: Path) -> tuple[Manifest, PartsSession]:
    split = split_loops(load_model(path))
    assert split is not None
    folder = path.parent / "parts"
    manifest = write_parts(path, split.model, split.model, split.parts, folder)
    assert Manifest.model_validate_json((folder / "pipeline.json").read_text()) == manifest
    return manifest, PartsSession(manifest, folder, optimization="none")


def assert_parts_equal_the_whole(path: Path, *shapes: tuple[int, ...]) -> Manifest:
    """On random inputs, to the last bit."""
    manifest, parts = cut(path)
    rng = np.random.default_rng(7)
    row = {
        value.name: rng.standard_normal(shape).astype(np.float32)
        for value, shape in zip(onnx.load(path).graph.input, shapes, strict=True)
    }
    wanted, given = Session(path, optimization="none").run(row), parts.run(row)
    assert wanted.keys() == given.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(given[name], array)
    return manifest


def test_the_body_of_a_loop_is_run_as_often_as_the_loop_would(tmp_path: Path) -> None:
    manifest = assert_parts_equal_the_whole(sampler(tmp_path), (1, 8), (1, 4))
    assert [part.name for part in manifest.parts] == ["Part1", "Body1", "Part2"]
    step = next(step for step in manifest.steps if isinstance(step, LoopStep))
    assert (step.part, step.times) == ("Body1", 6)
    assert step.inputs == {"wide": "wide"}
    assert {own: (c.first, c.then) for own, c in step.carried.items()} == {"x": ("noise", "next")}
    assert step.counters == ("i.run",)
    assert (step.outputs, step.stacked) == ({"next": "latent"}, {"trace": "path"})


def test_the_body_is_an_ordinary_model_with_static_shapes(tmp_path: Path) -> None:
    manifest, _ = cut(sampler(tmp_path))
    body = next(part for part in manifest.parts if part.name == "Body1")
    assert {v.name: v.shape for v in body.inputs} == {"x": (1, 8), "i.run": (1,), "wide": (1, 8)}
    assert {v.name: v.shape for v in body.outputs} == {"next": (1, 8), "trace": (1, 8)}
    nodes = onnx.load(tmp_path / "parts" / "Body1.onnx").graph.node
    operators = [node.op_type for node in nodes]
    assert operators == ["Reshape", "Gather", "Add", "Gemm", "Tanh", "Mul", "Add", "Sub"]


def test_a_state_may_begin_with_a_constant_that_the_graph_computes(tmp_path: Path) -> None:
    text = (
        HEAD
        + """g (float[1,3] x) => (float[1,3] y) {
      shape = Shape(x)
      zeros = ConstantOfShape(shape)
      count = Gather<axis = 0>(shape, one)
      sum = Loop (count, yes, zeros) <body = b (int64 i, bool go, float[1,3] s)
        => (bool go_on, float[1,3] t) { go_on = Identity(go)\n d = Add(s, x)\n t = Tanh(d) }>
      y = Neg(sum)
    }"""
    )
    path = sampler(tmp_path, text, one=np.array(1), yes=np.array(True))
    manifest = assert_parts_equal_the_whole(path, (1, 3))
    assert [part.name for part in manifest.parts] == ["Constants", "Body1", "Part2"]


def test_loops_behind_each_other_and_side_by_side_keep_their_order(tmp_path: Path) -> None:
    body = (
        "<body = b{0} (int64 i{0}, bool go{0}, float[1,3] s{0}) => (bool on{0}, float[1,3] t{0}) "
        "{{ on{0} = Identity(go{0})\n d{0} = Add(s{0}, {1})\n t{0} = Sin(d{0}) }}>"
    )
    text = (
        HEAD
        + f"""g (float[1,3] x, float[1,3] z) => (float[1,3] y) {{
      a = Loop (trips, , x) {body.format(1, "z")}
      b = Loop (trips, , z) {body.format(2, "x")}
      m = Mul(a, b)
      c = Loop (trips, , m) {body.format(3, "a")}
      e = Exp(z)
      y = Add(c, e)
    }}"""
    )
    manifest = assert_parts_equal_the_whole(sampler(tmp_path, text), (1, 3), (1, 3))
    order = [step.part for step in manifest.steps if step.kind != "host"]
    assert order == ["Part1", "Body1", "Body2", "Part2", "Body3", "Part3"]


@pytest.mark.parametrize("back", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_scan_cuts_and_joins_along_its_axes_in_its_directions(
    tmp_path: Path, axis: int, back: int
) -> None:
    shape = [1, 4]
    shape.insert(axis % 3, 5)
    given, out = ",".join(map(str, shape)), [1, 4]
    out.insert((axis + 1) % 3, 5)
    joined, attributes = (
        ",".join(map(str, out)),
        (
            f"num_scan_inputs = 1, scan_input_axes = [{axis}], "
            f"scan_output_axes = [{(axis + 1) % 3}], "
            f"scan_input_directions = [{back}], scan_output_directions = [{1 - back}]"
        ),
    )
    text = (
        HEAD
        + f"""g (float[{given}] x, float[1,4] s0) => (float[1,4] s, float[{joined}] y) {{
      s, y = Scan <{attributes},
        body = b (float[1,4] state, float[1,4] row) => (float[1,4] after, float[1,4] told)
          {{ both = Add(state, row)\n after = Tanh(both)\n told = Mul(after, row) }}> (s0, x)
    }}"""
    )
    manifest = assert_parts_equal_the_whole(sampler(tmp_path, text), tuple(shape), (1, 4))
    step = next(step for step in manifest.steps if isinstance(step, LoopStep))
    assert step.times == 5


LOOP = "Loop ({0}) <body = b (int64 i, bool go, float[1,3] s) => (bool on, float[{2}] t) {{ {1} }}>"


@pytest.mark.parametrize(
    ("given", "inside", "state", "says"),
    [
        ("n, , x", "on = Identity(go)\n t = Sin(s)", "1,3", "computed at run time"),
        ("trips, , x", "m = ReduceMax<keepdims = 0>(s)\n on = Less(m, m)\n t = Sin(s)", "1,3",
         "ends when its body says so"),
        ("none, , x", "on = Identity(go)\n t = Sin(s)", "1,3", "never runs"),
        ("trips, , x", "on = Identity(go)\n t = Concat<axis = 0>(s, s)", "2,3",
         "changes the shape"),
    ],
)  # fmt: skip
def test_a_loop_that_cannot_be_run_by_the_host_is_refused_by_name(
    tmp_path: Path, given: str, inside: str, state: str, says: str
) -> None:
    loop = LOOP.format(given, inside, state)
    text = HEAD + f"g (float[1,3] x, int64 n) => (float[?,3] y) {{ [turn] y = {loop} }}"
    path = sampler(tmp_path, text, none=np.array(0))
    with pytest.raises(ExportError, match=says) as caught:
        split_loops(load_model(path))
    assert "Loop `turn`" in str(caught.value)


def test_a_loop_whose_body_is_no_sound_model_is_refused_by_name(tmp_path: Path) -> None:
    inside = "on = Identity(go)\n u = Cast<to = 21>(s)\n v = MatMul(u, u)\n t = Cast<to = 1>(v)"
    loop = LOOP.format("trips, , x", inside, "1,3")
    model = model_of(
        HEAD + f"g (float[1,3] x) => (float[1,3] y) {{ [turn] y = {loop} }}", trips=np.array(2)
    )
    with pytest.raises(ExportError, match="no sound model") as caught:
        split_loops(model)
    assert "Loop `turn`" in str(caught.value)


def test_a_graph_without_loops_has_nothing_to_split(tmp_path: Path) -> None:
    path = sampler(tmp_path, HEAD + "g (float[1,8] x) => (float[1,8] y) { y = Gemm(x, w) }")
    assert split_loops(load_model(path)) is None


def test_random_numbers_inside_the_graph_are_refused(tmp_path: Path) -> None:
    text = SAMPLER.replace("kept = Relu(latent)", "n = RandomNormalLike(latent)\n kept = Add(n, n)")
    with pytest.raises(ExportError, match="random"):
        split_loops(load_model(sampler(tmp_path, text)))
