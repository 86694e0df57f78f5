"""What makes onnx abort makes onnxq say so; what does not is inferred as onnx does it."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser

from onnxq.errors import ModelError
from onnxq.graph import load_model
from onnxq.shapes import infer_shapes

BOUNDS = {"s": np.array([0]), "e": np.array([1]), "k": np.array([2])}


def sliced(layer: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[1,2,5,5] x) => (float[1,2,1,n] y) {'
        f"a = {layer}\ny = Slice(a, s, e, k) }}"
    )
    for name, array in (BOUNDS | constants).items():
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def declared_negative() -> onnx.ModelProto:
    model = sliced("Relu(x)")
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = -5
    return model


DEADLY = {
    "a kernel larger than the picture": sliced("Conv(x, w)", w=np.ones((2, 2, 9, 9), "f4")),
    "a window larger than the picture": sliced("MaxPool<kernel_shape = [9, 9]>(x)"),
    "more cut off than there is": sliced("Pad(x, p)", p=np.array([0, 0, -4, 0, 0, 0, -4, 0])),
    "a negative size": declared_negative(),
}


@pytest.mark.parametrize("name", DEADLY)
def test_what_aborts_onnx_is_an_error_of_ours(name, tmp_path, capfd):
    path = tmp_path / "m.onnx"
    path.write_bytes(DEADLY[name].SerializeToString())
    with pytest.raises(ModelError, match="negative") as caught:
        load_model(path)
    assert "m.onnx" in caught.value.where
    assert capfd.readouterr().err == ""


def test_a_sound_model_gets_the_shapes_that_onnx_infers():
    model = sliced("Relu(x)")
    expected = onnx.shape_inference.infer_shapes(model, data_prop=True)
    assert infer_shapes(model, "m.onnx") == expected
