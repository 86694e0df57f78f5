from itertools import pairwise

import pytest
import yaml

from onnxq.errors import UsageError
from onnxq.qtypes import IntType
from onnxq.target import load_target, target_names

BASES = ("ort-arm64", "ort-x86", "stm32n6")
VARIANTS = ("ort-arm64-a72", "ort-arm64-a76", "ort-x86-avx2", "ort-x86-vnni")
ALL = tuple(sorted((*BASES, *VARIANTS)))
# Plain fields that claim something: each needs a fact that says how one knows.
CLAIMS = {
    "activation_type",
    "weight_type",
    "weight_types",
    "wide_activations",
    "per_channel",
    "batch",
    "dynamic_shapes",
    "input_rank",
    "value_rank",
    "largest_dimension",
    "opset",
    "ir_version",
    "judged_as",
    "alignment_bytes",
    "on_chip_bytes",
}


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
def test_every_operator_that_can_be_integer_has_its_place_in_the_table_once(name):
    target = load_target(name)
    named = [entry.op for entry in target.operators]
    assert len(named) == len(set(named))
    assert {*target.integer_ops, *target.data_ops, *target.folded_ops} <= set(named)


@pytest.mark.parametrize("name", ALL)
def test_every_rule_has_its_own_id_and_says_where_it_comes_from(name):
    target = load_target(name)
    ids = [rule.id for rule in target.rules]
    assert len(ids) == len(set(ids))
    assert all(id_.startswith((f"{name}.", f"{target.extends}.")) for id_ in ids)
    assert all(rule.says and rule.do and rule.source for rule in target.rules)


@pytest.mark.parametrize("name", ALL)
def test_every_fact_has_its_source(name):
    target = load_target(name)
    used = {
        field
        for field in CLAIMS
        if getattr(target, field) != type(target).model_fields[field].default
    }
    always = {"judged_as", "batch", "dynamic_shapes", "weight_types", "wide_activations"}
    assert used | always == set(target.facts)
    sourced = [*target.facts.values(), *target.operators, *target.memory, *target.versions]
    assert target.io is not None
    works = tuple(target.sources.values())
    assert all(entry.source.startswith(works) for entry in (*sourced, *target.rules, target.io))


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


def test_a_limit_stands_once():
    target = load_target("stm32n6")
    limits = {rule.check: rule.limit for rule in target.rules}
    assert limits["rank_at_most"] == target.value_rank == target.input_rank == 4
    assert limits["dimension_at_most"] == target.largest_dimension == 65_535


def test_the_pools_that_a_network_can_use_on_chip_are_those_that_are_said():
    target = load_target("stm32n6")
    on_chip = [pool.size_bytes for pool in target.memory if pool.use == "activations"]
    assert target.on_chip_bytes is not None
    assert 0 <= sum(on_chip) - target.on_chip_bytes < target.alignment_bytes * len(on_chip)
    starts = sorted((pool.address, pool.size_bytes) for pool in target.memory)
    for (start, size), (following, _) in pairwise(starts):
        assert start + size <= following


# --- variants -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "base", "dot_product", "saturates"),
    [
        ("ort-arm64-a72", "ort-arm64", False, False),
        ("ort-arm64-a76", "ort-arm64", True, False),
        ("ort-x86-avx2", "ort-x86", False, True),
        ("ort-x86-vnni", "ort-x86", True, False),
    ],
)
def test_a_variant_is_its_base_but_for_the_processor(name, base, dot_product, saturates):
    target, plain = load_target(name), load_target(base)
    assert target.extends == base
    assert target.processor is not None
    assert (target.processor.dot_product, target.processor.saturates) == (dot_product, saturates)
    assert [rule.id for rule in target.rules] == [rule.id for rule in plain.rules]
    assert target.operators == plain.operators
    assert target.activation_type == plain.activation_type


def test_without_vnni_the_cure_is_on_and_what_it_does_not_load_is_an_error():
    target = load_target("ort-x86-avx2")
    assert target.session_options == {"session.x64quantprecision": "1"}
    assert load_target("ort-x86").session_options == {}
    severities = {rule.id: rule.severity for rule in target.rules}
    assert severities["ort-x86.shared-weight"] == "error"


