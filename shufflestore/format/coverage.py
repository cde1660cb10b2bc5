"""Which bytes of a file records read, and which no record does."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["gaps", "merged"]


def merged(lo: NDArray[np.int64], hi: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return non-empty spans of one buffer, those that touch or overlap merged; (n, 2) [start, stop)."""
    used = hi > lo
    lo, hi = lo[used], hi[used]
    if not len(lo):
        return np.empty((0, 2), np.int64)
    reach = np.maximum.accumulate(hi)
    fresh = np.flatnonzero(np.append(True, lo[1:] > reach[:-1]))
    return np.stack([lo[fresh], reach[np.append(fresh[1:] - 1, len(lo) - 1)]], axis=1)


def gaps(spans: NDArray[np.int64], size: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return offsets and sizes of the bytes of [0, size) outside spans sorted by their start."""
    reach = np.maximum.accumulate(np.concatenate([[0], spans[:, 1]]))
    starts = np.concatenate([spans[:, 0], [size]])
    open_ = starts > reach
    return reach[open_].astype(np.uint64), (starts - reach)[open_].astype(np.uint64)
