"""``onnxq inspect`` and ``onnxq convert``: what a person sees, and what a program reads."""

import json
import signal
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType, quantize_static

from onnxq.calibrate.readers import SampleReader
from onnxq.cli import main
from tests.handoff.qdq_models import with_constants
from tests.quantize.nets import HEAD, Net, calibrated, residual, weights


@pytest.fixture
def shell(capsys):
    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    before = signal.getsignal(signal.SIGTERM)
    yield run
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def net(tmp_path) -> Net:
    return residual(tmp_path)


@pytest.fixture
def theirs(net) -> Path:
    """Somebody else's file with int8 activations."""
    output = net.path.with_name("theirs.onnx")
    quantize_static(
        net.path, output, SampleReader(net.samples), per_channel=True,
        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return output


def executed(path: Path) -> list[str]:
    saved = path.with_name("optimized.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(saved)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(saved).graph.node]


def test_inspect_names_the_float_convolutions_and_the_command_that_mends_it(shell, theirs, net):
    code, out, _ = shell("inspect", theirs, "--target", "ort-x86", "--fp32", net.path)
    assert code == 0
    assert len(out.splitlines()) < 40
    assert "float, int8 activations on x86: Conv `conv_1`, Conv `conv_2`, Add `add_1`" in out
    assert "time: integer" in out
    assert "× the time of the FP32 model" in out
    assert "fused against unfused, 4 runs on random numbers" in out
    (command,) = (line for line in out.splitlines() if line.startswith("  → onnxq convert"))
    words = command.split()[2:]
    assert shell(*words)[0] == 0
    mended = executed(Path(words[words.index("-o") + 1]))
    assert mended.count("QLinearConv") == 2
    assert "Conv" not in mended


def test_inspect_tells_a_program_everything(shell, theirs):
    code, out, _ = shell("inspect", theirs, "--json")
    facts = json.loads(out)
    assert code == facts["exit_code"] == 0
    nodes = {node["node"]: node for node in facts["nodes"]}
    floating = {name for name, node in nodes.items() if node["runs"] == "float"}
    assert {"conv_1", "conv_2", "add_1"} <= floating
    for name in floating:
        assert nodes[name]["cause"]
        assert nodes[name]["why"]
        assert nodes[name]["do"]
    assert nodes["conv_1"]["elsewhere"] == "integer"
    assert facts["macs"]["integer"] < facts["macs"]["total"]
    assert 0 < sum(one["share"] for one in facts["time"]["operators"]) < 1.001
    assert facts["time"]["made_up_data"] is True
    assert facts["fused_against_unfused"]["samples"] == 4
    assert facts["remedies"][0].startswith("onnxq convert ")
    assert {"coverage", "executed", "audit", "findings", "operators", "opset"} <= facts.keys()


def test_inspect_for_arm_says_what_an_arm_build_fuses_and_times_nothing_here(shell, theirs):
    code, out, _ = shell("inspect", theirs, "--target", "ort-arm64")
    assert code == 0
    assert "executes on integers on ARM64: 100.0%" in out
    assert "nothing of it runs in float" in out
    assert "time: not measured: this machine is no ARM64" in out
    assert "onnxq convert" not in out


def test_inspect_says_that_all_is_well_where_it_is(shell, net):
    path = net.quantize("ort-x86").path
    code, out, _ = shell("inspect", path, "--no-time")
    assert code == 0
    assert "nothing of it runs in float" in out
    assert "time:" not in out
    assert "convert" not in out


def test_inspect_runs_on_the_samples_that_are_given(shell, net, tmp_path):
    path = net.quantize("ort-x86").path
    np.savez(tmp_path / "x.npz", x=np.zeros((3, 3, 8, 8), np.float32))
    code, out, _ = shell("inspect", path, "--data", tmp_path / "x.npz", "--json")
    facts = json.loads(out)
    assert (code, facts["time"]["made_up_data"]) == (0, False)
    assert facts["fused_against_unfused"]["samples"] == 3
    np.savez(tmp_path / "odd.npz", x=np.zeros((3, 2, 8, 8), np.float32))
    code, _, err = shell("inspect", path, "--data", tmp_path / "odd.npz")
    assert code == 2
    assert "[2, 8, 8]" in err


def test_inspect_says_what_it_could_not_measure(shell, tmp_path):
    text = "g (float[1,3,8,8] x) => (float[1,4,8,8] y) { [c] y = Conv(x, w, b) }"
    net = calibrated(tmp_path, HEAD + text, w=weights(4, 3, 1, 1), b=weights(4))
    path = net.quantize("ort-x86").path
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[2].dim_param = "height"
    del model.graph.value_info[:]
    onnx.save(model, path)
    code, out, _ = shell("inspect", path)
    assert code == 0
    assert "time: not measured: its dimension `height` is free" in out
    assert "give samples with --data" in out


def test_convert_says_what_it_changed_and_proved(shell, theirs, tmp_path):
    output = tmp_path / "u8.onnx"
    code, out, _ = shell("convert", theirs, "--target", "ort-x86", "-o", output)
    assert code == 0
    assert "activations int8 → uint8" in out
    assert "outputs equal to the last bit" in out
    assert "Conv: 2 of 2 executed on integers, 0 before" in out
    assert executed(output).count("QLinearConv") == 2


def test_convert_tells_a_program_both_hashes(shell, theirs, tmp_path):
    output = tmp_path / "u8.onnx"
    code, out, _ = shell("convert", theirs, "--target", "ort-x86", "-o", output, "--json")
    facts = json.loads(out)
    assert code == facts["exit_code"] == 0
    assert facts["conversion"]["source"]["sha256"] != facts["conversion"]["converted"]["sha256"]
    assert facts["conversion"]["integers_compared"] > 0
    assert facts["executed"]["Conv"] == {"before": 0, "after": 2, "total": 2}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--target", "ort-x86"], "`-o OUT.onnx` is needed"),
        (["--target", "stm32n6", "-o", "o.onnx"], "no uint8 activation"),
        (["--target", "ort-x68", "-o", "o.onnx"], "did you mean `ort-x86`"),
        (["-o", "o.onnx"], "Missing option '--target'"),
    ],
)
def test_convert_refuses_in_words(shell, theirs, monkeypatch, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    code, _, err = shell("convert", theirs, *arguments)
    assert code == 2
    assert says in err
    assert not (tmp_path / "o.onnx").exists()


# --- a target that a compiler serves ------------------------------------------------------------


def of_type(net: Net, kind: QuantType) -> Path:
    """The net as ONNX Runtime's own quantizer writes it with activations of this type."""
    output = net.path.with_name(f"{kind.name}.onnx")
    quantize_static(
        net.path, output, SampleReader(net.samples), per_channel=True,
        activation_type=kind, weight_type=QuantType.QInt8,
    )  # fmt: skip
    return output


@pytest.mark.parametrize("kind", [QuantType.QUInt8, QuantType.QInt8])
def test_inspect_answers_for_a_compiler_as_check_does(shell, net, kind):
    path = of_type(net, kind)
    judged, checked, _ = shell("check", path, "--target", "stm32n6")
    code, out, _ = shell("inspect", path, "--target", "stm32n6", "--no-time")
    answer, _, here = out.partition("On this machine's ONNX Runtime, for information")
    assert code == judged
    assert answer.endswith(checked)
    assert "executes on integers here" in here
    for words in ("nothing of it runs in float", "onnxq convert", "ort-x86"):
        assert words not in here
    broken = kind == QuantType.QUInt8
    assert ("breaks the rules of stm32n6" if broken else "keeps") in here.splitlines()[-1]


def test_inspect_gives_a_program_the_rules_and_the_prediction_of_a_compiler(shell, net):
    path = of_type(net, QuantType.QUInt8)
    _, out, _ = shell("inspect", path, "--target", "stm32n6", "--no-time", "--json")
    facts = json.loads(out)
    assert facts["exit_code"] == 1
    assert "stm32n6.activation-type" in {rule["rule"] for rule in facts["rules"]}
    assert {node["runs"] for node in facts["prediction"]["nodes"]} == {"refused"}
    assert facts["remedies"] == []


# --- saturation -----------------------------------------------------------------------------------


def wide(folder: Path) -> Net:
    """One product whose weights are of one size: their pairs leave int16 at full activations."""
    text = "g (float[1,8] x) => (float[1,4] y) { [m] y = MatMul(x, w) }"
    return calibrated(folder, HEAD + text, w=np.ones((8, 4), np.float32))


@pytest.mark.parametrize("target", ["ort-x86", "ort-x86-avx2"])
@pytest.mark.parametrize("command", ["check", "inspect"])
def test_what_can_saturate_is_said_with_the_flag_that_mends_it(shell, tmp_path, target, command):
    net = wide(tmp_path)
    np.savez(tmp_path / "x.npz", x=net.samples.inputs["x"])
    narrow = []
    advised = "--saturation narrow --step rounding --step bias"
    for mode in ("--saturation ignore", advised):
        arguments = ("--data", tmp_path / "x.npz", *mode.split(), "-o", tmp_path / "q.onnx")
        assert shell("quantize", net.path, "--target", target, *arguments)[0] == 0
        rest = ["--no-time"] if command == "inspect" else []
        _, out, _ = shell(command, tmp_path / "q.onnx", "--target", target, *rest)
        narrow.append(out)
    assert "Saturation: 1 of 1 products can on x86 without VNNI" in narrow[0]
    assert f"onnxq quantize {advised}`" in " ".join(narrow[0].split())
    assert "Saturation" not in narrow[1]
    quiet = shell("check", tmp_path / "q.onnx", "--target", "ort-x86-vnni")[1]
    assert "Saturation" not in quiet


def test_inspect_counts_saturation_on_the_samples_that_are_given(shell, tmp_path):
    net = wide(tmp_path)
    path = net.quantize("ort-x86").path
    np.savez(tmp_path / "top.npz", x=np.full((2, 8), net.samples.inputs["x"].max(), np.float32))
    _, out, _ = shell("inspect", path, "--data", tmp_path / "top.npz")
    assert "1 of 1 products can on x86 without VNNI, 1 do on" in out
    assert "pair sums saturate on the data" in out
    _, out, _ = shell("inspect", path, "--data", tmp_path / "top.npz", "--json")
    assert json.loads(out)["saturation"][0]["verdict"] == "does"


def test_inspect_says_equal_where_fusion_changes_nothing(shell, tmp_path):
    path = wide(tmp_path).quantize("ort-x86").path
    np.savez(tmp_path / "zero.npz", x=np.zeros((2, 8), np.float32))
    arguments = ("inspect", path, "--data", tmp_path / "zero.npz")
    apart = json.loads(shell(*arguments, "--json")[1])["fused_against_unfused"]
    assert apart["largest"] == 0
    assert "2 runs on zero.npz: equal" in shell(*arguments)[1]


# --- what it is run against -----------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--data", "--fp32"])
def test_inspect_of_an_fp32_model_refuses_what_it_would_not_use(shell, net, option):
    code, _, err = shell("inspect", net.path, option, net.path)
    assert code == 2
    assert option in err
    assert "is no quantized file" in err


def test_inspect_says_that_the_fp32_model_is_another_one(shell, net, tmp_path):
    path = net.quantize("ort-x86").path
    (tmp_path / "other").mkdir()
    other = wide(tmp_path / "other").path
    code, _, err = shell("inspect", path, "--fp32", other)
    assert code == 2
    assert "its inputs are `x` float32 [1, 8]" in " ".join(err.split())
    assert f"give the FP32 model that {path.name} was made from" in " ".join(err.split())


@pytest.mark.parametrize(("ratio", "said"), [(1.6, True), (0.6, False)])
def test_a_small_network_that_is_slower_hears_why(capsys, ratio, said):
    from onnxq.cli.console import Screen
    from onnxq.cli.inspect import _say_answer

    screen = Screen(as_json=False, quiet=False, verbose=False)
    time = {"to_float": ratio, "quantizing": 0.43, "layout": 0.12}
    _say_answer(Path("m.onnx"), {"nodes": [{"runs": "integer"}], "time": time}, screen)
    out = " ".join(capsys.readouterr().out.split())
    assert "nothing of it runs in float" in out
    assert ("1.60× the time of FP32: Q/DQ is 43% and layout 12% of the time" in out) == said


BATCHED = """
<ir_version: 9, opset_import: ["" : 17]>
batched (float[1,6,3,8,8] x) => (float[6,4,8,8] y)
{
  flat = Reshape (x, rows)
  n = BatchNormalization (flat, scale, shift, mean, var)
  y = Conv <kernel_shape=[1,1]> (n, w)
}
"""


def test_inspect_of_an_fp32_model_says_which_rules_it_breaks_and_what_mends_them(shell, tmp_path):
    ones = np.ones(3, np.float32)
    model = with_constants(
        BATCHED, rows=np.array([6, 3, 8, 8], np.int64), scale=ones, shift=ones, mean=ones, var=ones,
        w=weights(4, 3, 1, 1),
    )  # fmt: skip
    onnx.save(model, tmp_path / "net.onnx")
    code, out, _ = shell("inspect", tmp_path / "net.onnx", "--target", "stm32n6")
    lines = out.splitlines()
    for rule, place in (("rank", "input `x` has 5 dimensions"), ("batch", "on a batch of 6")):
        (at,) = (i for i, line in enumerate(lines) if f"stm32n6.{rule}: " in line)
        assert place in lines[at + 1]
        assert "onnxq: split. " in lines[at + 2]
    assert "export mends: stm32n6.software-op (fold batchnorm)" in out
    assert code == 1
    code, out, _ = shell("inspect", tmp_path / "net.onnx", "--target", "stm32n6", "--json")
    checked = json.loads(shell("check", tmp_path / "net.onnx", "--target", "stm32n6", "--json")[1])
    assert json.loads(out)["rules"] == checked["rules"]
    assert code == checked["exit_code"] == 1


def test_inspect_of_an_fp32_model_that_keeps_the_rules_names_none(shell, net):
    code, out, _ = shell("inspect", net.path, "--target", "ort-x86")
    assert code == 0
    assert "ort-x86." not in out
