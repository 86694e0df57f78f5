"""The recipe: what a person writes, checked word by word."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    ConfigDict,
    PrivateAttr,
    StringConstraints,
    model_validator,
)

from onnxq.errors import RecipeError
from onnxq.plugins import is_reference

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


class Section(BaseModel):
    """Base of all sections: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Waiver(Section):
    """Something that is allowed by name, with the reason that goes into the record."""

    name: str
    reason: str


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


Elementwise = Literal["weigh", "integer", "float"]
Step = Literal["weights-mse", "rounding", "adaround", "ranges", "bias", "finetune"]
Effort = Literal["fast", "balanced", "best"]
EFFORTS: dict[Effort, tuple[Step, ...]] = {
    "fast": ("rounding", "bias"),
    "balanced": ("rounding", "bias"),  # nothing that was measured adds to it in minutes
    "best": ("rounding", "adaround", "ranges", "bias"),
}
FloatStepName = Literal["equalize", "absorb", "smooth"]


class NodePrecision(Section):
    """The bits of single nodes: of the one called ``name``, or of all whose names fit a pattern
    (``*``, ``?``). ``weights: float`` keeps a node float as a whole; ``activations: int16`` gives
    what goes in and out of it 16 bits, and int8 the target's own 8-bit type."""

    name: str
    weights: Literal["int8", "int4", "float"] | None = None
    activations: Literal["int8", "int16"] | None = None
    reason: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> "NodePrecision":
        if self.weights is None and self.activations is None:
            raise ValueError(f"`{self.name}`: give `weights`, `activations` or both")
        if self.weights == "float" and self.activations == "int16":
            raise ValueError(f"`{self.name}`: a float node has no 16-bit activations")
        return self


class AdaRoundSection(Section):
    """Options of the step ``adaround``: learned ``by`` block or layer, ``iterations`` at most for
    each; ``regularization`` is λ, ``warm_up`` the share of the iterations without it."""

    by: Literal["block", "layer"] = "block"
    iterations: Annotated[int, Ge(1), Le(20_000)] = 1_000
    learning_rate: Annotated[float, Gt(0)] = 0.01
    regularization: Annotated[float, Gt(0)] = 0.01
    warm_up: Annotated[float, Ge(0), Lt(1)] = 0.2


class RangesSection(Section):
    """Options of the step ``ranges``: ``iterations`` at most for each block; scales move by about
    ``learning_rate`` of themselves at a time."""

    iterations: Annotated[int, Ge(1), Le(20_000)] = 300
    learning_rate: Annotated[float, Gt(0)] = 1e-3


class DistillSection(Section):
    """How much nearness to FP32 counts in the loss: of the ``outputs``, and of the ends of
    ``blocks``, all alike or by tensor. ``by: squared`` is the squared error relative to FP32's
    power; ``kl`` takes outputs for logits and compares probabilities."""

    outputs: Annotated[float, Ge(0)] = 1.0
    blocks: Annotated[float, Ge(0)] | dict[str, Annotated[float, Ge(0)]] = 0.0
    by: Literal["squared", "kl"] = "squared"

    @property
    def is_asked_for(self) -> bool:
        """Whether FP32 teaches anything."""
        blocks = self.blocks.values() if isinstance(self.blocks, dict) else [self.blocks]
        return self.outputs > 0 or any(weight > 0 for weight in blocks)


Learnt = Literal["weights", "biases", "scales"]


