"""Models side by side: figures against numpy and scipy, and advice that follows from them."""

import numpy as np
import onnxruntime as ort
import pytest
from scipy import stats
from verify.files import HEAD, float_model, quantized

from onnxq.compare.advice import advice, is_faster, unbeaten
from onnxq.compare.candidates import Candidate
from onnxq.compare.measure import Question, compare
from onnxq.compare.page import comparison_page
from onnxq.errors import LeakageError, RecipeError
from onnxq.samples import Samples
from onnxq.target import load_target
from onnxq.verify.report.page import page_html, page_markdown
from onnxq.verify.tasks import Classification

NET = (
    HEAD
    + """g (float[1,3,6,6] x) => (float[1,4] y) {
    [c] c = Conv<pads=[1,1,1,1]>(x, w)
    [r] r = Relu(c)
    [p] p = GlobalAveragePool(r)
    [f] f = Flatten(p)
    [y] y = Gemm<transB=1>(f, v)
}"""
)
SHAPES = {"w": (5, 3, 3, 3), "v": (4, 5)}


def pictures(count: int, seed: int = 3, groups: bool = False) -> Samples:
    random = np.random.default_rng(seed)
    x = random.standard_normal((count, 3, 6, 6)).astype(np.float32)
    names = np.repeat(np.arange(count // 4), 4) if groups else None
    return Samples("pictures", {"x": x}, labels=random.integers(0, 4, count), groups=names)


def outputs(path, samples: Samples, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL) -> np.ndarray:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, row)[0] for row in samples.rows()])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """FP32, a good candidate, and one whose weights were made from another network's."""
    folder = tmp_path_factory.mktemp("files")
    fp32, int8, record = quantized(folder, float_model(NET, SHAPES))
    other = tmp_path_factory.mktemp("other")
    changed = float_model(NET, SHAPES)
    for tensor in changed.graph.initializer:
        values = np.frombuffer(tensor.raw_data, np.float32)[::-1]
        tensor.raw_data = values.tobytes()
    _, worse, _ = quantized(other, changed)
    target = load_target("ort-x86")
    return fp32, (
        Candidate("good", "file", int8, target, record),
        Candidate("broken", "file", worse, target, None),
    )


@pytest.fixture(scope="module")
def found(files):
    fp32, candidates = files
    samples = pictures(200)
    samples = Samples("p", samples.inputs, labels=outputs(fp32, samples).argmax(1))
    return samples, compare(fp32, candidates, samples, Question(Classification(), "top1", 0.2, 2))


def test_metrics_and_their_increase_are_those_of_plain_onnxruntime(files, found):
    samples, compared = found
    for name, path in (("FP32", files[0]), *((c.name, c.file) for c in files[1])):
        row = next(r for r in compared.metrics if (r.model, r.metric) == (name, "top1"))
        right = (outputs(path, samples).argmax(1) == samples.labels).mean()
        assert row.value == pytest.approx(right, abs=1e-12)
        if name != "FP32":
            assert row.increase == pytest.approx(1 - right, abs=1e-12)
            assert row.interval.low <= row.increase <= row.interval.high


def test_sqnr_bytes_and_latency_are_those_of_the_files(files, found):
    samples, compared = found
    exact = outputs(files[0], samples, ort.GraphOptimizationLevel.ORT_DISABLE_ALL).astype(float)
    for candidate, facts in zip(files[1], compared.models[1:], strict=True):
        got = outputs(candidate.file, samples)
        wanted = 10 * np.log10((exact**2).sum() / ((exact - got) ** 2).sum())
        assert facts.sqnr_db == pytest.approx(wanted, abs=1e-6)
        assert facts.size_bytes == candidate.file.stat().st_size
        assert facts.size_ratio == facts.size_bytes / files[0].stat().st_size
        assert facts.latency.runs == 16
        assert facts.latency.low_quartile_ms <= facts.latency.median_ms


