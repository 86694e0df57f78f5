"""Conv, Gemm and MatMul of a Q/DQ file as the integer kernels of ONNX Runtime compute them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir
from jaxtyping import Float, Int8, Int64, Integer, Shaped, UInt8

from onnxq.graph import constant_of, dims_of
from onnxq.pads import pads_of
from onnxq.pair_sums import has_pair_sums, reduction_rows
from onnxq.qdq import QUANTIZE, dequantizer, quantized_type, stored_integers
from onnxq.qtypes import AffineParameters, IntType
from onnxq.verify.reachable import parameters_of, reachable

__all__ = ["Product", "products_of"]

_FOLDED = frozenset({"Relu", "Clip"})  # vanish into the Q behind them


@dataclass(frozen=True)
class _Window:
    """How a Conv reads its input: one number for each spatial axis, zeros padded in front."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """One Conv, Gemm or MatMul of uint8 activations by a constant int8 weight.

    ``rows`` are the weights in the order of the kernels' sums, ``(channels, k)``; ``tensor`` the
    integer activations in the file, which become uint8 by adding ``shift`` (128 for int8) and then
    lie between ``low`` and ``high``. ``window`` is that of a Conv; of another operator the last
    axis is multiplied (``transposed``: the first). ``scales`` are input scale × weight scale, and
    ``output`` the parameters of the Q behind, None where the output is float.
    """

    node: str
    op_type: str
    tensor: str
    shift: int
    low: int
    high: int
    rows: Int8[np.ndarray, "channels k"]
    groups: int
    window: _Window | None
    transposed: bool
    zero_point: int
    scales: Float[np.ndarray, " #channels"]
    bias: Int64[np.ndarray, " #channels"]
    output: AffineParameters | None

    @cached_property
    def _grouped(self) -> Float[np.ndarray, "groups k channels"]:
        split = self.rows.reshape(self.groups, -1, self.rows.shape[1]).astype(np.float64)
        return np.swapaxes(split, 1, 2)

    def unsigned(self, integers: Integer[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
        """The activations as the kernels multiply them."""
        return (integers.astype(np.int16) + self.shift).astype(np.uint8)

    def count(self, activations: UInt8[np.ndarray, "..."]) -> int:
        """Number of output positions: pixels of a Conv, rows of another product."""
        if self.window is not None:
            return len(activations) * math.prod(_sizes(activations.shape[2:], self.window))
        return int(activations.size // self.rows.shape[1])

    def windows(
        self, activations: UInt8[np.ndarray, "..."], chosen: Int64[np.ndarray, " positions"]
    ) -> UInt8[np.ndarray, "positions groups k"]:
        """What is multiplied by ``rows`` at the ``chosen`` output positions (numbers from 0)."""
        if self.window is None:
            flat = activations.T if self.transposed else activations
            return np.asarray(flat.reshape(-1, 1, self.rows.shape[1])[chosen])
        last = np.moveaxis(activations, 1, -1)
        batch, *spatial, channels = last.shape
        index, *at = np.unravel_index(chosen, (batch, *_sizes(spatial, self.window)))
        offsets = np.indices(self.window.kernel).reshape(len(spatial), -1)
        inside = np.ones((len(chosen), offsets.shape[1]), bool)
        flat = np.zeros_like(inside, np.int64)
        for axis, size in enumerate(spatial):
            first = at[axis] * self.window.strides[axis] - self.window.before[axis]
            place = first[:, np.newaxis] + offsets[axis] * self.window.dilations[axis]
            inside &= (place >= 0) & (place < size)
            flat = flat * size + np.clip(place, 0, size - 1)
        taken = last.reshape(batch, -1, channels)[index[:, np.newaxis], flat]
        taken[~inside] = self.zero_point
        apart = taken.reshape(len(chosen), -1, self.groups, channels // self.groups)
        return np.asarray(np.moveaxis(apart, 2, 1).reshape(len(chosen), self.groups, -1))

    def extremes(
        self, activations: UInt8[np.ndarray, "..."]
    ) -> tuple[UInt8[np.ndarray, "groups k"], UInt8[np.ndarray, "groups k"]]:
        """Bounds of what meets each weight, over every position: those of its input channel."""
        if self.window is None:
            flat = activations.T if self.transposed else activations
            rows = flat.reshape(-1, self.rows.shape[1])
            return rows.min(0)[np.newaxis], rows.max(0)[np.newaxis]
        others = (0, *range(2, activations.ndim))
        low, high = activations.min(others), activations.max(others)
        if self.padded:
            low, high = np.minimum(low, self.zero_point), np.maximum(high, self.zero_point)
        positions = math.prod(self.window.kernel)
        spread = (
            np.tile(ends.astype(np.uint8).reshape(self.groups, 1, -1), (1, positions, 1))
            for ends in (low, high)
        )
        smallest, largest = (ends.reshape(self.groups, -1) for ends in spread)
        return smallest, largest

    @property
    def padded(self) -> bool:
        """Whether a Conv reads beyond its input, where it finds the zero point."""
        return self.window is not None and any((*self.window.before, *self.window.after))

    def sums(
        self, windows: UInt8[np.ndarray, "positions groups k"]
    ) -> Int64[np.ndarray, "positions channels"]:
        """Exact sums of products, bias and all, as an int32 accumulator holds them."""
        centred = np.moveaxis(windows, 1, 0).astype(np.float64) - self.zero_point
        found = np.moveaxis(centred @ self._grouped, 0, 1).reshape(len(windows), -1)
        return np.asarray(found.astype(np.int64) + self.bias)

    def requantized(
        self, sums: Int64[np.ndarray, "positions channels"]
    ) -> Int64[np.ndarray, "positions channels"]:
        """Output integers: ``saturate(round_half_even(sum · scale) + zero point)`` in float32, as
        MlasRequantizeOutput does; the sums as they are where the output is float."""
        if self.output is None:
            return sums
        factor = self.scales.astype(np.float32) / np.float32(self.output.scale)
        steps = np.rint(sums.astype(np.float32) * factor).astype(np.int64) + self.output.zero_point
        return np.clip(steps, self.output.type.qmin, self.output.type.qmax)


def products_of(model: ir.Model) -> tuple[Product, ...]:
    """Every product of the file that sums in pairs when ONNX Runtime runs it on integers.

    Left out are depthwise convolutions, uint8 weights, products of two activations (they multiply
    uint8 by uint8), and operators that stay float: those without DQ on both inputs, and a Conv
    without Q behind it.
    """
    found = (_product(node) for node in model.graph if has_pair_sums(node))
    return tuple(product for product in found if product is not None)


def _product(node: ir.Node) -> Product | None:
    data, weight = dequantizer(node.inputs[0]), dequantizer(node.inputs[1])
    integers = _integers(weight)
    if data is None or weight is None or data.inputs[0] is None or integers is None:
        return None
    given, output = parameters_of(data), _quantized_by(node.outputs[0])
    if integers.dtype != np.int8 or given is None or (output is None and node.op_type == "Conv"):
        return None
    shift = 128 if given.type is IntType.INT8 else 0
    rows = reduction_rows(node, integers)
    scale = constant_of(weight.inputs[1])
    scales = np.float32(given.scale) * np.asarray(scale, np.float32).reshape(-1)
    low, high = (bound + shift for bound in reachable(data))
    window = _window(node, integers.shape[2:]) if node.op_type == "Conv" else None
    if window is not None and any((*window.before, *window.after)):
        low, high = min(low, given.zero_point + shift), max(high, given.zero_point + shift)
    return Product(
        node=str(node.name),
        op_type=node.op_type,
        tensor=str(data.inputs[0].name),
        shift=shift,
        low=low,
        high=high,
        rows=rows,
        groups=_groups(node, integers),
        window=window,
        transposed=bool(node.attributes.get_int("transA", 0)) and node.op_type == "Gemm",
        zero_point=given.zero_point + shift,
        scales=scales,
        bias=_bias(node, scales),
        output=output,
    )


def _integers(weight: ir.Node | None) -> Shaped[np.ndarray, "..."] | None:
    """The integers behind a DQ; of int4 those alone that a Cast widens: the runtime multiplies no
    others as integers."""
    if weight is None or quantized_type(weight) == "int4":
        return None
    return stored_integers(weight)


def _groups(node: ir.Node, integers: Shaped[np.ndarray, "..."]) -> int:
    if node.op_type == "Conv":
        return node.attributes.get_int("group", 1)
    return math.prod(integers.shape[:-2])


def _quantized_by(value: ir.Value) -> AffineParameters | None:
    """Parameters of the Q that ``value`` goes into, be it through a folded Relu or Clip."""
    users = [use.node for use in value.uses()]
    if len(users) != 1 or value.is_graph_output():
        return None
    if users[0].op_type in _FOLDED:
        return _quantized_by(users[0].outputs[0])
    return parameters_of(users[0]) if users[0].op_type == QUANTIZE else None


def _bias(node: ir.Node, scales: Float[np.ndarray, " n"]) -> Int64[np.ndarray, " m"]:
    """The int32 bias; a float one is rounded as ONNX Runtime does when it loads the file."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    stored = _integers(dequantizer(value))
    if stored is not None:
        return stored.reshape(-1).astype(np.int64)
    exact = constant_of(value)
    return np.zeros(1, np.int64) if exact is None else _rounded(exact.reshape(-1), scales)


