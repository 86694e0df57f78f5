"""``onnxq doctor`` tells a fault of the tools from one of a model, one line each, never a trace."""

import importlib
import inspect
import json
import re
import signal
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from onnxq.cli import main
from onnxq.errors import RuntimeFailureError
from onnxq.plain import doctor
from onnxq.quantize import qdq

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shell(capsys) -> Callable[..., tuple[int, str, str]]:
    """Run the command line here; its code, stdout and stderr."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    yield run
    signal.signal(signal.SIGTERM, before)


def checks_of(shell: Callable[..., tuple[int, str, str]]) -> tuple[int, dict[str, dict[str, Any]]]:
    code, out, _ = shell("doctor", "--json")
    return code, {check["what"]: check for check in json.loads(out)["checks"]}


class Older:
    """The quantizer of an onnxruntime that has no `tensors_range` yet."""

    __signature__ = inspect.Signature(
        [
            parameter
            for name, parameter in inspect.signature(QDQQuantizer).parameters.items()
            if name != "tensors_range"
        ]
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """One operator of all is enough to see what doctor says."""
    monkeypatch.setattr(doctor, "_MODELS", {"Gemm": doctor._MODELS["Gemm"]})
    monkeypatch.setattr(doctor, "_exporter", lambda: doctor.Check("torch exporter", "works", "-"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[1,4] x) => (float[1,3] y)'
        "{ y = Gemm<transB=1>(x, w) }"
    )
    weight = np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


@pytest.mark.slow
def test_an_installation_that_works_passes_with_a_line_for_every_check(shell):
    code, out, err = shell("doctor")

    assert code == 0, out + err
    assert "the tools work" in out
    for what in (
        "onnxruntime", "quantizer", "opsets", "session keys", "int4", "Conv to INT8",
        "torch exporter", "processor",
    ):  # fmt: skip
        assert re.search(rf"^.*{what}.*\S+$", out, re.MULTILINE), what


def test_the_versions_called_tested_are_those_that_are_installed_for_tests():
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "constraints.txt").read_text(), re.M))
    project = (ROOT / "pyproject.toml").read_text()
    for package, (oldest, newest) in doctor.KNOWN_TO_WORK.items():
        assert pinned[package].split(".")[:2] == newest.split("."), package
        declared = re.search(rf'"{package}>=(\d+\.\d+)', project)
        assert declared is not None, package
        assert declared.group(1) == oldest, package


@pytest.mark.parametrize(
    ("version", "state", "word"),
    [
        ("1.31.9", "works", "1.31"),
        ("1.22.0", "fails", "older"),
        ("1.40.2", "note", "newer"),
    ],
)
def test_a_version_is_held_against_those_that_work(monkeypatch, version, state, word):
    monkeypatch.setattr(metadata, "version", lambda _: version)

    check = doctor.version_check("onnxruntime")

    assert check.state == state
    assert word in check.found


@pytest.mark.parametrize(
    ("package", "state"), [("torch", "note"), ("onnxscript", "note"), ("onnxruntime", "fails")]
)
def test_a_package_that_is_missing_is_named_with_the_way_to_it(monkeypatch, package, state):
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)

    check = doctor.version_check(package)

    assert (check.state, check.found) == (state, "is not installed")
    assert "pip install" in check.do


def test_the_arguments_that_are_probed_are_those_that_are_given(shell, model, monkeypatch):
    given: list[set[str]] = []

    class Spy(QDQQuantizer):
        __signature__ = inspect.signature(QDQQuantizer)

        def __init__(self, model: onnx.ModelProto, **named: Any) -> None:
            given.append(set(named))
            super().__init__(model, **named)

    monkeypatch.setattr(qdq, "QDQQuantizer", Spy)
    code, _, err = shell(
        "quantize", model, "--smoke-test-random", "-o", model.with_name("int8.onnx")
    )

    assert code == 0, err
    assert given
    assert all(names == set(qdq.ARGUMENTS) for names in given)


def test_a_quantizer_without_an_argument_is_named_by_doctor_and_by_quantize(
    shell, model, quick, monkeypatch
):
    monkeypatch.setattr(qdq, "QDQQuantizer", Older)

    code, checks = checks_of(shell)
    refused, _, err = shell(
        "quantize", model, "--smoke-test-random", "-o", model.with_name("int8.onnx")
    )

    assert (code, refused) == (2, 2)
    probed = checks["onnxruntime's quantizer"]
    assert probed["state"] == "fails"
    assert "`tensors_range`" in probed["found"]
    assert onnxruntime.__version__ in probed["found"]
    assert "`tensors_range`" in err
    assert "`onnxq doctor`" in err
    assert "Traceback" not in err
    assert not model.with_name("int8.onnx").exists()


def test_a_quantizer_that_was_moved_is_named_when_it_is_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization.qdq_quantizer", None)

    with pytest.raises(RuntimeFailureError, match="quantizer cannot be used"):
        importlib.reload(qdq)

    monkeypatch.undo()
    importlib.reload(qdq)


def test_an_operator_that_computes_something_else_is_the_tools_fault(shell, quick, monkeypatch):
    from onnxq.runtime import Session

    build, run = Session.__init__, Session.run
    fused: set[int] = set()

    def remember(self: Session, model: Path | bytes, **options: Any) -> None:
        build(self, model, **options)
        if options.get("optimization", "full") == "full":
            fused.add(id(self))

    def wrong(self: Session, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        off = id(self) in fused
        return {name: array + off for name, array in run(self, inputs).items()}

    monkeypatch.setattr(Session, "__init__", remember)
    monkeypatch.setattr(Session, "run", wrong)

    code, checks = checks_of(shell)

    assert code == 2
    assert checks["Gemm to INT8"]["state"] == "fails"
    assert "dB from FP32" in checks["Gemm to INT8"]["found"]


def test_a_session_key_without_effect_is_found(shell, quick, monkeypatch):
    from onnxq import runtime

    execute = runtime.executed_operators
    monkeypatch.setattr(runtime, "executed_operators", lambda path, config=None: execute(path))

    code, checks = checks_of(shell)

    assert code == 2
    assert checks["session keys"]["state"] == "fails"
    assert "session.disable_quant_qdq" in checks["session keys"]["found"]


def test_what_breaks_in_an_unforeseen_way_is_a_line_and_no_trace(shell, quick, monkeypatch):
    def broken() -> str:
        raise OSError("libonnxruntime.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "_int4", broken)

    code, out, err = shell("doctor")

    assert code == 2
    assert "libonnxruntime.so.1" in out
    assert "Traceback" not in out + err
    assert "cannot be relied on: int4 weights" in out


@pytest.mark.parametrize(
    ("flags", "state", "word"),
    [
        (("x86_64", "avx2", "avx512_vnni"), "works", "VNNI"),
        (("x86_64", "avx2"), "note", "saturate"),
        (("aarch64", "asimd", "asimddp"), "works", "dot products"),
        (("aarch64", "asimd"), "note", "no dot product"),
    ],
)
def test_what_a_processor_means_for_int8_is_said(quick, monkeypatch, flags, state, word):
    monkeypatch.setattr(doctor, "cpu_flags", lambda: flags)

    check = next(check for check in doctor.examine() if check.what == "processor")

    assert check.state == state
    assert word in check.found
