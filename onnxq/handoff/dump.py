"""What a device computed, read from a file and laid beside the layers of a bundle."""

import csv
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from jaxtyping import Int64, Shaped

from onnxq.artifacts import Manifest
from onnxq.errors import DataError, StaleRecordError, StoreError, nearest
from onnxq.graph import constants_of, load_model
from onnxq.handoff.layers import LAYERS_FILE
from onnxq.handoff.reference.network import Layer, layers_of
from onnxq.splitting.manifest import MANIFEST
from onnxq.store import load_record, sha256_of_file

__all__ = ["Dump", "KnownLayers", "channels_last", "known_layers", "part_folders", "read_dump"]

Array = Shaped[np.ndarray, "..."]
ON_GRID = 1e-3  # steps that a real value may lie off its grid by the rounding of float32
_RAW = frozenset({".bin", ".raw", ".dat"})
_TURNED = "turned, as its channels are last"
_LONG = ("tensor", "index", "value")


@dataclass(frozen=True)
class KnownLayers:
    """A bundle's model, its layers in order, their integers, and the inputs they come from."""

    name: str
    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    integers: Mapping[str, Array]
    inputs: Mapping[str, Array]


@dataclass(frozen=True)
class Dump:
    """Integers of a device, by layer, in the shape of the bundle's. ``unknown`` are names of the
    file that belong to no layer; ``notes`` say how numbers were read where that is not plain.
    ``ambiguous`` are layers whose shape is the same with the channels first and last, or that came
    without one: read as the graph has them, channels first. ``turned``: another's shape had the
    channels last."""

    integers: Mapping[str, Int64[np.ndarray, "..."]]
    unknown: tuple[str, ...]
    notes: tuple[str, ...]
    ambiguous: frozenset[str] = frozenset()
    turned: bool = False


def known_layers(bundle: Path) -> KnownLayers:
    """The layers of the bundle in the folder ``bundle``.

    Raises StoreError if it holds none, StaleRecordError if they are of another model, ModelError.
    """
    path = bundle / LAYERS_FILE
    if not path.is_file():
        parts = part_folders(bundle)
        known = f"give the folder of one part: {', '.join(parts)}" if parts else ""
        raise StoreError(
            f"holds no {LAYERS_FILE}",
            where=str(bundle),
            do=known or "give the folder of a bundle",
        )
    arrays = _arrays_of(path)
    about = json.loads(str(arrays["about"]))
    model = bundle / about["model"]
    if sha256_of_file(model) != about["sha256"]:
        raise StaleRecordError(
            f"is not the file that {LAYERS_FILE} was made from",
            where=str(model),
            do="hand the model off again",
        )
    proto = load_model(model)
    layers = layers_of(proto, constants_of(proto))
    return KnownLayers(
        name=about["model"],
        model=proto,
        layers=layers,
        integers={layer.name: arrays[f"layer.{layer.name}"] for layer in layers},
        inputs={
            name.removeprefix("input."): array
            for name, array in arrays.items()
            if name.startswith("input.")
        },
    )


def part_folders(bundle: Path) -> tuple[str, ...]:
    """The folders of a bundle's parts, in the order of its pipeline.json; none if it is whole.

    Raises StoreError if that cannot be read.
    """
    file = bundle / MANIFEST
    if not file.is_file():
        return ()
    return tuple(
        str((bundle / part.file.name).parent) for part in load_record(Manifest, file).parts
    )


