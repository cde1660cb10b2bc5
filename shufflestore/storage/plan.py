"""From many small reads to few larger ones, each with the reads that it serves. Pure: nothing is read here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import ZERO

__all__ = ["Plan", "plan"]

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
    """Bytes that the reads ask for, each counted once however many reads share it."""

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

    def served(self) -> list[NDArray[np.int64]]:
        """Return, for each fetch, the indices of its reads in rising order."""
        real = np.flatnonzero(self.fetch_of >= 0)
        order = real[np.argsort(self.fetch_of[real], kind="stable")]
        ends = np.cumsum(np.bincount(self.fetch_of[real], minlength=len(self)))
        return np.split(order, ends[:-1]) if len(self) else []


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

    Reads of one file become one fetch where they touch, or where the gap between them is small. So each byte is fetched once,
    save the block that two fetches share where `most_bytes` parts them.

    Args:
        reads: (n,) of storage.base.READ, in the order in which they are needed.
        group_of: (n,) reads of different groups are never one fetch; None for one group.
        gap_bytes: Reads so far apart, or less, are fetched together.
        most_bytes: A fetch does not grow beyond this; one read that is larger is one fetch all the same, and reads that
            share bytes stay together.
        most_waste: Fetches that would read more than so many bytes for a byte used are parted at every gap.
        block_bytes: Fetches begin and end at multiples of this; 1 for no alignment.
        file_sizes: (files,) where each file ends, which no fetch passes unless a read does; None where nobody knows.

    Returns:
        The plan. `bytes_fetched` is at most `most_waste` times `bytes_used`, plus two blocks a fetch.

    Costs about 0.15 us a read; a Python step only for each fetch that `most_bytes` ends.
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
    order = np.lexsort((begin, file) if group_of is None else (begin, file, group))
    begin, end, file, group, real = begin[order], end[order], file[order], group[order], real[order]
    is_new = np.ones(len(real), bool)
    is_new[1:] = (file[1:] != file[:-1]) | (group[1:] != group[:-1])
    overlaps = ~is_new[1:] & (begin[1:] < end[:-1])
    reach = _running_end(end, is_new) if overlaps.any() else end
    gap = np.zeros(len(real), np.int64)
    gap[1:] = begin[1:] - reach[:-1]
    # Bytes that a read adds to those before it.
    fresh = np.where(is_new, end - begin, np.maximum(end - np.maximum(begin, np.concatenate([[0], reach[:-1]])), 0))
    cut = is_new | (gap > gap_bytes)
    cut = _parted_by_size(cut, begin, reach, gap, most_bytes)
    cut = _parted_by_waste(cut, begin, reach, gap, fresh, most_waste)
    number = np.cumsum(cut) - 1
    heads = np.flatnonzero(cut)
    last = np.append(heads[1:], len(real)) - 1
    first_byte, stop = begin[heads] // block_bytes * block_bytes, -(-reach[last] // block_bytes) * block_bytes
    if file_sizes is not None:
        stop = np.maximum(np.minimum(stop, file_sizes[file[heads]]), reach[last])
    needed = np.argsort(np.minimum.reduceat(real, heads), kind="stable")
    place = np.empty(len(heads), np.int64)
    place[needed] = np.arange(len(heads))
    fetch_of[real] = place[number]
    return Plan(file[heads][needed], first_byte[needed], (stop - first_byte)[needed], fetch_of, int(fresh.sum()))


def _running_end(end: NDArray[np.int64], is_new: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the furthest end so far within each run; ends go up to 2^63, so runs are told apart by rank."""
    order = np.lexsort((end, np.cumsum(is_new)))
    rank = np.empty(len(end), np.int64)
    rank[order] = np.arange(len(end))
    furthest: NDArray[np.int64] = end[order][np.maximum.accumulate(rank)]
    return furthest


def _parted_by_size(
    cut: NDArray[np.bool_],
    begin: NDArray[np.int64],
    reach: NDArray[np.int64],
    gap: NDArray[np.int64],
    most_bytes: int,
) -> NDArray[np.bool_]:
    """Cut runs that are longer than `most_bytes`, where no read crosses."""
    heads = np.flatnonzero(cut)
    last = np.append(heads[1:], len(cut)) - 1
    is_long = reach[last] - begin[heads] > most_bytes
    cut = cut.copy()
    for head, tail in zip(heads[is_long].tolist(), last[is_long].tolist(), strict=True):
        while reach[tail] - begin[head] > most_bytes:
            # The first read that reaches too far, and from there the first place where none crosses.
            far = head + int(np.searchsorted(reach[head : tail + 1], begin[head] + most_bytes, side="right"))
            free = np.flatnonzero(gap[max(far, head + 1) : tail + 1] >= 0)
            if not len(free):
                break
            head = max(far, head + 1) + int(free[0])
            cut[head] = True
    return cut


def _parted_by_waste(
    cut: NDArray[np.bool_],
    begin: NDArray[np.int64],
    reach: NDArray[np.int64],
    gap: NDArray[np.int64],
    fresh: NDArray[np.int64],
    most_waste: float,
) -> NDArray[np.bool_]:
    """Cut at every gap the runs that would read too much for what is used of it."""
    heads = np.flatnonzero(cut)
    last = np.append(heads[1:], len(cut)) - 1
    used = np.add.reduceat(fresh, heads)
    is_wasteful = (reach[last] - begin[heads]) > most_waste * used
    parted: NDArray[np.bool_] = cut | (is_wasteful[np.cumsum(cut) - 1] & (gap > 0))
    return parted
