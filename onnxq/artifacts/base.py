"""What all records share: files, provenance, values, findings."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = [
    "FileFacts",
    "Finding",
    "Interval",
    "Provenance",
    "Record",
    "ValueFacts",
    "Verdict",
    "WaivedKey",
]

Verdict = Literal["passed", "failed", "inconclusive", "unverified"]


class Record(BaseModel):
    """Base of all records."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class FileFacts(Record):
    """A file, by name and content."""

    name: str
    sha256: str
    size_bytes: int


class Provenance(Record):
    """What made a record: versions, machine, and the options in force."""

    onnxq: str
    packages: dict[str, str]
    machine: str
    cpu_flags: tuple[str, ...] = ()
    options: dict[str, object] = {}


class ValueFacts(Record):
    """A graph input or output. ``shape`` holds a name where a dimension is free; ``domain`` is the
    interval its values are declared to lie in, in its own unit."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    domain: tuple[float, float] | None = None


class Finding(Record):
    """Something a person should know, about one place."""

    where: str
    what: str
    do: str = ""


class Interval(Record):
    """A 95 % confidence interval; ``method`` says how, over ``count`` ``units`` of what."""

    low: float
    high: float
    method: str
    units: str
    count: int


class WaivedKey(Record):
    """A checkpoint key that did not fit and was allowed not to, by name."""

    key: str
    reason: str
