"""README.md of a bundle: what it holds, how to run it, what is known of it and what is not."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from onnxq.artifacts import (
    AnswerCheck,
    Ledger,
    Manifest,
    MemoryEstimate,
    RuleResult,
    VerificationReport,
)
from onnxq.handoff.contract import Contract, InputOutput
from onnxq.handoff.ledger import ledger_lines
from onnxq.handoff.memory import memory_lines
from onnxq.handoff.part import Part
from onnxq.handoff.readme_parts import steps_in_words
from onnxq.handoff.st_edge_ai import command_lines, is_for_st
from onnxq.target import Target

__all__ = ["Contents", "readme", "unverified_notice"]

_LEVEL = {"full": "ORT_ENABLE_ALL", "none": "ORT_DISABLE_ALL"}


@dataclass(frozen=True)
class Contents:
    """Everything that a README tells of. ``files`` are the names in the bundle's folder,
    ``verdict`` the one that the bundle carries; ``made_up`` says that the known answers are of
    random numbers, ``made_up_ranges`` that the calibration was."""

    contract: Contract
    target: Target
    report: VerificationReport | None
    rules: Sequence[RuleResult]
    answers: AnswerCheck
    files: Sequence[str]
    verdict: str
    made_up: bool
    made_up_ranges: bool
    parts: Sequence[Part] = ()
    manifest: Manifest | None = None
    memory: Sequence[MemoryEstimate] = ()
    ledgers: Sequence[Ledger] = ()
    also: Sequence[str] = ()


def readme(contents: Contents) -> str:
    """The text of README.md."""
    title = contents.report.name if contents.report is not None else contents.contract.model
    parts = [
        f"# {title} for {contents.target.title}",
        *([unverified_notice(contents.verdict)] if contents.verdict != "passed" else []),
        _first_checks(contents),
        _feeding(contents.contract),
        *([steps_in_words(contents.manifest, contents.parts)] if contents.manifest else []),
        _running(contents),
        _measured(contents),
        _estimated(contents),
        _predicted(contents),
        _not_verified(contents),
        _rules(contents.rules),
    ]
    return "\n\n".join(parts) + "\n"


def unverified_notice(verdict: str) -> str:
    """The sentence that a bundle carries whose model did not pass verification."""
    return (
        f"**UNVERIFIED** (verdict: {verdict}). Nobody has shown that this INT8 model is good "
        "enough for its task. Do not ship it."
    )


def _first_checks(contents: Contents) -> str:
    listing = "\n".join(f"- `{name}`" for name in contents.files)
    level = _LEVEL[contents.answers.optimization]
    source = "random numbers, as no data was given" if contents.made_up else "held-out samples"
    return (
        "## Is it whole?\n\n```sh\nsha256sum -c SHA256SUMS\npython selftest.py\n```\n\n"
        "The scripts need numpy and onnxruntime only (`pip install -r requirements.txt`). "
        f"`selftest.py` computes {contents.answers.vectors} known answers again ({source}) under "
        f"{level} with one thread, says by how many steps of the output they differ, and how long "
        "one sample takes. On the machine that made this bundle every answer was the same bit for "
        "bit.\n"
        "\n`bundle.json` records versions, processor and the digest of what the bundle was made "
        "from; `onnxq rebuild` makes it again from that, and compares every byte."
        f"\n\n{listing}"
        + "".join(
            f"\n\n`{name}/` is a bundle of its own: the same numbers for {name}, with its own "
            "checksums and verdict."
            for name in contents.also
        )
    )


def _feeding(contract: Contract) -> str:
    parts = [f"## What goes in, what comes out\n\n{contract.rounding}. Source: `contract.json`."]
    for value in (*contract.inputs, *contract.outputs):
        parts.append(_value(value))
    return "\n\n".join(parts)


def _value(value: InputOutput) -> str:
    lines = [
        f"**{value.direction} `{value.name}`**: {value.dtype} {list(value.shape)}, {value.layout}"
    ]
    if value.domain is not None:
        lines.append(f"- values lie in [{value.domain[0]:g}, {value.domain[1]:g}]")
    if value.quantization is not None:
        known = value.quantization
        lines += [
            f"- integer form: {known.type}, scale {known.scale!r}, zero point {known.zero_point}",
            f"- `{known.quantize}`",
            f"- `{known.dequantize}`",
            f"- holds reals from {known.real_low:g} to {known.real_high:g}",
        ]
        if known.byte_image:
            lines.append(f"- picture bytes: {known.byte_image}")
        if known.domain_covered is False:
            lines.append("- WARNING: part of the declared domain lies outside and is cut off")
    if value.note:
        lines.append(f"- {value.note}")
    return "\n".join(lines)


def _running(contents: Contents) -> str:
    target = contents.target
    parts = [f"## Run it on {target.title}"]
    if is_for_st(target):
        for part in contents.parts:
            head = f"In `{part.model.stem}/`:\n\n"
            parts.append(head + "\n".join(command_lines(part.contract, target)))
        if not contents.parts:
            parts.append("\n".join(command_lines(contents.contract, target)))
    else:
        parts.append("```sh\n" + "\n".join(_commands(target, contents.contract)) + "\n```")
    parts.append("\n".join(f"- {note}" for note in target.notes))
    parts.append(_in_python(contents))
    parts += _in_c(contents)
    return "\n\n".join(parts)


def _in_c(contents: Contents) -> list[str]:
    """How the conversions are judged in C, of every model that has integer ends."""
    folders = [f"{part.model.stem}/" for part in contents.parts] or [""]
    lines = [
        f"gcc -std=c99 -Wall -Wextra -Werror -pedantic {folder}self_test.c "
        f"-o {folder}self_test -lm\n./{folder}self_test"
        for folder in folders
        if f"{folder}self_test.c" in contents.files
    ]
    if not lines:
        return []
    where = "In the folder of each part " if contents.parts else ""
    return [
        f"## In C\n\n{where}`contract.h` (C99, no library but `libm`) holds shapes, "
        "scales and zero points, and functions that quantize and dequantize; `known_answers.h` the "
        "known answers as arrays. `self_test.c` judges these functions, or your own in their "
        "place: its first lines say how.\n\n"
        "```sh\n" + "\n".join(lines) + "\n```"
    ]


def _commands(target: Target, made: Contract) -> list[str]:
    """The target's commands for one model."""
    names = {"{model}": shlex.quote(made.model), "{answers}": "validate_inputs.npz"}
    return [_filled(command, names) for command in target.commands]


