"""The bundle of a verified model, as its receiver finds it."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from handoff.qdq_models import images
from handoff.records import report_of, samples, sums
from onnxq.artifacts import Bundle
from onnxq.errors import AuditError
from onnxq.handoff.answers import replay
from onnxq.handoff.bundle import refuse_inexact_answers
from onnxq.handoff.stage import hand_off
from onnxq.store import load_record, sha256_of_file
from onnxq.target import load_target


@pytest.fixture(scope="module", params=["stm32n6", "ort-x86"])
def made(request, nets, tmp_path_factory):
    """A verified bundle: its folder, its record, its model."""
    target = load_target(request.param)
    model = nets[target.name]
    root = tmp_path_factory.mktemp("a bundle")
    (root / "verify").mkdir()
    for name in ("report.html", "report.md", "report.json", "junit.xml", "stage.json", "x.onnx"):
        (root / "verify" / name).write_text(name)
    bundle = hand_off(
        model=model,
        target=target,
        report=report_of(model, target),
        report_folder=root / "verify",
        samples=samples(),
        folder=root / "out here",
    )
    return root / "out here", bundle, model


def test_the_model_ships_byte_for_byte(made):
    folder, bundle, model = made
    assert (folder / model.name).read_bytes() == model.read_bytes()
    assert bundle.model.sha256 == sha256_of_file(model)


def test_the_bundle_is_as_its_record_says(made):
    folder, bundle, _ = made
    assert load_record(Bundle, folder / "bundle.json") == bundle
    assert bundle.verdict == "passed"
    assert bundle.answers.bit_exact
    assert all(sha256_of_file(folder / file.name) == file.sha256 for file in bundle.files)
    names = {file.name for file in bundle.files}
    reports = {f"report/{name}" for name in ("report.html", "report.md", "report.json")}
    assert reports | {"report/junit.xml", "README.md", "contract.json"} <= names
    assert "report/stage.json" not in names
    assert "UNVERIFIED.txt" not in names


def test_sha256sum_finds_the_bundle_whole_and_a_changed_byte_in_it(made, tmp_path):
    folder, _, model = made
    assert sums(folder) == 0
    listed = (folder / "SHA256SUMS").read_text()
    files = [f for f in folder.rglob("*") if f.is_file() and f.name != "SHA256SUMS"]
    assert len(listed.splitlines()) == len(files)
    shutil.copytree(folder, tmp_path / "copy")
    with (tmp_path / "copy" / model.name).open("ab") as file:
        file.write(b"\0")
    assert sums(tmp_path / "copy") == 1


def test_the_answers_are_of_samples_spread_over_all_with_label_and_group(made):
    folder, _, model = made
    with np.load(folder / "known_answers.npz", allow_pickle=False) as answers:
        about = json.loads(str(answers["about"]))
        index = answers["index"]
        assert (index[0], index[-1], len(index)) == (0, 11, 10)
        np.testing.assert_array_equal(answers["input.image"][:, 0], images(12)[index])
        np.testing.assert_array_equal(answers["labels"], index * 1.5)
        assert answers["groups"].tolist() == [f"subject{n % 3}" for n in index]
        assert answers["output.scores"].shape == (10, 1, 4)
    assert (about["model"], about["intra_op_num_threads"]) == (model.name, 1)
    assert about["made_up"] is False


def test_the_readme_tells_what_is_measured_and_what_is_not(made):
    folder, bundle, model = made
    text = (folder / "README.md").read_text()
    assert "mae rises by at most 2 BPM: passed" in text
    assert "mae: 4 → 4.25 BPM" in text
    assert "Nothing was run on a device" in text
    if bundle.target == "stm32n6":
        assert f"stedgeai analyze -m {model.name} --target stm32n6" in text
        assert "-vi validate_inputs.npz" in text
        assert "ST's tool was not run" in text
    else:
        assert "GraphOptimizationLevel.ORT_ENABLE_ALL" in text


def test_a5_15_every_command_and_snippet_of_the_readme_runs(made, tmp_path):
    folder, bundle, _ = made
    shutil.copytree(folder, tmp_path / "a copy")
    blocks = re.findall(r"```(sh|python)\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    kinds = Counter(kind for kind, _ in blocks)
    assert kinds == {"sh": 3, "python": 2}
    ours = [(kind, code) for kind, code in blocks if "stedgeai" not in code]
    assert len(ours) == (4 if bundle.target == "stm32n6" else 5)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for kind, code in ours:
        call = ["sh", "-e", "-c", code]
        if kind == "python":
            test = (
                "assert np.shape(list(getattr(outputs, 'values', lambda: outputs)())[0]) == (1, 4)"
            )
            call = [sys.executable, "-c", code + test]
        done = subprocess.run(
            call, cwd=tmp_path / "a copy", capture_output=True, text=True, check=False,
            env=environment,
        )  # fmt: skip
        assert done.returncode == 0, (code, done.stdout, done.stderr)


def test_the_arrays_for_st_hold_inputs_and_outputs_alone(made):
    folder, bundle, _ = made
    if bundle.target != "stm32n6":
        assert not (folder / "validate_inputs.npz").exists()
        return
    with np.load(folder / "validate_inputs.npz") as given:
        assert {name: array.shape for name, array in given.items()} == {"image": (10, 3, 8, 8)}
    with np.load(folder / "validate_outputs.npz") as given:
        assert {name: array.shape for name, array in given.items()} == {"scores": (10, 4)}


def test_answers_that_one_bit_of_the_file_does_not_give_are_no_answers(made):
    folder, bundle, model = made
    with np.load(folder / "known_answers.npz") as archive:
        arrays = dict(archive)
    target = load_target(bundle.target)
    assert replay(folder / model.name, arrays, target) == bundle.answers
    arrays["output.scores"] = np.nextafter(arrays["output.scores"], np.float32(9))
    answers = replay(folder / model.name, arrays, target)
    assert not answers.bit_exact
    with pytest.raises(AuditError, match="cannot be replayed"):
        refuse_inexact_answers(answers, model.name)
