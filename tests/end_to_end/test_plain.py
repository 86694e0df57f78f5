"""The stages on plain files: nothing is ignored, overwritten, or believed without a record."""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from tiny.system import evaluation

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


# --- what the record says -----------------------------------------------------------------------


def test_the_target_is_that_of_the_record(plain, onnxq):
    assert onnxq(*plain.quantize("--target", "stm32n6")).code == 0

    judged = onnxq(*plain.verify("--json"))

    assert (judged.code, judged.json["report"]["target"]) == (0, "stm32n6"), judged.err


@pytest.mark.parametrize("command", ["verify", "handoff"])
def test_a_target_that_contradicts_the_record_is_refused(plain, onnxq, command):
    assert onnxq(*plain.quantize("--target", "stm32n6")).code == 0
    packed = ["handoff", plain.int8, "-o", "b", "--allow-unverified"]
    arguments = plain.verify() if command == "verify" else packed

    error = told(onnxq(*arguments, "--target", "ort-x86", "--json"))

    assert error["kind"] == "UsageError"
    assert {"stm32n6", "ort-x86"} <= set(error["what"].split())


def test_an_int8_file_is_not_judged_against_a_model_it_was_not_made_from(plain, onnxq):
    assert onnxq(*plain.quantize()).code == 0
    save_net(plain.fp32, gain=2)

    error = told(onnxq(*plain.verify("--json")))

    assert error["kind"] == "StaleRecordError"
    assert "another FP32 model" in error["what"]


def test_the_canonical_form_is_the_model_it_was_made_from(plain, onnxq):
    assert onnxq(*plain.quantize()).code == 0
    assert onnxq("export", plain.fp32, "-o", "canonical").code == 0
    shutil.copyfile("canonical/fp32.onnx", plain.fp32)

    assert onnxq(*plain.verify()).code == 0


def test_a_recipes_int8_file_is_judged_as_a_plain_one(tiny, plain, onnxq):
    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0
    samples = evaluation()
    np.savez(plain.eval, picture=samples.inputs["picture"], labels=samples.labels)

    for name in ("exported.onnx", "fp32.onnx"):
        judged = onnxq(
            "verify", tiny.build / "export" / name, tiny.build / "quantize" / "int8.onnx",
            "--data", plain.eval, "--metric", "mae", "--max-drop", "1",
        )  # fmt: skip
        assert judged.code == 0, judged.err


def test_a_model_is_not_judged_on_a_sample_it_was_calibrated_on(plain, onnxq):
    seen, unseen = np.load(plain.calib), np.load(plain.eval)
    mixed = {name: np.concatenate([unseen[name], seen[name][7:8]]) for name in unseen}
    np.savez(plain.eval, **mixed)
    assert onnxq(*plain.quantize()).code == 0

    error = told(onnxq(*plain.verify("--json")))

    assert error["kind"] == "LeakageError"
    assert "calibration sample 7 is evaluation sample 600" in error["what"]


def test_a_model_is_not_judged_on_a_group_it_was_calibrated_on(plain, onnxq):
    for path, groups in ((plain.calib, ("ann", "bob")), (plain.eval, ("bob", "eve"))):
        arrays = dict(np.load(path))
        np.savez(path, **arrays, groups=np.resize(groups, len(arrays["labels"])))
    assert onnxq("calibrate", plain.fp32, "--data", plain.calib, "-o", "ranges").code == 0
    assert onnxq("quantize", plain.fp32, "--calibration", "ranges", "-o", plain.int8).code == 0

    error = told(onnxq(*plain.verify("--json")))

    assert error["kind"] == "LeakageError"
    assert "bob" in error["what"]


def test_without_a_record_the_screen_says_that_the_calibration_is_unknown(plain, onnxq):
    assert onnxq(*plain.quantize()).code == 0
    assert "not known" not in onnxq(*plain.verify()).out
    plain.record.unlink()

    judged = onnxq(*plain.verify())

    assert judged.code == 0
    assert "whether these samples are held out is not known" in judged.out


# --- values that no flag takes ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--max-drop", "-1"),
        ("--max-drop", "nan"),
        ("--max-drop", "inf"),
        ("--max-to-fp32", "-0.5"),
        ("--max-to-fp32", "nan"),
    ],
)
def test_a_limit_that_is_none_names_its_flag(plain, onnxq, flag, value):
    error = told(onnxq(*plain.verify(flag, value, "--json")))

    assert (error["kind"], error["where"]) == ("UsageError", flag)
    assert "pydantic" not in error["what"]


@pytest.mark.parametrize("interval", ["1,0", "0,0", "nan,1", "0,inf", "0", "0,1,2", "a,b"])
def test_a_domain_that_is_no_interval_names_its_flag(plain, onnxq, interval):
    error = told(onnxq(*plain.quantize("--domain", f"image={interval}", "--json")))

    assert (error["kind"], error["where"]) == ("UsageError", "--domain")
    assert f"image={interval}" in error["what"]


