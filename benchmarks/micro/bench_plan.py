"""The planner on a window of look-ahead: 4,096 reads of 2 KB, far apart, near each other and cut; fetches into slots."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from shufflestore._native import crc32c, place
from shufflestore.storage.base import COPY, HAS_CRC, READ, WIDEN
from shufflestore.storage.plan import plan

COUNT = 4096


@pytest.mark.parametrize(
    ("apart", "most_bytes", "is_grouped"),
    [(1 << 26, 8 << 20, True), (4_000, 8 << 20, True), (2_000, 4_000, False)],
    ids=["apart", "near", "cut"],
)
def test_plan(benchmark: Any, apart: int, most_bytes: int, is_grouped: bool) -> None:
    """Of one submission; every read must be served."""
    reads = np.zeros(COUNT, READ)
    rng = np.random.default_rng(0)
    reads["file"] = rng.integers(0, 16, COUNT)
    reads["offset"] = rng.permutation(COUNT) * apart
    reads["size"] = 2_000
    groups = np.arange(COUNT) // 256 if is_grouped else None

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


@pytest.mark.parametrize("op", [COPY, WIDEN["u2", "i8"]], ids=["copy", "widen"])
@pytest.mark.parametrize("rows", [1, 256])
def test_place(benchmark: Any, rows: int, op: int) -> None:
    """Of one fetch into the slots that it serves, with checksums."""
    size = 2_000
    data = np.random.default_rng(0).integers(0, 256, rows * size, dtype=np.uint8)
    wanted = data if op == COPY else data.view("<u2").astype("<i8").view(np.uint8)
    reads = np.zeros(rows, READ)
    reads["offset"], reads["size"] = np.arange(rows) * size, size
    reads["slot"], reads["op"], reads["flags"] = np.arange(rows) * (len(wanted) // rows), op, HAS_CRC
    reads["crc"] = [crc32c(data[i * size : (i + 1) * size]) for i in range(rows)]
    output = np.zeros(len(wanted), np.uint8)
    assert benchmark(place, data, 0, reads.view(np.uint64).reshape(rows, 5), [output]) is None
    assert np.array_equal(output, wanted)