def read_dump(path: Path, known: KnownLayers) -> Dump:
    """The layers that the file holds, by tensor or node name, else by their order.

    ``.npz``: one array a layer. ``.csv``: a line a layer, its name and then its numbers; or, under
    the head ``tensor,index,value``, a line a number. ``.bin``, ``.raw``, ``.dat``: all layers of
    ``layers.npz`` one after the other, each in its type. Whole numbers are integers of the layer's
    grid; numbers with a fraction are real values and are put on it. An array whose shape has the
    channels last is turned. Raises DataError if the file cannot be read so, or a size does not fit.
    """
    if not path.is_file():
        raise DataError("no such file", where=str(path), do="check the path")
    if path.suffix in _RAW:
        raw = _raw(path, known)
        return Dump(raw, (), (), frozenset(name for name, array in raw.items() if array.ndim > 2))
    if path.suffix == ".npz":
        arrays = _layers_alone(_arrays_of(path))
    elif path.suffix == ".csv":
        arrays = _table(path)
    else:
        raise DataError(
            f"is of an unknown kind `{path.suffix}`",
            where=str(path),
            do="give .npz, .csv, or .bin / .raw / .dat",
        )
    names = _matched(list(arrays), arrays, known, path)
    integers, notes, ambiguous = {}, [], set()
    for key, layer in names.items():
        integers[layer.name], note = _as_integers(arrays[key], layer, known, f"{path}: `{key}`")
        notes += [note] if note else []
        shape = known.integers[layer.name].shape
        alike = arrays[key].ndim >= len(shape) - 1 and channels_last(shape) == shape
        if len(shape) > 2 and (alike or arrays[key].ndim == 1):
            ambiguous.add(layer.name)
    unknown = tuple(key for key in arrays if key not in names)
    return Dump(
        integers, unknown, tuple(notes), frozenset(ambiguous), any(_TURNED in n for n in notes)
    )


