"""The shell: what it loads, what it prints where, and the code it ends with."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.cli import _COMMANDS, main
from onnxq.target import target_names

HEAVY = {"numpy", "onnx", "onnxruntime", "torch", "onnx_ir", "scipy", "pydantic", "rich"}
NET = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,3,8,8] x) => (float[1,5] y) {
    c = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm<transB=1>(f, v)
}"""


@pytest.fixture
def shell(capsys, monkeypatch) -> Callable[..., tuple[int, str, str]]:
    """Run the command line here; its code, stdout and stderr."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        code = ended.value.code
        out, err = capsys.readouterr()
        return (code if isinstance(code, int) else 0), out, err

    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def model(tmp_path) -> Path:
    """A small float model, with calibration samples beside it."""
    random = np.random.default_rng(0)
    proto = onnx.parser.parse_model(NET)
    for name, shape in (("w", (4, 3, 3, 3)), ("v", (5, 4))):
        array = random.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, tmp_path / "m.onnx")
    np.savez(tmp_path / "c.npz", x=random.standard_normal((12, 3, 8, 8)).astype(np.float32))
    return tmp_path / "m.onnx"


def in_another_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnxq", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


# --- what it loads ------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nope"]])
def test_help_loads_nothing_heavy(arguments):
    code = (
        "import sys\n"
        "from onnxq.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        f"print('LOADED', sorted({HEAVY} & set(sys.modules)))\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.rstrip().endswith("LOADED []")


def test_importing_the_package_loads_nothing_heavy_and_silences_telemetry():
    code = (
        "import sys, os, onnxq\n"
        f"print(sorted({HEAVY} & set(sys.modules)), os.environ['ORT_DISABLE_TELEMETRY'])"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert out.strip() == "[] 1"


def test_help_is_quick():
    """Three tries, as other work may run beside; the promise is 0.3 s on a quiet machine."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        assert in_another_process("--help").returncode == 0
        times.append(time.perf_counter() - start)
    assert min(times) < 1.0


# --- help and usage -----------------------------------------------------------------------------


def test_help_names_every_command_and_the_exit_codes(shell):
    code, out, _ = shell("--help")
    assert code == 0
    assert all(f"  {name} " in out for name in _COMMANDS)
    assert "Exit codes" in out


@pytest.mark.parametrize("command", list(_COMMANDS))
def test_every_command_has_help_and_the_common_flags(shell, command):
    code, out, _ = shell(command, "--help")
    assert code == 0
    assert {"--json", "--quiet", "--verbose"} <= set(out.replace(",", " ").split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["calibrat"], "did you mean `calibrate`"),
        (["targets", "--nope"], "No such option"),
        (["--nope"], "No such option"),
        (["run"], "Missing argument"),
        (["calibrate", "m.onnx", "--samples", "0"], "--samples"),
        (["calibrate", "m.onnx", "--method", "entropie"], "minmax"),
        (["run", "r.yaml", "--from", "exprt"], "export"),
    ],
)
def test_a_wrong_word_ends_with_2_and_says_which(shell, arguments, says):
    code, out, err = shell(*arguments)
    assert (code, out) == (2, "")
    assert says in err


# --- looking ------------------------------------------------------------------------------------


def test_targets_are_listed(shell):
    code, out, _ = shell("targets")
    assert code == 0
    assert tuple(line.split()[0] for line in out.splitlines()) == target_names()
    code, out, err = shell("targets", "--json")
    assert tuple(json.loads(out)["targets"]) == target_names()
    assert "stm32n6" in err  # text for people goes where it is in nobody's way


def test_a_target_is_shown_with_its_rules(shell):
    code, out, _ = shell("targets", "stm32n6")
    assert code == 0
    assert "stm32n6.opset" in out
    assert "activations int8" in out


def test_the_schema_is_json_schema_with_every_section(shell):
    code, out, _ = shell("schema")
    schema = json.loads(out)
    assert code == 0
    assert {"export", "data", "calibrate", "quantize", "verify"} <= set(schema["properties"])
    assert json.loads(shell("schema", "--json")[1])["schema"] == schema


def test_inspect_says_what_would_become_integer(shell, model):
    code, out, _ = shell("inspect", model, "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["quantized"] is False
    assert len(facts["integer_nodes"]) == 5
    assert facts["float_nodes"] == []


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (["targets", "stm32n7"], "UsageError"),
        (["inspect", "none.onnx"], "ModelError"),
        (["run", "none.yaml"], "RecipeError"),
        (["calibrate", "none.onnx"], "UsageError"),  # no --data
        (["calibrate", "none.onnx", "--data", "c.npz", "-o", "o"], "ModelError"),
        (["quantize", "none.onnx", "--calibration", "o", "-o", "o.onnx"], "StoreError"),
        (["calibrate", "none.onnx", "--data", "a", "--domain", "x=1", "-o", "o"], "UsageError"),
        (["verify", "only_one.onnx"], "UsageError"),
    ],
)
def test_an_error_is_one_json_object_with_its_kind_and_ends_with_2(
    shell, tmp_path, monkeypatch, arguments, kind
):
    monkeypatch.chdir(tmp_path)
    code, out, err = shell(*arguments, "--json")
    told = json.loads(out)
    assert (code, told["exit_code"], told["error"]["kind"]) == (2, 2, kind)
    assert told["error"]["what"] in " ".join(err.split()) or told["error"]["what"] in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def test_the_traceback_is_shown_only_if_asked_for(shell):
    assert "Traceback" not in shell("inspect", "none.onnx")[2]
    assert "Traceback" in shell("inspect", "none.onnx", "--verbose")[2]


