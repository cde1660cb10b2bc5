"""From many small reads to few larger ones, each with the reads that it serves. Pure: nothing is read here."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import ZERO

__all__ = ["Plan", "plan"]

_LARGEST_OFFSET: Final = 2**63 - 1
_NONE: Final = np.empty(0, np.int64)


@dataclass(frozen=True, eq=False)
class Plan:
    """Ranges to fetch, in the order in which the reads need them first, and which of them serves each read."""

    file: NDArray[np.int64]
    """(m,) file number of each fetch."""
    offset: NDArray[np.int64]
    """(m,) first byte."""
    size: NDArray[np.int64]
    """(m,) bytes, at least 1."""
    fetch_of: NDArray[np.int64]
    """(n,) fetch that holds each read whole; -1 for reads that need none (filled with zeros, or empty)."""
    bytes_used: int
    """Bytes that the reads ask for, each counted once a group however many of its reads share it."""

    def __len__(self) -> int:
        return len(self.size)

    @property
    def bytes_fetched(self) -> int:
        """Bytes of all fetches."""
        return int(self.size.sum())

    @property
    def waste(self) -> float:
        """Bytes fetched for a byte used, 1 at best; 1 where nothing is."""
        return self.bytes_fetched / self.bytes_used if self.bytes_used else 1.0

    def by_fetch(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the reads in the order of their fetches, and where each fetch's begin.

        Returns:
            order: Indices of the reads that need a fetch, fetch after fetch, rising within each.
            starts: (m + 1,), fetch k serves order[starts[k]:starts[k + 1]].
        """
        real = np.flatnonzero(self.fetch_of >= 0)
        fetch = self.fetch_of[real]
        starts = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.bincount(fetch, minlength=len(self)), out=starts[1:])
        return real[np.argsort(fetch, kind="stable")], starts


def plan(
    reads: NDArray[np.void],
    *,
    group_of: NDArray[np.int64] | None,
    gap_bytes: int,
    most_bytes: int,
    most_waste: float,
    block_bytes: int,
    file_sizes: NDArray[np.int64] | None,
) -> Plan:
    """Return which ranges to fetch for some reads.

    Reads of one file become one fetch where their blocks touch, or where the gap between them is small. So each byte is
    fetched once for a group, save the block that two fetches share where `most_bytes` parts them.

    Args:
        reads: (n,) of storage.base.READ, in the order in which they are needed. Offset and size together at most 2^63 - 1.
        group_of: (n,) reads of different groups are never one fetch; None for one group.
        gap_bytes: Reads whose blocks are so far apart, or less, are fetched together.
        most_bytes: A fetch does not grow beyond this, unless by one read, or reads that share bytes, which stay whole.
        most_waste: Fetches of more than so many bytes for a byte of the blocks that hold reads are parted at every gap.
        block_bytes: Fetches begin and end at multiples of this, or at the end of the file; 1 for no alignment.
        file_sizes: (files,) where each file ends, which no fetch passes unless a read does; None where nobody knows.

    Returns:
        The plan. Its `bytes_fetched` is at most `most_waste` times the bytes of the blocks that hold reads, where a block
        counts once more for each fetch that `most_bytes` parts inside it; without alignment, `most_waste` times `bytes_used`.

    Raises:
        ValueError: A knob is out of its range.

    O(n log n), about 0.2 us a read; a Python step only for each fetch that `most_bytes` ends.
    """
    if gap_bytes < 0 or most_bytes < 1 or block_bytes < 1 or most_waste < 1:
        raise ValueError(
            f"gap_bytes={gap_bytes} must be at least 0, and most_bytes={most_bytes}, block_bytes={block_bytes} and "
            f"most_waste={most_waste} at least 1"
        )
    fetch_of = np.full(len(reads), -1, np.int64)
    real = np.flatnonzero((reads["op"] != ZERO) & (reads["size"] > 0))
    if not len(real):
        return Plan(_NONE, _NONE, _NONE, fetch_of, 0)
    begin = reads["offset"][real].astype(np.int64)
    end = begin + reads["size"][real].astype(np.int64)
    file = reads["file"][real].astype(np.int64)
    group = np.zeros(len(real), np.int64) if group_of is None else np.asarray(group_of, np.int64)[real]
    order = _sorted(group, file, begin)
    begin, end, file, group, real = begin[order], end[order], file[order], group[order], real[order]
    is_new = np.ones(len(real), bool)
    is_new[1:] = (file[1:] != file[:-1]) | (group[1:] != group[:-1])
    is_free = is_new.copy()
    reach = _running_end(end, is_new) if (~is_new[1:] & (begin[1:] < end[:-1])).any() else end
    is_free[1:] |= begin[1:] >= reach[:-1]
    # Everything else is decided in whole blocks: what they hold is fetched anyhow.
    low = begin // block_bytes * block_bytes
    high = reach + np.minimum(-reach % block_bytes, _LARGEST_OFFSET - reach)
    if file_sizes is not None:
        high = np.maximum(np.minimum(high, file_sizes[file]), reach)
    gap = np.zeros(len(real), np.int64)
    gap[1:] = low[1:] - high[:-1]
    cut = is_new | (gap > gap_bytes)
    cut = _parted_by_size(cut, low, high, is_free, most_bytes)
    cut = _parted_by_waste(cut, low, high, gap, most_waste)
    heads, last = _runs(cut)
    needed = np.argsort(np.minimum.reduceat(real, heads))
    place = np.empty(len(heads), np.int64)
    place[needed] = np.arange(len(heads))
    fetch_of[real] = place[np.cumsum(cut) - 1]
    offset, size, used = low[heads], high[last] - low[heads], int(_fresh(begin, reach, is_new).sum())
    return Plan(file[heads][needed], offset[needed], size[needed], fetch_of, used)


