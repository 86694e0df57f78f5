"""The search: from 8 bits everywhere down to 4 where that is felt least, or up where it must be."""

from collections.abc import Callable, Sequence
from pathlib import Path

from onnxq.artifacts import PlanTrial, Sensitivity, Tuning
from onnxq.graph import WEIGHTED
from onnxq.progress import Progress, silent
from onnxq.provenance import provenance
from onnxq.quantize.sensitivity import TrialGraphs
from onnxq.quantize.stage import plan_draft
from onnxq.recipe import Step
from onnxq.store import save_record
from onnxq.tuning.bench import PlanBench, Request
from onnxq.tuning.judging import Judge
from onnxq.tuning.plans import Bits, MixedPlan, downward, recipe_lines, refused_bits, upward
from onnxq.tuning.sensitivity import TRIALS, sensitivity
from onnxq.tuning.subject import Subject
from onnxq.tuning.trials import Meter, TrialBook

__all__ = ["RECORD", "Request", "front", "tune"]

RECORD = "tuning.json"
Run = Callable[[MixedPlan], PlanTrial]


def tune(
    subject: Subject, judge: Judge, request: Request, folder: Path, progress: Progress = silent
) -> Tuning:
    """Search, and write the record to ``folder``; every trial is kept there as it is measured, so
    that an interrupted search goes on.

    First the steps: none, or the section's own (or weight scales and biases), whichever leaves
    8 bits nearer to FP32. If that passes, layers take 4-bit weights in the order of what each adds
    to the error of the outputs for each weight, as many as still pass, found by bisection. If not,
    the costliest layers get more bits, as few as pass, and the others then go down. The order comes
    from single layers, so a plan that needs two layers' errors to cancel is not found.
    """
    measured = sensitivity(
        subject, folder, samples=request.trial_samples, modes=("only", "parts"), progress=progress
    )
    refused = refused_bits(subject.target, subject.section)
    bench = PlanBench(folder, subject, judge, request, progress)
    best = _base(subject, bench.run)
    steps, nodes = best.steps, dict[str, Bits]()
    if best.verdict != "passed":
        nodes, best = _up(upward(measured.layers, refused), steps, bench.run)
    if best.verdict == "passed" and "int4" not in refused:
        order = downward(
            [row for row in measured.layers if row.op_type in WEIGHTED],
            _errors_with_4_bits(subject, measured, folder, request, progress),
        )
        _down([each for each in order if each[0] not in nodes], nodes, steps, bench.run)
    found = _record(subject, judge, request, bench, refused)
    save_record(found, folder / RECORD)
    return found


def front(trials: Sequence[PlanTrial]) -> tuple[str, ...]:
    """Names of the trials that no other is as small as and as good as, and better in one; by
    size."""
    known = [trial for trial in trials if trial.increase is not None]

    def beats(one: PlanTrial, other: PlanTrial) -> bool:
        mine, its = (one.size_bytes, one.increase or 0.0), (other.size_bytes, other.increase or 0.0)
        return mine != its and mine[0] <= its[0] and mine[1] <= its[1]

    kept = [trial for trial in known if not any(beats(other, trial) for other in known)]
    return tuple(trial.name for trial in sorted(kept, key=lambda trial: trial.size_bytes))


# --- the search ---------------------------------------------------------------------------------


def _base(subject: Subject, run: Run) -> PlanTrial:
    """8 bits everywhere, without steps and with some: what passes, then what is nearer to FP32."""
    plain = run(MixedPlan("8 bits"))
    stepped = run(MixedPlan("8 bits, refined", {}, subject.section.refining))
    if stepped.increase is None or plain.increase is None:
        return plain if stepped.increase is None else stepped
    key = {"passed": 0, "not settled": 1, "failed": 2, "not possible": 3}
    return min(stepped, plain, key=lambda trial: (key[trial.verdict], trial.increase or 0.0))


def _up(
    order: Sequence[tuple[str, Bits]], steps: Sequence[str], run: Run
) -> tuple[dict[str, Bits], PlanTrial]:
    """The fewest of ``order`` whose plan passes, found by doubling and then by bisection; 8
    bits everywhere, if none does."""

    def tried(count: int) -> PlanTrial:
        named = f"more bits in {count} of {len(order)}"
        return run(MixedPlan(named, dict(order[:count]), _steps(steps)))

    failing = 0
    counts = [*(2**power for power in range(16) if 2**power < len(order)), len(order)]
    for passing in counts if order else ():
        best = tried(passing)
        if best.verdict == "passed":
            break
        failing = passing
    else:
        return {}, run(MixedPlan("8 bits", {}, _steps(steps)))
    while passing - failing > 1:
        middle = (passing + failing) // 2
        trial = tried(middle)
        if trial.verdict == "passed":
            passing, best = middle, trial
        else:
            failing = middle
    return dict(order[:passing]), best


