"""The tool that runs bundles on emulated processors; here the guest is this very processor."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from benchmarks.saturation_networks import made_up
from onnxq.artifacts import AnswerCheck, Bundle, DeviceResults, ProcessorCheck
from onnxq.graph import load_model
from onnxq.plain.calibrate import Data
from onnxq.plain.quantize import quantize_file
from onnxq.provenance import provenance
from onnxq.recipe import CalibrateSection, QuantizeSection
from onnxq.runtime import Session, with_outputs
from onnxq.store import facts_of_file, load_record, save_record
from onnxq.target import load_target
from tools.emulation import __main__ as program
from tools.emulation import guests as guests_module
from tools.emulation.commands import EmulationError, call, require
from tools.emulation.guests import Guest
from tools.emulation.outputs import apart, outputs_on
from tools.emulation.selftest import check_bundle, exit_code, table

ENVIRONMENT = {"ORT_DISABLE_TELEMETRY": "1", "PATH": os.defpath}


def native(cpu="here"):
    return Guest(cpu, (sys.executable,), ENVIRONMENT, "none", {"onnxruntime": "1"}, {"a.deb": "0"})


# --- self-tests ---------------------------------------------------------------------------------


def bundle(folder: Path, most_steps: float, *, allowed_by: str = "tolerance") -> Path:
    """A folder whose self-test reports a departure, and judges it as a real one does."""
    folder.mkdir()
    (folder / "SHA256SUMS").write_text("")
    (folder / "contract.json").write_text("{}")
    (folder / "int8.onnx").write_bytes(b"a model")
    model = facts_of_file(folder / "int8.onnx")
    answers = AnswerCheck(vectors=10, optimization="full", bit_exact=True)
    record = Bundle(
        model=model, target="ort-arm64", verdict="passed", files=(model,), rules=(),
        answers=answers, provenance=provenance({}),
    )  # fmt: skip
    save_record(record, folder / "bundle.json")
    line = {
        "part": "", "level": "ORT_ENABLE_ALL", "decides": True, "vectors": 10, "elements": 20,
        "differing": 3 if most_steps else 0, "most_steps": most_steps, "first": "vector 0",
    }  # fmt: skip
    other = line | {"level": "ORT_DISABLE_ALL", "decides": False, "most_steps": 9.0, "differing": 1}
    (folder / "selftest.py").write_text(
        "import json, sys\n"
        "allowed = float(sys.argv[sys.argv.index('--tolerance') + 1])\n"
        "assert sys.argv[sys.argv.index('--runs') + 1] == '0'\n"
        f"lines = json.loads({json.dumps(json.dumps([line, other]))})\n"
        "code = int(lines[0]['most_steps'] > allowed)\n"
        "print(json.dumps({'exit_code': code, 'answers': lines}))\n"
        "sys.exit(code)\n"
    )
    return folder


@pytest.mark.parametrize(
    ("most_steps", "tolerance", "code", "said"),
    [
        (0.0, 1.0, 0, "equal bit for bit"),
        (1.0, 1.0, 0, "3 differ, by up to 1 output steps (within 1)"),
        (2.0, 1.0, 1, "3 differ, by up to 2 output steps (MORE THAN 1)"),
        (2.0, 3.0, 0, "(within 3)"),
    ],
)
def test_answers_are_judged_by_the_steps_that_are_allowed(
    tmp_path, most_steps, tolerance, code, said
):
    found = check_bundle(bundle(tmp_path / "b", most_steps), [native("x"), native("y")], tolerance)
    assert exit_code(found) == code
    assert found.exit_codes == {"x": code, "y": code}
    lines = table(found).splitlines()
    assert len(lines) == 5
    assert said in lines[1]
    assert lines[2].endswith("(for information)")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("print('no json')", "ended with 0"),
        ("raise SystemExit('it broke')", "it broke"),
        ('print(\'{"error": "numpy is missing"}\')', "numpy is missing"),
        ('print(\'{"changed": ["int8.onnx"], "exit_code": 1}\')', "int8.onnx"),
    ],
)
def test_a_self_test_that_could_not_check_is_an_error(tmp_path, text, said):
    (bundle(tmp_path / "b", 0.0) / "selftest.py").write_text(text)
    with pytest.raises(EmulationError, match=said):
        check_bundle(tmp_path / "b", [native()], 1.0)


def test_the_program_keeps_what_it_found_in_the_bundle(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(program, "arm_guests", lambda folder, cpus: [native(cpu) for cpu in cpus])
    folder = bundle(tmp_path / "b", 2.0)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert program.main(["arm", "--bundle", str(folder)]) == 1
    (record,) = load_record(DeviceResults, folder / "device" / "device.json").processors
    assert set(record.exit_codes) == {"cortex-a72", "cortex-a76"}
    assert [row.most_steps for row in record.rows if row.decides] == [2.0, 2.0]
    assert record.model == facts_of_file(folder / "int8.onnx")
    assert "MORE THAN 1" in capsys.readouterr().out
    assert {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()} == before


def test_the_record_alone_is_written_where_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(program, "x86_guests", lambda folder, cpus: [native(cpu) for cpu in cpus])
    folder = bundle(tmp_path / "b", 0.0)
    output = tmp_path / "alone.json"
    assert program.main(["avx2", "--bundle", str(folder), "-o", str(output)]) == 0
    assert set(load_record(ProcessorCheck, output).exit_codes) == {"Haswell"}
    assert not (folder / "device").exists()


def test_the_program_ends_with_two_and_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))  # no apt-get, no dpkg
    assert program.main(["avx2", "--folder", str(tmp_path / "e")]) == 2
    assert "the program `dpkg` is missing" in capsys.readouterr().err
    monkeypatch.setattr(program, "x86_guests", lambda folder, cpus: [native()])
    assert program.main(["avx2", "--bundle", str(tmp_path)]) == 2
    assert "holds no selftest.py" in capsys.readouterr().err


# --- preparation --------------------------------------------------------------------------------


def test_a_piece_is_made_once_and_again_when_something_else_is_wanted(tmp_path):
    made = []

    def make(into):
        (into / "file").write_text(f"{len(made)}")
        made.append(into)
        return {"package": "digest"}

    for wanted in (["a"], ["a"], ["b"], ["b"]):
        place, sources = guests_module._piece(tmp_path / "piece", wanted, make)
        assert sources == {"package": "digest"}
    assert len(made) == 2
    assert (place / "file").read_text() == "1"


def test_a_piece_that_fails_leaves_nothing(tmp_path):
    def make(into):
        (into / "half").touch()
        raise EmulationError("no network")

    with pytest.raises(EmulationError):
        guests_module._piece(tmp_path / "piece", ["a"], make)
    assert list(tmp_path.iterdir()) == []


def test_commands_say_what_they_were_for():
    with pytest.raises(EmulationError, match="`no-such-program` is missing") as missing:
        require("no-such-program")
    assert missing.value.exit_code == 2
    with pytest.raises(EmulationError, match=r"could not look: .* ended with 3: gone"):
        call([sys.executable, "-c", "import sys; print('gone'); sys.exit(3)"], "look")
    assert call([sys.executable, "-c", "print('here')"], "look") == "here\n"


# --- outputs ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """The small CNN as an INT8 file, with two samples."""
    work = tmp_path_factory.mktemp("cnn")
    case = made_up("cnn", work)
    data = Data(str(case.calibration), {}, CalibrateSection())
    quantize_file(case.model, load_target("ort-x86"), data, QuantizeSection(), work / "int8.onnx")
    return work / "int8.onnx", case.samples(2)


def test_a_guest_gives_the_outputs_of_every_row(cnn):
    path, samples = cnn
    rows = {"input": np.stack([row["input"] for row in samples.rows()])}
    found = outputs_on(native(), path, rows, ["session.intra_op.allow_spinning=0"])
    session = Session(path)
    for index, row in enumerate(samples.rows()):
        assert np.array_equal(found["output"][index], session.run(row)["output"])


def test_a_guest_that_fails_says_so(cnn, tmp_path):
    path, _ = cnn
    with pytest.raises(EmulationError, match=r"could not run int8.onnx on here"):
        outputs_on(native(), path, {"another": np.zeros((1, 2), np.float32)})


def test_nodes_apart_compute_what_they_do_together(cnn):
    """Each is fed what it gets in the whole graph, run as the graph says."""
    path, samples = cnn
    model = load_model(path)
    nodes = {node.name: node for node in model.graph.node if node.op_type in {"Conv", "Gemm"}}
    assert len(nodes) == 5
    users = {name: node for node in model.graph.node for name in node.input}
    given = {name: node.input[0] for name, node in nodes.items()}
    wanted = {}
    for name, node in nodes.items():
        end = users[node.output[0]]
        end = users[end.output[0]] if end.op_type == "Relu" else end
        wanted[name] = users[end.output[0]].output[0]
    alone = apart(model, list(nodes))
    onnx.checker.check_model(alone)
    whole = Session(
        with_outputs(model, [*given.values(), *wanted.values()]).SerializeToString(),
        optimization="none",
    )
    single = Session(alone.SerializeToString(), optimization="none")
    for row in samples.rows():
        values = whole.run(row)
        found = single.run({name: values[tensor] for name, tensor in given.items()})
        for name, tensor in wanted.items():
            assert np.array_equal(found[f"{name}.out"], values[tensor])


def test_what_is_needed_is_asked_for_by_name():
    assert shutil.which("python3") is None or require("python3") is None
