"""Statistics as safetensors bytes, and back, without losing a bit."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped, UInt8
from safetensors import SafetensorError
from safetensors.numpy import load, save

from onnxq.calibrate.statistics import Channels, Statistics, Summary
from onnxq.errors import StoreError

__all__ = ["decode", "encode"]

_KEY, _FORMAT = "onnxq", "statistics 1"
_TOTAL_BYTES, _SQUARES_BYTES = 48, 88  # 2**63 values of 2**128, in units of 2**-149; squared
Array = Shaped[np.ndarray, "..."]


def encode(statistics: Statistics) -> bytes:
    """One safetensors file; equal statistics give equal bytes.

    Histograms are stored sparse, block by block and tensor by tensor: ``buckets`` and ``counts``,
    of which summary ``s`` has ``[offsets[s], offsets[s + 1])``. Exact sums are signed
    little-endian integers. Extremes by channel stand one tensor after the other.
    """
    summaries = [summary for block in statistics.summaries for summary in block]
    channels = [statistics.channels[name] for name in sorted(statistics.channels)]
    lengths = [len(summary.buckets) for summary in summaries]
    arrays: dict[str, Array] = {
        "lows": statistics.lows,
        "highs": statistics.highs,
        "values": statistics.values,
        "blocks": np.array(statistics.blocks, np.int64).reshape(-1, 2),
        "offsets": np.cumsum([0, *lengths], dtype=np.int64),
        "buckets": _concatenated([s.buckets for s in summaries], np.dtype(np.uint16)),
        "counts": _concatenated([s.counts for s in summaries], np.dtype(np.int64)),
        "extremes": np.array([(s.low, s.high) for s in summaries], np.float32).reshape(-1, 2),
        "numbers": np.array(
            [(s.count, s.zeros, s.nans, s.infs) for s in summaries], np.int64
        ).reshape(-1, 4),
        "channel_lows": _concatenated([c.lows for c in channels], np.dtype(np.float32)),
        "channel_highs": _concatenated([c.highs for c in channels], np.dtype(np.float32)),
        "totals": _as_bytes([s.total for s in summaries], _TOTAL_BYTES),
        "squares": _as_bytes([s.squares for s in summaries], _SQUARES_BYTES),
    }
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    facts = {
        "format": _FORMAT,
        "tensors": statistics.tensors,
        "channels": [
            (name, statistics.channels[name].axis, len(statistics.channels[name].lows))
            for name in sorted(statistics.channels)
        ],
    }
    return save(contiguous, {_KEY: json.dumps(facts)})  # of several keys the order would vary


def decode(data: bytes, where: str) -> Statistics:
    """What ``encode`` was given. Raises StoreError, naming ``where``, for any other bytes."""
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"][_KEY])
        if facts["format"] != _FORMAT:
            raise ValueError(f"format {facts['format']}")
        channels = [(name, axis, count) for name, axis, count in facts["channels"]]
        return _restored(tuple(facts["tensors"]), channels, load(data))
    except (SafetensorError, KeyError, ValueError, IndexError) as fault:
        raise StoreError(
            f"is damaged, or holds no statistics of this version of onnxq ({fault})",
            where=where,
            do="collect them again with `onnxq calibrate`",
        ) from fault


def _restored(
    tensors: tuple[str, ...],
    channels: Sequence[tuple[str, int, int]],
    arrays: Mapping[str, Array],
) -> Statistics:
    offsets = arrays["offsets"]
    summaries = []
    for number, (low, high) in enumerate(arrays["extremes"]):
        start, stop = offsets[number], offsets[number + 1]
        count, zeros, nans, infs = (int(value) for value in arrays["numbers"][number])
        summaries.append(
            Summary(
                low=float(low),
                high=float(high),
                count=count,
                zeros=zeros,
                nans=nans,
                infs=infs,
                total=int.from_bytes(arrays["totals"][number].tobytes(), "little", signed=True),
                squares=int.from_bytes(arrays["squares"][number].tobytes(), "little", signed=True),
                buckets=arrays["buckets"][start:stop],
                counts=arrays["counts"][start:stop],
            )
        )
    step = len(tensors)
    return Statistics(
        tensors=tensors,
        lows=arrays["lows"],
        highs=arrays["highs"],
        values=arrays["values"],
        blocks=tuple((int(start), int(stop)) for start, stop in arrays["blocks"]),
        channels=_restored_channels(channels, arrays),
        summaries=tuple(
            tuple(summaries[start : start + step]) for start in range(0, len(summaries), step)
        ),
    )


def _restored_channels(
    names: Sequence[tuple[str, int, int]], arrays: Mapping[str, Array]
) -> dict[str, Channels]:
    found, start = {}, 0
    for name, axis, count in names:
        stop = start + count
        lows, highs = (arrays[f"channel_{kind}"][start:stop] for kind in ("lows", "highs"))
        found[name] = Channels(axis, lows, highs)
        start = stop
    return found


def _concatenated(arrays: Sequence[Array], dtype: np.dtype) -> Array:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)


def _as_bytes(numbers: Sequence[int], width: int) -> UInt8[np.ndarray, "n width"]:
    data = b"".join(number.to_bytes(width, "little", signed=True) for number in numbers)
    return np.frombuffer(data, np.uint8).reshape(-1, width)
