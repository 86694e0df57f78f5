"""What ships is what was trained: constants to the last bit, and codes as they are executed."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from onnxq.artifacts import RoundTrip
from onnxq.errors import DataError
from onnxq.quantize.round_trip import prove_round_trip
from onnxq.quantize.torch_graph import TorchGraph
from tests.onnx_text import model_of

from .block_nets import BLOCKS
from .nets import HEAD, Int8, calibrated, calibrated_file, weights

TARGETS = ("ort-x86", "stm32n6")


def trained_form(int8: Int8) -> TorchGraph:
    """The graph before its constants were stored: FP32 weights that are quantized on the way,
    FP32 biases brought to whole steps, computed here from the FP32 file alone."""
    model = onnx.ModelProto()
    model.CopyFrom(int8.model)
    float_graph = onnx.load(int8.net.path).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in float_graph.initializer}
    origins = {node.name: node.input for node in float_graph.node}
    readers = {
        node.input[i]: (node.name, i) for node in model.graph.node for i in range(len(node.input))
    }
    nodes, stored = [], int8.arrays
    for node in model.graph.node:
        name, place = readers.get(node.output[0], ("", 0))
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored:
            nodes.append(node)
            continue
        array = arrays[origins[name][place]]
        if stored[node.input[0]].dtype == np.int32:
            scale = stored[node.input[1]]
            steps = np.rint(array.astype(np.float64) / scale)
            array = (steps * scale).astype(np.float32)
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, node.output[0]))
            continue
        source, codes = f"{node.output[0]}.float", f"{node.output[0]}.codes"
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, source))
        quantize = onnx.NodeProto()
        quantize.CopyFrom(node)
        quantize.op_type, quantize.name = "QuantizeLinear", codes
        quantize.input[0], quantize.output[0], node.input[0] = source, codes, codes
        nodes += [quantize, node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return TorchGraph(model)


def proof(int8: Int8) -> RoundTrip:
    return prove_round_trip(int8.model, int8.net.samples.rows(), trained_form(int8))


QUICK = ("efficient", "points")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "block", [pytest.param(b, marks=[] if b in QUICK else [pytest.mark.slow]) for b in BLOCKS]
)
def test_every_code_of_a_block_is_that_of_the_runtime(tmp_path, block, target):
    found = proof(BLOCKS[block](tmp_path).quantize(target))
    assert found.differing == ()
    assert found.constants_differ == ()
    assert found.is_proven
    assert found.runs == 16
    assert found.tensors > 10
    assert found.codes > 60_000
    assert found.constants > 2 * found.tensors
    assert found.int8_kernels == (target == "stm32n6")


def test_training_in_float_gives_the_same_codes_but_for_ties(tmp_path):
    """The runtime itself, between its own two levels, is further apart than that."""
    found = proof(BLOCKS["efficient"](tmp_path).quantize("ort-x86"))
    assert found.approximated == ()
    assert 0 < found.ties < 1e-3 * found.codes
    assert found.farthest_tie < 1e-4
    assert found.levels_differ > found.ties


@pytest.mark.slow
def test_where_a_kernel_is_coarser_than_float_its_tensor_is_named(tmp_path):
    found = proof(BLOCKS["transformer"](tmp_path).quantize("ort-x86"))
    (softmax,) = found.approximated
    assert softmax.tensor.startswith("s")
    assert softmax.largest_step == 1
    assert (
        softmax.reason == "the integer kernel of Softmax `soft` takes 1 / scale as a whole number"
    )


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_every_code_of_the_rppg_network_is_that_of_the_runtime(tmp_path, target):
    from models.rppg.train import load
    from onnxq.export.clean import clean
    from onnxq.export.from_torch import export_network

    random = np.random.default_rng(0)
    windows = random.uniform(0, 1, (4, 8, 3, 36, 36, 3)).astype(np.float32)
    model = export_network(load(), {"input": windows[:1]}, ["bpm"], opset=18, batch="one")
    onnx.save(clean(model)[0], tmp_path / "fp32.onnx")
    net = calibrated_file(tmp_path / "fp32.onnx", inputs={"input": windows})
    found = proof(net.quantize(target))
    assert found.is_proven
    assert found.codes > 4_000_000
    assert found.farthest_tie < 1e-3


def small(folder: Path) -> Int8:
    text = HEAD + "g (float[1,3,6,6] x) => (float[1,4,4,4] y) { [c] y = Conv(x, w, b) }"
    return calibrated(folder, text, w=weights(4, 3, 3, 3), b=weights(4)).quantize("ort-x86")


def changed(model: onnx.ModelProto, name: str, array: np.ndarray) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    (tensor,) = (t for t in other.graph.initializer if t.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.asarray(array), name))
    return other


def test_one_weight_one_step_away_is_found(tmp_path):
    int8 = small(tmp_path)
    reader = next(n for n in int8.model.graph.node if n.output[0] == conv(int8).input[1])
    codes = int8.arrays[reader.input[0]].copy()
    codes[0, 0, 0, 0] -= 1
    shipped = changed(int8.model, reader.input[0], codes)
    found = prove_round_trip(shipped, int8.net.samples.rows(), trained_form(int8))
    assert found.constants_differ == (reader.output[0],)
    assert found.differing == ()
    assert not found.is_proven


def test_a_bias_one_step_away_and_a_scale_one_bit_away_are_found(tmp_path):
    int8 = small(tmp_path)
    bias = next(n for n in int8.model.graph.node if n.output[0] == conv(int8).input[2])
    last = next(n for n in int8.model.graph.node if n.input[0] == conv(int8).output[0])
    shipped = changed(int8.model, bias.input[0], int8.arrays[bias.input[0]] + np.int32(1))
    shipped = changed(
        shipped, last.input[1], np.nextafter(int8.arrays[last.input[1]], np.float32(1))
    )
    found = prove_round_trip(shipped, int8.net.samples.rows(), trained_form(int8))
    assert set(found.constants_differ) == {bias.output[0], f"scale of {last.output[0]}"}


def conv(int8: Int8) -> onnx.NodeProto:
    return next(node for node in int8.model.graph.node if node.op_type == "Conv")


def test_what_the_runtime_rounds_at_load_is_named_and_what_follows_from_it(tmp_path):
    text = (
        HEAD
        + """g (float[1,3,6,6] x) => (float[1,2,12,12] y) {
        [first] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
        [deep] c = ConvTranspose<strides=[2,2]>(a, w2, b2)
        [last] y = Conv(c, w3, b3)
    }"""
    )
    int8 = calibrated(
        tmp_path,
        text,
        w1=weights(4, 3, 3, 3),
        b1=weights(4),
        w2=weights(4, 4, 2, 2),
        b2=weights(4),
        w3=weights(2, 4, 1, 1),
        b3=weights(2),
    ).quantize("ort-x86")
    found = proof(int8)
    assert not found.is_proven
    reasons = {difference.tensor: difference.reason for difference in found.differing}
    assert reasons == {
        "c.q": "ConvTranspose `deep` has float weights, which ONNX Runtime rounds to int8 at load",
        "y.q": "`c.q`, which it is computed of, differs",
    }


def test_a_graph_of_another_file_and_no_sample_are_refused(tmp_path):
    int8 = small(tmp_path)
    other = model_of(HEAD + "g (float[1,3,6,6] x) => (float[1,3,6,6] y) { y = Relu(x) }")
    with pytest.raises(DataError, match="does not quantize `x"):
        prove_round_trip(int8.model, int8.net.samples.rows(), TorchGraph(other))
    with pytest.raises(DataError, match="there is no sample"):
        prove_round_trip(int8.model, [], trained_form(int8))
