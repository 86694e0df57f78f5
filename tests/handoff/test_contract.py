import numpy as np
import onnx
import pytest
from onnxruntime.quantization import QuantType

from handoff.qdq_models import quantized_net
from handoff.test_rules import between, data, ended, graph
from onnxq.artifacts import ExportedModel, FileFacts, QuantizedModel, TensorParameters, ValueFacts
from onnxq.errors import ModelError, StaleRecordError
from onnxq.handoff.contract import contract
from onnxq.provenance import provenance
from onnxq.qtypes import IntType

FILE = FileFacts(name="net.onnx", sha256="0" * 64, size_bytes=1)


def exported(domain=None, name="x"):
    value = ValueFacts(name=name, dtype="float32", shape=(1, 4, 4, 4), domain=domain)
    result = ValueFacts(name="y", dtype="float32", shape=(1, 4, 4, 4))
    return ExportedModel(
        model=FILE, inputs=(value,), outputs=(result,), opset=17, parameters=0,
        provenance=provenance({}),
    )  # fmt: skip


def quantized(**activations):
    return QuantizedModel(
        model=FILE, fp32_sha256="", calibration_sha256="", target="stm32n6",
        weight_type=IntType.INT8, activation_type=IntType.INT8, quantized_nodes={},
        float_nodes=(), activations=activations, provenance=provenance({}),
    )  # fmt: skip


def of(model, quantized_=None, exported_=None):
    return contract(model, quantized_, exported_, name="net.onnx", sha256="0" * 64)


