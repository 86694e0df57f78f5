"""The one caller of the torch exporter."""

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxscript
import torch
from jaxtyping import Shaped
from onnxscript.optimizer import fold_constants

from onnxq.errors import ExportError, OnnxqError, PluginError
from onnxq.graph import EXTERNAL_DATA_BYTES
from onnxq.plugins import call

__all__ = ["build_network", "export_network", "run_network", "unused_parameters"]

Array = Shaped[np.ndarray, "..."]
Row = Mapping[str, Array]
_NATIVE_OPSET = 18  # the oldest that the exporter emits by itself
_POOLS = (
    torch.ops.aten.adaptive_avg_pool1d.default,
    torch.ops.aten.adaptive_avg_pool2d.default,
    torch.ops.aten.adaptive_avg_pool3d.default,
)


def build_network(
    reference: str, arguments: Mapping[str, object], search: Path | None
) -> torch.nn.Module:
    """The network that ``module:function`` makes of ``arguments``, in evaluation mode.

    Raises PluginError if it cannot be found, cannot be called, or makes no ``torch.nn.Module``.
    """
    try:
        network = call(reference, arguments, search)
    except OnnxqError:
        raise
    except Exception as fault:  # whatever a user's constructor does is reported as his
        raise PluginError(
            f"raised {type(fault).__name__}: {fault}",
            where=reference,
            do="check `arguments` in the recipe's export section",
        ) from fault
    if not isinstance(network, torch.nn.Module):
        raise PluginError(
            f"returned a {type(network).__name__}, no torch.nn.Module",
            where=reference,
            do="name a class or function that returns the network",
        )
    return network.eval()


def run_network(
    network: torch.nn.Module, row: Row, output_names: Sequence[str]
) -> dict[str, Array]:
    """Every output of the network for one batch; the inputs go in by position.

    Raises ExportError if the network fails or has another number of outputs.
    """
    try:
        with torch.no_grad():
            found = network(*(torch.from_numpy(np.array(array)) for array in row.values()))
    except Exception as fault:  # whatever a user's network does is reported as his
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in row.items())
        raise ExportError(
            f"the network fails on {shapes}: {type(fault).__name__}: {fault}",
            where="export.network",
            do="check the order and the shapes of `inputs` in the recipe",
        ) from fault
    outputs = _tensors(found)
    if len(outputs) != len(output_names):
        raise ExportError(
            f"the network has {len(outputs)} outputs; the recipe names {len(output_names)}",
            where="export.outputs",
            do="name every output, in order",
        )
    return dict(zip(output_names, (o.detach().numpy() for o in outputs), strict=True))


def _tensors(found: object) -> list[torch.Tensor]:
    """The tensors of a network's result: one, or those of a tuple, list or dict."""
    if isinstance(found, torch.Tensor):
        return [found]
    if isinstance(found, Mapping):
        found = tuple(found.values())
    if not isinstance(found, (tuple, list)):
        return []
    return [part for part in found if isinstance(part, torch.Tensor)]


def export_network(
    network: torch.nn.Module,
    example: Row,
    output_names: Sequence[str],
    *,
    opset: int,
    batch: Literal["one", "free"],
) -> onnx.ModelProto:
    """The network as the exporter writes it, at ``opset`` or 18, whichever is newer.

    ``example`` is one row of inputs in the network's order, whose names the graph takes. With
    ``batch="free"`` the first dimension of every input is free. Raises ExportError with what the
    exporter said.
    """
    size = sum(t.numel() * t.element_size() for t in network.state_dict().values())
    if size > EXTERNAL_DATA_BYTES:
        raise ExportError(
            f"the weights take {size / 1e9:.1f} GB; a graph that is rewritten in memory has "
            f"room for {EXTERNAL_DATA_BYTES / 1e9:.1f} GB",
            where="export.network",
            do="export the network in parts, one recipe each",
        )
    free = batch == "free"
    tensors = tuple(_example(array, free) for array in example.values())
    shapes = tuple({0: torch.export.Dim("batch")} for _ in tensors) if free else None
    said = io.StringIO()
    try:
        with _captured(said):
            program = torch.export.export(network.eval(), tensors, dynamic_shapes=shapes)
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=max(opset, _NATIVE_OPSET),
                input_names=list(example),
                output_names=list(output_names),
                optimize=False,
                verbose=False,
                custom_translation_table=_translations(program),
            )
            if exported is None:
                raise ExportError("the torch exporter returned nothing", where="export.network")
            fold_constants(exported.model)  # makes Split of SplitToSequence, for one
            return exported.model_proto
    except OnnxqError:
        raise
    except Exception as fault:  # the exporter's exceptions share no base but Exception
        raise ExportError(_explain(fault, said.getvalue(), free), where="export.network") from fault


def _example(array: Array, free: bool) -> torch.Tensor:
    """With a free batch the exporter wants two rows: of one it would take the 1 for fixed."""
    tensor = torch.from_numpy(np.array(array))
    return torch.cat([tensor, tensor]) if free and len(tensor) == 1 else tensor


def _translations(program: torch.export.ExportedProgram) -> dict[Callable[..., Any], Any]:
    """Adaptive average pooling to one value is GlobalAveragePool.

    By itself the exporter makes of it a ReduceMean and, after a channels-last reshape, a Gather.
    """
    pools = [node for node in program.graph.nodes if node.target in _POOLS]
    if not pools or any(set(node.args[1]) != {1} for node in pools):
        return {}
    op = onnxscript.opset18

    def pool(self: Any, output_size: object) -> object:
        return op.GlobalAveragePool(self)

    return dict.fromkeys(_POOLS, pool)


def _explain(fault: Exception, said: str, free: bool) -> str:
    reason = re.sub(r"\x1b\[\d*m", "", str(fault)).strip() or type(fault).__name__
    reason = reason.partition("## Exception summary")[2].strip() or reason
    hint = "\nif the network fixes its batch size, choose a target of batch one" if free else ""
    return f"the torch exporter failed: {reason[:2000]}{hint}\n{said[-1000:]}".rstrip()


@contextlib.contextmanager
def _captured(said: io.StringIO) -> Iterator[None]:
    """Catch what the exporter prints, logs and warns of, so that it is told only if it fails."""
    handler = logging.StreamHandler(said)
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "onnxscript")]
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [handler], False
    try:
        with (
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of torch's own use of what it deprecates
            yield
    finally:
        for logger, handlers, propagate in before:
            logger.handlers, logger.propagate = handlers, propagate


def unused_parameters(network: torch.nn.Module, row: Row) -> tuple[str, ...]:
    """Names of the parameters that no output depends on, by automatic differentiation.

    Parameters that the author froze are asked too. Empty if no output can be differentiated.
    """
    named = dict(network.named_parameters())
    frozen = [parameter for parameter in named.values() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        outputs = _tensors(network(*(torch.from_numpy(np.array(a)) for a in row.values())))
        smooth = [output.sum() for output in outputs if output.requires_grad]
        if not smooth or not named:
            return ()
        found = torch.autograd.grad(smooth, list(named.values()), allow_unused=True)
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
    return tuple(name for name, grad in zip(named, found, strict=True) if grad is None)
