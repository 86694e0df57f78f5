"""The recipe: what a person writes, checked word by word."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le
from pydantic import (
    PrivateAttr,
    StringConstraints,
    model_validator,
)

from onnxq.errors import RecipeError
from onnxq.plugins import is_reference
from onnxq.recipe_base import Section, Waiver
from onnxq.recipe_quantize import (
    EFFORTS,
    AdaRoundSection,
    DistillSection,
    Effort,
    Elementwise,
    FinetuneSection,
    FloatStepName,
    NodePrecision,
    QuantizeSection,
    RangesSection,
    Step,
)

__all__ = [
    "EFFORTS",
    "METHOD_OPTIONS",
    "NEEDS_HISTOGRAM",
    "OVERLAP",
    "AdaRoundSection",
    "CalibrateSection",
    "DataSection",
    "DataSource",
    "DistillSection",
    "Effort",
    "Elementwise",
    "ExportSection",
    "FinetuneSection",
    "FloatStepName",
    "Gate",
    "HandoffSection",
    "Method",
    "NodePrecision",
    "PartSection",
    "PartValue",
    "QuantizeSection",
    "RangesSection",
    "Recipe",
    "SplitSection",
    "Step",
    "Stratify",
    "Tolerance",
    "ValueSection",
    "VerifySection",
    "Waiver",
    "Written",
]


class ValueSection(Section):
    """A graph input or output: its name, its shape with the batch first, its values' domain."""

    name: str
    shape: tuple[int, ...] | None = None
    domain: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _domain_is_an_interval(self) -> "ValueSection":
        if self.domain and not self.domain[0] < self.domain[1]:
            raise ValueError(f"domain {list(self.domain)} is no interval [low, high]")
        return self


class Tolerance(Section):
    """Largest difference allowed at each hop of the export: absolute, or relative to the largest
    magnitude of the reference; a hop passes if it keeps either."""

    absolute: Annotated[float, Gt(0)] = 1e-4
    relative: Annotated[float, Gt(0)] = 1e-5


class ExportSection(Section):
    """Where the FP32 graph comes from: a torch network and its checkpoint, or an ``.onnx`` file.

    ``rewrites`` are wanted beside those that every target and the recipe's own one get;
    ``split_concats`` names Concats of the canonical graph whose branches are multiplied apart by
    the layer behind, each with a scale of its own.
    """

    network: str | None = None
    arguments: dict[str, Any] = {}
    checkpoint: Path | None = None
    weights_key: str | None = None
    waive_keys: tuple[Waiver, ...] = ()
    model: Path | None = None
    opset: Annotated[int, Ge(13), Le(23)] = 17
    inputs: tuple[ValueSection, ...] = ()
    outputs: tuple[ValueSection, ...] = ()
    rewrites: tuple[str, ...] = ()
    split_concats: tuple[str, ...] = ()
    tolerance: Tolerance = Tolerance()

    @model_validator(mode="after")
    def _one_source(self) -> "ExportSection":
        if (self.network is None) == (self.model is None):
            raise ValueError("give either `network` with `checkpoint`, or `model` (an .onnx file)")
        if self.network is not None and self.checkpoint is None:
            raise ValueError("`network` needs a `checkpoint`: untrained weights are never exported")
        if self.network is not None and not all(value.shape for value in self.inputs):
            raise ValueError("every input of a `network` needs a `shape`")
        if self.network is not None and not (self.inputs and self.outputs):
            raise ValueError("a `network` needs its `inputs` and `outputs` named")
        return self


class PartValue(Section):
    """What goes into or comes out of a part: a tensor of the canonical graph, what the part calls
    it (the tensor's own name unless given), and its shape in one run, if that is to be another."""

    tensor: str
    name: str | None = None
    shape: tuple[Annotated[int, Ge(1)], ...] | None = None

    @property
    def label(self) -> str:
        """The part's own name for it."""
        return self.name or self.tensor


