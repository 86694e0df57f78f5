from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import numpy_helper

from benchmarks.networks import (
    NETWORKS,
    Network,
    TransformerSizes,
    mobilenet_v2,
    transformer,
    write_samples,
)

TORCHVISION_PARAMETERS = 3_504_872  # its documentation of mobilenet_v2
SMALL = TransformerSizes(blocks=2, positions=8, width=16, heads=2)


def output_of(path, values):
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": values})[0]


def test_mobilenet_has_torchvisions_parameters(tmp_path):
    mobilenet_v2(tmp_path / "m.onnx")
    graph = onnx.load(tmp_path / "m.onnx").graph
    sizes = {tensor.name: numpy_helper.to_array(tensor).size for tensor in graph.initializer}
    parameters = 0
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            weight, bias = (sizes[name] for name in node.input[1:])
            unfolded = 2 if node.op_type == "Conv" else 1  # BatchNorm has a scale and a shift
            parameters += weight + unfolded * bias
    assert parameters == TORCHVISION_PARAMETERS
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["Conv"], kinds["Clip"], kinds["Add"]) == (52, 35, 10)


def test_mobilenet_takes_any_batch_and_its_activations_neither_vanish_nor_grow(tmp_path):
    mobilenet_v2(tmp_path / "m.onnx")
    values = np.random.default_rng(0).standard_normal((2, 3, 224, 224), np.float32)
    output = output_of(tmp_path / "m.onnx", values)
    assert output.shape == (2, 1000)
    assert 0.01 < output.std() < 100


def test_transformer_computes_what_torchs_encoder_layers_do(tmp_path):
    transformer(tmp_path / "t.onnx", sizes=SMALL)
    given = np.random.default_rng(0).standard_normal((3, 8, 16), np.float32)
    expected = torch.from_numpy(given)
    linear = linear_layers(onnx.load(tmp_path / "t.onnx").graph)
    with torch.no_grad():
        for block in range(SMALL.blocks):
            expected = torch_layer(linear[6 * block : 6 * block + 6])(expected)
        expected = torch.nn.functional.layer_norm(expected, (SMALL.width,)).numpy()
    np.testing.assert_allclose(output_of(tmp_path / "t.onnx", given), expected, atol=1e-5)


def linear_layers(graph):
    """Weight and bias, as torch keeps them, of every product with a weight."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    readers = {name: node for node in graph.node for name in node.input}
    return [
        (constants[node.input[1]].T, constants[readers[node.output[0]].input[1]])
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    ]


def torch_layer(linear):
    layer = torch.nn.TransformerEncoderLayer(
        SMALL.width, SMALL.heads, 4 * SMALL.width, 0.0, "gelu", batch_first=True, norm_first=True
    )
    attention = layer.self_attn
    query_key_value = [np.concatenate(parts) for parts in zip(*linear[:3], strict=True)]
    places = [
        (attention.in_proj_weight, attention.in_proj_bias),
        (attention.out_proj.weight, attention.out_proj.bias),
        (layer.linear1.weight, layer.linear1.bias),
        (layer.linear2.weight, layer.linear2.bias),
    ]
    for targets, values in zip(places, [query_key_value, *linear[3:]], strict=True):
        for target, value in zip(targets, values, strict=True):
            target.copy_(torch.from_numpy(value.copy()))
    return layer.train()  # with dropout 0 the same numbers as eval, by the plain path


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
def test_samples_are_numpys_and_start_like_those_of_a_larger_file(tmp_path, network):
    write_samples(tmp_path / "few.npz", network, 2)
    write_samples(tmp_path / "more.npz", network, 3)
    few, more = (np.load(tmp_path / name)["input"] for name in ("few.npz", "more.npz"))
    assert few.shape == (2, *network.shape)
    assert few.dtype == np.float32
    np.testing.assert_array_equal(few, more[:2])
    assert not np.array_equal(few[0], few[1])


def test_neighbours_in_space_resemble_one_another_and_other_axes_do_not(tmp_path):
    network = Network(mobilenet_v2, (64, 64), (0,))
    write_samples(tmp_path / "s.npz", network, 1)
    sample = np.load(tmp_path / "s.npz")["input"][0]
    along = np.corrcoef(sample[:-1].ravel(), sample[1:].ravel())[0, 1]
    across = np.corrcoef(sample[:, :-1].ravel(), sample[:, 1:].ravel())[0, 1]
    assert along > 0.6
    assert abs(across) < 0.2
