"""What is handed off, what is refused, and what is stamped."""

import json

import numpy as np
import onnx
import pytest

from handoff.qdq_models import with_constants
from handoff.records import N6, X86, report_of, run_script, samples, sums
from onnxq.artifacts import FileFacts, QuantizedModel
from onnxq.errors import DataError, JudgedError, StaleRecordError, StoreError, TargetRuleError
from onnxq.graph import MADE_UP_STAMP
from onnxq.handoff.stage import hand_off
from onnxq.provenance import provenance
from onnxq.qtypes import IntType
from onnxq.recipe import HandoffSection, Waiver
from onnxq.samples import Samples
from onnxq.target import load_target


def test_the_targets_session_options_are_replayed_too(nets, tmp_path):
    options = {"session.x64quantprecision": "1"}
    target = X86.model_copy(update={"session_options": options})
    hand_off(model=nets["ort-x86"], target=target, folder=tmp_path / "out", samples=samples())
    text = (tmp_path / "out" / "README.md").read_text()
    assert "options.add_session_config_entry('session.x64quantprecision', '1')" in text
    with np.load(tmp_path / "out" / "known_answers.npz") as answers:
        assert json.loads(str(answers["about"]))["session_options"] == options
    assert run_script(tmp_path / "out").returncode == 0


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
        activation_type=IntType.INT8, quantized_nodes={}, float_nodes=(), activations={},
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
    with pytest.raises(StoreError, match="no earlier result"):
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
