"""The error tree. A message says where, what, and what to do.

::

    OnnxqError                    exit 2: could not judge
    ├── UsageError                a flag or an argument
    ├── RecipeError               a recipe that cannot be read or holds an unknown key
    ├── PluginError               a "module:function" that cannot be found or called
    ├── MissingExtraError         a package of an optional extra is not installed
    ├── CheckpointError           a checkpoint that is missing, foreign or does not fit
    ├── ModelError                an .onnx file that cannot be used
    │   └── AlreadyQuantizedError it holds QuantizeLinear / DequantizeLinear nodes already
    ├── ExportError               the torch exporter or a graph rewrite failed
    ├── DataError                 samples that cannot be used: shape, dtype, NaN, domain, number
    │   ├── EmptySummaryError     statistics over no value at all
    │   └── LeakageError          calibration and evaluation share a group or a sample
    ├── QuantizationError         a plan that cannot be carried out
    ├── RuntimeFailureError       ONNX Runtime refused or failed to run a graph
    ├── StoreError                disk: unwritable, full
    │   ├── BuildLockedError      another run works in this build folder
    │   └── StaleRecordError      a record does not belong to the file beside it
    ├── InterruptedRunError       Ctrl-C or SIGTERM; the next run resumes
    └── JudgedError               exit 1: judged, and worse than allowed
        ├── ParityError           an exported or rewritten graph computes something else
        ├── AuditError            the quantized file is not what it claims to be
        └── TargetRuleError       the file breaks a rule of its target
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "AlreadyQuantizedError",
    "AuditError",
    "BuildLockedError",
    "CheckpointError",
    "DataError",
    "EmptySummaryError",
    "ExportError",
    "InterruptedRunError",
    "JudgedError",
    "LeakageError",
    "MissingExtraError",
    "ModelError",
    "OnnxqError",
    "ParityError",
    "PluginError",
    "QuantizationError",
    "RecipeError",
    "RuntimeFailureError",
    "StaleRecordError",
    "StoreError",
    "TargetRuleError",
    "UsageError",
    "nearest",
]

EXIT_PASSED, EXIT_WORSE, EXIT_NOT_JUDGED = 0, 1, 2


class OnnxqError(Exception):
    """Base of every error that onnxq raises on purpose.

    ``where`` names the file, tensor or key; ``what`` the fault; ``do`` the way out.
    """

    exit_code = EXIT_NOT_JUDGED

    def __init__(self, what: str, *, where: str = "", do: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.do = do

    def __str__(self) -> str:
        head = f"{self.where}: {self.what}" if self.where else self.what
        return f"{head}\n  → {self.do}" if self.do else head


class UsageError(OnnxqError):
    """A flag or an argument that cannot be used."""


class RecipeError(OnnxqError):
    """A recipe that cannot be read, or that holds an unknown or ill-typed key."""


class PluginError(OnnxqError):
    """A ``module:function`` reference that cannot be found or does not return what it should."""


class MissingExtraError(OnnxqError):
    """A package that belongs to an optional extra of onnxq is not installed."""


class CheckpointError(OnnxqError):
    """A checkpoint that is missing, truncated, foreign, unsafe, or does not fit the network."""


class ModelError(OnnxqError):
    """An ``.onnx`` file that cannot be used."""


class AlreadyQuantizedError(ModelError):
    """The model holds Q/DQ or QOperator nodes already."""


class ExportError(OnnxqError):
    """The torch exporter, or a rewrite of the exported graph, failed."""


class DataError(OnnxqError):
    """Samples that cannot be used."""


class EmptySummaryError(DataError):
    """A range was asked of a summary that has counted no value."""


class LeakageError(DataError):
    """Calibration and evaluation share a group or a sample."""


class QuantizationError(OnnxqError):
    """A quantization plan that cannot be carried out."""


class RuntimeFailureError(OnnxqError):
    """ONNX Runtime could not load or run a graph."""


class StoreError(OnnxqError):
    """A folder or file that cannot be read or written."""


class BuildLockedError(StoreError):
    """Another run holds the build folder."""


class StaleRecordError(StoreError):
    """A record names another content than the file that lies beside it."""


class InterruptedRunError(OnnxqError):
    """The run was interrupted; the stages that were finished are kept."""


class JudgedError(OnnxqError):
    """Judged, and worse than allowed."""

    exit_code = EXIT_WORSE


class ParityError(JudgedError):
    """A graph computes something else than the one it was made from."""


class AuditError(JudgedError):
    """A quantized file is not what it claims to be."""


class TargetRuleError(JudgedError):
    """A file breaks a rule of its target."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``"did you mean `x`?"`` with the known word nearest to ``word``; else the known words."""
    words = sorted(known)
    match = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    if match:
        return f"did you mean `{match[0]}`?"
    return "known: " + ", ".join(f"`{w}`" for w in words)
