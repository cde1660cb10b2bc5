"""The planner on a window of look-ahead: 4,096 reads of 2 KB, far apart, near each other, and cut into many fetches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shufflestore.storage.base import READ
from shufflestore.storage.plan import plan

COUNT = 4096


@pytest.mark.parametrize(
    ("apart", "most_bytes"), [(1 << 26, 8 << 20), (4_000, 8 << 20), (4_000, 8_000)], ids=["apart", "near", "cut"]
)
def test_plan(benchmark: Any, apart: int, most_bytes: int) -> None:
    """Of one submission; every read must be served."""
    reads = np.zeros(COUNT, READ)
    rng = np.random.default_rng(0)
    reads["file"] = rng.integers(0, 16, COUNT)
    reads["offset"] = rng.permutation(COUNT) * apart
    reads["size"] = 2_000
    groups = np.arange(COUNT) // 256

    def work() -> Any:
        return plan(
            reads,
            group_of=groups,
            gap_bytes=32 << 10,
            most_bytes=most_bytes,
            most_waste=8.0,
            block_bytes=1,
            file_sizes=None,
        )

    made = benchmark(work)
    assert (made.fetch_of >= 0).all()
    assert made.bytes_used == COUNT * 2_000
    assert made.waste <= 8.0
