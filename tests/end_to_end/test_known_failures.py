"""What cost other projects weeks, planted again: onnxq catches each by name.

The names of the tests hold the numbers of a list of such failures. Rows D5 are of a heart-rate
network for an STM32N6, A5 of a diffusion model of seismic images, B5 of a network on point clouds.
Left out are A5.4, A5.9 and B5.10, which are about training with fake quantization, and A5.2, A5.12
to A5.14 and B5.7 to B5.9, which are about reports and not about export.
"""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from planted import (
    DeadTime,
    Decoder,
    Odd,
    Offset,
    OverTime,
    Rebuilt,
    Sampler,
    TwoNames,
    graph,
    random_array,
)
from safetensors.torch import save_file
from tiny.system import Net, evaluation, pictures

from models.rppg.ubfc import read_ground_truth
from onnxq.cli import main
from onnxq.errors import DataError
from onnxq.export import clean, from_torch
from onnxq.export.stage import export
from onnxq.plain import doctor
from onnxq.quantize import qdq
from onnxq.recipe_file import load_recipe
from onnxq.target import load_target

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "models" / "rppg" / "recipe.yaml"
N6 = "stm32n6"
Onnxq = Callable[..., Any]


def refused(ended: Any, kind: str, *words: str, code: int = 2) -> dict[str, str]:
    """The error of a command that was given ``--json``; it is of ``kind`` and holds ``words``."""
    assert ended.code == code, ended.out + ended.err
    error: dict[str, str] = ended.json["error"]
    text = f"{error['where']} {error['what']} {error['do']}"
    assert error["kind"] == kind, text
    for word in words:
        assert word in text, f"{word!r} is not in: {text}"
    return error


def places(ended: Any, rule: str) -> list[tuple[str, str]]:
    """Where a file breaks a rule of stm32n6, by `onnxq check --json`, with what mends it."""
    found = [r for r in ended.json["rules"] if r["rule"] == f"{N6}.{rule}"]
    return [(place["where"], place["rewrite"]) for place in found]


def network(tiny: Any, made: torch.nn.Module, **export: Any) -> None:
    """Let the recipe export ``made``, whose class is one of ``planted``, with its weights."""
    save_file({k: v.clone() for k, v in made.state_dict().items()}, tiny.checkpoint)
    tiny.values["export"] |= {"network": f"planted:{type(made).__name__}"} | export


def latents(tiny: Any, made: torch.nn.Module, inputs: list[str], data: str) -> None:
    """The recipe of a network that takes latents within −1 to 1, and data for it."""
    domains = {"latent": [-1, 1], "noise": [-1, 1], "time": [0, 1]}
    shapes = {"latent": [1, 8], "noise": [1, 8], "time": [1, 1]}
    network(
        tiny, made,
        inputs=[{"name": n, "shape": shapes[n], "domain": domains[n]} for n in inputs],
        outputs=[{"name": "image"}],
    )  # fmt: skip
    tiny.values["data"] = {
        "calibration": {"source": f"planted:{data}"},
        "evaluation": {"source": "planted:latents", "options": {"first": 100}},
    }
    tiny.values["calibrate"] = {"samples": 60}


def exporting(monkeypatch: pytest.MonkeyPatch, changed: Callable[[], torch.nn.Module]) -> None:
    """Let the torch exporter be given another network with the same weights."""
    real = from_torch.export_network

    def other(trained: torch.nn.Module, *args: Any, **options: Any) -> onnx.ModelProto:
        made = changed()
        made.load_state_dict(trained.state_dict(), strict=False)
        return real(made.eval(), *args, **options)

    monkeypatch.setattr(from_torch, "export_network", other)


def int8_of(tiny: Any) -> onnx.ModelProto:
    return onnx.load(tiny.build / "quantize" / "int8.onnx")


def contract_of(bundle: Path) -> dict[str, Any]:
    return json.loads((bundle / "contract.json").read_text())