def channels_last(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the same numbers with the channels, axis 1, at the end."""
    return (shape[0], *shape[2:], shape[1]) if len(shape) > 2 else shape


def _arrays_of(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as fault:
        raise DataError(f"cannot be read: {fault}", where=str(path), do="write it again") from fault


def _layers_alone(arrays: dict[str, Array]) -> dict[str, Array]:
    """The layers of a file that is written as ``layers.npz`` is; of any other all arrays."""
    layers = {key: array for key, array in arrays.items() if key.startswith("layer.")}
    return {key.removeprefix("layer."): array for key, array in layers.items()} or arrays


def _table(path: Path) -> dict[str, Array]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as fault:
        do = "write it again, as UTF-8 text"
        raise DataError(f"cannot be read: {fault}", where=str(path), do=do) from fault
    words: dict[str, list[str]] = {}
    if rows and tuple(cell.strip().lower() for cell in rows[0]) == _LONG:
        words = _long_table(rows[1:], path)
    else:
        for number, (name, *cells) in enumerate(rows, start=1):
            if name.strip() in words:
                what, do = f"line {number} names `{name}` again", "write each layer in one line"
                raise DataError(what, where=str(path), do=do)
            words[name.strip()] = cells
    return {name: _numbers(cells, f"{path}: `{name}`") for name, cells in words.items()}


def _long_table(rows: Sequence[Sequence[str]], path: Path) -> dict[str, list[str]]:
    """Numbers in the order of their indices, which must run from 0 without a gap."""
    found: dict[str, dict[int, str]] = {}
    for number, row in enumerate(rows, start=2):
        if len(row) != len(_LONG) or not row[1].strip().isdecimal():
            raise DataError(
                f"line {number} is no `tensor,index,value`",
                where=str(path),
                do="write three cells a line, the index a whole number from 0",
            )
        found.setdefault(row[0].strip(), {})[int(row[1])] = row[2]
    for name, cells in found.items():
        if sorted(cells) != list(range(len(cells))):
            raise DataError(
                f"the indices of `{name}` are not 0…{len(cells) - 1}",
                where=str(path),
                do="write every number of the layer, counted from 0 in the order of its memory",
            )
    return {name: [cells[at] for at in range(len(cells))] for name, cells in found.items()}


def _numbers(cells: Sequence[str], where: str) -> Array:
    """Whole numbers as int64, all others as float64."""
    filled = [cell.strip() for cell in cells if cell.strip()]
    try:
        if all(re.fullmatch(r"[+-]?\d{1,18}", cell) for cell in filled):
            return np.array([int(cell) for cell in filled], np.int64)
        return np.array([float(cell) for cell in filled])
    except ValueError as fault:
        do = "write the layer's name, then its numbers, with commas between and a decimal point"
        raise DataError(f"holds no numbers: {fault}", where=where, do=do) from fault


def _raw(path: Path, known: KnownLayers) -> dict[str, Int64[np.ndarray, "..."]]:
    data = path.read_bytes()
    wanted = sum(known.integers[layer.name].nbytes for layer in known.layers)
    if len(data) != wanted:
        raise DataError(
            f"has {len(data)} bytes; all layers of {LAYERS_FILE} in a row have {wanted}",
            where=str(path),
            do="write every layer in the order of layers.npz, or give an .npz with names",
        )
    found, start = {}, 0
    for layer in known.layers:
        like = known.integers[layer.name]
        part = np.frombuffer(data, like.dtype, like.size, start)
        found[layer.name] = part.reshape(like.shape).astype(np.int64)
        start += like.nbytes
    return found


def _matched(
    keys: Sequence[str], arrays: Mapping[str, Array], known: KnownLayers, path: Path
) -> dict[str, Layer]:
    """Which layer each name of the file means."""
    exact = {layer.name: layer for layer in known.layers}
    loose: dict[str, list[Layer]] = {}
    for layer in known.layers:
        for alias in {layer.name, *layer.aliases}:
            loose.setdefault(_plain(alias), []).append(layer)
    found: dict[str, Layer] = {}
    for key in keys:
        meant = [exact[key]] if key in exact else loose.get(_plain(key), [])
        meant = [layer for layer in meant if key in (layer.name, *layer.aliases)] or meant
        if len(meant) == 1:
            found[key] = meant[0]
    for key, layer in found.items():
        other = next((k for k, one in found.items() if one is layer and k != key), None)
        if other is not None:
            raise DataError(
                f"`{key}` and `{other}` are the same layer",
                where=str(path),
                do="leave one of them out, or name it as LAYERS.md does",
            )
    if found:
        return found
    sizes = [known.integers[layer.name].size for layer in known.layers]
    if [arrays[key].size for key in keys] == sizes:
        return dict(zip(keys, known.layers, strict=True))
    if not keys:
        raise DataError(
            "holds no layer: it is empty",
            where=str(path),
            do="write an array for each layer, named by tensor or node as in layers.npz",
        )
    first = keys[0]
    raise DataError(
        f"holds no layer of the bundle: {nearest(first, exact)}",
        where=f"{path}: `{first}`",
        do="name arrays by tensor or node as in LAYERS.md, or write all layers in their order",
    )


def _plain(name: str) -> str:
    """A name as a C identifier would have it."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _as_integers(
    array: Array, layer: Layer, known: KnownLayers, where: str
) -> tuple[Int64[np.ndarray, "..."], str]:
    like = known.integers[layer.name]
    if array.size != like.size:
        raise DataError(
            f"has {array.size} numbers of shape {list(array.shape)}; the layer `{layer.name}` has "
            f"{like.size} of shape {list(like.shape)}",
            where=where,
            do="dump the whole layer for one sample, or give the dump of this model",
        )
    if array.dtype.kind not in "iuf" or not np.isfinite(array).all():
        raise DataError(
            "holds something else than finite numbers",
            where=where,
            do="dump the layer's integers, or its real values without nan and inf",
        )
    note, numbers = "", array
    if array.dtype.kind == "f":
        places = array.astype(np.float64) / np.float64(np.float32(layer.grid.scale))
        steps = np.rint(places)
        off_grid = np.abs(places - steps).max(initial=0.0) > ON_GRID
        if off_grid and np.array_equal(array, np.rint(array)):
            numbers, note = array, f"`{layer.name}`: whole numbers, read as integers"
        else:
            numbers = steps + layer.grid.zero_point
            note = f"`{layer.name}`: read as real values of scale {layer.grid.scale!r}"
    numbers = numbers.astype(np.int64)
    last = channels_last(like.shape)
    shape = array.shape if array.ndim == like.ndim else (1, *array.shape)
    if shape == last != like.shape:
        note = f"{note}; " if note else f"`{layer.name}`: "
        return np.moveaxis(numbers.reshape(last), -1, 1), f"{note}{_TURNED}"
    return numbers.reshape(like.shape), note
