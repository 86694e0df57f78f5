"""``onnxq sensitivity`` and ``onnxq tune`` on plain files and recipes: results, codes, refusals."""

import json

import pytest
import yaml
from test_plain import save_net, save_pictures

from onnxq.recipe import QuantizeSection


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_net(tmp_path / "model.onnx")
    save_pictures(tmp_path / "data.npz", 80, seed=1)
    return tmp_path


def test_sensitivity_of_a_plain_file_is_written_and_adds_up(files, onnxq):
    ended = onnxq(
        "sensitivity", "model.onnx", "--data", "data.npz", "--samples", 16, "--trial-samples", 4,
        "--json",
    )  # fmt: skip

    assert ended.code == 0, ended.err
    found = ended.json["sensitivity"]
    parts = [
        row[key] for row in found["layers"] for key in ("budget_weights", "budget_activations")
    ]
    assert sum(part for part in parts if part is not None) == found["error"] > 0
    folder = files / "build/model/sensitivity"
    assert {path.name for path in folder.iterdir()} == {
        "report.html", "report.md", "sensitivity.json", "trials",
    }  # fmt: skip
    assert json.loads((folder / "sensitivity.json").read_text()) == found
    again = onnxq("sensitivity", "model.onnx", "--data", "data.npz", "--samples", 16,
                  "--trial-samples", 4, "--measure", "only")  # fmt: skip
    assert again.code == 0
    assert "as the graph says" in again.out
    assert "█" in again.out


def test_tune_of_a_plain_file_prints_lines_that_a_recipe_takes(files, onnxq):
    ended = onnxq(
        "tune", "model.onnx", "--data", "data.npz", "--samples", 16, "--metric", "top1",
        "--max-drop", 0.4, "--trial-samples", 4, "-o", "out", "--json",
    )  # fmt: skip

    assert ended.code == 0, ended.err
    found = ended.json["tuning"]
    assert "4 bits in 2 of 2" in {trial["name"] for trial in found["trials"]}
    passed = [trial for trial in found["trials"] if trial["verdict"] == "passed"]
    chosen = next(trial for trial in passed if trial["name"] == found["chosen"])
    assert chosen["size_bytes"] == min(trial["size_bytes"] for trial in passed)
    QuantizeSection.model_validate(yaml.safe_load(found["lines"])["quantize"])
    assert all(trial["of_samples"] == 64 for trial in found["trials"])
    trials = list((files / "out/plans").glob("*/trial.json"))
    assert len(trials) == len({trial["key"] for trial in found["trials"]})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("tune", "model.onnx", "--metric", "top1", "--max-drop", 0.1), "`--data` is needed"),
        (("tune", "model.onnx", "--data", "data.npz", "--max-drop", 0.1), "`--metric` is needed"),
        (("tune", "model.onnx", "--data", "data.npz", "--metric", "top1"), "give --max-drop"),
        (("sensitivity", "model.onnx"), "`--data` is needed"),
        (("sensitivity", "missing.onnx", "--data", "data.npz"), "no such model file"),
    ],
)
def test_what_is_missing_is_named_and_ends_with_2(files, onnxq, arguments, said):
    ended = onnxq(*arguments)
    assert ended.code == 2
    assert said in ended.err


@pytest.mark.slow
def test_a_recipe_is_tuned_by_its_own_gate_away_from_its_evaluation_data(tiny, onnxq):
    recipe = tiny.recipe

    ended = onnxq("tune", recipe, "--build-dir", tiny.build, "--trial-samples", 4, "--json")

    assert ended.code == 0, ended.err
    found = ended.json["tuning"]
    assert (found["metric"], found["limit"], found["unit"]) == ("mae", 1.0, "percent")
    assert "groups 0 to 7" in found["data"]
    assert all(trial["of_samples"] == 240 - 64 for trial in found["trials"])
    tiny.values["quantize"] = yaml.safe_load(found["lines"])["quantize"]
    ended = onnxq(*tiny.arguments())
    assert ended.code == 0, ended.out + ended.err
    record = tiny.record("quantize", "int8.json")
    chosen = next(trial for trial in found["trials"] if trial["name"] == found["chosen"])
    assert record["model"]["size_bytes"] == chosen["size_bytes"]
