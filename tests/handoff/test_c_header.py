"""The contract in C, compiled by gcc and judged by onnxruntime's own QuantizeLinear."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handoff.qdq_models import with_constants
from handoff.records import N6, samples
from handoff.test_contract import exported, image_model, of
from onnxq.handoff.c_self_test import MOST_NUMBERS, answers_header, vectors_that_fit, write_c_files
from onnxq.handoff.contract import contract
from onnxq.handoff.stage import hand_off
from onnxq.store import sha256_of_file
from onnxq.target import load_target

FLAGS = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-O2")
COPY = """
#include <stdio.h>
#include "contract.h"
int main(void)
{
    %s x;
    while (fread(&x, sizeof x, 1, stdin) == 1) {
        const %s y = %s(x);
        fwrite(&y, sizeof y, 1, stdout);
    }
    return 0;
}
"""


@pytest.fixture(scope="module", params=["stm32n6", "ort-x86"])
def bundle(request, nets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("in c") / "out here"
    hand_off(
        model=nets[request.param], target=load_target(request.param), samples=samples(),
        folder=folder,
    )  # fmt: skip
    return folder


def compiled(folder: Path, source: str, *flags: str) -> Path:
    program = folder / f"{Path(source).stem}.program"
    done = subprocess.run(
        ["gcc", *FLAGS, *flags, source, "-o", program.name, "-lm"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return program


def self_test(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    program = compiled(folder, "self_test.c", *flags)
    return subprocess.run([program], capture_output=True, text=True, check=False)


def files_of(model, folder, answers=None, **kind):
    """The C files of a model, with known answers that onnxruntime gives."""
    known = of(model, None, exported(**kind)) if kind else of(model)
    shape = [10, *known.inputs[0].shape]
    draw = np.random.default_rng(0).random(shape).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x, y = known.inputs[0].name, known.outputs[0].name
    results = [session.run(None, {x: row})[0] for row in draw]
    write_c_files(folder, known, {f"input.{x}": draw, f"output.{y}": np.stack(results)})
    return known


def through_c(folder: Path, name: str, given: np.ndarray, source: str, result: str) -> np.ndarray:
    (folder / f"{name}.c").write_text(COPY % (source, result, name))
    program = compiled(folder, f"{name}.c")
    done = subprocess.run([program], input=given.tobytes(), capture_output=True, check=True)
    kind = {"float": np.float32, "int8_t": np.int8, "uint8_t": np.uint8}[result]
    return np.frombuffer(done.stdout, kind)


def linear(op: str, scale: float, point: np.generic, given: np.ndarray) -> np.ndarray:
    """What onnxruntime's operator of that name gives."""
    kinds = {"QuantizeLinear": (np.float32, point.dtype), "DequantizeLinear": (point.dtype, "f4")}
    source, result = (onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in kinds[op])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x", "s", "p"], ["y"])], "g",
        [onnx.helper.make_tensor_value_info("x", source, [None])],
        [onnx.helper.make_tensor_value_info("y", result, [None])],
        [onnx.numpy_helper.from_array(np.asarray(a), n)
         for n, a in (("s", np.float32(scale)), ("p", point))],
    )  # fmt: skip
    opset = [onnx.helper.make_opsetid("", 17)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": given})[0]


def test_the_self_test_compiles_without_a_warning_and_agrees_on_all_ten_vectors(bundle):
    done = self_test(bundle)
    assert done.returncode == 0, done.stdout
    assert "of 10 vectors: 0 wrong" in done.stdout
    assert int(done.stdout.split()[0]) > 10 * (192 + 4)


def test_known_integers_are_those_inside_the_file(bundle, tmp_path):
    """The file's own first Q and the input of its last DQ are made outputs of the graph."""
    path = next(bundle.glob("*.onnx"))
    model = onnx.load(path)
    quantizer = next(n for n in model.graph.node if "image" in n.input)
    last = next(n for n in model.graph.node if "scores" in n.output)
    inside = (quantizer.output[0], last.input[0])
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    known = of_bundle(bundle)
    with np.load(bundle / "known_answers.npz") as answers:
        kind = "output" if known.inputs[0].quantization.type == "int8" else "other"
        if f"{kind}.scores" not in answers:
            kind = "output"  # both levels of optimization gave the same
        fed, wanted = answers["input.image"], answers[f"{kind}.scores"]
    integers = [session.run(None, {"image": row}) for row in fed]
    text = answers_header(known, {"input.image": fed, "output.scores": wanted})
    for name, rows in zip(("image", "scores"), zip(*integers, strict=True), strict=True):
        array = text.split(f"net_int8_{name}_known[10]")[1].split("= {")[1].split("};")[0]
        written = [int(word) for word in array.replace("{", " ").replace("}", " ").split(",")]
        assert written == np.stack(rows).ravel().tolist()


def of_bundle(folder):
    path = next(folder.glob("*.onnx"))
    return contract(onnx.load(path), None, None, name=path.name, sha256=sha256_of_file(path))


@pytest.mark.parametrize("point", [np.int8(-128), np.int8(17), np.uint8(0), np.uint8(113)])
@settings(max_examples=3, deadline=None)
@given(scale=st.floats(2**-20, 2.0**10, width=32), seed=st.integers(0, 2**32 - 1))
def test_c_quantizes_and_dequantizes_as_onnxruntime(tmp_path_factory, point, scale, seed):
    folder = tmp_path_factory.mktemp("c")
    files_of(image_model(scale, point, type(point)), folder)
    draw = np.random.default_rng(seed)
    halves = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(scale)
    special = np.float32([0.0, -0.0, np.inf, -np.inf, 3e38, -3e38, 1e-45])
    wide = (draw.normal(0, 200, 4000) * scale).astype(np.float32)
    reals = np.concatenate([halves, np.nextafter(halves, np.float32(np.inf)), special, wide])
    kind = f"{point.dtype}_t"

    got = through_c(folder, "net_x_quantize", reals, "float", kind)

    np.testing.assert_array_equal(got, linear("QuantizeLinear", scale, point, reals))
    every = np.arange(*((-128, 128) if point.dtype == np.int8 else (0, 256))).astype(point.dtype)
    back = through_c(folder, "net_x_dequantize", every, kind, "float")
    np.testing.assert_array_equal(back, linear("DequantizeLinear", scale, point, every))


def test_nan_is_the_zero_point_and_not_valid(tmp_path):
    files_of(image_model(0.02, 17), tmp_path, domain=(-1.0, 2.0))
    reals = np.float32([np.nan, -1.0, 2.0, -1.01, 2.01, np.inf])
    assert through_c(tmp_path, "net_x_quantize", reals[:1], "float", "int8_t") == [17]
    valid = through_c(tmp_path, "net_x_is_valid", reals, "float", "int8_t")
    assert valid.tolist() == [0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("scale", [1 / 255, 0.003445])
def test_all_256_bytes_become_what_onnxruntime_makes_of_them(tmp_path, scale):
    files_of(image_model(scale, -128), tmp_path, domain=(0.0, 1.0))
    every = np.arange(256, dtype=np.uint8)
    wanted = linear("QuantizeLinear", scale, np.int8(-128), every.astype(np.float32) / 255)
    got = through_c(tmp_path, "net_x_from_byte", every, "uint8_t", "int8_t")
    np.testing.assert_array_equal(got, wanted)
    assert ("byte - 128" in (tmp_path / "contract.h").read_text().split("_from_byte(")[1]) == (
        scale == 1 / 255
    )


# --- planted defects: a firmware's own conversions in place of those of contract.h ---------------


@pytest.mark.parametrize(("scale", "code"), [(1 / 255, 0), (0.003445, 1)])
def test_d5_13_a_byte_minus_128_is_caught_where_the_scale_is_not_one_over_255(
    tmp_path, scale, code
):
    files_of(image_model(scale, -128), tmp_path, domain=(0.0, 1.0))
    done = self_test(tmp_path, "-DNET_X_FROM_BYTE(b)=((int8_t)((b)-128))")
    assert done.returncode == code, done.stdout
    assert ("WRONG: net_x_from_byte of byte[" in done.stdout) == bool(code)


@pytest.mark.parametrize(
    "wrong",
    {
        "truncates": "((int8_t)((x) / NET_INT8_IMAGE_SCALE + NET_INT8_IMAGE_ZERO_POINT))",
        "halves away from zero": "own(roundf((x) / NET_INT8_IMAGE_SCALE))",
        "halves up": "own(floorf((x) / NET_INT8_IMAGE_SCALE + 0.5f))",
        "does not saturate": "((int8_t)(long)rintf(fmodf((x) / NET_INT8_IMAGE_SCALE, 1e6f)))",
        "rounds with the zero point": "own(rintf((x) / NET_INT8_IMAGE_SCALE + 0.25f))",
        "multiplies by the inverse": "own(rintf((x) * (1.0f / NET_INT8_IMAGE_SCALE)))",
    }.items(),
    ids=lambda pair: pair[0],
)
def test_d5_12_every_other_rounding_is_caught(nets, tmp_path, wrong):
    hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out", samples=samples())
    (tmp_path / "out" / "yours.h").write_text(
        '#include "contract.h"\n'
        "static inline int8_t own(float steps)\n{\n"
        "    const float q = steps - 128.0f;\n"
        "    return (int8_t)(q < -128.0f ? -128.0f : q > 127.0f ? 127.0f : q);\n}\n"
    )
    done = self_test(
        tmp_path / "out", "-include", "yours.h", f"-DNET_INT8_IMAGE_QUANTIZE(x)={wrong[1]}"
    )
    assert done.returncode == 1, done.stdout
    assert "WRONG: net_int8_image_quantize" in done.stdout


def test_a_dequantizer_that_forgets_the_zero_point_is_caught(nets, tmp_path):
    hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out", samples=samples())
    wrong = "((float)(q) * NET_INT8_SCORES_SCALE)"
    done = self_test(tmp_path / "out", f"-DNET_INT8_SCORES_DEQUANTIZE(q)={wrong}")
    assert done.returncode == 1
    assert "WRONG: net_int8_scores_dequantize" in done.stdout


def test_a_changed_scale_in_the_header_is_caught(nets, tmp_path):
    hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out", samples=samples())
    text = (tmp_path / "out" / "contract.h").read_text()
    line = next(
        line for line in text.splitlines() if line.startswith("#define NET_INT8_SCORES_SCALE")
    )
    (tmp_path / "out" / "contract.h").write_text(text.replace(line, f"{line} * 1.01f"))
    assert self_test(tmp_path / "out").returncode == 1


# --- odd models -----------------------------------------------------------------------------------


def renamed(given: str, result: str) -> onnx.ModelProto:
    """A quantizer and a dequantizer, whose input and output have these names."""
    model = image_model(0.1, 3)
    model.graph.node[0].input[0] = model.graph.input[0].name = given
    model.graph.node[1].output[0] = model.graph.output[0].name = result
    return model


def test_any_name_makes_c(tmp_path):
    known = files_of(renamed('*/ int /* ??/ "a\\ 1x%d', "int 1X d a"), tmp_path)
    assert known.inputs[0].name.startswith("*/")
    done = self_test(tmp_path)
    assert done.returncode == 0, done.stdout


def test_names_that_c_could_not_tell_apart_are_numbered(tmp_path):
    files_of(renamed("a:0", "A/0"), tmp_path)
    header = (tmp_path / "contract.h").read_text()
    assert "net_a_0_t;" in header
    assert "net_a_0_2_t;" in header
    assert self_test(tmp_path).returncode == 0


def test_a_free_batch_and_integers_without_quantization_make_c(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[n,2] x, int64[1] step) => (float[n,2] y, bool[1] late) {
      q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) late = Greater (step, limit) }"""
    model = with_constants(text, s=np.float32(0.1), z=np.int8(3), limit=np.int64([5]))
    known = of(model)
    answers = {
        "input.x": np.float32([[[0.1, 0.2]]]),
        "input.step": np.int64([[-(2**63)]]),
        "output.y": np.float32(np.float32([[[1, 2]]]) * np.float32(0.1)),
        "output.late": np.array([[True]]),
    }
    write_c_files(tmp_path, known, answers)
    header = (tmp_path / "contract.h").read_text()
    assert "#define NET_X_SHAPE {-1, 2}" in header
    assert "#define NET_X_COUNT 2" in header
    assert "typedef int64_t net_step_t;" in header
    assert "net_step_quantize" not in header
    assert self_test(tmp_path).returncode == 0


def test_of_a_large_model_edges_alone_are_written(tmp_path):
    model = with_constants(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,200,200] x) => (float[1,3,200,200] y) {
          q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z) }""",
        s=np.float32(0.1),
        z=np.int8(3),
    )
    zeros = np.zeros((2, 1, 3, 200, 200), np.float32)
    answers = {"input.x": zeros, "output.y": zeros}
    assert MOST_NUMBERS < 4 * 120_000
    assert vectors_that_fit(of(model), answers) == 0
    write_c_files(tmp_path, of(model), answers)
    assert (tmp_path / "known_answers.h").stat().st_size < 20_000
    done = self_test(tmp_path)
    assert done.returncode == 0
    assert "of 0 vectors: 0 wrong" in done.stdout


def test_a_file_without_integers_has_nothing_to_judge(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,2] x) => (float[1,2] y) { y = Softmax (x) }"""
    files_of(with_constants(text), tmp_path)
    assert not (tmp_path / "self_test.c").exists()
    (tmp_path / "just.c").write_text('#include "known_answers.h"\nint main(void) { return 0; }\n')
    compiled(tmp_path, "just.c")


def test_fast_math_is_refused(bundle, tmp_path):
    shutil.copytree(bundle, tmp_path / "copy")
    done = subprocess.run(
        ["gcc", *FLAGS, "-ffast-math", "self_test.c", "-lm"],
        cwd=tmp_path / "copy", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "compile without it" in done.stderr
