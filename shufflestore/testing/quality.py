"""Is an order a true shuffle? Five measures whose mean and deviation under one are known exactly."""

from __future__ import annotations

__all__ = ["Measure", "ShuffleQuality", "THRESHOLD", "shuffle_quality"]

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import OptionError

THRESHOLD: Final = 6.0
"""Deviations from the expected value at which a measure tells an order from a true shuffle: of a normal
variable, two in 10**9 are beyond."""
_LEAST_BATCH, _LEAST_BATCHES = 16, 8
"""Below these the measures are too far from normal for the threshold."""
_FEWEST: Final = 2
"""Blocks an epoch. Where nearly every batch hits all blocks, or no block twice, exceptions are rare events, which
are not normal either; the deviation of block_diversity is not taken to be smaller than this."""


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of an order, beside what a true shuffle has.

    Attributes:
        value: Measured, the mean over the epochs.
        expected: Its exact mean under a true shuffle.
        deviation: Its exact standard deviation under a true shuffle, positive. That of block_diversity is
            not taken to be below two blocks an epoch.

    >>> Measure(value=0.3, expected=0.0, deviation=0.1).z
    3.0
    """

    value: float
    expected: float
    deviation: float

    @property
    def z(self) -> float:
        """How many deviations above the expected value."""
        return round((self.value - self.expected) / self.deviation, 6)


@dataclass(frozen=True, slots=True)
class ShuffleQuality:
    """How far an order is from a true shuffle. `str()` is a table.

    In what follows ids are replaced by their ranks 0 .. n - 1 in stored order: only which record is stored before
    which counts.

    Attributes:
        record_count: n, of an epoch.
        epoch_count: Epochs that were given.
        batch_size: Records a batch.
        block_size: Records a block.
        position_correlation: Correlation of a record's place in the order with its place in storage. 0 for a true
            shuffle, 1 for no shuffle; a buffer leaves it near 1.
        neighbour_distance: How far apart in storage two records are that come one after the other, mean, in parts of
            the expected (n + 1) / 3. 1 for a true shuffle; near 0 for adjacent records that stay together,
            whole blocks that are moved, and small buffers.
        block_diversity: Different blocks of storage in a batch, mean, in parts of the number of blocks. Blocks are
            `block_size` records that are stored one after the other. With data sorted by label, blocks are
            labels. Only whole blocks and whole batches count.
        epoch_correlation: Correlation of a record's places in successive epochs; 0 for true shuffles, 1 for the
            same order again. None for a single epoch.
        epoch_overlap: Of the records that shared a batch with a record, the part that does so again in the next
            epoch, mean. For true shuffles about (batch_size - 1) / (n - 1), for batches that are only
            delivered in another order 1. None for a single epoch.
    """

    record_count: int
    epoch_count: int
    batch_size: int
    block_size: int
    position_correlation: Measure
    neighbour_distance: Measure
    block_diversity: Measure
    epoch_correlation: Measure | None = None
    epoch_overlap: Measure | None = None

    @property
    def measures(self) -> dict[str, Measure]:
        """Those that there are, by name."""
        found = {
            "position_correlation": self.position_correlation,
            "neighbour_distance": self.neighbour_distance,
            "block_diversity": self.block_diversity,
            "epoch_correlation": self.epoch_correlation,
            "epoch_overlap": self.epoch_overlap,
        }
        return {name: measure for name, measure in found.items() if measure is not None}

    @property
    def is_like_true_shuffle(self) -> bool:
        """Whether no measure is 6 deviations or more from what a true shuffle has.

        False is proof that the order is no true shuffle; True is no proof that it is: these measures saw nothing.
        """
        return all(abs(measure.z) < THRESHOLD for measure in self.measures.values())

    def __str__(self) -> str:
        """A line for each measure."""
        lines = [
            f"{self.record_count:,} records, {self.epoch_count} epochs, batches of {self.batch_size}, "
            f"blocks of {self.block_size}"
        ]
        for name, measure in self.measures.items():
            verdict = "" if abs(measure.z) < THRESHOLD else "  no true shuffle"
            lines.append(
                f"{name:22}{measure.value:9.4f}  expected {measure.expected:7.4f}  z {measure.z:10.1f}{verdict}"
            )
        return "\n".join(lines)


def shuffle_quality(
    ids: Sequence[Any] | NDArray[Any], *, batch_size: int = 64, block_size: int | None = None
) -> ShuffleQuality:
    """Measure an order, or the orders of successive epochs, against a true shuffle.

    Expected values and deviations are computed, not simulated, so the z-scores mean the same at any length. With several epochs a
    measure is the mean over them, and its deviation that much smaller.

    Args:
        ids: One epoch's ids in the order of delivery, or several epochs' of the same records: a sequence of such
            sequences, or a (epochs, n) array. Each id stands once an epoch, and tells the record's place in
            storage. One rank's share will do where every epoch has the same records.
        batch_size: Records that are delivered together, in [16, n / 8].
        block_size: Records that belong together in storage, as a shard or a label's, in [1, n / 2]; None for
            n // batch_size, so that there are about as many blocks as records in a batch.

    Returns:
        The measures.

    Raises:
        OptionError: An id stands twice, epochs have different records, or a size is out of range.

    O(epochs n log n), vectorised: below a second an epoch of a million records.

    >>> order = np.random.default_rng(0).permutation(4096)
    >>> shuffle_quality(order).is_like_true_shuffle
    True
    >>> print(shuffle_quality(np.arange(4096)))
    4,096 records, 1 epochs, batches of 64, blocks of 64
    position_correlation     1.0000  expected  0.0000  z       64.0  no true shuffle
    neighbour_distance       0.0007  expected  1.0000  z     -101.2  no true shuffle
    block_diversity          0.0156  expected  0.6379  z     -127.3  no true shuffle
    """
    orders = _orders(ids)
    epochs, n = orders.shape
    if not _LEAST_BATCH <= batch_size <= n // _LEAST_BATCHES:
        raise OptionError(
            f"batch_size={batch_size} with {n} records; it must be in [{_LEAST_BATCH}, n / {_LEAST_BATCHES}], since fewer "
            "records or batches tell nothing"
        )
    size = max(1, n // batch_size) if block_size is None else block_size
    if not 1 <= size <= n // 2:
        raise OptionError(f"block_size={size} with {n} records; it must be in [1, n / 2]")
    places = np.argsort(orders, axis=1)
    pairs = range(epochs - 1)
    return ShuffleQuality(
        n, epochs, batch_size, size,
        _mean([_correlation(order, np.arange(n)) for order in orders], 0.0, 1 / (n - 1)),
        _neighbours(orders),
        _diversity(orders, batch_size, size),
        _mean([_correlation(places[i], places[i + 1]) for i in pairs], 0.0, 1 / (n - 1)) if pairs else None,
        _overlap(places, batch_size) if pairs else None,
    )  # fmt: skip


def _orders(ids: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """The orders as ranks, (epochs, n)."""
    if len(ids) == 0:
        raise OptionError("ids is empty; the ids of one epoch or more are needed")
    try:
        given = np.asarray(ids if isinstance(ids, np.ndarray) else [_flat(epoch) for epoch in ids])
    except ValueError:
        lengths = [len(epoch) for epoch in ids]
        raise OptionError(f"epochs have {lengths} records; measure a share that all of them have") from None
    if given.ndim not in (1, 2) or given.dtype.kind not in "iu":
        raise OptionError(f"ids is {given.dtype} of shape {given.shape}; integers, (n,) or (epochs, n), are needed")
    given = np.atleast_2d(given)
    stored = np.sort(given, axis=1)
    twice = stored[:, 1:] == stored[:, :-1]
    if twice.any():
        epoch = int(np.flatnonzero(twice.any(axis=1))[0])
        found = np.unique(stored[epoch, 1:][twice[epoch]])
        raise OptionError(
            f"epoch {epoch} repeats {found.size} ids, {found[:8].tolist()} among them: that is no order of all records; "
            "see assert_exactly_once"
        )
    if (stored != stored[0]).any():
        raise OptionError("the epochs do not hold the same records; see assert_exactly_once")
    return np.searchsorted(stored[0], given)


def _flat(epoch: Any) -> Any:
    return np.asarray(epoch) if isinstance(epoch, Iterable) else epoch


def _mean(values: Sequence[float], expected: float, variance: float) -> Measure:
    """Of independent values of one mean and variance."""
    return Measure(float(np.mean(values)), expected, math.sqrt(variance / len(values)))


def _correlation(a: NDArray[np.int64], b: NDArray[np.int64]) -> float:
    """Of two permutations of 0 .. n - 1."""
    n = len(a)
    middle = (n - 1) / 2
    return float(((a - middle) * (b - middle)).sum() / (n * (n * n - 1) / 12))


def _neighbours(orders: NDArray[np.int64]) -> Measure:
    # The sum of |differences| has mean (n^2 - 1) / 3 and variance (n - 2)(n + 1)(4 n - 7) / 90 (tested by counting).
    n = orders.shape[1]
    expected = (n * n - 1) / 3
    sums = np.abs(np.diff(orders, axis=1)).sum(axis=1) / expected
    return _mean(sums.tolist(), 1.0, (n - 2) * (n + 1) * (4 * n - 7) / 90 / expected**2)


def _diversity(orders: NDArray[np.int64], batch: int, size: int) -> Measure:
    n = orders.shape[1]
    batches, blocks = n // batch, n // size
    drawn = np.sort(np.minimum(orders[:, : batches * batch].reshape(-1, batch) // size, blocks), axis=1)
    # The records after the last whole block are one more "block" here, which does not count.
    distinct = 1 + (np.diff(drawn, axis=1) != 0).sum(axis=1) - (drawn[:, -1] == blocks)
    values = distinct.reshape(len(orders), batches).mean(axis=1) / blocks
    mean, one, two = _diversity_moments(n, batch, size, blocks)
    variance = max((one + (batches - 1) * two) / batches, (_FEWEST / batches) ** 2)
    return _mean(values.tolist(), mean / blocks, variance / blocks**2)


def _diversity_moments(n: int, batch: int, size: int, blocks: int) -> tuple[float, float, float]:
    """Of the blocks in a batch: mean, variance, and the covariance of two batches of an epoch."""
    one, two = _missed(n, size, batch), _missed(n, 2 * size, batch)
    variance = blocks * one * (1 - one) + blocks * (blocks - 1) * (two - one * one)
    # Two batches miss the same block as one batch of twice the size does. For different blocks i and j: the first
    # batch leaves i alone and takes k of j, then the second leaves the other size - k of j alone.
    same = _missed(n, size, 2 * batch) - one * one
    apart = sum(chance * _missed(n - batch, size - k, batch) for k, chance in _taken(n - size, size, batch))
    return blocks * (1 - one), variance, blocks * same + blocks * (blocks - 1) * one * (apart - one)


def _missed(n: int, records: int, draws: int) -> float:
    """The chance that so many draws from n without replacement hit none of so many records."""
    if n - records < draws:
        return 0.0
    # One factor a draw: a difference of log-gammas would have no digits left for a covariance.
    return math.exp(float(np.log1p(-records / (n - np.arange(draws))).sum()))


def _taken(n: int, records: int, draws: int) -> Iterator[tuple[int, float]]:
    """The chances that so many draws from n hit k of so many records, for all k that matter."""
    others = n - records
    k = np.arange(max(0, draws - others), min(records, draws) + 1)
    ratios = (records - k[:-1]) * (draws - k[:-1]) / ((k[:-1] + 1) * (others - draws + k[:-1] + 1))
    logs = np.concatenate([[0.0], np.cumsum(np.log(ratios))])
    weights = np.exp(logs - logs.max())
    weights /= weights.sum()
    yield from ((int(i), float(weight)) for i, weight in zip(k, weights, strict=True) if weight > 1e-20)


def _overlap(places: NDArray[np.int64], batch: int) -> Measure:
    """Pairs of records that share a batch in both of two epochs, in parts of those that do in one."""
    n = places.shape[1]
    batches = n // batch
    member = places // batch  # (epochs, n): the batch of each record; `batches` for the tail, which does not count
    pairs = batches * batch * (batch - 1) // 2
    values = []
    for a, b in pairwise(member):
        whole = (a < batches) & (b < batches)
        _, together = np.unique(a[whole] * batches + b[whole], return_counts=True)
        values.append(float((together * (together - 1) // 2).sum()) / pairs)
    # Both epochs' pairs are the edges of a graph of cliques, one of them relabelled at random. Ordered pairs of
    # edges fall into three kinds, which relabelling keeps: the same, with a record in common, and apart.
    every = n * (n - 1) // 2
    touching, all_touching = batches * batch * (batch - 1) * (batch - 2), n * (n - 1) * (n - 2)
    apart, all_apart = pairs * (pairs - 1) - touching, every * (every - 1) - all_touching
    mean = pairs * pairs / every
    second = mean + touching * touching / all_touching + apart * apart / all_apart
    return _mean(values, mean / pairs, (second - mean * mean) / pairs**2)
