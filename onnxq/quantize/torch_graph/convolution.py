"""Convolutions of one to three dimensions, and transposed ones."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from onnxq.quantize.torch_graph.registry import Call, operator
from onnxq.quantize.torch_graph.windows import AUTO_PADS, padded, windows_of

__all__ = ["conv"]

_FORWARD = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_TRANSPOSED = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


def _rank(call: Call, x: Tensor) -> int:
    if x.dim() - 2 not in _FORWARD:
        raise call.refused(f"a convolution over {x.dim() - 2} dimensions; torch has 1 to 3")
    return x.dim() - 2


@operator("Conv")
def conv(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Sums of products over windows, and the bias."""
    rank = _rank(call, x)
    windows = windows_of(call, x.shape[2:], weight.shape[2:])
    pads: Sequence[int] = windows.before
    if windows.before != windows.after or min(windows.before) < 0:
        x, pads = padded(x, windows.before, windows.after), [0] * rank
    result: Tensor = _FORWARD[rank](
        x, weight, bias, windows.strides, pads, windows.dilations, call.get("group", 1)
    )
    return result


@operator("ConvTranspose")
def _conv_transpose(call: Call, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The whole result, then cut by the pads: so that output_shape and auto_pad need no more."""
    rank = _rank(call, x)
    strides = call.get("strides") or [1] * rank
    whole = _TRANSPOSED[rank](
        x,
        weight,
        None,
        strides,
        [0] * rank,
        [0] * rank,
        call.get("group", 1),
        call.get("dilations") or [1] * rank,
    )
    more = call.get("output_padding") or [0] * rank
    before, after = _cuts(call, (x.shape[2:], whole.shape[2:], more), strides)
    result = padded(whole, [-n for n in before], [m - n for m, n in zip(more, after, strict=True)])
    return result if bias is None else result + bias.reshape(-1, *[1] * rank)


def _cuts(
    call: Call,
    sizes: tuple[Sequence[int], Sequence[int], Sequence[int]],
    strides: Sequence[int],
) -> tuple[list[int], list[int]]:
    """What is cut at both ends. ``sizes``: of the input, of the whole result, output_padding.

    Source: ONNX operator specification, ConvTranspose, the equations of total_padding.
    """
    given, whole, more = sizes
    rank = len(given)
    auto_pad = call.only("auto_pad", "NOTSET", AUTO_PADS)
    target = call.get("output_shape")
    if target is None and auto_pad.startswith("SAME"):
        target = [n * s for n, s in zip(given, strides, strict=True)]
    if target is None:
        pads = call.get("pads") or [0] * 2 * rank
        pads = [0] * 2 * rank if auto_pad == "VALID" else pads
        return list(pads[:rank]), list(pads[rank:])
    total = [w + m - t for w, m, t in zip(whole, more, target[-rank:], strict=True)]
    small, large = [n // 2 for n in total], [n - n // 2 for n in total]
    return (small, large) if auto_pad == "SAME_UPPER" else (large, small)
