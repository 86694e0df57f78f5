"""What passes between the readers: what is asked for, and what a file holds."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from jaxtyping import Shaped
from pydantic import BaseModel, ConfigDict, ValidationError

from onnxq.artifacts import ValueFacts
from onnxq.errors import DataError, nearest
from onnxq.progress import Progress, silent
from onnxq.samples import Column

__all__ = ["ONLY", "Content", "Options", "Request", "parsed"]

ONLY = ""  # the name of an array that has none: the one input's
_Options = TypeVar("_Options", bound="Options")


class Options(BaseModel):
    """Base of the options of a kind of data: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Request:
    """What the samples are for: the graph's inputs, as far as they are known.

    ``facts`` may be empty; where they are known, types can be converted and a batch axis told from
    a sample. No more than ``limit`` samples are wanted.
    """

    input_names: tuple[str, ...]
    facts: Mapping[str, ValueFacts] = field(default_factory=dict)
    limit: int | None = None
    progress: Progress = silent

    def rank(self, name: str) -> int | None:
        """Number of the input's axes, the batch among them; None if it is not known."""
        return len(self.facts[name].shape) if name in self.facts else None

    def dtype(self, name: str) -> np.dtype | None:
        """The input's type; None if it is not known or none of NumPy's."""
        try:
            return np.dtype(self.facts[name].dtype) if name in self.facts else None
        except TypeError:  # bfloat16, int4: the samples' type will be compared by name
            return None


@dataclass(frozen=True)
class Content:
    """The arrays of a file by name, samples first; none of them is read yet."""

    columns: Mapping[str, Column | Shaped[np.ndarray, "..."]]
    notes: tuple[str, ...] = ()


def parsed(kind: type[_Options], options: Mapping[str, object], where: str) -> _Options:
    """The options as that kind's. Raises DataError, with the nearest key for an unknown one."""
    try:
        return kind.model_validate(dict(options))
    except ValidationError as fault:
        what = "; ".join(_faults(fault, kind.model_fields))
        raise DataError(what, where=where, do="mend `options` of the data source") from fault


def _faults(fault: ValidationError, known: Iterable[str]) -> Iterable[str]:
    for error in fault.errors():
        key = ".".join(map(str, error["loc"]))
        message = error["msg"].removeprefix("Value error, ")
        if error["type"] == "extra_forbidden":
            yield f"unknown option `{key}`; {nearest(key, known)}"
        elif not key:  # options that do not go together
            yield message
        else:
            yield f"option `{key}`: {message} (found {error['input']!r:.60})"
