"""Pads are those that ONNX Runtime takes."""

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxq.pads import pads_of


def largest(data: np.ndarray, attributes: str) -> np.ndarray:
    model = onnx.parser.parse_model(f"""<ir_version: 9, opset_import: ["": 17]>
        g (float[1,1,7,8] x) => (float[] y) {{
            y = MaxPool<kernel_shape=[3,2], {attributes}>(x)
        }}""")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (found,) = session.run(None, {"x": data})
    return found


@pytest.mark.parametrize("auto", ["SAME_UPPER", "SAME_LOWER", "VALID"])
@pytest.mark.parametrize("strides", [(1, 1), (2, 3), (4, 2)])
def test_pads_spelt_out_give_what_auto_pad_gives(auto, strides):
    data = np.random.default_rng(0).normal(size=(1, 1, 7, 8)).astype(np.float32)
    before, after = pads_of(auto, (), (7, 8), (3, 2), strides)
    step = f"strides={list(strides)}"
    spelt = largest(data, f"{step}, pads={[*before, *after]}")
    np.testing.assert_array_equal(spelt, largest(data, f'{step}, auto_pad="{auto}"'))


def test_given_pads_are_taken_and_none_are_zero():
    assert pads_of("NOTSET", (1, 2, 3, 4), (7, 8), (3, 2), (1, 1)) == ((1, 2), (3, 4))
    assert pads_of("NOTSET", (), (7, 8), (3, 2), (1, 1)) == ((0, 0), (0, 0))