class FinetuneSection(Section):
    """Options of the step ``finetune``: the whole graph is trained, with rounding, from what the
    other steps made of it.

    ``learning_rate`` is in steps of the weights' grids, so that one number serves every network: a
    weight moves by about so many steps in an iteration at the beginning, along a cosine to none at
    the last one. ``batch`` samples go through each of the ``devices`` in an iteration. For
    ``warm_up`` epochs nothing is rounded; from the epoch number ``freeze`` on (unless given: in the
    last fifth) scales of activations stay as they are. Gradients longer than ``clip`` are
    shortened, the loss being 1 at the beginning. ``task_loss`` (of labels: cross-entropy, mse, mae,
    or ``module:function`` of outputs and labels) counts ``task_weight`` times, in its own unit.
    """

    epochs: Annotated[int, Ge(1)] = 10
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    batch: Annotated[int, Ge(1)] = 16
    warm_up: Annotated[int, Ge(0)] = 0
    freeze: Annotated[int, Ge(2)] | None = None
    clip: Annotated[float, Gt(0)] = 10.0
    distill: DistillSection = DistillSection()
    task_loss: str | None = None
    task_weight: Annotated[float, Gt(0)] = 1.0
    seed: Annotated[int, Ge(0)] = 0
    devices: Annotated[int, Ge(1)] = 1
    learn: tuple[Learnt, ...] = ("weights", "biases", "scales")

    @property
    def frozen_from(self) -> int:
        """The epoch, counted from 1, from which scales of activations stay as they are."""
        if self.learn == ("scales",):
            return self.epochs + 1
        return self.freeze or self.epochs - self.epochs // 5 + 1

    @model_validator(mode="after")
    def _can_be_carried_out(self) -> "FinetuneSection":
        if self.warm_up >= self.epochs:
            raise ValueError(
                f"`warm_up: {self.warm_up}` leaves none of {self.epochs} epochs to learn rounding"
            )
        if self.freeze is not None and self.freeze > self.epochs:
            raise ValueError(f"`freeze: {self.freeze}` never comes in {self.epochs} epochs")
        if self.freeze is not None and self.freeze <= self.warm_up + 1:
            raise ValueError("`freeze` comes before scales begin to learn: leave them out of learn")
        if self.learn == ("scales",) and (self.warm_up or self.freeze):
            raise ValueError("`warm_up` and `freeze` leave nothing to learn where only scales do")
        if not self.learn:
            raise ValueError("`learn` is empty: name weights, biases or scales")
        if self.task_loss not in (None, "cross-entropy", "mse", "mae") and not is_reference(
            str(self.task_loss)
        ):
            raise ValueError("`task_loss` is cross-entropy, mse, mae or module:function")
        if self.task_loss is None and not self.distill.is_asked_for:
            raise ValueError("nothing to learn from: give `distill` a weight, or a `task_loss`")
        if self.task_loss is None and self.task_weight != 1:
            raise ValueError("`task_weight` is of a `task_loss`, and none is given")
        return self


class QuantizeSection(Section):
    """What becomes integer. ``exclude`` names nodes that stay float, each with a reason.

    ``weights: int4`` gives weights 4 bits, but for the network's ends and embeddings of a number,
    which keep 8; ``precision`` says otherwise of single nodes. With ``block: 32`` every 32 weights
    of a channel have a step of their own, a multiple of their channel's. ``storage: int8`` stores
    the integers a byte each, for targets that read no packed ones.

    ``saturation: narrow`` gives weights fewer steps in exactly the output channels whose sums of
    pairs could leave int16 on x86 without VNNI; ``ignore`` lets them. Unless given, the target
    decides: those whose processors saturate are narrowed for.

    ``elementwise: weigh`` keeps operators without weights (gated activations, Add, Softmax) float
    where by the target's measured prices integers save too little for the rounding they add;
    ``integer`` makes all integer that can be, ``float`` none.

    ``also_for`` names further targets: each gets a file with the same numbers and activations of
    the type that it takes, and a verdict and a bundle of its own.

    ``effort`` chooses the steps that refine the numbers; ``steps`` names them instead (none: []).
    ``float_steps`` give the FP32 graph other numbers for the same function, before calibration.
    """

    weights: Literal["int8", "int4"] = "int8"
    storage: Literal["packed", "int8"] = "packed"
    block: Annotated[int, Ge(8)] | None = None
    precision: tuple[NodePrecision, ...] = ()
    exclude: tuple[Waiver, ...] = ()
    saturation: Literal["ignore", "narrow"] | None = None
    elementwise: Elementwise = "weigh"
    also_for: tuple[str, ...] = ()
    effort: Effort = "balanced"
    steps: tuple[Step, ...] | None = None
    adaround: AdaRoundSection = AdaRoundSection()
    ranges: RangesSection = RangesSection()
    finetune: FinetuneSection = FinetuneSection()
    float_steps: tuple[FloatStepName, ...] = ()

    @property
    def refining(self) -> tuple[Step, ...]:
        """The refine steps: those that are named, else those of the effort."""
        return EFFORTS[self.effort] if self.steps is None else self.steps

    @property
    def has_4_bits(self) -> bool:
        """Whether any weight is asked for with 4 bits."""
        return "int4" in (self.weights, *(entry.weights for entry in self.precision))

    @model_validator(mode="after")
    def _4_bits_for_what_speaks_of_them(self) -> "QuantizeSection":
        if not self.has_4_bits and (self.block is not None or self.storage != "packed"):
            raise ValueError("`block` and `storage` speak of 4-bit weights, and none are asked for")
        return self


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