def _rounded(
    bias: Float[np.ndarray, " n"], scales: Float[np.ndarray, " m"]
) -> Int64[np.ndarray, " n"]:
    return np.asarray(np.rint(bias / scales).astype(np.int64))


# --- how a Conv reads ---------------------------------------------------------------------------


def _window(node: ir.Node, kernel: Sequence[int]) -> _Window:
    """The window of a Conv. ``auto_pad`` other than NOTSET and VALID needs the input's shape."""
    axes = len(kernel)
    strides, dilations = (
        tuple(node.attributes.get_ints(name, [1] * axes)) for name in ("strides", "dilations")
    )
    reach = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
    dims = dims_of(node.inputs[0]) or (None,) * (axes + 2)
    before, after = pads_of(
        node.attributes.get_string("auto_pad", "NOTSET"),
        node.attributes.get_ints("pads", ()),
        [dim or 0 for dim in dims[2:]],
        reach,
        strides,
    )
    return _Window(tuple(kernel), strides, dilations, before, after)


def _sizes(spatial: Sequence[int], window: _Window) -> tuple[int, ...]:
    """Spatial shape of the output."""
    return tuple(
        (size + window.before[axis] + window.after[axis] - reach) // window.strides[axis] + 1
        for axis, size in enumerate(spatial)
        for reach in [(window.kernel[axis] - 1) * window.dilations[axis] + 1]
    )
