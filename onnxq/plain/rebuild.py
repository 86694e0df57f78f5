"""A plain file's bundle, made again: from the FP32 model and the data where they are known."""

import tempfile
from pathlib import Path

from onnxq.artifacts import Bundle, Origin
from onnxq.errors import DataError
from onnxq.plain.judge import REPORT, hand_off_file
from onnxq.plain.made_from import quantize_again
from onnxq.plugins import is_reference
from onnxq.recipe import Waiver
from onnxq.target import load_target

__all__ = ["hand_off_again"]


def hand_off_again(folder: Path, bundle: Bundle, origin: Origin, output: Path) -> Bundle:
    """Calibrate, quantize and hand off once more, into ``output``; the report is the one there is.

    Of a model that nothing says the source of, the hand-off alone is made again. A report is about
    the very file that was verified: where another one comes out, the bundle is made without it.
    Raises as ``quantize_again`` and ``hand_off_file`` do; DataError if the samples are not found
    from the current folder.
    """
    samples = origin.source
    if samples and not is_reference(samples) and not Path(samples).exists():
        raise DataError(
            f"its samples {samples} are not found from this folder",
            where=str(folder),
            do="run it where the bundle was made: the path of a plain file's samples begins there",
        )
    report = folder / "report"
    with tempfile.TemporaryDirectory() as scratch:
        model, same = folder / bundle.model.name, True
        waived = tuple(
            Waiver(name=result.rule, reason=result.waived)
            for result in bundle.rules
            if result.waived is not None
        )
        if origin.made_from is not None:
            model = Path(scratch) / bundle.model.name
            target = load_target(origin.target)
            made = quantize_again(origin.made_from, target, model, str(folder))
            same = made.model.sha256 == bundle.model.sha256
        return hand_off_file(
            model,
            output,
            target=origin.target,
            source=samples or None,
            report=report if same and (report / REPORT).is_file() else None,
            allow_unverified=not same or bundle.verdict != "passed",
            waive=waived,
        )
