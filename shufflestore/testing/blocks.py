"""What an order that goes through the data by blocks costs: how uneven batches get, and how often a block is fetched."""

from __future__ import annotations

__all__ = ["BlockQuality", "block_quality"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import OptionError

_BATCHES: Final = (1, 4, 16, 64)


@dataclass(frozen=True, slots=True)
class BlockQuality:
    """How an order uses blocks of the data. `str()` is a table.

    Attributes:
        record_count: Of the epoch.
        block_records: Of a block.
        batch_size: Records a batch.
        variance: For the worst data there is, where all records of a block are alike and blocks differ: the variance of
            the mean of k batches that follow one another, in parts of what independent draws have; by k, for
            1, 4, 16 and 64 as far as the epoch has as many batches twice. 1 for a true shuffle, less where k batches
            are much of the epoch. A batch of 256 with a variance of 4 tells as much of such data as
            64 independent records would; data that is stored in no order of its own does not notice.
        distinct_blocks: In a batch, mean.
        peak_open_blocks: Blocks that are begun and not used up, at most; see `loads_per_block`.
        loads_per_block: How often a block is fetched, mean, by a reader that keeps it from its first record to its last,
            or lets it go where its next record is more than half an epoch away.
    """

    record_count: int
    block_records: int
    batch_size: int
    variance: Mapping[int, float]
    distinct_blocks: float
    peak_open_blocks: int
    loads_per_block: float

    def __str__(self) -> str:
        """A line for each figure."""
        lines = [
            f"{self.record_count:,} records in blocks of {self.block_records:,}, batches of {self.batch_size:,}",
            *(f"variance of {k:2} batches    {value:10.1f}" for k, value in self.variance.items()),
            f"distinct blocks a batch   {self.distinct_blocks:10.1f}",
            f"peak open blocks          {self.peak_open_blocks:10,}",
            f"loads per block           {self.loads_per_block:10.3f}",
        ]
        return "\n".join(lines)


def block_quality(ids: Sequence[int] | NDArray[Any], *, block_records: int, batch_size: int = 256) -> BlockQuality:
    """Measure how an order uses blocks of records that are stored one after the other.

    The variances are computed from how many records of each block a batch has, for any values that the blocks might
    have; no values are drawn.

    Args:
        ids: Of one epoch, in the order of delivery: every number in [0, n) once, at any type of integer.
        block_records: Of a block, in [1, n / 2]. The records behind the last whole block count as one more.
        batch_size: Records a batch, in [1, n / 2]. Records behind the last whole batch do not count for variances.

    Returns:
        The figures.

    Raises:
        OptionError: The ids are not those of one epoch, or a size is out of range.

    O(n log n), vectorised: below a second for a million records.

    >>> from shufflestore.orders.blocks import BlockOrder
    >>> order = BlockOrder(65_536, block_records=256, open_blocks=32)
    >>> print(block_quality(order.ids(np.arange(65_536)), block_records=256))
    65,536 records in blocks of 256, batches of 256
    variance of  1 batches           7.0
    variance of  4 batches          26.9
    variance of 16 batches          91.1
    variance of 64 batches         150.0
    distinct blocks a batch         32.0
    peak open blocks                  32
    loads per block                1.121
    """
    order = np.asarray(ids)
    n = order.size
    if order.ndim != 1 or (n and order.dtype.kind not in "iu") or not np.array_equal(np.sort(order), np.arange(n)):
        raise OptionError("ids must be those of one epoch: every number in [0, n) once; see assert_exactly_once")
    for name, value in (("block_records", block_records), ("batch_size", batch_size)):
        if not 1 <= value <= n // 2:
            raise OptionError(f"{name}={value} with {n} records; it must be in [1, n / 2]")
    block = order.astype(np.int64) // block_records
    count = int(block.max()) + 1
    kept = [k for k in _BATCHES if 2 * k * batch_size <= n]
    variance, distinct = {}, 0.0
    for k in kept:
        variance[k], found = _spread(block, count, k * batch_size)
        distinct = distinct if k > 1 else found
    peak, loads = _residency(block, count)
    return BlockQuality(n, block_records, batch_size, variance, distinct, peak, loads / count)


def _spread(block: NDArray[np.int64], count: int, size: int) -> tuple[float, float]:
    """Return the mean variance of the means of so many records, and how many blocks they come from."""
    groups = len(block) // size
    keys = np.arange(groups * size) // size * count + block[: groups * size]
    where, records = np.unique(keys, return_counts=True)
    # A value a block, of mean 0 over the records and otherwise arbitrary: the mean of `size` records then has, in
    # expectation, variance sum((records / size - share)^2) count / (count - 1), share being the block's of all records.
    share = np.bincount(block, minlength=count) / len(block)
    squares = (records / size) ** 2 - 2 * (records / size) * share[where % count]
    total = squares.sum() / groups + (share**2).sum()
    return float(total * size * count / (count - 1)), len(where) / groups


def _residency(block: NDArray[np.int64], count: int) -> tuple[int, int]:
    """Return how many blocks are held at most, and how often one is fetched."""
    n = len(block)
    by_block = np.argsort(block, kind="stable")
    owner = block[by_block]
    gap = np.diff(by_block)
    is_first = np.append(True, (owner[1:] != owner[:-1]) | (gap > n // 2))
    is_last = np.append(is_first[1:], True)
    held = np.zeros(n + 1, np.int64)
    np.add.at(held, by_block[is_first], 1)
    np.add.at(held, by_block[is_last] + 1, -1)
    return int(np.cumsum(held).max()), int(is_first.sum())