def _down(
    order: Sequence[tuple[str, Bits]], above: dict[str, Bits], steps: Sequence[str], run: Run
) -> None:
    """As many of ``order`` with 4 bits as pass, by bisection; ``above`` keep their bits."""
    passing, failing = 0, len(order) + 1
    count = len(order)
    while failing - passing > 1:
        nodes: dict[str, Bits] = {**above, **dict(order[:count])}
        more = f", more bits in {len(above)}" if above else ""
        trial = run(MixedPlan(f"4 bits in {count} of {len(order)}{more}", nodes, _steps(steps)))
        if trial.verdict == "passed":
            passing = count
        else:
            failing = count
        count = (passing + failing) // 2


def _steps(names: Sequence[str]) -> tuple[Step, ...]:
    return tuple(name for name in names)  # type: ignore[misc]  # from a record of such names


def _errors_with_4_bits(
    subject: Subject,
    measured: Sensitivity,
    folder: Path,
    request: Request,
    progress: Progress,
) -> dict[str, float]:
    """Error of the outputs with the weights of one layer in 4 bits, and all else float."""
    names = [row.layer for row in measured.layers if row.op_type in WEIGHTED and row.weights]
    section = MixedPlan("", dict.fromkeys(names, "int4")).section(subject.section)
    planned = plan_draft(subject.original, subject.calibration, subject.target, section)
    graphs = TrialGraphs(planned.draft, planned.graph)
    meter = Meter(subject.original, subject.samples, subject.batch, request.trial_samples)
    book = TrialBook(folder / TRIALS, meter, subject.model)
    return {
        name: book.measure("only weights", name, graphs.graph([name], [])).error
        for name in progress(names, "measuring 4 bits", len(names))
    }


# --- what came out ------------------------------------------------------------------------------


def _record(
    subject: Subject,
    judge: Judge,
    request: Request,
    bench: PlanBench,
    refused: dict[Bits, str],
) -> Tuning:
    trials = tuple(bench.trials.values())
    able = [trial for trial in trials if trial.verdict == "passed" and not trial.broken]
    best = min(able, key=lambda t: (t.size_bytes, t.latency_ratio or 0.0), default=None)
    lines = ""
    if best is not None:
        lines = recipe_lines(bench.plans[best.name].section(subject.section))
    seen = "on samples that their source holds and the ranges do not come from"
    if subject.unused is None or judge.samples.name != subject.unused.name:
        seen = f"on {judge.samples.name}"
    elif not len(subject.unused):
        seen = "on the very samples that the ranges come from, as there are no others"
    return Tuning(
        name=subject.name,
        target=subject.target.name,
        metric=request.metric,
        unit=request.unit,
        limit=request.limit,
        judge=request.by,
        truth=judge.truth,
        data=judge.samples.name,
        data_sha256=judge.samples.digest,
        fp32_bytes=bench.fp32_bytes,
        budgets=request.budgets,
        refused={str(bits): reason for bits, reason in refused.items()},
        trials=trials,
        front=front(trials),
        chosen=best.name if best else None,
        advice=_advice(best, trials, request),
        lines=lines,
        notes=(
            f"Plans were judged {seen}: the verdict on the one that is taken comes from "
            "`onnxq run` or `onnxq verify`, on samples that this search has not seen.",
        ),
        provenance=provenance(subject.section.model_dump(mode="json")),
    )


def _advice(best: PlanTrial | None, trials: Sequence[PlanTrial], request: Request) -> str:
    if best is not None:
        return (
            f"Take “{best.name}”: of {len(trials)} plans it is the smallest that passes "
            f"({best.size_ratio:.3f}× FP32's bytes)."
        )
    over = [trial for trial in trials if trial.verdict == "passed"]
    if over:
        near = min(over, key=lambda trial: len(trial.broken))
        broken = ", ".join(near.broken)
        return f"No plan that passes keeps the budgets; “{near.name}” breaks {broken}."
    if any(trial.verdict == "not settled" for trial in trials):
        return f"No plan surely keeps {request.limit:g} on these samples: give more of them."
    return f"No plan keeps {request.limit:g}: try other ranges, more samples, or training."
