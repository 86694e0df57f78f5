import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from onnxq.artifacts import ExportedModel
from onnxq.errors import (
    AlreadyQuantizedError,
    CheckpointError,
    ExportError,
    MissingExtraError,
    ModelError,
    ParityError,
)
from onnxq.export import clean
from onnxq.export.stage import AS_IT_CAME, MODEL, RECORD, export
from onnxq.graph import load_model
from onnxq.recipe import ExportSection, ValueSection
from onnxq.runtime import Session
from onnxq.samples import Samples
from onnxq.store import load_record, sha256_of_file
from onnxq.target import load_target

from .networks import DeadTime, SmallPulse, graph, operators, random, randomized

STM32, X86 = load_target("stm32n6"), load_target("ort-x86")
SHAPE = (1, 4, 2, 8, 8, 3)


def section(tmp_path: Path, **changes: object) -> ExportSection:
    torch.save({"model_state_dict": randomized(SmallPulse()).state_dict()}, tmp_path / "best.pth")
    given = {
        "network": "export.networks:small_pulse",
        "checkpoint": tmp_path / "best.pth",
        "inputs": (ValueSection(name="input", shape=SHAPE, domain=(0, 1)),),
        "outputs": (ValueSection(name="output", domain=(30, 180)),),
    }
    return ExportSection.model_validate(given | changes)


