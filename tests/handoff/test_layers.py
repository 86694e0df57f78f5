"""Every layer's integers in a bundle, judged by onnxruntime, numpy and gcc."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import onnx
import pytest

from handoff.qdq_models import images
from handoff.records import N6, X86, samples
from handoff.runtime_integers import normal, quantized, runtime_integers
from handoff.test_reference_forms import with_integers
from onnxq.graph import load_model
from onnxq.handoff import layers as subject
from onnxq.handoff.answers import make_answers
from onnxq.handoff.contract import Contract, contract
from onnxq.handoff.dump import known_layers, read_dump
from onnxq.handoff.dump_compare import compare_layers
from onnxq.handoff.layers import write_layers
from onnxq.handoff.reference.evaluate import Reference
from onnxq.handoff.stage import hand_off
from onnxq.samples import Samples
from onnxq.store import load_record, sha256_of_file

TENSORS = ["image", "r", "p", "c", "s", "g", "f", "scores"]


@pytest.fixture(scope="module", params=["stm32n6", "ort-x86"])
def made(request, nets, tmp_path_factory):
    """A bundle and its model."""
    target = {"stm32n6": N6, "ort-x86": X86}[request.param]
    folder = tmp_path_factory.mktemp("layers") / "a bundle"
    hand_off(
        model=nets[target.name],
        target=target,
        samples=samples(),
        folder=folder,
        allow_unverified=True,
    )
    return folder, nets[target.name]


def loaded(path):
    with np.load(path, allow_pickle=False) as archive:
        return dict(archive)


def test_layers_are_what_onnxruntime_gives_for_the_first_vector(made):
    folder, model = made
    arrays = loaded(folder / "layers.npz")
    about = json.loads(str(arrays["about"]))
    assert [layer["name"] for layer in about["layers"]] == TENSORS
    assert [name for name in arrays if name.startswith("layer.")] == [f"layer.{t}" for t in TENSORS]
    np.testing.assert_array_equal(arrays["input.image"], images(12)[:1])
    wanted = runtime_integers(load_model(model), {"image": images(12)[:1]}, "none")
    for name, integers in wanted.items():
        np.testing.assert_array_equal(arrays[f"layer.{name}"], integers)
        assert arrays[f"layer.{name}"].dtype == integers.dtype
    assert about["sha256"] == sha256_of_file(model)


def test_each_layer_tells_its_node_grid_and_what_the_reference_says(made):
    folder, model = made
    about = json.loads(str(loaded(folder / "layers.npz")["about"]))
    graph = onnx.load(model).graph
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    for layer, node in zip(about["layers"], quantizers, strict=True):
        assert layer["scale"] == float(constants[node.input[1]])
        assert layer["zero_point"] == int(constants[node.input[2]])
        assert (layer["reference_steps"], layer["reference_differing"]) == (0, 0)
    rows = {layer["name"]: layer for layer in about["layers"]}
    assert (rows["r"]["op_type"], rows["r"]["sources"]) == ("Conv", ["image"])
    assert "gives the same in 8 of 8 layers" in (folder / "LAYERS.md").read_text()


def test_the_devices_answers_are_the_known_answers_as_integers(made):
    folder, _ = made
    answers, device = loaded(folder / "known_answers.npz"), loaded(folder / "device_answers.npz")
    told = load_record(Contract, folder / "contract.json")
    known = {f"{v.direction}.{v.name}": v.quantization for v in (*told.inputs, *told.outputs)}
    for key, facts in known.items():
        assert len(device[key]) == 10
        assert str(device[key].dtype) == facts.type
        reals = (device[key].astype(np.int64) - facts.zero_point) * np.float32(facts.scale)
        half = facts.scale / 2 if key.startswith("input") else 0
        assert np.abs(reals.astype(np.float32) - answers[key]).max() <= half * 1.001


def test_a_target_that_takes_channels_last_gets_them_so(made, tmp_path):
    folder, model = made
    shutil.copy(model, tmp_path)
    told = load_record(Contract, folder / "contract.json")
    last = N6.model_copy(update={"commands": ("stedgeai generate --inputs-ch-position chlast",)})
    write_layers(tmp_path, told, last, loaded(folder / "known_answers.npz"))
    device = loaded(tmp_path / "device_answers.npz")
    np.testing.assert_array_equal(
        device["input_chlast.image"], device["input.image"].transpose(0, 1, 3, 4, 2)
    )
    assert "input_chlast.image" not in loaded(folder / "device_answers.npz")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_c_arrays_hold_the_same_integers(made, tmp_path):
    folder, _ = made
    program = """#include <stdio.h>
    #include "layers.h"
    int main(void) {
        for (int n = 0; n < KNOWN_LAYER_COUNT; n++) {
            const known_layer *at = &known_layers[n];
            printf("%s %a %d", at->tensor, (double)at->scale, at->zero_point);
            for (size_t k = 0; k < at->count; k++)
                printf(" %d", at->is_signed ? ((const int8_t *)at->integers)[k]
                                            : ((const uint8_t *)at->integers)[k]);
            printf("\\n");
        }
        return 0;
    }"""
    (tmp_path / "main.c").write_text(program)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{folder}"]
    subprocess.run(
        ["gcc", *flags, "main.c", str(folder / "layers.c"), "-o", "main"], cwd=tmp_path, check=True
    )
    told = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=True).stdout
    arrays = loaded(folder / "layers.npz")
    about = json.loads(str(arrays["about"]))["layers"]
    for line, layer in zip(told.splitlines(), about, strict=True):
        name, scale, point, *integers = line.split()
        assert (name, int(point)) == (layer["name"], layer["zero_point"])
        assert float.fromhex(scale) == layer["scale"]
        flat = arrays[f"layer.{name}"].reshape(-1)
        np.testing.assert_array_equal(np.array(integers, int), flat)


def written(folder, model, rows, monkeypatch, most=None):
    """``write_layers`` for a model alone."""
    if most is not None:
        monkeypatch.setattr(subject, "MOST_INTEGERS", most)
    told = contract(load_model(model), None, None, name=model.name, sha256=sha256_of_file(model))
    answers = make_answers(model, told, X86, Samples("rows", {"x": rows}), 2)
    folder.mkdir(exist_ok=True)
    shutil.copy(model, folder)
    write_layers(folder, told, X86, answers)
    return (folder / "LAYERS.md").read_text()


NET = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>
net (float[1,6,8,8] x) => (float[1,6,8,8] y) {
    a = Conv <pads=[1,1,1,1]> (x, w)
    b = %s (a)
    y = Conv <pads=[1,1,1,1]> (b, w)
}"""


