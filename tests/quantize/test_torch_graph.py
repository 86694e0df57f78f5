from collections import Counter

import pytest

from onnxq.quantize.torch_graph import NEWEST_OPSET, OLDEST_OPSET, supported_operators

from .torch_graph_cases import NEWER, OTHER_TYPES, TRAINING, all_cases, differences, run_cases

pytestmark = pytest.mark.slow

NOT_RUN = {
    OTHER_TYPES: {
        "Cast", "CastLike", "DequantizeLinear", "Equal", "Identity", "QuantizeLinear",
    },
    NEWER: {  # most for bfloat16; AveragePool and MaxPool for how ceil_mode counts their windows
        "AveragePool", "BitShift", "Celu", "Compress", "Dropout", "Einsum", "MaxPool", "Mod",
        "OneHot", "Range", "ReverseSequence", "SpaceToDepth",
    },
    TRAINING: {"BatchNormalization", "Dropout"},
}  # fmt: skip
WITHOUT_CASE = {"GlobalLpPool"}  # judged by ONNX Runtime in test_torch_graph_numbers.py


def test_every_backend_case_of_the_supported_operators_holds():
    wrong = [line for case in run_cases() for line in differences(case)]
    assert not wrong
    assert len(run_cases()) > 1150


def test_the_cases_hold_at_the_oldest_opset_that_takes_them_too():
    wrong = []
    for case in run_cases():
        older = (case.at(opset) for opset in range(OLDEST_OPSET, case.opset))
        oldest = next((c for c in older if c.is_valid()), None)
        wrong += list(differences(oldest)) if oldest else []
    assert not wrong


def test_the_cases_that_are_not_run_are_these():
    left_out = [(case, case.why_not()) for case in all_cases()]
    found = {
        reason: {
            case.model.graph.node[0].op_type
            for case, why in left_out
            if why == reason and len(case.model.graph.node) == 1
        }
        for reason in NOT_RUN
    }
    assert found == NOT_RUN
    assert Counter(why for _, why in left_out if why) == {OTHER_TYPES: 134, NEWER: 42, TRAINING: 8}


def test_every_supported_operator_is_judged_by_a_case():
    judged = {name for case in run_cases() for name in case.operators}
    print("supported:", ", ".join(supported_operators()))  # noqa: T201 (the table, with -s)
    assert set(supported_operators()) - judged == WITHOUT_CASE
    assert {case.opset for case in run_cases()} == {13, 14, 15, 16, 17, 18, 19, 20, NEWEST_OPSET}
