"""``onnxq compare-dump``: what it prints and the code it ends with."""

import json

import numpy as np
import pytest
from handoff.dumps import bundle_of, device, node_of, save
from handoff.qdq_models import quantized_net
from onnxruntime.quantization import QuantType

from cli.test_shell import shell
from onnxq.artifacts import DumpComparison
from onnxq.verify.distances import Distance

__all__ = ["shell"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a bundle")
    return bundle_of(quantized_net(folder / "s8", QuantType.QInt8), folder / "out")


def test_a_right_device_ends_with_0(shell, bundle, tmp_path):
    code, out, _ = shell("compare-dump", bundle, save(tmp_path / "d.npz", device(bundle)))
    assert code == 0
    assert "all 8 layers are equal to the bundle's, integer by integer" in out
    assert [line.split()[0] for line in out.splitlines()].count("equal") == 8


def test_a_fault_ends_with_1_and_its_layer_is_named_with_its_cause(shell, bundle, tmp_path):
    wrong = device(bundle, lambda model: node_of(model, "n3").input.pop())
    code, out, _ = shell("compare-dump", bundle, save(tmp_path / "d.npz", wrong))
    assert code == 1
    assert "`c` (Conv `n3`) departs first, by up to " in out
    assert "looks like a missing bias (`n3`) (100.0% exactly)" in out
    (line,) = (line for line in out.splitlines() if "Conv n3" in line and "departs" in line)
    assert line.split()[:2] == ["departs", "c"]


def test_rounding_ends_with_0_and_is_told_from_equality(shell, bundle, tmp_path):
    layers = device(bundle)
    from onnxq.handoff.dump import known_layers
    from onnxq.handoff.reference.evaluate import Reference

    known = known_layers(bundle)
    exact = Reference(known.model).layer("c", known.inputs, known.integers).exact
    place = np.unravel_index(np.argmax(np.abs(exact % 1 - 0.5) < 0.2), exact.shape)
    down = int(np.floor(exact[place]))
    layers["c"][place] = down if layers["c"][place] != down else down + 1
    code, out, _ = shell("compare-dump", bundle, save(tmp_path / "d.npz", layers))
    assert code == 0
    assert "every difference is rounding or follows from it, from `c` (Conv `n3`) on" in out


def test_json_holds_sts_metrics_of_the_dequantized_layers(shell, bundle, tmp_path):
    right = device(bundle)
    wrong = right | {"scores": (right["scores"].astype(int) // 2).astype(np.int8)}
    path = save(tmp_path / "d.npz", {"scores": wrong["scores"], "extra": np.zeros(2)})
    code, out, err = shell("compare-dump", bundle, path, "--json")
    told = json.loads(out)
    assert (code, told.pop("exit_code")) == (1, 1)
    found = DumpComparison.model_validate(told)
    assert (found.verdict, found.first, found.unknown) == ("departs", "scores", ("extra",))
    assert found.missing == ("image", "r", "p", "c", "s", "g", "f")
    (row,) = found.layers
    about = json.loads(str(np.load(bundle / "layers.npz")["about"]))["layers"][-1]
    reals = [
        (array["scores"].astype(np.float32) - about["zero_point"]) * np.float32(about["scale"])
        for array in (right, wrong)
    ]
    error = reals[0] - reals[1]
    assert row.distance.rmse == pytest.approx(float(np.sqrt((error**2).mean())), rel=1e-5)
    assert row.distance.mean == pytest.approx(float(error.mean()), rel=1e-5)
    assert row.distance.cos == pytest.approx(Distance.between(*reals).cos)
    assert "no layer of the bundle: extra" in err
    assert row.says == ("it may have begun before, in `f`: not in the dump",)  # no fit of four


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.npz", None, "no such file"),
        ("d.bin", b"12", "all layers of layers.npz in a row have"),
        ("d.csv", b"nothing,1,2", "holds no layer of the bundle"),
    ],
)
def test_what_cannot_be_read_ends_with_2(shell, bundle, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = shell("compare-dump", bundle, tmp_path / name)
    assert code == 2
    assert said in err.replace("\n", " ")


def test_a_folder_that_is_no_bundle_ends_with_2(shell, tmp_path):
    code, _, err = shell("compare-dump", tmp_path, tmp_path / "d.npz")
    assert code == 2
    assert "holds no layers.npz" in err
