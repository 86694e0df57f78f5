"""What a departing layer looks like: suspected causes, each of which predicts the layer's integers.

A cause is only named if what it predicts is what the device gave.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Float64, Int64, Shaped

from onnxq.graph import WEIGHTED, constants_of
from onnxq.handoff.dump import KnownLayers
from onnxq.handoff.reference.evaluate import Computed, Reference
from onnxq.handoff.reference.network import Layer
from onnxq.handoff.reference.rounding import ROUNDINGS
from onnxq.handoff.reference.windows import attribute
from onnxq.qdq import DEQUANTIZE

__all__ = ["ONE_STEP", "Cause", "causes", "off_exact", "roundings"]

Array = Shaped[np.ndarray, "..."]
Integers = Int64[np.ndarray, "..."]
ONE_STEP = 1 + 1e-6
ENOUGH = 0.9  # share of elements that a named cause must give exactly; the others by one step
FOR_A_SHIFT, FOR_A_SCALE, FOR_BOTH = 4, 10, 20  # elements without which a fit says nothing
BYTE = 255.0


@dataclass(frozen=True)
class Cause:
    """``says`` completes "looks like …"; ``equal`` is the share of elements it gives exactly."""

    says: str
    equal: float


@dataclass(frozen=True)
class _Suspect:
    """The layer under suspicion: what it should be of its own inputs, and what the device gave."""

    known: KnownLayers
    layer: Layer
    given: Mapping[str, Array]
    got: Integers
    right: Computed

    @property
    def ends(self) -> tuple[int, int]:
        """What the layer's type holds."""
        return self.layer.grid.type.qmin, self.layer.grid.type.qmax

    def rounded(self, places: Float64[np.ndarray, "..."]) -> Integers:
        """Places on the grid as its integers, half to even before the zero point is added."""
        zero = self.layer.grid.zero_point
        return np.asarray(np.clip(np.rint(places - zero) + zero, *self.ends).astype(np.int64))

    def again(self, model: onnx.ModelProto, given: Mapping[str, Array] | None = None) -> Integers:
        """The layer as another model, or other integers before it, would make it."""
        source = self.given if given is None else given
        computed = Reference(model).layer(self.layer.name, self.known.inputs, source)
        return computed.integers.astype(np.int64)


def off_exact(layer: Layer, got: Integers, right: Computed) -> float:
    """How many steps the integers are, at most, from the exact values on the layer's grid.

    Up to one step is rounding, in whatever direction.
    """
    exact = np.clip(right.exact, layer.grid.type.qmin, layer.grid.type.qmax)
    return float(np.abs(got - exact).max(initial=0))


def roundings(
    known: KnownLayers, layer: Layer, given: Mapping[str, Array], got: Integers
) -> tuple[str, ...]:
    """Names of the other roundings that give the layer exactly; nothing is wrong with those."""
    found = [
        f"the rounding of {name}"
        for name in ROUNDINGS[1:]
        if np.array_equal(
            Reference(known.model, name).layer(layer.name, known.inputs, given).integers, got
        )
    ]
    right = Reference(known.model).layer(layer.name, known.inputs, given)
    zero, ends = layer.grid.zero_point, (layer.grid.type.qmin, layer.grid.type.qmax)
    cut = {
        "rounding half to even behind the zero point": np.rint(right.exact),
        "rounding down": np.floor(right.exact),
        "rounding toward zero (a cast)": np.trunc(right.exact - zero) + zero,
        "rounding half away from zero": np.copysign(
            np.floor(np.abs(right.exact - zero) + 0.5), right.exact - zero
        )
        + zero,
    }
    found += [name for name, places in cut.items() if np.array_equal(np.clip(places, *ends), got)]
    return tuple(found)


def causes(
    known: KnownLayers, layer: Layer, given: Mapping[str, Array], got: Integers, right: Computed
) -> tuple[Cause, ...]:
    """The causes that reproduce ``got`` best; more than one if they cannot be told apart.

    ``given`` are the integers that the layer was computed of, ``right`` what it should be. A cause
    reproduces a layer if it gives 9 elements of 10 exactly, also of those that are wrong, and all
    others within one step. A scale or zero point is only fitted to what no rounding explains: a
    scale that a device holds in fewer bits is no fault.
    """
    suspect = _Suspect(known, layer, given, got, right)
    wrong = got != right.integers
    found = []
    for says, predicted in _predictions(suspect):
        away = np.abs(predicted - got)
        equal = float((away == 0).mean())
        explained = float((away[wrong] == 0).mean())
        if away.max(initial=0) <= 1 and min(equal, explained) >= ENOUGH:
            found.append(Cause(says, equal))
    best = max((cause.equal for cause in found), default=0.0)
    return tuple(cause for cause in found if cause.equal >= best)


