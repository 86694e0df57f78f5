"""Dumps of devices: how they are read, and what faults planted in them are called."""

import math
import shutil
import subprocess

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from handoff.dumps import (
    bundle_of,
    constant,
    device,
    fed,
    maker_of,
    manifest_of,
    node_of,
    quantizer_of,
    save,
    with_constant,
)
from handoff.qdq_models import SMALL_NET, small_net, with_constants
from handoff.records import X86
from handoff.reference_nets import NETS
from handoff.runtime_integers import normal, quantized, runtime_integers
from onnxq.errors import DataError, StaleRecordError, StoreError
from onnxq.handoff.dump import known_layers, read_dump
from onnxq.handoff.dump_compare import compare_layers
from onnxq.handoff.reference.evaluate import Reference
from onnxq.plain.dump import compare_dump
from onnxq.samples import Samples
from onnxq.store import save_record

TENSORS = ["image", "r", "p", "c", "s", "g", "f", "scores"]


@pytest.fixture(scope="module")
def bundle(nets, tmp_path_factory):
    """A bundle of the small net, int8."""
    return bundle_of(nets["stm32n6"], tmp_path_factory.mktemp("dumps") / "bundle")


@pytest.fixture(scope="module")
def right(bundle):
    """What a device without fault gives."""
    return device(bundle)


def compared(bundle, layers, folder):
    """Every layer's verdict and words."""
    known = known_layers(bundle)
    found = compare_layers(known, read_dump(save(folder / "dump.npz", layers), known))
    return {departure.layer.name: departure for departure in found}


def first(found):
    """The first layer that departs."""
    return next(d for d in found.values() if d.verdict == "departs")


# --- reading ------------------------------------------------------------------------------------


def names_by(kind, known):
    """How a device might call the layers."""
    return {
        "tensor": {layer.name: layer.name for layer in known.layers},
        "node": {layer.name: (layer.nodes or ("image",))[0] for layer in known.layers},
        "integers": {layer.name: layer.integers for layer in known.layers},
        "c": {layer.name: layer.integers.upper().replace(" ", "_") for layer in known.layers},
        "order": {layer.name: f"buffer{n}" for n, layer in enumerate(known.layers)},
    }[kind]


@pytest.mark.parametrize("kind", ["tensor", "node", "integers", "c", "order"])
@pytest.mark.parametrize("form", ["npz", "csv", "long.csv"])
def test_layers_are_found_by_tensor_node_or_order(bundle, right, tmp_path, kind, form):
    known = known_layers(bundle)
    names = names_by(kind, known)
    path = tmp_path / f"dump.{form}"
    if form == "npz":
        save(path, {names[name]: array for name, array in right.items()})
    elif form == "csv":
        path.write_text(
            "".join(f"{names[n]},{','.join(map(str, a.ravel()))}\n" for n, a in right.items())
        )
    else:
        lines = [f"{names[n]},{k},{v}" for n, a in right.items() for k, v in enumerate(a.ravel())]
        path.write_text("\n".join(["tensor,index,value", *reversed(lines)]))
    if form == "long.csv" and kind == "order":
        lines = path.read_text().splitlines()
        path.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    dump = read_dump(path, known)
    assert sorted(dump.integers) == sorted(TENSORS)
    for name, integers in dump.integers.items():
        np.testing.assert_array_equal(integers, right[name])
    assert dump.unknown == ()


def test_the_bundles_own_layers_are_a_dump_without_departure(bundle):
    known = known_layers(bundle)
    found = compare_layers(known, read_dump(bundle / "layers.npz", known))
    assert [departure.layer.name for departure in found] == list(known.integers)
    assert {departure.verdict for departure in found} <= {"equal", "rounding", "follows"}


@pytest.mark.parametrize("suffix", ["bin", "raw", "dat"])
def test_a_raw_file_holds_all_layers_in_their_order(bundle, right, tmp_path, suffix):
    path = tmp_path / f"dump.{suffix}"
    path.write_bytes(b"".join(right[name].tobytes() for name in TENSORS))
    dump = read_dump(path, known_layers(bundle))
    for name in TENSORS:
        np.testing.assert_array_equal(dump.integers[name], right[name])


