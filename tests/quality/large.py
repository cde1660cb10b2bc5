"""Tests of orders too long to be listed: batches, pairs, differences, neighbours in key and position.

Each takes a candidate, a length and a number of fresh keys to begin at, and yields (name, p-value).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from tests.quality import tails
from tests.quality.candidates import Candidate, seed_and_epoch
from tests.quality.small import distinct_moments

Results = Iterator[tuple[str, float]]

BATCH = 512
BINS = 64


def run(candidate: Candidate, length: int, first_key: int, sample: int) -> Results:
    """Every test; `sample` ids each, a power of two from 2**14 on."""
    yield from batch_uniformity(candidate, length, first_key, sample)
    yield from serial_pairs(candidate, length, first_key, sample)
    yield from differences(candidate, length, first_key, sample)
    yield from avalanche(candidate, length, first_key, sample)
    yield from neighbouring_keys(candidate, length, first_key, sample)
    yield from blocks_in_a_batch(candidate, length, first_key, sample)
    yield from birthday_spacings(candidate, length, first_key, sample)


def network_lag(length: int) -> int:
    """A = 2**a, the lower half of the package's network: where too few rounds would show."""
    return 2 ** ((length - 1).bit_length() // 2)


def high_digit(ids: np.ndarray, length: int, bins: int) -> np.ndarray:
    """The bin of an id by size; lengths here end below 2**54, so the product fits."""
    return ids * bins // length


def high_widths(length: int, bins: int) -> np.ndarray:
    """The share of all ids in each bin of `high_digit`."""
    edges = [-(-length * i // bins) for i in range(bins + 1)]
    return np.array([(b - a) / length for a, b in pairwise(edges)])


def low_widths(length: int, bins: int) -> np.ndarray:
    """The share of all ids with each remainder."""
    return np.array([length // bins + (i < length % bins) for i in range(bins)]) / length


def strides(length: int) -> list[int]:
    """Steps between the positions of a sample: neighbours, the network's own, a prime, a large one."""
    return sorted({1, 2, network_lag(length), 1009, length // 3 | 1})


def walk(length: int, first: int, stride: int, count: int) -> np.ndarray:
    """Distinct positions first, first + stride, ... modulo the length, every cycle moved on by one."""
    cycle = length // math.gcd(length, stride)
    k = np.arange(count, dtype=np.int64)
    return (first + k % cycle * stride + k // cycle) % length


def draws(length: int, first_key: int, sample: int) -> list[tuple[tuple[int, int], np.ndarray]]:
    """(key, random positions) pairs, `sample` positions in all.

    From one key come 1/256 of its order at most. More would tell of that one order, which is fixed,
    and not of chance: with 65,536 of 65,537 records the control itself fails.
    """
    each = min(sample, max(BATCH, length // 256))
    rng = np.random.default_rng([first_key, length % 2**32])
    return [(seed_and_epoch(first_key + k), rng.integers(0, length, each)) for k in range(-(-sample // each))]


def gaps(candidate: Candidate, length: int, first_key: int, sample: int, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids at random positions and at `lag` behind them, over as many keys as it takes."""
    pairs = [
        (candidate.ids(p, length, *key), candidate.ids((p + lag) % length, length, *key))
        for key, p in draws(length, first_key, sample)
    ]
    return np.concatenate([a for a, _ in pairs]), np.concatenate([b for _, b in pairs])


def batch_uniformity(candidate: Candidate, length: int, first_key: int, sample: int) -> Results:
    """Each batch spreads over the high digits and over the low ones as chance would have it."""
    for stride in strides(length):
        rows = []
        for key, p in draws(length, first_key, sample):
            positions = walk(length, int(p[0]), stride, p.size // BATCH * BATCH)
            rows.append(candidate.ids(positions, length, *key).reshape(-1, BATCH))
        ids = np.concatenate(rows)
        for name, digits, widths in (
            ("high", high_digit(ids, length, BINS), high_widths(length, BINS)),
            ("low", ids % BINS, low_widths(length, BINS)),
        ):
            count = ids.shape[0]
            cells = np.bincount((digits + np.arange(count)[:, None] * BINS).ravel(), minlength=count * BINS)
            expected = widths * BATCH
            each = ((cells.reshape(count, BINS) - expected) ** 2 / expected).sum(axis=1)
            # Drawn without replacement, a batch is a little more even than the chi-square has it.
            statistic = each.sum() * (length - 1) / (length - BATCH)
            z = (statistic - count * (BINS - 1)) / math.sqrt(2 * count * (BINS - 1))
            yield f"batches at stride {stride}, {name} digit", tails.normal(z)


def serial_pairs(candidate: Candidate, length: int, first_key: int, sample: int) -> Results:
    """Ids a lag apart: 32 x 32 cells of their high digits, and of their low ones."""
    for lag in strides(length):
        pair = gaps(candidate, length, first_key, sample, lag)
        for name, digits, widths in (
            ("high", [high_digit(x, length, 32) for x in pair], high_widths(length, 32)),
            ("low", [x % 32 for x in pair], low_widths(length, 32)),
        ):
            cells = np.bincount(digits[0] * 32 + digits[1], minlength=1024)
            expected = np.outer(widths, widths) * pair[0].size
            yield f"pairs at lag {lag}, {name} digit", tails.counts_chi_square(cells, expected)


def equal_bins(values: np.ndarray, length: int) -> float:
    """P-value of values that should be uniform on [0, length): 256 bins."""
    expected = high_widths(length, 256) * values.size
    return tails.counts_chi_square(np.bincount(high_digit(values, length, 256), minlength=256), expected)


def differences(candidate: Candidate, length: int, first_key: int, sample: int) -> Results:
    """(id at p + lag - id at p) mod N over many keys, at the lags that a network could give away."""
    base = network_lag(length)
    lags = sorted({1, 2, 3, base // 2, base - 1, base, base + 1, 2 * base, -(-length // base), length // 2})
    for lag in lags:
        a, b = gaps(candidate, length, first_key, sample, lag)
        yield f"difference at lag {lag}", equal_bins((b - a) % length, length)


def avalanche(candidate: Candidate, length: int, first_key: int, sample: int) -> Results:
    """One bit of the position turned: the id moves by anything, and half its low bits turn."""
    for bit in range((length - 1).bit_length() - 1):
        before, after = [], []
        for key, p in draws(length, first_key, max(4096, sample // 8)):
            inside = p[p ^ (1 << bit) < length]
            before.append(candidate.ids(inside, length, *key))
            after.append(candidate.ids(inside ^ (1 << bit), length, *key))
        a, b = np.concatenate(before), np.concatenate(after)
        yield f"difference when position bit {bit} turns", equal_bins((b - a) % length, length)
        turned = np.array([((a ^ b) >> shift & 1).sum() for shift in range(8)])
        z = (turned - a.size / 2) / math.sqrt(a.size / 4)
        yield f"low bits when position bit {bit} turns", tails.chi_square(float((z**2).sum()), 8)


def neighbouring_keys(candidate: Candidate, length: int, first_key: int, sample: int) -> Results:
    """The same positions under the next epoch, the next seed, and seed + 1 with epoch - 1."""
    for name, seed_step, epoch_step in (("epoch", 0, 1), ("seed", 1, 0), ("seed + 1 and epoch - 1", 1, -1)):
        before, after = [], []
        for turn, (_, p) in enumerate(draws(length, first_key, sample)):
            seed = first_key + turn
            before.append(candidate.ids(p, length, seed, 1))
            after.append(candidate.ids(p, length, seed + seed_step, 1 + epoch_step))
        a, b = np.concatenate(before), np.concatenate(after)
        yield f"difference under the next {name}", equal_bins((b - a) % length, length)
        digits = high_digit(a, length, 32) * 32 + high_digit(b, length, 32)
        widths = high_widths(length, 32)
        cells = np.bincount(digits, minlength=1024)
        yield f"pairs under the next {name}", tails.counts_chi_square(cells, np.outer(widths, widths) * a.size)


def blocks_in_a_batch(candidate: Candidate, length: int, first_key: int, sample: int) -> Results:
    """Distinct stored blocks that batches of 512 draw from."""
    blocks = 512
    size = length // blocks
    mean, variance = distinct_moments(length, size, blocks, BATCH)
    rows = max(4, sample // BATCH // 4)
    z = 0.0
    for k in range(rows):
        positions = np.arange(k * BATCH, (k + 1) * BATCH) % length
        ids = candidate.ids(positions, length, *seed_and_epoch(first_key + k))
        drawn = np.unique(ids // size)
        z += int((drawn < blocks).sum()) - mean
    yield "blocks in a batch", tails.normal(z / math.sqrt(variance * rows))


def birthday_spacings(candidate: Candidate, length: int, first_key: int, sample: int) -> Results:
    """Equal gaps between sorted ids of successive positions: Poisson (Marsaglia), for long orders."""
    if length < 10**9:
        return
    count = round((16 * length) ** (1 / 3))
    if count > sample:
        count = sample
    draws = max(1, min(64, 8 * sample // count))
    mean = count**3 / (4 * length)
    if mean * draws < 10:
        return
    equal = 0
    for k in range(draws):
        ids = np.sort(candidate.ids(np.arange(count) + k * count, length, *seed_and_epoch(first_key + k)))
        gaps = np.sort(np.diff(ids, append=ids[0] + length))
        equal += int((np.diff(gaps) == 0).sum())
    yield "birthday spacings", tails.poisson(equal, mean * draws)
