"""CRC32C of 2.2 KB records and of long ranges, beside a plain copy and zlib's CRC32.

python -m pytest benchmarks/micro/bench_crc.py --benchmark-enable
"""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shufflestore import _native

pytestmark = pytest.mark.benchmark(group="crc")
CHECK_VALUE = 0xE3069283  # of b"123456789", from the polynomial's catalogue
LENGTH = 4 << 20  # stays in the last-level cache: the kernel is measured, not the memory
RECORD = 2176


@pytest.fixture
def data() -> NDArray[np.uint8]:
    """Random bytes."""
    return np.random.default_rng(0).integers(0, 256, LENGTH).astype(np.uint8)


def _rate(benchmark: Any, byte_count: int) -> None:
    if benchmark.stats:
        benchmark.extra_info["gb_per_second"] = round(byte_count / benchmark.stats["median"] / 1e9, 2)


def test_records(benchmark: Any, data: NDArray[np.uint8]) -> None:
    """Each record's own checksum, as a reader computes it."""
    offsets = np.arange(0, LENGTH - RECORD, RECORD, dtype=np.uint64)
    sizes = np.full(len(offsets), RECORD, np.uint64)
    out = np.empty(len(offsets), np.uint32)
    benchmark(_native.crc32c_spans, data, offsets, sizes, out)
    _rate(benchmark, int(sizes.sum()))
    assert out[3] == _native.crc32c(data[3 * RECORD : 4 * RECORD])


def test_long(benchmark: Any, data: NDArray[np.uint8]) -> None:
    """One long range, as a writer computes it."""
    assert _native.crc32c(b"123456789") == CHECK_VALUE
    benchmark(_native.crc32c, data)
    _rate(benchmark, LENGTH)


def test_copy(benchmark: Any, data: NDArray[np.uint8]) -> None:
    """memcpy of as many bytes."""
    out = np.empty_like(data)
    benchmark(np.copyto, out, data)
    _rate(benchmark, LENGTH)
    assert np.array_equal(out, data)


def test_zlib(benchmark: Any, data: NDArray[np.uint8]) -> None:
    """The CRC that every Python has."""
    benchmark(zlib.crc32, data)
    _rate(benchmark, LENGTH)
