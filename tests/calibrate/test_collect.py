"""What is counted is what a plain session computes; what is not finite is told where it arose."""

import functools
from itertools import pairwise

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

from onnxq.calibrate.archive import encode
from onnxq.calibrate.collect import Collector, Detail, Runs
from onnxq.calibrate.estimators import EstimatorOptions, percentile
from onnxq.calibrate.readers import SampleReader
from onnxq.calibrate.resources import Resources
from onnxq.calibrate.statistics import Builder, Statistics
from onnxq.errors import DataError
from onnxq.samples import Samples

from .collecting import DETAILS, NETS, activations, all_tensors, collected, job, model, normal


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]


@pytest.mark.parametrize("detail", DETAILS)
def test_minmax_is_that_of_onnxruntimes_calibrater_bit_for_bit(net, detail, tmp_path):
    graph, inputs = net
    onnx.save(onnx.ModelProto.FromString(graph), tmp_path / "m.onnx")
    theirs = create_calibrator(
        tmp_path / "m.onnx",
        None,
        str(tmp_path / "augmented.onnx"),
        CalibrationMethod.MinMax,
    )
    theirs.create_inference_session()
    theirs.collect_data(SampleReader(Samples("s", inputs)))
    expected = {
        name: tuple(np.asarray(extreme).item() for extreme in data.range_value)
        for name, data in theirs.compute_data().items()
    }
    statistics = collected(job(graph, detail), inputs)
    found = {name: statistics.of(name) for name in statistics.tensors}
    assert set(found) == set(expected)
    assert {name: (seen.low, seen.high) for name, seen in found.items()} == expected


def test_every_histogram_counts_what_a_plain_session_computes(net):
    graph, inputs = net
    statistics = collected(job(graph, "histograms"), inputs)
    for name, runs in activations(graph, all_tensors(graph), inputs).items():
        values = np.concatenate([run.reshape(-1) for run in runs])
        seen = statistics.of(name)
        assert seen.lows.tolist() == [run.min() for run in runs]
        assert seen.highs.tolist() == [run.max() for run in runs]
        assert seen.summary is not None
        assert (seen.values, seen.summary.count) == (values.size, values.size)
        assert seen.summary.zeros == np.count_nonzero(values == 0)
        numbers, counts = np.unique(values.view(np.uint32) >> 16, return_counts=True)
        assert dict(zip(seen.summary.buckets, seen.summary.counts, strict=True)) == dict(
            zip(numbers, counts, strict=True)
        )
        assert seen.summary.mean == pytest.approx(values.astype(np.float64).mean(), abs=1e-12)


@pytest.mark.parametrize("coverage", [0.9, 0.99, 0.999])
def test_percentile_is_that_of_numpy_to_one_bucket(net, coverage):
    graph, inputs = net
    statistics = collected(job(graph, "histograms"), inputs)
    options = EstimatorOptions(coverage=coverage)
    for name, runs in activations(graph, all_tensors(graph), inputs).items():
        values = np.concatenate([run.reshape(-1) for run in runs])
        tail = (1 - coverage) / 2
        inner = [np.quantile(values, q, method=m) for q, m in ((tail, "higher"), (1 - tail, "lower"))]  # fmt: skip # noqa: E501
        outer = [np.quantile(values, q, method=m) for q, m in ((tail, "lower"), (1 - tail, "higher"))]  # fmt: skip # noqa: E501
        found = percentile(statistics.of(name), options)
        bucket = 1 + 2**-7
        assert min(0, outer[0] * bucket, outer[0]) <= found.low <= min(0, inner[0])
        assert max(0, inner[1]) <= found.high <= max(0, outer[1] * bucket, outer[1])


@functools.cache
def undivided(name: str, detail: Detail) -> Statistics:
    graph, inputs = NETS[name]
    return collected(job(graph, detail), inputs)