def _predictions(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    if suspect.layer.op_type == "Input":
        yield from _of_the_input(suspect)
    yield from _of_the_memory(suspect)
    for edit in (_no_bias, _one_weight_scale, _zero_padding, _no_cut, _raw_input):
        yield from edit(suspect)
    yield from _of_what_is_read(suspect)
    if off_exact(suspect.layer, suspect.got, suspect.right) > ONE_STEP:
        yield from _of_the_grid(suspect)


# --- the integers themselves --------------------------------------------------------------------


def _of_the_memory(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    """The right integers, stored or read in another way."""
    right = suspect.right.integers.astype(np.int64)
    for says, order in _layouts(right):
        yield f"the right integers {says}", order
    low, _ = suspect.ends
    other = "uint8" if low < 0 else "int8"
    shift = 128 if low < 0 else -128
    yield f"the right integers as {other}, the zero point {shift:+d}", right + shift
    flipped = ((right + 128 - low) % 256) + low
    yield f"the right bytes with their top bit turned ({other} taken for the other)", flipped
    zero = suspect.layer.grid.zero_point
    steps = np.clip(np.rint(suspect.right.exact - zero), -1e15, 1e15).astype(np.int64)
    wrapped = (steps + zero - low) % 256 + low
    yield "a missing saturation: integers beyond the type wrap around", wrapped


def _layouts(integers: Array) -> Iterator[tuple[str, Array]]:
    """The same memory, read channels first and channels last."""
    if integers.ndim < 3:
        return
    first, last = integers.shape, (integers.shape[0], *integers.shape[2:], integers.shape[1])
    yield "with the channels last (NHWC)", np.moveaxis(integers, 1, -1).reshape(first)
    yield (
        "with the channels first where last were expected",
        np.moveaxis(integers.reshape(last), -1, 1),
    )


def _of_the_grid(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    """Another scale or zero point, fitted to what is not saturated."""
    grid = suspect.layer.grid
    low, high = suspect.ends
    exact = suspect.right.exact
    free = (suspect.got > low) & (suspect.got < high)
    count = np.count_nonzero(free)
    if count < FOR_A_SHIFT:
        return
    shift = int(np.rint(np.median(suspect.got[free] - exact[free])))
    if shift:
        says = f"a zero point of {grid.zero_point + shift} instead of {grid.zero_point}"
        yield says, suspect.rounded(exact + shift)
    steps, given = exact[free] - grid.zero_point, suspect.got[free] - grid.zero_point
    if count < FOR_A_SCALE or not np.ptp(steps):
        return
    factor = float(steps @ given / (steps @ steps))
    says = f"a scale of {grid.scale / factor:.6g} instead of {grid.scale:.6g}" if factor else ""
    if factor > 0:
        yield says, suspect.rounded((exact - grid.zero_point) * factor + grid.zero_point)
    if count < FOR_BOTH:
        return
    slope, start = np.polyfit(steps, given, 1)
    if slope > 0:
        point = int(np.rint(grid.zero_point + start))
        says = (
            f"a scale of {grid.scale / slope:.6g} instead of {grid.scale:.6g} and a zero point of "
            f"{point} instead of {grid.zero_point}"
        )
        yield says, suspect.rounded((exact - grid.zero_point) * slope + point)


def _of_the_input(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    """An input that was not quantized as the contract says."""
    reals = next(
        (
            array.astype(np.float64)
            for array in suspect.known.inputs.values()
            if array.dtype.kind == "f" and array.shape == suspect.got.shape
        ),
        None,
    )
    if reals is None:
        return
    low, _ = suspect.ends
    scale = suspect.layer.grid.scale
    short = f"byte - {-low}" if low else "byte"
    yield (
        f"{short} of a picture without rescaling (the scale is {scale:.6g}, not 1/255)",
        suspect.rounded(reals * BYTE + low),
    )
    yield "the real values cast to integers, not quantized", suspect.rounded(np.trunc(reals))


# --- another computation ------------------------------------------------------------------------


def _of_what_is_read(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    """The right computation of wrongly read inputs."""
    for source in suspect.layer.sources:
        if source not in suspect.given:
            continue
        integers = np.asarray(suspect.given[source])
        readings = [
            (f"its input `{source}` read {says}", array) for says, array in _layouts(integers)
        ]
        turned = (integers.astype(np.int64) ^ 128) if integers.dtype == np.uint8 else None
        if integers.dtype == np.int8 or turned is None:
            turned = integers.astype(np.int64) + np.where(integers < 0, 128, -128)
        readings.append((f"its input `{source}` taken for the other of int8 and uint8", turned))
        for says, array in readings:
            yield says, suspect.again(suspect.known.model, {**suspect.given, source: array})


def _no_bias(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    def edit(node: onnx.NodeProto, _: onnx.ModelProto) -> bool:
        there = len(node.input) > 2 and bool(node.input[2])
        del node.input[2:]
        return there

    yield from _edited(suspect, "a missing bias", edit)


def _one_weight_scale(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    def edit(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
        maker = _maker(model, node.input[1])
        scales = constants_of(model).get(maker.input[1]) if maker is not None else None
        if maker is None or scales is None or scales.size < 2:
            return False
        one = np.full_like(scales, scales.reshape(-1)[0])
        name = f"{maker.input[1]}_of_the_first_channel"
        model.graph.initializer.append(onnx.numpy_helper.from_array(one, name))
        maker.input[1] = name
        return True

    yield from _edited(suspect, "the weight scale of the first channel used for all", edit)


def _zero_padding(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    """Integer 0 in the pads, where the real value 0 has another integer."""

    def edit(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
        pads, maker = attribute(node, "pads", ()), _maker(model, node.input[0])
        if node.op_type != "Conv" or not any(pads) or maker is None or len(maker.input) < 3:
            return False
        constants = constants_of(model)
        scale, point = constants.get(maker.input[1]), constants.get(maker.input[2])
        if scale is None or point is None or not point.any():
            return False
        value = -np.float32(point.astype(np.int64).item()) * scale.reshape(())
        rank = len(pads) // 2
        whole = np.array([0, 0, *pads[:rank], 0, 0, *pads[rank:]], np.int64)
        for name, array in (("pads_by_hand", whole), ("pad_value_by_hand", np.asarray(value))):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        inputs = [node.input[0], "pads_by_hand", "pad_value_by_hand"]
        padding = onnx.helper.make_node("Pad", inputs, ["padded_by_hand"], name="padded_by_hand")
        node.input[0] = "padded_by_hand"
        kept = [entry for entry in node.attribute if entry.name != "pads"]
        del node.attribute[:]
        node.attribute.extend(kept)
        place = next(at for at, one in enumerate(model.graph.node) if one.name == node.name)
        model.graph.node.insert(place, padding)
        return True

    yield from _edited(suspect, "padding with integer 0 instead of the zero point", edit)


def _raw_input(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    def edit(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
        maker = _maker(model, node.input[0])
        if maker is None or len(maker.input) < 3:
            return False
        point = constants_of(model).get(maker.input[2])
        del maker.input[2:]
        return point is not None and bool(point.any())

    yield from _edited(suspect, "a zero point of its input that is not subtracted", edit)


def _no_cut(suspect: _Suspect) -> Iterator[tuple[str, Integers]]:
    """A Relu or Clip left out."""
    model = _copy(suspect.known.model)
    cuts = [
        node
        for node in model.graph.node
        if node.op_type in ("Relu", "Clip") and (node.name or node.output[0]) in suspect.layer.nodes
    ]
    for node in cuts:
        left_out = f"a missing {node.op_type} `{node.name or node.output[0]}`"
        node.op_type = "Identity"
        del node.input[1:]
        del node.attribute[:]
        yield left_out, suspect.again(model)


def _edited(
    suspect: _Suspect, says: str, edit: Callable[[onnx.NodeProto, onnx.ModelProto], bool]
) -> Iterator[tuple[str, Integers]]:
    """The layer of a model whose weighted node was changed by ``edit``, if that applies to it."""
    model = _copy(suspect.known.model)
    for node in list(model.graph.node):
        ours = (node.name or node.output[0]) in suspect.layer.nodes
        if ours and node.op_type in WEIGHTED and edit(node, model):
            yield f"{says} (`{node.name or node.output[0]}`)", suspect.again(model)
            return


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def _maker(model: onnx.ModelProto, name: str) -> onnx.NodeProto | None:
    """The DequantizeLinear that makes the tensor, if one does."""
    return next((n for n in model.graph.node if n.op_type == DEQUANTIZE and name in n.output), None)
