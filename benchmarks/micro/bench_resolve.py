"""Ids to reads: which shard and row, which bytes, which slot. Windows of 4,096 ids.

python -m pytest benchmarks/micro/bench_resolve.py --benchmark-enable
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.harness.workload import lengths_of
from benchmarks.micro.conftest import Window
from shufflestore.format.resolve import lay_out

pytestmark = pytest.mark.benchmark(group="resolve")


def test_find(benchmark: Any, window: Window, per_record: Any) -> None:
    """Id -> shard, chunk, row."""
    indexes = window.data.reading.indexes
    places = benchmark(indexes.find, window.ids)
    per_record(len(window.ids))
    shards = indexes.first_id[places.shard]
    assert (shards <= window.ids).all()
    assert (window.ids < indexes.first_id[places.shard + 1]).all()


def test_locate(benchmark: Any, window: Window, per_record: Any) -> None:
    """Places -> ranges, checksums, copied columns, from pages of the row index."""
    indexes = window.data.reading.indexes
    places = indexes.find(window.ids)
    located, files = benchmark(indexes.locate, places, window.projection.wanted)
    per_record(len(window.ids))
    tokens = located.size.max(axis=1)
    assert np.array_equal(tokens, lengths_of(window.ids) * 4)
    assert len(files) == len(window.ids)


def test_lay_out(benchmark: Any, window: Window, per_record: Any) -> None:
    """Ranges -> reads with slots, batch by batch."""
    indexes = window.data.reading.indexes
    wanted = window.projection.wanted
    located, files = indexes.locate(indexes.find(window.ids), wanted)
    placed = benchmark(lay_out, located, files, window.ends, wanted, True)
    per_record(len(window.ids))
    assert int(placed.ends[-1]) == len(placed.reads)
    assert int(placed.output_sizes.sum()) == int(lengths_of(window.ids).sum()) * 4