@settings(max_examples=8, deadline=None)
@given(
    name=st.sampled_from(sorted(NETS)),
    detail=st.sampled_from(DETAILS),
    threads=st.integers(1, 4),
    output_bytes=st.sampled_from([1, 700, 10**9]),
    cuts=st.sets(st.integers(1, 12), max_size=4),
    random=st.randoms(use_true_random=False),
)
def test_threads_groups_and_pieces_change_no_bit(name, detail, threads, output_bytes, cuts, random):
    graph, inputs = NETS[name]
    expected = undivided(name, detail)
    given_job = job(graph, detail, threads=threads, output_bytes=output_bytes)
    collector = Collector(given_job)
    edges = sorted({0, 13, *cuts, *(stop for _, stop in expected.blocks)})
    intervals = list(pairwise(edges))
    random.shuffle(intervals)
    builder = Builder(given_job.tensors, expected.blocks)
    for start, stop in intervals:
        *steps, piece = collector.collect(SampleReader(Samples("s", inputs)), start, stop)
        assert steps == [None] * (stop - start)
        assert piece is not None
        builder.add(start, piece)
    assert encode(builder.build()) == encode(expected)


def test_outputs_of_a_byte_give_every_tensor_a_session_of_its_own(net):
    graph, _ = net
    inputs = len(onnx.ModelProto.FromString(graph).graph.input)
    collector = Collector(job(graph, "histograms", output_bytes=1))
    assert collector.groups == len(all_tensors(graph)) - inputs
    assert Collector(job(graph, "histograms")).groups == 1


ELEMENTWISE = "g (float[{batch},5,4] x) => (float[{batch},4,5] y) {{ r = Relu(x)  t = Transpose<perm=[0,2,1]>(r)  y = Neg(t) }}"  # noqa: E501


def test_a_summary_does_not_know_in_which_batches_values_came():
    x = {"x": normal(12, 5, 4)}
    free = collected(job(model(ELEMENTWISE.format(batch="N")), "histograms"), x)
    for batch in (1, 2, 3, 6):
        graph = model(ELEMENTWISE.format(batch=batch))
        statistics = collected(job(graph, "histograms"), x, batch)
        assert statistics.runs == 12 // batch
        for name in statistics.tensors:
            assert statistics.of(name).summary == free.of(name).summary
            assert statistics.of(name).low == free.of(name).low


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_zeros_of_either_sign_give_the_same_extremes_in_any_order(order):
    graph = model("g (float[N,2] x) => (float[N,2] y) { y = Neg(x) }")
    x = np.array([[0, 0], [-0.0, -0.0], [0, 0]], np.float32)[list(order)]
    for detail in DETAILS:
        statistics = collected(job(graph, detail), {"x": x})
        assert not np.signbit([statistics.lows, statistics.highs]).any()
        for block in statistics.summaries:
            assert not np.signbit([(seen.low, seen.high) for seen in block]).any()


# --- what is not finite --------------------------------------------------------------------------


def hidden(detail: str, text: str, bad: float, *tensors: str) -> str:
    """Where the error says that sample 2, which holds ``bad``, goes wrong."""
    x = np.abs(normal(4, 3)) + 1
    x[2, 1] = bad
    with pytest.raises(DataError) as fault:
        collected(job(model(text), detail, *tensors), {"x": x})  # type: ignore[arg-type]
    return str(fault.value)


@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("hides", ["Relu", "HardSigmoid"])
def test_a_nan_is_found_behind_an_operator_that_hides_it(detail, hides):
    text = f"g (float[N,3] x) => (float[N,3] y) {{ [root] s = Sqrt(x)  y = {hides}(s) }}"
    said = hidden(detail, text, -1, "x", "y")
    assert "s.npz, sample 2, tensor `s`" in said
    assert "Sqrt `root` computes nan" in said


@pytest.mark.parametrize("detail", DETAILS)
def test_a_nan_that_a_clip_turns_into_its_bound_is_found(detail):
    text = """g (float[N,3] x) => (float[N,3] y) {
        lo = Constant<value = float {0.0}>()
        hi = Constant<value = float {6.0}>()
        [ln] s = Log(x)  [cut] y = Clip(s, lo, hi) }"""
    assert "sample 2, tensor `s`: Log `ln` computes nan" in hidden(detail, text, -1, "x", "y")


@pytest.mark.parametrize("detail", DETAILS)
def test_an_infinity_that_would_carry_q_and_dq_is_an_error(detail):
    text = "g (float[N,3] x) => (float[N,3] y) { [big] e = Exp(x)  [small] y = Sigmoid(e) }"
    assert "tensor `e`: Exp `big` computes inf" in hidden(detail, text, 100, "x", "e", "y")


