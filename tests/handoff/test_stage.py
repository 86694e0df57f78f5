import json
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from handoff.qdq_models import images, quantized_net, with_constants
from onnxq.artifacts import (
    Bundle,
    Comparison,
    Coverage,
    CoverageLine,
    FileFacts,
    GateResult,
    MetricRow,
    QuantizedModel,
    VerificationReport,
)
from onnxq.errors import (
    AuditError,
    DataError,
    JudgedError,
    StaleRecordError,
    StoreError,
    TargetRuleError,
)
from onnxq.graph import MADE_UP_STAMP
from onnxq.handoff.answers import replay
from onnxq.handoff.bundle import refuse_inexact_answers
from onnxq.handoff.stage import hand_off
from onnxq.provenance import provenance
from onnxq.qtypes import IntType
from onnxq.recipe import HandoffSection, Waiver
from onnxq.samples import Samples
from onnxq.store import load_record, sha256_of_file
from onnxq.target import load_target

N6, X86 = load_target("stm32n6"), load_target("ort-x86")


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """The small net, int8 for the N6 and uint8 for x86, in a folder with a space."""
    folder = tmp_path_factory.mktemp("two nets")
    return {
        "stm32n6": quantized_net(folder / "s8", QuantType.QInt8),
        "ort-x86": quantized_net(folder / "u8", QuantType.QUInt8),
    }


def samples(count=12):
    return Samples(
        name="pictures",
        inputs={"image": images(count)},
        labels=np.arange(count) * 1.5,
        groups=np.array([f"subject{n % 3}" for n in range(count)]),
    )


def report_of(model, target=N6, **changes):
    facts = FileFacts(
        name=model.name, sha256=sha256_of_file(model), size_bytes=model.stat().st_size
    )
    row = MetricRow(
        metric="mae", unit="BPM", better="lower", fp32=4.0, rewritten=4.0, int8=4.25,
        int8_other=4.5, increase=0.25, interval=None, baseline=10.0,
    )  # fmt: skip
    line = CoverageLine(integer=7, total=8)
    report = VerificationReport(
        verdict="passed",
        reasons=("the gate holds",),
        name="small",
        target=target.name,
        fp32=facts,
        int8=facts,
        gates=(
            GateResult(
                metric="mae", statement="mae rises by at most 2 BPM", allowed=2, point=0.25,
                bound=0.5, judge="bound", verdict="passed",
            ),
        ),
        comparison=Comparison(
            source="pictures", samples=12, groups=3, judged_as=target.judged_as, metrics=(row,),
            by_group=(), worst_group=None,
        ),
        audit=(),
        coverage=Coverage(operators=line, parameters=line, macs=line),
        fusion=(),
        layers=(),
        provenance=provenance({}),
    )  # fmt: skip
    return report.model_copy(update=changes)


