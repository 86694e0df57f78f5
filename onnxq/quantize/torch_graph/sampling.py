"""GridSample: a picture read at places given by another tensor."""

from torch import Tensor
from torch.nn import functional

from onnxq.quantize.torch_graph.registry import Call, operator

_MODES = {  # before opset 20, and since
    "bilinear": "bilinear",
    "bicubic": "bicubic",
    "linear": "bilinear",
    "cubic": "bicubic",
    "nearest": "nearest",
}


@operator("GridSample")
def _grid_sample(call: Call, x: Tensor, grid: Tensor) -> Tensor:
    """Refused where torch has no such sampling: cubic over three dimensions."""
    mode = _MODES[call.only("mode", "linear", tuple(_MODES))]
    if x.dim() not in (4, 5) or (x.dim() == 5 and mode == "bicubic"):
        raise call.refused(f"GridSample {mode} of {x.dim() - 2} dimensions")
    padding = call.only("padding_mode", "zeros", ("zeros", "border", "reflection"))
    return functional.grid_sample(
        x, grid.to(x.dtype), mode, padding, bool(call.get("align_corners", 0))
    )
