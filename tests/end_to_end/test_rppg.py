"""The shipped rPPG recipe on freshly made synthetic subjects: what the README promises of it."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "models" / "rppg" / "recipe.yaml"
MADE = ROOT / "build" / "data" / "rppg"


@pytest.fixture(scope="module")
def subjects(tmp_path_factory):
    """The synthetic calibration and test subjects; those of `make rppg` if they are there."""
    if (MADE / ".ready").exists():
        return MADE
    folder = tmp_path_factory.mktemp("subjects")
    command = [sys.executable, "-m", "models.rppg.synthesize", "--out", str(folder)]
    subprocess.run([*command, "--splits", "calibration", "test"], cwd=ROOT, check=True)
    return folder


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    return tmp_path_factory.mktemp("build") / "rppg"


@pytest.fixture
def arguments(subjects, build):
    return [
        "run", RECIPE, "--build-dir", build, "--json",
        "--set", f"data.calibration.paths.root={subjects}",
        "--set", f"data.evaluation.paths.root={subjects}",
    ]  # fmt: skip


def test_the_shipped_recipe_passes_on_subjects_never_seen(onnxq, arguments):
    ended = onnxq(*arguments)

    assert ended.code == 0, ended.err
    comparison = ended.json["report"]["comparison"]
    assert comparison["samples"] >= 500
    assert comparison["groups"] == 12
    mae = comparison["metrics"][0]
    assert mae["fp32"] <= mae["baseline"] / 2
    assert mae["interval"]["high"] <= 2.0
    sizes = {line["what"]: line for line in ended.json["report"]["sizes"]}
    assert sizes["file"]["int8_bytes"] <= 0.42 * sizes["file"]["fp32_bytes"]
    coverage = ended.json["report"]["coverage"]
    assert coverage["macs"]["integer"] == coverage["macs"]["total"] > 58_000_000


def test_4_bit_weights_are_judged_like_any_and_take_a_quarter_of_the_bytes(
    onnxq, subjects, tmp_path
):
    ended = onnxq(
        "run", ROOT / "models" / "rppg" / "recipe-w4a8.yaml", "--build-dir", tmp_path / "w4a8",
        "--json", "--set", f"data.calibration.paths.root={subjects}",
        "--set", f"data.evaluation.paths.root={subjects}",
    )  # fmt: skip

    assert ended.code == 0, ended.err
    report = ended.json["report"]
    assert report["comparison"]["metrics"][0]["interval"]["high"] <= 2.0
    kept = {row["node"] for row in report["audit"] if row["weight_type"] == "int8"}
    assert kept == {"conv_1", "gemm_2"}
    sizes = {line["what"]: line for line in report["sizes"]}
    assert sizes["file"]["int8_bytes"] <= 0.26 * sizes["file"]["fp32_bytes"]
    assert report["coverage"]["macs"]["integer"] == report["coverage"]["macs"]["total"]


def test_nothing_is_run_twice(onnxq, arguments):
    assert onnxq(*arguments).code == 0

    again = onnxq(*arguments)

    assert again.code == 0
    assert again.err.count("up to date") == 5


def test_an_impossible_gate_is_a_failure_in_junit(onnxq, arguments, build):
    gate = "verify.gate=[{metric: mae, max_increase: 0.0001}, {metric: mae_to_fp32, max: 0.0001}]"

    ended = onnxq(*arguments, "--set", gate)

    assert ended.code == 1
    suite = ET.parse(build / "verify" / "junit.xml").getroot()
    assert suite.findall(".//failure")
