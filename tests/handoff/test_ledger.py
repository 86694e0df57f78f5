"""Ledgers: sizes from the files, costs from the graph, bounds and claims called what they are."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from handoff.qdq_models import small_net
from onnxq.artifacts import Manifest, PartFacts, RunStep
from onnxq.errors import UsageError
from onnxq.handoff.ledger import ledger, ledger_lines, ledgers_of_parts, per_sample
from onnxq.store import facts_of_file
from onnxq.target import load_target

N6, X86 = load_target("stm32n6"), load_target("ort-x86")


@pytest.fixture
def fp32(nets):
    return nets["stm32n6"].parent / "net_fp32.onnx"


def test_macs_and_weights_are_those_of_the_layers(nets, fp32):
    found = ledger(nets["stm32n6"], N6, fp32=fp32)
    by_type = {(line.op_type, line.macs) for line in found.layers}
    conv1, conv2, gemm = 8 * 8 * 6 * 27, 4 * 4 * 5 * 6, 20
    assert by_type == {("Conv", conv1), ("Conv", conv2), ("Add", 0), ("Gemm", gemm)}
    assert found.macs == conv1 + conv2 + gemm
    assert found.weight_bytes == sum(line.weight_bytes for line in found.layers) == 277
    assert sum(line.fp32_bytes for line in found.layers) == 4 * (162 + 6 + 30 + 5 + 5 + 20 + 4)


def test_sizes_are_those_of_the_files(nets, fp32):
    found = ledger(nets["stm32n6"], N6, fp32=fp32)
    constants, file, packed = found.sizes
    arrays = [onnx.numpy_helper.to_array(t) for t in onnx.load(fp32).graph.initializer]
    assert constants.fp32_bytes == sum(array.nbytes for array in arrays)
    assert (file.fp32_bytes, file.int8_bytes) == (
        fp32.stat().st_size, nets["stm32n6"].stat().st_size,
    )  # fmt: skip
    assert packed.int8_bytes < file.int8_bytes


def test_external_weights_belong_to_the_file(tmp_path, fp32, nets):
    onnx.save_model(
        onnx.load(fp32), tmp_path / "m.onnx", save_as_external_data=True, location="m.data",
        size_threshold=0,
    )  # fmt: skip
    file = ledger(nets["stm32n6"], N6, fp32=tmp_path / "m.onnx").sizes[1]
    parts = [tmp_path / name for name in ("m.onnx", "m.data")]
    assert file.fp32_bytes == sum(part.stat().st_size for part in parts)


def test_a_model_that_runs_24_times_for_a_sample_counts_24_times(nets):
    body, head = ledger(nets["stm32n6"], N6, calls=24), ledger(nets["stm32n6"], N6)
    total = per_sample([body, head], N6)
    assert total.macs_per_sample == 25 * head.macs
    assert total.weight_bytes_per_sample == 25 * head.weight_bytes


def test_parts_are_called_as_often_as_their_manifest_runs_them(nets):
    def run(part, times):
        return RunStep(part=part, inputs={}, outputs={}, times=times, each_row=times > 1)

    facts = facts_of_file(nets["stm32n6"])
    manifest = Manifest(
        whole_sha256="0",
        inputs=(),
        outputs=(),
        parts=tuple(
            PartFacts(name=name, file=facts, inputs=(), outputs=()) for name in ("Body", "Head")
        ),
        steps=(run("Body", 20), run("Body", 4), run("Head", 1)),
    )
    body, head = ledgers_of_parts(manifest, nets["stm32n6"].parent, N6)
    assert (body.calls, head.calls) == (24, 1)
    assert per_sample([body, head], N6).macs_per_sample == 25 * head.macs


def test_a_time_is_a_bound_from_a_rate_with_a_source_or_nothing(nets):
    bound = ledger(nets["stm32n6"], N6, calls=24).bound
    macs = ledger(nets["stm32n6"], N6).macs
    assert bound.at_least_ms == pytest.approx(24 * macs / 300e9 * 1e3)
    assert bound.source
    assert ledger(nets["ort-x86"], X86).bound is None


def test_a_claim_beyond_what_int8_can_save_is_warned_of(nets, fp32):
    def said(claim):
        return ledger(nets["stm32n6"], N6, fp32=fp32, claimed_ratio=claim).warnings

    found = ledger(nets["stm32n6"], N6, fp32=fp32)
    assert found.ratio < found.predicted_ratio < 4
    assert said(found.predicted_ratio) == found.warnings == ()
    (warning,) = said(4.0)
    assert "claimed ratio of 4.00" in warning
    assert ledger(nets["stm32n6"], N6, claimed_ratio=4.0).warnings != ()


def test_fewer_calls_than_one_are_refused(nets):
    with pytest.raises(UsageError, match="0 calls"):
        ledger(nets["stm32n6"], N6, calls=0)


def test_what_two_nodes_share_is_stored_once(tmp_path):
    model = small_net()
    twin = onnx.NodeProto.FromString(model.graph.node[4].SerializeToString())
    twin.name, twin.output[0] = "again", "unused"
    model.graph.node.append(twin)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info("unused", onnx.TensorProto.FLOAT, [1, 5, 4, 4])
    )
    onnx.save(model, tmp_path / "m.onnx")
    found = ledger(tmp_path / "m.onnx", N6)
    assert found.weight_bytes == sum(line.weight_bytes for line in found.layers) - 4 * 5
    assert ir.DataType.FLOAT.itemsize == np.dtype(np.float32).itemsize


def test_the_lines_tell_the_cost_of_a_sample_and_call_the_bound_one(nets, fp32):
    entry = ledger(nets["stm32n6"], N6, fp32=fp32, calls=24)
    text = "\n".join(ledger_lines([entry], N6))
    assert f"one sample: {24 * entry.macs:,} multiply-accumulates" in text
    assert "BOUND, no measurement" in text
    sizes = [path.stat().st_size for path in (fp32, nets["stm32n6"])]
    assert f"file: {sizes[0]:,} → {sizes[1]:,} bytes" in text
    assert "BOUND" not in "\n".join(ledger_lines([ledger(nets["ort-x86"], X86)], X86))
