"""A plain file's bundle, made again from itself and the samples that it names."""

from pathlib import Path

from onnxq.artifacts import Bundle, Origin
from onnxq.errors import DataError
from onnxq.plain.judge import REPORT, hand_off_file
from onnxq.plugins import is_reference
from onnxq.recipe import Waiver

__all__ = ["hand_off_again"]


def hand_off_again(folder: Path, bundle: Bundle, origin: Origin, output: Path) -> Bundle:
    """Hand off the model in ``folder`` once more, into ``output``, with the report that is there.

    The model itself is taken as it is: nothing says what it was quantized from. The waivers are
    those that let something pass, as the bundle records them. Raises as
    ``hand_off_file`` does; DataError if the samples are not found from the current folder.
    """
    samples = origin.source
    if samples and not is_reference(samples) and not Path(samples).exists():
        raise DataError(
            f"its samples {samples} are not found from this folder",
            where=str(folder),
            do="run it where the bundle was made: the path of a plain file's samples begins there",
        )
    report = folder / "report"
    waived = {result.rule: result.waived for result in bundle.rules if result.waived is not None}
    return hand_off_file(
        folder / bundle.model.name,
        output,
        target=origin.target,
        source=origin.source or None,
        report=report if (report / REPORT).is_file() else None,
        allow_unverified=bundle.verdict != "passed",
        waive=tuple(Waiver(name=rule, reason=reason) for rule, reason in waived.items()),
    )
