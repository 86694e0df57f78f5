from collections import Counter

import pytest

from onnxq.quantize.torch_graph import NEWEST_OPSET, OLDEST_OPSET, supported_operators

from .torch_graph_cases import NEWER, OTHER_TYPES, TRAINING, all_cases, differences, run_cases

pytestmark = pytest.mark.slow

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


def test_the_cases_that_are_not_run_are_of_three_kinds():
    reasons = Counter(case.why_not() for case in all_cases())
    assert set(reasons) == {"", OTHER_TYPES, NEWER, TRAINING}
    trained = {case.name for case in all_cases() if case.why_not() == TRAINING}
    assert all("dropout" in name or "batchnorm" in name for name in trained)
    assert reasons[""] > 0.85 * reasons.total()


def test_every_supported_operator_is_judged_by_a_case():
    judged = {name for case in run_cases() for name in case.operators}
    print("supported:", ", ".join(supported_operators()))  # noqa: T201 (the table, with -s)
    assert set(supported_operators()) - judged == WITHOUT_CASE
    assert {case.opset for case in run_cases()} == {13, 14, 15, 16, 17, 18, 19, 20, NEWEST_OPSET}
