"""Sizes are those of what lies on the disk."""

import zlib

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxq.sizes import external_files, size_lines


@pytest.fixture
def model():
    """One weight of 32 bits, and one of 4 whose last byte is half filled."""
    wide = np.arange(4096, dtype=np.float32)
    tensors = [
        onnx.numpy_helper.from_array(wide, "wide"),
        helper.make_tensor("narrow", TensorProto.INT4, [5], [1, 2, 3, 4, 5]),
    ]
    return helper.make_model(helper.make_graph([], "g", [], [], tensors))


def test_constants_take_what_is_stored_of_them(model, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save(model, path)
    constants, file, packed = size_lines(path, path)
    assert constants.fp32_bytes == constants.int8_bytes == 4 * 4096 + 3
    assert file.fp32_bytes == path.stat().st_size
    assert packed.fp32_bytes == len(zlib.compress(path.read_bytes(), 9))


def test_files_that_hold_weights_count_with_their_model(model, tmp_path):
    path = tmp_path / "m.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="m.data", size_threshold=1024)
    assert external_files(path) == ("m.data",)
    _, file, packed = size_lines(path, path)
    both = [path, tmp_path / "m.data"]
    assert file.int8_bytes == sum(part.stat().st_size for part in both)
    assert packed.int8_bytes == sum(len(zlib.compress(part.read_bytes(), 9)) for part in both)
