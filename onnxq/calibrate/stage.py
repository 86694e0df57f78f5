"""The calibrate stage: chosen samples become ranges. The only file here that touches disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx

from onnxq.artifacts import CalibrationResult, Finding, TensorRange, ValueFacts
from onnxq.calibrate.collect import collect
from onnxq.calibrate.estimators import EstimatorOptions, estimate
from onnxq.calibrate.readers import (
    SampleReader,
    choose,
    describe,
    refuse_overlap,
)
from onnxq.calibrate.statistics import Summary
from onnxq.graph import load_model, refuse_quantized
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance
from onnxq.recipe import CalibrateSection
from onnxq.sample_checks import check_samples
from onnxq.samples import Samples
from onnxq.store import save_record, sha256_of_file

__all__ = ["RECORD", "calibrate"]

RECORD = "calibration.json"
_FIXED_RANGES = {
    "Sigmoid": (0.0, 1.0),
    "HardSigmoid": (0.0, 1.0),
    "Softmax": (0.0, 1.0),
    "Tanh": (-1.0, 1.0),
}
_ENOUGH_OF_DOMAIN = 0.95


def calibrate(  # noqa: PLR0913 - the stage's whole input, each of it named
    model_path: Path,
    values: tuple[Sequence[ValueFacts], Sequence[ValueFacts]],
    samples: Samples,
    section: CalibrateSection,
    folder: Path,
    *,
    evaluation: Samples | None = None,
    progress: Progress = silent,
) -> CalibrationResult:
    """Ranges of every float tensor of the graph at ``model_path``, written to ``folder``.

    ``values`` are the facts of the graph's inputs and outputs; a declared domain pins the range.
    Raises DataError for samples that cannot be used, LeakageError if ``evaluation`` shares any.
    """
    inputs, outputs = values
    model = load_model(model_path)
    refuse_quantized(model, model_path.name)
    indices, plan, notes = choose(samples, section.samples, section.seed, section.stratify)
    chosen = samples.take(indices)
    check_samples(chosen, inputs)
    choice = describe(samples, chosen, (plan, section.seed, indices))
    if evaluation is not None and not samples.made_up:
        refuse_overlap(choice, evaluation)
    summaries = collect(model, SampleReader(chosen), inputs, progress)
    ranges = ranges_of(model, summaries, [*inputs, *outputs], section)
    result = CalibrationResult(
        model_sha256=sha256_of_file(model_path),
        method=section.method,
        choice=choice.model_copy(update={"notes": (*choice.notes, *notes)}),
        ranges=ranges,
        findings=tuple(_findings(ranges, inputs)),
        provenance=provenance(section.model_dump(mode="json")),
    )
    save_record(result, folder / RECORD)
    return result


def ranges_of(
    model: onnx.ModelProto,
    summaries: Mapping[str, Summary],
    values: Sequence[ValueFacts],
    section: CalibrateSection,
) -> dict[str, TensorRange]:
    """Summaries → ranges by the section's method; what is declared or mathematical is pinned."""
    pins = {
        output: (_FIXED_RANGES[node.op_type], f"{node.op_type}'s mathematical range")
        for node in model.graph.node
        if node.op_type in _FIXED_RANGES
        for output in node.output
    }
    pins |= {v.name: (v.domain, "declared domain") for v in values if v.domain is not None}
    options = EstimatorOptions(coverage=section.coverage)
    return {
        name: _range_of(summary, section, options, pins.get(name))
        for name, summary in summaries.items()
        if summary.count  # a tensor without elements has no range, and is never quantized
    }


def _range_of(
    summary: Summary,
    section: CalibrateSection,
    options: EstimatorOptions,
    pin: tuple[tuple[float, float], str] | None,
) -> TensorRange:
    estimated = estimate(summary, section.method, options)
    low, high = pin[0] if pin else (estimated.low, estimated.high)
    outside = summary.values_below(low) + summary.values_above(high)
    return TensorRange(
        low=low,
        high=high,
        observed_low=summary.low,
        observed_high=summary.high,
        values=summary.count,
        zeros=summary.zeros,
        outside_fraction=outside / summary.count,
        pinned=pin[1] if pin else None,
    )


def _findings(ranges: Mapping[str, TensorRange], inputs: Sequence[ValueFacts]) -> list[Finding]:
    found = [
        Finding(
            where=name,
            what="is zero in every calibration sample",
            do="check that the samples reach this part of the network",
        )
        for name, seen in ranges.items()
        if seen.zeros == seen.values
    ]
    for value in inputs:
        seen = ranges.get(value.name)
        if value.domain is None or seen is None:
            continue
        share = (seen.observed_high - seen.observed_low) / (value.domain[1] - value.domain[0])
        if share < _ENOUGH_OF_DOMAIN:
            found.append(
                Finding(
                    where=value.name,
                    what=f"calibration samples cover {share:.0%} of the declared domain "
                    f"{list(value.domain)}",
                    do="calibrate on more varied samples; the scale itself is pinned by the domain",
                )
            )
    return found
