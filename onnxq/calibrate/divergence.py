"""What a distribution loses when a window of it is quantized, by Kullback and Leibler."""

import numpy as np
from jaxtyping import Float64, Int64
from numpy.lib.stride_tricks import sliding_window_view

__all__ = ["divergences", "smooth_part"]

_TINIEST = np.finfo(np.float64).tiny


def divergences(
    counts: Int64[np.ndarray, " bins"],
    atoms: Int64[np.ndarray, " bins"],
    windows: tuple[Int64[np.ndarray, " windows"], Int64[np.ndarray, " windows"]],
    levels: int,
    smoothing: float = 1e-4,
) -> Float64[np.ndarray, " windows"]:
    """Kullback–Leibler divergence, in nats, of each window of a histogram from its quantized form.

    ``windows`` are numbers of first bins, and of bins. P is the window with all that lies outside
    added to its outermost bins. Q is the window without that, its bins merged into ``levels``
    groups of equal size (to one bin), each group's count spread evenly over those of its bins that
    P does not leave empty. Both are divided by their sums; ``smoothing`` of Q is spread over all
    bins, as Q must not be 0 where P is not (1e-4 as in MXNet and onnxruntime). ``atoms`` are values
    of a bin that are all alike: inside a window they are one bin of their own, in P and in Q.
    Source: Migacz 2017, "8-bit inference with TensorRT", GTC talk S7310.
    """
    starts, sizes = windows
    stops = starts + sizes
    bounds = starts[:, np.newaxis] + sizes[:, np.newaxis] * np.arange(levels + 1) // levels
    below, apart, occupied, logs = (
        np.concatenate([[0], np.cumsum(part)])
        for part in (counts, atoms, counts > 0, _x_log_x(counts))
    )
    all_below = below + apart
    total = all_below[-1]
    p = np.diff(below[bounds]).astype(np.float64)
    q = p.copy()
    used = np.diff(occupied[bounds])
    p_logs = logs[stops] - logs[starts]
    beyond = (all_below[starts], total - all_below[stops])
    for outside, end, group in zip(beyond, (starts, stops - 1), (0, -1), strict=True):
        own = counts[end]
        p[:, group] += outside
        used[:, group] += (own == 0) & (outside > 0)
        p_logs += _x_log_x(own + outside) - _x_log_x(own)
    inside = np.maximum(total - beyond[0] - beyond[1], 1)
    q *= (1 - smoothing) / (inside[:, np.newaxis] * np.maximum(used, 1))
    q += smoothing / sizes[:, np.newaxis]
    q_logs = np.einsum("wl,wl->w", p, np.log(np.maximum(q, _TINIEST)))
    alike = (apart[stops] - apart[starts]) * np.log(inside / (1 - smoothing))
    return np.asarray((p_logs - q_logs + alike) / total - np.log(total))


def smooth_part(counts: Int64[np.ndarray, " bins"]) -> Int64[np.ndarray, " bins"]:
    """No bin holds more than the median of the 9 occupied bins around it."""
    occupied = np.flatnonzero(counts)
    around = sliding_window_view(np.pad(counts[occupied], 4, mode="edge"), 9)
    smooth = counts.copy()
    smooth[occupied] = np.minimum(counts[occupied], np.sort(around, axis=1)[:, 4])
    return smooth


def _x_log_x(counts: Int64[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    return np.asarray(counts * np.log(np.maximum(counts, 1)))
