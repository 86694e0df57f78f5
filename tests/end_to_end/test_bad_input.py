"""Each bad input gets one clear screen and exit code 2, and leaves nothing that looks finished."""

import errno
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from tiny.system import Net

from onnxq.store import Build


def _screen(ended) -> str:
    """What the person saw; it must fit on one screen."""
    assert ended.code == 2, ended.out + ended.err
    assert len(ended.err.splitlines()) < 40
    return ended.err


# --- checkpoints --------------------------------------------------------------------------------


def test_missing_checkpoint(tiny, onnxq):
    tiny.checkpoint.unlink()
    assert "net.safetensors" in _screen(onnxq(*tiny.arguments()))


def test_truncated_checkpoint(tiny, onnxq):
    tiny.checkpoint.write_bytes(tiny.checkpoint.read_bytes()[:200])
    assert "net.safetensors" in _screen(onnxq(*tiny.arguments()))


def test_foreign_checkpoint(tiny, onnxq):
    tiny.values["export"]["checkpoint"] = "picture.pth"
    (tiny.folder / "picture.pth").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    assert "picture.pth" in _screen(onnxq(*tiny.arguments()))


def test_extra_and_missing_keys_stand_in_one_table(tiny, onnxq, weights):
    changed = dict(weights)
    changed["head.wieght"] = changed.pop("head.weight")
    changed["features.0.weight"] = torch.zeros(8, 3, 3, 3)
    save_file(changed, tiny.checkpoint)

    screen = _screen(onnxq(*tiny.arguments()))

    for word in ("head.wieght", "head.weight", "features.0.weight", "missing", "unexpected"):
        assert word in screen


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_bomb_is_refused_and_not_run(tiny, onnxq):
    struck = tiny.folder / "struck"
    tiny.values["export"]["checkpoint"] = "bomb.pth"
    with (tiny.folder / "bomb.pth").open("wb") as file:
        pickle.dump({"state_dict": _Bomb(struck)}, file)

    screen = _screen(onnxq(*tiny.arguments()))

    assert "bomb.pth" in screen
    assert not struck.exists()


# --- recipes ------------------------------------------------------------------------------------


def test_a_typo_names_the_nearest_key_and_its_line(tiny, onnxq):
    tiny.values["calibrate"]["sampels"] = 64
    screen = _screen(onnxq(*tiny.arguments()))
    assert "did you mean `samples`?" in screen
    line = tiny.recipe.read_text().splitlines().index("  sampels: 64") + 1
    assert f"recipe.yaml:{line}" in screen


def test_a_wrong_type_names_key_and_line(tiny, onnxq):
    tiny.values["calibrate"]["samples"] = "many"
    screen = _screen(onnxq(*tiny.arguments()))
    assert "calibrate.samples" in screen
    assert "'many'" in screen


def test_a_missing_recipe(tiny, onnxq):
    assert "no such file" in _screen(onnxq("run", tiny.folder / "none.yaml"))


def test_a_tab_in_a_recipe(tiny, onnxq):
    path = tiny.recipe
    path.write_text(path.read_text().replace("  samples: 64", "\tsamples: 64"))
    screen = _screen(onnxq("run", path, "--build-dir", tiny.build))
    assert "tab" in screen


def test_a_function_that_is_not_there(tiny, onnxq):
    tiny.values["data"]["evaluation"]["source"] = "tiny.system:evalution"
    assert "did you mean `evaluation`?" in _screen(onnxq(*tiny.arguments()))


def test_an_unknown_target(tiny, onnxq):
    assert "did you mean `stm32n6`?" in _screen(onnxq(*tiny.arguments("--target", "stm32n7")))


def test_a_gate_on_an_unknown_metric(tiny, onnxq):
    tiny.values["verify"]["gate"] = [{"metric": "maee", "max_increase": 1}]
    assert "did you mean `mae`?" in _screen(onnxq(*tiny.arguments()))


@pytest.mark.parametrize("arguments", [["rum"], ["run", "--bild-dir", "x", "r.yaml"], ["quantize"]])
def test_a_wrong_command_or_flag(onnxq, arguments):
    assert _screen(onnxq(*arguments))


# --- data ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defect", "words"),
    [
        ("nan", ["nan", "sample", "`picture`"]),
        ("inf", ["inf", "sample", "`picture`"]),
        ("domain", ["leave the declared domain", "sample", "`picture`"]),
        ("shape", ["shape", "7, 8]", "2, 8, 8]", "`picture`"]),
        ("dtype", ["float64", "float32"]),
        ("none", ["holds"]),
    ],
)
def test_bad_calibration_data_are_named(tiny, onnxq, defect, words):
    tiny.values["data"]["calibration"]["options"] = {"defect": defect}
    screen = _screen(onnxq(*tiny.arguments()))
    for word in words:
        assert word in screen


