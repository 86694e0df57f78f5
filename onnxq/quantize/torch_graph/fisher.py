"""How much a change of weights is felt by the loss: gradients of single samples, squared."""

from collections.abc import Iterable, Mapping
from typing import Literal

import numpy as np
import onnx
import torch
from jaxtyping import Float64, Shaped

from onnxq.errors import DataError
from onnxq.quantize.torch_graph.graph import TorchGraph

__all__ = ["Loss", "loss_for", "mean_squared_gradients"]

Loss = Literal["cross entropy of scores", "cross entropy of probabilities", "squared error"]
Array = Shaped[np.ndarray, "..."]


def loss_for(output: Array, label: object) -> Loss | None:
    """The loss that one output row of a batch of one and its label speak of; None for no known one.

    A class number with a row of several numbers is judged by cross entropy: of probabilities if
    they are that (none negative, together 1), else of scores; a number with a number by half the
    squared error.
    """
    values = np.asarray(output, np.float64).ravel()
    if values.size == 1 and isinstance(label, int | float | np.number):
        return "squared error"
    is_class = isinstance(label, int | np.integer) and 0 <= int(label) < values.size
    if output.ndim != 2 or not is_class:
        return None
    sums_to_one = bool((values >= 0).all() and abs(values.sum() - 1) < 1e-3)
    return "cross entropy of probabilities" if sums_to_one else "cross entropy of scores"


def mean_squared_gradients(
    model: onnx.ModelProto,
    runs: Iterable[tuple[Mapping[str, Array], float]],
    loss: Loss,
) -> dict[str, Float64[np.ndarray, "..."]]:
    """E[g²] for every weight and bias of the FP32 ``model`` by name: the diagonal of the empirical
    Fisher information, over ``runs`` of one sample each, with its label.

    Raises ModelError for a graph that torch cannot compute exactly, DataError if there is no run,
    or the graph has several outputs.
    Source: Martens 2020, "New insights and perspectives on the natural gradient method", JMLR 21,
    section 11 (the empirical Fisher).
    """
    graph = TorchGraph(model)
    weights = graph.weights
    sums = {name: np.zeros(tuple(weight.shape)) for name, weight in weights.items()}
    count = 0
    for inputs, label in runs:
        outputs = graph({name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in
                         inputs.items()})  # fmt: skip
        if len(outputs) != 1:
            raise DataError("has several outputs, and no loss is known for them", where="fisher")
        value = _loss_of(next(iter(outputs.values())), label, loss)
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True)
        for name, gradient in zip(weights, gradients, strict=True):
            if gradient is not None:
                sums[name] += np.square(gradient.numpy().astype(np.float64))
        count += 1
    if not count:
        raise DataError("there is no sample with a label", where="fisher")
    return {name: total / count for name, total in sums.items()}


def _loss_of(output: torch.Tensor, label: float, loss: Loss) -> torch.Tensor:
    if loss == "squared error":
        return 0.5 * (output.reshape(()) - label) ** 2
    wanted = torch.tensor([int(label)])
    if loss == "cross entropy of scores":
        return torch.nn.functional.cross_entropy(output, wanted)
    tiny = torch.finfo(output.dtype).tiny
    return torch.nn.functional.nll_loss(output.clamp_min(tiny).log(), wanted)
