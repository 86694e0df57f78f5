"""Records of the float steps: the same function in other numbers, before calibration."""

from onnxq.artifacts.base import FileFacts, Provenance, Record
from onnxq.artifacts.export import ParityCheck

__all__ = [
    "EqualizedModel",
    "FloatStepResult",
    "RescaledLink",
    "SkippedLayer",
]


class RescaledLink(Record):
    """Channels between a ``source`` and the layers that read them, ``through`` what lies between.

    ``changed`` of ``channels`` were moved. ``smallest`` and ``largest`` are the extremes of what
    they were divided by (or, where a step moves them, of what was taken off them).
    """

    source: str
    through: tuple[str, ...]
    sinks: tuple[str, ...]
    channels: int
    changed: int
    smallest: float
    largest: float


class SkippedLayer(Record):
    """A layer whose output a step could not touch, and why."""

    node: str
    reason: str


class FloatStepResult(Record):
    """What one step did. It looked at ``samples`` samples; at 0, at the graph alone.

    ``parity`` compares the outputs before and after it; ``undone`` says why it was taken back, and
    is empty for a step that stands.
    """

    step: str
    links: tuple[RescaledLink, ...]
    skipped: tuple[SkippedLayer, ...]
    samples: int
    parity: tuple[ParityCheck, ...]
    undone: str = ""

    @property
    def line(self) -> str:
        """What it did, in a line."""
        changed = [link for link in self.links if link.changed]
        channels = sum(link.changed for link in changed)
        seen = f" seen on {self.samples} samples" if self.samples else ""
        furthest = max((check.max_absolute for check in self.parity), default=0.0)
        what = (
            f"{channels} channels of {len(changed)} layers{seen}, {len(self.skipped)} layers left "
            f"alone; outputs differ by at most {furthest:.1e}"
        )
        return (
            f"{self.step}: undone, {self.undone} ({what})"
            if self.undone
            else f"{self.step}: {what}"
        )


class EqualizedModel(Record):
    """A graph that computes what the one of ``fp32_sha256`` does, and is easier to quantize."""

    model: FileFacts
    fp32_sha256: str
    steps: tuple[FloatStepResult, ...]
    provenance: Provenance
