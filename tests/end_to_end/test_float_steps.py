"""Float steps in a recipe: between export and ranges, resumed like everything, on record."""

import numpy as np
import pytest

from onnxq.pipeline import STAGES
from tests.quantize.float_nets import depthwise

pytestmark = pytest.mark.slow


@pytest.fixture
def stepped(tiny):
    tiny.values["quantize"] = {"float_steps": ["equalize", "absorb"], "steps": []}
    return tiny


def test_a_recipe_with_float_steps_ends_with_a_bundle_judged_against_its_fp32_file(stepped, onnxq):
    ended = onnxq(*stepped.arguments())

    assert ended.code == 0, ended.err
    exported = stepped.record("export", "export.json")["model"]["sha256"]
    equalized = stepped.record("calibrate", "equalized.json")
    quantized = stepped.record("quantize", "int8.json")
    assert equalized["fp32_sha256"] == quantized["fp32_sha256"] == exported
    calibrated_on = stepped.record("calibrate", "calibration.json")["model_sha256"]
    assert calibrated_on == equalized["model"]["sha256"] != exported
    assert [step["step"] for step in equalized["steps"]] == ["equalize", "absorb"]
    report = stepped.record("verify", "report.json")
    assert min(row["sqnr_db"] for row in report["layers"]) > 10
    assert not any(row["faults"] for row in report["audit"])


def test_with_float_steps_too_a_second_run_finds_every_stage_up_to_date(stepped, onnxq):
    assert onnxq(*stepped.arguments()).code == 0

    again = onnxq(*stepped.arguments())

    assert again.code == 0
    assert again.out.count("up to date") == len(STAGES)


def test_other_float_steps_run_again_from_calibration(stepped, onnxq):
    assert onnxq(*stepped.arguments("--to", "quantize")).code == 0
    stepped.values["quantize"] = {"float_steps": ["equalize"], "steps": []}

    again = onnxq(*stepped.arguments("--to", "quantize"))

    assert again.code == 0
    assert [line.split()[1] for line in again.out.splitlines() if "up to date" in line] == [
        "export"
    ]


def test_an_equalized_graph_that_was_tampered_with_is_made_again(stepped, onnxq):
    assert onnxq(*stepped.arguments("--to", "calibrate")).code == 0
    model = stepped.build / "calibrate" / "equalized.onnx"
    good = model.read_bytes()
    model.write_bytes(good[:-10])

    again = onnxq(*stepped.arguments("--to", "calibrate"))

    assert again.code == 0
    assert model.read_bytes() == good


def test_plain_files_take_float_steps_by_flag_before_ranges_and_not_after(tmp_path, onnxq):
    net = depthwise(tmp_path)
    np.savez(tmp_path / "data.npz", **net.samples.inputs)
    data = ("--data", tmp_path / "data.npz")
    steps = ("--float-step", "equalize")

    direct = onnxq(
        "quantize", net.path, *data, *steps, "--effort", "none", "-o", tmp_path / "direct.onnx"
    )
    ranges = onnxq("calibrate", net.path, *data, *steps, "-o", tmp_path / "ranges")
    calibration = ("--calibration", tmp_path / "ranges")
    later = onnxq(
        "quantize", net.path, *calibration, "--effort", "none", "-o", tmp_path / "later.onnx"
    )
    too_late = onnxq("quantize", net.path, *calibration, *steps, "-o", tmp_path / "no.onnx")

    assert (direct.code, ranges.code, later.code, too_late.code) == (0, 0, 0, 2)
    assert "equalize: 32 channels of 2 layers" in direct.out
    assert (tmp_path / "direct.onnx").read_bytes() == (tmp_path / "later.onnx").read_bytes()
    assert "give it to `onnxq calibrate`" in too_late.err
