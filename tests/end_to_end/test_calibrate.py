"""``onnxq calibrate`` and ``merge`` as commands: what runs, what is reused, what is told."""

import json
import sys

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.artifacts import CalibrationResult
from onnxq.calibrate.collect import Collector
from onnxq.calibrate.stage import RECORD, STATISTICS
from onnxq.store import load_record

METHODS = ("minmax", "ema", "percentile", "mse", "entropy", "meanstd")
RANDOM = np.random.default_rng(3)


def save_net(path, batch="N", gain=1.0):
    text = f"""<ir_version: 9, opset_import: ["": 17]>
    g (float[{batch},3,6,6] image) => (float[{batch},4] scores) {{
        [conv] c = Conv<pads=[1,1,1,1]>(image, w)
        [relu] r = Relu(c)
        [gap] p = GlobalAveragePool(r)
        [flat] f = Flatten(p)
        [gemm] scores = Gemm<transB=1>(f, v)
    }}"""
    model = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name, shape in (("w", (4, 3, 3, 3)), ("v", (4, 4))):
        array = (random.standard_normal(shape) * gain).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)
    return path


@pytest.fixture
def net(tmp_path):
    return save_net(tmp_path / "m.onnx")


@pytest.fixture
def data(tmp_path):
    return save_data(tmp_path / "d.npz", 12)


def save_data(path, count):
    np.savez(path, image=RANDOM.standard_normal((count, 3, 6, 6)).astype(np.float32))
    return path


@pytest.fixture
def runs(monkeypatch):
    """How many samples the network is run on, trials left out."""
    seen = []
    original = Collector.collect

    def collect(self, given, start, stop):
        if (start, stop) != (0, 1):
            seen.extend(range(start, stop))
        return original(self, given, start, stop)

    monkeypatch.setattr(Collector, "collect", collect)
    return seen


