"""``onnxq targets`` and ``onnxq check``: what is printed, and the code they end with."""

import json

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.cli import main
from onnxq.target import load_target, target_names
from tests.onnx_text import model_of

NET = """<ir_version: 9, opset_import: ["": 17]>
g (float[{batch},3,8,8] x) => (float[{batch},5] y) {{
    c = Conv<pads=[1,1,1,1]>(x, w)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    y = Gemm<transB=1>(f, v)
}}"""
QDQ = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,4] x) => (float[1,4] y) {
    q = QuantizeLinear(x, s, z)
    d = DequantizeLinear(q, s, z)
    t = Softmax(d)
    tq = QuantizeLinear(t, s, z)
    y = DequantizeLinear(tq, s, z)
}"""


@pytest.fixture
def shell(capsys):
    def run(*arguments):
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return ended.value.code or 0, out, err

    return run


def saved(folder, text, **constants):
    model = model_of(text, **constants)
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
    path = folder / "m.onnx"
    onnx.save(model, path)
    return path


def net(folder, batch=1):
    random = np.random.default_rng(0)
    shapes = {"w": (4, 3, 3, 3), "v": (5, 4)}
    weights = {k: random.standard_normal(v).astype(np.float32) for k, v in shapes.items()}
    return saved(folder, NET.format(batch=batch), **weights)


@pytest.mark.parametrize("name", [*target_names(), "stm32n6@2.2"])
def test_a_profile_is_shown_whole(shell, name):
    code, out, _ = shell("targets", name)
    target = load_target(name)
    assert code == 0
    for meant in ("-64…63", "-64…64", "scale_factor=…"):
        out = out.replace(meant, "")
    assert "…" not in out  # nothing cut off
    for entry in target.operators:
        assert entry.op in out
    for words in (
        *(rule.id for rule in target.rules),
        *(pool.name for pool in target.memory),
        *(fact.says for fact in target.facts.values()),
        *target.notes,
        *target.sources.values(),
    ):
        assert words in out


def test_a_profile_is_one_json_object(shell):
    code, out, _ = shell("targets", "stm32n6", "--json")
    assert code == 0
    assert json.loads(out)["target"] == load_target("stm32n6").model_dump(mode="json")


def test_a_model_that_keeps_the_rules_ends_with_0_and_a_prediction(shell, tmp_path):
    code, out, _ = shell("check", net(tmp_path), "--target", "stm32n6", "--json")
    facts = json.loads(out)
    assert (code, facts["exit_code"], facts["rules"]) == (0, 0, [])
    assert facts["prediction"]["of"] == "float"
    assert facts["prediction"]["shares"] == [
        {"runs": "hardware", "nodes": 5, "macs": 4 * 64 * 27 + 20, "share": 1.0}
    ]


def test_a_broken_rule_ends_with_1_and_names_what_mends_it(shell, tmp_path):
    code, out, _ = shell("check", net(tmp_path, "N"), "--target", "stm32n6")
    assert code == 1
    assert "input `x` has the shape (N, 3, 8, 8) → freeze batch" in out
    assert "Prediction, not measured" in out
    assert shell("check", net(tmp_path, "N"), "--target", "ort-x86")[0] == 0


def test_a_waived_rule_ends_with_0(shell, tmp_path):
    waive = ("--waive", "stm32n6.static-shapes=frozen later")
    code, out, _ = shell("check", net(tmp_path, "N"), "--target", "stm32n6", *waive)
    assert code == 0
    assert "waived: frozen later" in out
    code, _, err = shell("check", net(tmp_path), "--target", "stm32n6", "--waive", "stm32n6.rnak=a")
    assert code == 2
    assert "did you mean `stm32n6.rank`" in err


def test_a_quantized_file_is_judged_by_all_rules_and_its_hazards_are_told(shell, tmp_path):
    constants = {"s": np.float32(3e-7), "z": np.uint8(0)}
    model = saved(tmp_path, QDQ, **constants)
    code, out, _ = shell("check", model, "--target", "stm32n6", "--json")
    facts = json.loads(out)
    assert code == 1
    assert {"stm32n6.activation-type", "stm32n6.software-op"} == {r["rule"] for r in facts["rules"]}
    assert facts["prediction"]["of"] == "quantized"
    assert len(facts["findings"]) == 2
    assert "zero on every sample" in facts["findings"][0]["what"]
    assert shell("check", model, "--target", "ort-x86")[0] == 0


def test_only_nodes_that_do_not_run_at_their_best_are_listed(shell, tmp_path):
    out = shell("check", net(tmp_path), "--target", "ort-x86")[1]
    assert "Conv" not in out
    softmax = saved(tmp_path, QDQ, s=np.float32(0.1), z=np.int8(0))
    assert "Softmax `n2`: software integer" in shell("check", softmax, "--target", "stm32n6")[1]


def test_a_target_of_ones_own_is_named_by_its_path(shell, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("extends: stm32n6\ntitle: mine\nvalue_rank: 3\n", encoding="utf-8")
    code, out, _ = shell("check", net(tmp_path), "--target", own)
    assert code == 1
    assert "has 4 dimensions" in out
    assert "mine" in shell("targets", own)[1]


def test_a_file_of_another_form_is_refused_in_words(shell, tmp_path):
    text = """<ir_version: 9, opset_import: ["": 17]>
    g (uint8[1,4,4] x) => (int32[1,4,4] y) { y = MatMulInteger(x, w) }"""
    model = saved(tmp_path, text, w=np.ones((4, 4), np.int8))
    code, out, err = shell("check", model, "--target", "stm32n6")
    assert code == 2
    assert "QOperator or dynamic form" in err
    assert "Prediction" not in out


def test_activations_that_are_refused_are_refused_in_the_prediction(shell, tmp_path):
    model = saved(tmp_path, QDQ, s=np.float32(0.1), z=np.uint8(0))
    out = shell("check", model, "--target", "stm32n6", "--json")[1]
    nodes = json.loads(out)["prediction"]["nodes"]
    assert [(node["op_type"], node["runs"]) for node in nodes] == [("Softmax", "refused")]