def _filled(command: str, names: dict[str, str]) -> str:
    for key, name in names.items():
        command = command.replace(key, name)
    return command


def _in_python(contents: Contents) -> str:
    """Two ways to run it, made from the names of this very file; both run as they stand."""
    contract = contents.contract
    feed = ", ".join(f"{v.name!r}: known[{f'input.{v.name}'!r}][0]" for v in contract.inputs)
    integers = [
        f"integers = load('.').quantize({v.name!r}, inputs[{v.name!r}])  # {v.quantization.type}"
        for v in contract.inputs
        if v.quantization is not None and v.dtype.startswith("float")
    ]
    options = "".join(
        f"options.add_session_config_entry({key!r}, {value!r})\n"
        for key, value in contents.target.session_options.items()
    )
    head = (
        "## In Python\n\n`run.py` checks type, shape and declared domain of what it is fed; its "
        "`Runner` is for your own program:\n\n```python\n"
        "import numpy as np\nfrom contract import load\nfrom run import Runner\n\n"
        'known = np.load("known_answers.npz")\n'
        f"inputs = {{{feed}}}\noutputs = Runner('.').run(inputs)\n"
        + "".join(f"{line}\n" for line in integers[:1])
        + "```"
    )
    if contents.parts:
        return head
    return (
        f"{head}\n\nThe same with ONNX Runtime alone, which checks no domain:\n\n```python\n"
        'import numpy as np\nimport onnxruntime as ort\n\nknown = np.load("known_answers.npz")\n'
        "options = ort.SessionOptions()\noptions.graph_optimization_level = "
        f"ort.GraphOptimizationLevel.{_LEVEL[contents.answers.optimization]}\n{options}"
        f"session = ort.InferenceSession({contract.model!r}, options, "
        f'providers=["CPUExecutionProvider"])\noutputs = session.run(None, {{{feed}}})\n```'
    )


