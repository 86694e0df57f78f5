"""Paired statistics: how much worse, and how sure. The unit is the group where samples have one."""

import math
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Shaped
from scipy import stats

from onnxq.artifacts import Interval

__all__ = ["group_means", "more_units_needed", "paired_interval", "paired_point"]

LEVEL = 0.95
_RESAMPLES = 9_999
_SEED = 0
_Z = NormalDist().inv_cdf(0.5 + LEVEL / 2)


def group_means(
    values: Float[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"]
) -> Float[np.ndarray, " g"]:
    """Mean of each group's values, groups in sorted order."""
    _, numbers = np.unique(groups, return_inverse=True)
    return np.bincount(numbers, weights=values) / np.bincount(numbers)


def paired_point(
    worse_by: Float[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"] | None
) -> float:
    """What the interval is about: the mean over groups of their means, or over samples."""
    return float(np.mean(worse_by if groups is None else group_means(worse_by, groups)))


def paired_interval(
    worse_by: Float[np.ndarray, " n"], groups: Shaped[np.ndarray, " n"] | None
) -> Interval | None:
    """95 % interval of the mean of ``worse_by``, the paired difference INT8 − FP32 per sample.

    With groups: over the groups' means, from the lower to the higher end of Student's t interval
    and the BCa bootstrap; simulated coverage holds from five groups on, where a bootstrap over
    samples covers 30 %. Without groups: Agresti–Min for differences of right and wrong, else the
    same two over samples. None if there are fewer than two units, as nothing is known of their
    spread then.
    Source: Efron 1987, "Better bootstrap confidence intervals", JASA 82; Agresti & Min 2005,
    "Simple improved confidence intervals for comparing matched proportions", Stat. Med. 24.
    """
    if groups is None and np.isin(worse_by, (-1.0, 0.0, 1.0)).all() and len(worse_by) > 1:
        return _agresti_min(worse_by)
    units = worse_by if groups is None else group_means(worse_by, groups)
    if len(units) < 2:
        return None
    low, high = _t_and_bca(units)
    return Interval(
        low=low,
        high=high,
        method="wider of t and BCa",
        units="samples" if groups is None else "groups",
        count=len(units),
    )


def _t_and_bca(units: Float[np.ndarray, " n"]) -> tuple[float, float]:
    mean = float(units.mean())
    if np.ptp(units) == 0:
        return mean, mean
    half = stats.t.ppf(0.5 + LEVEL / 2, len(units) - 1) * stats.sem(units)
    bca = stats.bootstrap(
        (units,),
        np.mean,
        confidence_level=LEVEL,
        n_resamples=_RESAMPLES,
        method="BCa",
        rng=np.random.default_rng(_SEED),
    ).confidence_interval
    return float(min(mean - half, bca.low)), float(max(mean + half, bca.high))


def _agresti_min(worse_by: Float[np.ndarray, " n"]) -> Interval:
    """Wald's interval for matched proportions after half a pair is added to each of four cells."""
    count = len(worse_by) + 2
    worse, better = np.sum(worse_by == 1) + 0.5, np.sum(worse_by == -1) + 0.5
    middle = (worse - better) / count
    half = _Z * math.sqrt((worse + better) - (worse - better) ** 2 / count) / count
    return Interval(
        low=float(middle - half),
        high=float(middle + half),
        method="Agresti–Min",
        units="samples",
        count=len(worse_by),
    )


def more_units_needed(interval: Interval, point: float, limit: float) -> int | None:
    """About how many more units would bring the interval's end to ``limit``, all else equal.

    The half width shrinks with the root of the number of units. None if the point lies on the
    limit, where no number would do.
    """
    margin = abs(limit - point)
    half = interval.high - point if limit >= point else point - interval.low
    if margin == 0 or not math.isfinite(half):
        return None
    return max(1, math.ceil(interval.count * ((half / margin) ** 2 - 1)))
