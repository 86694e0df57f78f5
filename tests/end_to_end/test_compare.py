"""``onnxq compare``: recipes, build folders and plain files side by side, and what is refused."""

import json
import shutil

import numpy as np
import onnxruntime as ort
import pytest
import yaml
from test_plain import save_net, save_pictures


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def files(tmp_path, monkeypatch, onnxq, kept):
    """An FP32 model, two quantized forms, and samples; made once, copied for every test."""
    monkeypatch.chdir(kept)
    if not (kept / "biased.onnx").exists():
        save_net(kept / "model.onnx")
        save_pictures(kept / "calib.npz", 32, seed=1)
        save_pictures(kept / "eval.npz", 60, seed=2)
        for name, more in (("ptq", ()), ("biased", ("--step", "bias"))):
            made = onnxq(
                "quantize", "model.onnx", "--data", "calib.npz", *more, "-o", f"{name}.onnx"
            )
            assert made.code == 0, made.err
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


JUDGED = ("--data", "eval.npz", "--metric", "top1", "--rounds", 1)


def test_plain_files_are_laid_beside_their_fp32_model(files, onnxq):
    ended = onnxq(
        "compare", "model.onnx", "ptq.onnx", "biased.onnx", *JUDGED, "--max-drop", 0.2,
        "--report", "report", "--json",
    )  # fmt: skip

    assert ended.code == 0, ended.err
    found = ended.json["comparison"]
    assert [model["name"] for model in found["models"]] == ["FP32", "ptq", "biased"]
    session = ort.InferenceSession("ptq.onnx")
    data = np.load("eval.npz")
    scores = np.concatenate([session.run(None, {"image": x[None]})[0] for x in data["image"]])
    right = (scores.argmax(1) == data["labels"]).mean()
    row = next(r for r in found["metrics"] if (r["model"], r["metric"]) == ("ptq", "top1"))
    assert row["value"] == pytest.approx(right)
    assert sorted(path.name for path in (files / "report").iterdir()) == [
        "comparison.json", "report.html", "report.md",
    ]  # fmt: skip
    assert json.loads((files / "report/comparison.json").read_text())["advice"] == found["advice"]
    assert found["advice"].startswith("Take ")
    ended = onnxq("compare", "model.onnx", "ptq.onnx", *JUDGED)
    assert ended.code == 0
    assert "give a limit (--max-drop)" in ended.out


def test_a_candidate_of_another_fp32_model_ends_with_2_and_is_named(files, onnxq):
    save_net(files / "other.onnx", gain=0.5)
    made = onnxq("quantize", "other.onnx", "--data", "calib.npz", "-o", "stranger.onnx")
    assert made.code == 0

    ended = onnxq("compare", "model.onnx", "ptq.onnx", "stranger.onnx", *JUDGED, "--json")

    assert ended.code == 2
    assert ended.json["error"]["where"] == "stranger.onnx"
    assert "another FP32 model than model.onnx" in ended.json["error"]["what"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("model.onnx", "ptq.onnx", "--metric", "top1"), "`--data` is needed"),
        (("model.onnx", "ptq.onnx", "--data", "eval.npz"), "`--metric` is needed"),
        (("ptq.onnx", "biased.onnx", *JUDGED), "no FP32 model is given"),
        (("model.onnx", *JUDGED), "no quantized model"),
        (("model.onnx", "model.onnx", "ptq.onnx", *JUDGED), "2 models are not quantized"),
        (("model.onnx", "ptq.onnx", "--data", "calib.npz", "--metric", "top1"), "byte for byte"),
        (("model.onnx", "missing.onnx", *JUDGED), "no such model file"),
    ],
)
def test_what_cannot_be_compared_ends_with_2(files, onnxq, arguments, said):
    ended = onnxq("compare", *arguments)
    assert ended.code == 2
    assert said in ended.err


def test_every_candidate_beyond_the_limit_ends_with_1(files, onnxq):
    graph = save_net(files / "broken.onnx", gain=-1)
    made = onnxq("quantize", graph, "--data", "calib.npz", "-o", "broken.int8.onnx")
    assert made.code == 0
    (files / "broken.int8.json").unlink()

    ended = onnxq("compare", "model.onnx", "broken.int8.onnx", *JUDGED, "--max-drop", 0.01)

    assert ended.code == 1, ended.out
    assert "Take none" in ended.out
    assert "no record says what broken.int8 was made from" in ended.out


@pytest.mark.long
def test_recipes_build_folders_and_their_gate_need_no_flags(tiny, onnxq):
    recipes = []
    for name, steps in (("tiny", []), ("tiny-biased", ["bias"])):
        tiny.values |= {"name": name, "quantize": {"steps": steps}, "build": "results"}
        path = tiny.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(tiny.values))
        recipes.append(path)

    ended = onnxq("compare", *recipes, "--rounds", 1, "--json")

    assert ended.code == 0, ended.err
    found = ended.json["comparison"]
    assert [model["name"] for model in found["models"]] == ["FP32", "tiny", "tiny-biased"]
    assert (found["headline"], found["limit"], found["groups"]) == ("mae", 1.0, 12)
    assert all(model["kind"] == "recipe" for model in found["models"][1:])
    again = onnxq("compare", tiny.folder / "results/tiny", recipes[1], "--rounds", 0, "--json")
    assert again.code == 0
    assert again.json["comparison"]["data_sha256"] == found["data_sha256"]
    assert again.json["comparison"]["metrics"] == found["metrics"]

    tiny.values["verify"]["samples"] = 40
    recipes[1].write_text(yaml.safe_dump(tiny.values))
    ended = onnxq("compare", *recipes, "--rounds", 0)
    assert ended.code == 2
    assert "tiny-biased: data: evaluation" in ended.err
