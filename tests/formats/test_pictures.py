import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from onnxq.errors import DataError, MissingExtraError

from .readers import opened, values

RANDOM = np.random.default_rng(3)
NOISE = RANDOM.integers(0, 256, (40, 60, 3), dtype=np.uint8)
SMOOTH = np.stack(
    [np.add.outer(np.arange(40) * 3, np.arange(60) * 2) % 256 for _ in range(3)], -1
).astype(np.uint8)


def save(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **how)


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "pictures" / "a.png", NOISE)
    return tmp_path / "pictures"


def test_a_picture_is_its_bytes_over_255_channels_first(folder):
    found = opened(folder)
    assert found.inputs["x"].dtype == np.float32
    wanted = NOISE.transpose(2, 0, 1).astype(np.float64) / 255
    np.testing.assert_allclose(values(found)[0], wanted, rtol=1e-7, atol=0)
    assert found.preprocessing == "pictures: RGB NCHW float32, x*1/255"
    assert found.labels is None


def test_normalization_is_that_of_torchvision(folder):
    """``ToTensor`` and ``Normalize`` in their own arithmetic, on the same pixels."""
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    found = opened(folder, mean=mean, std=std)
    tensor = torch.from_numpy(NOISE).permute(2, 0, 1).float().div(255)
    tensor.sub_(torch.tensor(mean)[:, None, None]).div_(torch.tensor(std)[:, None, None])
    np.testing.assert_allclose(values(found)[0], tensor, atol=2e-6)
    assert found.preprocessing == (
        "pictures: RGB NCHW float32, (x*1/255-mean)/std, mean 0.485 0.456 0.406, "
        "std 0.229 0.224 0.225"
    )


@pytest.mark.parametrize("scale", ["1/128", 0.0078125])
def test_scale_is_a_number_or_a_fraction(folder, scale):
    found = opened(folder, scale=scale)
    np.testing.assert_array_equal(values(found)[0], NOISE.transpose(2, 0, 1) / np.float32(128))
    assert found.preprocessing.endswith("x*1/128")


def test_channels_and_layout_are_as_declared(folder):
    bytes_of = {"dtype": "uint8", "scale": 1}
    bgr = values(opened(folder, mode="BGR", layout="NHWC", **bytes_of))[0]
    np.testing.assert_array_equal(bgr, NOISE[:, :, ::-1])
    grey = opened(folder, mode="grey", **bytes_of)
    assert grey.inputs["x"].shape == (1, 1, 40, 60)
    luma = NOISE @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    assert np.abs(values(grey)[0, 0] - luma).max() < 1
    assert opened(folder, mode="grey", layout="NHWC").inputs["x"].shape == (1, 40, 60, 1)


@pytest.mark.parametrize(
    ("size", "shape"), [(20, (20, 30)), (80, (80, 120)), ([33, 21], (33, 21)), (27, (27, 40))]
)
@pytest.mark.parametrize("name", ["bilinear", "bicubic"])
def test_resizing_agrees_with_torch(tmp_path, size, shape, name):
    save(tmp_path / "p" / "a.png", SMOOTH)
    found = values(opened(tmp_path / "p", size=size, scale=1, filter=name))[0]
    pixels = torch.from_numpy(SMOOTH).permute(2, 0, 1)[None]
    wanted = torch.nn.functional.interpolate(pixels, shape, mode=name, antialias=True)[0]
    assert found.shape == (3, *shape)
    np.testing.assert_allclose(found, wanted, atol=1)


def test_the_shorter_side_is_resized_whichever_it_is(tmp_path):
    save(tmp_path / "p" / "a.png", NOISE.transpose(1, 0, 2))
    assert opened(tmp_path / "p", size=20).inputs["x"].shape == (1, 3, 30, 20)


def test_the_centre_is_cropped(folder):
    how = {"dtype": "uint8", "scale": 1, "layout": "NHWC"}
    found = opened(folder, crop=[20, 30], **how)
    np.testing.assert_array_equal(values(found)[0], NOISE[10:30, 15:45])
    square = opened(folder, crop=21, **how)  # torchvision rounds half to even: 9.5 is 10
    np.testing.assert_array_equal(values(square)[0], NOISE[10:31, 20:41])
    assert "crop 21x21" in square.preprocessing
    both = opened(folder, size=[50, 70], crop=[20, 30])
    assert both.inputs["x"].shape == (1, 3, 20, 30)
    assert "resize 50x70 (bilinear), crop 20x30" in both.preprocessing


def test_a_picture_smaller_than_the_crop_is_named(folder):
    with pytest.raises(DataError, match=r"a\.png: is 40x60 pixels, smaller than the crop 48x48"):
        opened(folder, crop=48).row(0)


def test_pictures_of_another_size_are_named_when_they_are_read(folder):
    save(folder / "b.png", NOISE[:30])
    found = opened(folder)
    assert found.row(0)["x"].shape == (1, 3, 40, 60)
    with pytest.raises(DataError, match=r"(?s)b\.png: is \[3, 30, 60\].*a\.png.*`crop`"):
        found.row(1)