@pytest.mark.parametrize("method", METHODS)
def test_every_method_calibrates_and_its_folder_quantizes(net, data, tmp_path, onnxq, method):
    out, int8 = tmp_path / "out", tmp_path / "q.onnx"
    ended = onnxq("calibrate", net, "--data", data, "--method", method, "-o", out)
    assert ended.code == 0, ended.err
    assert f"ranges by {method} from 12 samples" in ended.out
    ended = onnxq("quantize", net, "--calibration", out, "-o", int8)
    assert ended.code == 0, ended.err
    operators = {node.op_type for node in onnx.load(int8).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert load_record(CalibrationResult, out / RECORD).method == method
    assert not (tmp_path / "out.partial").exists()


def test_another_method_over_histograms_runs_no_model(net, data, tmp_path, onnxq, runs):
    command = ("calibrate", net, "--data", data, "-o", tmp_path / "out", "--method")
    assert onnxq(*command, "mse").code == 0
    assert sorted(runs)[-11:] == list(range(1, 12))
    before = (tmp_path / "out" / STATISTICS).read_bytes()
    runs.clear()
    for method in METHODS:
        assert onnxq(*command, method).code == 0
        assert load_record(CalibrationResult, tmp_path / "out" / RECORD).method == method
    assert runs == []
    assert (tmp_path / "out" / STATISTICS).read_bytes() == before


def test_extremes_do_for_ema_and_are_replaced_for_mse(net, data, tmp_path, onnxq, runs):
    command = ("calibrate", net, "--data", data, "-o", tmp_path / "out", "--method")
    assert onnxq(*command, "minmax").code == 0
    assert runs
    runs.clear()
    assert onnxq(*command, "ema").code == 0
    assert runs == []
    assert onnxq(*command, "mse").code == 0
    assert runs


@pytest.mark.parametrize("changed", ["sample", "model", "--optimization", "--seed", "damage"])
def test_what_changes_the_statistics_runs_the_model_again(
    net, data, tmp_path, onnxq, runs, changed
):
    command = ["calibrate", net, "--data", data, "-o", tmp_path / "out", "--collect", "histograms"]
    assert onnxq(*command).code == 0
    whole = (tmp_path / "out" / STATISTICS).read_bytes()
    runs.clear()
    if changed == "sample":
        save_data(data, 12)
    elif changed == "model":
        save_net(net, gain=2)
    elif changed == "damage":
        damaged = bytearray(whole)
        damaged[len(whole) // 2] ^= 1
        (tmp_path / "out" / STATISTICS).write_bytes(damaged)
    else:
        command += [changed, "full" if changed == "--optimization" else "5"]
    assert onnxq(*command).code == 0
    assert runs
    if changed == "damage":
        assert (tmp_path / "out" / STATISTICS).read_bytes() == whole


def test_damaged_statistics_are_told_where_they_are_needed(net, data, tmp_path, onnxq):
    out = tmp_path / "out"
    assert onnxq("calibrate", net, "--data", data, "--method", "mse", "-o", out).code == 0
    (out / STATISTICS).write_bytes((out / STATISTICS).read_bytes()[:-1])
    ended = onnxq("merge", out, "--method", "mse", "-o", tmp_path / "again")
    assert ended.code == 2
    assert STATISTICS in ended.err
    assert "onnxq calibrate" in ended.err
    assert not (tmp_path / "again").exists()


# --- batches -------------------------------------------------------------------------------------


def test_a_model_with_a_fixed_batch_is_calibrated_and_quantized(tmp_path, onnxq):
    net, data = save_net(tmp_path / "m.onnx", batch=4), save_data(tmp_path / "d.npz", 12)
    ended = onnxq("calibrate", net, "--data", data, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    found = load_record(CalibrationResult, tmp_path / "out" / RECORD)
    image = np.load(data)["image"]
    assert found.ranges["image"].observed_high == image.max()
    assert found.ranges["image"].values == image.size
    assert found.collection.batch == 4
    ended = onnxq("quantize", net, "--calibration", tmp_path / "out", "-o", tmp_path / "q.onnx")
    assert ended.code == 0, ended.err
    ended = onnxq("quantize", net, "--data", data, "-o", tmp_path / "p.onnx")
    assert ended.code == 0, ended.err


def test_samples_that_fill_no_batch_are_left_out_by_default_and_refused_if_asked_for(
    tmp_path, onnxq
):
    net, data = save_net(tmp_path / "m.onnx", batch=4), save_data(tmp_path / "d.npz", 10)
    command = ("calibrate", net, "--data", data, "-o", tmp_path / "out")
    ended = onnxq(*command)
    assert ended.code == 0, ended.err
    assert "from 8 samples" in ended.out
    ended = onnxq(*command, "--samples", 10)
    assert ended.code == 2
    assert "10 samples do not fill batches of 4, which the model takes" in ended.err
    assert "ask for a multiple of 4" in ended.err


# --- merge ---------------------------------------------------------------------------------------


def test_parts_of_two_machines_are_merged_and_quantized(net, tmp_path, onnxq):
    folders = []
    for name in ("a", "b"):
        data = save_data(tmp_path / f"{name}.npz", 6)
        ended = onnxq("calibrate", net, "--data", data, "--method", "mse", "-o", tmp_path / name)
        assert ended.code == 0, ended.err
        folders.append(tmp_path / name)
    ended = onnxq("merge", *folders, "-o", tmp_path / "c", "--json")
    assert ended.code == 0, ended.err
    assert len(ended.json["record"]["choice"]["digests"]) == 12
    assert ended.json["record"]["method"] == "mse"
    int8 = tmp_path / "q.onnx"
    assert onnxq("quantize", net, "--calibration", tmp_path / "c", "-o", int8).code == 0
    ended = onnxq("merge", tmp_path / "c", tmp_path / "a", "-o", tmp_path / "d")
    assert ended.code == 2
    assert "byte for byte" in ended.err


# --- what a person sees, and wrong command lines -------------------------------------------------


def test_the_forecast_stands_before_work_even_where_it_is_short(net, data, tmp_path, onnxq):
    ended = onnxq("calibrate", net, "--data", data, "-o", tmp_path / "out")
    assert "tensors, about" in ended.err
    assert "MB and 1 s: 0/12" in ended.err
    quiet = onnxq("calibrate", net, "--data", data, "-o", tmp_path / "quiet", "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_too_little_memory_is_told_before_any_run(net, data, tmp_path, onnxq, runs):
    out = tmp_path / "out"
    ended = onnxq("calibrate", net, "--data", data, "--max-memory", 20, "-o", out)
    assert ended.code == 2
    assert "--max-memory" in ended.err
    assert "20 MB are allowed" in ended.err
    assert runs == []
    assert not out.exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "average"], "'average' is not one of"),
        (["--coverage", "0.99"], "`coverage` is read by percentile only"),
        (["--method", "percentile", "--coverage", "2"], "less than or equal to 1"),
        (["--method", "percentile", "--coverage", "nan"], "nan is no number to use"),
        (["--method", "mse", "--collect", "extremes"], "mse needs histograms"),
        (["--workers", "0"], "--workers"),
        (["--workers", "2", "--ray", "auto"], "give --workers or --ray, not both"),
        (["--checkpoint", "0"], "--checkpoint"),
        (["--samples", "13"], "holds 12 samples, 13 were asked for"),
        (["--option", "size"], "not of the form KEY=VALUE"),
        (["--also-for", "stm32n7"], "stm32n7"),
    ],
)
def test_a_wrong_command_line_is_told_in_words(net, data, tmp_path, onnxq, flags, says):
    ended = onnxq("calibrate", net, "--data", data, "-o", tmp_path / "out", *flags)
    assert ended.code == 2
    assert says in " ".join(ended.err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("missing", ["model", "data"])
def test_a_missing_file_is_named(net, data, tmp_path, onnxq, missing):
    {"model": net, "data": data}[missing].unlink()
    ended = onnxq("calibrate", net, "--data", data, "-o", tmp_path / "out")
    assert ended.code == 2
    assert {"model": net, "data": data}[missing].name in ended.err


def test_without_samples_or_a_folder_it_says_what_is_needed(net, data, tmp_path, onnxq):
    assert "--data SOURCE" in onnxq("calibrate", net, "-o", tmp_path / "out").err
    assert "-o DIR" in onnxq("calibrate", net, "--data", data).err


def test_ray_without_its_package_names_the_extra(net, data, tmp_path, onnxq, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = onnxq(
        "calibrate", net, "--data", data, "-o", tmp_path / "out", "--ray", "auto", "--json"
    )
    assert ended.code == 2
    assert ended.json["error"]["kind"] == "MissingExtraError"
    assert "onnxq[ray]" in json.dumps(ended.json["error"])


def test_a_recipe_resumes_by_itself_and_says_so(tiny, onnxq):
    ended = onnxq("calibrate", tiny.recipe, "--build-dir", tiny.build, "--resume")
    assert ended.code == 2
    assert "`--resume`" in ended.err


def test_a_folder_of_a_person_is_not_replaced(net, data, tmp_path, onnxq):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    ended = onnxq("calibrate", net, "--data", data, "-o", tmp_path / "out")
    assert ended.code == 2
    assert (tmp_path / "out" / "thesis.tex").read_text() == "mine"


def test_files_of_a_person_beside_the_pieces_stay(net, data, tmp_path, onnxq):
    partial = tmp_path / "out.partial"
    partial.mkdir()
    (partial / "thesis.tex").write_text("mine")
    assert onnxq("calibrate", net, "--data", data, "-o", tmp_path / "out").code == 0
    assert [path.name for path in partial.iterdir()] == ["thesis.tex"]
