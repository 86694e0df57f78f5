"""Statistics that were collected apart are those of one collection over all samples."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.calibrate.merge import Part, merged_evidence
from onnxq.calibrate.resources import Resources
from onnxq.calibrate.stage import RECORD, STATISTICS, load_statistics
from onnxq.errors import LeakageError, StaleRecordError, StoreError, UsageError
from onnxq.plain.calibrate import Data, Means, calibrate_file, merge_folders
from onnxq.recipe import CalibrateSection
from onnxq.target import load_target

from .collecting import CNN, NETS, model

X = NETS["cnn"][1]["x"]
METHODS = ("minmax", "percentile", "mse", "entropy", "meanstd")


def section(method: str = "minmax", **more: object) -> CalibrateSection:
    return CalibrateSection(**{"method": method, "collect": "histograms"} | more)  # type: ignore[arg-type]


def part(folder: Path, name: str, x: np.ndarray, graph: bytes = CNN, **options: object) -> Path:
    """The folder of a calibration on ``x``, in the order of the samples."""
    path = folder / f"{name}.onnx"
    onnx.save(onnx.ModelProto.FromString(graph), path)
    np.savez(folder / f"{name}.npz", x=x)
    how = options.get("section", section(plan="first"))
    data = Data(str(folder / f"{name}.npz"), {}, how, len(x))  # type: ignore[arg-type]
    target = load_target(str(options.get("target", "ort-x86")))
    also_for = tuple(load_target(str(t)) for t in options.get("also_for", ()))  # type: ignore[attr-defined]
    calibrate_file(path, target, data, folder / name, Means(also_for=also_for))
    return folder / name


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("merged")


@pytest.fixture(scope="module")
def halves(folder) -> tuple[Path, Path]:
    return part(folder, "a", X[:8]), part(folder, "b", X[8:])


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    return part(folder, "whole", X)


@pytest.mark.parametrize("method", METHODS)
def test_halves_give_the_ranges_of_the_whole(halves, whole, tmp_path, method):
    merged = merge_folders(halves, tmp_path / "merged", {"method": method})
    at_once = merge_folders([whole], tmp_path / "at once", {"method": method})
    assert merged.method == method
    assert merged.ranges == at_once.ranges
    assert sorted(merged.choice.digests) == sorted(at_once.choice.digests)


def test_halves_give_every_summary_of_the_whole_to_the_last_bit(halves, whole, tmp_path):
    merge_folders(halves, tmp_path / "merged")
    _, merged = load_statistics(tmp_path / "merged")
    _, at_once = load_statistics(whole)
    assert merged.runs == at_once.runs == len(X)
    for name in at_once.tensors:
        assert merged.of(name).summary == at_once.of(name).summary
        assert merged.of(name).values == at_once.of(name).values


@pytest.mark.parametrize("methods", [("minmax", "minmax"), ("minmax", "mse")])
def test_the_order_of_the_parts_changes_no_byte(halves, folder, tmp_path, methods):
    one = merge_folders([halves[0]], tmp_path / "one", {"method": methods[0]})
    other = merge_folders([halves[1]], tmp_path / "other", {"method": methods[1]})
    assert (one.method, other.method) == methods
    parts = [tmp_path / "one", tmp_path / "other"]
    asked = None if methods[0] == methods[1] else {"method": "percentile"}
    merge_folders(parts, tmp_path / "ab", asked)
    merge_folders(parts[::-1], tmp_path / "ba", asked)
    names = sorted(path.name for path in (tmp_path / "ab").iterdir())
    assert {RECORD, STATISTICS} <= set(names)
    for name in names:
        assert (tmp_path / "ab" / name).read_bytes() == (tmp_path / "ba" / name).read_bytes()


def test_three_parts_may_be_merged_in_two_steps(folder, tmp_path):
    parts = [part(tmp_path, name, x) for name, x in zip("cde", np.array_split(X, 3), strict=True)]
    at_once = merge_folders(parts, tmp_path / "at once")
    merge_folders(parts[1:], tmp_path / "two")
    in_steps = merge_folders([parts[0], tmp_path / "two"], tmp_path / "in steps")
    assert in_steps.ranges == at_once.ranges
    assert sorted(in_steps.choice.digests) == sorted(at_once.choice.digests)


def test_of_one_part_the_method_is_changed(halves, tmp_path):
    given = merge_folders(halves[:1], tmp_path / "minmax")
    changed = merge_folders(halves[:1], tmp_path / "mse", {"method": "mse"})
    assert (given.method, changed.method) == ("minmax", "mse")
    assert changed.ranges != given.ranges
    assert load_statistics(tmp_path / "mse")[0] == changed


# --- what is refused -----------------------------------------------------------------------------


def refused(*folders: Path, kind: type[Exception] = UsageError) -> str:
    output = folders[0].parent / "refused"
    with pytest.raises(kind) as fault:
        merge_folders(folders, output)
    assert not output.exists()
    return str(fault.value)


def differing(said: str) -> tuple[str, set[str]]:
    """What is said to differ, and between which values."""
    found = re.search(r"their (.+) differs: '(.*)' and '(.*)'", said)
    assert found, said
    return found[1], {found[2], found[3]}


def test_another_model_is_refused(halves, tmp_path):
    other = onnx.ModelProto.FromString(CNN)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    said = refused(halves[0], part(tmp_path, "other", X[8:], other.SerializeToString()))
    assert "their model differs" in said


def test_another_target_is_refused(halves, tmp_path):
    said = refused(halves[0], part(tmp_path, "other", X[8:], target="ort-arm64"))
    assert differing(said) == ("target", {"ort-x86", "ort-arm64"})


def test_other_tensors_are_refused(tmp_path):
    chain = model(
        """g (float[1,4] x) => (float[1,4] y) {
            [mm] m = MatMul(x, w)  [sub] t = Sub(m, x)  [a] u = Abs(t)  [s] y = Softmax(u) }""",
        w=X[0, 0, :4, :4],
    )
    x = X[:6, 0, 0, :4]
    one = part(tmp_path, "one", x[:3], chain)
    more = part(tmp_path, "more", x[3:], chain, also_for=["stm32n6"])
    assert "their tensor list differs" in refused(one, more)


def test_extremes_beside_histograms_are_refused(halves, tmp_path):
    extremes = CalibrateSection(plan="first")
    said = refused(halves[0], part(tmp_path, "other", X[8:], section=extremes))
    assert differing(said) == ("detail", {"histograms", "extremes"})


def test_another_way_of_running_is_refused(halves, tmp_path):
    how = section(plan="first", optimization="full")
    said = refused(halves[0], part(tmp_path, "other", X[8:], section=how))
    assert differing(said) == ("optimization", {"none", "full"})


def test_another_preprocessing_is_refused(halves):
    one, other = (Part(str(place), *load_statistics(place)) for place in halves)
    collection = other.result.collection.model_copy(update={"preprocessing": "size 224"})
    other = replace(other, result=other.result.model_copy(update={"collection": collection}))
    with pytest.raises(UsageError) as fault:
        merged_evidence([one, other])
    assert differing(str(fault.value)) == ("preprocessing", {"", "size 224"})


def test_a_sample_that_is_in_two_parts_is_refused_by_its_number(halves, tmp_path):
    shared = part(tmp_path, "shared", X[[9, 3, 10]])
    said = refused(halves[0], shared, kind=LeakageError)
    assert f"sample 1 of {shared}" in said
    assert f"sample 3 of {halves[0]}" in said
    assert "sample 0 of" in refused(halves[0], halves[0], kind=LeakageError)


def test_a_folder_that_is_no_calibration_is_refused(halves, tmp_path):
    assert RECORD in refused(halves[0], tmp_path / "nothing", kind=StoreError)


def test_statistics_that_are_not_those_of_the_record_are_refused(halves, tmp_path):
    spoilt = part(tmp_path, "spoilt", X[8:])
    data = bytearray((spoilt / STATISTICS).read_bytes())
    data[-1] ^= 1
    (spoilt / STATISTICS).write_bytes(data)
    assert STATISTICS in refused(halves[0], spoilt, kind=StaleRecordError)


def test_histograms_are_needed_for_a_method_that_looks_at_them(tmp_path):
    extremes = part(tmp_path, "extremes", X, section=CalibrateSection())
    with pytest.raises(UsageError, match="mse"):
        merge_folders([extremes], tmp_path / "mse", {"method": "mse"})
    assert not (tmp_path / "mse").exists()


def test_resources_of_a_run_are_not_in_its_bytes(halves, tmp_path):
    merged = merge_folders(halves[:1], tmp_path / "m")
    assert not vars(Resources()).keys() & merged.provenance.options.keys()


def test_parts_of_which_one_alone_has_channels_are_refused(halves, tmp_path):
    by_channel = part(
        tmp_path,
        "channels",
        X[:4],
        section=CalibrateSection(collect="histograms", per_channel=True),
    )
    plain = part(tmp_path, "plain", X[4:8], section=CalibrateSection(collect="histograms"))
    assert "--per-channel" in refused(by_channel, plain)


def test_an_option_alone_goes_with_the_method_of_the_parts(halves, tmp_path):
    merge_folders(halves, tmp_path / "percentile", {"method": "percentile"})
    wide = merge_folders([tmp_path / "percentile"], tmp_path / "wide", {"coverage": 1.0})
    assert wide.method == "percentile"
    assert wide.provenance.options["coverage"] == 1.0