def run_script(folder):
    return subprocess.run(
        [sys.executable, "check_answers.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )


def sums(folder):
    return subprocess.run(
        ["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, check=False, capture_output=True
    ).returncode


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


def test_anyone_can_replay_the_answers(made):
    folder, bundle, _ = made
    done = run_script(folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert "every answer is bit for bit the same" in done.stdout
    level = {"full": "ORT_ENABLE_ALL", "none": "ORT_DISABLE_ALL"}[bundle.answers.optimization]
    assert f"{level}: 10 vectors replayed" in done.stdout


def test_a_changed_model_is_found_by_the_replay(made, tmp_path):
    folder, _, model = made
    shutil.copytree(folder, tmp_path / "copy")
    changed = onnx.load(tmp_path / "copy" / model.name)
    changed.doc_string = "another"
    onnx.save(changed, tmp_path / "copy" / model.name)
    done = run_script(tmp_path / "copy")
    assert done.returncode == 1
    assert "CHANGED" in done.stdout


def test_a_changed_answer_is_found_by_the_replay(made, tmp_path):
    folder, _, _ = made
    shutil.copytree(folder, tmp_path / "copy")
    with np.load(folder / "known_answers.npz") as archive:
        arrays = dict(archive)
    arrays["output.scores"] = np.nextafter(arrays["output.scores"], np.float32(9))
    np.savez(tmp_path / "copy" / "known_answers.npz", **arrays)
    done = run_script(tmp_path / "copy")
    assert done.returncode == 1
    assert "DIFFERS: vector 0, `scores`" in done.stdout


def test_a_missing_file_cannot_be_checked(made, tmp_path):
    shutil.copy(made[0] / "check_answers.py", tmp_path)
    assert run_script(tmp_path).returncode == 2


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


def test_the_python_of_the_readme_runs(made):
    folder, bundle, _ = made
    if bundle.target == "stm32n6":
        pytest.skip("its README holds no Python")
    snippet = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    feed = "__import__('numpy').load('known_answers.npz')['input.image'][0]"
    code = snippet.replace("...", feed) + "\nassert outputs[0].shape == (1, 4)\n"
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)


def test_the_targets_session_options_are_replayed_too(nets, tmp_path):
    options = {"session.x64quantprecision": "1"}
    target = X86.model_copy(update={"session_options": options})
    hand_off(model=nets["ort-x86"], target=target, folder=tmp_path / "out", samples=samples())
    text = (tmp_path / "out" / "README.md").read_text()
    assert "options.add_session_config_entry('session.x64quantprecision', '1')" in text
    with np.load(tmp_path / "out" / "known_answers.npz") as answers:
        assert json.loads(str(answers["about"]))["session_options"] == options
    assert run_script(tmp_path / "out").returncode == 0


def test_the_arrays_for_st_hold_inputs_and_outputs_alone(made):
    folder, bundle, _ = made
    if bundle.target != "stm32n6":
        assert not (folder / "validate_inputs.npz").exists()
        return
    with np.load(folder / "validate_inputs.npz") as given:
        assert {name: array.shape for name, array in given.items()} == {"image": (10, 3, 8, 8)}
    with np.load(folder / "validate_outputs.npz") as given:
        assert {name: array.shape for name, array in given.items()} == {"scores": (10, 4)}


def test_a_plain_file_is_stamped_as_unverified(nets, tmp_path):
    bundle = hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out")
    assert bundle.verdict == "unverified"
    assert "UNVERIFIED" in (tmp_path / "out" / "UNVERIFIED.txt").read_text()
    text = (tmp_path / "out" / "README.md").read_text()
    assert "**UNVERIFIED**" in text
    assert "random numbers, as no data was given" in text
    assert sums(tmp_path / "out") == 0
    assert run_script(tmp_path / "out").returncode == 0


def test_equal_inputs_make_equal_bundles(nets, tmp_path):
    first = hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "1", samples=samples())
    again = hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "2", samples=samples())
    assert first == again


def test_fewer_samples_make_fewer_answers(nets, tmp_path):
    bundle = hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out", samples=samples(3))
    assert bundle.answers.vectors == 3


@pytest.mark.parametrize(
    ("verdict", "error", "code"),
    [("failed", JudgedError, 1), ("inconclusive", DataError, 2), ("unverified", DataError, 2)],
)
def test_a_model_that_did_not_pass_is_handed_off_only_with_a_stamp(
    nets, tmp_path, verdict, error, code
):
    model = nets["stm32n6"]
    options = {
        "model": model,
        "target": N6,
        "samples": samples(),
        "folder": tmp_path / "out",
        "report": report_of(model, verdict=verdict, reasons=("mae rises by 3 BPM",)),
    }
    with pytest.raises(error, match="mae rises by 3 BPM") as caught:
        hand_off(**options)
    assert caught.value.exit_code == code
    assert not (tmp_path / "out").exists()
    bundle = hand_off(**options, allow_unverified=True)
    assert bundle.verdict == verdict
    assert verdict in (tmp_path / "out" / "UNVERIFIED.txt").read_text()


def test_another_file_than_the_verified_one_is_refused(nets, tmp_path):
    report = report_of(nets["ort-x86"])
    with pytest.raises(StaleRecordError, match="the file of the verification's record"):
        hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out", report=report)


def test_a_report_for_another_target_is_refused(nets, tmp_path):
    report = report_of(nets["stm32n6"], X86)
    with pytest.raises(StaleRecordError, match="about the target ort-x86, not stm32n6"):
        hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out", report=report)


def test_a_quantization_of_another_file_is_refused(nets, tmp_path):
    record = QuantizedModel(
        model=FileFacts(name="x", sha256="0" * 64, size_bytes=1), fp32_sha256="",
        calibration_sha256="", target="stm32n6", weight_type=IntType.INT8,
        activation_type=IntType.INT8, quantized_nodes=(), float_nodes=(), activations={},
        provenance=provenance({}),
    )  # fmt: skip
    with pytest.raises(StaleRecordError, match="the quantization's record"):
        hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out", quantized=record)


def test_a_broken_rule_leaves_no_folder(nets, tmp_path):
    with pytest.raises(TargetRuleError, match=r"stm32n6\.activation-type"):
        hand_off(model=nets["ort-x86"], target=N6, folder=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_waived_rule_stands_in_record_and_readme(nets, tmp_path):
    section = HandoffSection(
        known_answers=2, waive=(Waiver(name="stm32n6.activation-type", reason="just a test"),)
    )
    bundle = hand_off(model=nets["ort-x86"], target=N6, folder=tmp_path / "out", section=section)
    assert {rule.waived for rule in bundle.rules} == {"just a test"}
    assert "**stm32n6.activation-type**: just a test" in (tmp_path / "out/README.md").read_text()


def test_a_bundle_is_replaced_and_a_persons_folder_is_not(nets, tmp_path):
    options = {"model": nets["stm32n6"], "target": N6}
    hand_off(**options, folder=tmp_path / "out")
    hand_off(**options, folder=tmp_path / "out")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(StoreError, match="holds other files than a bundle"):
        hand_off(**options, folder=tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").exists()


def test_an_empty_folder_that_is_there_is_filled(nets, tmp_path):
    (tmp_path / "out").mkdir()
    hand_off(model=nets["stm32n6"], target=N6, folder=tmp_path / "out")
    assert sums(tmp_path / "out") == 0


def test_a_model_that_draws_random_numbers_is_refused(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[1,4] x) => (float[1,4] y) { n = RandomNormalLike (x) y = Add (x, n) }"""
    onnx.save(with_constants(text), tmp_path / "random.onnx")
    with pytest.raises(TargetRuleError, match=r"ort-x86\.random-op"):
        hand_off(model=tmp_path / "random.onnx", target=X86, folder=tmp_path / "out")


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


def test_inputs_of_any_name_and_a_fixed_batch_are_answered(tmp_path):
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[2,4] file, int64[2,4] count) => (float[2,4] result) {
      f = Cast<to=1> (count) result = Add (file, f) }"""
    onnx.save(with_constants(text), tmp_path / "odd name.onnx")
    rows = {"file": np.ones((3, 4), np.float32), "count": np.ones((3, 4), np.int64)}
    bundle = hand_off(
        model=tmp_path / "odd name.onnx",
        target=load_target("ort-arm64"),
        folder=tmp_path / "out",
        samples=Samples(name="ones", inputs=rows),
    )
    assert bundle.answers.vectors == 3
    assert sums(tmp_path / "out") == 0
    assert run_script(tmp_path / "out").returncode == 0


def test_ranges_of_made_up_numbers_are_called_so(nets, tmp_path):
    model = onnx.load(nets["stm32n6"])
    model.metadata_props.add(key=MADE_UP_STAMP, value="calibrated on random numbers")
    onnx.save(model, tmp_path / "net.onnx")
    hand_off(model=tmp_path / "net.onnx", target=N6, folder=tmp_path / "out", samples=samples())
    assert "calibrated on MADE-UP numbers" in (tmp_path / "out" / "README.md").read_text()


def test_weights_beside_the_model_come_along(nets, tmp_path):
    onnx.save(
        onnx.load(nets["stm32n6"]),
        tmp_path / "net.onnx",
        save_as_external_data=True,
        location="net.onnx.data",
        size_threshold=0,
    )
    hand_off(model=tmp_path / "net.onnx", target=N6, folder=tmp_path / "out")
    assert (tmp_path / "out" / "net.onnx.data").is_file()
    assert run_script(tmp_path / "out").returncode == 0
