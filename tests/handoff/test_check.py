import pytest

from handoff.test_rules import N6, RELU, between, data, ended, graph
from onnxq.errors import RecipeError, TargetRuleError, UsageError
from onnxq.handoff.check import check, refuse_broken_rules
from onnxq.recipe import Waiver
from onnxq.target import load_target

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
