"""Roundings by fixed-point multipliers, judged by 32-bit arithmetic in C."""

import shutil
import subprocess

import numpy as np
import pytest

from onnxq.handoff.reference.rounding import ROUNDINGS, rounded
from onnxq.handoff.reference.values import Steps, term_of
from onnxq.qtypes import AffineParameters, IntType

GRID = AffineParameters(scale=1.0, zero_point=-7, type=IntType.INT8)
C = r"""
#include <math.h>
#include <stdint.h>
#include <stdio.h>
static int32_t away_from_zero(int32_t a, int32_t b) {          /* gemmlowp's doubling product */
    int64_t product = (int64_t)a * b;
    int64_t nudge = product >= 0 ? (1LL << 30) : (1 - (1LL << 30));
    return (int32_t)((product + nudge) / (1LL << 31));
}
static int32_t half_up(int32_t a, int32_t b) {                 /* CMSIS-NN's */
    return (int32_t)(((int64_t)a * b + (1LL << 30)) >> 31);
}
static int32_t halved(int32_t x, int exponent) {
    int32_t mask = (int32_t)((1LL << exponent) - 1), rest = x & mask;
    int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
    return (x >> exponent) + (rest > threshold ? 1 : 0);
}
int main(void) {
    int x; double real;
    while (scanf("%d %lf", &x, &real) == 2) {
        int shift; double fraction = frexp(real, &shift);
        int64_t m = (int64_t)llround(fraction * (double)(1LL << 31));
        if (m == (1LL << 31)) { m /= 2; shift++; }
        int left = shift > 0 ? shift : 0, right = shift > 0 ? 0 : -shift;
        int64_t wide = (int64_t)x * m; int total = 31 - shift;
        int32_t once = (int32_t)(wide >> (total - 1));
        printf("%d %d %d\n",
               halved(away_from_zero(x * (1 << left), (int32_t)m), right),
               halved(half_up(x * (1 << left), (int32_t)m), right), (once + 1) >> 1);
    }
    return 0;
}
"""


def saturated(steps: np.ndarray) -> np.ndarray:
    return np.clip(steps + GRID.zero_point, -128, 127).astype(np.int8)


@pytest.fixture(scope="module")
def cases():
    """Accumulators and multipliers: random, and such that products lie on a middle."""
    draw = np.random.default_rng(0)
    numbers = np.concatenate([draw.integers(-60_000, 60_000, 4000), np.arange(-500, 500)])
    factors = np.concatenate([2.0 ** draw.uniform(-14, 1, 4000), np.tile([0.5, 0.25], 500)])
    return numbers.astype(np.int64), factors


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_fixed_point_roundings_are_those_of_32_bit_c(cases, tmp_path):
    numbers, factors = cases
    (tmp_path / "f.c").write_text(C)
    subprocess.run(
        ["gcc", "-O1", "-fwrapv", "f.c", "-o", "f", "-lm"], cwd=tmp_path, check=True, timeout=60
    )
    text = "".join(f"{x} {m.hex()}\n" for x, m in zip(numbers, factors, strict=True))
    told = subprocess.run(
        [tmp_path / "f"], input=text, capture_output=True, text=True, check=True, timeout=60
    )
    wanted = np.array([line.split() for line in told.stdout.splitlines()], int).T
    value = Steps((term_of(numbers, factors),))
    sources = ("gemmlowp", "gemmlowp", "cmsis_nn_single")  # two ways of writing the first
    for name, steps in zip(sources, wanted, strict=True):
        np.testing.assert_array_equal(rounded(value, GRID, name), saturated(steps), name)


def test_the_first_rounding_is_half_to_even():
    halves = Steps((term_of(np.arange(-9, 10), np.array([0.5])),))
    wanted = saturated(np.rint(np.arange(-9, 10) / 2))
    np.testing.assert_array_equal(rounded(halves, GRID), wanted)
    assert len({rounded(halves, GRID, name).tobytes() for name in ROUNDINGS}) == 2


@pytest.mark.parametrize("name", ROUNDINGS)
def test_no_rounding_is_further_from_the_exact_value_than_it_may_be(cases, name):
    numbers, factors = cases
    exact = np.clip(numbers * factors + GRID.zero_point, -128, 127)
    got = rounded(Steps((term_of(numbers, factors),)), GRID, name)
    allowed = 0.5 if name == "nearest_even" else 0.5 + 2**-1  # two roundings, one after the other
    assert np.abs(got - exact).max() <= allowed + 1e-6


@pytest.mark.parametrize("name", ROUNDINGS[1:])
def test_a_sum_of_two_scales_is_within_one_step_of_the_exact_one(name):
    draw = np.random.default_rng(1)
    terms = [term_of(draw.integers(-128, 128, 5000), np.array([s])) for s in (0.37, 0.0421)]
    value = Steps(tuple(terms))
    away = np.abs(rounded(value, GRID, name).astype(int) - rounded(value, GRID))
    assert away.max() <= 1
    assert (away > 0).mean() < 0.01


@pytest.mark.parametrize("name", ROUNDINGS)
def test_a_cut_holds_under_every_rounding(name):
    value = Steps((term_of(np.arange(-300, 300), np.array([0.5])),)).cut(0.0, 6.0)
    got = rounded(value, GRID, name)
    assert (got.min(), got.max()) == (GRID.zero_point, GRID.zero_point + 6)
