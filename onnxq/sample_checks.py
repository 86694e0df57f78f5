"""Whether samples can be used with a graph; and random numbers for where none are to be had."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from onnxq.artifacts import ValueFacts
from onnxq.errors import DataError, nearest
from onnxq.samples import Samples

__all__ = ["check_samples", "made_up_samples", "runs_of"]

Array = Shaped[np.ndarray, "..."]


def check_samples(samples: Samples, inputs: Sequence[ValueFacts], *, batch: int = 1) -> None:
    """Raise DataError, naming sample and tensor, unless every sample fits the graph's inputs.

    Checked: names, shape and dtype (once), and for every sample that all values are finite and lie
    in the declared domain. ``batch`` is the number of samples that a run of the graph is given: a
    model with another fixed batch is refused. Samples never have a batch axis themselves.
    """
    known = {value.name: value for value in inputs}
    if len(samples) == 0:
        raise DataError(
            "holds no sample",
            where=samples.name,
            do=f"give at least one, with an array for each of: {', '.join(known)}",
        )
    for name in samples.inputs:
        if name not in known:
            raise DataError(
                f"`{name}` is no input; {nearest(name, known)}",
                where=samples.name,
                do=f"give exactly what the model takes: {', '.join(known)}",
            )
    for name, value in known.items():
        _check_form(samples, name, value, batch)
    for index, row in enumerate(samples.rows()):
        for name, array in row.items():
            where = f"{samples.name}, sample {samples.number(index)}, input `{name}`"
            _check_values(array, known[name], where)


def _check_form(samples: Samples, name: str, value: ValueFacts, batch: int) -> None:
    column = samples.inputs.get(name)
    if column is None:
        raise DataError(
            f"the model's input `{name}` is missing",
            where=samples.name,
            do=f"give {value.dtype} of shape {_sample_shape(value)} a sample under that name; "
            f"there are: {', '.join(samples.inputs)}",
        )
    where = f"{samples.name}, input `{name}`"
    if not value.shape:
        raise DataError(
            "the model takes a single number there, without a batch axis",
            where=where,
            do="export the model with this input of shape (batch,)",
        )
    if isinstance(value.shape[0], int) and value.shape[0] != batch:
        at_a_time = "one at a time" if batch == 1 else f"{batch} at a time"
        raise DataError(
            f"the model's batch is fixed at {value.shape[0]}, and samples are run {at_a_time}",
            where=where,
            do=f"export the model with a free batch, or with a batch of {batch}",
        )
    wanted, found = value.shape[1:], column.shape[1:]
    fits = len(wanted) == len(found) and all(
        isinstance(want, str) or want == got for want, got in zip(wanted, found, strict=True)
    )
    if not fits:
        raise DataError(
            f"a sample has shape {list(found)}, the model takes {list(wanted)}",
            where=where,
            do="samples come first in the array, without the model's batch axis",
        )
    if str(column.dtype) != value.dtype:
        raise DataError(
            f"is {column.dtype}, the model takes {value.dtype}",
            where=where,
            do="convert the data, or give a file the option `cast: true`; "
            "nothing is cast on the quiet",
        )


def _sample_shape(value: ValueFacts) -> str:
    return f"({', '.join(map(str, value.shape[1:]))})"


def _check_values(array: Array, value: ValueFacts, where: str) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        return
    finite = np.isfinite(array)
    if not finite.all():
        bad = np.argwhere(~finite)[0]
        raise DataError(
            f"holds {array[tuple(bad)]} at {bad[1:].tolist()} ({(~finite).sum()} not finite)",
            where=where,
            do="remove the sample or mend the preprocessing",
        )
    if value.domain is None:
        return
    low, high = float(array.min()), float(array.max())
    if low < value.domain[0] or high > value.domain[1]:
        raise DataError(
            f"values from {low:g} to {high:g} leave the declared domain {list(value.domain)}",
            where=where,
            do="mend the preprocessing, or declare the true domain under `export: inputs:`",
        )


def made_up_samples(inputs: Sequence[ValueFacts], count: int, seed: int) -> Samples:
    """Uniform random numbers in each input's domain ([0, 1] where none is declared).

    Good for smoke tests only: whatever is calibrated on them is stamped and never verified.
    """
    random = np.random.default_rng(seed)
    columns: Mapping[str, Array] = {
        value.name: random.uniform(
            *(value.domain or (0.0, 1.0)),
            (count, *(dim if isinstance(dim, int) else 1 for dim in value.shape[1:])),
        ).astype(value.dtype)
        for value in inputs
    }
    return Samples(name="random numbers", inputs=columns, made_up=True)


def runs_of(samples: Samples, inputs: Sequence[ValueFacts]) -> list[dict[str, Array]]:
    """What goes into a model run by run: one sample each, or as many as a fixed batch asks for.

    Samples that do not fill a last batch are left out. Raises DataError as ``check_samples`` does,
    and if there are too few for one run.
    """
    fixed = {value.shape[0] for value in inputs if value.shape and isinstance(value.shape[0], int)}
    size = max(fixed, default=1)
    check_samples(samples, inputs, batch=size)
    starts = range(0, max(len(samples) - size, 0) + 1, size)
    return [samples.batch(start, size) for start in starts]
