import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from handoff.qdq_models import quantized_net, with_constants
from handoff.test_rules import N6, RELU, between, data, ended, graph
from onnxq.errors import ModelError, RecipeError, TargetRuleError, UsageError
from onnxq.export.clean import TARGET_REWRITES, clean
from onnxq.handoff.check import check, refuse_broken_rules
from onnxq.plain.convert import convert_file
from onnxq.recipe import Waiver
from onnxq.target import load_target, target_names

SIX_D = between("r = Reshape(xd, shape4)", inputs="float[1,1,1,4,4,4] x")
LEAVE = Waiver(name="stm32n6.rank", reason="the host feeds patches")


def test_a_waived_rule_keeps_its_place_and_carries_the_reason():
    (result,) = check(SIX_D, N6, [LEAVE])
    assert (result.rule, result.waived) == ("stm32n6.rank", "the host feeds patches")
    assert "(1, 1, 1, 4, 4, 4)" not in result.where
    assert "has 6 dimensions" in result.what
    refuse_broken_rules([result], N6, "net.onnx")


def test_a_waiver_of_no_rule_is_named_with_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean `stm32n6\.rank`"):
        check(SIX_D, N6, [Waiver(name="stm32n6.ranks", reason="")])


def test_a_waiver_of_another_targets_rule_is_let_be():
    assert check(between(RELU), load_target("ort-arm64"), [LEAVE]) == ()


def test_every_broken_rule_is_named_with_what_to_do():
    model = graph("q = QuantizeLinear(x, s, u) y = DequantizeLinear(q, s, u)", opset=21)
    with pytest.raises(TargetRuleError) as caught:
        refuse_broken_rules(check(model, N6), N6, "net.onnx")
    assert caught.value.exit_code == 1
    text = str(caught.value)
    assert "net.onnx: breaks 2 rules of stm32n6" in text
    assert "stm32n6.activation-type" in text
    assert "QuantizeLinear `n0` makes uint8" in text
    assert "do: Export at opset 17." in text


def test_many_places_of_a_rule_take_few_lines():
    relus = " ".join(f"r{n + 1} = Relu(r{n})" for n in range(40))
    model = graph(f"r0 = Reshape(x, five) {relus} y = Relu(r40)")
    with pytest.raises(TargetRuleError) as caught:
        refuse_broken_rules(check(model, N6), N6, "net.onnx")
    assert len(str(caught.value).splitlines()) < 20
    assert "and 39 more" in str(caught.value)


def test_warnings_alone_refuse_nothing():
    results = check(between("r = Softmax(xd)"), N6)
    assert [result.severity for result in results] == ["warning"]
    refuse_broken_rules(results, N6, "net.onnx")


def test_a_target_file_that_names_no_check_is_faulty():
    rule = N6.rules[0].model_copy(update={"check": "default_domian"})
    with pytest.raises(UsageError, match="did you mean `default_domain`"):
        check(between(RELU), N6.model_copy(update={"rules": (rule,)}))


def test_a_value_without_a_shape_is_named():
    model = graph(data() + "a = Reshape(xd, flat) r = Transpose<perm=[0,2,1]>(a) " + ended())
    places = [r.where for r in check(model, N6) if r.rule == "stm32n6.static-shapes"]
    assert places == ["value `r`"]


# --- before calibration ---------------------------------------------------------------------------

# The rules of targets.md, A9, by their numbers there.
A9 = {
    1: {"domain", "opset-imports"},
    2: {"activation-type", "activation-per-tensor", "weight-type", "int4-weight"}
    | {"weight-zero-point", "weight-axis"},
    3: {"bias"},
    4: {"opset", "opset-tested", "ir-version"},
    5: {"batch", "static-shapes", "rank", "dimension", "rank-1-input"},
    6: {"subgraph", "forbidden-op"},
    7: {"float-island", "software-op"},
    8: {"constant-operand", "gemm-bias"},
    9: {"resize"},
    10: {"reduce"},
    11: {"pool-window"},
    12: {"slice", "batch-axis"},
    13: {"pad"},
    14: {"clip-bounds"},
    15: {"allowzero"},
    16: {"unfolded-shape"},
    17: {"bool"},
    18: {"float-output"},
    19: {"file-name"},
    20: {"compiler-report"},
}
OF_QDQ = A9[2] | A9[3] | {"float-island", "float-output"}
STEPS = {
    *TARGET_REWRITES,
    *("convert", "drop allowzero", "einsum to matmul", "fold batchnorm", "freeze batch"),
    *("global pool", "opset", "simplify", "split", "unshare constants"),
}