def test_bad_evaluation_data_are_named(tiny, onnxq):
    tiny.values["data"]["evaluation"]["options"] = {"defect": "nan"}
    screen = _screen(onnxq(*tiny.arguments()))
    assert "`picture`" in screen
    assert "groups 100 to 111" in screen


def test_fewer_samples_than_asked(tiny, onnxq):
    tiny.values["calibrate"]["samples"] = 241
    screen = _screen(onnxq(*tiny.arguments()))
    assert "holds 240 samples, 241 were asked for" in screen


def test_a_group_in_calibration_and_evaluation(tiny, onnxq):
    tiny.values["data"]["calibration"]["options"] = {"first": 100}
    screen = _screen(onnxq(*tiny.arguments()))
    assert "share" in screen
    assert "group100" in screen


# --- models -------------------------------------------------------------------------------------


def test_an_already_quantized_model(tiny, onnxq):
    assert onnxq(*tiny.arguments("--to", "quantize")).code == 0
    ended = onnxq(
        "quantize", tiny.build / "quantize" / "int8.onnx", "--smoke-test-random",
        "-o", tiny.folder / "twice.onnx",
    )  # fmt: skip
    assert "quantized already" in _screen(ended)
    assert not (tiny.folder / "twice.onnx").exists()


def test_a_model_with_free_dimensions_for_a_target_that_forbids_them(onnxq, tmp_path):
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,2,height,8] x) => (float[1,2,h,8] y)'
        "{ y = Relu(x) }"
    )
    onnx.save(model, tmp_path / "m.onnx")
    ended = onnxq(
        "quantize", tmp_path / "m.onnx", "--smoke-test-random", "--target", "stm32n6",
        "-o", tmp_path / "out.onnx",
    )  # fmt: skip
    assert "height" in _screen(ended)


def test_a_truncated_model(onnxq, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x08\x08garbage")
    ended = onnxq("inspect", tmp_path / "m.onnx")
    assert "m.onnx" in _screen(ended)


# --- places -------------------------------------------------------------------------------------


def test_a_file_where_the_build_folder_should_be(tiny, onnxq):
    tiny.build.write_text("in the way")
    assert "build folder" in _screen(onnxq(*tiny.arguments()))


@pytest.mark.parametrize(
    ("number", "word"), [(errno.EROFS, "read-only"), (errno.ENOSPC, "free some space")]
)
def test_a_read_only_or_full_disk(tiny, onnxq, monkeypatch, number, word):
    def refuse(*_: object, **__: object) -> str:
        raise OSError(number, "refused", str(tiny.build))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    assert word in _screen(onnxq(*tiny.arguments()))
    assert not (tiny.build / "export").exists()


def test_a_second_run_in_the_same_build_folder_says_so(tiny, onnxq):
    with Build(tiny.build):
        command = [sys.executable, "-m", "onnxq", *tiny.arguments()]
        second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 2
    assert "another run" in second.stderr


@pytest.mark.parametrize("arguments", [["run", "--json"], ["quantize", "--nope", "--json"]])
def test_a_wrong_flag_as_json(onnxq, arguments):
    ended = onnxq(*arguments)
    assert ended.code == ended.json["exit_code"] == 2
    assert ended.json["error"]["kind"] == "UsageError"


def test_an_error_as_json(tiny, onnxq):
    tiny.checkpoint.unlink()
    ended = onnxq(*tiny.arguments("--json"))
    assert ended.json["exit_code"] == 2
    assert ended.json["error"]["kind"] == "CheckpointError"


# --- networks that no figure can be trusted of --------------------------------------------------


def test_an_untrained_network_is_not_judged(tiny, onnxq):
    torch.manual_seed(5)
    save_file(Net().state_dict(), tiny.checkpoint)
    ended = onnxq(*tiny.arguments())
    assert ended.code == 2
    assert "does not beat the baseline" in ended.out, ended.err
    tiny.values["verify"]["waive"] = [{"name": "fp32-at-chance", "reason": "a test"}]
    assert onnxq(*tiny.arguments()).code in {0, 1}


def test_weights_that_are_not_finite(tiny, onnxq, weights):
    bad = {name: tensor.clone() for name, tensor in weights.items()}
    bad["head.bias"][0] = float(np.nan)
    save_file(bad, tiny.checkpoint)
    assert "head.bias" in _screen(onnxq(*tiny.arguments()))
