"""TorchGraph against ONNX Runtime without optimization, tensor by tensor."""

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import pytest
import torch

from benchmarks.networks import INPUT, TransformerSizes, mobilenet_v2, transformer
from onnxq.export.from_torch import export_network
from onnxq.quantize.torch_graph import TorchGraph
from onnxq.runtime import Session, with_outputs
from tests.end_to_end.tiny.system import Net

from .nets import weights

OLD, NEW = '<ir_version: 8, opset_import: ["": 13]>\n', '<ir_version: 10, opset_import: ["": 21]>\n'


def read(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(text)
    for name, array in constants.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return model


def deviation(model: onnx.ModelProto, **inputs: np.ndarray) -> float:
    """The largest difference of any float tensor of the graph, relative to its largest value."""
    return max(deviations(model, **inputs).values())


def deviations(model: onnx.ModelProto, **inputs: np.ndarray) -> dict[str, float]:
    """Of every float tensor, the largest difference relative to its largest value."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    values |= {v.name: v.type.tensor_type.elem_type for v in inferred.graph.output}
    made = [name for node in model.graph.node for name in node.output if name]
    names = [name for name in made if values.get(name) == onnx.TensorProto.FLOAT]
    names = [name for name in names if name not in {n.output[0] for n in constants_of(model)}]
    session = Session(with_outputs(inferred, names).SerializeToString(), optimization="none")
    expected = session.run(inputs)
    fed = {name: torch.from_numpy(array) for name, array in inputs.items()}
    with torch.no_grad():
        computed = TorchGraph(model)(fed, names)
    assert len(names) > 0
    shapes = {name: tuple(computed[name].shape) for name in names}
    assert shapes == {name: expected[name].shape for name in names}
    apart = {name: np.abs(computed[name].numpy() - expected[name]).max() for name in names}
    return {name: float(apart[name] / np.abs(expected[name]).max()) for name in names}


def constants_of(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if node.op_type == "Constant"]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


@pytest.mark.slow
def test_mobilenet_v2_is_that_of_the_runtime(tmp_path):
    """Inside, float32's rounding piles up over 52 convolutions: at the last ones the runtime itself
    stands 3e-5 from the same network in double, and so does torch.
    """
    mobilenet_v2(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    found = deviations(model, **{INPUT: normal(1, 3, 224, 224)})
    assert found["output"] < 1e-5
    assert max(found.values()) < 1e-4


def test_every_tensor_of_a_transformer_block_is_that_of_the_runtime(tmp_path):
    sizes = TransformerSizes(blocks=1, positions=32, width=64)
    transformer(tmp_path / "t.onnx", sizes=sizes)
    model = onnx.load(tmp_path / "t.onnx")
    assert deviation(model, **{INPUT: normal(2, 32, 64)}) < 1e-5


UNET = """g (float[1,3,12,12] x, float[1,16] time) => (float[1,3,12,12] y) {
    group = Constant<value = int64[3] {0, 2, -1}>()
    apart = Constant<value = int64[4] {0, 8, 12, 12}>()
    twice = Constant<value = float[4] {1.0, 1.0, 2.0, 2.0}>()
    back = Constant<value = int64[2] {2, 3}>()
    a = Conv<pads=[1,1,1,1]>(x, w1)
    parts = Reshape(a, group)
    standard = InstanceNormalization(parts, two, none)
    normed = Reshape(standard, apart)
    gate = Sigmoid(normed)
    swish = Mul(normed, gate)
    shift = Gemm<transB=1>(time, w2, b2)
    wide = Unsqueeze(shift, back)
    b = Add(swish, wide)
    down = Conv<strides=[2,2], pads=[1,1,1,1]>(b, w3)
    pooled = AveragePool<kernel_shape=[3,3], pads=[0,0,1,1], strides=[2,2]>(b)
    middle = Add(down, pooled)
    up = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",
                nearest_mode="floor">(middle, , twice)
    deep = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(middle, w4)
    smooth = Resize<mode="linear">(middle, , twice)
    added = Add(up, smooth)
    both = Concat<axis=1>(added, b, deep)
    y = Conv<pads=[1,1,1,1]>(both, w5)
}"""


@pytest.mark.parametrize("head", [OLD, NEW])
def test_every_tensor_of_a_unet_block_is_that_of_the_runtime(head):
    model = read(
        head + UNET,
        w1=weights(8, 3, 3, 3),
        w2=weights(8, 16),
        b2=weights(8),
        w3=weights(8, 8, 3, 3),
        w4=weights(8, 4, 3, 3),
        w5=weights(3, 20, 3, 3),
        two=np.ones(2, np.float32),
        none=np.zeros(2, np.float32),
    )
    assert deviation(model, x=normal(1, 3, 12, 12), time=normal(1, 16)) < 1e-5


def test_the_tiny_network_is_that_of_the_runtime_at_both_ends_of_the_opsets():
    torch.manual_seed(0)
    row = {"picture": normal(1, 2, 8, 8)}
    for opset in (18, 21):
        model = export_network(Net().eval(), row, ["y"], opset=opset, batch="one")
        assert deviation(model, **row) < 1e-5


@pytest.mark.slow
def test_the_rppg_network_is_that_of_the_runtime():
    from models.rppg.network import UltraLightRPPG

    torch.manual_seed(0)
    row = {"input": np.abs(normal(1, 8, 3, 36, 36, 3)).clip(0, 1)}
    model = export_network(UltraLightRPPG().eval(), row, ["bpm"], opset=18, batch="one")
    assert deviation(model, **row) < 1e-5


REDUCED = """g (float[2,3,4] x) => (float[m] y) {{
    y = {operator}<axes=[-1, 0], keepdims=0>(x)
}}"""
REDUCTIONS = (
    "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSumSquare",
)  # fmt: skip


@pytest.mark.parametrize("operator", REDUCTIONS)
def test_reductions_take_their_axes_from_an_attribute_before_opset_18(operator):
    model = read(OLD + REDUCED.format(operator=operator))
    assert deviation(model, x=np.abs(normal(2, 3, 4))) < 1e-5


POOLS = (
    "MaxPool<kernel_shape=[3], strides=[2], ceil_mode=1>",
    "MaxPool<kernel_shape=[2], strides=[3], pads=[1,1], ceil_mode=1>",
    "MaxPool<kernel_shape=[3], strides=[2], dilations=[2], pads=[1,0]>",
    "MaxPool<kernel_shape=[3], strides=[2], auto_pad=\"SAME_LOWER\">",
    "AveragePool<kernel_shape=[3], strides=[2], pads=[1,0], ceil_mode=1>",
    "AveragePool<kernel_shape=[3], strides=[2], pads=[1,1], count_include_pad=1, ceil_mode=1>",
    "AveragePool<kernel_shape=[4], strides=[3], auto_pad=\"SAME_UPPER\">",
    "LpPool<kernel_shape=[3], strides=[2], p=3>",
    "GlobalLpPool<p=3>",
)  # fmt: skip


@pytest.mark.parametrize("size", [9, 10])
@pytest.mark.parametrize("node", POOLS)
def test_pools_at_the_edges_are_those_of_the_runtime(node, size):
    model = read(OLD + f"g (float[1,2,{size}] x) => (float[1,2,n] y) {{ y = {node}(x) }}")
    assert deviation(model, x=normal(1, 2, size)) < 1e-5


RECURRENT = """g (float[4,3,5] x) => (float[4,2,3,6] y, float[2,3,6] h) {{
    ends = Constant<value = int32[3] {{4, 2, 1}}>()
    y, h = {node}(x, w, r, b, ends)
}}"""


@pytest.mark.parametrize(
    ("node", "gates"),
    [("LSTM", 4), ("GRU", 3), ("GRU<linear_before_reset=1, {}>", 3), ("RNN", 1)],
)
def test_sequences_of_their_own_lengths_are_walked_both_ways_as_by_the_runtime(node, gates):
    how = 'hidden_size=6, direction="bidirectional"'
    node = node.format(how) if "{}" in node else f"{node}<{how}>"
    model = read(
        OLD + RECURRENT.format(node=node),
        w=weights(2, gates * 6, 5),
        r=weights(2, gates * 6, 6, seed=1),
        b=weights(2, gates * 12, seed=2),
    )
    assert deviation(model, x=normal(4, 3, 5)) < 1e-5


@pytest.mark.parametrize(("opset", "entries"), [(18, 2), (20, 2), (21, 4)])
def test_group_normalization_has_a_scale_a_group_before_opset_21(opset, entries):
    model = read(
        OLD.replace("13", str(opset))
        + """g (float[2,4,3,5] x) => (float[2,4,3,5] y) {
        y = GroupNormalization<num_groups=2>(x, scale, shift)
    }""",
        scale=weights(entries),
        shift=weights(entries, seed=1),
    )
    x = normal(2, 4, 3, 5)
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    computed = TorchGraph(model)({"x": torch.from_numpy(x)})["y"].detach().numpy()
    np.testing.assert_allclose(computed, expected, rtol=1e-4, atol=1e-6)