def test_a_version_of_the_tool_is_asked_for_by_name():
    now, then = load_target("stm32n6"), load_target("stm32n6@2.2")
    assert (now.tool_version, then.tool_version) == ("ST Edge AI Core 4.0.1", "ST Edge AI Core 2.2")
    places = [target.operator("Sqrt").runs for target in (now, then)]
    assert places == ["hardware", "software float"]
    assert then.rules[0] == now.rules[0]


def test_a_version_that_nobody_knows_is_named_with_those_that_are_known():
    with pytest.raises(UsageError, match=r"knows no version 9\.9; .*`3\.0`"):
        load_target("stm32n6@9.9")


# --- a target of one's own ----------------------------------------------------------------------

OWN = """
extends: stm32n6
title: A chip of our own
weight_type: int8
value_rank: 5
operators:
  - {op: Softmax, runs: hardware, source: board, evidence: measured}
sources: {board: our own board}
rules:
  - {id: stm32n6.software-op, severity: error}
  - id: mine.no-tanh
    check: forbidden_ops
    values: [Tanh]
    says: Tanh hangs the board.
    do: Use HardSwish.
    source: board
    evidence: measured
"""


def own(folder, text=OWN, name="own.yaml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_new_target_is_one_file(tmp_path):
    path = own(tmp_path)
    target, base = load_target(path), load_target("stm32n6")
    assert load_target(target.name) == target
    assert (target.slug, base.slug) == ("own", "stm32n6")
    assert target.title == "A chip of our own"
    assert target.operator("Softmax").runs == "hardware"
    assert target.operator("Conv") == base.operator("Conv")
    rules = {rule.id: rule for rule in target.rules}
    assert rules["stm32n6.rank"].limit == 5
    assert rules["stm32n6.software-op"].severity == "error"
    assert rules["mine.no-tanh"].source == "our own board"
    assert len(target.rules) == len(base.rules) + 1
    assert target_names() == ALL


def test_a_target_file_may_extend_one_beside_it_and_is_read_anew(tmp_path):
    own(tmp_path)
    path = own(tmp_path, "extends: own.yaml\ntitle: second\n", "second.yaml")
    assert load_target(path).value_rank == 5
    own(tmp_path, OWN.replace("value_rank: 5", "value_rank: 6"))
    assert load_target(path).value_rank == 6


def test_a_whole_target_needs_no_base(tmp_path):
    whole = load_target("ort-x86").model_dump(mode="json", exclude={"name", "extends"})
    for key in ("rules", "operators", "facts", "io", "processor", "sources", "prices"):
        del whole[key]
    target = load_target(own(tmp_path, yaml.safe_dump(whole)))
    assert target.rules == ()
    assert target.activation_type is IntType.UINT8


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- a list\n", "holds no keys"),
        ("a: [", "cannot be read"),
        ("extends: stm32n7\n", "did you mean `stm32n6`"),
        ("extends: own.yaml\n", "extends itself"),
        ("title: nothing else\n", "faulty"),
        ("extends: stm32n6\nvalue_rnak: 4\n", "value_rnak"),
        ("extends: stm32n6\nrules: 4\n", "faulty"),
        ("extends: stm32n6\nrules: [4]\n", "faulty"),
        ("extends: stm32n6\nversions: [{says: a}]\n", "faulty"),
        ("extends: stm32n6\nvalue_rank: four\n", "no number `value_rank`"),
        (
            "extends: stm32n6\nfacts: {batch: {says: a, source: pgae, evidence: measured}}\n",
            "did you mean `page`",
        ),
    ],
)
def test_a_faulty_target_file_is_named_with_its_fault(tmp_path, text, says):
    with pytest.raises(UsageError) as caught:
        load_target(own(tmp_path, text))
    assert says in str(caught.value)
    assert "own.yaml" in str(caught.value) or "target" in str(caught.value)


def test_a_target_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"gone\.yaml"):
        load_target(str(tmp_path / "gone.yaml"))


def test_a_faulty_file_of_ones_own_is_told_by_key_and_without_a_link(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: ort-x86\nactivation_typ: int8\n")
    with pytest.raises(UsageError, match=r"unknown key `activation_typ`.*activation_type") as told:
        load_target(str(path))
    assert "pydantic.dev" not in str(told.value)


def test_what_extends_a_target_that_there_is_not_is_named(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: stm32n7\n")
    with pytest.raises(UsageError, match="stm32n6") as told:
        load_target(str(path))
    assert "mine.yaml" in str(told.value)
