"""The same numbers for another target: a file with activations of the type that it takes.

int8 and uint8 activations whose zero points are 128 apart stand for the same reals, so one
calibration serves an NPU that takes int8 and a runtime that is quick with uint8.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from onnxq.artifacts import BUNDLE_FILE, Bundle, QuantizedModel, VerificationReport
from onnxq.qtypes import IntType
from onnxq.samples import Samples
from onnxq.store import load_record, save_record
from onnxq.target import Target, load_target

__all__ = ["Twin", "bundles_of", "make_twins", "reports_of", "twins_of"]

R = TypeVar("R", VerificationReport, Bundle)
_COMPARED = 8  # samples on which every integer of both files is compared


class Twin:
    """Where the file for another target lies, and the record of it; it is the first file itself
    where both take activations of the same type."""

    def __init__(self, int8: Path, made_for: Target, target: Target) -> None:
        self.target = target
        self.is_other = target.activation_type != made_for.activation_type
        kind = "u8" if target.activation_type == IntType.UINT8 else "s8"
        stem = f"{int8.stem}-{kind}" if self.is_other else int8.stem
        self.model = int8.with_name(f"{stem}.onnx")
        self.record = int8.with_name(f"{stem}.{target.slug}.json")


def twins_of(int8: Path, target: Target, names: Sequence[str]) -> tuple[Twin, ...]:
    """The twins of the file for ``target`` that lies at ``int8``: one for each of ``names`` but the
    target's own."""
    return tuple(Twin(int8, target, load_target(name)) for name in names if name != target.name)


def make_twins(twins: Sequence[Twin], int8: Path, samples: Samples) -> None:
    """Write every twin and its record beside ``int8``.

    Each is proven to hold the integers of ``int8``, 128 apart, on ``samples``: ParityError if not.
    """
    from onnxq.quantize.convert import convert, converted_record

    record = load_record(QuantizedModel, int8.with_suffix(".json"))
    few = samples.thinned(_COMPARED)
    for twin in twins:
        changed = record.model_copy(update={"target": twin.target.name, "parts": None})
        if twin.is_other:
            made = convert(int8, twin.target.activation_type, few, twin.model)
            changed = converted_record(record, made, twin.target.name)
        save_record(changed, twin.record)


def reports_of(twins: Sequence[Twin], folder: Path) -> dict[str, VerificationReport]:
    """The twins' reports in the folder of the verification, by target."""
    return dict(_records(VerificationReport, twins, folder, "report.json"))


def bundles_of(twins: Sequence[Twin], folder: Path) -> dict[str, Bundle]:
    """The twins' bundles in the folder of the hand-off, by target: of those that passed."""
    return dict(_records(Bundle, twins, folder, BUNDLE_FILE))


def _records(
    kind: type[R], twins: Sequence[Twin], folder: Path, name: str
) -> Iterator[tuple[str, R]]:
    for twin in twins:
        path = folder / twin.target.slug / name
        if path.is_file():
            yield twin.target.name, load_record(kind, path)
