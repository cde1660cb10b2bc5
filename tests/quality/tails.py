"""P-values: tail probabilities of the chi-square, normal and Poisson distributions, without scipy."""

from __future__ import annotations

import math

import numpy as np


def chi_square(statistic: float, freedom: float) -> float:
    """P(X >= statistic) for chi-square with `freedom` degrees: the regularised upper incomplete gamma."""
    if statistic <= 0:
        return 1.0
    return _upper_gamma(freedom / 2, statistic / 2)


def normal(z: float) -> float:
    """P(|Z| >= |z|)."""
    return math.erfc(abs(z) / math.sqrt(2))


def poisson(count: int, mean: float) -> float:
    """Twice the smaller tail of a Poisson variable, at most 1."""
    at_least = 1.0 if count == 0 else 1 - _upper_gamma(count, mean)
    if at_least < 1e-12:  # the difference above has no digits left
        at_least = math.exp(count * math.log(mean) - mean - math.lgamma(count + 1)) / max(1e-9, 1 - mean / (count + 1))
    at_most = _upper_gamma(count + 1, mean)
    return min(1.0, 2 * min(at_least, at_most))


def two_sided_chi_square(statistic: float, freedom: float) -> float:
    """Twice the smaller tail: an order that is *too even* is no better than one that is uneven."""
    upper = chi_square(statistic, freedom)
    return min(1.0, 2 * min(upper, 1 - upper if upper < 0.9 else _lower_gamma(freedom / 2, statistic / 2)))


def counts_chi_square(counts: np.ndarray, expected: np.ndarray | float) -> float:
    """Two-sided p-value of observed counts against expected ones whose sums agree."""
    counts = np.asarray(counts, dtype=np.float64).ravel()
    wanted = np.broadcast_to(np.asarray(expected, dtype=np.float64).ravel(), counts.shape)
    assert wanted.min() >= 4, "too few expected a cell for a chi-square"
    return two_sided_chi_square(float(((counts - wanted) ** 2 / wanted).sum()), counts.size - 1)


def _lower_gamma(a: float, x: float) -> float:
    if x <= 0:
        return 0.0
    if x >= a + 1:
        return 1 - _upper_gamma(a, x)
    term = total = 1 / a
    n = a
    for _ in range(200_000):
        n += 1
        term *= x / n
        total += term
        if term < total * 1e-15:
            break
    return total * math.exp(-x + a * math.log(x) - math.lgamma(a))


def _upper_gamma(a: float, x: float) -> float:
    if x < a + 1:
        return 1 - _lower_gamma(a, x)
    # Lentz' continued fraction, Numerical Recipes 6.2.
    tiny = 1e-300
    b = x + 1 - a
    c, d = 1 / tiny, 1 / b
    h = d
    for i in range(1, 200_000):
        factor = -i * (i - a)
        b += 2
        d = factor * d + b
        d = tiny if abs(d) < tiny else d
        c = b + factor / c
        c = tiny if abs(c) < tiny else c
        d = 1 / d
        h *= d * c
        if abs(d * c - 1) < 1e-15:
            break
    exponent = -x + a * math.log(x) - math.lgamma(a)
    return 0.0 if exponent < -740 else math.exp(exponent) * h
