"""Saturation on x86 without VNNI, in the few lines of ``onnxq check`` and ``onnxq inspect``."""

from pathlib import Path

from onnxq.artifacts import SaturationRow
from onnxq.cli.console import DOUBT, Screen
from onnxq.samples import Samples
from onnxq.target import Target

__all__ = ["say_saturation"]

_PLACES_SHOWN = 3
_SAMPLES = 8
_EXACT = "session.x64quantprecision"


def say_saturation(
    model: Path, target: Target, samples: Samples | None, screen: Screen
) -> tuple[SaturationRow, ...]:
    """Print which products of a Q/DQ file can saturate where processors of the target keep sums
    of pairs in 16 bits; every product for a program, none for another target.

    With ``samples`` it is counted on a few of them. Raises ModelError, RuntimeFailureError.
    """
    from onnxq.verify.saturation import saturation, saturation_findings

    processor = target.processor
    if processor is None or processor.family != "x86-64" or processor.saturates is False:
        return ()
    rows = saturation(model, None if samples is None else samples.thinned(_SAMPLES))
    findings = saturation_findings(rows)
    if not findings:
        return rows
    does = sum(row.verdict == "does" for row in rows)
    counted = "" if samples is None else f", {does} do on {samples.name}"
    screen.say(
        f"Saturation: {len(findings)} of {len(rows)} products can on x86 without VNNI{counted}",
        mark=DOUBT,
    )
    for found in findings[:_PLACES_SHOWN]:
        screen.say(f"    {found.where}: {found.what}")
    if len(findings) > _PLACES_SHOWN:
        screen.say(f"    and {len(findings) - _PLACES_SHOWN} more (--json)")
    if target.session_options.get(_EXACT) == "1":
        screen.say(f"    exact, and slower, where {_EXACT}=1 is set, as {target.name} sets it")
    screen.say(f"    do: {findings[0].do}")
    return rows
