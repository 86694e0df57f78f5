"""The whole of it on a tiny system: the real exporter, quantizer and runtime, nothing stood in."""

import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import onnxruntime
import pytest

from onnxq.pipeline import STAGES


def test_a_good_model_passes_and_its_bundle_holds_the_verified_file(tiny, onnxq):
    ended = onnxq(*tiny.arguments("--json"))

    assert ended.code == 0, ended.err
    report = tiny.record("verify", "report.json")
    assert ended.json["verdict"] == report["verdict"] == "passed"
    assert report["comparison"]["samples"] == 360
    assert report["comparison"]["groups"] == 12
    shipped = (tiny.build / "handoff" / "int8.onnx").read_bytes()
    assert shipped == (tiny.build / "quantize" / "int8.onnx").read_bytes()
    for name in ("report.json", "report.md", "report.html", "junit.xml"):
        assert (tiny.build / "verify" / name).stat().st_size > 200


def test_the_known_answers_come_out_of_plain_onnxruntime_bit_for_bit(tiny, onnxq):
    assert onnxq(*tiny.arguments()).code == 0
    bundle = tiny.build / "handoff"

    checked = subprocess.run(
        [sys.executable, "selftest.py"],
        cwd=bundle,
        capture_output=True,
        text=True,
        check=False,
    )
    sums = subprocess.run(
        ["sha256sum", "--check", "--quiet", "SHA256SUMS"],
        cwd=bundle,
        capture_output=True,
        check=False,
    )

    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert sums.returncode == 0, sums.stderr


def test_a_second_run_finds_every_stage_up_to_date(tiny, onnxq):
    assert onnxq(*tiny.arguments()).code == 0

    again = onnxq(*tiny.arguments())

    assert again.code == 0
    assert again.out.count("up to date") == len(STAGES)


@pytest.mark.long
def test_another_seed_runs_again_from_calibration_only(tiny, onnxq):
    assert onnxq(*tiny.arguments()).code == 0

    again = onnxq(*tiny.arguments("--set", "calibrate.seed=4"))

    assert again.code == 0
    assert [line.split()[1] for line in again.out.splitlines() if "up to date" in line] == [
        "export"
    ]


def test_a_file_that_was_tampered_with_is_made_again(tiny, onnxq):
    assert onnxq(*tiny.arguments()).code == 0
    model = tiny.build / "quantize" / "int8.onnx"
    good = model.read_bytes()
    model.write_bytes(good[:-10])

    again = onnxq(*tiny.arguments())

    assert again.code == 0
    assert model.read_bytes() == good


def test_an_impossible_gate_ends_with_one_and_junit_shows_a_failure(tiny, onnxq):
    tiny.values["verify"]["gate"] = [{"metric": "mae_to_fp32", "max": 0.0001}]

    ended = onnxq(*tiny.arguments())

    assert ended.code == 1
    assert not (tiny.build / "handoff").exists()
    suite = ET.parse(tiny.build / "verify" / "junit.xml").getroot()
    assert suite.findall(".//failure")


def test_a_gate_that_the_interval_straddles_is_inconclusive(tiny, onnxq):
    assert onnxq(*tiny.arguments("--to", "verify")).code == 0
    gate = tiny.record("verify", "report.json")["gates"][1]
    between = (gate["point"] + gate["bound"]) / 2
    tiny.values["verify"]["gate"] = [{"metric": "mae_to_fp32", "max": between}]

    ended = onnxq(*tiny.arguments())

    assert ended.code == 2
    assert "would settle it" in ended.out


def test_every_target_gives_a_file_of_its_own_type(tiny, onnxq):
    for target, kind in (("ort-x86", "uint8"), ("ort-arm64", "uint8"), ("stm32n6", "int8")):
        tiny.values["target"] = target
        ended = onnxq(*tiny.arguments("--json"))

        assert ended.code == 0, ended.err
        activations = tiny.record("quantize", "int8.json")["activations"]
        assert {parameters["type"] for parameters in activations.values()} == {kind}


def test_declared_domains_pin_the_scales_of_input_and_output(tiny, onnxq):
    tiny.values["target"] = "stm32n6"
    assert onnxq(*tiny.arguments()).code == 0

    activations = tiny.record("quantize", "int8.json")["activations"]

    assert activations["picture"]["scale"] == float(np.float32(1 / 255))
    assert activations["picture"]["zero_point"] == -128
    assert activations["brightness"]["scale"] == float(np.float32(100 / 255))