def test_a_fault_of_our_own_ends_with_2_on_one_screen(shell, model, monkeypatch):
    def break_down(*_: object) -> None:
        raise ZeroDivisionError("inside")

    monkeypatch.setattr("onnxq.graph.load_model", break_down)
    code, out, err = shell("inspect", model, "--json")
    assert code == 2
    assert json.loads(out)["error"] == {"kind": "unexpected", "what": "ZeroDivisionError: inside"}
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.float32(1)}, "`x` is a single number"),
        (
            {"x": np.zeros((4, 3, 8, 8), np.float32), "labels": np.zeros((4, 1))},
            "`labels` has shape",
        ),
    ],
)
def test_arrays_of_a_wrong_rank_are_an_error_of_ours(model, arrays, says):
    """In a process of its own: here, jaxtyping would object first."""
    np.savez(model.parent / "bad.npz", **arrays)
    ended = in_another_process(
        "calibrate", model, "--data", model.parent / "bad.npz", "-o", model.parent / "o", "--json"
    )
    assert ended.returncode == 2
    told = json.loads(ended.stdout)["error"]
    assert told["kind"] == "DataError"
    assert says in told["what"]


# --- plain files --------------------------------------------------------------------------------


def test_a_plain_model_is_calibrated_and_quantized(shell, model):
    folder, output = model.parent / "ranges", model.parent / "int8.onnx"
    data = ("--data", model.parent / "c.npz")
    code, out, _ = shell("calibrate", model, *data, "-o", folder, "--json")
    assert code == 0
    assert len(json.loads(out)["record"]["choice"]["indices"]) == 12
    code, out, _ = shell("quantize", model, "--calibration", folder, "-o", output, "--json")
    assert code == 0
    once = output.read_bytes()
    assert json.loads(out)["record"]["target"] == "ort-x86"
    code, _, _ = shell("quantize", model, *data, "-o", output)
    assert code == 0
    assert output.read_bytes() == once
    facts = json.loads(shell("inspect", output, "--json")[1])
    assert facts["quantized"] is True
    assert facts["coverage"]["operators"]["integer"] == facts["coverage"]["operators"]["total"]


def test_a_quantized_model_is_not_quantized_again(shell, model):
    output = model.parent / "int8.onnx"
    data = ("--data", model.parent / "c.npz")
    assert shell("quantize", model, *data, "-o", output)[0] == 0
    code, out, _ = shell("quantize", output, *data, "-o", model.parent / "twice.onnx", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "AlreadyQuantizedError")
    assert not (model.parent / "twice.onnx").exists()


def test_ranges_of_another_model_are_stale(shell, model):
    folder = model.parent / "ranges"
    assert shell("calibrate", model, "--data", model.parent / "c.npz", "-o", folder)[0] == 0
    proto = onnx.load(model)
    proto.graph.initializer[0].raw_data = bytes(len(proto.graph.initializer[0].raw_data))
    onnx.save(proto, model)
    code, out, _ = shell(
        "quantize", model, "--calibration", folder, "-o", model.parent / "o.onnx", "--json"
    )
    assert (code, json.loads(out)["error"]["kind"]) == (2, "StaleRecordError")


def test_an_unknown_node_to_exclude_is_told(shell, model):
    arguments = ("quantize", model, "--data", model.parent / "c.npz", "--exclude", "conv_7")
    code, out, _ = shell(*arguments, "-o", model.parent / "o.onnx", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "QuantizationError")
    assert "did you mean `conv_1`" in json.loads(out)["error"]["what"]


def test_random_numbers_must_be_asked_for_and_stamp_the_model(shell, model):
    output = model.parent / "int8.onnx"
    code, _, err = shell("quantize", model, "-o", output)
    assert code == 2
    assert "--smoke-test-random" in err
    code, out, _ = shell("quantize", model, "--smoke-test-random", "-o", output, "--json")
    assert code == 0
    assert json.loads(out)["record"]["made_up_data"] is True
    assert onnx.load(output).metadata_props


def test_quiet_says_nothing(shell, model):
    data = ("--data", model.parent / "c.npz")
    assert shell("quantize", model, *data, "-o", model.parent / "o.onnx", "-q") == (0, "", "")
