"""What commands about a device keep in a bundle: a new report, and nothing else is touched."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from handoff.dumps import bundle_of, device, save
from handoff.qdq_models import images, quantized_net
from handoff.records import N6, report_of, samples, sums
from onnxruntime.quantization import QuantType

from cli.test_shell import shell
from onnxq.artifacts import Bundle, DeviceResults
from onnxq.handoff.stage import hand_off
from onnxq.store import load_record, sha256_of_file
from onnxq.verify.report.write import write_reports

__all__ = ["shell"]


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    """A bundle with a report, as `onnxq handoff` writes it."""
    folder = tmp_path_factory.mktemp("a reported bundle")
    model, given = quantized_net(folder / "s8", QuantType.QInt8), samples()
    judged = report_of(model)
    made = {name: np.asarray(given.labels)[:, None] for name in ("fp32", "int8")}
    (folder / "verified").mkdir()
    write_reports(judged, made, given, folder / "verified")
    hand_off(
        model=model, target=N6, folder=folder / "out", samples=given, report=judged,
        report_folder=folder / "verified",
    )  # fmt: skip
    return folder / "out"


@pytest.fixture
def bundle(reported, tmp_path):
    return shutil.copytree(reported, tmp_path / "bundle")


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and "device" not in file.relative_to(folder).parts
    }


def test_the_report_is_written_anew_and_what_was_handed_off_stays(shell, bundle, tmp_path):
    before = files_of(bundle)
    dump = save(tmp_path / "d.npz", device(bundle))
    code, out, _ = shell("compare-dump", bundle, dump)
    assert code == 0
    assert f"kept in {bundle / 'device' / 'report.html'}" in out
    assert files_of(bundle) == before
    assert sums(bundle) == sums(bundle / "device") == 0
    page = (bundle / "device" / "report.html").read_text()
    assert "all 8 layers are equal to the bundle" in page
    names = {file.name for file in (bundle / "device").iterdir()}
    pages = {"report.html", "report.md", "report.json", "junit.xml"}
    assert names == pages | {"device.json", "SHA256SUMS"}
    (check,) = load_record(DeviceResults, bundle / "device" / "device.json").dumps
    assert check.dump.sha256 == sha256_of_file(dump)
    assert check.model == load_record(Bundle, bundle / "bundle.json").model


def test_a_later_dump_of_the_same_name_takes_the_place_of_the_earlier(shell, bundle, tmp_path):
    wrong = device(bundle)
    wrong["scores"] = wrong["scores"] // 2
    for name, layers in (("d.npz", wrong), ("e.npz", wrong), ("d.npz", device(bundle))):
        shell("compare-dump", bundle, save(tmp_path / name, layers))
    dumps = load_record(DeviceResults, bundle / "device" / "device.json").dumps
    assert {c.dump.name: c.comparison.verdict for c in dumps} == {
        "d.npz": "equal",
        "e.npz": "departs",
    }


def test_nothing_is_kept_where_that_is_asked_for(shell, bundle, tmp_path):
    dump = save(tmp_path / "d.npz", device(bundle))
    assert shell("compare-dump", bundle, dump, "--no-report")[0] == 0
    assert not (bundle / "device").exists()


def test_results_of_another_model_are_refused(shell, bundle, tmp_path):
    """Those of one bundle do not show in the report of another."""
    dump = save(tmp_path / "d.npz", device(bundle))
    assert shell("compare-dump", bundle, dump)[0] == 0
    kept = bundle / "device" / "device.json"
    told = json.loads(kept.read_text())
    for change in (told["model"], told["dumps"][0]["model"]):
        other = dict(change)
        change["sha256"] = "0" * 64
        kept.write_text(json.dumps(told))
        code, out, _ = shell("compare-dump", bundle, dump, "--json")
        error = json.loads(out)["error"]
        assert (code, error["kind"]) == (2, "StaleRecordError")
        assert "000000000000, which is no file of this bundle" in error["what"]
        change.update(other)


def test_without_a_report_the_results_alone_are_kept(shell, tmp_path):
    bundle = bundle_of(quantized_net(tmp_path / "s8", QuantType.QInt8), tmp_path / "out")
    code, out, _ = shell("compare-dump", bundle, save(tmp_path / "d.npz", device(bundle)))
    assert code == 0
    assert out.rstrip().endswith(str(bundle / "device"))
    assert {f.name for f in (bundle / "device").iterdir()} == {"device.json", "SHA256SUMS"}
    assert sums(bundle / "device") == 0


def test_a_bundle_is_made_again_after_a_device_was_heard(shell, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = quantized_net(tmp_path / "s8", QuantType.QInt8)
    np.savez(tmp_path / "data.npz", image=images(12))
    made = ("handoff", model, "--data", "data.npz", "--target", "stm32n6", "--allow-unverified")
    assert shell(*made, "-o", "out")[0] == 0
    bundle = tmp_path / "out"
    assert shell("compare-dump", bundle, save(tmp_path / "d.npz", device(bundle)))[0] == 0
    assert shell("rebuild", bundle)[0] == 0
    assert (bundle / "device" / "device.json").is_file()