def samples() -> Samples:
    return Samples("windows", {"input": np.abs(random(20, *SHAPE[1:]))})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the stage makes of a small network for a target of free batch."""
    home = tmp_path_factory.mktemp("export")
    export(section(home), home / "out", target=X86, samples=samples())
    return home / "out"


def test_a_network_becomes_a_file_and_a_record_that_belong_together(folder):
    exported = load_record(ExportedModel, folder / RECORD)
    assert {path.name for path in folder.iterdir()} == {MODEL, AS_IT_CAME, RECORD}
    assert exported.model.sha256 == sha256_of_file(folder / MODEL)
    assert exported.opset == 17
    assert exported.inputs[0].shape == ("batch", *SHAPE[1:])
    assert exported.inputs[0].domain == (0, 1)
    assert exported.outputs[0].domain == (30, 180)
    assert exported.checkpoint.nested_under == "model_state_dict"
    assert "BatchNormalization" not in operators(load_model(folder / MODEL))
    assert "BatchNormalization" in operators(load_model(folder / AS_IT_CAME))


def test_parity_is_measured_at_every_hop_on_three_sets(folder):
    exported = load_record(ExportedModel, folder / RECORD)
    hops = {"torch → ONNX", "ONNX → cleaned ONNX"}
    assert {(check.hop, check.inputs) for check in exported.parity} == {
        (hop, inputs) for hop in hops for inputs in ("random", "edges", "real")
    }
    assert all(check.passed and check.max_relative < 1e-5 for check in exported.parity)
    assert any("folded 1 BatchNormalization: max difference" in s for s in exported.steps)
    assert exported.findings == ()


def test_the_shipped_graph_computes_what_torch_computes(folder):
    x = np.abs(random(5, *SHAPE[1:], seed=5))
    with torch.no_grad():
        expected = randomized(SmallPulse())(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(
        Session(folder / MODEL).run({"input": x})["output"], expected, rtol=1e-5
    )


def test_the_same_network_gives_the_same_bytes(folder, tmp_path):
    again = export(section(tmp_path), tmp_path / "out", target=X86)
    assert again.model.sha256 == sha256_of_file(folder / MODEL)


def test_without_samples_the_missing_set_is_a_finding(tmp_path):
    exported = export(section(tmp_path), tmp_path / "out", target=STM32)
    assert {check.inputs for check in exported.parity} == {"random", "edges"}
    assert any("no real samples" in finding.what for finding in exported.findings)
    assert exported.inputs[0].shape == SHAPE


def test_a_dead_time_input_and_its_parameters_are_found(tmp_path):
    torch.save(DeadTime().state_dict(), tmp_path / "w.pt")
    exported = export(
        ExportSection(
            network="export.networks:DeadTime",
            checkpoint=tmp_path / "w.pt",
            inputs=(
                ValueSection(name="x", shape=(1, 4)),
                ValueSection(name="time", shape=(1, 1)),
            ),
            outputs=(ValueSection(name="y"),),
        ),
        tmp_path / "out",
        target=STM32,
    )
    found = {finding.where: finding.what for finding in exported.findings}
    assert "influences no output" in found["input time"]
    assert "8 parameters in 2 tensors" in found["network"]


def shrink_weights(model: ir.Model) -> int:
    """A rewrite that changes what the graph computes."""
    for name, value in model.graph.initializers.items():
        array = value.const_value.numpy()
        if array.ndim == 4 and not name.endswith("wrong"):
            value.const_value = ir.tensor(array * np.float32(0.98))
            value.name = name + ".wrong"
            return 1
    return 0


def test_a_rewrite_that_computes_something_else_is_named_and_nothing_is_written(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(clean.REWRITES, "shrank {} weights", shrink_weights)
    with pytest.raises(ParityError) as caught:
        export(section(tmp_path), tmp_path / "out", target=STM32)
    assert "shrank 1 weights" in caught.value.what
    assert "limit 0.0001" in caught.value.what
    assert not (tmp_path / "out" / MODEL).exists()


def test_a_network_is_never_exported_with_weights_that_do_not_fit(tmp_path):
    torch.save({"head.weight": torch.zeros(1, 16)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit the network"):
        export(section(tmp_path, checkpoint=tmp_path / "other.pth"), tmp_path / "out", target=STM32)


def test_an_opset_that_the_target_does_not_take_is_refused(tmp_path):
    with pytest.raises(ExportError, match="opset 20 is outside what stm32n6 takes"):
        export(section(tmp_path, opset=20), tmp_path / "out", target=STM32)


# --- from a file --------------------------------------------------------------------------------


def saved(tmp_path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


CONV = "g (float[n,3,8,8] x) => (float[n,4,6,6] y) { h = Conv(x, w, b)\ny = Relu(h) }"


def conv(head: str = "") -> onnx.ModelProto:
    return graph(head + CONV, w=random(4, 3, 3, 3), b=random(4))


@pytest.mark.parametrize(("target", "first"), [(STM32, 1), (X86, "batch")])
def test_a_file_takes_the_batch_of_its_target(tmp_path, target, first):
    given = ExportSection(
        model=saved(tmp_path, conv()), inputs=(ValueSection(name="x", domain=(0, 1)),)
    )
    exported = export(given, tmp_path / "out", target=target)
    assert exported.inputs[0].shape == (first, 3, 8, 8)
    assert exported.outputs[0].shape == (first, 4, 6, 6)
    assert exported.inputs[0].domain == (0, 1)
    assert exported.parameters == 4 * 27 + 4
    assert {check.hop for check in exported.parity} == {"ONNX → cleaned ONNX"}


def test_an_old_opset_is_raised_and_it_is_said(tmp_path):
    path = saved(tmp_path, conv('<ir_version: 6, opset_import: ["": 11]>'))
    exported = export(ExportSection(model=path), tmp_path / "out", target=X86)
    assert exported.opset == 13
    assert any("from opset 11 to 13" in finding.what for finding in exported.findings)


def test_a_newer_opset_than_the_target_takes_is_lowered(tmp_path):
    path = saved(tmp_path, conv('<ir_version: 9, opset_import: ["": 19]>'))
    exported = export(ExportSection(model=path), tmp_path / "out", target=STM32)
    assert exported.opset == STM32.opset[1]
    assert any("opset 19 → 17" in step for step in exported.steps)


def test_a_quantized_file_is_refused(tmp_path):
    model = graph(
        "g (float[2] x) => (float[2] y) { q = QuantizeLinear(x, s, z)\n"
        "y = DequantizeLinear(q, s, z) }",
        s=np.array(0.1, np.float32),
        z=np.array(0, np.int8),
    )
    with pytest.raises(AlreadyQuantizedError):
        export(ExportSection(model=saved(tmp_path, model)), tmp_path / "out", target=X86)


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelError):
        export(ExportSection(model=tmp_path / "m.onnx"), tmp_path / "out", target=X86)


def test_a_declared_output_that_the_graph_lacks_is_corrected(tmp_path):
    model = graph("g (float[1,2] x) => (float[1,2] logits) { logits = Relu(x) }")
    given = ExportSection(model=saved(tmp_path, model), outputs=(ValueSection(name="logit"),))
    with pytest.raises(ModelError, match="did you mean `logits`"):
        export(given, tmp_path / "out", target=X86)


def test_a_declared_output_shape_that_the_graph_contradicts_is_an_error(tmp_path):
    given = ExportSection(
        model=saved(tmp_path, conv()), outputs=(ValueSection(name="y", shape=(1, 5, 6, 6)),)
    )
    with pytest.raises(ModelError, match=r"\[1, 5, 6, 6\]"):
        export(given, tmp_path / "out", target=X86)


def test_an_undeclared_domain_is_a_finding(tmp_path):
    exported = export(ExportSection(model=saved(tmp_path, conv())), tmp_path / "out", target=X86)
    assert any("no domain is declared for x" in finding.what for finding in exported.findings)


# --- without torch ------------------------------------------------------------------------------


def test_the_stage_loads_no_torch():
    code = "import sys, onnxq.export.stage; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_torch_is_named_with_what_to_install(tmp_path, monkeypatch):
    given = section(tmp_path)
    for name in ("onnxq.export.checkpoint", "onnxq.export.from_torch"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtraError, match="torch") as caught:
        export(given, tmp_path / "out", target=X86)
    assert "onnxq[torch]" in caught.value.do
