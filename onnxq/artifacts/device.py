"""Records of what was found after the hand-off: on other processors, by the vendor's compiler, in
a device's dump. They are added to a bundle's report."""

from pydantic import AwareDatetime

from onnxq.artifacts.base import FileFacts, Finding, Record
from onnxq.artifacts.dump import DumpComparison
from onnxq.artifacts.memory import GenerateReport, InfoReport, ValidateReport

__all__ = ["CompilerCheck", "DeviceResults", "DumpCheck", "ProcessorCheck", "ProcessorRow"]


class ProcessorRow(Record):
    """Known answers of a bundle replayed on one processor, at one level of optimization.

    ``part`` is empty for the whole model; ``decides`` at the level that the model was judged at.
    ``differing`` of the ``elements`` of ``vectors`` answers are not the same to the last bit, by
    ``most_steps`` output steps at most.
    """

    cpu: str
    part: str
    level: str
    decides: bool
    vectors: int
    elements: int
    differing: int
    most_steps: float


class ProcessorCheck(Record):
    """A bundle's own self-test under emulation of other processors.

    ``model`` is the file that the bundle is of, ``sums_sha256`` that of its SHA256SUMS,
    ``exit_codes`` the self-test's, by processor; an answer may be off by ``tolerance_steps``.
    ``sources`` are the SHA-256 of every package that was fetched.
    """

    model: FileFacts
    when: AwareDatetime
    bundle: str
    sums_sha256: str
    emulator: str
    packages: dict[str, str]
    sources: dict[str, str]
    tolerance_steps: float
    exit_codes: dict[str, int]
    rows: tuple[ProcessorRow, ...]


class CompilerCheck(Record):
    """One report of ST's tool about ``model``, and where it departs from what was planned.

    ``activations_bytes`` (on chip), ``weights_bytes`` and ``macs`` are the plan's: estimates, and
    multiply-accumulates as onnxq counts them; None where no source says.
    """

    model: FileFacts
    when: AwareDatetime
    report: GenerateReport | InfoReport | ValidateReport
    departures: tuple[Finding, ...]
    activations_bytes: int | None
    weights_bytes: int
    macs: int


class DumpCheck(Record):
    """A device's ``dump`` laid beside the layers of ``model``."""

    model: FileFacts
    when: AwareDatetime
    dump: FileFacts
    comparison: DumpComparison


class DeviceResults(Record):
    """All that was found about the bundle of ``model`` since it was handed off."""

    model: FileFacts
    processors: tuple[ProcessorCheck, ...] = ()
    compilations: tuple[CompilerCheck, ...] = ()
    dumps: tuple[DumpCheck, ...] = ()