@pytest.mark.parametrize("flags", [["--samples", "5"], ["--domain", "image=0,1"], ["--seed", "0"]])
def test_ranges_that_are_made_already_leave_nothing_to_calibrate(plain, onnxq, flags):
    arguments = ("quantize", plain.fp32, "--calibration", "ranges", "-o", plain.int8)

    error = told(onnxq(*arguments, *flags, "--json"))

    assert f"`{flags[0]}` is for calibrating only" in error["what"]


# --- metrics and waivers ------------------------------------------------------------------------


def test_a_task_of_ones_own_is_a_metric(tiny, onnxq, tmp_path):
    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0

    judged = onnxq(
        "verify", tiny.build / "export" / "fp32.onnx", tiny.build / "quantize" / "int8.onnx",
        "--data", "tiny.system:evaluation", "--metric", "tiny.system:brightness",
        "--max-drop", "1", "--json",
    )  # fmt: skip

    assert judged.code == 0, judged.err
    assert judged.json["report"]["gates"][0]["metric"] == "mae"
    assert judged.json["report"]["comparison"]["metrics"][0]["unit"] == "percent"


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        ("rmse", "UsageError"),
        ("mean_class", "UsageError"),
        ("topp1", "UsageError"),
        ("tiny.system:trained", "PluginError"),
    ],
)
def test_what_cannot_be_gated_is_told_before_anything_runs(plain, onnxq, metric, kind):
    arguments = ("verify", plain.fp32, "none.onnx", "--data", "none.npz", "--metric", metric)

    assert told(onnxq(*arguments, "--max-drop", "1", "--json"))["kind"] == kind


def test_a_model_at_chance_is_judged_only_if_that_is_waived_by_name(plain, onnxq):
    arrays = dict(np.load(plain.eval))
    np.savez(plain.eval, image=arrays["image"], labels=(arrays["labels"] + 1) % 3)
    assert onnxq(*plain.quantize()).code == 0

    strict = onnxq(*plain.verify())
    waived = onnxq(*plain.verify("--waive", "fp32-at-chance=labels are shifted", "--json"))

    assert strict.code == 2
    assert "baseline" in strict.out
    assert waived.code == 0
    assert waived.json["report"]["waived"] == ["fp32-at-chance: labels are shifted"]


@pytest.mark.parametrize("text", ["fp32-at-chance", "fp32-at-chance= ", "fp32-at-chanse=why"])
def test_a_waiver_needs_a_known_name_and_a_reason(plain, onnxq, text):
    assert told(onnxq(*plain.verify("--waive", text, "--json")))["where"] == "--waive"


# --- handing off --------------------------------------------------------------------------------


def test_the_four_commands_of_the_readme_end_in_a_bundle_that_passed(plain, onnxq):
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    block = next(part for part in text.split("```") if "onnxq quantize model.onnx" in part)
    commands = [shlex.split(line, comments=True) for line in block.strip().splitlines()]
    assert [command[1] for command in commands] == ["inspect", "quantize", "verify", "handoff"]

    for command in commands:
        ended = onnxq(*command[1:])
        assert ended.code == 0, ended.out + ended.err

    bundle = json.loads(Path("bundle/bundle.json").read_text())
    assert bundle["verdict"] == "passed"
    assert bundle["model"]["name"] == "model.int8.onnx"
    assert Path("bundle/report/report.html").is_file()
    assert not Path("bundle/UNVERIFIED.txt").exists()


def test_the_report_of_another_file_does_not_vouch_for_this_one(plain, onnxq):
    assert onnxq(*plain.quantize()).code == 0
    assert onnxq(*plain.verify("--report", "report")).code == 0
    assert onnxq(*plain.quantize("--method", "mse", "--domain", "image=0,2")).code == 0

    error = told(onnxq("handoff", plain.int8, "--report", "report", "-o", "b", "--json"))

    assert error["kind"] == "StaleRecordError"
    assert not Path("b").exists()


def test_a_file_that_is_not_quantized_is_not_handed_off(plain, onnxq):
    error = told(onnxq("handoff", plain.fp32, "-o", "b", "--allow-unverified", "--json"))

    assert error["kind"] == "ModelError"
    assert "not quantized" in error["what"]


def test_a_folder_without_a_report_is_named(plain, onnxq):
    assert onnxq(*plain.quantize()).code == 0

    error = told(onnxq("handoff", plain.int8, "--report", "none", "-o", "b", "--json"))

    assert "none/report.json" in error["where"]


def test_a_bundle_of_a_model_that_nobody_verified_must_be_asked_for(tiny, onnxq, tmp_path):
    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0
    model = tiny.build / "quantize" / "int8.onnx"

    refused = onnxq("handoff", model, "-o", tmp_path / "bundle")
    stamped = onnxq("handoff", model, "-o", tmp_path / "b[/]undle", "--allow-unverified")

    assert refused.code == 2
    assert "--allow-unverified" in refused.err
    assert stamped.code == 0, stamped.err
    assert (tmp_path / "b[/]undle" / "UNVERIFIED.txt").is_file()
