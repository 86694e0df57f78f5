"""Float steps in the flow: plain files and recipes, their records, and what is refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxq.artifacts import EqualizedModel, QuantizedModel
from onnxq.equalized import Basis, equalize_graph, load_equalized
from onnxq.errors import StaleRecordError, UsageError
from onnxq.graph import load_model, values_of
from onnxq.plain.calibrate import Data, calibrate_file, merge_folders
from onnxq.plain.judge import task_for, verify_files
from onnxq.plain.quantize import quantize_file
from onnxq.quantize.float_steps import table
from onnxq.quantize.float_steps.types import Stepped
from onnxq.recipe import CalibrateSection, Gate, QuantizeSection, VerifySection
from onnxq.runtime import Session
from onnxq.samples import Samples
from onnxq.store import load_record, sha256_of_file
from onnxq.target import load_target

from . import float_nets

X86 = load_target("ort-x86")
STEPS = QuantizeSection(float_steps=("equalize", "absorb"))


@pytest.fixture
def net(tmp_path) -> float_nets.FloatNet:
    return float_nets.depthwise(tmp_path)


@pytest.fixture
def data(net, tmp_path) -> Data:
    np.savez(tmp_path / "data.npz", **net.samples.inputs)
    return Data(str(tmp_path / "data.npz"), {}, CalibrateSection(), samples=24)


def sqnr_db(fp32: Path, int8: Path, samples: Samples) -> float:
    exact, got = (Session(path, optimization="none") for path in (fp32, int8))
    pairs = [(exact.run(row)["y"], got.run(row)["y"]) for row in samples.rows()]
    noise = sum(float(np.square(a - b).sum()) for a, b in pairs)
    return 10 * np.log10(sum(float(np.square(a).sum()) for a, _ in pairs) / noise)


def test_uneven_channels_of_a_depthwise_chain_gain_more_than_5_db(net, data, tmp_path):
    plain, even = tmp_path / "plain.onnx", tmp_path / "even.onnx"
    quantize_file(net.path, X86, data, QuantizeSection(), plain)
    quantize_file(net.path, X86, data, QuantizeSection(float_steps=("equalize",)), even)
    gain = sqnr_db(net.path, even, net.samples) - sqnr_db(net.path, plain, net.samples)
    assert gain > 5
    assert [n.op_type for n in onnx.load(plain).graph.node] == [
        n.op_type for n in onnx.load(even).graph.node
    ]


def test_the_record_names_the_fp32_file_and_what_each_step_did(net, data, tmp_path):
    record = quantize_file(net.path, X86, data, STEPS, tmp_path / "int8.onnx")
    assert record == load_record(QuantizedModel, tmp_path / "int8.json")
    assert record.equalized is not None
    assert record.fp32_sha256 == record.equalized.fp32_sha256 != record.equalized.model.sha256
    assert record.calibration is not None
    assert record.calibration.model_sha256 == record.equalized.model.sha256
    equalize, absorb = record.equalized.steps
    assert (equalize.samples, absorb.samples) == (0, 24)
    assert {row.source for row in equalize.links} == {"conv_1", "conv_2"}
    assert {row.node: row.reason for row in equalize.skipped} == {
        "conv_3": "`y` is an output of the graph"
    }
    assert all(check.passed and check.max_absolute < 1e-3 for check in equalize.parity)
    assert [line.split(":")[0] for line in record.steps[:2]] == ["equalize", "absorb"]


def test_a_folder_of_ranges_made_after_float_steps_gives_the_same_file(net, data, tmp_path):
    steps = Data(data.source, {}, data.section, samples=24, float_steps=("equalize", "absorb"))
    calibrate_file(net.path, X86, steps, tmp_path / "ranges")
    direct, later = tmp_path / "direct.onnx", tmp_path / "later.onnx"
    plainly = {"steps": ()}  # those that an effort chooses need samples
    quantize_file(net.path, X86, data, STEPS.model_copy(update=plainly), direct)
    quantize_file(net.path, X86, tmp_path / "ranges", QuantizeSection(steps=()), later)
    assert direct.read_bytes() == later.read_bytes()


def test_statistics_collected_in_pieces_after_float_steps_are_joined_on_the_same_graph(
    net, data, tmp_path
):
    for half, rows in enumerate((slice(0, 12), slice(12, 24))):
        np.savez(tmp_path / f"{half}.npz", x=net.samples.inputs["x"][rows])
        steps = Data(
            str(tmp_path / f"{half}.npz"), {}, data.section, samples=12, float_steps=("equalize",)
        )
        calibrate_file(net.path, X86, steps, tmp_path / f"ranges{half}")
    merge_folders([tmp_path / "ranges0", tmp_path / "ranges1"], tmp_path / "joined")
    joined, direct = tmp_path / "joined.onnx", tmp_path / "direct.onnx"
    even = QuantizeSection(float_steps=("equalize",), steps=())
    quantize_file(net.path, X86, tmp_path / "joined", QuantizeSection(steps=()), joined)
    quantize_file(net.path, X86, data, even, direct)
    assert joined.read_bytes() == direct.read_bytes()


def test_steps_asked_for_when_ranges_are_there_already_are_refused(net, data, tmp_path):
    calibrate_file(net.path, X86, data, tmp_path / "ranges")
    with pytest.raises(UsageError, match="`equalize` comes before ranges are made"):
        quantize_file(net.path, X86, tmp_path / "ranges", STEPS, tmp_path / "int8.onnx")


def test_what_is_judged_is_the_distance_to_the_file_before_the_steps(net, data, tmp_path):
    int8 = tmp_path / "int8.onnx"
    quantize_file(net.path, X86, data, STEPS, int8)
    task, metric = task_for("top1")
    section = VerifySection(gate=(Gate(metric=metric, max_increase=0.9),))
    fresh = Samples(
        "fresh",
        {"x": np.random.default_rng(1).standard_normal((24, 3, 8, 8)).astype(np.float32)},
        labels=np.arange(24) % 10,
    )
    (tmp_path / "report").mkdir()
    report = verify_files(net.path, int8, fresh, task, section, tmp_path / "report")
    assert report.fp32.sha256 == sha256_of_file(net.path)
    assert min(row.sqnr_db for row in report.layers) > 15  # every tensor against its own scale
    assert not any(row.faults for row in report.audit)


def test_a_file_whose_equalized_graph_is_gone_or_another_is_refused(net, data, tmp_path):
    int8, beside = tmp_path / "int8.onnx", tmp_path / "int8.equalized.onnx"
    quantize_file(net.path, X86, data, STEPS, int8)
    task, metric = task_for("top1")
    section = VerifySection(gate=(Gate(metric=metric, max_increase=0.9),))
    fresh = Samples(
        "fresh",
        {"x": np.ones((24, 3, 8, 8), np.float32)},
        labels=np.arange(24) % 10,
    )
    beside.write_bytes(net.path.read_bytes())
    with pytest.raises(StaleRecordError, match="is not the graph that the file was made from"):
        verify_files(net.path, int8, fresh, task, section, tmp_path / "report")
    beside.unlink()
    with pytest.raises(StaleRecordError, match="which is not beside it"):
        verify_files(net.path, int8, fresh, task, section, tmp_path / "report")


def basis_of(net: float_nets.FloatNet, **more: object) -> Basis:
    return Basis(net.path, values_of(load_model(net.path))[0], net.samples, **more)  # type: ignore[arg-type]


def test_a_step_that_changes_outputs_is_taken_back_and_the_record_says_so(
    net, tmp_path, monkeypatch
):
    def spoil(graph, _):
        import onnx_ir as ir

        copy = ir.from_proto(ir.to_proto(graph))
        bias = copy.graph.initializers["b3"]
        bias.const_value = ir.tensor(bias.const_value.numpy() + 1, name="b3")
        return Stepped(copy, (), ())

    monkeypatch.setitem(table.FLOAT_STEPS, "equalize", spoil)
    record = equalize_graph(basis_of(net), ("equalize",), tmp_path)
    (step,) = record.steps
    assert step.undone == "outputs differ on the random and edges and real inputs"
    assert "undone" in step.line
    before, after = (
        {t.name: t.raw_data for t in onnx.load(path).graph.initializer}
        for path in (net.path, tmp_path / "equalized.onnx")
    )
    assert before == after


def test_tensors_where_the_graph_is_cut_keep_their_numbers(net, tmp_path):
    record = equalize_graph(basis_of(net, kept=frozenset({"b"})), ("equalize",), tmp_path)
    reasons = {row.node: row.reason for row in record.steps[0].skipped}
    assert reasons["conv_1"] == "the graph is cut at `b`, whose numbers stay"


def test_a_record_of_another_graph_is_stale(net, tmp_path):
    made = equalize_graph(basis_of(net), ("equalize",), tmp_path)
    assert (
        load_equalized(tmp_path, net.path)
        == made
        == load_record(EqualizedModel, tmp_path / "equalized.json")
    )
    (tmp_path / "equalized.onnx").write_bytes(net.path.read_bytes())
    with pytest.raises(StaleRecordError, match=r"is not the file that equalized\.json speaks of"):
        load_equalized(tmp_path, net.path)
