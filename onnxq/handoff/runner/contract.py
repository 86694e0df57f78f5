"""What goes into the model and what comes out: check, quantize, dequantize. Needs numpy only.

from contract import load

known = load(".")                             # the folder that holds contract.json
integers = known.quantize("image", pictures)  # float32 → the integers that the device takes
reals = known.dequantize("scores", answer)    # the device's integers → float32
"""

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BUNDLE_FILE", "Contract", "ContractError", "load", "load_json", "parts_of"]

Array = np.ndarray[Any, np.dtype[Any]]
Facts = Mapping[str, Any]
BUNDLE_FILE = "bundle.json"  # beside the contract of a whole bundle


class ContractError(ValueError):
    """An array that the model may not be fed with, or an integer form that does not exist."""


def load(folder: str | Path) -> "Contract":
    """The contract of a bundle, or of one of its parts: what lies in ``folder``.

    Raises ContractError if there is none.
    """
    for name in ("contract.json", "pipeline.json"):
        path = Path(folder) / name
        if path.is_file():
            return Contract(load_json(path))
    raise ContractError(f"{folder}: holds no contract.json")


def load_json(path: Path) -> Any:
    """What a JSON file says."""
    return json.loads(path.read_text(encoding="utf-8"))


def parts_of(folder: Path) -> dict[str, Path]:
    """The model of each part by its name; of a model in one piece, whose name is empty."""
    if not (folder / "pipeline.json").is_file():
        return {"": folder / load_json(folder / BUNDLE_FILE)["model"]["name"]}
    parts = load_json(folder / "pipeline.json")["parts"]
    files = {part["name"]: part["file"]["name"] for part in parts}
    return {n: p if (p := folder / n / f).is_file() else folder / f for n, f in files.items()}


class Contract:
    """``inputs`` and ``outputs`` hold what contract.json says of each, by name, in their order."""

    def __init__(self, facts: Facts) -> None:
        self.inputs: dict[str, Facts] = {value["name"]: value for value in facts["inputs"]}
        self.outputs: dict[str, Facts] = {value["name"]: value for value in facts["outputs"]}

    def check(self, name: str, value: Any, *, any_domain: bool = False) -> Array:
        """``value`` as an array, if it may be fed as the input ``name``: type, shape and values.

        Raises ContractError for another type or shape, for NaN, and, unless ``any_domain``, for
        infinities and values outside the declared domain.
        """
        facts = self._facts(name)
        array: Array = np.asarray(value)  # a plain number is refused in words
        if array.dtype != np.dtype(facts["dtype"]):
            raise ContractError(f"`{name}` is {array.dtype}; the model takes {facts['dtype']}")
        if array.ndim != len(facts["shape"]):
            raise ContractError(f"`{name}` has shape {array.shape}, not {tuple(facts['shape'])}")
        _refuse_shape(facts, array)
        _refuse_values(facts, array, any_domain)
        return array

    def read(self, path: Path) -> list[dict[str, Array]]:
        """The inputs of every sample in an .npz file, or in a folder with a .npy file for each.

        An array is called as its input, or ``input.<name>`` as in known_answers.npz. It holds one
        sample, or samples along one more axis in front (along the first one, where that is fixed
        at 1). Raises ContractError for a missing input, and if there are not as many of each.
        """
        if path.is_dir():
            found = {file.stem: np.load(file, allow_pickle=False) for file in path.glob("*.npy")}
        else:
            with np.load(path, allow_pickle=False) as archive:
                wanted = {*self.inputs, *(f"input.{name}" for name in self.inputs)}
                found = {name: archive[name] for name in archive.files if name in wanted}
        cut = {}
        for name, facts in self.inputs.items():
            array = found.get(name, found.get(f"input.{name}"))
            if array is None:
                raise ContractError(f"no array for the input `{name}`")
            cut[name] = _samples_of(array, facts["shape"])
        counts = {name: len(samples) for name, samples in cut.items()}
        if 0 in counts.values() or len(set(counts.values())) > 1:
            what = "holds no sample" if 0 in counts.values() else "numbers of samples differ"
            raise ContractError(f"{what}: {counts}")
        return [dict(zip(cut, row, strict=True)) for row in zip(*cut.values(), strict=True)]

    def write(self, path: Path, results: list[dict[str, Array]]) -> None:
        """An .npz file with the outputs of every sample, along a new first axis."""
        with zipfile.ZipFile(path, "w") as archive:  # savez takes not every name
            for name in self.outputs:
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    joined = np.stack([result[name] for result in results])
                    np.lib.format.write_array(file, joined, allow_pickle=False)

    def quantize(self, name: str, reals: Array, *, any_domain: bool = False) -> Array:
        """The integers of real values: ``saturate(round_half_even(x / scale) + zero_point)``.

        Computed in float32, of one sample or of several along further axes in front. Raises
        ContractError as ``check`` does, and if the file quantizes no such input or output.
        """
        facts, known = self._facts(name), self._quantization(name)
        array = np.asarray(reals, np.float32)
        _refuse_shape(facts, array)
        _refuse_values(facts, array, any_domain)
        return _quantized(array, known)

    def dequantize(self, name: str, integers: Array) -> Array:
        """The real values of integers, ``(q - zero_point) * scale`` in float32.

        Raises ContractError for another integer type, for another shape, and if the file holds no
        integer form of it.
        """
        facts, known = self._facts(name), self._quantization(name)
        if integers.dtype != np.dtype(known["type"]):
            what = f"`{name}` is {integers.dtype}; its integers are {known['type']}"
            raise ContractError(f"{what}: bytes that are read as another type are other numbers")
        _refuse_shape(facts, integers)
        centred = integers.astype(np.int32) - known["zero_point"]
        return np.asarray(centred.astype(np.float32) * np.float32(known["scale"]))

    def from_bytes(self, name: str, picture: Array) -> Array:
        """The integers of a picture's bytes (uint8), exact for all 256 of them.

        Raises ContractError if the input is no picture of bytes.
        """
        known = self._quantization(name)
        if known["byte_divisor"] is None or picture.dtype != np.uint8:
            raise ContractError(f"`{name}` is not made of picture bytes (uint8)")
        bytes_ = np.arange(256, dtype=np.float32)
        table = _quantized(bytes_ / np.float32(known["byte_divisor"]), known)
        return np.asarray(table[picture])

    def refuse_wrong_bytes(self, name: str, convert: Callable[[Array], Array]) -> None:
        """Raise ContractError unless ``convert``, your own code, makes the right integers of the
        256 bytes of a picture."""
        every = np.arange(256, dtype=np.uint8)
        wanted = self.from_bytes(name, every).astype(np.int64)
        given = np.asarray(convert(every)).astype(np.int64)
        if given.shape != wanted.shape:
            raise ContractError(f"{given.shape} integers came of 256 bytes of `{name}`")
        off = np.abs(given - wanted)
        if off.any():
            known, worst = self._quantization(name), int(off.argmax())
            seen = (given[255] - given[0]) * known["scale"] / (255 / known["byte_divisor"])
            raise ContractError(
                f"{np.count_nonzero(off)} of 256 bytes of `{name}` become another integer: byte "
                f"{worst} becomes {given[worst]}, the contract says {wanted[worst]}. The scale is "
                f"{known['scale']!r}: black to white is seen as {seen:.3g} of what it is"
            )

    def _facts(self, name: str) -> Facts:
        found = self.inputs.get(name) or self.outputs.get(name)
        if found is None:
            names = ", ".join([*self.inputs, *self.outputs])
            raise ContractError(f"no input or output is called `{name}`; there are: {names}")
        return found

    def _quantization(self, name: str) -> Facts:
        facts = self._facts(name)
        known: Facts | None = facts.get("quantization")
        if known is None:
            raise ContractError(f"`{name}` has no integer form: {facts.get('note', '')}")
        return known


