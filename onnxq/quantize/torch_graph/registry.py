"""Which torch function computes an operator: one table, filled by the files of the families."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor

from onnxq.errors import ModelError, nearest

__all__ = [
    "NEWEST_OPSET",
    "OLDEST_OPSET",
    "Call",
    "Computation",
    "Step",
    "computation_of",
    "integers",
    "operator",
    "supported_operators",
]

OLDEST_OPSET, NEWEST_OPSET = 13, 21


@dataclass(frozen=True)
class Call:
    """What is known of a node before it runs.

    ``input_types`` and ``output_types`` are ONNX element types, 0 for a tensor that is left out.
    """

    where: str
    op_type: str
    opset: int
    attributes: Mapping[str, Any]
    input_types: tuple[int, ...]
    output_types: tuple[int, ...]

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or ``default`` where the node does not have it."""
        return self.attributes.get(name, default)

    def refused(
        self, what: str, do: str = "rewrite the node, or leave this step out"
    ) -> ModelError:
        """The error of a node that cannot be computed exactly."""
        return ModelError(what, where=self.where, do=do)

    def only(self, name: str, default: str, known: Sequence[str]) -> str:
        """A string attribute that must be one of ``known``. Raises ModelError."""
        value: str = self.get(name, default)
        if value not in known:
            raise self.refused(f"{name} is `{value}`, which is not computed", nearest(value, known))
        return value


Computation = Callable[..., Tensor | tuple[Tensor, ...]]
_C = TypeVar("_C", bound=Computation)


@dataclass(frozen=True)
class Step:
    """A node as it is run, and the tensors nobody needs any more behind it."""

    call: Call
    computation: Computation
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    spent: tuple[str, ...] = ()


_TABLE: dict[str, Computation] = {}


def operator(*names: str) -> Callable[[_C], _C]:
    """Enter a function into the table: ``function(call, *inputs)``, None for an input left out."""

    def enter(function: _C) -> _C:
        _TABLE.update(dict.fromkeys(names, function))
        return function

    return enter


def supported_operators() -> tuple[str, ...]:
    """Every operator that is computed, in order of the alphabet."""
    return tuple(sorted([*_TABLE, "Constant"]))  # a Constant is a buffer, and never called


def computation_of(domain: str, op_type: str, where: str) -> Computation:
    """The function that computes an operator. Raises ModelError where there is none."""
    if domain in ("", "ai.onnx") and op_type in _TABLE:
        return _TABLE[op_type]
    name = f"{domain}.{op_type}" if domain else op_type
    raise ModelError(
        f"the operator `{name}` is not computed in torch",
        where=where,
        do="rewrite it with operators of the default domain, or leave this step out",
    )


def integers(tensor: Tensor) -> list[int]:
    """The numbers of a tensor that is an argument (axes, a shape), of any rank."""
    return [int(n) for n in tensor.reshape(-1).tolist()]
