"""The contract of a graph that ships in parts, from theirs and what the host moves."""

from collections.abc import Iterator, Mapping

from onnxq.artifacts import HostStep, Manifest, ValueFacts
from onnxq.handoff.contract import Contract, InputOutput, QuantizationFacts, plain_layout

__all__ = ["whole_contract"]


def whole_contract(
    manifest: Manifest, parts: Mapping[str, Contract], *, name: str, sha256: str
) -> Contract:
    """The contract of all parts together; ``parts`` holds that of each by its name.

    Host steps only move values, so that an input may be quantized before them and an output
    dequantized behind them, with the parameters of the part that takes or makes it. ``name`` and
    ``sha256`` are those of the manifest's file.
    """
    inputs = [
        _entry(value, "input", list(_takers(value.name, manifest, parts)))
        for value in manifest.inputs
    ]
    outputs = [
        _entry(value, "output", [_maker(value.name, manifest, parts)]) for value in manifest.outputs
    ]
    return Contract(model=name, sha256=sha256, inputs=tuple(inputs), outputs=tuple(outputs))


def _entry(value: ValueFacts, direction: str, known: list[QuantizationFacts | None]) -> InputOutput:
    forms = {None if facts is None else facts.affine for facts in known}
    single = known[0] if len(forms) == 1 else None
    note = "" if single else "it has no one integer form: keep it float"
    return InputOutput.model_validate(
        {
            "name": value.name,
            "direction": direction,
            "dtype": value.dtype,
            "shape": value.shape,
            "layout": plain_layout(value.shape),
            "domain": value.domain,
            "quantization": single,
            "note": note,
        }
    )


def _takers(
    name: str, manifest: Manifest, parts: Mapping[str, Contract]
) -> Iterator[QuantizationFacts | None]:
    """How each part that takes the input quantizes it; None if it is an output as it is."""
    carriers = {name}
    for step in manifest.steps:
        if isinstance(step, HostStep):
            if carriers & set(step.inputs):
                carriers.add(step.output)
        else:
            takes = {value.name: value.quantization for value in parts[step.part].inputs}
            yield from (takes[own] for own, value in step.inputs.items() if value in carriers)
    if carriers & {value.name for value in manifest.outputs}:
        yield None


def _maker(
    name: str, manifest: Manifest, parts: Mapping[str, Contract]
) -> QuantizationFacts | None:
    """How the part that makes the output dequantizes it; None if several values flow into it."""
    for step in reversed(manifest.steps):
        if isinstance(step, HostStep):
            if step.output == name:
                if len(step.inputs) != 1:
                    return None
                name = step.inputs[0]
        elif name in step.outputs.values():
            makes = {value.name: value.quantization for value in parts[step.part].outputs}
            return next(makes[own] for own, value in step.outputs.items() if value == name)
    return None
