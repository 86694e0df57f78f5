"""Whether labels are what the network can answer at all: a unit or a line mixed up shows here."""

from collections.abc import Sequence

import numpy as np

from onnxq.artifacts import ValueFacts
from onnxq.errors import DataError
from onnxq.samples import Samples

__all__ = ["refuse_unreachable_labels"]


def refuse_unreachable_labels(samples: Samples, outputs: Sequence[ValueFacts]) -> None:
    """Raise DataError if labels leave the declared domain of the output that they are about.

    That is known where the graph has one output, of one number a sample, and labels are numbers
    with a fraction: classes and tasks of several outputs are left alone.
    """
    labels = samples.labels
    if labels is None or labels.dtype.kind != "f" or len(outputs) != 1:
        return
    (output,) = outputs
    if output.domain is None or any(size != 1 for size in output.shape[1:]):
        return
    low, high = output.domain
    outside = (labels < low) | (labels > high)
    if outside.any():
        first = int(np.flatnonzero(outside)[0])
        raise DataError(
            f"labels run from {np.nanmin(labels):g} to {np.nanmax(labels):g}; {outside.mean():.1%} "
            f"({outside.sum()} of {len(labels)}) leave {list(output.domain)}, the declared domain "
            f"of `{output.name}`; the first is {labels[first]:g}",
            where=f"{samples.name}, sample {samples.number(first)}",
            do="mend the labels or their unit, or declare the true domain under `export: outputs:`",
        )
