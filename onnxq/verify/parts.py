"""The file that ships, or the parts that ship in its place, and whether both are the same."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from onnxq.artifacts import Manifest, PartsCheck
from onnxq.errors import AuditError, StaleRecordError
from onnxq.graph import WEIGHTED, load_model
from onnxq.progress import Progress, silent
from onnxq.runtime import Optimization, Session, in_parallel
from onnxq.samples import Samples
from onnxq.splitting.manifest import PARTS, PartsSession
from onnxq.store import sha256_of_file
from onnxq.target import Target
from onnxq.verify.audit import audit, require_sound

__all__ = [
    "check_parts",
    "folder_of_parts",
    "refuse_other_parts",
    "require_sound_parts",
    "shipped_session",
]


def folder_of_parts(whole: Path) -> Path:
    """Where the parts of a graph lie: beside it."""
    return whole.parent / PARTS


def refuse_other_parts(whole: Path, manifest: Manifest) -> None:
    """Raise StaleRecordError unless ``whole`` and the parts on disk are those of the manifest."""
    facts = [(whole, manifest.whole_sha256)]
    facts += [
        (folder_of_parts(whole) / part.file.name, part.file.sha256) for part in manifest.parts
    ]
    for path, sha256 in facts:
        if not path.is_file() or sha256_of_file(path) != sha256:
            raise StaleRecordError(
                "is not the file that the manifest of its parts is about",
                where=str(path),
                do="quantize again",
            )


def require_sound_parts(
    whole: Path, manifest: Manifest, selected: Mapping[str, str] | None
) -> None:
    """Audit each part as a file of its own. Raises AuditError for a fault, or for an operator with
    a weight that was ``selected`` (name → operator) to be integer and is in no part.
    """
    missing = {name for name, op_type in (selected or {}).items() if op_type in WEIGHTED}
    for part in manifest.parts:
        model = ir.from_proto(load_model(folder_of_parts(whole) / part.file.name))
        names = {str(node.name) for node in model.graph}
        own = None if selected is None else {n: op for n, op in selected.items() if n in names}
        require_sound(audit(model, own), part.file.name)
        missing -= names
    if missing:
        raise AuditError(
            f"no part holds {', '.join(sorted(missing))}",
            where=whole.name,
            do="correct the recipe's `split`",
        )


def shipped_session(
    whole: Path, manifest: Manifest | None, target: Target, optimization: Optimization
) -> Session | PartsSession:
    """What the device runs: the whole file, or its parts in order."""
    config = target.session_options
    if manifest is None:
        return Session(whole, optimization=optimization, config=config)
    return PartsSession(manifest, folder_of_parts(whole), optimization=optimization, config=config)


def check_parts(
    whole: Path,
    manifest: Manifest,
    target: Target,
    samples: Samples,
    progress: Progress = silent,
) -> PartsCheck:
    """The parts against the whole on every sample, with and without graph optimization.

    Raises AuditError if they differ in any bit as the graph is written.
    """
    differences: dict[Optimization, float] = {"full": 0.0, "none": 0.0}
    for optimization in differences:
        one = shipped_session(whole, None, target, optimization)
        other = shipped_session(whole, manifest, target, optimization)

        def difference(
            index: int, one: Session | PartsSession = one, other: Session | PartsSession = other
        ) -> float:
            row = samples.row(index)
            wanted, got = one.run(row), other.run(row)
            return max(
                float(np.max(np.abs(wanted[name].astype(np.float64) - got[name]), initial=0.0))
                for name in wanted
            )

        found = in_parallel(difference, len(samples))
        differences[optimization] = max(progress(found, "parts against the whole", len(samples)))
    if differences["none"]:
        raise AuditError(
            f"its parts compute something else: outputs differ by up to {differences['none']:.3g}",
            where=whole.name,
            do="cut where every row of the first axis is computed by itself",
        )
    return PartsCheck(
        parts=tuple(part.file for part in manifest.parts),
        samples=len(samples),
        max_absolute=differences[target.judged_level],
        max_as_written=differences["none"],
    )