def test_real_values_are_put_on_the_layers_grid(bundle, right, tmp_path):
    known = known_layers(bundle)
    grids = {layer.name: layer.grid for layer in known.layers}
    reals = {
        name: (array.astype(np.float32) - grids[name].zero_point) * np.float32(grids[name].scale)
        for name, array in right.items()
    }
    dump = read_dump(save(tmp_path / "d.npz", reals), known)
    for name in TENSORS:
        np.testing.assert_array_equal(dump.integers[name], right[name])
    assert any("`c`: read as real values" in note for note in dump.notes)


def test_whole_numbers_in_float_are_integers(bundle, right, tmp_path):
    dump = read_dump(
        save(tmp_path / "d.npz", {"c": right["c"].astype(np.float64)}), known_layers(bundle)
    )
    np.testing.assert_array_equal(dump.integers["c"], right["c"])
    assert dump.notes == ("`c`: whole numbers, read as integers",)


@pytest.mark.parametrize("batch", [True, False])
def test_an_array_whose_shape_has_the_channels_last_is_turned(bundle, right, tmp_path, batch):
    last = np.moveaxis(right["r"], 1, -1)
    path = save(tmp_path / "d.npz", {"r": last if batch else last[0], "more": np.zeros(3)})
    dump = read_dump(path, known_layers(bundle))
    np.testing.assert_array_equal(dump.integers["r"], right["r"])
    assert dump.notes == ("`r`: turned, as its channels are last",)
    assert dump.unknown == ("more",)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.npz", None, "no such file"),
        ("d.txt", b"1,2", "unknown kind `.txt`"),
        ("d.npz", b"PK no zip", "cannot be read"),
        ("d.bin", b"123", "has 3 bytes; all layers of layers.npz in a row have 846"),
        ("d.csv", b"c,1,two", "holds no numbers"),
        ("d.csv", b"c,1,2,3", "has 3 numbers of shape .3.; the layer `c` has 80"),
        ("d.csv", b"c,1\nc,2", "line 2 names `c` again"),
        ("d.csv", b"scoress,1", "holds no layer of the bundle: did you mean `scores`"),
        ("d.csv", b"scores,1,nan,2.5,3", "something else than finite numbers"),
        ("d.csv", b"tensor,index,value\nscores,0,1\nscores,2,1", "indices of `scores` are not 0"),
        ("d.csv", b"tensor,index,value\nscores,a,1", "line 2 is no `tensor,index,value`"),
        ("d.csv", b"\xff\xfe", "cannot be read"),
        ("d.csv", b"", "holds no layer: it is empty"),
        ("d.csv", b"scores,1,2,3,4\nn7,1,2,3,4", "are the same layer"),
    ],
)
def test_what_cannot_be_read_is_said(bundle, tmp_path, name, content, said):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        read_dump(path, known_layers(bundle))
    assert refused.value.do


def test_an_empty_npz_is_called_empty(bundle, tmp_path):
    with pytest.raises(DataError, match="holds no layer: it is empty") as refused:
        read_dump(save(tmp_path / "d.npz", {}), known_layers(bundle))
    assert "an array for each layer" in refused.value.do


def test_a_pickle_is_never_loaded(bundle, tmp_path):
    path = tmp_path / "d.npz"
    np.savez(path, c=np.array([{"a": 1}], dtype=object))
    with pytest.raises(DataError, match="cannot be read"):
        read_dump(path, known_layers(bundle))


