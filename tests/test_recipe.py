from pathlib import Path

import pytest

from onnxq.errors import RecipeError
from onnxq.recipe import Recipe
from onnxq.recipe_file import load_recipe

WHOLE = """\
name: tiny
target: ort-x86
task: my_task:task
python_path: code
export:
  model: tiny.onnx
  inputs:
    - name: x
      domain: [0, 1]
data:
  calibration:
    source: calibration.npz
  evaluation:
    source: my_data:clips
    options: {split: test}
    paths: {root: clips}
calibrate:
  samples: 20
quantize:
  exclude:
    - {name: head, reason: it is small}
verify:
  gate:
    - {metric: mae, max_increase: 0.1}
"""


@pytest.fixture
def read(tmp_path):
    """Write ``text`` as a recipe and load it."""

    def load(text: str, *settings: str) -> Recipe:
        (tmp_path / "recipe.yaml").write_text(text)
        return load_recipe(tmp_path / "recipe.yaml", settings)

    return load


def line_of(text: str, part: str) -> int:
    return next(n for n, line in enumerate(text.splitlines(), start=1) if part in line)


def test_a_whole_recipe_is_read_with_its_defaults(read):
    recipe = read(WHOLE)
    assert (recipe.name, recipe.calibrate.samples, recipe.calibrate.method) == (
        "tiny", 20, "minmax",
    )  # fmt: skip
    assert recipe.export.inputs[0].domain == (0.0, 1.0)
    assert recipe.verify.gate[0].judge == "bound"


def test_paths_are_relative_to_the_recipe_and_functions_are_not_paths(read, tmp_path):
    recipe = read(WHOLE)
    assert recipe.export.model == tmp_path / "tiny.onnx"
    assert recipe.python_path == tmp_path / "code"
    assert Path(recipe.data.calibration.source) == tmp_path / "calibration.npz"
    assert recipe.data.evaluation.source == "my_data:clips"
    assert recipe.data.evaluation.paths == {"root": tmp_path / "clips"}


def test_a_folder_of_pictures_is_a_source_with_options(read, tmp_path):
    options = "{size: 256, crop: 224, mean: [0.5, 0.5, 0.5], groups: folder}"
    source = f"source: pictures/\n    options: {options}"
    calibration = read(WHOLE.replace("source: calibration.npz", source)).data.calibration
    assert Path(calibration.source) == tmp_path / "pictures"
    assert calibration.options["mean"] == [0.5, 0.5, 0.5]


def test_a_file_has_no_paths_among_its_options(read):
    text = WHOLE.replace("source: my_data:clips", "source: clips.npz")
    with pytest.raises(RecipeError, match="`paths` are arguments of a function"):
        read(text)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("quantize:\n", "quantise:\n", "`quantise` in the recipe; did you mean `quantize`"),
        ("  samples: 20", "  sample: 20", "`sample` in calibrate; did you mean `samples`"),
        ("max_increase: 0.1", "max_increse: 0.1", "in verify.gate.0; did you mean `max_increase`"),
        ("domain: [0, 1]", "domian: [0, 1]", "in export.inputs.0; did you mean `domain`"),
        ("  samples: 20", "  wieghts: int8", "`wieghts` in calibrate; known: `collect`"),
    ],
)  # fmt: skip
def test_an_unknown_key_is_named_with_its_line_and_the_nearest(read, old, new, says):
    text = WHOLE.replace(old, new)
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert says in str(caught.value)
    word = new.split(":")[0].strip()
    assert f"recipe.yaml:{line_of(text, word)}:" in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("samples: 20", "samples: many", "`calibrate.samples`"),
        ("samples: 20", "samples: 0", "greater than or equal to 1"),
        ("- name: x\n      domain: [0, 1]", "- name: x\n      domain: [1, 0]", "is no interval"),
        (
            "samples: 20",
            "method: nonsense",
            "'minmax', 'ema', 'percentile', 'mse', 'entropy' or 'meanstd'",
        ),
        ("samples: 20", "coverage: 1.5", "less than or equal to 1"),
        ("samples: 20", "stratify: {label_edges: [90, 60]}", "must rise"),
        ("model: tiny.onnx", "opset: 12\n  model: tiny.onnx", "greater than or equal to 13"),
    ],
)
def test_a_wrong_value_is_told_with_its_line(read, old, new, says):
    text = WHOLE.replace(old, new)
    with pytest.raises(RecipeError) as caught:
        read(text)
    assert says in str(caught.value)
    assert f"recipe.yaml:{line_of(text, new.splitlines()[0].split(':')[0])}:" in str(caught.value)


