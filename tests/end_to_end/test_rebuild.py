"""A bundle is made again from what it records, and every byte is compared."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from onnxq.artifacts import Bundle
from onnxq.store import load_record

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """Where the bundle is kept that is made once."""
    return tmp_path_factory.mktemp("kept") / "handoff"


@pytest.fixture
def made(tiny, onnxq, kept) -> Path:
    """The bundle of the tiny recipe, with one setting of the command line."""
    bundle = tiny.build / "handoff"
    if kept.is_dir():
        shutil.copytree(kept, bundle)
        assert tiny.recipe.is_file()
    else:
        assert onnxq(*tiny.arguments("--set", "calibrate.seed=4")).code == 0
        shutil.copytree(bundle, kept)
    return bundle


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_bundle_is_made_again_to_the_last_byte(made, onnxq):
    before = files_of(made)

    ended = onnxq("rebuild", made, "--json")

    assert ended.code == 0, ended.err + ended.out
    assert (ended.json["differences"], ended.json["reasons"]) == ([], [])
    assert ended.json["files"] == len(before)
    assert files_of(made) == before


def test_two_runs_in_different_folders_make_the_same_bytes(made, tiny, onnxq, tmp_path):
    other = tmp_path / "another folder"
    shutil.copytree(tiny.folder, other, ignore=shutil.ignore_patterns("build folder"))
    arguments = ("--build-dir", tmp_path / "elsewhere", "--set", "calibrate.seed=4")

    assert onnxq("run", other / "recipe.yaml", *arguments).code == 0

    again = files_of(tmp_path / "elsewhere" / "handoff")
    assert again == files_of(made)
    assert {"report/report.html", "report/report.json", "recipe.yaml", "known_answers.h"} <= set(
        again
    )


def test_the_bundle_holds_no_path_but_those_of_the_recipe(made, tiny):
    files = files_of(made)
    assert files.pop("recipe.yaml").decode() == tiny.recipe.read_text()
    for name, content in files.items():
        assert str(tiny.folder).encode() not in content, name
        assert str(Path(__file__).parent).encode() not in content, name


def test_everything_it_was_made_from_is_recorded(made, tiny):
    origin = load_record(Bundle, made / "bundle.json").origin

    assert (origin.kind, origin.source, origin.target) == ("recipe", "recipe.yaml", "ort-x86")
    assert origin.settings == ("calibrate.seed=4",)
    assert (made / "recipe.yaml").read_text() == tiny.recipe.read_text()
    assert [item.what for item in origin.ingredients] == [
        "checkpoint", "code of the network", "code of the task", "calibration samples",
        "evaluation samples",
    ]  # fmt: skip


@pytest.mark.parametrize("flags", [["--set", "calibrate.samples=60"], ["--quick"]])
def test_every_setting_of_the_command_line_changes_the_record(tiny, onnxq, flags):
    """B5.11: an option that changes nothing is a dead one."""
    assert onnxq(*tiny.arguments()).code == 0
    before = load_record(Bundle, tiny.build / "handoff" / "bundle.json").origin

    assert onnxq(*tiny.arguments(*flags)).code == 0

    after = load_record(Bundle, tiny.build / "handoff" / "bundle.json").origin
    assert (before.settings, len(after.settings)) == ((), 2 if flags == ["--quick"] else 1)


def test_another_checkpoint_is_the_reason_that_is_named(made, tiny, onnxq):
    from safetensors.numpy import load_file, save_file

    weights = load_file(tiny.checkpoint)
    weights["features.0.bias"] = weights["features.0.bias"] * np.float32(1.001)
    save_file(weights, tiny.checkpoint)

    ended = onnxq("rebuild", made)

    assert ended.code == 1
    assert "int8.onnx" in ended.out
    assert "checkpoint `net.safetensors`: is not what it was then" in ended.out
    assert "calibration samples" not in ended.out


def test_a_missing_checkpoint_ends_with_two(made, tiny, onnxq):
    tiny.checkpoint.unlink()

    ended = onnxq("rebuild", made)

    assert ended.code == 2
    assert "net.safetensors" in ended.err


def test_a_recipe_that_is_not_found_is_asked_for(made, tiny, onnxq, tmp_path):
    shutil.move(made, tmp_path / "alone")

    lost = onnxq("rebuild", tmp_path / "alone")
    found = onnxq("rebuild", tmp_path / "alone", "--recipe", tiny.folder / "recipe.yaml")

    assert (lost.code, found.code) == (2, 0), found.err + found.out
    assert "--recipe" in lost.err


def test_it_may_be_called_from_inside_the_bundle(made, tiny, onnxq, monkeypatch):
    monkeypatch.chdir(made)
    assert tiny.recipe.is_file()
    assert onnxq("rebuild", ".").code == 0


def test_the_bundles_own_recipe_counts_not_the_one_that_was_changed_since(made, tiny, onnxq):
    tiny.values["calibrate"]["samples"] = 50
    assert "50" in tiny.recipe.read_text()

    assert onnxq("rebuild", made).code == 0


@pytest.mark.parametrize("with_data", [True, False])
def test_a_plain_files_bundle_is_handed_off_again(tiny, onnxq, tmp_path, with_data):
    from tiny.system import evaluation

    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0
    samples = evaluation()
    np.savez(tmp_path / "eval.npz", picture=samples.inputs["picture"], labels=samples.labels)
    model, bundle = tiny.build / "quantize" / "int8.onnx", tmp_path / "bundle"
    data = ["--data", tmp_path / "eval.npz"] if with_data else []
    assert onnxq("handoff", model, *data, "-o", bundle, "--allow-unverified").code == 0

    same = onnxq("rebuild", bundle)
    np.savez(tmp_path / "eval.npz", picture=samples.inputs["picture"][::-1])
    other = onnxq("rebuild", bundle)

    assert same.code == 0, same.err + same.out
    assert other.code == int(with_data)
    assert ("samples `eval.npz`: is not what it was then" in other.out) == with_data


def plain_bundle(tiny, onnxq, tmp_path) -> Path:
    """A bundle of a plain file that was quantized from a plain file, verified and handed off."""
    from tiny.system import evaluation

    assert onnxq(*tiny.arguments("--to", "export")).code == 0
    shutil.copyfile(tiny.build / "export" / "fp32.onnx", tmp_path / "net.onnx")
    pictures = evaluation().inputs["picture"]
    np.savez(tmp_path / "calibration.npz", picture=pictures[:16])
    made = onnxq(
        "quantize", "net.onnx", "--data", "calibration.npz", "--step", "bias", "--exclude",
        "gemm_1", "-o", "net_int8.onnx",
    )  # fmt: skip
    assert made.code == 0, made.err
    ended = onnxq("handoff", "net_int8.onnx", "-o", "bundle", "--allow-unverified")
    assert ended.code == 0, ended.err
    return tmp_path / "bundle"


def test_a_plain_files_bundle_is_made_again_from_its_fp32_model_and_data(
    tiny, onnxq, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    bundle = plain_bundle(tiny, onnxq, tmp_path)
    (tmp_path / "net_int8.onnx").unlink()  # it is made again

    same = onnxq("rebuild", bundle, "--json")
    with np.load("calibration.npz") as given:
        np.savez("calibration.npz", picture=given["picture"] * np.float32(0.5))
    other = onnxq("rebuild", bundle)

    assert same.code == 0, same.err + same.out
    assert (same.json["differences"], same.json["reasons"]) == ([], [])
    assert not (tmp_path / "net_int8.onnx").exists()
    made = load_record(Bundle, bundle / "bundle.json").origin.ingredients
    assert [item.what for item in made] == ["FP32 model", "calibration samples"]
    assert other.code == 1
    assert "net_int8.onnx differs" in " ".join(other.out.split())
    assert "calibration samples `calibration.npz`: is not what it was then" in other.out
    assert "FP32 model" not in other.out


@pytest.mark.parametrize("name", ["net.onnx", "calibration.npz"])
def test_a_source_of_a_plain_file_that_is_missing_is_named(
    tiny, onnxq, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    bundle = plain_bundle(tiny, onnxq, tmp_path)
    (tmp_path / name).unlink()

    ended = onnxq("rebuild", bundle)

    assert ended.code == 2
    assert f"{name} is not found from this folder" in " ".join(ended.err.split())


def test_samples_that_are_not_found_are_looked_for_where_the_bundle_was_made(
    tiny, onnxq, tmp_path, monkeypatch
):
    from tiny.system import evaluation

    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0
    samples = evaluation()
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    np.savez(tmp_path / "here" / "eval.npz", picture=samples.inputs["picture"])
    model, bundle = tiny.build / "quantize" / "int8.onnx", tmp_path / "bundle"
    monkeypatch.chdir(tmp_path / "here")
    made = onnxq(
        "handoff", model, "--data", "eval.npz", "-o", bundle, "--allow-unverified",
    )  # fmt: skip
    monkeypatch.chdir(tmp_path / "there")
    ended = onnxq("rebuild", bundle)

    assert (made.code, ended.code) == (0, 2), made.err
    said = " ".join(ended.err.split())
    assert "its samples eval.npz are not found from this folder" in said
    assert "run it where the bundle was made" in said


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_folder_that_is_no_bundle_ends_with_two(onnxq, tmp_path, content):
    if content is not None:
        (tmp_path / "bundle.json").write_text(content)
        (tmp_path / "SHA256SUMS").write_text("")

    ended = onnxq("rebuild", tmp_path)

    assert ended.code == 2


def in_two_parts(tiny) -> None:
    """Let the tiny network ship as features, then head."""
    features = {"tensor": "globalaveragepool_1", "name": "features", "shape": [1, 8]}
    tiny.values["split"] = {
        "parts": [
            {"name": "Body", "inputs": [{"tensor": "picture"}], "outputs": [features]},
            {"name": "Head", "inputs": [features], "outputs": [{"tensor": "brightness"}]},
        ]
    }


def script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )


def test_a_bundle_in_parts_runs_tests_itself_and_is_made_again(tiny, onnxq):
    in_two_parts(tiny)
    ended = onnxq(*tiny.arguments())
    assert ended.code == 0, ended.err
    bundle = tiny.build / "handoff"

    tested = script(bundle, "selftest.py", "--runs", "3", "--json")
    ran = script(bundle, "run.py", "known_answers.npz", "-o", str(tiny.folder / "outputs.npz"))
    again = onnxq("rebuild", bundle)

    assert tested.returncode == 0, tested.stdout + tested.stderr
    told = json.loads(tested.stdout)
    decisive = [line for line in told["answers"] if line["decides"]]
    assert [line["part"] for line in decisive] == ["", "Body", "Head"]
    assert [line["differing"] for line in decisive] == [0, 0, 0]
    assert told["latency"]["runs"] == 3
    assert ran.returncode == 0, ran.stderr
    with (
        np.load(bundle / "known_answers.npz") as known,
        np.load(tiny.folder / "outputs.npz") as given,
    ):
        np.testing.assert_array_equal(given["brightness"], known["output.brightness"])
    assert again.code == 0, again.err + again.out


def test_every_command_and_snippet_of_the_readme_of_parts_runs(tiny, onnxq):
    in_two_parts(tiny)
    assert onnxq(*tiny.arguments()).code == 0
    bundle = tiny.build / "handoff"
    text = (bundle / "README.md").read_text()
    blocks = re.findall(r"```(sh|python)\n(.*?)```", text, re.DOTALL)

    assert [kind for kind, _ in blocks] == ["sh", "sh", "python", "sh"]
    assert all(f"./{part}/self_test" in blocks[-1][1] for part in ("Body", "Head"))
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for kind, code in blocks:
        call = [sys.executable, "-c", code] if kind == "python" else ["sh", "-e", "-c", code]
        done = subprocess.run(
            call, cwd=bundle, capture_output=True, text=True, check=False, env=environment
        )
        assert done.returncode == 0, (code, done.stdout, done.stderr)


@pytest.mark.long
def test_the_bundle_for_a_further_target_is_made_again(tiny, onnxq):
    tiny.values["target"] = "stm32n6"
    tiny.values["quantize"] = {"also_for": ["ort-x86"]}
    ended = onnxq(*tiny.arguments())
    assert ended.code == 0, ended.err
    twin = tiny.build / "handoff" / "ort-x86"
    assert load_record(Bundle, twin / "bundle.json").target == "ort-x86"

    again = onnxq("rebuild", twin)

    assert again.code == 0, again.err + again.out
