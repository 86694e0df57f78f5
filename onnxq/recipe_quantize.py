"""What a recipe says of quantization: bits, effort, steps and their options."""

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import model_validator

from onnxq.plugins import is_reference
from onnxq.recipe_base import Section, Waiver

__all__ = [
    "EFFORTS",
    "AdaRoundSection",
    "DistillSection",
    "Effort",
    "Elementwise",
    "FinetuneSection",
    "FloatStepName",
    "NodePrecision",
    "QuantizeSection",
    "RangesSection",
    "Step",
]

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