def test_mcnemar_is_the_binomial_test_of_the_samples_that_one_alone_has_right(files, found):
    samples, compared = found
    one, other = (outputs(c.file, samples).argmax(1) == samples.labels for c in files[1])
    row = next(row for row in compared.pairs if row.metric == "top1")
    only_one, only_other = int((one & ~other).sum()), int((other & ~one).sum())
    assert (row.only_first, row.only_second) == (only_one, only_other)
    tail = stats.binom.cdf(min(only_one, only_other), only_one + only_other, 0.5)
    assert row.p_value == pytest.approx(min(1.0, 2 * tail))
    assert row.increase == pytest.approx(one.mean() - other.mean())


def test_with_groups_there_is_no_mcnemar_and_groups_are_the_unit(files):
    samples = pictures(80, groups=True)
    compared = compare(*files, samples, Question(Classification(), "top1", rounds=0))
    assert compared.groups == 20
    assert all(row.p_value is None for row in compared.pairs)
    assert all(row.interval.units == "groups" for row in compared.pairs)
    assert all(model.latency is None for model in compared.models)


def test_the_one_within_the_limit_is_advised_and_the_broken_one_is_beyond(found):
    _, compared = found
    assert (compared.within, compared.beyond) == (("good",), ("broken",))
    assert compared.advice.startswith("Take good: it is the only one whose top1 is surely")
    nothing = compared.model_copy(update={"within": (), "beyond": ("good", "broken")})
    assert advice(nothing).startswith("Take none: of no candidate")
    open_one = compared.model_copy(update={"within": (), "beyond": ("broken",)})
    assert "do not settle whether the top1 of good" in advice(open_one)


def test_without_a_limit_a_candidate_that_another_beats_is_not_advised(found):
    _, compared = found
    free = compared.model_copy(update={"limit": None, "within": (), "beyond": ()})
    assert unbeaten(free) == {"good"}
    assert advice(free).startswith("Take good: it alone is not significantly")


def test_of_equals_the_clearly_faster_is_advised_then_the_smaller(found):
    _, compared = found
    fp32, good, _ = compared.models
    slow = good.latency.model_copy(update={"low_quartile_ms": 9.0, "high_quartile_ms": 9.5})
    fast = slow.model_copy(update={"low_quartile_ms": 1.0, "high_quartile_ms": 1.1})
    one = good.model_copy(update={"latency": slow, "size_bytes": 10})
    other = good.model_copy(update={"name": "broken", "latency": fast, "size_bytes": 20})
    assert is_faster(other, one)
    assert not is_faster(one, other)
    both = {"models": (fp32, one, other), "within": ("good", "broken"), "beyond": ()}
    assert "Take broken: it is the fastest of the 2" in advice(compared.model_copy(update=both))
    level = other.model_copy(update={"latency": slow})
    both["models"] = (fp32, one, level)
    assert "Take good: it is the smallest" in advice(compared.model_copy(update=both))


def test_samples_that_a_candidate_was_calibrated_on_are_refused(files):
    fp32, (good, _) = files
    random = np.random.default_rng(7)  # as the candidate's calibration was made
    x = random.standard_normal((16, 3, 6, 6)).astype(np.float32)
    samples = Samples("seen", {"x": x}, labels=np.zeros(16, np.int64))
    with pytest.raises(LeakageError, match="byte for byte"):
        compare(fp32, [good], samples, Question(Classification(), "top1"))


def test_an_unknown_metric_is_refused_with_the_nearest_name(files):
    with pytest.raises(RecipeError, match="did you mean `top1`"):
        compare(*files, pictures(8), Question(Classification(), "top_1"))


def test_the_page_says_every_figure_and_needs_nothing_from_outside(found):
    _, compared = found
    page = comparison_page(compared)
    text, markup = page_markdown(page), page_html(page)
    assert compared.advice in text
    for outside in ("http://", "https://", "<script", "src="):
        assert outside not in markup
    assert "McNemar" in text
    assert markup.count("<svg") == 2
    assert "<svg" not in text
    assert all(model.file.sha256[:16] in text for model in compared.models)