@pytest.mark.parametrize("detail", DETAILS)
def test_infinities_of_a_mask_where_nothing_is_quantized_are_let_be(detail):
    graph = model(
        """g (float[N,4] x) => (float[N,4] y) {
            [none] m = Mul(x, zero)  [less] c = Less(x, one)
            [mask] w = Where(c, m, never)  [add] a = Add(x, w)  [soft] y = Softmax<axis=-1>(a) }""",
        zero=np.float32(0),
        one=np.float32(1),
        never=np.float32(-np.inf),
    )
    x = normal(6, 4) / 4
    x[:, 0] = 2
    statistics = collected(job(graph, detail, "x", "y"), {"x": x})
    assert 0 == statistics.of("y").low < statistics.of("y").high <= 1
    with pytest.raises(DataError, match=r"tensor `w`: Where `mask` computes -inf"):
        collected(job(graph, detail, "x", "w", "y"), {"x": x})


@pytest.mark.parametrize("detail", DETAILS)
def test_infinities_of_both_signs_in_a_float_tensor_are_let_be(detail):
    """Their sum is NaN, which is no NaN among the values."""
    text = "g (float[N,3] x) => (float[N,3] y) { [r] i = Reciprocal(x)  [t] y = Tanh(i) }"
    x = np.array([[0.0, -0.0, 1]], np.float32)
    seen = collected(job(model(text), detail, "x", "y"), {"x": x}).of("y")
    assert (seen.low, seen.high) == (-1, 1)


@pytest.mark.parametrize("detail", DETAILS)
def test_large_finite_values_whose_sum_overflows_are_no_error(detail):
    text = "g (float[N,3] x) => (float[N,3] y) { t = Abs(x)  y = Neg(t) }"
    x = np.full((2, 3), 3e38, np.float32)
    for tensors in (("x", "t", "y"), ("x", "y")):
        seen = collected(job(model(text), detail, *tensors), {"x": x}).of("y")
        assert seen.low == seen.high == -x[0, 0]


# --- kinds of graphs and inputs ------------------------------------------------------------------


@pytest.mark.parametrize("detail", DETAILS)
def test_integer_and_boolean_inputs_are_handed_over_and_not_counted(detail):
    graph = model(
        """g (int64[N,3] ids, bool[N,3] keep, float[N,3] x) => (float[N,3,2] y) {
            e = Gather(table, ids)  u = Unsqueeze(x, last)  k = Unsqueeze(keep, last)
            y = Where(k, e, u) }""",
        table=normal(7, 2),
        last=np.array([2]),
    )
    inputs = {
        "ids": np.random.default_rng(0).integers(0, 7, (5, 3)),
        "keep": np.random.default_rng(1).integers(0, 2, (5, 3)).astype(bool),
        "x": normal(5, 3),
    }
    tensors = all_tensors(graph)
    assert not {"ids", "keep"} & set(tensors)
    statistics = collected(job(graph, detail), inputs)
    for name, runs in activations(graph, tensors, inputs).items():
        assert statistics.of(name).low == min(run.min() for run in runs)
        assert statistics.of(name).values == sum(run.size for run in runs)


@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("opset", [13, 17, 18, 20, 21])
def test_a_tensor_without_elements_has_no_extreme(detail, opset):
    text = "g (float[1,4] x) => (float[1,0] y) { y = Slice(x, two, two, one) }"
    graph = model(text, opset, two=np.array([2]), one=np.array([1]))
    statistics = collected(job(graph, detail), {"x": normal(3, 4)})
    assert statistics.of("y").is_empty
    assert statistics.of("y").values == 0
    assert not statistics.of("x").is_empty


@pytest.mark.parametrize("detail", DETAILS)
def test_sizes_that_depend_on_the_values_are_followed(detail):
    graph = model(
        """g (float[N,4] x) => (float[K] y) {
            c = Greater(x, z)  i = NonZero(c)  j = Transpose(i)  y = GatherND(x, j) }""",
        z=np.float32(0.6),
    )
    x = np.array([[0, 1, 2, 0], [0, 0, 0, 0], [3, 0, 0, 0]], np.float32)
    seen = collected(job(graph, detail), {"x": x}).of("y")
    np.testing.assert_array_equal(seen.lows, np.float32([1, np.nan, 3]))
    assert (seen.low, seen.high, seen.values) == (1, 3, 3)