def test_a_folder_without_layers_or_with_another_model_is_no_bundle(bundle, tmp_path):
    with pytest.raises(StoreError, match=r"holds no layers\.npz"):
        known_layers(tmp_path)
    (tmp_path / "spatial").mkdir()
    (tmp_path / "ort-x86").mkdir()
    for folder in ("spatial", "ort-x86"):
        (tmp_path / folder / "layers.npz").write_bytes((bundle / "layers.npz").read_bytes())
    manifest = manifest_of(("spatial", "spatial/spatial.onnx"), ("a", "a/a.onnx"))
    save_record(manifest, tmp_path / "pipeline.json")
    with pytest.raises(StoreError, match=r"give the folder of one part: \S*spatial, \S*a$"):
        known_layers(tmp_path)
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with (tmp_path / "net_int8.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(StaleRecordError, match=r"not the file that layers\.npz was made from"):
        known_layers(tmp_path)


# --- a shape that does not tell where the channels are ------------------------------------------

CUBE = """<ir_version: 8, opset_import: ["" : 17]>
cube (float[1,6,6,6] x) => (float[1,8,6,6] y) {
    a = Conv <pads=[1,1,1,1]> (x, w)
    b = Relu (a)
    y = Conv <pads=[1,1,1,1]> (b, v)
}"""


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """A bundle whose input and first layer have as many channels as rows and columns."""
    folder, rows = tmp_path_factory.mktemp("cube"), normal(6, 6, 6, 6, size=1.0)
    given = [{"x": row[np.newaxis]} for row in rows]
    model = quantized(folder / "q", CUBE, given, w=normal(6, 6, 3, 3), v=normal(8, 6, 3, 3))
    return bundle_of(model, folder / "bundle", Samples("rows", {"x": rows}), X86)


def channels_at_the_end(layers):
    return {n: np.moveaxis(q, 1, -1) if q.ndim == 4 else q for n, q in layers.items()}


def test_a_right_dump_with_channels_last_of_an_ambiguous_shape_is_turned(cube, tmp_path):
    path = save(tmp_path / "d.npz", channels_at_the_end(device(cube)))
    told = compare_dump(cube, path)
    assert (told.verdict, {row.verdict for row in told.layers}) == ("equal", {"equal"})
    assert sum("turned" in note for note in told.notes) == len(told.layers) == 3
    (note,) = (note for note in told.notes if note.startswith("`x`"))
    assert note.endswith("with the channels last; its shape [1, 6, 6, 6] does not tell")


def test_a_fault_in_a_dump_with_channels_last_is_found_behind_the_turn(cube, tmp_path):
    def edit(model):
        maker = maker_of(model, node_of(model, "n0").input[0])
        zero = constant(model, maker.input[2])
        with_constant(model, maker, 2, (zero ^ 64).astype(zero.dtype))

    path = save(tmp_path / "d.npz", channels_at_the_end(device(cube, edit)))
    told = compare_dump(cube, path)
    assert (told.verdict, told.first) == ("departs", told.layers[1].distance.tensor)
    assert told.layers[0].verdict == "equal"
    assert told.layers[2].verdict in ("follows", "rounding")


@pytest.mark.parametrize("form", ["d.bin", "d.csv", "d.npz"])
def test_a_flat_dump_with_the_channels_last_is_turned_and_said_to_be(bundle, right, tmp_path, form):
    """Raw bytes and lines of numbers have no shape: what fits the graph tells how they lie."""
    known = known_layers(bundle)
    flat = {
        layer.name: np.moveaxis(array, 1, -1).ravel() if array.ndim > 2 else array.ravel()
        for layer in known.layers
        for array in (right[layer.name],)
    }
    path = tmp_path / form
    if form == "d.bin":
        path.write_bytes(b"".join(array.tobytes() for array in flat.values()))
    elif form == "d.csv":
        rows = [",".join([name, *map(str, array.tolist())]) for name, array in flat.items()]
        path.write_text("\n".join(rows))
    else:
        save(path, flat)
    found = compare_dump(bundle, path)
    assert found.verdict == "equal"
    turned = [note for note in found.notes if "fit with the channels last" in note]
    assert [note.split("`")[1] for note in turned] == ["image", "r", "p", "c", "s"]


def test_a_fault_in_a_flat_dump_departs_however_it_is_read(bundle, right, tmp_path):
    known = known_layers(bundle)
    spoilt = right | {"c": right["c"] ^ 64}
    path = tmp_path / "d.bin"
    path.write_bytes(b"".join(spoilt[layer.name].tobytes() for layer in known.layers))
    found = compare_dump(bundle, path)
    assert (found.verdict, found.first) == ("departs", "c")
    assert not any("channels last" in note for note in found.notes)


def test_an_ambiguous_layer_that_lies_as_the_graph_has_it_is_not_turned(cube, tmp_path):
    told = compare_dump(cube, save(tmp_path / "d.npz", device(cube)))
    assert (told.verdict, told.notes) == ("equal", ())


# --- what is no fault ---------------------------------------------------------------------------


def test_a_right_device_is_equal_in_every_layer(bundle, right, tmp_path):
    found = compared(bundle, right, tmp_path)
    assert list(found) == TENSORS
    assert {d.verdict for d in found.values()} == {"equal"}


def test_another_input_is_followed_through_the_graph(bundle, right, tmp_path):
    """One integer of the input rounded the other way: every layer behind it follows from that."""
    known = known_layers(bundle)
    places = known.inputs["image"] / np.float64(np.float32(known.layers[0].grid.scale))
    image = right["image"].copy()
    image.reshape(-1)[np.argmax(places - np.rint(places))] += 1
    found = compared(bundle, fed(bundle, image), tmp_path)
    assert (found["image"].verdict, found["image"].own_steps) == ("rounding", 1)
    assert found["r"].steps >= 1
    assert {d.verdict for name, d in found.items() if name != "image"} <= {"follows", "equal"}


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        (np.floor, "exactly rounding down"),
        (np.trunc, "exactly rounding toward zero (a cast)"),
    ],
)
def test_another_rounding_is_named_and_is_no_fault(bundle, right, tmp_path, cut, says):
    known = known_layers(bundle)
    grid = known.layers[3].grid
    reals = exact_convolution(known, right)
    low_high = (-128, 127)
    layers = right | {
        "c": np.clip(cut(reals / grid.scale) + grid.zero_point, *low_high).astype(int)
    }
    found = compared(bundle, layers, tmp_path)["c"]
    assert (found.verdict, found.own_steps, found.says) == ("rounding", 1, (says,))


