"""When what is learned, and how fast."""

import math

import numpy as np
from jaxtyping import Int64

__all__ = ["learning_rate_at", "order_of", "steps_of_epoch"]


def learning_rate_at(step: int, total: int, first: float) -> float:
    """The rate of ``step`` (from 0) of ``total`` iterations: half a cosine from ``first`` to 0.

    ``total`` is the number of iterations of all epochs, so that it ends where training ends.
    Source: Loshchilov & Hutter 2017, arXiv 1608.03983, equation 5, without restarts.
    """
    return first * 0.5 * (1 + math.cos(math.pi * step / total))


def steps_of_epoch(runs: int, runs_a_step: int) -> int:
    """Iterations in which every run is seen once at least."""
    return max(1, math.ceil(runs / runs_a_step))


def order_of(epoch: int, seed: int, runs: int, runs_a_step: int) -> Int64[np.ndarray, "steps runs"]:
    """The runs of each iteration of an epoch: all, shuffled; the last is filled with the first.

    It depends on nothing but these numbers, so that an interrupted training goes on as it would.
    """
    shuffled = np.random.default_rng([seed, epoch]).permutation(runs)
    steps = steps_of_epoch(runs, runs_a_step)
    return np.resize(shuffled, (steps, runs_a_step)).astype(np.int64)