@pytest.mark.parametrize(
    ("orientation", "turns"), [(3, 2), (6, 1), (8, 3)]
)  # EXIF 2.32, tag 0x0112: the picture was taken turned by so many quarters
def test_pictures_are_put_upright(tmp_path, orientation, turns):
    stored = np.rot90(NOISE, turns)
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "p" / "a.png", np.ascontiguousarray(stored), exif=exif)
    found = values(opened(tmp_path / "p", dtype="uint8", scale=1, layout="NHWC"))[0]
    np.testing.assert_array_equal(found, NOISE)


def test_every_kind_of_8_bit_picture_becomes_rgb(tmp_path):
    flat = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    picture = Image.fromarray(flat)
    transparent = picture.convert("P")
    transparent.info["transparency"] = b"\x00" * 256
    for name, made in {
        "rgba": picture.convert("RGBA"), "palette": picture.convert("P", palette=1),
        "transparent": transparent, "cmyk.tif": picture.convert("CMYK"),
    }.items():  # fmt: skip
        path = tmp_path / name.partition(".")[0] / (name if "." in name else f"{name}.png")
        path.parent.mkdir()
        made.save(path)
        found = values(opened(path.parent, dtype="uint8", scale=1, layout="NHWC"))[0]
        assert np.abs(found.astype(int) - flat).max() <= 60, name  # a web palette is coarse
        assert found.shape == (8, 8, 3)


def test_a_picture_of_16_bits_is_refused_not_cut_off(tmp_path):
    save(tmp_path / "p" / "a.png", np.full((4, 4), 40000, np.uint16))
    with pytest.raises(DataError, match=r"a\.png: has more than 8 bits"):
        opened(tmp_path / "p")


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_an_unreadable_picture_is_named(folder, content):
    save(folder / "b.jpg", NOISE)
    whole = (folder / "b.jpg").read_bytes()
    (folder / "b.jpg").write_bytes(whole[: len(whole) // 3] if content is None else content)
    found = opened(folder)
    found.row(0)
    with pytest.raises(DataError, match=r"b\.jpg: cannot be read"):
        found.row(1)


def test_folders_are_labels_in_the_order_of_their_names_and_groups_if_asked(tmp_path):
    root = tmp_path / "p"
    for number, name in enumerate(["dog/3.png", "cat/10.png", "cat/2.png", "dog/deep/1.png"]):
        save(root / name, np.full((4, 4, 3), number, np.uint8))
    found = opened(root, scale=1)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert values(found)[:, 0, 0, 0].tolist() == [1, 2, 0, 3]
    assert found.notes == ("labels are the sub-folders: cat = 0, dog = 1",)
    assert found.groups is None
    grouped = opened(root, groups="folder", labels="none")
    assert grouped.groups.tolist() == ["cat", "cat", "dog", "dog"]
    assert (grouped.labels, grouped.notes) == (None, ())


def test_groups_need_folders_and_folders_hold_all_pictures(folder):
    with pytest.raises(DataError, match="no sub-folders"):
        opened(folder, groups="folder")
    save(folder / "cat" / "b.png", NOISE)
    with pytest.raises(DataError, match=r"a\.png lies beside sub-folders"):
        opened(folder)


def test_no_picture_is_decoded_before_it_is_asked_for(folder):
    (folder / "b.png").write_bytes(b"broken")
    found = opened(folder, size=[8, 8])
    assert found.inputs["x"].shape == (2, 3, 8, 8)
    assert found.take(np.array([0])).row(0)["x"].shape == (1, 3, 8, 8)
    assert len(pickle.dumps(found)) < 4000


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sise": 8}, "unknown option `sise`; did you mean `size`"),
        ({"size": 0}, r"option `size`: give a number of pixels, or \[height, width\] \(found 0\)"),
        ({"size": "big"}, r"option `size`: give"),
        ({"size": True}, r"option `size`: give"),
        ({"crop": [8, 8, 8]}, r"option `crop`: give"),
        ({"crop": [8, -8]}, r"option `crop`: give"),
        ({"mode": "RBG"}, r"option `mode`"),
        ({"mean": [0.5]}, r"pictures: `mean` has 1 values, `mode: RGB` 3 channel"),
        ({"std": [1, 0, 1]}, r"option `std.1`"),
        ({"dtype": "uint8"}, r"`dtype: uint8` takes `scale: 1`"),
        ({"scale": "1/0"}, r"option `scale`"),
        ({"scale": "one/two"}, r"option `scale`"),
    ],
)
def test_options_are_checked_word_by_word(folder, options, says):
    with pytest.raises(DataError, match=says):
        opened(folder, **options)


def test_pictures_do_for_one_input_only(folder):
    with pytest.raises(DataError, match=r"(?s)2 inputs.*module:function"):
        opened(folder, ("x", "z"))


def test_without_pillow_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"(?s)`PIL.*onnxq\[pictures\]"):
        opened(folder).row(0)
