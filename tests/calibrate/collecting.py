"""Small networks, their activations as a plain session gives them, and statistics of them."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnxruntime as ort

from onnxq.calibrate.collect import Detail, Job
from onnxq.calibrate.finite import float_tensors
from onnxq.calibrate.gather import gather
from onnxq.calibrate.readers import SampleReader
from onnxq.calibrate.resources import Resources
from onnxq.calibrate.statistics import Statistics
from onnxq.samples import Samples
from tests.onnx_text import model_of

DETAILS: tuple[Detail, ...] = ("extremes", "histograms")
RANDOM = np.random.default_rng(11)


def normal(*shape: int, size: float = 1.0) -> np.ndarray:
    return (RANDOM.standard_normal(shape) * size).astype(np.float32)


def model(text: str, opset: int = 17, **constants: object) -> bytes:
    """A graph given as ONNX text, with its constants and all shapes."""
    parsed = model_of(f'<ir_version: 9, opset_import: ["": {opset}]>\n{text}', **constants)
    return onnx.shape_inference.infer_shapes(parsed, data_prop=True).SerializeToString()


CNN = model(
    """g (float[N,3,8,8] x) => (float[N,5] y) {
        [conv] a = Conv<pads=[1,1,1,1]>(x, w1, b1)
        [relu] b = Relu(a)
        [deep] c = Conv<pads=[1,1,1,1], group=6>(b, w2)
        [clip] d = Clip(c, zero, six)
        [add] e = Add(d, b)
        [pool] f = MaxPool<kernel_shape=[2,2], strides=[2,2]>(e)
        [gap] h = GlobalAveragePool(f)
        [flat] i = Flatten(h)
        [gemm] j = Gemm<transB=1>(i, w3)
        [out] y = Sigmoid(j)
    }""",
    w1=normal(6, 3, 3, 3),
    b1=normal(6),
    w2=normal(6, 1, 3, 3),
    w3=normal(5, 6),
    zero=np.float32(0),
    six=np.float32(6),
)
ATTENTION = model(
    """g (float[N,6,8] x, float[N,1,6] mask) => (float[N,6,8] y) {
        [q] q = MatMul(x, wq)
        [k] k = MatMul(x, wk)
        [v] v = MatMul(x, wv)
        [kt] kt = Transpose<perm=[0,2,1]>(k)
        [qk] s = MatMul(q, kt)
        [masked] m = Add(s, mask)
        [soft] p = Softmax<axis=-1>(m)
        [pv] o = MatMul(p, v)
        [res] r = Add(o, x)
        [norm] n = LayerNormalization<axis=-1>(r, g, c)
        [gelu] e = Erf(n)
        [out] y = MatMul(e, wo)
    }""",
    **{name: normal(8, 8) for name in ("wq", "wk", "wv", "wo")},
    g=normal(8),
    c=normal(8),
)
NETS = {
    "cnn": (CNN, {"x": normal(13, 3, 8, 8)}),
    "attention": (ATTENTION, {"x": normal(13, 6, 8), "mask": normal(13, 1, 6, size=3)}),
}


def all_tensors(graph: bytes) -> tuple[str, ...]:
    return float_tensors(onnx.ModelProto.FromString(graph))


def job(graph: bytes, detail: Detail, *tensors: str, **options: object) -> Job:
    return Job(graph, tensors or all_tensors(graph), detail, **options)  # type: ignore[arg-type]


def collected(
    given: Job,
    inputs: Mapping[str, np.ndarray],
    batch: int = 1,
    resources: Resources | None = None,
) -> Statistics:
    reader = SampleReader(Samples("s.npz", dict(inputs)), batch)
    return gather(given, reader, resources or Resources())


def activations(
    graph: bytes, tensors: Sequence[str], inputs: Mapping[str, np.ndarray]
) -> dict[str, list[np.ndarray]]:
    """What a plain session computes for each tensor, sample by sample."""
    proto = onnx.ModelProto.FromString(graph)
    given = {value.name for value in proto.graph.input}
    del proto.graph.output[:]
    for name in tensors:
        if name not in given:
            value = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            proto.graph.output.append(value)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    found: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    for row in range(len(next(iter(inputs.values())))):
        feed = {name: array[row : row + 1] for name, array in inputs.items()}
        outputs = dict(zip(names, session.run(names, feed), strict=True)) | feed
        for name in tensors:
            found[name].append(outputs[name])
    return found