def _measured(contents: Contents) -> str:
    report = contents.report
    what = "these very parts" if contents.parts else "this very file"
    head = f"## Measured, on {what}\n\n"
    if report is None:
        return head + "Nothing: the model came without a verification report."
    lines = [f"- verdict: **{report.verdict}**. " + "; ".join(report.reasons)]
    lines += [f"- gate: {gate.statement}: {gate.verdict}" for gate in report.gates]
    compared = report.comparison
    lines.append(
        f"- {compared.samples} samples in {compared.groups} groups of {compared.source}, judged as "
        f"the {compared.judged_as} computes"
    )
    for row in compared.metrics:
        lines.append(f"- {row.metric}: {row.fp32:.6g} → {row.int8:.6g} {row.unit} (FP32 → INT8)")
    lines.append(
        f"- integer share of operators {report.coverage.operators.fraction:.1%}, of "
        f"multiply-accumulates {report.coverage.macs.fraction:.1%}"
    )
    lines.append("- more in `report/`")
    return head + "\n".join(lines)


def _estimated(contents: Contents) -> str:
    """What was computed from the file and measured nowhere: memory, and what a sample costs."""
    names = [part.model.name for part in contents.parts] or [contents.contract.model]
    parts = ["## Estimated, from the file alone"]
    for name, estimate in zip(names, contents.memory, strict=True):
        parts.append(f"Memory of `{name}`: " + "\n".join(memory_lines(estimate)))
    parts.append("Cost:\n\n" + "\n".join(ledger_lines(contents.ledgers, contents.target)))
    return "\n\n".join(parts)


def _predicted(contents: Contents) -> str:
    warnings = [r for r in contents.rules if r.severity == "warning"]
    lines = ["## Predicted, from the rules of the target\n"]
    if not contents.rules:
        lines.append("No rule of the target is broken.")
    lines += [f"- {r.where} {r.what} ({r.rule}; {r.source})" for r in warnings]
    if contents.rules and not warnings:
        lines.append("No warning; what was let pass by name stands below.")
    return "\n".join(lines)


def _not_verified(contents: Contents) -> str:
    lines = [
        "## Not verified\n",
        "- Nothing was run on a device: no latency, no memory, no accuracy there.",
    ]
    if any(command.startswith("stedgeai") for command in contents.target.commands):
        lines.append(
            "- ST's tool was not run: whether `stedgeai` imports this file, what it maps to the "
            "NPU and what memory it needs is for its own report to say. The rules above are second "
            "hand."
        )
    else:
        lines.append(
            "- Answers on another processor or version of ONNX Runtime may differ by single steps."
        )
    if contents.made_up_ranges:
        lines.append("- The ranges were calibrated on MADE-UP numbers.")
    return "\n".join(lines)


def _rules(rules: Sequence[RuleResult]) -> str:
    waived = [r for r in rules if r.waived is not None]
    lines = ["## Rules let pass by name\n"]
    if not waived:
        lines.append("None.")
    for rule in dict.fromkeys(r.rule for r in waived):
        places = [r for r in waived if r.rule == rule]
        lines.append(f"- **{rule}**: {places[0].waived}")
        lines += [f"  - {place.where} {place.what}" for place in places]
    return "\n".join(lines)
