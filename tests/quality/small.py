"""Tests over whole orders of many keys: is every one of the n! orders as likely as any other?

Each takes (K, n) orders, one a row, keys consecutive, and yields (name, p-value). Each sums one exact
statistic of independent rows, so that the p-values hold at any n.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from tests.quality import tails
from tests.quality.candidates import EPOCHS_A_SEED

Results = Iterator[tuple[str, float]]


def run(orders: np.ndarray) -> Results:
    """Every test that fits the size."""
    yield from every_order(orders)
    yield from fixed_points(orders)
    yield from cycles_and_parity(orders)
    yield from inversions(orders)
    yield from position_correlation(orders)
    yield from adjacency(orders)
    yield from position_value(orders)
    yield from lag_differences(orders)
    yield from block_diversity(orders)
    yield from between_keys(orders)


def z_of_sum(values: np.ndarray, mean: float, variance: float) -> float:
    """P-value of the mean of independent values with known moments."""
    return tails.normal((float(values.mean()) - mean) / math.sqrt(variance / values.size))


def every_order(orders: np.ndarray) -> Results:
    """n! cells, each as full as the others."""
    count, n = orders.shape
    if n > 8 or count < 5 * math.factorial(n):
        return
    rank = np.zeros(count, dtype=np.int64)
    for i in range(n):  # Lehmer code
        rank = rank * (n - i) + (orders[:, i + 1 :] < orders[:, i : i + 1]).sum(axis=1)
    cells = math.factorial(n)
    yield "every order", tails.counts_chi_square(np.bincount(rank, minlength=cells), count / cells)


def fixed_points(orders: np.ndarray) -> Results:
    """How many records stay where they are: mean and variance 1, and the whole distribution."""
    count, n = orders.shape
    fixed = (orders == np.arange(n)).sum(axis=1)
    yield "fixed points, mean", z_of_sum(fixed, 1, 1)
    yield "fixed points, distribution", _rencontres(fixed, n, count)


def _rencontres(fixed: np.ndarray, n: int, count: int) -> float:
    derangements = [1, 0]
    for i in range(2, n + 1):
        derangements.append((i - 1) * (derangements[-1] + derangements[-2]))
    chance = [derangements[n - k] / (math.factorial(k) * math.factorial(n - k)) for k in range(min(n, 12) + 1)]
    cells, expected = [], []
    for k, p in enumerate(chance):
        if p * count >= 10:
            cells.append(int((fixed == k).sum()))
            expected.append(p * count)
    if count - sum(expected) >= 5:
        cells.append(count - sum(cells))
        expected.append(count - sum(expected))
    else:  # what is rarer than a cell can hold is counted in the last cell
        cells[-1] += count - sum(cells)
        expected[-1] += count - sum(expected)
    return tails.counts_chi_square(np.array(cells), np.array(expected)) if len(cells) > 1 else 1.0


def cycles_and_parity(orders: np.ndarray) -> Results:
    """Cycles: mean H_n, variance H_n - H_n^(2). Half of all permutations are even."""
    n = orders.shape[1]
    least = np.broadcast_to(np.arange(n, dtype=orders.dtype), orders.shape).copy()
    jump = orders.astype(np.int64)
    for _ in range(max(1, (n - 1).bit_length())):  # pointer doubling: the least member of each cycle
        least = np.minimum(least, np.take_along_axis(least, jump, axis=1))
        jump = np.take_along_axis(jump, jump, axis=1)
    cycles = (least == np.arange(n)).sum(axis=1)
    mean = sum(1 / i for i in range(1, n + 1))
    yield "cycles", z_of_sum(cycles, mean, mean - sum(1 / i**2 for i in range(1, n + 1)))
    yield "parity", z_of_sum((n - cycles) % 2, 0.5, 0.25)


def inversions(orders: np.ndarray) -> Results:
    """Pairs out of order; counted one by one, so for short orders."""
    n = orders.shape[1]
    if n > 128:
        return
    total = np.zeros(orders.shape[0], dtype=np.int64)
    for i in range(n - 1):
        total += (orders[:, i + 1 :] < orders[:, i : i + 1]).sum(axis=1)
    yield "inversions", z_of_sum(total, n * (n - 1) / 4, n * (n - 1) * (2 * n + 5) / 72)


def position_correlation(orders: np.ndarray) -> Results:
    """Spearman's correlation of position and id: mean 0, variance 1 / (n - 1)."""
    n = orders.shape[1]
    yield "correlation with the position", z_of_sum(_correlation(orders, np.arange(n)[None, :]), 0, 1 / (n - 1))


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    n = a.shape[1]
    middle = (n - 1) / 2
    product: np.ndarray = ((a - middle) * (b - middle)).sum(axis=1)
    return product / (n * (n * n - 1) / 12)


