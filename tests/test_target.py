import pytest

from onnxq.errors import UsageError
from onnxq.qtypes import IntType
from onnxq.target import load_target, target_names

ALL = ("ort-arm64", "ort-x86", "stm32n6")


def test_the_targets_that_ship_are_these():
    assert target_names() == ALL


def test_an_unknown_target_is_named_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean `stm32n6`"):
        load_target("stm32n7")


@pytest.mark.parametrize("name", ALL)
def test_an_operator_stands_in_one_list_only(name):
    target = load_target(name)
    operators = [*target.integer_ops, *target.data_ops, *target.folded_ops]
    assert len(operators) == len(set(operators))


@pytest.mark.parametrize("name", ALL)
def test_every_rule_has_its_own_id_and_says_where_it_comes_from(name):
    target = load_target(name)
    ids = [rule.id for rule in target.rules]
    assert len(ids) == len(set(ids))
    assert all(id_.startswith(f"{name}.") for id_ in ids)
    assert all(rule.says and rule.do and rule.source for rule in target.rules)


@pytest.mark.parametrize(
    ("name", "activation", "judged_as", "batch"),
    [
        ("stm32n6", IntType.INT8, "graph", "one"),
        ("ort-x86", IntType.UINT8, "runtime", "free"),
        ("ort-arm64", IntType.UINT8, "runtime", "free"),
    ],
)
def test_the_target_decides_types_and_semantics(name, activation, judged_as, batch):
    target = load_target(name)
    assert (target.activation_type, target.weight_type) == (activation, IntType.INT8)
    assert (target.judged_as, target.batch, target.per_channel) == (judged_as, batch, True)


@pytest.mark.parametrize("name", ALL)
def test_no_target_that_ships_wants_symmetric_activations_or_powers_of_two(name):
    target = load_target(name)
    assert (target.activation_symmetric, target.power_of_two) == (False, False)
