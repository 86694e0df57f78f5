"""The node tests of the ONNX backend, as far as they are of opset 13 to 21."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import torch
from onnx.backend.test.case.node import collect_testcases

from onnxq.quantize.torch_graph import (
    NEWEST_OPSET,
    OLDEST_OPSET,
    TorchGraph,
    supported_operators,
)
from onnxq.quantize.torch_graph.types import KNOWN_TYPES, as_tensor

OTHER_TYPES = "strings, sequences, optionals, 8- and 4-bit floats, 2-bit integers: not computed"
NEWER = "a type, attribute or shape rule that came after opset 21"
TRAINING = "training mode, which TorchGraph refuses"
HALF_STEPS = {torch.float16: 2 * 2.0**-10, torch.bfloat16: 2 * 2.0**-7}  # two units in last place


@dataclass(frozen=True)
class Case:
    name: str
    model: onnx.ModelProto
    data_sets: Any
    rtol: float
    atol: float

    @property
    def operators(self) -> set[str]:
        return {f"{n.domain}.{n.op_type}".removeprefix(".") for n in self.model.graph.node}

    @property
    def opset(self) -> int:
        return next(o.version for o in self.model.opset_import if not o.domain)

    def at(self, opset: int) -> "Case":
        """The same case stamped with another opset."""
        model = onnx.ModelProto.FromString(self.model.SerializeToString())
        for entry in model.opset_import:
            entry.version = opset if not entry.domain else entry.version
        return Case(self.name, model, self.data_sets, self.rtol, self.atol)

    def is_valid(self) -> bool:
        try:
            onnx.checker.check_model(self.model, full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
            return False
        return True

    def why_not(self) -> str:
        """Why a case of supported operators is not run; empty where it is."""
        values = [*self.model.graph.input, *self.model.graph.output, *self.model.graph.value_info]
        if any(v.type.tensor_type.elem_type not in KNOWN_TYPES for v in values):
            return OTHER_TYPES
        if "training" in self.name:
            return TRAINING
        newest = self.at(min(max(self.opset, OLDEST_OPSET), NEWEST_OPSET))
        no_float_mod = "Mod" in self.operators and "fmod_0" in self.name and "float" in self.name
        if no_float_mod or (newest.opset != self.opset and not newest.is_valid()):
            return NEWER  # older schemas forbid Mod of floats without fmod in words alone
        return ""


@cache
def all_cases() -> tuple[Case, ...]:
    """Every case whose operators are all supported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the arithmetic that makes the expected values
        found = collect_testcases(None)
    cases = [Case(c.name, c.model, c.data_sets, c.rtol, c.atol) for c in found if c.model]
    supported = set(supported_operators())
    return tuple(case for case in cases if case.operators <= supported)


@cache
def run_cases() -> tuple[Case, ...]:
    """The cases that are run, each at its own opset or the nearest of 13 to 21."""
    return tuple(
        case.at(min(max(case.opset, OLDEST_OPSET), NEWEST_OPSET))
        for case in all_cases()
        if not case.why_not()
    )


def differences(case: Case) -> Iterator[str]:
    """What TorchGraph computes otherwise than the case expects."""
    graph = TorchGraph(case.model)
    for inputs, outputs in case.data_sets:
        given = zip(case.model.graph.input, inputs, strict=False)
        fed = {v.name: as_tensor(array_of(a), _type(v), v.name) for v, a in given}
        computed = graph(fed)
        for value, expected in zip(case.model.graph.output, outputs, strict=True):
            tensor = computed[value.name].detach()
            rtol = max(case.rtol, HALF_STEPS.get(tensor.dtype, 0))
            found = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
            wanted = array_of(expected)
            if wanted.dtype.kind == "V" or wanted.dtype.itemsize < found.dtype.itemsize:
                wanted = wanted.astype(found.dtype)  # bfloat16 and 4-bit types are not numpy's
            if found.dtype != wanted.dtype or found.shape != wanted.shape:
                yield f"{case.name}: {found.dtype}{found.shape}, not {wanted.dtype}{wanted.shape}"
            elif not np.allclose(found, wanted, rtol, case.atol, equal_nan=True):
                yield f"{case.name}: {found.ravel()[:4]}, not {wanted.ravel()[:4]}"


def array_of(value: Any) -> np.ndarray:
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return np.asarray(value)


def _type(value: onnx.ValueInfoProto) -> int:
    return int(value.type.tensor_type.elem_type)
