"""A bundle's own self-test on other processors, as one record."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onnxq.artifacts import Bundle, ProcessorCheck, ProcessorRow
from onnxq.plain.device import judged_file, now
from onnxq.store import load_record, sha256_of_file
from tools.emulation.commands import EmulationError
from tools.emulation.guests import Guest

__all__ = ["check_bundle", "exit_code", "table"]

SCRIPT = "selftest.py"


def check_bundle(bundle: Path, guests: Sequence[Guest], tolerance: float) -> ProcessorCheck:
    """Run ``selftest.py`` of ``bundle`` on every guest; answers may be off by ``tolerance`` steps.

    Raises EmulationError if the bundle has no self-test, or it could not check; StoreError.
    """
    if not (bundle / SCRIPT).is_file():
        raise EmulationError(
            f"holds no {SCRIPT}",
            where=str(bundle),
            do="hand it off again for ort-arm64 or ort-x86, or name another with BUNDLE=…",
        )
    model = load_record(Bundle, bundle / "bundle.json").model.name
    told = {guest.cpu: _run(bundle, guest, tolerance) for guest in guests}
    return ProcessorCheck(
        model=judged_file(bundle, model),
        when=now(),
        bundle=str(bundle),
        sums_sha256=sha256_of_file(bundle / "SHA256SUMS"),
        emulator=guests[0].emulator,
        packages=dict(guests[0].packages),
        sources=dict(guests[0].sources),
        tolerance_steps=tolerance,
        exit_codes={cpu: int(found["exit_code"]) for cpu, found in told.items()},
        rows=tuple(
            ProcessorRow(
                cpu=cpu,
                part=line["part"],
                level=line["level"],
                decides=line["decides"],
                vectors=line["vectors"],
                elements=line["elements"],
                differing=line["differing"],
                most_steps=line["most_steps"],
            )
            for cpu, found in told.items()
            for line in found["answers"]
        ),
    )


def _run(bundle: Path, guest: Guest, tolerance: float) -> dict[str, Any]:
    """The JSON that the self-test prints. Without timing: an emulator's speed says nothing."""
    options = ["--runs", "0", "--tolerance", str(tolerance), "--json"]
    done = subprocess.run(
        [*guest.command, str((bundle / SCRIPT).resolve()), *options],
        env=dict(guest.environment),
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        found = {"error": done.stderr.strip()[-400:] or f"ended with {done.returncode}"}
    if "error" in found or "answers" not in found:
        changed = ", ".join(found.get("changed", []))
        raise EmulationError(
            found.get("error") or f"files were changed since the hand-off: {changed}",
            where=f"{bundle} on {guest.cpu}",
            do="run its selftest.py here first: it says more",
        )
    return found


def exit_code(check: ProcessorCheck) -> int:
    """0: every processor gives every answer within tolerance. 1: one does not."""
    return max(check.exit_codes.values())


def table(check: ProcessorCheck) -> str:
    """The record as lines to read."""
    lines = [f"{'processor':<14}{'level':<18}{'vectors':>8}{'numbers':>9}  answers"]
    for row in check.rows:
        what = "equal bit for bit"
        if row.differing:
            what = f"{row.differing} differ, by up to {row.most_steps:g} output steps"
        if row.differing and row.decides:
            allowed = row.most_steps <= check.tolerance_steps
            what += f" ({'within' if allowed else 'MORE THAN'} {check.tolerance_steps:g})"
        part = f"{row.part}: " if row.part else ""
        note = "" if row.decides else " (for information)"
        counts = f"{row.vectors:>8}{row.elements:>9}"
        lines.append(f"{row.cpu:<14}{row.level:<18}{counts}  {part}{what}{note}")
    return "\n".join(lines)