def _samples_of(array: Array, shape: list[Any]) -> list[Array]:
    """The samples that an array holds, each of the rank that the model takes."""
    if array.ndim == len(shape) + 1:
        return list(array)
    single = array.ndim == 0 or shape[0] != 1
    return [array] if single else [array[i : i + 1] for i in range(len(array))]


def _quantized(reals: Array, known: Facts) -> Array:
    steps = np.rint(reals / np.float32(known["scale"])).astype(np.float64) + known["zero_point"]
    limits = np.iinfo(known["type"])
    return np.asarray(np.clip(steps, limits.min, limits.max).astype(known["type"]))


def _refuse_shape(facts: Facts, array: Array) -> None:
    """Axes in front of the model's own may be there: several samples."""
    shape = facts["shape"]
    last = array.shape[array.ndim - len(shape) :] if array.ndim >= len(shape) else ()
    free = [isinstance(size, str) for size in shape]
    if len(last) != len(shape) or any(
        got != size and not any_size for got, size, any_size in zip(last, shape, free, strict=True)
    ):
        raise ContractError(f"`{facts['name']}` has shape {array.shape}, not {tuple(shape)}")


def _refuse_values(facts: Facts, array: Array, any_domain: bool) -> None:
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ContractError(f"`{facts['name']}` holds NaN")
    if any_domain or not array.size:
        return
    lowest, highest = array.min(), array.max()
    low, high = facts.get("domain") or (-np.inf, np.inf)
    if array.dtype.kind == "f":
        low, high = array.dtype.type(low), array.dtype.type(high)
        if not np.isfinite(lowest) or not np.isfinite(highest):
            raise ContractError(f"`{facts['name']}` holds infinities")
    if lowest < low or highest > high:
        raise ContractError(
            f"`{facts['name']}` holds values from {lowest:g} to {highest:g}; declared are "
            f"[{low:g}, {high:g}]"
        )
