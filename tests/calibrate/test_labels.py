import numpy as np
import pytest

from onnxq.artifacts import ValueFacts
from onnxq.calibrate.labels import refuse_unreachable_labels
from onnxq.errors import DataError
from onnxq.samples import Samples


def output(*shape: int, domain: tuple[float, float] | None = (30, 180)) -> ValueFacts:
    return ValueFacts(name="bpm", dtype="float32", shape=shape, domain=domain)


def labelled(*labels: float, dtype: type = np.float32) -> Samples:
    return Samples("s", {"x": np.zeros((len(labels), 2))}, labels=np.array(labels, dtype))


def test_labels_that_no_output_can_reach_are_told_with_their_share_and_the_first():
    with pytest.raises(DataError, match=r"from -2\.79 to 127; 50\.0% \(2 of 4\)") as caught:
        refuse_unreachable_labels(labelled(70, -2.79, 127, 12), [output(1, 1)])
    assert "`bpm`" in caught.value.what
    assert "sample 1" in caught.value.where


@pytest.mark.parametrize(
    ("samples", "outputs"),
    [
        (labelled(30, 180, 75), [output(1, 1)]),  # the ends belong to the domain
        (labelled(0, 200, dtype=np.int64), [output(1, 1)]),  # classes
        (labelled(0, 200), [output(1, 1, domain=None)]),
        (labelled(0, 200), [output(1, 10)]),  # scores of classes
        (labelled(0, 200), [output(1, 1), output(1, 1)]),
        (Samples("s", {"x": np.zeros((3, 2))}), [output(1, 1)]),
    ],
)
def test_labels_of_which_nothing_is_known_are_let_be(samples, outputs):
    refuse_unreachable_labels(samples, outputs)


def test_one_that_is_not_a_number_does_not_hide_another_that_is_out_of_reach():
    with pytest.raises(DataError, match=r"\(1 of 2\)"):
        refuse_unreachable_labels(labelled(np.nan, 500), [output(1, 1)])
