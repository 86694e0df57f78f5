"""The table of float steps, in the order that they run, whatever a recipe's.

Folding BatchNormalization is none of them: every stage wants it gone, so the export does it
(``export/rewrites/fold_batchnorm.py``) before any of these.
"""

from onnxq.quantize.float_steps.absorb import absorb
from onnxq.quantize.float_steps.equalize import equalize
from onnxq.quantize.float_steps.smooth import smooth
from onnxq.quantize.float_steps.types import FloatStep
from onnxq.recipe import FloatStepName

__all__ = ["FLOAT_STEPS", "ON_SAMPLES"]

FLOAT_STEPS: dict[FloatStepName, FloatStep] = {
    "equalize": equalize,
    "absorb": absorb,
    "smooth": smooth,
}
ON_SAMPLES: frozenset[FloatStepName] = frozenset({"absorb", "smooth"})  # the others need none