def test_the_layer_where_reference_and_runtime_differ_is_named_with_the_reason(
    tmp_path, monkeypatch
):
    """A layer whose exact values are made to lie at a middle, then far from one."""
    rows = normal(4, 6, 8, 8, size=1.0)
    given = [{"x": row[np.newaxis]} for row in rows]
    model = quantized(tmp_path / "q", NET % "Relu", given, w=normal(6, 6, 3, 3))
    each = Reference.each

    def tipped(off):
        def changed(self, feed, integers):
            for layer, right in each(self, feed, integers):
                if layer.name != "y":
                    yield layer, right
                    continue
                other, exact = right.integers.astype(np.int64), right.exact.copy()
                place = np.unravel_index(np.abs(other).argmin(), other.shape)
                exact[place] = other[place] + 0.5 + off
                other[place] += 1
                yield layer, replace(right, integers=other, exact=exact)

        return changed

    monkeypatch.setattr(Reference, "each", tipped(1e-5))
    text = written(tmp_path / "near", model, rows, monkeypatch)
    (reason,) = re.findall(r"They differ in ([^.]*)\.", text)
    assert re.search(r"`y` \(.*Conv.*, 1 of its integers\)", reason)
    assert "beside the middle between two integers" in reason
    assert "QLinearSoftmax" not in text
    monkeypatch.setattr(Reference, "each", tipped(-0.3))
    text = written(tmp_path / "far", model, rows, monkeypatch)
    assert re.search(r"In `y` \(.*Conv.*, 1 of its integers\) that is no such middle", text)
    assert "They differ in" not in text
    monkeypatch.setattr(Reference, "each", each)
    text = written(tmp_path / "none", model, rows, monkeypatch)
    assert "no such middle" not in text
    assert "They differ in" not in text or "others differ by at most 1 step" in text


