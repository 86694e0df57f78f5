"""Folders of pictures, decoded on demand with a declared preprocessing."""

from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Gt
from jaxtyping import Float, Float32, UInt8
from pydantic import BeforeValidator, model_validator

from onnxq.errors import DataError, MissingExtraError
from onnxq.formats.content import Options, Request
from onnxq.samples import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "PictureOptions", "PictureRows", "read_pictures"]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm"})
_DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # Pillow cuts these off at 255


def _fraction(value: object) -> object:
    """``"1/255"`` as a number."""
    if not isinstance(value, str) or "/" not in value:
        return value
    try:
        return float(Fraction(value.replace(" ", "")))
    except ZeroDivisionError:
        raise ValueError("divides by zero") from None


def _pixels(value: object) -> object:
    """One side, or two of them as a list."""
    sides = value if isinstance(value, list | tuple) else [value]
    whole = all(isinstance(side, int) and side > 0 for side in sides)
    if isinstance(value, bool) or not whole or (sides is value and len(sides) != 2):
        raise ValueError("give a number of pixels, or [height, width]")
    return value


Size = Annotated[int | tuple[int, int], BeforeValidator(_pixels)]


class PictureOptions(Options):
    """What is done to a picture, in this order; nothing that is not asked for but for ``scale``.

    ``size``: the shorter side, or [height, width], in pixels. ``crop``: the centre, a side or
    [height, width]. ``mode``: the channels' order. Then ``(x·scale − mean) / std``, with one value
    a channel in that order, as ``dtype``, in ``layout``. ``labels: folder`` numbers the sub-folders
    in the order of their names; ``groups: folder`` makes them groups.
    """

    size: Size | None = None
    crop: Size | None = None
    filter: Literal["bilinear", "bicubic", "nearest", "lanczos", "box"] = "bilinear"
    mode: Literal["RGB", "BGR", "grey"] = "RGB"
    scale: Annotated[float, Gt(0), BeforeValidator(_fraction)] = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[Annotated[float, Gt(0)], ...] = ()
    layout: Literal["NCHW", "NHWC"] = "NCHW"
    dtype: Literal["float32", "uint8"] = "float32"
    labels: Literal["folder", "none"] = "folder"
    groups: Literal["folder", "none"] = "none"

    @model_validator(mode="after")
    def _fits_channels(self) -> "PictureOptions":
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values and len(values) != self.channels:
                what = f"`{name}` has {len(values)} values, `mode: {self.mode}` {self.channels}"
                raise ValueError(f"{what} channel(s)")
        if self.dtype == "uint8" and (self.scale != 1 or self.mean or self.std):
            raise ValueError("`dtype: uint8` takes `scale: 1` and neither `mean` nor `std`")
        return self

    @property
    def channels(self) -> int:
        """Channels of the model's input."""
        return 1 if self.mode == "grey" else 3

    def __str__(self) -> str:
        steps = []
        if self.size is not None:
            kind = "resize" if isinstance(self.size, tuple) else "resize shorter side to"
            steps.append(f"{kind} {_by(self.size)} ({self.filter})")
        if self.crop is not None:
            steps.append(f"crop {_by(self.crop, square=True)}")
        steps.append(f"{self.mode} {self.layout} {self.dtype}")
        near = Fraction(self.scale).limit_denominator(65536)
        scale = str(near) if float(near) == self.scale else repr(self.scale)
        steps.append(f"(x*{scale}-mean)/std" if self.mean or self.std else f"x*{scale}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values:
                steps.append(f"{name} {' '.join(map(repr, values))}")
        return "pictures: " + ", ".join(steps)


def _by(size: int | tuple[int, int], square: bool = False) -> str:
    if isinstance(size, int):
        return f"{size}x{size}" if square else str(size)
    return f"{size[0]}x{size[1]}"


def read_pictures(
    folder: Path, files: Iterable[Path], options: PictureOptions, request: Request
) -> Samples:
    """The pictures ``files`` of ``folder`` as samples of the model's one input.

    Raises MissingExtraError without Pillow; DataError for a model of several inputs, for files both
    in sub-folders and beside them, and, when it is read, for a picture that cannot be used.
    """
    if len(request.input_names) != 1:
        raise DataError(
            f"pictures for a model of {len(request.input_names)} inputs",
            where=str(folder),
            do="write a function that returns every input, and give it as module:function",
        )
    kept = tuple(sorted(files))
    classes = _classes(folder, kept)
    rows = PictureRows(kept, options, _sample_shape(kept[0], options))
    names = sorted(set(classes or ()))
    if options.groups == "folder" and not classes:
        do = "put the pictures of a group into a folder of their own, or leave out `groups`"
        raise DataError("has no sub-folders to be groups", where=str(folder), do=do)
    labelled = bool(classes) and options.labels == "folder"
    listed = ", ".join(f"{name} = {number}" for number, name in enumerate(names[:10]))
    more = ", …" if len(names) > 10 else ""
    return Samples(
        name=folder.name,
        inputs={request.input_names[0]: rows},
        labels=np.searchsorted(names, classes) if labelled and classes else None,
        groups=np.array(classes) if options.groups == "folder" else None,
        notes=(f"labels are the sub-folders: {listed}{more}",) if labelled else (),
        preprocessing=str(options),
    )


def _classes(folder: Path, files: tuple[Path, ...]) -> tuple[str, ...] | None:
    """The first sub-folder of every file; None if there is none."""
    parts = [file.relative_to(folder).parts for file in files]
    flat = [len(part) == 1 for part in parts]
    if any(flat) and not all(flat):
        raise DataError(
            f"{parts[flat.index(True)][0]} lies beside sub-folders with pictures",
            where=str(folder),
            do="put all pictures into sub-folders, or none of them",
        )
    return None if all(flat) else tuple(part[0] for part in parts)


@dataclass(frozen=True)
class PictureRows:
    """One picture a row, decoded when it is read."""

    files: tuple[Path, ...]
    options: PictureOptions
    sample_shape: tuple[int, int, int]

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, C, H, W)`` or ``(n, H, W, C)``."""
        return (len(self.files), *self.sample_shape)

    @property
    def dtype(self) -> np.dtype:
        """As declared."""
        return np.dtype(self.options.dtype)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(
        self, index: int, /
    ) -> Float32[np.ndarray, "a b c"] | UInt8[np.ndarray, "a b c"]:
        path, options = self.files[index], self.options
        values = _decoded(path, options)
        if options.dtype == "float32":
            values = _normalized(values, options).astype(np.float32)
        made = values.transpose(2, 0, 1) if options.layout == "NCHW" else values
        if made.shape != self.sample_shape:
            raise DataError(
                f"is {list(made.shape)} once prepared, {self.files[0].name} "
                f"{list(self.sample_shape)} ({options.layout})",
                where=str(path),
                do="give the option `crop`, or `size` as [height, width]",
            )
        return np.ascontiguousarray(made)


def _sample_shape(first: Path, options: PictureOptions) -> tuple[int, int, int]:
    """Declared by ``crop`` or ``size``; else that of the first picture."""
    declared = options.crop if options.crop is not None else options.size
    if isinstance(declared, tuple):
        height, width = declared
    elif options.crop is not None:
        height = width = options.crop  # type: ignore[assignment]  # no tuple: see above
    else:
        height, width = _decoded(first, options).shape[:2]
    return (
        (options.channels, height, width)
        if options.layout == "NCHW"
        else (height, width, options.channels)
    )


def _normalized(
    values: UInt8[np.ndarray, "h w c"], options: PictureOptions
) -> Float[np.ndarray, "h w c"]:
    """``(x·scale − mean) / std`` in float64, rounded once when it becomes float32."""
    made: Float[np.ndarray, "h w c"] = values * np.float64(options.scale)
    made -= np.array(options.mean or 0.0)
    made /= np.array(options.std or 1.0)
    return made


def _decoded(path: Path, options: PictureOptions) -> UInt8[np.ndarray, "h w c"]:
    """The picture upright, resized and cropped, with the channels that the model takes."""
    pillow = _pillow()
    try:
        with pillow.open(path) as opened:
            opened.load()
            picture = _upright(opened)
    except Exception as fault:  # every decoder has its own exceptions for a damaged file
        raise DataError(
            f"cannot be read: {type(fault).__name__}: {fault}",
            where=str(path),
            do="remove the picture, or save it again",
        ) from fault
    if picture.mode in _DEEP:
        raise DataError(
            f"has more than 8 bits a channel (Pillow's mode {picture.mode})",
            where=str(path),
            do="save the pictures with 8 bits a channel, or as arrays",
        )
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    picture = picture.convert("L" if options.mode == "grey" else "RGB")
    values: UInt8[np.ndarray, "h w c"] = np.atleast_3d(
        np.asarray(_cropped(_resized(picture, options), options, path))
    )
    return values[:, :, ::-1] if options.mode == "BGR" else values


def _upright(picture: "Image") -> "Image":
    from PIL import ImageOps

    return ImageOps.exif_transpose(picture)


def _resized(picture: "Image", options: PictureOptions) -> "Image":
    """``size`` as torchvision means it: the other side keeps the ratio, rounded down."""
    if options.size is None:
        return picture
    width, height = picture.size
    if isinstance(options.size, tuple):
        height, width = options.size
    elif width <= height:
        width, height = options.size, options.size * height // width
    else:
        width, height = options.size * width // height, options.size
    return picture.resize((width, height), _pillow().Resampling[options.filter.upper()])


def _cropped(picture: "Image", options: PictureOptions, path: Path) -> "Image":
    if options.crop is None:
        return picture
    height, width = options.crop if isinstance(options.crop, tuple) else (options.crop,) * 2
    if picture.width < width or picture.height < height:
        raise DataError(
            f"is {picture.height}x{picture.width} pixels, smaller than the crop {height}x{width}",
            where=str(path),
            do="give a `size` that is no smaller than `crop`",
        )
    left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
    return picture.crop((left, top, left + width, top + height))


def _pillow() -> ModuleType:
    try:
        from PIL import Image
    except ModuleNotFoundError as fault:
        raise MissingExtraError(
            f"reading pictures needs the package `{fault.name}`",
            do="pip install 'onnxq[pictures]'",
        ) from fault
    return Image
