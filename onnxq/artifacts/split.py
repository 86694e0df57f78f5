"""Records of a graph that ships in parts."""

from typing import Annotated, Literal

from pydantic import Field

from onnxq.artifacts.base import FileFacts, Record, ValueFacts

__all__ = [
    "Carried",
    "HostStep",
    "LoopStep",
    "Manifest",
    "PartFacts",
    "RunStep",
    "Step",
]


class HostStep(Record):
    """Values moved by the host between two parts; nothing is computed.

    ``op`` and ``arguments`` mean what the ONNX operator of that name means, with every shape, axis
    and index written out: ``shape`` of Reshape, ``perm`` of Transpose, ``starts`` ``ends`` ``axes``
    ``steps`` of Slice, ``axis`` of Concat, ``axis`` and ``indices`` of Gather.
    """

    kind: Literal["host"] = "host"
    op: Literal["Reshape", "Transpose", "Slice", "Concat", "Gather"]
    inputs: tuple[str, ...]
    output: str
    arguments: dict[str, tuple[int, ...]]


class RunStep(Record):
    """Runs of one part: ``times`` is 1, or the rows of its inputs' first axis, fed one by one in
    their order and their outputs joined along the same axis.

    ``inputs`` and ``outputs`` give, for each of the part's own names, the value it stands for.
    """

    kind: Literal["run"] = "run"
    part: str
    inputs: dict[str, str]
    outputs: dict[str, str]
    times: int
    each_row: bool


class Carried(Record):
    """What a body takes from its own run before: ``first`` is the value that the first run takes,
    ``then`` the body's output that every further run takes."""

    first: str
    then: str


class LoopStep(Record):
    """``times`` runs of the body of a Loop or Scan, each on what the one before gave.

    All keys are names of the body's own. ``inputs`` are the same in every run; ``carried`` come
    from the run before; of ``rows``, run i takes row i of the first axis; ``counters`` are [i] as
    int64. Of ``outputs`` the last run's count; ``stacked`` are those of all runs, put
    together along a new first axis.
    """

    kind: Literal["loop"] = "loop"
    part: str
    times: int
    inputs: dict[str, str] = {}
    carried: dict[str, Carried] = {}
    rows: dict[str, str] = {}
    counters: tuple[str, ...] = ()
    outputs: dict[str, str] = {}
    stacked: dict[str, str] = {}


Step = Annotated[HostStep | RunStep | LoopStep, Field(discriminator="kind")]


class PartFacts(Record):
    """A part: its file and what goes in and comes out of one run."""

    name: str
    file: FileFacts
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]


class Manifest(Record):
    """How the parts of a graph are run, in order, for one sample.

    ``whole_sha256`` is the graph that was cut.
    """

    whole_sha256: str
    inputs: tuple[ValueFacts, ...]
    outputs: tuple[ValueFacts, ...]
    parts: tuple[PartFacts, ...]
    steps: tuple[Step, ...]
