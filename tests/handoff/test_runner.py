"""The scripts of a bundle, run as its receiver runs them: numpy, onnxruntime, no onnxq."""

import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from handoff.qdq_models import images, with_constants
from handoff.records import X86, run_script, samples, sum_again
from onnxq.handoff.stage import hand_off
from onnxq.provenance import cpu_flags
from onnxq.samples import Samples
from onnxq.target import load_target

TIMED = ("--runs", "3", "--warm-up", "1")


@pytest.fixture(scope="module")
def bundle(nets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("on a board") / "out here"
    hand_off(model=nets["ort-x86"], target=X86, samples=samples(), folder=folder)
    return folder


@pytest.fixture
def copy(bundle, tmp_path):
    """A bundle that may be spoilt."""
    return shutil.copytree(bundle, tmp_path / "a copy")


def change_answers(folder, **changed):
    """Other known answers, with checksums that fit."""
    with np.load(folder / "known_answers.npz") as archive:
        arrays = dict(archive)
    arrays |= {name.replace("__", "."): array for name, array in changed.items()}
    np.savez(folder / "known_answers.npz", **arrays)
    sum_again(folder)


def answers_of(folder):
    with np.load(folder / "known_answers.npz") as archive:
        return dict(archive)


def changed_about(folder, **facts):
    about = json.loads(str(answers_of(folder)["about"]))
    return np.array(json.dumps(about | facts))


# --- selftest.py ----------------------------------------------------------------------------------


def test_a_whole_bundle_passes_and_its_latency_is_told(bundle):
    done = run_script(bundle, *TIMED)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ORT_ENABLE_ALL: 10 vectors, every answer is bit for bit the same" in done.stdout
    assert "3 runs after 1 to warm up, 1 threads" in done.stdout
    assert f"onnxruntime {ort.__version__}" in done.stdout


def test_json_says_the_same_in_one_object(bundle):
    done = run_script(bundle, *TIMED, "--json", "--threads", 2)
    told = json.loads(done.stdout)
    assert (told["exit_code"], told["changed"], told["same_machine"]) == (0, [], True)
    assert told["tolerance_steps"] == 0
    assert told["machine"]["flags"] == list(cpu_flags())
    first = told["answers"][0]
    assert (first["level"], first["decides"], first["vectors"]) == ("ORT_ENABLE_ALL", True, 10)
    assert (first["elements"], first["differing"], first["most_steps"]) == (40, 0, 0)
    latency = told["latency"]
    assert 0 < latency["q1_ms"] <= latency["median_ms"] <= latency["q3_ms"]
    assert (latency["runs"], latency["warm_up"], latency["threads"]) == (3, 1, 2)
    assert "bit for bit" in done.stderr


def test_no_file_is_left_in_the_bundle(bundle):
    before = sorted(bundle.rglob("*"))
    run_script(bundle, "--runs", 0)
    assert sorted(bundle.rglob("*")) == before


def test_it_needs_neither_onnxq_nor_anything_else(bundle):
    """Every module that was loaded comes from Python, numpy, onnxruntime or the bundle."""
    code = (
        "import sys; sys.argv = ['selftest.py', '--runs', '0']; sys.path.insert(0, '.')\n"
        "import selftest; code = selftest.main(); print(*sys.modules, file=sys.stderr)\n"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=bundle, capture_output=True, text=True, check=True
    )
    loaded = {name.partition(".")[0] for name in done.stderr.split()}
    assert {"numpy", "onnxruntime", "contract", "run"} <= loaded
    assert not loaded & {"onnxq", "onnx", "onnx_ir", "pydantic", "yaml", "torch", "jaxtyping"}


@pytest.mark.parametrize("name", ["net_int8.onnx", "contract.json", "known_answers.npz", "run.py"])
def test_a_changed_file_is_named(copy, name):
    with (copy / name).open("ab") as file:
        file.write(b"\n")
    done = run_script(copy)
    assert done.returncode == 1
    assert done.stdout.startswith(f"CHANGED: {name} ")


@pytest.mark.parametrize("name", ["known_answers.npz", "SHA256SUMS", "contract.json", "run.py"])
def test_a_missing_file_cannot_be_checked(copy, name):
    (copy / name).unlink()
    assert run_script(copy).returncode == 2


def test_a_missing_package_is_told_with_its_remedy(copy):
    (copy / "onnxruntime.py").write_text("raise ImportError('No module named onnxruntime')")
    for script in ("selftest.py", "run.py"):
        done = run_script(copy, "x.npz", script=script)
        assert done.returncode == 2
        assert "pip install -r requirements.txt" in done.stderr


def test_the_pinned_versions_are_those_that_are_installed(bundle):
    lines = (bundle / "requirements.txt").read_text().split()
    assert lines == [f"numpy=={np.__version__}", f"onnxruntime=={ort.__version__}"]


@pytest.mark.parametrize(
    ("steps", "arguments", "code"),
    [
        (1, (), 1),
        (1, ("--tolerance", 1), 0),
        (2, ("--tolerance", 1), 1),
        (2, ("--tolerance", 2), 0),
    ],
)
def test_answers_that_are_off_are_counted_in_output_steps(copy, steps, arguments, code):
    answers = answers_of(copy)["output.scores"].copy()
    known = json.loads((copy / "contract.json").read_text())["outputs"][0]["quantization"]
    answers[3, 0, 1] += np.float32(steps * known["scale"])
    change_answers(copy, output__scores=answers)
    done = run_script(copy, *TIMED, *arguments)
    assert done.returncode == code, done.stdout
    assert f"1 of 40 numbers differ by up to {steps} output steps" in done.stdout
    assert "first in vector 3, `scores`" in done.stdout
    assert ("DIFFERS: " in done.stdout) == bool(code)


@pytest.mark.parametrize("other", [{"cpu": ["sparc"]}, {"onnxruntime": "1.2.3"}])
def test_on_another_machine_one_step_is_allowed_and_said(copy, other):
    answers = answers_of(copy)["output.scores"].copy()
    known = json.loads((copy / "contract.json").read_text())["outputs"][0]["quantization"]
    answers[0, 0, 0] += np.float32(known["scale"])
    change_answers(copy, output__scores=answers, about=changed_about(copy, **other))
    done = run_script(copy, *TIMED)
    assert done.returncode == 0, done.stdout
    assert "the answers are of " in done.stdout
    assert "(allowed 1)" in done.stdout
    answers[0, 0, 0] += np.float32(known["scale"])
    change_answers(copy, output__scores=answers)
    assert run_script(copy, *TIMED).returncode == 1


@pytest.mark.parametrize("wrong", [np.float32(np.nan), np.float32(np.inf), np.float64(0)])
def test_an_answer_that_is_no_number_or_of_another_type_is_off_whatever_is_allowed(copy, wrong):
    answers = answers_of(copy)["output.scores"].astype(wrong.dtype)
    answers[0, 0, 0] = wrong
    change_answers(copy, output__scores=answers)
    assert run_script(copy, "--tolerance", 100).returncode == 1


def test_the_other_level_of_optimization_is_told_and_does_not_decide(copy):
    answers = answers_of(copy)
    off = answers["output.scores"] + np.float32(1)
    about = changed_about(copy, levels={"output": "ORT_ENABLE_ALL", "other": "ORT_DISABLE_ALL"})
    change_answers(copy, other__scores=off, about=about)
    done = run_script(copy, *TIMED)
    assert done.returncode == 0
    assert "for information: ORT_DISABLE_ALL" in done.stdout


def test_an_output_computed_in_float_is_measured_in_parts_of_its_span(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4] x) => (float[1,4] y) { y = Softmax (x) }"""
    onnx.save(with_constants(text), tmp_path / "soft.onnx")
    given = Samples(name="x", inputs={"x": np.eye(4, dtype=np.float32) * 9})
    hand_off(model=tmp_path / "soft.onnx", target=X86, samples=given, folder=tmp_path / "out")
    answers = answers_of(tmp_path / "out")["output.y"]
    step = np.ptp(answers) / 255
    change_answers(tmp_path / "out", output__y=answers + np.float32(2 * step))
    done = run_script(tmp_path / "out", "--tolerance", 2.1, "--runs", 0)
    assert done.returncode == 0, done.stdout
    assert "differ by up to 2 output steps" in done.stdout


# --- run.py ---------------------------------------------------------------------------------------


def results(folder, *arguments):
    done = run_script(folder, *arguments, script="run.py")
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    with np.load(folder / "outputs.npz") as archive:
        return dict(archive)


def test_the_known_inputs_give_the_known_outputs(copy):
    given = results(copy, "known_answers.npz")
    np.testing.assert_array_equal(given["scores"], answers_of(copy)["output.scores"])


def test_samples_may_lie_in_a_file_in_a_folder_or_alone(copy):
    pictures, known = images(12), answers_of(copy)
    np.savez(copy / "many.npz", image=pictures)
    (copy / "folder").mkdir()
    np.save(copy / "folder" / "image.npy", pictures)
    np.savez(copy / "one.npz", image=pictures[:1])
    many = results(copy, "many.npz")["scores"]
    assert many.shape == (12, 1, 4)
    np.testing.assert_array_equal(many[known["index"]], known["output.scores"])
    np.testing.assert_array_equal(results(copy, "folder")["scores"], many)
    np.testing.assert_array_equal(results(copy, "one.npz", "--threads", 2)["scores"], many[:1])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (images(2).astype(np.float64), "`image` is float64; the model takes float32"),
        (images(2)[:, :, :7], "has shape (1, 3, 7, 8), not (1, 3, 8, 8)"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "holds NaN"),
        (np.zeros((0, 3, 8, 8), np.float32), "holds no sample"),
        (None, "no array for the input `image`"),
    ],
)
def test_what_the_model_may_not_be_fed_ends_with_two(copy, array, says):
    np.savez(copy / "x.npz", **({"other": np.zeros(1)} if array is None else {"image": array}))
    done = run_script(copy, "x.npz", script="run.py")
    assert done.returncode == 2
    assert says in done.stderr
    assert not (copy / "outputs.npz").exists()


def test_the_declared_domain_is_heeded_unless_told_otherwise(copy):
    facts = json.loads((copy / "contract.json").read_text())
    facts["inputs"][0]["domain"] = [0.0, 1.0]
    (copy / "contract.json").write_text(json.dumps(facts))
    np.savez(copy / "x.npz", image=images(1) * 255)
    done = run_script(copy, "x.npz", script="run.py")
    assert done.returncode == 2
    assert "declared are [0, 1]" in done.stderr
    assert results(copy, "x.npz", "--any-domain")["scores"].shape == (1, 1, 4)


@pytest.mark.parametrize("name", ["nowhere.npz", "README.md"])
def test_a_file_that_cannot_be_read_ends_with_two(copy, name):
    done = run_script(copy, name, script="run.py")
    assert done.returncode == 2
    assert "not done: " in done.stderr


def test_inputs_and_outputs_of_any_name_and_a_fixed_batch_run(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2,4] file, int64[2,4] count) => (float[2,4] args) {
      f = Cast<to=1> (count) args = Add (file, f) }"""
    onnx.save(with_constants(text), tmp_path / "odd name.onnx")
    rows = {"file": np.ones((3, 4), np.float32), "count": np.ones((3, 4), np.int64)}
    hand_off(
        model=tmp_path / "odd name.onnx", target=load_target("ort-arm64"),
        folder=tmp_path / "out", samples=Samples(name="ones", inputs=rows),
    )  # fmt: skip
    given = results(tmp_path / "out", "known_answers.npz")
    np.testing.assert_array_equal(given["args"], np.full((3, 2, 4), 2, np.float32))


def test_unequal_numbers_of_samples_are_refused(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4] a, float[1,4] b) => (float[1,4] y) { y = Add (a, b) }"""
    onnx.save(with_constants(text), tmp_path / "add.onnx")
    hand_off(model=tmp_path / "add.onnx", target=X86, folder=tmp_path / "out")
    np.savez(tmp_path / "x.npz", a=np.ones((2, 4), np.float32), b=np.ones((3, 4), np.float32))
    done = run_script(tmp_path / "out", tmp_path / "x.npz", script="run.py")
    assert done.returncode == 2
    assert "numbers of samples differ: {'a': 2, 'b': 3}" in done.stderr