class PartSection(Section):
    """A part of the graph. With ``each_row`` it runs once for every row of its inputs' first axis,
    with a batch of 1."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    inputs: tuple[PartValue, ...]
    outputs: tuple[PartValue, ...]
    each_row: bool = False

    @model_validator(mode="after")
    def _has_ends(self) -> "PartSection":
        if not (self.inputs and self.outputs):
            raise ValueError("a part needs `inputs` and `outputs`")
        labels = [value.label for value in (*self.inputs, *self.outputs)]
        if len(set(labels)) < len(labels):
            raise ValueError("two inputs or outputs of the part have the same name")
        return self


class SplitSection(Section):
    """The graph cut into parts that run one after the other, for ``targets`` (all, if none is
    named). What lies between parts only moves values; the host does it."""

    targets: tuple[str, ...] = ()
    parts: tuple[PartSection, ...]

    @model_validator(mode="after")
    def _has_parts(self) -> "SplitSection":
        names = [part.name for part in self.parts]
        if not names:
            raise ValueError("`parts` is empty")
        if len(set(names)) < len(names):
            raise ValueError("two parts have the same name")
        return self


class DataSource(Section):
    """Samples: a file or folder with the options of its kind, or ``module:function`` with its
    keyword arguments.

    ``paths`` are those arguments that are paths; like the file, they are relative to the recipe.
    """

    source: str
    options: dict[str, Any] = {}
    paths: dict[str, Path] = {}

    @model_validator(mode="after")
    def _paths_of_a_function(self) -> "DataSource":
        if self.paths and not is_reference(self.source):
            raise ValueError("`paths` are arguments of a function; a file or folder has none")
        return self


class DataSection(Section):
    """The samples that ranges are calibrated on, and those that the result is judged on; and those
    that the step ``finetune`` trains on, if not those of the calibration."""

    calibration: DataSource
    evaluation: DataSource
    training: DataSource | None = None


class Stratify(Section):
    """Draw evenly over bins of the label (``label_edges``, rising numbers) or its classes
    (``by_label``), over timesteps, over groups, or over several of these, each within the one
    before. Of more than ``timestep_bins`` timesteps, as many bins of equal width are made."""

    label_edges: tuple[float, ...] = ()
    by_label: bool = False
    by_timestep: bool = False
    timestep_bins: Annotated[int, Ge(2)] = 50
    by_group: bool = False

    @model_validator(mode="after")
    def _edges_rise(self) -> "Stratify":
        if any(low >= high for low, high in pairwise(self.label_edges)):
            raise ValueError(f"label_edges {list(self.label_edges)} must rise")
        if self.label_edges and self.by_label:
            raise ValueError("give either `label_edges` (of numbers) or `by_label` (of classes)")
        return self

    @property
    def is_asked_for(self) -> bool:
        """Whether anything is to be drawn evenly."""
        return bool(self.label_edges or self.by_label or self.by_timestep or self.by_group)


Method = Literal["minmax", "ema", "percentile", "mse", "entropy", "meanstd"]
OVERLAP = "overlap"  # the check that no sample or group is in calibration and evaluation
METHOD_OPTIONS = frozenset({"method", "coverage", "momentum", "power", "sigmas"})
NEEDS_HISTOGRAM: frozenset[Method] = frozenset({"percentile", "mse", "entropy", "meanstd"})
_READ_BY = {"coverage": "percentile", "momentum": "ema", "power": "mse", "sigmas": "meanstd"}


class CalibrateSection(Section):
    """How samples are chosen, what is collected, and how statistics become ranges.

    ``coverage`` is read by the method percentile, ``momentum`` by ema, ``power`` by mse, ``sigmas``
    by meanstd. ``collect`` is what the method needs unless given: extremes alone for minmax and
    ema, histograms for the others; with histograms the method may be changed later without running
    the model again. ``optimization: none`` computes what the graph says, operator by operator, as
    onnxruntime's own calibrators do; ``full`` is how ONNX Runtime executes it, and quicker.
    ``per_channel`` collects extremes by channel of what goes into a weight, to see where one scale
    serves most channels badly.
    ``plan: random`` draws samples, evenly over what ``stratify`` names; ``plan: first`` takes the
    first as they lie, with a warning. ``waive`` lets samples overlap those of evaluation (the check
    ``overlap``), with the reason on record.
    """

    method: Method = "minmax"
    coverage: Annotated[float, Gt(0), Le(1)] = 0.9999
    momentum: Annotated[float, Gt(0), Le(1)] = 0.05
    power: Annotated[float, Gt(0)] = 2.0
    sigmas: Annotated[float, Gt(0)] = 12.0
    collect: Literal["extremes", "histograms"] | None = None
    optimization: Literal["none", "full"] = "none"
    per_channel: bool = False
    samples: Annotated[int, Ge(1)] = 200
    seed: int = 0
    plan: Literal["random", "first"] = "random"
    stratify: Stratify = Stratify()
    waive: tuple[Waiver, ...] = ()

    @model_validator(mode="after")
    def _only_overlap_is_waived(self) -> "CalibrateSection":
        for waiver in self.waive:
            if waiver.name != OVERLAP:
                raise ValueError(f"no check `{waiver.name}` to waive here; there is `{OVERLAP}`")
        return self

    @model_validator(mode="after")
    def _first_is_not_stratified(self) -> "CalibrateSection":
        if self.plan == "first" and self.stratify.is_asked_for:
            raise ValueError("`plan: first` takes samples as they lie: leave out `stratify`")
        return self

    @model_validator(mode="after")
    def _nothing_idle(self) -> "CalibrateSection":
        for name, reader in _READ_BY.items():
            is_set = getattr(self, name) != type(self).model_fields[name].default
            if is_set and self.method != reader:
                raise ValueError(
                    f"`{name}` is read by {reader} only, and the method is {self.method}"
                )
        if self.collect == "extremes" and not self.extremes_suffice:
            raise ValueError(f"{self.method} needs histograms: leave `collect` out")
        return self

    @property
    def extremes_suffice(self) -> bool:
        """Whether the method looks at nothing but the extremes of each run."""
        return self.method not in NEEDS_HISTOGRAM

    @property
    def detail(self) -> Literal["extremes", "histograms"]:
        """What is collected."""
        return self.collect or ("extremes" if self.extremes_suffice else "histograms")


class Gate(Section):
    """One condition on the result: ``max_increase`` of a metric over FP32, or ``max`` of a distance
    to FP32 (a metric's name followed by ``_to_fp32``).

    ``judge`` says whether the point or the upper bound of its 95 % interval is compared.
    """

    metric: str
    max_increase: Annotated[float, Ge(0)] | None = None
    max: Annotated[float, Ge(0)] | None = None
    judge: Literal["point", "bound"] = "bound"

    @model_validator(mode="after")
    def _one_limit(self) -> "Gate":
        if (self.max_increase is None) == (self.max is None):
            raise ValueError("give either `max_increase` (of a metric) or `max` (of a distance)")
        if self.max is not None and not self.metric.endswith("_to_fp32"):
            raise ValueError("`max` limits a distance to FP32: name it like `mae_to_fp32`")
        return self


class VerifySection(Section):
    """The gates, and the checks that are waived by name (``fp32-at-chance``)."""

    gate: tuple[Gate, ...]
    samples: Annotated[int, Ge(1)] | None = None
    waive: tuple[Waiver, ...] = ()

    @model_validator(mode="after")
    def _gated(self) -> "VerifySection":
        if not self.gate:
            raise ValueError("at least one `gate` is needed: without one nothing is verified")
        return self


class HandoffSection(Section):
    """The bundle. ``waive`` names target rules that may be broken, each with a reason."""

    known_answers: Annotated[int, Ge(1)] = 10
    waive: tuple[Waiver, ...] = ()


@dataclass(frozen=True)
class Written:
    """A recipe as it was read: where it lies, its text, and the settings that overrule it."""

    path: Path
    text: str
    settings: tuple[str, ...]


class Recipe(Section):
    """A system from checkpoint to bundle. Paths are relative to the recipe's folder.

    ``name`` is the name of the build folder too: letters, digits, ``.``, ``_`` and ``-``.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    target: str
    task: str
    python_path: Path = Path()
    build: Path | None = None
    export: ExportSection
    split: SplitSection | None = None
    data: DataSection
    calibrate: CalibrateSection = CalibrateSection()
    quantize: QuantizeSection = QuantizeSection()
    verify: VerifySection
    handoff: HandoffSection = HandoffSection()
    _written: Written | None = PrivateAttr(None)

    @model_validator(mode="after")
    def _training_data_is_read(self) -> "Recipe":
        if self.data.training is not None and "finetune" not in self.quantize.refining:
            raise ValueError(
                "`data: training` is read by the step `finetune`, which is not asked for"
            )
        return self

    @property
    def written(self) -> Written:
        """What it was read from. Raises RecipeError if it was made in memory."""
        if self._written is None:
            raise RecipeError("was not read from a file", where=self.name)
        return self._written

    def read_from(self, written: Written) -> "Recipe":
        """The recipe, which knows from now on what it was read from."""
        copy = self.model_copy()
        copy._written = written
        return copy

    @property
    def parts(self) -> tuple[PartSection, ...]:
        """The parts that the graph is cut into for the recipe's target; empty if it ships whole."""
        target, _, _ = self.target.partition("@")  # whatever the version of the vendor's tool
        if self.split is None or (self.split.targets and target not in self.split.targets):
            return ()
        return self.split.parts
