"""Records of the calibration, with its passport."""

from typing import Literal

from onnxq.artifacts.base import FileFacts, Finding, Provenance, Record
from onnxq.qtypes import Range

__all__ = [
    "DECLARED",
    "CalibrationResult",
    "CellCount",
    "CellCoverage",
    "Collection",
    "InputRow",
    "OutsideRow",
    "Passport",
    "SampleChoice",
    "StabilityRow",
    "Sufficiency",
    "TensorRange",
]

DECLARED = "declared domain"  # what a range is pinned by that a person has declared


class SampleChoice(Record):
    """Which samples were taken from a source, and how. ``overlap_waived`` is the reason for which
    they may be among those of evaluation.

    ``digests`` are the SHA-256 of each one's content. ``bins`` is how many were drawn from each
    label bin or class, timestep and group that is known: the kind (``label``, ``timestep``,
    ``group``), a space, and the cell's name. ``edges`` are those of the bins, by kind; a kind
    without edges has a cell for every value.
    """

    source: str
    plan: str
    seed: int
    asked: int
    indices: tuple[int, ...]
    digests: tuple[str, ...]
    groups: tuple[str, ...] = ()
    bins: dict[str, int] = {}
    edges: dict[str, tuple[float, ...]] = {}
    label_low: float | None = None
    label_high: float | None = None
    label_mean: float | None = None
    made_up: bool = False
    overlap_waived: str = ""
    notes: tuple[str, ...] = ()


class TensorRange(Record):
    """The range of one tensor. ``low``/``high`` are what it is quantized over; ``observed_*`` the
    exact extremes seen; ``pinned`` names the declaration that overrules observation. ``values`` is
    the number of elements, over all samples. ``zeros`` of them are zero and ``outside_fraction``
    lies outside the range; both are None where extremes alone were collected."""

    low: float
    high: float
    observed_low: float
    observed_high: float
    values: int
    zeros: int | None
    outside_fraction: float | None = None
    pinned: str | None = None

    @property
    def range(self) -> Range:
        """As a ``Range``."""
        return Range.including_zero(self.low, self.high)


class Collection(Record):
    """How statistics were collected.

    ``detail`` says whether there are histograms or extremes alone; ``optimization`` under which
    semantics of ONNX Runtime the graph ran, ``batch`` how many samples at a time. ``preprocessing``
    is what was done to raw data. Statistics of two collections may be merged if all this, the model
    and the tensors are the same.
    """

    detail: Literal["extremes", "histograms"]
    optimization: Literal["none", "full"]
    batch: int
    preprocessing: str
    file: FileFacts


class OutsideRow(Record):
    """Evaluation's values outside the range that calibration gave a tensor.

    ``runs`` is the exact share of runs with any such value. ``share`` is that of all values, and
    counts whole buckets of the histogram: what lies less than one bucket (2**-7 of its value)
    beyond the range may not be in it. ``excess`` is the exact largest distance beyond the range in
    the tensor's own unit, ``steps`` the same in steps of the grid. ``calibration_share`` is what
    the method left out of calibration's own values on purpose.
    """

    tensor: str
    is_output: bool
    runs: float
    share: float
    calibration_share: float | None
    excess: float
    steps: float


class CellCount(Record):
    """Samples in one label bin or class, timestep or group."""

    cell: str
    calibration: int
    evaluation: int | None


class CellCoverage(Record):
    """All cells of one kind; ``word`` is what a person calls one of them.

    ``missing`` are those that occur in evaluation and not in calibration; groups are among them
    only if some group is in both, as a split by groups is meant to keep all of them apart.
    ``beyond`` evaluation samples have a label, of those that are numbers in bins, below the lowest
    or above the highest of calibration.
    """

    kind: Literal["label", "timestep", "group"]
    word: str
    cells: tuple[CellCount, ...]
    missing: tuple[str, ...] = ()
    beyond: int = 0

    @property
    def is_covered(self) -> bool | None:
        """Whether calibration has all cells of evaluation; None if that is not known, or there are
        more of them than calibration has samples, so that it could not."""
        held = sum(1 for cell in self.cells if cell.evaluation)
        can_be = held <= sum(cell.calibration for cell in self.cells)
        return not self.missing if held and can_be else None


class StabilityRow(Record):
    """How far a tensor's range depends on which samples were drawn.

    ``spread`` is half of a 95 % interval of its width, over the width. ``quarter`` and ``half`` are
    its mean width from a quarter and from half of the samples, over the width from all of them;
    None where there are too few to divide.
    """

    tensor: str
    spread: float
    quarter: float | None
    half: float | None


class Sufficiency(Record):
    """How many samples suffice, by the worst tensors: the 95th percentile over ``tensors``.

    ``change`` is that of the widths when the samples were last doubled, ``change_before`` the one
    before. ``enough`` is the number, extrapolated at that rate, from which on doubling changes them
    by less than ``tolerance``: an estimate, and None where it cannot be said.
    """

    samples: int
    tensors: int
    spread: float
    spread_allowed: float
    tolerance: float
    change: float | None
    change_before: float | None
    enough: int | None


class InputRow(Record):
    """Mean and standard deviation of a graph input on both sides.

    ``shift`` is the difference of the means over the pooled standard deviation, ``ratio`` the
    evaluation's standard deviation over calibration's. ``differs`` where either is too large for
    two samples of the same data.
    """

    input: str
    calibration_mean: float
    calibration_std: float
    evaluation_mean: float
    evaluation_std: float
    shift: float
    ratio: float
    differs: bool


class Passport(Record):
    """What calibration is worth: measured on evaluation samples that it has not seen.

    ``evaluated`` is the number of evaluation samples that were run, 0 where there were none; the
    cells of ``coverage`` are counted over all. ``overlap_checked`` is by what it was made sure that
    no evaluation sample is among those of calibration.
    """

    evaluated: int
    overlap_checked: tuple[Literal["content", "group"], ...] = ()
    outside: tuple[OutsideRow, ...] = ()
    coverage: tuple[CellCoverage, ...] = ()
    stability: tuple[StabilityRow, ...] = ()
    sufficiency: Sufficiency | None = None
    inputs: tuple[InputRow, ...] = ()
    findings: tuple[Finding, ...] = ()

    @property
    def is_stable(self) -> bool | None:
        """Whether other samples would give much the same ranges; None if it cannot be said."""
        seen = self.sufficiency
        return None if seen is None else seen.spread <= seen.spread_allowed

    @property
    def is_covered(self) -> bool | None:
        """Whether calibration has every bin, class and timestep of evaluation; None if unknown."""
        known = [seen.is_covered for seen in self.coverage if seen.is_covered is not None]
        return all(known) if known else None

    @property
    def same_preprocessing(self) -> bool | None:
        """Whether inputs look alike on both sides; None if there is no evaluation."""
        return not any(row.differs for row in self.inputs) if self.inputs else None


class CalibrationResult(Record):
    """Ranges of the tensors that will carry Q/DQ on ``target``, from chosen samples; ``excluded``
    names nodes that were to stay float, with the reason."""

    model_sha256: str
    target: str
    excluded: dict[str, str] = {}
    method: str
    choice: SampleChoice
    collection: Collection
    ranges: dict[str, TensorRange]
    passport: Passport | None = None
    findings: tuple[Finding, ...] = ()
    provenance: Provenance