def adjacency(orders: np.ndarray) -> Results:
    """Neighbours that stay neighbours: each of the n - 1 places with chance 1 / n (ascending by one)."""
    n = orders.shape[1]
    kept = (np.diff(orders, axis=1) == 1).sum(axis=1)
    mean = (n - 1) / n
    # Pairs of places: adjacent ones need three in a row, 1 / (n (n - 1)); so do apart ones, both given.
    second = (n - 1) * (n - 2) / (n * (n - 1)) if n > 2 else 0.0
    yield "adjacency", z_of_sum(kept, mean, mean + second - mean**2)


def position_value(orders: np.ndarray) -> Results:
    """Each id at each position as often as at any other: n x n cells with (n - 1)^2 degrees of freedom."""
    count, n = orders.shape
    if n > 256 or count < 5 * n:
        return
    cells = np.bincount((orders + np.arange(n) * n).ravel(), minlength=n * n)
    statistic = float(((cells - count / n) ** 2).sum() / (count / n)) * (n - 1) / n
    yield "position by value", tails.two_sided_chi_square(statistic, (n - 1) ** 2)


def lag_differences(orders: np.ndarray) -> Results:
    """(id at p + lag - id at p) mod n is any of 1 .. n - 1 alike; one place a key, so that keys are all there is."""
    count, n = orders.shape
    if n < 3:
        return
    bins = min(n - 1, 256, count // 10)
    place = np.arange(count) * 7
    for lag in (1, 2, 4, 8, 16, 32, 64):
        if lag >= n:
            break
        for turn in range(3):
            first = (place + turn * (n // 3)) % (n - lag)
            rows = np.arange(count)
            gap = (orders[rows, first + lag].astype(np.int64) - orders[rows, first]) % n - 1
            yield f"difference at lag {lag}, place {turn}", _equal_bins(gap, n - 1, bins)


def _equal_bins(values: np.ndarray, span: int, bins: int) -> float:
    """Chi-square of values in [0, span) over bins that hold almost equally many values each."""
    edges = [-(-span * i // bins) for i in range(bins + 1)]
    widths = np.diff(np.array(edges, dtype=np.float64))
    cells = np.bincount(values * bins // span, minlength=bins)
    return tails.counts_chi_square(cells, widths * (values.size / span))


def block_diversity(orders: np.ndarray) -> Results:
    """Distinct blocks that one batch draws from, at three places of the order."""
    n = orders.shape[1]
    if n < 16:
        return
    size, batch = max(2, n // 16), max(4, n // 16)
    blocks = n // size
    for begin in (0, n // 2, n - batch):
        drawn = orders[:, begin : begin + batch] // size
        drawn = np.sort(np.where(drawn < blocks, drawn, blocks), axis=1)
        distinct = 1 + (np.diff(drawn, axis=1) != 0).sum(axis=1) - (drawn[:, -1] == blocks)
        mean, variance = distinct_moments(n, size, blocks, batch)
        yield f"blocks in a batch at {begin}", z_of_sum(distinct, mean, variance)


def distinct_moments(n: int, size: int, blocks: int, batch: int) -> tuple[float, float]:
    """Mean and variance of the blocks hit when `batch` of n are drawn without replacement."""

    def missed(records: int) -> float:  # the chance that none of so many records is drawn
        if n - records < batch:
            return 0.0
        # One factor a draw: a difference of log-gammas has no digits left at n = 2**50.
        return math.exp(float(np.log1p(-records / (n - np.arange(batch))).sum()))

    one, two = missed(size), missed(2 * size)
    variance = blocks * one * (1 - one) + blocks * (blocks - 1) * (two - one * one)
    return blocks * (1 - one), variance


def between_keys(orders: np.ndarray) -> Results:
    """Successive epochs and adjacent seeds agree as often as strangers, and do not correlate."""
    count, n = orders.shape
    same_seed = np.flatnonzero(np.arange(count - 1) % EPOCHS_A_SEED != EPOCHS_A_SEED - 1)
    for name, first, step in (("epochs", same_seed, 1), ("seeds", np.arange(count - EPOCHS_A_SEED), EPOCHS_A_SEED)):
        a, b = orders[first], orders[first + step]
        yield f"agreement of {name}", z_of_sum((a == b).sum(axis=1), 1, 1)
        yield f"correlation of {name}", z_of_sum(_correlation(a, b), 0, 1 / (n - 1))