def test_calibration_draws_evenly_from_groups_that_evaluation_never_sees(tiny, onnxq):
    assert onnxq(*tiny.arguments()).code == 0

    choice = tiny.record("calibrate", "calibration.json")["choice"]

    assert len(choice["indices"]) == len(set(choice["indices"])) == 64
    counts = np.bincount(np.array(choice["indices"]) // 30)
    assert counts.tolist() == [8] * 8


def test_plain_files_go_from_fp32_to_a_verdict(tiny, onnxq, tmp_path):
    from tiny.system import calibration, evaluation

    assert onnxq(*tiny.arguments("--to", "export")).code == 0
    model = tiny.build / "export" / "exported.onnx"
    for name, samples in (("calib", calibration()), ("eval", evaluation())):
        np.savez(
            tmp_path / f"{name}.npz",
            picture=samples.inputs["picture"],
            labels=samples.labels,
            groups=samples.groups,
        )
    output = tmp_path / "model.int8.onnx"

    made = onnxq("quantize", model, "--data", tmp_path / "calib.npz", "-o", output)
    ranges = onnxq("calibrate", model, "--data", tmp_path / "calib.npz", "-o", tmp_path / "ranges")
    twin = tmp_path / "twin.onnx"
    remade = onnxq("quantize", model, "--calibration", tmp_path / "ranges", "-o", twin)
    judged = onnxq(
        "verify", model, output, "--data", tmp_path / "eval.npz", "--metric", "mae",
        "--max-drop", "1", "--report", tmp_path / "report",
    )  # fmt: skip
    packed = onnxq("handoff", output, "-o", tmp_path / "bundle", "--allow-unverified")
    seen = onnxq("inspect", output, "--json")

    assert [made.code, ranges.code, remade.code, judged.code, packed.code] == [0] * 5, judged.err
    assert twin.read_bytes() == output.read_bytes()
    assert (tmp_path / "report" / "report.html").is_file()
    assert seen.json["coverage"]["macs"]["integer"] == seen.json["coverage"]["macs"]["total"]
    onnxruntime.InferenceSession(output, providers=["CPUExecutionProvider"])


def test_random_calibration_is_stamped_and_never_verified(tiny, onnxq, tmp_path):
    from tiny.system import evaluation

    assert onnxq(*tiny.arguments("--to", "export")).code == 0
    model, output = tiny.build / "export" / "exported.onnx", tmp_path / "random.onnx"
    samples = evaluation()
    np.savez(tmp_path / "eval.npz", picture=samples.inputs["picture"], labels=samples.labels)

    made = onnxq("quantize", model, "--smoke-test-random", "-o", output)
    output.with_suffix(".json").unlink()  # the stamp is in the model itself
    judged = onnxq(
        "verify", model, output, "--data", tmp_path / "eval.npz", "--metric", "mae",
        "--max-drop", "100", "--json",
    )  # fmt: skip

    assert made.code == 0
    assert judged.code == 2
    assert judged.json.get("verdict") == "unverified", judged.err


@pytest.mark.parametrize("flags", [[], ["--smoke-test-random", "--data", "x.npz"]])
def test_without_data_nothing_is_calibrated(tiny, onnxq, tmp_path, flags):
    assert onnxq(*tiny.arguments("--to", "export")).code == 0

    ended = onnxq(
        "quantize", tiny.build / "export" / "fp32.onnx", *flags, "-o", tmp_path / "out.onnx"
    )

    assert ended.code == 2
    assert "real samples" in ended.err
    assert not (tmp_path / "out.onnx").exists()


def test_a_recipe_of_a_file_needs_no_list_of_inputs(tiny, onnxq):
    assert onnxq(*tiny.arguments("--to", "export")).code == 0
    file = tiny.folder / "net.onnx"
    file.write_bytes((tiny.build / "export" / "exported.onnx").read_bytes())
    tiny.values["export"] = {"model": "net.onnx"}

    result = onnxq(*tiny.arguments("--to", "quantize"))

    assert result.code == 0, result.err