@pytest.mark.parametrize("detail", DETAILS)
def test_a_model_with_symbolic_inner_dimensions_is_counted_at_any_size(detail):
    graph = model("g (float[N,T,3] x) => (float[N,T,2] y) { h = MatMul(x, w)  y = Relu(h) }", w=normal(3, 2))  # fmt: skip # noqa: E501
    for length in (1, 7):
        x = {"x": normal(4, length, 3)}
        statistics = collected(job(graph, detail), x)
        for name, runs in activations(graph, all_tensors(graph), x).items():
            assert statistics.of(name).highs.tolist() == [run.max() for run in runs]


@pytest.mark.parametrize("detail", DETAILS)
def test_a_graph_of_which_only_the_input_is_looked_at_is_counted(detail):
    graph = model("g (float[N,4] x) => (int64[N,1] y) { y = ArgMax<axis=1>(x) }")
    x = normal(3, 4)
    seen = collected(job(graph, detail), {"x": x}).of("x")
    assert (seen.low, seen.high) == (x.min(), x.max())


def test_a_collection_that_was_broken_off_leaves_nothing_behind():
    graph, inputs = NETS["cnn"]
    reader = SampleReader(Samples("s", inputs))
    assert isinstance(reader, Runs)
    collector = Collector(job(graph, "histograms"))
    steps = collector.collect(reader, 0, 13)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    *_, piece = collector.collect(reader, 3, 4)
    assert piece is not None
    assert piece.of("x").values == inputs["x"][3].size
    assert piece.of("x").summary.count == inputs["x"][3].size  # type: ignore[union-attr]


def test_full_optimization_gives_the_same_but_for_rounding(net):
    graph, inputs = net
    tensors = ("x", "y")
    exact = collected(job(graph, "histograms", *tensors), inputs)
    fused = collected(job(graph, "histograms", *tensors, optimization="full"), inputs)
    np.testing.assert_allclose(fused.lows, exact.lows, rtol=1e-4, atol=1e-5)
    assert encode(fused) == encode(
        collected(
            job(graph, "histograms", *tensors, optimization="full"),
            inputs,
            resources=Resources(checkpoint_seconds=0.001),
        )
    )


@pytest.mark.parametrize("detail", DETAILS)
@pytest.mark.parametrize("op", ["Mul", "Sub", "Add"])
@pytest.mark.parametrize("place", [0, 1, 7])
def test_a_nan_that_arises_of_infinities_where_nothing_is_quantized_is_found(detail, op, place):
    other = "ever" if op == "Add" else "never"
    graph = model(
        f"""g (float[N,8] x) => (float[N,8] y) {{
            [cut] r = Relu(x)
            [less] c = Less(x, zero)
            [mask] w = Where(c, never, zero)
            [other] v = Where(c, {other}, zero)
            [odd] y = {op}(w, {"r" if op == "Mul" else "v"}) }}""",
        zero=np.float32(0),
        never=np.float32(-np.inf),
        ever=np.float32(np.inf),
    )
    x = np.abs(normal(3, 8))
    x[2, place] = -1
    with pytest.raises(DataError, match=r"sample 2, tensor `y`: .* `odd` computes nan"):
        collected(job(graph, detail, "x", "y"), {"x": x})


def test_groups_take_turns_in_the_same_memory():
    chain = "".join(f"  t{n} = Neg(t{n - 1})" for n in range(1, 9))
    graph = model(f"g (float[N,64,1000] x) => (float[N,64,1000] t8) {{ t0 = Relu(x) {chain} }}")
    tensors = tuple(f"t{n}" for n in range(9))
    made = Collector(job(graph, "histograms", *tensors, output_bytes=1_000_000))
    assert made.groups == 3
    for _ in made.collect(SampleReader(Samples("s", {"x": normal(2, 64, 1000)})), 0, 2):
        pass
    assert made._scratch().nbytes <= 1_100_000