def exact_convolution(known, layers):
    """The real values of `c`, a 1×1 convolution, in float64."""
    node = node_of(known.model, "n3")
    weight, bias = (maker_of(known.model, name) for name in node.input[1:])
    w, ws = (constant(known.model, name).astype(np.float64) for name in weight.input[:2])
    b, bs = (constant(known.model, name).astype(np.float64) for name in bias.input[:2])
    grid = known.layers[2].grid
    x = (layers["p"].astype(np.float64) - grid.zero_point) * np.float64(np.float32(grid.scale))
    sums = np.einsum("oi,nihw->nohw", w[:, :, 0, 0] * ws[:, None], x)
    return sums + (b * bs).reshape(1, -1, 1, 1)


KERNEL = """#include <stdint.h>
#include <stdio.h>
static int32_t requantized(int32_t value, int32_t multiplier, int shift) {
    int32_t high = (int32_t)(((int64_t)value * multiplier + (1LL << 30)) >> 31);
    int32_t mask = (int32_t)((1LL << shift) - 1), rest = high & mask;
    return (high >> shift) + (rest > (mask >> 1) + (high < 0 ? 1 : 0) ? 1 : 0);
}
int main(void) {
    int channels, inputs, places, zero, point;
    if (scanf("%d %d %d %d %d", &channels, &inputs, &places, &zero, &point) != 5) return 2;
    static int x[1024], w[64];
    for (int k = 0; k < inputs * places; k++) if (scanf("%d", x + k) != 1) return 2;
    for (int c = 0; c < channels; c++) {
        int bias, multiplier, shift;
        if (scanf("%d %d %d", &bias, &multiplier, &shift) != 3) return 2;
        for (int i = 0; i < inputs; i++) if (scanf("%d", w + i) != 1) return 2;
        for (int p = 0; p < places; p++) {
            int32_t sum = bias;
            for (int i = 0; i < inputs; i++) sum += w[i] * (x[i * places + p] - zero);
            int32_t q = requantized(sum, multiplier, shift) + point;
            printf("%d ", q < -128 ? -128 : q > 127 ? 127 : q);
        }
    }
    return 0;
}"""


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_fixed_point_kernel_in_c_is_equal_or_rounds(bundle, right, tmp_path):
    """The kernel of a microcontroller: 32-bit sums, a 31-bit multiplier and a shift a channel."""
    known = known_layers(bundle)
    weight, bias = (maker_of(known.model, name) for name in node_of(known.model, "n3").input[1:])
    integers = constant(known.model, weight.input[0]).reshape(5, 6)
    biases = constant(known.model, bias.input[0])
    before, after = known.layers[2].grid, known.layers[3].grid
    factors = constant(known.model, weight.input[1]).astype(float) * before.scale / after.scale
    mantissas, exponents = np.frexp(factors)
    words = [5, 6, 16, before.zero_point, after.zero_point, *right["p"].reshape(-1)]
    for row, one, part, shift in zip(integers, biases, mantissas, exponents, strict=True):
        words += [one, round(float(part) * 2**31), -shift, *row]
    (tmp_path / "k.c").write_text(KERNEL)
    subprocess.run(["gcc", "-O1", "k.c", "-o", "k"], cwd=tmp_path, check=True, timeout=60)
    told = subprocess.run(
        [tmp_path / "k"], input=" ".join(map(str, words)), capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    got = np.array(told.stdout.split(), int).reshape(1, 5, 4, 4)
    found = compared(bundle, right | {"c": got}, tmp_path)["c"]
    assert found.verdict in ("equal", "rounding")
    fixed = Reference(known.model, "gemmlowp").layer("c", known.inputs, known.integers)
    np.testing.assert_array_equal(got, fixed.integers)


# --- planted faults -----------------------------------------------------------------------------


def test_a_missing_bias_is_named_and_what_follows_it_is_not_blamed(bundle, tmp_path):
    found = compared(bundle, device(bundle, lambda m: node_of(m, "n3").input.pop()), tmp_path)
    assert first(found).layer.name == "c"
    assert any("looks like a missing bias (`n3`) (100.0% exactly)" in s for s in found["c"].says)
    assert [found[name].verdict for name in ("image", "r", "p")] == ["equal"] * 3
    assert {found[name].verdict for name in ("s", "g", "f", "scores")} <= {"follows", "rounding"}


def test_a_weight_scale_used_for_all_channels_is_named(bundle, tmp_path):
    def edit(model):
        maker = maker_of(model, node_of(model, "n0").input[1])
        scales = constant(model, maker.input[1])
        with_constant(model, maker, 1, np.full_like(scales, scales[0]))

    found = first(compared(bundle, device(bundle, edit), tmp_path))
    assert found.layer.name == "r"
    assert "weight scale of the first channel used for all (`n0`)" in found.says[0]


def test_a_zero_point_that_is_not_subtracted_is_named(bundle, tmp_path):
    def edit(model):
        maker = maker_of(model, node_of(model, "n3").input[0])
        with_constant(model, maker, 2, np.int8(0))

    found = first(compared(bundle, device(bundle, edit), tmp_path))
    assert found.layer.name == "c"
    assert "a zero point of its input that is not subtracted (`n3`)" in found.says[0]


@pytest.mark.parametrize("shift", [1, 3, -40])
def test_a_shifted_zero_point_is_named(bundle, tmp_path, shift):
    known = known_layers(bundle)

    def edit(model):
        quantizer = quantizer_of(model, known, "s")
        with_constant(model, quantizer, 2, constant(model, quantizer.input[2]) + np.int8(shift))

    found = first(compared(bundle, device(bundle, edit), tmp_path))
    point = known.layers[4].grid.zero_point
    assert found.layer.name == "s"
    assert f"a zero point of {point + shift} instead of {point}" in found.says[0]


def test_another_scale_is_named_with_its_value(bundle, tmp_path):
    known = known_layers(bundle)

    def edit(model):
        quantizer = quantizer_of(model, known, "c")
        scale = constant(model, quantizer.input[1]) * np.float32(1.25)
        with_constant(model, quantizer, 1, scale)

    found = first(compared(bundle, device(bundle, edit), tmp_path))
    assert found.layer.name == "c"
    words = found.says[0].split("a scale of ")[1].split()
    assert math.isclose(float(words[0]), known.layers[3].grid.scale * 1.25, rel_tol=0.01)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda q: np.moveaxis(q, 1, -1).reshape(q.shape), "with the channels last (NHWC)"),
        (lambda q: q.astype(int) + 128, "as uint8, the zero point +128"),
        (lambda q: q.view(np.uint8) ^ 128, "as uint8, the zero point +128"),
        (lambda q: (q.view(np.uint8) ^ 128).view(np.int8), "with their top bit turned"),
    ],
)
def test_right_integers_in_another_form_are_named(bundle, right, tmp_path, spoil, says):
    found = first(compared(bundle, right | {"r": spoil(right["r"])}, tmp_path))
    assert found.layer.name == "r"
    assert says in found.says[0]