@pytest.mark.parametrize(("most", "there"), [(1152, False), (1536, True)])
def test_a_large_net_gets_no_c_arrays(tmp_path, monkeypatch, most, there):
    rows = normal(4, 6, 8, 8, size=1.0)
    given = [{"x": row[np.newaxis]} for row in rows]
    model = quantized(tmp_path / "q", NET % "Sigmoid", given, w=normal(6, 6, 3, 3))
    text = written(tmp_path / "out", model, rows, monkeypatch, most)
    assert (tmp_path / "out" / "layers.c").exists() is there
    assert f"at most {most} integers" in text


def test_what_the_reference_does_not_compute_is_named_and_the_layers_are_there(
    tmp_path, monkeypatch
):
    rows = normal(4, 6, 8, 8, size=1.0)
    given = [{"x": row[np.newaxis]} for row in rows]
    net = NET % "com.microsoft.QuickGelu"
    model = quantized(tmp_path / "q", net, given, w=normal(6, 6, 3, 3))
    text = written(tmp_path / "out", model, rows, monkeypatch)
    assert "no integer reference: QuickGelu `n1`" in text
    arrays = loaded(tmp_path / "out" / "layers.npz")
    assert {"layer.x", "layer.a", "layer.y"} <= set(arrays)
    about = json.loads(str(arrays["about"]))
    assert all(layer["reference_steps"] is None for layer in about["layers"])


def test_a_float_model_has_no_layers(tmp_path, monkeypatch):
    rows = normal(4, 6, 8, 8, size=1.0)
    given = [{"x": row[np.newaxis]} for row in rows]
    quantized(tmp_path / "q", NET % "Sigmoid", given, w=normal(6, 6, 3, 3))
    text = written(tmp_path / "out", tmp_path / "q" / "fp32.onnx", rows, monkeypatch)
    assert "There is no layer." in text
    assert not (tmp_path / "out" / "layers.c").exists()
    device = loaded(tmp_path / "out" / "device_answers.npz")
    assert device["input.x"].dtype == np.float32


def test_integer_inputs_and_outputs_are_layers_of_their_own(tmp_path):
    """A file whose input and output are integers already: nothing is quantized on the way."""
    model = tmp_path / "integers.onnx"
    onnx.save(with_integers(), model)
    told = contract(load_model(model), None, None, name=model.name, sha256=sha256_of_file(model))
    fed = np.random.default_rng(0).integers(0, 256, (4, 4, 5, 5), np.uint8)
    answers = make_answers(model, told, X86, Samples("rows", {"x": fed}), 2)
    write_layers(tmp_path, told, X86, answers)
    arrays, device = loaded(tmp_path / "layers.npz"), loaded(tmp_path / "device_answers.npz")
    np.testing.assert_array_equal(arrays["layer.x"], answers["input.x"][0])
    np.testing.assert_array_equal(arrays["layer.m"], answers["output.y"][0])
    assert (device["input.x"].dtype, device["output.y"].dtype) == (np.uint8, np.int8)
    assert device["output.z"].dtype == np.int8
    known = known_layers(tmp_path)
    wrong = arrays["layer.x"].astype(int) + 3
    np.savez(tmp_path / "d.npz", x=wrong, m=arrays["layer.m"])
    found = list(compare_layers(known, read_dump(tmp_path / "d.npz", known)))
    assert [(d.layer.name, d.verdict) for d in found] == [("x", "departs"), ("m", "equal")]
