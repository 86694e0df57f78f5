"""Shape inference of files that somebody else made, which may be damaged.

onnx 1.23 aborts the process on a Slice of a negative dimension, which a declared shape can hold or
a window larger than its input gives: a C++ assertion that Python cannot catch.
"""

import faulthandler
import os
import signal
import time
import warnings

import onnx

from onnxq.errors import ModelError

__all__ = ["infer_shapes"]

_ABORTING = frozenset({"Slice"})  # the operators whose inference was seen to abort
_SECONDS = 120.0


def infer_shapes(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    """The model with the shapes that follow from its inputs and constants.

    A model with an operator that can abort is tried in a process of its own first, where the system
    has fork. Raises ModelError if that dies, and InferenceError as onnx does.
    """
    risky = any(node.op_type in _ABORTING for node in model.graph.node)
    if risky and hasattr(os, "fork") and not _survives(model):
        raise ModelError(
            "onnx aborts while it infers the shapes: a dimension becomes negative",
            where=where,
            do="check the input's shape: a window may be larger than what it looks at",
        )
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _survives(model: onnx.ModelProto) -> bool:
    """Whether the inference comes to an end, with or without an error of its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork beside other threads
        child = os.fork()
    if child == 0:
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        try:
            onnx.shape_inference.infer_shapes(model, data_prop=True)
        finally:
            os._exit(0)
    limit = time.monotonic() + _SECONDS
    while time.monotonic() < limit:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return not os.WIFSIGNALED(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False