def test_bytes_that_are_not_rescaled_are_named(tmp_path):
    """Firmware that feeds byte − 128 into an input whose scale is not 1/255 (D5.13)."""
    draw = np.random.default_rng(5)
    pictures = (draw.integers(0, 256, (12, 3, 8, 8)) / 255).astype(np.float32)
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in small_net().graph.initializer}
    darker = [{"image": picture[np.newaxis] * np.float32(0.003445 * 255)} for picture in pictures]
    model = quantized(tmp_path / "q", SMALL_NET, darker, "int8", **weights)
    folder = bundle_of(model, tmp_path / "b", Samples("p", {"image": pictures}))
    known = known_layers(folder)
    byte = np.rint(known.inputs["image"] * 255).astype(int)
    found = first(compared(folder, fed(folder, byte - 128), tmp_path))
    assert found.layer.name == "image"
    assert "byte - 128 of a picture without rescaling (the scale is 0.003445" in found.says[0]


def test_an_input_read_in_another_layout_is_named(bundle, right, tmp_path):
    image = right["image"]
    wrong = np.moveaxis(image, 1, -1).reshape(image.shape)
    found = first(compared(bundle, fed(bundle, wrong) | {"image": image}, tmp_path))
    assert found.layer.name == "r"
    assert "its input `image` read with the channels last (NHWC)" in found.says[0]


