"""The wait that a share of the batches did not exceed, from a list of all of them."""

from __future__ import annotations

import math


def quantile(waits: list[int], share: float) -> int:
    """The value of rank ceil(share x n), counted from 1, of the sorted values."""
    return sorted(waits)[math.ceil(share * len(waits)) - 1]
