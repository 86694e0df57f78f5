"""``onnxq export --propose-split``: loops become models, and every part is judged by the target."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from onnxq.artifacts import Manifest
from onnxq.splitting.manifest import PartsSession
from onnxq.store import load_record
from tests.onnx_text import model_of

SAMPLER = """<ir_version: 9, opset_import: ["": 17]>
g (float[1,3,8,8] noise) => (float[1,2] y) {
  latent = Loop (runs, , noise) <body = step (int64 i, bool go, float[1,3,8,8] x)
    => (bool on, float[1,3,8,8] next) {
      on = Identity(go)
      share = Gather<axis = 0>(table, i)
      made = Conv<pads = [1, 1, 1, 1]>(x, w)
      bent = Relu(made)
      scaled = Mul(bent, share)
      next = Sub(x, scaled)
  }>
  pooled = GlobalAveragePool(latent)
  flat = Flatten(pooled)
  y = Gemm(flat, v)
}"""


@pytest.fixture
def sampler(tmp_path):
    rng = np.random.default_rng(0)

    def written(runs: int):
        onnx.save(
            model_of(
                SAMPLER,
                runs=np.array(runs),
                table=rng.uniform(0.01, 0.1, runs).astype(np.float32),
                w=rng.uniform(-0.3, 0.3, (3, 3, 3, 3)).astype(np.float32),
                v=rng.uniform(-0.3, 0.3, (3, 2)).astype(np.float32),
            ),
            tmp_path / "sampler.onnx",
        )
        return tmp_path / "sampler.onnx"

    return written


def of_onnxruntime(path, **inputs):
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]


def test_a_short_loop_is_unrolled_and_its_body_proposed_as_a_part(sampler, onnxq, tmp_path):
    model, out = sampler(3), tmp_path / "out"

    ended = onnxq("export", model, "--propose-split", "--target", "stm32n6", "-o", out, "--json")

    assert ended.code == 0, ended.err
    told = ended.json["loops"]
    assert "runs its body of 6 nodes 3 times" in told["reasons"][0]
    assert told["max_absolute"] == 0
    assert told["rules"]["Part2"] == []
    assert "stm32n6.rank-1-input" in {rule["rule"] for rule in told["rules"]["Body1"]}
    kinds = [node.op_type for node in onnx.load(out / "fp32.onnx").graph.node]
    assert kinds.count("Conv") == 3
    picture = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    wanted = of_onnxruntime(model, noise=picture)
    np.testing.assert_allclose(of_onnxruntime(out / "fp32.onnx", noise=picture), wanted, rtol=1e-5)
    manifest = load_record(Manifest, out / "loops" / "pipeline.json")
    parts = PartsSession(manifest, out / "loops", optimization="none")
    np.testing.assert_array_equal(parts.run({"noise": picture})["y"], wanted)


def test_a_loop_too_long_to_be_unrolled_is_refused_and_its_body_is_all_there_is(
    sampler, onnxq, tmp_path
):
    model, out = sampler(100), tmp_path / "out"

    refused = onnxq("export", model, "-o", out)
    ended = onnxq("export", model, "--propose-split", "-o", out)

    assert refused.code == 2
    assert "runs 100 times" in refused.err
    assert "--propose-split" in refused.err
    assert ended.code == 0, ended.err
    assert "too long to be unrolled" in ended.out
    assert "outputs differ by up to 0.0e+00" in ended.out
    assert sorted(file.name for file in out.iterdir()) == ["loops"]


def test_a_body_is_quantized_on_what_its_runs_take(sampler, onnxq, tmp_path):
    model, out = sampler(100), tmp_path / "out"
    noise = np.random.default_rng(2).standard_normal((2, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "noise.npz", noise=noise)
    data = ("--body-data", tmp_path / "noise.npz")

    ended = onnxq("export", model, "--propose-split", *data, "-o", out)
    body, runs = out / "loops" / "Body1.onnx", out / "loops" / "Body1_inputs.npz"
    made = onnxq("quantize", body, "--data", runs, "--samples", "64", "-o", tmp_path / "b.onnx")

    assert ended.code == 0, ended.err
    with np.load(runs) as given:
        assert given["x"].shape == (200, 3, 8, 8)
        np.testing.assert_array_equal(given["x"][[0, 100]], noise)
        np.testing.assert_array_equal(given["timesteps"], [*range(100), *range(100)])
        once = {"x": given["x"][:1], "i.run": given["i.run"][:1].reshape(1)}
        np.testing.assert_array_equal(of_onnxruntime(body, **once)[0], given["x"][1])
    assert made.code == 0, made.err + made.out
    kinds = [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node]
    assert "QuantizeLinear" in kinds


def test_the_steps_of_an_unrolled_loop_are_found_again(sampler, onnxq, tmp_path):
    model, flat, out = sampler(4), tmp_path / "flat", tmp_path / "out"
    assert onnxq("export", model, "-o", flat).code == 0
    assert "Loop" not in [node.op_type for node in onnx.load(flat / "fp32.onnx").graph.node]

    ended = onnxq("export", flat / "fp32.onnx", "--propose-split", "-o", out, "--json")

    assert ended.code == 0, ended.err
    told = ended.json["loops"]
    assert "4 times" in told["reasons"][0]
    assert told["max_absolute"] == 0
    picture = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)
    manifest = load_record(Manifest, out / "loops" / "pipeline.json")
    parts = PartsSession(manifest, out / "loops", optimization="none")
    wanted = of_onnxruntime(out / "fp32.onnx", noise=picture)
    np.testing.assert_array_equal(parts.run({"noise": picture})["y"], wanted)


def test_data_for_bodies_are_refused_where_there_is_none(sampler, onnxq, tmp_path):
    model, out = sampler(2), ("-o", tmp_path / "out")
    plain = tmp_path / "plain.onnx"
    text = '<ir_version: 9, opset_import: ["": 17]> g (float[1,3] x) => (float[1,3] y) {y = Exp(x)}'
    onnx.save(model_of(text), plain)
    alone = onnxq("export", model, "--body-data", "x.npz", *out)
    nothing = onnxq("export", plain, "--propose-split", "--body-data", "x.npz", *out)
    assert (alone.code, nothing.code) == (2, 2)
    assert "is read with --propose-split" in alone.err
    assert "the graph has no loop" in nothing.err