def test_a_missing_saturation_is_named(tmp_path):
    """Integers that wrap around: of ConvInteger's 32-bit sums in onnxruntime."""
    folder = bundle_of(one_convolution(tmp_path), tmp_path / "b", rows())
    right = device(folder)
    unsaturated = np.rint(sums(folder, right["x"], 3) * MULTIPLIER).astype(int) + POINT
    assert np.abs(unsaturated).max() > 128
    wrapped = ((unsaturated + 128) % 256 - 128).astype(np.int8)
    np.testing.assert_array_equal(np.clip(unsaturated, -128, 127), right["y"])
    found = first(compared(folder, right | {"y": wrapped}, tmp_path))
    assert "a missing saturation: integers beyond the type wrap around" in found.says[0]


def test_padding_with_integer_zero_is_named(tmp_path):
    """The pads of ConvInteger without a zero point are integer 0."""
    folder = bundle_of(one_convolution(tmp_path), tmp_path / "b", rows())
    right = device(folder)
    weight = constant(known_layers(folder).model, "w").astype(int)
    moved = sums(folder, right["x"], 0) - 3 * weight.sum((1, 2, 3)).reshape(1, -1, 1, 1)
    wrong = np.clip(np.rint(moved * MULTIPLIER) + POINT, -128, 127).astype(np.int8)
    found = first(compared(folder, right | {"y": wrong}, tmp_path))
    assert "padding with integer 0 instead of the zero point (`conv_1`)" in found.says[0]


def test_a_missing_relu_is_named(tmp_path):
    folder = bundle_of(one_convolution(tmp_path, "[last_1] n = Relu (m)"), tmp_path / "b", rows())

    def edit(model):
        node = node_of(model, "last_1")
        node.op_type = "Identity"

    found = first(compared(folder, device(folder, edit), tmp_path))
    assert found.layer.name == "y"
    assert "a missing Relu `last_1`" in found.says[0]


ONE = """<ir_version: 8, opset_import: ["" : 17]>
net (float[1,3,6,6] x) => (float[1,4,6,6] y) {
    qx = QuantizeLinear (x, sx, zx)
    dx = DequantizeLinear (qx, sx, zx)
    dw = DequantizeLinear (w, sw, zw)
    [conv_1] m = Conv <pads=[1,1,1,1]> (dx, dw)
    %s
    qy = QuantizeLinear (%s, sy, zy)
    y = DequantizeLinear (qy, sy, zy)
}"""
SCALES = np.float32(1 / 16), np.float32(1 / 64), np.float32(1 / 16)
MULTIPLIER, POINT = 1 / 64, 1


def one_convolution(folder, last=""):
    """One convolution whose output saturates, all scales powers of two."""
    model = with_constants(
        ONE % (last, "n" if last else "m"),
        sx=SCALES[0], zx=np.int8(3), sw=SCALES[1], zw=np.int8(0), sy=SCALES[2], zy=np.int8(POINT),
        w=np.random.default_rng(0).integers(-127, 128, (4, 3, 3, 3), np.int8),
    )  # fmt: skip
    onnx.save(model, folder / "one.onnx")
    return folder / "one.onnx"


def rows():
    return Samples("rows", {"x": normal(2, 3, 6, 6, seed=8, size=3.0)})