def image_model(scale, zero_point, type_=np.int8):
    model = graph("q = QuantizeLinear(x, t, p) y = DequantizeLinear(q, t, p)")
    for name, array in {"t": np.float32(scale), "p": type_(zero_point)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def test_scales_are_those_of_the_files_first_q_and_last_dq(tmp_path):
    model = onnx.load(quantized_net(tmp_path, QuantType.QInt8))
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    result = of(model)
    (image,), (scores,) = result.inputs, result.outputs
    for value, name in ((image, "image"), (scores, "scores")):
        assert np.float32(value.quantization.scale) == constants[f"{name}_scale"]
        assert value.quantization.zero_point == constants[f"{name}_zero_point"]
        assert value.quantization.type == "int8"
    assert (image.dtype, image.shape, image.layout) == ("float32", (1, 3, 8, 8), "NCHW")
    assert (scores.dtype, scores.shape) == ("float32", (1, 4))


def test_examples_are_what_the_files_own_quantizer_gives():
    model = image_model(0.02, 17)
    known = of(model, None, exported((-1.0, 2.0))).inputs[0].quantization
    reals, integers = zip(*known.examples, strict=True)
    steps = np.rint(np.float32(reals) / np.float32(0.02)) + 17
    assert list(integers) == np.clip(steps, -128, 127).tolist()
    assert {-1.0, 0.0, 2.0} <= set(reals)
    assert (known.real_low, known.real_high) == pytest.approx((-145 * 0.02, 110 * 0.02))
    assert known.domain_covered


def test_d5_13_a_byte_minus_128_is_called_wrong_unless_the_scale_is_one_over_255():
    right = of(image_model(1 / 255, -128), None, exported((0.0, 1.0))).inputs[0]
    wrong = of(image_model(0.003445, -128), None, exported((0.0, 1.0))).inputs[0]
    assert right.quantization.byte_image == "q = byte - 128 is exact for all 256 bytes"
    assert "q = byte - 128 is WRONG here, by up to" in wrong.quantization.byte_image
    assert right.quantization.domain_covered
    assert wrong.quantization.domain_covered is False


def test_a_byte_is_an_unsigned_integer_as_it_is():
    value = of(image_model(1 / 255, 0, np.uint8), None, exported((0.0, 1.0))).inputs[0]
    assert value.quantization.byte_image == "q = byte is exact for all 256 bytes"


def test_without_a_domain_a_byte_is_spoken_of_under_a_condition():
    model = graph(data() + "r = MaxPool<kernel_shape=[2,2]>(xd) " + ended())
    known = of(model).inputs[0].quantization
    assert known.byte_image.startswith("no domain is declared; if byte / 255")
    assert (known.domain_covered, known.byte_divisor) == (None, 255)


@pytest.mark.parametrize(
    ("domain", "divisor"), [((0.0, 1.0), 255), ((0.0, 255.0), 1), ((-1.0, 1.0), None), (None, None)]
)
def test_bytes_are_spoken_of_where_they_make_the_input(domain, divisor):
    known = of(image_model(1 / 255, -128), None, exported(domain)).inputs[0].quantization
    assert known.byte_divisor == divisor
    assert bool(known.byte_image) == (divisor is not None)


def test_a_byte_that_is_the_value_itself_is_divided_by_nothing():
    known = of(image_model(1.0, -128), None, exported((0.0, 255.0))).inputs[0].quantization
    assert known.byte_image == "q = byte - 128 is exact for all 256 bytes"


def test_a_transposed_input_has_its_own_layout():
    model = graph(
        data() + "t = Transpose<perm=[0,3,1,2]>(xd) r = MaxPool<kernel_shape=[2,2]>(t) " + ended()
    )
    assert of(model).inputs[0].layout == "NHWC"


def test_the_quantizer_is_found_behind_a_transposition():
    model = graph("t = Transpose<perm=[0,3,1,2]>(x) " + data("t") + "r = Relu(td) " + ended())
    assert of(model).inputs[0].quantization.scale == np.float32(0.1)


def test_a_float_output_has_no_integer_form():
    value = of(graph(data() + "y = Softmax(xd)")).outputs[0]
    assert value.quantization is None
    assert "computed in float" in value.note


def test_an_input_quantized_in_two_ways_stays_float():
    model = graph(data() + "q = QuantizeLinear(x, one, z) d = DequantizeLinear(q, one, z) "
                  "r = Add(xd, d) " + ended())  # fmt: skip
    value = of(model).inputs[0]
    assert value.quantization is None
    assert "several ways" in value.note


@pytest.mark.parametrize("first", ["", "t = Transpose<perm=[0,3,1,2]>(x) "])
def test_an_input_that_is_also_taken_as_it_is_stays_float(first):
    exact = "t" if first else "x"
    model = graph(data() + f"{first}a = Abs({exact}) r = Add(xd, a) " + ended())
    value = of(model).inputs[0]
    assert value.quantization is None
    assert "before it is quantized" in value.note


def test_the_shape_of_an_input_is_no_use_of_its_values():
    model = graph(data() + "dims = Shape(x) r = Reshape(xd, dims) " + ended())
    assert of(model).inputs[0].quantization is not None


def test_a_record_with_another_scale_is_stale():
    model = between("r = Relu(xd)")
    scale = float(np.float32(0.1))
    good = TensorParameters(scale=scale, zero_point=3, type=IntType.INT8)
    assert of(model, quantized(x=good, y=good)).inputs[0].quantization.zero_point == 3
    for change in ({"scale": 0.2}, {"zero_point": 4}, {"type": IntType.UINT8}):
        with pytest.raises(StaleRecordError, match="in the quantization's record"):
            of(model, quantized(x=good.model_copy(update=change)))
    with pytest.raises(StaleRecordError, match="output `y`"):
        of(model, quantized(y=good.model_copy(update={"zero_point": 4})))


def test_a_record_of_another_graph_is_stale():
    with pytest.raises(StaleRecordError, match="the export's record says other"):
        of(between("r = Relu(xd)"), None, exported(name="other"))


def test_a_scale_per_channel_makes_no_contract():
    model = graph("q = QuantizeLinear<axis=1>(x, ss, zz) y = DequantizeLinear<axis=1>(q, ss, zz)")
    with pytest.raises(ModelError, match="no single constant scale"):
        of(model)