def test_all_twenty_rules_are_there():
    ids = {rule.id.removeprefix("stm32n6.") for rule in N6.rules}
    own = {"random-op", "constant-minus", "divisor", "view-before-activation"}
    assert ids == set().union(*A9.values()) | own
    assert list(A9) == list(range(1, 21))


def test_rules_that_speak_of_qdq_are_those_of_a_quantized_file():
    phases = {rule.id.removeprefix("stm32n6."): rule.phase for rule in N6.rules}
    assert {id_ for id_, phase in phases.items() if phase == "quantized"} == OF_QDQ
    assert {id_ for id_, phase in phases.items() if phase == "compiled"} == A9[20]


@pytest.mark.parametrize("name", target_names())
def test_a_rewrite_that_a_profile_names_is_one_that_onnxq_has(name):
    target = load_target(name)
    named = {rule.rewrite for rule in target.rules} | {rule.input_rewrite for rule in target.rules}
    named |= {entry.rewrite for entry in target.operators} | set(target.rewrites)
    assert named - {""} <= STEPS


def test_a_float_graph_is_judged_by_the_rules_that_do_not_speak_of_qdq():
    model = graph("a = MatMul(x, x) y = Identity(a)")
    before = {result.rule for result in check(model, N6, phase="any")}
    after = {result.rule for result in check(model, N6)}
    assert before == {"stm32n6.constant-operand"}
    assert after == before | {"stm32n6.float-island"}


def test_a_free_batch_is_a_fault_of_the_input_alone_and_shapes_are_those_of_one():
    model = graph("a = Relu(x) y = MaxPool<kernel_shape=[2,2]>(a)", inputs="float[N,4,4,4] x")
    (result,) = check(model, N6, phase="any")
    assert (result.rule, result.where) == ("stm32n6.static-shapes", "input `x`")
    assert result.what == "has the shape (N, 4, 4, 4)"
    assert (result.tensor, result.node, result.rewrite) == ("x", "", "freeze batch")


def test_a_fault_names_its_node_its_tensor_its_source_and_what_mends_it():
    model = between("a = Sigmoid(xd) b = Reshape(a, five) r = Reshape<allowzero=1>(b, shape4)")
    (rank,), (zero,) = (
        [result for result in check(model, N6) if result.rule == f"stm32n6.{rule}"]
        for rule in ("rank", "allowzero")
    )
    assert (rank.node, rank.tensor, rank.rewrite) == ("n3", "b", "lower ranks")
    assert (zero.node, zero.tensor, zero.rewrite) == ("n4", "", "drop allowzero")
    assert rank.evidence == "reported"
    assert "BCPH357" in rank.source


def test_an_operator_brings_a_rewrite_of_its_own():
    (result,) = check(graph('y = Einsum<equation="bchw->bhwc">(x)'), N6, phase="any")
    assert (result.rule, result.rewrite) == ("stm32n6.forbidden-op", "einsum to matmul")


# --- D5.2 to D5.6 of the rPPG network -------------------------------------------------------------

PATCHES = """<ir_version: 9, opset_import: ["" : 17]>
rppg (float[{batch},8,3,36,36,3] input) => (float[{batch},24] output) {{
    t = Transpose<perm=[0,1,2,5,3,4]>(input)
    p = Reshape(t, to_patches)
    c = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(p, w)
    r = Relu(c)
    g = GlobalAveragePool(r)
    output = Reshape(g, to_row)
}}"""
RANK_6 = [
    ("stm32n6.rank", "input `input`", "has 6 dimensions (1, 8, 3, 36, 36, 3)", "split"),
    ("stm32n6.rank", "value `t`", "has 6 dimensions (1, 8, 3, 3, 36, 36)", "split"),
]
BATCH_24 = [
    ("stm32n6.batch", "Conv `n2`", "runs on a batch of 24", "split"),
    ("stm32n6.batch", "GlobalAveragePool `n4`", "runs on a batch of 24", "split"),
]
FREE = [
    ("stm32n6.static-shapes", "input `input`", "has the shape (batch, 8, 3, 36, 36, 3)",
     "freeze batch"),
]  # fmt: skip


