"""Which model a report of ST's tool is about: the files, inputs and outputs that it names, and
whether they are those of a bundle.

By what public reports of Core 2.2 to 4.0 show of them; ST documents none of it as a format.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import PureWindowsPath
from typing import Literal

from onnxq.artifacts import GenerateReport, InfoReport, ReportedValue, ValidateReport
from onnxq.errors import StaleRecordError
from onnxq.handoff.contract import Contract, InputOutput

__all__ = ["models_in", "refuse_another_model", "strings_in", "values_in"]

StReport = GenerateReport | InfoReport | ValidateReport
_FILE = re.compile(r"^\s*model[ _]file\s*:\s*(.+?)\s*$", re.I | re.M)
_NAMED = re.compile(r"([^\s\"'=:/\\]+\.onnx)\b", re.I)
_FORM = r"(\w+)\s*\(\s*(\d+(?:\s*x\s*\d+)*)\s*\)"
_LISTED = re.compile(rf"^\s*(input|output)\s+\d+/\d+\s*:\s*'([^']*)'\s*,\s*{_FORM}", re.I | re.M)
_CROSS = re.compile(rf"^\s*X-cross\s+#\d+.*?'([^']*)'\s*,\s*(?:\d+\s*x\s*)?{_FORM}", re.I | re.M)
_TYPES = {
    "s8": "int8",
    "u8": "uint8",
    "s16": "int16",
    "u16": "uint16",
    "s32": "int32",
    "f32": "float32",
    "float": "float32",
}


def models_in(text: str) -> tuple[str, ...]:
    """Names, without folders, of the model files that ``text`` is about: of its line ``model
    file``, else every ``….onnx`` in it."""
    found = _FILE.findall(text) or _NAMED.findall(text)
    return tuple(dict.fromkeys(PureWindowsPath(name).name for name in found))


def values_in(text: str) -> tuple[ReportedValue, ...]:
    """The inputs and outputs that ``text`` lists, else the outputs of its accuracy table."""
    listed = [(side.lower(), *rest) for side, *rest in _LISTED.findall(text)]
    rows = listed or [("output", *rest) for rest in _CROSS.findall(text)]
    return tuple(
        ReportedValue(
            side=_side(side),
            name=name,
            dtype=_TYPES.get(dtype.lower(), dtype.lower()),
            shape=tuple(int(size) for size in shape.split("x")),
        )
        for side, name, dtype, shape in rows
    )


def strings_in(data: object) -> Iterator[str]:
    """Every text in parsed JSON, without the keys."""
    if isinstance(data, str):
        yield data
    elif isinstance(data, dict):
        for value in data.values():
            yield from strings_in(value)
    elif isinstance(data, list):
        for value in data:
            yield from strings_in(value)


def refuse_another_model(report: StReport, contract: Contract) -> bool:
    """Whether the report says at all which model it is about.

    Raises StaleRecordError if it names another file than the contract's, or another number, shape
    or type of inputs or outputs. A type may be the file's or the device's, a shape may have the
    channels last and more or fewer axes of size 1.
    """
    faults = []
    # names in a command line end at a space: the last word of a name that has one is it as well
    if report.models and not {contract.model, contract.model.split()[-1]} & set(report.models):
        faults.append(f"it names {', '.join(report.models)}, not {contract.model}")
    values = () if isinstance(report, InfoReport) else report.values
    whole = isinstance(report, GenerateReport)
    for side, own in (("input", contract.inputs), ("output", contract.outputs)):
        told = [value for value in values if value.side == side]
        fault = _unlike(told, own, whole=whole)
        if fault:
            faults.append(f"its {side}s are {fault}")
    if faults:
        raise StaleRecordError(
            f"is a report of another model: {'; '.join(faults)}",
            where=report.file,
            do=f"give the report of {contract.model}, or the bundle of the model it is about",
        )
    return bool(report.models or values)


def _side(word: str) -> Literal["input", "output"]:
    return "input" if word == "input" else "output"


def _unlike(told: Sequence[ReportedValue], own: Sequence[InputOutput], *, whole: bool) -> str:
    """How the reported values are not the contract's; empty if each is one of them.

    ``whole`` says that the report lists all of them, each once.
    """
    left = list(own)
    fits = not (told and whole) or len(told) == len(own)
    for value in told:
        alike = next((one for one in left if _is_like(value, one)), None)
        fits = fits and alike is not None
        if alike is not None and whole:
            left.remove(alike)
    if fits:
        return ""
    given = ", ".join(f"{value.dtype}({_shape(value.shape)})" for value in told)
    wanted = ", ".join(f"{'/'.join(_types(one))}({_shape(one.shape)})" for one in own)
    return f"{given}, the contract's {wanted}"


def _is_like(value: ReportedValue, own: InputOutput) -> bool:
    if value.dtype not in _types(own):
        return False
    if any(isinstance(size, str) for size in own.shape[1:]):
        return True  # a free size: the compiler was given one
    sizes = [1 if isinstance(size, str) else size for size in own.shape]
    orders = [sizes, [*sizes[:1], *sizes[2:], *sizes[1:2]]]
    return _without_ones(value.shape) in [_without_ones(order) for order in orders]


def _types(own: InputOutput) -> list[str]:
    """The types that the value may have: the file's, the device's, a camera's bytes."""
    known = own.quantization
    device = [] if known is None else [known.type.value]
    return list(
        dict.fromkeys([own.dtype, *device, *(["uint8"] if known and known.byte_image else [])])
    )


def _without_ones(shape: Sequence[int]) -> list[int]:
    return [size for size in shape if size != 1]


def _shape(shape: Sequence[int | str]) -> str:
    return "x".join(map(str, shape))