@pytest.fixture(scope="module")
def rppg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unsplit canonical graph of models/rppg with a free batch, as for an onnxruntime."""
    folder = tmp_path_factory.mktemp("rppg")
    recipe = load_recipe(RECIPE)
    export(recipe.export, folder, target=load_target("ort-arm64"), search=recipe.python_path)
    return folder / "fp32.onnx"


def trained_until(made: torch.nn.Module) -> torch.nn.Module:
    """``made`` after a short training on the pictures of tiny."""
    torch.manual_seed(0)
    data = pictures(range(200, 208))
    x = torch.from_numpy(np.asarray(data.inputs["picture"]))
    y = torch.from_numpy(np.asarray(data.labels))[:, None]
    optimizer = torch.optim.Adam(made.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(made(x), y).backward()
        optimizer.step()
    return made.eval()


# --- D5: heart rate on an STM32N6 ---------------------------------------------------------------


def test_d5_01_labels_of_the_wrong_line_are_told_before_calibration(tiny, onnxq, tmp_path):
    lines = [np.sin(np.arange(90)), np.full(90, 75.0), np.arange(90) / 30]
    lines[2][40:] -= 1  # the clock runs backwards
    truth = tmp_path / "ground_truth.txt"
    truth.write_text("\n".join(" ".join(map(str, line)) for line in lines))
    with pytest.raises(DataError, match="timestamps run backwards"):
        read_ground_truth(truth)
    truth.write_text(" ".join(str(value) for line in lines for value in line))
    with pytest.raises(DataError, match="1 lines of numbers instead of 3"):
        read_ground_truth(truth)

    tiny.values["data"]["calibration"]["source"] = "planted:mixed_labels"
    refused(
        onnxq(*tiny.arguments("--json")), "DataError",
        "labels run from -2.79 to 127", "(59 of 240)", "[0.0, 100.0]", "`brightness`",
    )  # fmt: skip
    assert not (tiny.build / "calibrate").exists()


def test_d5_02_six_dimensions_are_named_with_the_rewrite(onnxq, rppg):
    ended = onnxq("check", rppg, "--target", N6, "--json")

    assert ended.code == 1
    found = places(ended, "rank")
    assert [where for where, _ in found] == ["input `input`", "value `transpose_1`"]
    assert found[0][1] == "split"
    assert found[1][1] in {"split", "lower ranks"}


def test_d5_03_a_conv_on_a_batch_inside_the_graph_is_named(onnxq, rppg):
    ended = onnxq("check", rppg, "--target", N6, "--json")

    found = places(ended, "batch")
    assert [where for where, _ in found if where.startswith("Conv")] == [
        f"Conv `conv_{number}`" for number in (1, 2, 3)
    ]
    assert {rewrite for _, rewrite in found} == {"split"}
    assert {r["rule"] for r in ended.json["rules"] if r["severity"] == "error"} == {
        f"{N6}.{rule}" for rule in ("rank", "batch", "static-shapes")
    }


def by_hand_other_axes(broken: ir.Model) -> int:
    """A bypass that leaves a transposition behind, of other axes."""
    for node in broken.graph:
        if node.op_type == "Transpose" and node.attributes.get_ints("perm") != (0, 3, 2, 1):
            node.attributes["perm"] = ir.AttrInt64s("perm", [0, 3, 2, 1])
            return 1
    return 0


def by_hand_no_free_batch(broken: ir.Model) -> int:
    """Every −1 becomes 1."""
    for value in broken.graph.initializers.values():
        if value.const_value is not None and value.const_value.numpy()[0] == -1:
            value.const_value = ir.tensor(np.array([1, 24]), name=value.name)
            return 1
    return 0


@pytest.mark.parametrize(
    ("mended", "kind", "word"),
    [
        (by_hand_other_axes, "ParityError", "after the step “mended 1 by hand”"),
        (by_hand_no_free_batch, "ExportError", "eshape"),
    ],
)
def test_d5_04_a_rewrite_that_changes_the_function_is_found_at_its_step(
    onnxq, tmp_path, monkeypatch, mended, kind, word
):
    text = """float[batch,2,3,4] x) => (float[rows,24] y) {
        t = Transpose<perm=[0,2,3,1]>(x) r = Relu(t) y = Reshape(r, shape) }"""
    model = graph(tmp_path, text, shape=np.array([-1, 24]))
    monkeypatch.setitem(clean.REWRITES, "mended {} by hand", mended)

    ended = onnxq("export", model, "-o", tmp_path / "out", "--json")

    assert ended.json["error"]["kind"] == kind
    assert word in ended.json["error"]["what"]
    assert not (tmp_path / "out").exists()


def test_d5_04_a_squeeze_with_axes_as_attribute_is_illegal_from_opset_13(onnxq, tmp_path):
    text = "float[1,1,4] x) => (float[1,4] y) { y = Squeeze<axes=[1]>(x) }"

    ended = onnxq("export", graph(tmp_path, text), "-o", tmp_path / "out", "--json")

    refused(ended, "ModelError", "model.onnx", "axes", "Squeeze")


def test_d5_05_true_violations_alone_are_reported_and_constants_are_looked_into(onnxq, tmp_path):
    text = """float[batch,4,6,6] x) => (float[b,144] y) {
        a = Mul(x, tall) r = Relu(a) s = Reshape(r, five) u = Reshape(s, flat)
        v = Add(u, ones) w = Reshape(high, row) y = Add(v, w) }"""
    constants = {
        "tall": random_array(1, 4, 1, 1), "five": np.array([-1, 2, 2, 6, 6]),
        "flat": np.array([0, -1]), "ones": np.full((1, 144), -1.0, np.float32),
        "high": np.zeros((1, 1, 1, 1, 144), np.float32), "row": np.array([1, 144]),
    }  # fmt: skip

    ended = onnxq("check", graph(tmp_path, text, **constants), "--target", N6, "--json")

    assert [where for where, _ in places(ended, "rank")] == ["value `high`", "value `s`"]
    assert [where for where, _ in places(ended, "static-shapes")] == ["input `x`"]
    named = " ".join(result["where"] for result in ended.json["rules"])
    assert not re.search("`(five|flat|ones|row|tall)`", named)


def test_d5_06_a_free_batch_is_named_and_frozen_for_a_microcontroller(onnxq, tmp_path):
    text = "float[batch,4,6,6] x) => (float[batch,4,6,6] y) { y = Relu(x) }"
    model = graph(tmp_path, text)

    checked = onnxq("check", model, "--target", N6, "--json")
    assert places(checked, "static-shapes")[0] == ("input `x`", "freeze batch")

    assert onnxq("export", model, "--target", N6, "-o", tmp_path / "out").code == 0
    frozen = onnxq("check", tmp_path / "out" / "fp32.onnx", "--target", N6, "--json")
    assert frozen.code == 0
    given = onnx.load(tmp_path / "out" / "fp32.onnx").graph.input[0].type.tensor_type.shape
    assert [dim.dim_value for dim in given.dim] == [1, 4, 6, 6]


def test_d5_07_an_opset_outside_the_targets_range_is_refused(tiny, onnxq, tmp_path):
    tiny.values |= {"target": N6}
    tiny.values["export"]["opset"] = 21
    low, high = load_target(N6).opset
    refused(
        onnxq(*tiny.arguments("--json")), "ExportError",
        "opset 21", f"({low} to {high})", "export.opset",
    )  # fmt: skip

    model = graph(tmp_path, "float[1,4] x) => (float[1,4] y) { y = Relu(x) }", opset=21)
    assert places(onnxq("check", model, "--target", N6, "--json"), "opset")[0][1] == "opset"


def test_d5_08_random_calibration_is_asked_for_by_name_and_never_verified(tiny, onnxq, tmp_path):
    assert onnxq(*tiny.arguments("--to", "export")).code == 0
    fp32, int8 = tiny.build / "export" / "fp32.onnx", tmp_path / "int8.onnx"
    samples = evaluation()
    np.savez(tmp_path / "e.npz", picture=samples.inputs["picture"], labels=samples.labels)

    without = onnxq("quantize", fp32, "-o", int8, "--json")
    refused(without, "UsageError", "--data")
    assert not int8.exists()

    assert onnxq("quantize", fp32, "--smoke-test-random", "-o", int8).code == 0
    judged = onnxq(
        "verify", fp32, int8, "--data", tmp_path / "e.npz", "--metric", "mae",
        "--max-drop", "50", "--json",
    )  # fmt: skip
    assert (judged.code, judged.json["verdict"]) == (2, "unverified")
    assert "calibrated on random numbers" in judged.json["report"]["reasons"][0]
    assert {entry.key for entry in onnx.load(int8).metadata_props} >= {"onnxq.unverified"}


def test_d5_09_a_fault_of_the_tools_is_told_from_one_of_the_model(onnxq, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_MODELS", {"Gemm": doctor._MODELS["Gemm"]})
    monkeypatch.setattr(doctor, "_exporter", lambda: doctor.Check("torch exporter", "works", "-"))
    identity = graph(tmp_path, "float[1,4] x) => (float[1,4] y) { y = Identity(x) }")

    healthy = onnxq("doctor", "--json")
    model = onnxq("quantize", identity, "--smoke-test-random", "-o", tmp_path / "o.onnx", "--json")
    assert healthy.code == 0, healthy.out
    refused(model, "QuantizationError", "no node can become integer")

    class Broken:
        """A quantizer that this onnxruntime does not build."""

        def __init__(self, model: onnx.ModelProto, **_: Any) -> None:
            raise RuntimeError("ImportError: DLL load failed")

        __signature__ = inspect.signature(qdq.QDQQuantizer)

    monkeypatch.setattr(qdq, "QDQQuantizer", Broken)
    ill = onnxq("doctor", "--json")
    failed = [check["what"] for check in ill.json["checks"] if check["state"] == "fails"]
    assert (ill.code, failed) == (2, ["Gemm to INT8"])


def test_d5_10_a_network_rebuilt_by_hand_is_not_the_one_that_was_trained(tiny, onnxq, monkeypatch):
    exporting(monkeypatch, Rebuilt)

    ended = onnxq(*tiny.arguments("--json"))

    refused(ended, "ParityError", "torch → ONNX", "absolute (limit 0.0001)", "cosine", code=1)
    assert not (tiny.build / "export").exists()


def test_d5_11_the_first_samples_of_an_ordered_file_do_not_decide_the_input_scale(tiny, onnxq):
    tiny.values |= {"target": N6}
    tiny.values["data"]["calibration"]["source"] = "planted:ordered"
    tiny.values["calibrate"] = {"samples": 40, "plan": "first"}

    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0

    calibration = tiny.record("calibrate", "calibration.json")
    notes = " ".join(calibration["choice"]["notes"])
    assert "the first 40 of 240 samples were taken as they lie" in notes
    assert "label" in notes
    covered = [f["what"] for f in calibration["findings"] if f["where"] == "picture"]
    assert re.search(r"cover \d+% of the declared domain \[0\.0, 1\.0\]", covered[0])
    scale = tiny.record("quantize", "int8.json")["activations"]["picture"]
    assert scale["scale"] == pytest.approx(1 / 255, rel=1e-6)
    assert scale["zero_point"] == -128


# --- D5: the contract with the firmware ---------------------------------------------------------


@dataclass(frozen=True)
class Firmware:
    """A bundle for STM32N6 whose input's scale is not 1/255, and C code written against it."""

    bundle: Path

    @property
    def contract(self) -> dict[str, Any]:
        return contract_of(self.bundle)

    def judge(self, own: str, *macros: str) -> subprocess.CompletedProcess[str]:
        """The bundle's self-test of conversions, with those of a programmer in their place."""
        (self.bundle.parent / "own.h").write_text("#include <stdint.h>\n" + own)
        program = self.bundle.parent / "self_test"
        built = self.compile(
            self.bundle / "self_test.c", "-include", self.bundle.parent / "own.h",
            *(f"-D{self.prefix}_{macro}" for macro in macros), "-o", program,
        )  # fmt: skip
        assert built.returncode == 0, built.stderr
        return subprocess.run([program], capture_output=True, text=True, check=False)

    def compile(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        flags = ("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{self.bundle}")
        return subprocess.run(
            [*flags, *map(str, arguments), "-lm"], capture_output=True, text=True, check=False
        )

    @property
    def prefix(self) -> str:
        """What the macros of the input begin with, as contract.h writes them."""
        header = (self.bundle / "contract.h").read_text()
        found = re.search(r"#define (\w*PICTURE)_SCALE", header)
        assert found is not None
        return found.group(1)


@pytest.fixture(scope="module")
def firmware(tmp_path_factory: pytest.TempPathFactory) -> Firmware:
    """A picture network calibrated on pictures no brighter than 0.878, with no declared domain."""
    folder = tmp_path_factory.mktemp("firmware")
    text = """float[1,3,6,6] picture) => (float[1,4] features) {
        c = Conv<pads=[1,1,1,1]>(picture, w) r = Relu(c) p = GlobalAveragePool(r)
        features = Flatten(p) }"""
    model = graph(folder, text, w=random_array(4, 3, 3, 3))
    samples = np.random.default_rng(0).uniform(0, 0.878, (40, 3, 6, 6)).astype(np.float32)
    np.savez(folder / "data.npz", picture=samples)
    int8 = folder / "int8.onnx"
    for arguments in (
        ["quantize", model, "--data", folder / "data.npz", "--target", N6, "-o", int8],
        ["handoff", int8, "--target", N6, "--data", folder / "data.npz", "--allow-unverified",
         "-o", folder / "bundle"],
    ):  # fmt: skip
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        assert not ended.value.code
    return Firmware(folder / "bundle")


@pytest.mark.parametrize(
    "body",
    [
        "return (int8_t)(int)(x / {scale}f + ({point}));",  # cut off, not rounded
        "return (int8_t)(int)rintf(x / {scale}f + ({point}));",  # rounded, not saturated
    ],
)
def test_d5_12_a_conversion_that_neither_rounds_nor_saturates_is_caught(firmware, body):
    known = firmware.contract["inputs"][0]["quantization"]
    body = body.format(scale=known["scale"], point=known["zero_point"])
    own = f"#include <math.h>\nstatic inline int8_t own(float x) {{ {body} }}"

    right = firmware.judge("")
    wrong = firmware.judge(own, "QUANTIZE(x)=own(x)")

    assert right.returncode == 0, right.stdout
    assert wrong.returncode == 1
    assert "WRONG" in wrong.stdout
    assert "quantize" in wrong.stdout


def test_d5_13_pixel_minus_128_is_wrong_where_the_scale_is_not_one_255th(firmware):
    known = firmware.contract["inputs"][0]["quantization"]
    assert known["scale"] == pytest.approx(0.878 / 255, rel=2e-3)
    assert "q = byte - 128 is WRONG here" in known["byte_image"]

    own = "static inline int8_t own(uint8_t b) { return (int8_t)(b - 128); }"
    wrong = firmware.judge(own, "FROM_BYTE(b)=own(b)")

    assert wrong.returncode == 1
    assert "from_byte of byte" in wrong.stdout


def test_d5_14_glue_with_another_type_or_size_does_not_compile(firmware, tmp_path):
    capital, small = firmware.prefix, firmware.prefix.lower()
    features = (capital.replace("PICTURE", "FEATURES"), small.replace("picture", "features"))
    code = f"""#include "contract.h"
        static {small}_t in[{capital}_COUNT]; static {features[1]}_t out[{features[0]}_COUNT];
        static void network(const int8_t *i, int8_t *o) {{ o[0] = i[0]; }}
        _Static_assert(sizeof in == 3 * 6 * 6, "bytes in");
        _Static_assert(sizeof out == 4, "bytes out");
        int main(void) {{ network(in, out); return OUTPUT[0] > INDEX; }}"""
    source = tmp_path / "glue.c"

    source.write_text(code.replace("OUTPUT", "out").replace("INDEX", "3"))
    assert firmware.compile(source, "-o", tmp_path / "glue").returncode == 0
    as_float = code.replace("network(in, out)", "network(in, (float *)out)").replace("INDEX", "3")
    source.write_text(as_float.replace("OUTPUT", "out"))
    assert "incompatible pointer" in firmware.compile(source, "-o", tmp_path / "glue").stderr
    source.write_text(code.replace("OUTPUT[0]", "out[10000]").replace("INDEX", "3"))
    ended = firmware.compile("-O2", source, "-o", tmp_path / "glue")
    assert "array-bounds" in ended.stderr, ended.stderr
    shape = firmware.contract["inputs"][0]["shape"]
    assert np.prod(shape) == 108


def test_d5_15_the_tools_own_report_says_what_was_compiled(onnxq, firmware, tmp_path):
    report = (ROOT / "tests/handoff/fixtures/st/network_generate_report.txt").read_text()
    report = report.replace("int8(1x3x8x8)", "int8(1x3x6x6)")
    report = report.replace("net_int8.onnx", firmware.contract["model"])
    used = tmp_path / "network_generate_report.txt"
    used.write_text(report.replace("0.594 kB /    448.000 kB", "449.000 kB /    448.000 kB", 1))

    ended = onnxq("compare-st", firmware.bundle, used, "--json")

    assert ended.code == 1
    overflow = [f for f in ended.json["departures"] if f["where"] == "npuRAM5"]
    assert "holds 459,776 bytes and has 458,752" in overflow[0]["what"]
    compiled = ended.json["reports"][0]
    assert compiled["tool_version"].startswith("4.0.1")
    assert {pool["pool"]: pool["size_bytes"] for pool in compiled["pools"]}["npuRAM5"] == 448 * 1024

    used.write_text("Buffer overlap")
    refused(onnxq("compare-st", firmware.bundle, used, "--json"), "UsageError", "memory pools")


# --- D5: the verdict ----------------------------------------------------------------------------


def test_d5_16_samples_in_batches_are_refused_and_the_judged_file_is_named(tiny, onnxq):
    tiny.values["data"]["evaluation"]["source"] = "planted:in_batches"
    refused(
        onnxq(*tiny.arguments("--json")), "DataError",
        "a sample has shape [6, 2, 8, 8], the model takes [2, 8, 8]", "without the model's batch",
    )  # fmt: skip

    tiny.values["data"]["evaluation"]["source"] = "tiny.system:evaluation"
    ended = onnxq(*tiny.arguments("--to", "verify", "--json"))
    shipped = tiny.build / "quantize" / "int8.onnx"
    assert ended.json["report"]["int8"]["sha256"] == sha256(shipped.read_bytes()).hexdigest()
    assert ended.json["report"]["comparison"]["samples"] == 360


def test_d5_17_every_end_has_its_code_and_a_failure_its_report(tiny, onnxq):
    assert onnxq(*tiny.arguments("--to", "verify")).code == 0
    gate = "verify.gate=[{metric: mae, max_increase: 0.0}, {metric: mae_to_fp32, max: 0.00001}]"
    assert onnxq(*tiny.arguments("--set", gate)).code == 1
    assert tiny.record("verify", "report.json")["verdict"] == "failed"
    assert "<failure" in (tiny.build / "verify" / "junit.xml").read_text()
    assert not (tiny.build / "handoff").exists()
    tiny.checkpoint.unlink()
    ended = onnxq(*tiny.arguments("--json"))
    assert (ended.code, ended.json["exit_code"]) == (2, 2)


def test_d5_18_an_argument_that_onnxruntime_lost_is_named(tiny, onnxq, monkeypatch):
    class Newer:
        """The quantizer of an onnxruntime that has dropped an argument."""

        __signature__ = inspect.Signature(
            [
                parameter
                for name, parameter in inspect.signature(qdq.QDQQuantizer).parameters.items()
                if name != "nodes_to_quantize"
            ]
        )

    monkeypatch.setattr(qdq, "QDQQuantizer", Newer)
    refused(
        onnxq(*tiny.arguments("--json")), "RuntimeFailureError",
        "no argument `nodes_to_quantize`", "onnxruntime 1.", "`onnxq doctor`",
    )  # fmt: skip
    assert not (tiny.build / "quantize").exists()


def test_d5_19_validation_is_on_others_than_calibration_and_its_file_is_there(tiny, onnxq):
    tiny.values["data"]["evaluation"] = {"source": "temporal windows.npz"}
    refused(onnxq(*tiny.arguments("--json")), "DataError", "temporal windows.npz")

    tiny.values["data"]["evaluation"] = {"source": "planted:one_subject"}
    refused(onnxq(*tiny.arguments("--json")), "LeakageError", "share 1 group(s): group7")


def test_d5_20_shared_subjects_are_leakage_and_the_baseline_stands_beside(tiny, onnxq):
    tiny.values["data"]["calibration"]["options"] = {"first": 95}
    refused(onnxq(*tiny.arguments("--json")), "LeakageError", "group100", "split by group")

    tiny.values["data"]["calibration"]["options"] = {}
    ended = onnxq(*tiny.arguments("--to", "verify", "--json"))
    mae = ended.json["report"]["comparison"]["metrics"][0]
    labels = np.asarray(evaluation().labels, np.float64)
    assert mae["baseline"] == pytest.approx(np.abs(labels - labels.mean()).mean(), rel=1e-4)
    page = (tiny.build / "verify" / "report.html").read_text()
    assert "baseline" in page
    assert f"{mae['baseline']:.4g}"[:4] in page


def test_d5_21_a_difference_stands_beside_its_limit(tiny, onnxq, monkeypatch):
    tiny.values["export"]["tolerance"] = {"absolute": 1e-5, "relative": 1e-9}
    with monkeypatch.context() as patch:
        exporting(patch, Offset)
        ended = onnxq(*tiny.arguments("--to", "export", "--json"))
    error = refused(ended, "ParityError", "absolute (limit 1e-05)", code=1)
    told = re.search(r"([\d.e-]+) absolute", error["what"])
    assert told is not None
    assert float(told.group(1)) == pytest.approx(1.5e-5, abs=8e-6)

    tiny.values["export"]["tolerance"] = {"absolute": 1e-4}
    assert onnxq(*tiny.arguments("--to", "export")).code == 0
    hops = tiny.record("export", "export.json")["parity"]
    assert all(0 <= hop["max_absolute"] <= 1e-4 for hop in hops)


# --- A5: diffusion of seismic images ------------------------------------------------------------


def test_a5_01_a_checkpoint_that_does_not_fit_is_a_table_and_no_success(tiny, onnxq, weights):
    changed = {f"{name}.fake_quant": tensor.clone() for name, tensor in weights.items()}
    save_file(changed | {"head.bias": weights["head.bias"]}, tiny.checkpoint)

    error = refused(
        onnxq(*tiny.arguments("--json")), "CheckpointError",
        "missing", "unexpected", "head.weight.fake_quant", "features.0.weight",
    )  # fmt: skip

    assert len(error["what"].splitlines()) > 5
    assert not (tiny.build / "export").exists()


def test_a5_03_a_module_with_two_names_is_one_and_is_quantized_once(tiny, onnxq):
    made = TwoNames()
    made.unet = made.diffusion["model"] = trained_until(Net())
    network(tiny, made)

    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0

    exported = tiny.record("export", "export.json")
    shared = [finding["what"] for finding in exported["findings"]]
    assert "is shared by conv_1, conv_2" in shared, shared
    int8 = int8_of(tiny)
    readers = [node for node in int8.graph.node if node.op_type == "Conv"]
    assert len(readers) == 2
    assert all(".d" in node.input[1] or "Dequantize" in node.input[1] for node in readers)
    canonical = onnx.load(tiny.build / "export" / "fp32.onnx")
    again, _ = clean.clean(canonical)
    assert again == canonical
    twice = onnxq(
        "quantize", tiny.build / "quantize" / "int8.onnx", "--smoke-test-random",
        "-o", tiny.folder / "twice.onnx", "--json",
    )  # fmt: skip
    refused(twice, "AlreadyQuantizedError", "quantized already")


def test_a5_05_a_norm_behind_a_transposed_convolution_is_folded_and_the_file_runs(tiny, onnxq):
    network(tiny, trained_until(Decoder()))
    tiny.values |= {"target": N6}

    ended = onnxq(*tiny.arguments("--to", "verify", "--json"))

    assert ended.code == 0, ended.out + ended.err
    came = onnx.load(tiny.build / "export" / "exported.onnx")
    assert [node.op_type for node in came.graph.node].count("BatchNormalization") == 2
    for file in (tiny.build / "export" / "fp32.onnx", tiny.build / "quantize" / "int8.onnx"):
        assert "BatchNormalization" not in {node.op_type for node in onnx.load(file).graph.node}
    steps = tiny.record("export", "export.json")["steps"]
    assert any(step.startswith("folded 2 BatchNormalization: max difference") for step in steps)
    assert "convtranspose_1" in tiny.record("quantize", "int8.json")["quantized_nodes"]


def test_a5_06_a_file_that_is_float_is_not_int8_whatever_it_is_called(tiny, onnxq):
    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0
    fp32, int8 = tiny.build / "export" / "fp32.onnx", tiny.folder / "production_int8.onnx"
    samples = evaluation()
    np.savez(tiny.folder / "e.npz", picture=samples.inputs["picture"], labels=samples.labels)
    judge = (
        "verify", fp32, int8, "--data", tiny.folder / "e.npz", "--metric", "mae",
        "--max-drop", "50", "--json",
    )  # fmt: skip

    int8.write_bytes(fp32.read_bytes())
    refused(onnxq(*judge), "AuditError", "holds no integer operator at all", int8.name, code=1)

    model, original = int8_of(tiny), onnx.load(fp32).graph
    left = next(node for node in model.graph.node if node.op_type == "Gemm")
    named = next(node for node in original.node if node.op_type == "Gemm").input[1]
    weight = next(tensor for tensor in original.initializer if tensor.name == named)
    left.input[1] = weight.name = "float weight"
    model.graph.initializer.append(weight)
    onnx.save(model, int8)
    record = json.loads((tiny.build / "quantize" / "int8.json").read_text())
    record["model"] |= {
        "sha256": sha256(int8.read_bytes()).hexdigest(), "size_bytes": int8.stat().st_size,
    }  # fmt: skip
    int8.with_suffix(".json").write_text(json.dumps(record))  # says that all of it is integer
    refused(onnxq(*judge), "AuditError", "Gemm `gemm_1`: its weight is float", code=1)


def test_a5_07_a_sampler_that_vanishes_in_the_trace_is_found(tiny, onnxq):
    latents(tiny, Sampler(), ["noise"], "latents")
    for source in tiny.values["data"].values():
        source["options"] = source.get("options", {}) | {"noise": True}

    refused(
        onnxq(*tiny.arguments("--json")), "ParityError",
        "torch → ONNX", "computes something else", code=1,
    )  # fmt: skip


def test_a5_08_latents_outside_the_declared_domain_are_refused_when_calibrating_and_running(
    tiny, onnxq
):
    latents(tiny, DeadTime(), ["latent", "time"], "normal_latents")
    error = refused(
        onnxq(*tiny.arguments("--json")), "DataError",
        "leave the declared domain [-1.0, 1.0]", "input `latent`",
    )  # fmt: skip
    assert "sample" in error["where"]

    tiny.values["data"]["calibration"]["source"] = "planted:latents"
    tiny.values["data"]["evaluation"] = {"source": "planted:normal_latents"}
    refused(onnxq(*tiny.arguments("--json")), "DataError", "leave the declared domain")


def test_a5_10_an_input_without_effect_and_parameters_out_of_reach_are_named(tiny, onnxq):
    latents(tiny, DeadTime(), ["latent", "time"], "latents")

    assert onnxq(*tiny.arguments("--to", "export")).code == 0

    findings = tiny.record("export", "export.json")["findings"]
    told = {finding["where"]: finding["what"] for finding in findings}
    assert told["input time"] == "influences no output: nothing connects it to one"
    assert "304 parameters in 4 tensors reach no output: embed.0.weight" in told["network"]


def test_a5_11_a_placeholder_for_the_range_of_the_data_is_found_with_the_share(tiny, onnxq):
    latents(tiny, DeadTime(), ["latent", "time"], "placeholder_range")
    error = refused(onnxq(*tiny.arguments("--json")), "DataError", "leave the declared domain")
    assert re.search(r"values from -\d\.\d+ to 1\.9\d+", error["what"])


def test_a5_15_the_usage_in_the_bundle_runs_as_it_stands(firmware):
    text = (firmware.bundle / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 2
    for snippet in snippets:
        code = snippet + "assert outputs is not None\n"
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=firmware.bundle, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert ended.returncode == 0, ended.stderr

    wrong = "from run import Runner\nRunner('.').run({'picture': 1})"
    ended = subprocess.run(
        [sys.executable, "-c", wrong], cwd=firmware.bundle, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert "ContractError" in ended.stderr
    assert "`picture`" in ended.stderr


@pytest.mark.long
def test_a5_16_a_graph_past_the_limit_of_protobuf_goes_to_a_file_of_its_own(
    tiny, onnxq, monkeypatch
):
    save_file(trained_until(Net(64)).state_dict(), tiny.checkpoint)
    tiny.values["export"]["arguments"] = {"width": 64}
    monkeypatch.setattr("onnxq.graph.EXTERNAL_DATA_BYTES", 2_000)

    ended = onnxq(*tiny.arguments("--json"))

    assert ended.code == 0, ended.out + ended.err
    assert (tiny.build / "export" / "fp32.onnx.data").stat().st_size > 0
    small = onnx.load(tiny.build / "export" / "fp32.onnx", load_external_data=False)
    assert any(tensor.external_data for tensor in small.graph.initializer)
    bundled = tiny.build / "handoff" / "int8.onnx.data"
    assert bundled.read_bytes() == (tiny.build / "quantize" / "int8.onnx.data").read_bytes()
    assert bundled.name in (tiny.build / "handoff" / "SHA256SUMS").read_text()

    monkeypatch.setattr(from_torch, "EXTERNAL_DATA_BYTES", 200)
    tiny.values["export"]["opset"] = 16
    refused(onnxq(*tiny.arguments("--json")), "ExportError", "GB", "export the network in parts")


def test_a5_17_what_an_ordinary_export_brings_is_rewritten_and_compared(tiny, onnxq):
    network(tiny, Odd(), outputs=[{"name": "brightness", "shape": [1, 1]}])
    tiny.values |= {"target": N6}

    assert onnxq(*tiny.arguments("--to", "export")).code == 0

    graph_ = onnx.load(tiny.build / "export" / "fp32.onnx").graph
    operators = {node.op_type for node in graph_.node}
    assert not operators & {"Einsum", "LpNormalization", "Expand", "Pad", "Shape"}, operators
    assert operators >= {"Slice", "Div"}
    steps = tiny.record("export", "export.json")["steps"]
    for word in ("Einsum", "negative Pad"):
        assert any(word in step and "max difference" in step for step in steps), steps


# --- B5: point clouds ---------------------------------------------------------------------------


def test_b5_01_no_data_is_an_end_and_not_a_reason_to_make_some_up(tiny, onnxq):
    tiny.values["data"]["calibration"] = {"source": "modelnet40.npz"}

    refused(onnxq(*tiny.arguments("--json")), "DataError", "modelnet40.npz")

    assert not (tiny.build / "calibrate").exists()
    fp32 = graph(tiny.folder, "float[1,4] x) => (float[1,4] y) { y = Sigmoid(x) }")
    made = onnxq("quantize", fp32, "--data", tiny.folder / "none.npz", "-o", "o.onnx", "--json")
    refused(made, "DataError", "none.npz")


def test_b5_02_random_weights_are_not_judged_and_a_checkpoint_has_to_be_there(tiny, onnxq):
    tiny.checkpoint.unlink()
    refused(onnxq(*tiny.arguments("--json")), "CheckpointError", "net.safetensors")

    torch.manual_seed(5)
    save_file(Net().state_dict(), tiny.checkpoint)
    ended = onnxq(*tiny.arguments("--json"))
    assert (ended.code, ended.json["verdict"]) == (2, "inconclusive")
    assert "does not beat the baseline" in ended.json["report"]["reasons"][0]
    checkpoint = tiny.record("export", "export.json")["checkpoint"]["file"]
    assert checkpoint["sha256"] == sha256(tiny.checkpoint.read_bytes()).hexdigest()
    assert ended.json["bundle"] is None


NEIGHBOURS = """float[1,32,3] pos, float[1,3,32] f) => (float[1,4,8] y) {
    t = Transpose<perm=[0,2,1]>(pos) d = MatMul(pos, t) r = ReduceSum<keepdims=0>(d, last)
    v, i = TopK(r, eight) j = Reshape(i, flat) p = Gather<axis=1>(pos, j)
    q = Transpose<perm=[0,2,1]>(p) g = Gather<axis=2>(f, j) s = Add(q, g)
    y = Conv<kernel_shape=[1]>(s, w) }"""


def neighbours(folder: Path) -> Path:
    """A graph that chooses the points nearest to all others, and takes features there."""
    return graph(
        folder, NEIGHBOURS, last=np.array([2]), eight=np.array([8]), flat=np.array([8]),
        w=random_array(4, 3, 1),
    )  # fmt: skip


def test_b5_03_geometry_in_the_graph_is_cut_off_and_control_flow_is_named(onnxq, tmp_path):
    ended = onnxq(
        "export", neighbours(tmp_path), "-o", tmp_path / "out", "--propose-split", "--json"
    )
    assert ended.code == 0, ended.err
    (proposal,) = ended.json["proposals"]
    assert "TopK compute indices in float: the host does it" in proposal["reason"]
    assert [part["name"] for part in proposal["split"]["parts"]] == ["Geometry", "Network"]
    assert proposal["max_absolute"] == 0

    looping = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]>
        g (float[1,4] x, bool far) => (float[1,4] y) {
            [ball_query] y = If(far)<
                then_branch = a () => (float[1,4] u) { u = Identity(x) },
                else_branch = b () => (float[1,4] v) { v = Neg(x) }> }""")
    onnx.save(looping, tmp_path / "loop.onnx")
    refused(
        onnxq("export", tmp_path / "loop.onnx", "-o", tmp_path / "o", "--json"), "ModelError",
        "`ball_query` (If)", "holds a graph inside it",
    )  # fmt: skip


def test_b5_04_convolutions_are_quantized_by_operator_and_the_share_is_counted(tiny, onnxq):
    network(tiny, trained_until(OverTime()))

    ended = onnxq(*tiny.arguments("--to", "verify", "--json"))

    assert ended.code == 0, ended.out + ended.err
    share = ended.json["report"]["coverage"]
    assert share["macs"]["integer"] == share["macs"]["total"] > 0
    rows = {row["node"]: row["weight_type"] for row in ended.json["report"]["audit"]}
    assert {rows["conv_1"], rows["conv_2"]} == {"int8"}
    gate = 'quantize.exclude=[{name: conv_2, reason: "a subclass"}]'
    left = onnxq(*tiny.arguments("--to", "verify", "--json", "--set", gate))
    share = left.json["report"]["coverage"]
    assert share["macs"]["integer"] < share["macs"]["total"]
    floats = {node["node"]: node["reason"] for node in left.json["report"]["float_nodes"]}
    assert floats["conv_2"] == "a subclass"


def test_b5_05_coordinates_reach_the_neighbour_search_unrounded(onnxq, tmp_path):
    random = np.random.default_rng(0)
    points = {"pos": random.uniform(-1, 1, (60, 32, 3)), "f": random.uniform(0, 10, (60, 3, 32))}
    np.savez(tmp_path / "d.npz", **{k: v.astype(np.float32) for k, v in points.items()})

    ended = onnxq(
        "quantize", neighbours(tmp_path), "--data", tmp_path / "d.npz",
        "--elementwise", "integer", "-o", tmp_path / "int8.onnx", "--json",
    )  # fmt: skip

    assert ended.code == 0, ended.err
    floats = {n["node"]: n["reason"] for n in ended.json["record"]["float_nodes"]}
    assert floats["matmul_1"] == "TopK `topk_1` chooses by it, and would choose others"
    assert "conv_1" in ended.json["record"]["quantized_nodes"]
    chosen = [indices(tmp_path / name, points) for name in ("model.onnx", "int8.onnx")]
    np.testing.assert_array_equal(*chosen)
    packed = onnxq("handoff", tmp_path / "int8.onnx", "--allow-unverified", "-o", tmp_path / "b")
    assert packed.code == 0, packed.err
    known = {value["name"]: value for value in contract_of(tmp_path / "b")["inputs"]}
    assert known["pos"]["quantization"] is None
    assert "keep it float" in known["pos"]["note"]
    assert known["f"]["quantization"]["type"] == "uint8"


def indices(path: Path, points: dict[str, np.ndarray]) -> np.ndarray:
    """What the graph's TopK chooses, by onnxruntime, for every cloud."""
    model = onnx.load(path)
    name = next(node.output[1] for node in model.graph.node if node.op_type == "TopK")
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None)
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    rows = zip(*(array.astype(np.float32) for array in points.values()), strict=True)
    feeds = [dict(zip(points, (part[None] for part in row), strict=True)) for row in rows]
    return np.array([session.run([name], feed)[0] for feed in feeds])


def test_b5_06_a_concat_of_coordinates_and_features_is_told_with_the_ratio(onnxq, tmp_path):
    text = """float[1,3,16] dp, float[1,8,16] f) => (float[1,4,16] y) {
        r = Relu(f) c = Concat<axis=1>(dp, r) y = Conv<kernel_shape=[1]>(c, w) }"""
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz",
        dp=random.uniform(-0.5, 0.5, (40, 3, 16)).astype(np.float32),
        f=random.uniform(-10, 10, (40, 8, 16)).astype(np.float32),
    )
    model = graph(tmp_path, text, w=random_array(4, 11, 1))
    int8 = tmp_path / "int8.onnx"
    made = onnxq("quantize", model, "--data", tmp_path / "d.npz", "-o", int8)
    assert made.code == 0, made.err

    ended = onnxq("check", int8, "--target", "ort-x86", "--json")

    found = [f for f in ended.json["findings"] if f["where"] == "Concat `concat_1`"]
    assert len(found) == 1, ended.json["findings"]
    assert "joins `dp.d`" in found[0]["what"]
    assert "10 times as wide" in found[0]["what"]
    assert found[0]["do"]


def test_b5_11_no_option_is_idle_and_each_is_in_the_manifest(tiny, onnxq):
    tiny.values["calibrate"]["epochs"] = 100
    refused(onnxq(*tiny.arguments("--json")), "RecipeError", "unknown key `epochs` in calibrate")
    del tiny.values["calibrate"]["epochs"]
    tiny.values["calibrate"]["coverage"] = 0.999
    refused(
        onnxq(*tiny.arguments("--json")), "RecipeError", "`coverage` is read by percentile only"
    )
    del tiny.values["calibrate"]["coverage"]

    recipe = load_recipe(tiny.recipe)
    assert onnxq(*tiny.arguments("--to", "verify")).code == 0
    for stage, section, record in (
        ("export", recipe.export, "export.json"),
        ("calibrate", recipe.calibrate, "calibration.json"),
        ("quantize", recipe.quantize, "int8.json"),
        ("verify", recipe.verify, "report.json"),
    ):
        options = tiny.record(stage, record)["provenance"]["options"]
        assert options == section.model_dump(mode="json"), stage
