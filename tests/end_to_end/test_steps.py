"""Refine steps from a recipe and from the command line: what ran, on what, and what is refused."""

import onnxruntime as ort
import pytest
from test_plain import save_net, save_pictures


def test_a_recipe_with_steps_passes_for_all_its_targets_and_the_record_says_what_ran(tiny, onnxq):
    steps = ["bias", "weights-mse"]
    tiny.values |= {
        "target": "stm32n6",
        "quantize": {"also_for": ["ort-x86"], "steps": steps},
    }

    ended = onnxq(*tiny.arguments())

    assert ended.code == 0, ended.out + ended.err
    for name in ("int8.json", "int8-u8.ort-x86.json"):
        record = tiny.record("quantize", name)
        lines = [line for line in record["steps"] if line.startswith(("bias:", "weights-mse:"))]
        assert [line.split(":")[0] for line in lines] == ["weights-mse", "bias"]
        assert all("held-back runs" in line for line in lines)
    ended = onnxq(*tiny.arguments())
    assert ended.code == 0
    tiny.values["quantize"] = {"also_for": ["ort-x86"], "steps": ["biass"]}
    assert onnxq(*tiny.arguments()).code == 2


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "model.onnx")
    save_pictures(tmp_path / "calib.npz", 32, seed=1)
    return tmp_path


def test_the_flag_names_a_step_and_the_file_runs(files, onnxq):
    ended = onnxq(
        "quantize", "model.onnx", "--data", "calib.npz", "--step", "bias", "-o", "int8.onnx"
    )

    assert ended.code == 0, ended.err
    assert "held-back runs" in ended.out
    ort.InferenceSession(str(files / "int8.onnx"))


def test_steps_on_a_folder_of_ranges_are_refused(files, onnxq):
    assert onnxq("calibrate", "model.onnx", "--data", "calib.npz", "-o", "ranges").code == 0

    ended = onnxq(
        "quantize", "model.onnx", "--calibration", "ranges", "--step", "bias", "-o", "int8.onnx",
        "--json",
    )  # fmt: skip

    assert ended.code == 2
    assert ended.json["error"]["kind"] == "UsageError"
    assert "--data SOURCE" in ended.json["error"]["do"]
    assert not (files / "int8.onnx").exists()


def test_the_flag_is_refused_beside_a_recipe(tiny, onnxq):
    ended = onnxq("quantize", tiny.recipe, "--step", "bias", "--json")

    assert ended.code == 2
    assert "`--step` is for plain files only" in ended.json["error"]["what"]