def _sorted(group: NDArray[np.int64], file: NDArray[np.int64], begin: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return an order by group, file and first byte; reads that begin together come in any order.

    One sort of one word where all three fit into it, several times as fast as a sort by each.
    """
    file_bits, begin_bits = int(file.max()).bit_length(), int(begin.max()).bit_length()
    if group.min() < 0 or int(group.max()).bit_length() + file_bits + begin_bits > 63:
        return np.lexsort((begin, file, group))
    order: NDArray[np.int64] = np.argsort((group << (file_bits + begin_bits)) | (file << begin_bits) | begin)
    return order


def _runs(cut: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where the runs begin that cuts make, and the last entry of each."""
    heads = np.flatnonzero(cut)
    return heads, np.append(heads[1:], len(cut)) - 1


def _fresh(low: NDArray[np.int64], high: NDArray[np.int64], is_head: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the bytes that each range [low, high) adds to those before it in its run; `high` never falls within a run."""
    before = low.copy()
    before[1:] = np.where(is_head[1:], low[1:], np.maximum(low[1:], high[:-1]))
    fresh: NDArray[np.int64] = high - before
    return fresh


def _running_end(end: NDArray[np.int64], is_new: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the furthest end so far within each run; ends go up to 2^63, so runs are told apart by rank."""
    order = np.lexsort((end, np.cumsum(is_new)))
    rank = np.empty(len(end), np.int64)
    rank[order] = np.arange(len(end))
    furthest: NDArray[np.int64] = end[order][np.maximum.accumulate(rank)]
    return furthest


def _parted_by_size(
    cut: NDArray[np.bool_],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    is_free: NDArray[np.bool_],
    most_bytes: int,
) -> NDArray[np.bool_]:
    """Cut runs that are longer than `most_bytes`, as late as fits, where no read crosses."""
    heads, last = _runs(cut)
    is_long = high[last] - low[heads] > most_bytes
    if not is_long.any():
        return cut
    cut = cut.copy()
    # Lists: a step on numbers of Python's own takes a tenth of the time.
    free, lows, highs = np.flatnonzero(is_free).tolist(), low.tolist(), high.tolist()
    for head, tail in zip(heads[is_long].tolist(), last[is_long].tolist(), strict=True):
        while highs[tail] - lows[head] > most_bytes:
            # The first read that reaches too far; the last place up to there where none crosses, or else the next one.
            far = bisect_right(highs, lows[head] + most_bytes, head, tail + 1)
            after = bisect_right(free, far)
            if free[after - 1] <= head:
                after += 1
            if after > len(free) or free[after - 1] > tail:
                break
            head = free[after - 1]
            cut[head] = True
    return cut


def _parted_by_waste(
    cut: NDArray[np.bool_],
    low: NDArray[np.int64],
    high: NDArray[np.int64],
    gap: NDArray[np.int64],
    most_waste: float,
) -> NDArray[np.bool_]:
    """Cut at every gap the runs that would read too much for what is used of it."""
    heads, last = _runs(cut)
    held = np.add.reduceat(_fresh(low, high, cut), heads)
    is_wasteful = high[last] - low[heads] > most_waste * held
    parted: NDArray[np.bool_] = cut | (is_wasteful[np.cumsum(cut) - 1] & (gap > 0))
    return parted
