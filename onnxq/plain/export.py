"""A plain ``.onnx`` in canonical form."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from onnxq.artifacts import ExportedModel, ValueFacts
from onnxq.errors import UsageError
from onnxq.export.stage import export
from onnxq.graph import load_model, values_of
from onnxq.progress import silent
from onnxq.recipe import ExportSection, ValueSection
from onnxq.target import Target

__all__ = ["Domains", "export_file", "opset_of"]

Domains = Mapping[str, tuple[float, float]]


def export_file(
    model: Path, target: Target, domains: Domains, folder: Path, opset: int | None = None
) -> ExportedModel:
    """The canonical form of an FP32 ``.onnx`` in ``folder``. Raises as ``export`` does.

    ``opset`` is the model's own unless given, or the nearest to it that ``target`` takes.
    """
    inputs, outputs = values_of(load_model(model))
    known = {value.name for value in (*inputs, *outputs)}
    for name in domains:
        if name not in known:
            raise UsageError(
                f"`{name}` is no input or output", where="--domain", do=f"known: {sorted(known)}"
            )

    def sections(values: Sequence[ValueFacts]) -> tuple[ValueSection, ...]:
        return tuple(
            ValueSection(name=v.name, domain=domains[v.name]) for v in values if v.name in domains
        )

    section = ExportSection(
        model=model.resolve(),
        opset=min(max(opset or opset_of(model), target.opset[0]), target.opset[1]),
        inputs=sections(inputs),
        outputs=sections(outputs),
    )
    return export(section, folder, target=target, search=None, samples=None, progress=silent)


def opset_of(model: Path) -> int:
    """The version of ONNX's own operators that a file is written in."""
    imports = load_model(model).opset_import
    return next(int(entry.version) for entry in imports if entry.domain in ("", "ai.onnx"))
