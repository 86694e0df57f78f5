"""The stages on plain files: nothing is ignored, overwritten, or believed without a record."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

NET = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,3,8,8] image) => (float[1,3] scores) {
    c = Conv<pads=[1,1,1,1]>(image, w)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    scores = Gemm<transB=1>(f, v)
}"""


def save_net(path: Path, gain: float = 1) -> Path:
    """A classifier that says which of three channels is the brightest."""
    w = np.zeros((3, 3, 3, 3), np.float32)
    w[range(3), range(3), 1, 1] = gain
    proto = onnx.parser.parse_model(NET)
    for name, array in (("w", w), ("v", np.eye(3, dtype=np.float32))):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(proto, path)
    return path


def save_pictures(path: Path, count: int, seed: int) -> Path:
    """Pictures with one bright channel, and which it is."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, count)
    image = random.uniform(0, 0.3, (count, 3, 8, 8)).astype(np.float32)
    image[range(count), labels] += 0.7
    np.savez(path, image=image, labels=labels)
    return path


@dataclass(frozen=True)
class Plain:
    """An FP32 model, and samples to calibrate and to judge it on."""

    folder: Path

    @property
    def fp32(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def int8(self) -> Path:
        return self.folder / "model.int8.onnx"

    @property
    def record(self) -> Path:
        return self.int8.with_suffix(".json")

    @property
    def calib(self) -> Path:
        return self.folder / "calib.npz"

    @property
    def eval(self) -> Path:
        return self.folder / "eval.npz"

    def quantize(self, *more: object) -> list[object]:
        return ["quantize", self.fp32, "--data", self.calib, "-o", self.int8, *more]

    def verify(self, *more: object) -> list[object]:
        gate = ("--metric", "top1", "--max-drop", "0.01")
        return ["verify", self.fp32, self.int8, "--data", self.eval, *gate, *more]


@pytest.fixture
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plain:
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "model.onnx")
    save_pictures(tmp_path / "calib.npz", 60, seed=1)
    save_pictures(tmp_path / "eval.npz", 600, seed=2)
    return Plain(tmp_path)


def told(ended) -> dict[str, str]:
    """The error of a command that could not judge."""
    assert ended.code == 2, ended.out + ended.err
    return ended.json["error"]


# --- flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("export", ["-o", "x"]),
        ("export", ["--domain", "picture=0,1"]),
        ("calibrate", ["--samples", "5"]),
        ("calibrate", ["--method", "minmax"]),  # the default, but said
        ("quantize", ["--exclude", "conv_1"]),
        ("quantize", ["--data", "x.npz"]),
        ("quantize", ["--seed", "0"]),
        ("verify", ["--metric", "mae"]),
        ("verify", ["--max-drop", "0.1"]),
        ("verify", ["--report", "x"]),
        ("handoff", ["--allow-unverified"]),
    ],
)
def test_a_flag_for_plain_files_is_refused_beside_a_recipe(tiny, onnxq, command, flags):
    error = told(onnxq(command, tiny.recipe, *flags, "--json"))

    assert error["kind"] == "UsageError"
    assert f"`{flags[0]}` is for plain files only" in error["what"]
    assert "onnxq run" in error["do"]
    assert "--set" in error["do"]


@pytest.mark.parametrize("command", ["export", "calibrate", "quantize", "verify", "handoff"])
def test_a_build_folder_is_refused_beside_a_plain_file(plain, onnxq, command):
    files = (plain.fp32, plain.int8) if command == "verify" else (plain.fp32,)

    error = told(onnxq(command, *files, "--build-dir", "b", "--json"))

    assert error["kind"] == "UsageError"
    assert "`--build-dir` is for recipes only" in error["what"]


def test_every_flag_that_is_out_of_place_is_named(tiny, onnxq):
    error = told(onnxq("verify", tiny.recipe, "--metric", "mae", "--data", "x", "--json"))

    assert {"`--metric`", "`--data`"} <= set(re.findall("`[^`]+`", error["what"]))


# --- files that are there already ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.onnx", "sub/../model.onnx", "link.onnx", "calib.npz"])
def test_the_int8_file_never_replaces_what_it_is_made_from(plain, onnxq, name):
    (plain.folder / "sub").mkdir()
    (plain.folder / "link.onnx").symlink_to(plain.fp32)
    before = plain.fp32.read_bytes(), plain.calib.read_bytes()

    error = told(onnxq("quantize", plain.fp32, "--data", plain.calib, "-o", name, "--json"))

    assert error["kind"] == "UsageError"
    assert "would overwrite" in error["what"]
    assert (plain.fp32.read_bytes(), plain.calib.read_bytes()) == before


@pytest.mark.parametrize("text", ['{"my": "settings"}', "[1, 2]", "no JSON", ""])
def test_a_json_file_of_a_person_is_not_overwritten_by_the_record(plain, onnxq, text):
    plain.record.write_text(text)

    error = told(onnxq(*plain.quantize("--json")))

    assert error["kind"] == "UsageError"
    assert plain.record.name in error["what"]
    assert plain.record.read_text() == text
    assert not plain.int8.exists()


def test_the_record_and_the_model_need_names_of_their_own(plain, onnxq):
    arguments = ("quantize", plain.fp32, "--data", plain.calib, "-o", "out.json", "--json")

    assert told(onnxq(*arguments))["kind"] == "UsageError"
    assert not Path("out.json").exists()


def test_an_earlier_int8_file_and_its_report_are_replaced(plain, onnxq):
    for _ in range(2):
        assert onnxq(*plain.quantize()).code == 0
        ended = onnxq(*plain.verify("--report", "report"))
        assert ended.code == 0, ended.out + ended.err


def test_a_json_file_beside_a_foreign_int8_file_is_no_record(plain, onnxq):
    assert onnxq(*plain.quantize()).code == 0
    plain.record.write_text('{"license": "MIT"}')

    judged = onnxq(*plain.verify())
    packed = onnxq("handoff", plain.int8, "-o", "bundle", "--allow-unverified")

    assert (judged.code, packed.code) == (0, 0), judged.err + packed.err


def test_a_record_of_ours_about_another_file_is_stale(plain, onnxq):
    assert onnxq(*plain.quantize()).code == 0
    changed = onnx.load(plain.int8)
    changed.producer_name = "someone else"
    onnx.save(changed, plain.int8)

    for arguments in (plain.verify(), ["handoff", plain.int8, "-o", "b", "--allow-unverified"]):
        assert told(onnxq(*arguments, "--json"))["kind"] == "StaleRecordError"
