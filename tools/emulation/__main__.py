"""A bundle's self-test on processors that are not here.

    python -m tools.emulation arm  [--bundle FOLDER]    Cortex-A72 and Cortex-A76
    python -m tools.emulation avx2 [--bundle FOLDER]    x86-64 with AVX2, without VNNI

What is found is kept in the bundle's folder ``device/``, where its report is written anew.
Exit code 0: every answer is equal or within the stated steps. 1: one is not. 2: it could not be
checked; a line says what is missing.
"""

import argparse
import sys
from pathlib import Path

from onnxq.errors import OnnxqError
from onnxq.plain.device import add_to_bundle
from onnxq.store import save_record
from tools.emulation.guests import ARM_CPUS, X86_CPUS, arm_guests, x86_guests
from tools.emulation.selftest import check_bundle, exit_code, table

__all__ = ["main"]

_BUNDLES = {"arm": "build/rppg-ort-arm64/handoff", "avx2": "build/rppg-ort-x86-avx2/handoff"}


def main(arguments: list[str] | None = None) -> int:
    """Parse, check, print; the exit code."""
    parser = argparse.ArgumentParser(description="A bundle's self-test on emulated processors.")
    parser.add_argument("family", choices=list(_BUNDLES))
    parser.add_argument("--bundle", type=Path, help="folder that `onnxq handoff` wrote")
    parser.add_argument("--cpu", action="append", help="of QEMU's; may be given several times")
    parser.add_argument("--tolerance", type=float, default=1.0, help="output steps (default 1)")
    parser.add_argument("--folder", type=Path, default=Path("build/emulation"))
    parser.add_argument("-o", "--output", type=Path, help="the record alone, and no new report")
    given = parser.parse_args(arguments)
    bundle = given.bundle or Path(_BUNDLES[given.family])
    try:
        if given.family == "arm":
            guests = arm_guests(given.folder, given.cpu or ARM_CPUS)
        else:
            guests = x86_guests(given.folder, given.cpu or X86_CPUS)
        check = check_bundle(bundle, guests, given.tolerance)
        if given.output:
            save_record(check, given.output)
        output = given.output or add_to_bundle(bundle, [check])
    except OnnxqError as fault:
        print(f"could not check: {fault}", file=sys.stderr)
        return 2
    print(f"{bundle}: ONNX Runtime {check.packages['onnxruntime']}, {check.emulator}")
    print(table(check))
    print(f"written to {output}")
    return exit_code(check)


if __name__ == "__main__":
    sys.exit(main())