def test_every_fault_is_told_at_once(read):
    with pytest.raises(RecipeError) as caught:
        read(WHOLE.replace("samples: 20", "samples: x").replace("target: ", "tarjet: "))
    assert str(caught.value).count("recipe.yaml:") == 3  # the typo, the missing key, the number


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (WHOLE.replace("  samples: 20", "\tsamples: 20"), "a tab indents this line"),
        (WHOLE.replace("[0, 1]", "[0, 1"), "is no YAML"),
        ("- a\n- b\n", "holds no mapping"),
        ("", "holds no mapping"),
        ("just words", "holds no mapping"),
        (WHOLE + "name: other\n", "the key `name` stands in line 1 already"),
        (WHOLE.replace("  samples: 20", "  samples: 20\n  samples: 9"), "stands in line"),
    ],
)
def test_what_is_no_recipe_is_told(read, text, says):
    with pytest.raises(RecipeError, match=says):
        read(text)


def test_a_tab_is_told_with_its_line(read):
    with pytest.raises(RecipeError, match=rf"recipe\.yaml:{line_of(WHOLE, 'samples: 20')}:"):
        read(WHOLE.replace("  samples: 20", "\tsamples: 20"))


@pytest.mark.parametrize("key", ["name", "target", "task", "export", "data", "verify"])
def test_a_missing_key_is_named(read, key):
    lines, inside = [], False
    for line in WHOLE.splitlines():
        inside = line.startswith(f"{key}:") or (inside and line.startswith(" "))
        if not inside:
            lines.append(line)
    with pytest.raises(RecipeError, match=f"the key `{key}` is missing"):
        read("\n".join(lines))


def test_a_missing_file_and_a_binary_one_are_told(tmp_path):
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "b.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


NETWORK = """  network: net:Net
  checkpoint: c.pt
  inputs: [{name: x, shape: [1, 3]}]
  outputs: [{name: y}]
"""


@pytest.mark.parametrize(
    ("export", "says"),
    [
        (NETWORK + "  model: m.onnx\n", "give either `network`"),
        ("  opset: 17\n", "give either `network`"),
        (NETWORK.replace("  checkpoint: c.pt\n", ""), "untrained weights are never exported"),
        (NETWORK.replace(", shape: [1, 3]", ""), "needs a `shape`"),
        (NETWORK.replace("  outputs: [{name: y}]\n", ""), "`inputs` and `outputs` named"),
    ],
)
def test_a_graph_has_one_source_and_that_is_whole(read, export, says):
    head, tail = WHOLE.split("export:\n", maxsplit=1)[0], WHOLE[WHOLE.index("data:\n") :]
    with pytest.raises(RecipeError, match=says):
        read(f"{head}export:\n{export}{tail}")
    read(f"{head}export:\n{NETWORK}{tail}")


@pytest.mark.parametrize(
    ("gate", "says"),
    [
        ("{metric: mae}", "give either `max_increase`"),
        ("{metric: mae, max_increase: 1, max: 2}", "give either `max_increase`"),
        ("{metric: mae, max: 2}", "name it like `mae_to_fp32`"),
        ("{metric: mae, max_increase: -1}", "greater than or equal to 0"),
        ("{max: 2}", "the key `verify.gate.0.metric` is missing"),
    ],
)
def test_a_gate_without_one_limit_judges_nothing(read, gate, says):
    with pytest.raises(RecipeError, match=says):
        read(WHOLE.replace("{metric: mae, max_increase: 0.1}", gate))


def test_without_a_gate_nothing_is_verified(read):
    with pytest.raises(RecipeError, match="at least one `gate`"):
        read(WHOLE.split("  gate:", maxsplit=1)[0] + "  gate: []\n")


def test_settings_overrule_the_file(read):
    recipe = read(
        WHOLE, "calibrate.samples=7", "target=stm32n6", "calibrate.stratify.by_group=true"
    )
    assert (recipe.calibrate.samples, recipe.target) == (7, "stm32n6")
    assert recipe.calibrate.stratify.by_group


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("calibrate.samples", "not of the form key=value"),
        ("=3", "not of the form key=value"),
        ("calibrate.sample=3", "did you mean `samples`"),
        ("calibrate.samples=many", "calibrate.samples"),
        ("name.first=3", "`name` holds no keys"),
        ("calibrate.samples=[", "is no YAML value"),
    ],
)
def test_a_setting_that_does_not_fit_is_told(read, setting, says):
    with pytest.raises(RecipeError, match=says):
        read(WHOLE, setting)


def test_a_recipe_cannot_be_changed_once_read(read):
    with pytest.raises(ValueError, match="frozen"):
        read(WHOLE).name = "other"  # type: ignore[misc]