@pytest.mark.parametrize(("batch", "free"), [("batch", FREE), ("1", [])])
def test_the_rppg_graph_breaks_the_rules_of_rank_and_batch_and_shape_and_no_other(batch, free):
    model = with_constants(
        PATCHES.format(batch=batch),
        to_patches=np.array([-1, 3, 36, 36]),
        to_row=np.array([-1, 24]),
        w=np.ones((1, 3, 3, 3), np.float32),
    )
    results = check(model, N6, phase="any", file_name="fp32.onnx")
    found = [(r.rule, r.where, r.what, r.rewrite) for r in results]
    assert found == [*free, *BATCH_24, *RANK_6]


@pytest.mark.slow
def test_the_network_itself_breaks_them_as_torch_exports_it():
    from models.rppg.network import UltraLightRPPG
    from onnxq.export.clean import clean
    from onnxq.export.from_torch import export_network

    window = {"input": np.zeros((1, 8, 3, 36, 36, 3), np.float32)}
    raw = export_network(UltraLightRPPG(), window, ["output"], opset=17, batch="free")
    found = _found(clean(raw, 17)[0])
    assert [entry for entry in found if entry[0] == "static-shapes"] == [
        ("static-shapes", "input", "freeze batch")
    ]
    assert [entry[2] for entry in found if entry[0] == "batch"] == ["split"] * 6
    rank = [entry for entry in found if entry[0] == "rank"]
    assert [entry[1:] for entry in rank] == [("input", "split"), ("transpose_1", "split")]
    assert {entry[0] for entry in found} == {"static-shapes", "batch", "rank"}


def _found(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    return [
        (result.rule.removeprefix("stm32n6."), result.tensor, result.rewrite)
        for result in check(model, N6, phase="any")
    ]


# --- a rewrite that is named mends ----------------------------------------------------------------

N6_REWRITES = {
    "einsum to matmul": 'y = Einsum<equation="bij,bjk->bik">(x, x)',
    "drop allowzero": "a = Reshape<allowzero=1>(x, rows) y = Relu(a)",
    "simplify": "a = Shape(x) y = Reshape(x, a)",
}


@pytest.mark.parametrize("rewrite", N6_REWRITES)
def test_the_cleaning_step_that_is_named_removes_the_finding(rewrite):
    model = with_constants(
        f'<ir_version: 9, opset_import: ["" : 17]>\n'
        f"g (float[1,4,4] x) => (float[1,4,4] y) {{{N6_REWRITES[rewrite]}}}",
        **({"rows": np.array([1, 4, 4])} if "rows" in N6_REWRITES[rewrite] else {}),
    )
    (rule,) = {r.rule for r in check(model, N6, phase="any") if r.rewrite == rewrite}
    cleaned, _ = clean(model, 17, N6.rewrites)
    assert rule not in {r.rule for r in check(cleaned, N6, phase="any")}


@pytest.mark.parametrize(
    ("kind", "target", "rule"),
    [
        (QuantType.QUInt8, "stm32n6", "activation-type"),
        (QuantType.QInt8, "ort-x86", "signed-activation"),
    ],
)
def test_convert_where_it_is_named_removes_the_finding(tmp_path, kind, target, rule):
    path, profile = quantized_net(tmp_path, kind), load_target(target)
    named = {r.rule: r.rewrite for r in check(onnx.load(path), profile)}
    assert named[f"{target}.{rule}"] == "convert"
    convert_file(path, profile, None, tmp_path / "converted.onnx")
    after = {r.rule for r in check(onnx.load(tmp_path / "converted.onnx"), profile)}
    assert f"{target}.{rule}" not in after


@pytest.mark.parametrize("target", ["stm32n6", "ort-x86", "ort-arm64"])
def test_16_bits_break_one_rule_and_name_no_conversion_as_it_would_be_refused(tmp_path, target):
    path, profile = quantized_net(tmp_path, QuantType.QUInt16), load_target(target)
    found = [r for r in check(onnx.load(path), profile) if "activation" in r.rule]
    assert {r.rule for r in found} == {f"{target}.activation-type"}
    assert {r.rewrite for r in found} == {""}
    with pytest.raises(ModelError):
        convert_file(path, profile, None, tmp_path / "converted.onnx")


def test_nothing_is_named_where_nothing_mends():
    sums = graph("y = ReduceSum<keepdims=0>(x)")
    assert {r.rewrite for r in check(sums, N6, phase="any") if "ReduceSum" in r.where} == {""}
    rules = {rule.id: rule for name in target_names() for rule in load_target(name).rules}
    for name in ("stm32n6.subgraph", "stm32n6.weight-axis", "ort-x86.weight-axis"):
        assert rules[name].rewrite == ""