def sums(folder, integers, zero_point):
    """ConvInteger's accumulator."""
    text = """<ir_version: 8, opset_import: ["" : 17]>
    net (int8[1,3,6,6] x) => (int32[1,4,6,6] y) { y = ConvInteger <pads=[1,1,1,1]> (x, w, z) }"""
    weight = constant(known_layers(folder).model, "w")
    model = with_constants(text, w=weight, z=np.int8(zero_point))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": integers})
    return result.astype(np.int64)


@pytest.mark.parametrize("by", [2, 90])
def test_one_wrong_number_departs_and_looks_like_nothing(bundle, right, tmp_path, by):
    spoilt = right["r"].astype(int)
    place = np.unravel_index(np.argmin(np.abs(spoilt - 20)), spoilt.shape)
    spoilt[place] += by
    found = compared(bundle, right | {"r": spoilt}, tmp_path)
    assert (first(found).layer.name, found["r"].steps, found["r"].says) == ("r", by, ())


def test_noise_departs_and_looks_like_nothing(bundle, right, tmp_path):
    noise = np.random.default_rng(3).integers(-128, 128, right["s"].shape)
    found = compared(bundle, right | {"s": noise}, tmp_path)
    assert first(found).layer.name == "s"
    assert found["s"].says == ()


def test_a_layer_behind_what_is_not_in_the_dump_is_judged_with_that_said(bundle, tmp_path):
    wrong = device(bundle, lambda m: node_of(m, "n3").input.pop())
    del wrong["c"]
    found = compared(bundle, wrong, tmp_path)
    assert first(found).layer.name == "s"
    assert found["s"].says == ("it may have begun before, in `c`: not in the dump",)
    known = known_layers(bundle)
    assert {d.verdict for n, d in found.items() if n in ("g", "f", "scores")} <= {
        "follows", "rounding", "equal",
    }  # fmt: skip
    assert "c" not in read_dump(tmp_path / "dump.npz", known).integers


@pytest.fixture(scope="module")
def deep(tmp_path_factory):
    """A bundle of a net with many values beside a middle."""
    folder = tmp_path_factory.mktemp("deep")
    net = NETS["one and three axes"]
    model = quantized(folder / "q", net.text, net.rows(), "uint8", **net.constants)
    given = Samples("rows", {"x": np.concatenate([row["x"] for row in net.rows()])})
    return bundle_of(model, folder / "b", given, X86)


def test_onnxruntimes_own_pool_rounds_behind_the_zero_point(deep, tmp_path):
    """QLinearAveragePool: seen where the zero point is odd and a mean lies on a middle."""
    known = known_layers(deep)
    layers = runtime_integers(known.model, known.inputs, "full")
    assert known.layers[-1].grid.zero_point % 2 == 1
    found = compared(deep, {"y": layers["y"]}, tmp_path)["y"]
    assert (found.verdict, found.steps) == ("rounding", 1)
    assert found.says == ("exactly rounding half to even behind the zero point",)


def test_what_differs_as_roundings_alone_do_over_layers_not_dumped_is_rounding(tmp_path):
    """A device of fixed-point multipliers: its steep Erf is off by three steps of its own input."""
    net = NETS["transformer"]
    text = net.text.replace("LayerNormalization (r, gain, shift)", "Mul (r, gain)")
    constants = {name: array for name, array in net.constants.items() if name != "shift"}
    model = quantized(tmp_path / "q", text, net.rows(), "uint8", **constants)
    given = Samples("rows", {"x": np.concatenate([row["x"] for row in net.rows()])})
    folder = bundle_of(model, tmp_path / "b", given, X86)
    known = known_layers(folder)
    fixed, _ = Reference(known.model, "gemmlowp").run(known.inputs)
    found = compared(folder, {"e": fixed["e"]}, tmp_path)["e"]
    assert found.own_steps >= 2
    assert found.verdict == "rounding"
    assert "by which roundings alone differ over the layers that are not in" in found.says[0]


def test_outputs_alone_of_a_fault_depart(deep, tmp_path):
    def edit(model):
        quantizer = quantizer_of(model, known_layers(deep), "r")
        scale = constant(model, quantizer.input[1])
        with_constant(model, quantizer, 1, scale * np.float32(1.5))

    found = compared(deep, {"y": device(deep, edit)["y"]}, tmp_path)["y"]
    assert found.verdict == "departs"
    assert "may have begun before" in found.says[-1]
