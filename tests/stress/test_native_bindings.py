"""The native module as Python sees it: what it refuses, what it owns, how long it holds the GIL."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from shufflestore import _native
from shufflestore.storage.base import READ

DATA = np.random.default_rng(3).integers(0, 256, 100_000, np.uint8)


@pytest.fixture
def reader(tmp_path: Path):
    (tmp_path / "a").write_bytes(DATA.tobytes())
    made = _native.Reader("mmap", 2)
    assert made.add(str(tmp_path / "a"), len(DATA)) == 0
    yield made
    made.close()


def rows(count: int, size: int) -> np.ndarray:
    reads = np.zeros(count, READ)
    reads["size"] = size
    reads["slot"] = np.arange(count) * size
    return reads.view(np.uint64).reshape(-1, 5)


def one(reader: _native.Reader, count: int, size: int) -> _native.Pending:
    return reader.submit(rows(count, size), np.array([count], np.uint64), np.array([[count * size]], np.uint64))[0]


def test_the_committed_stub_is_what_the_module_has(tmp_path: Path):
    pytest.importorskip("nanobind")
    made = tmp_path / "stub.pyi"
    command = [sys.executable, "-m", "nanobind.stubgen", "-q", "-m", "shufflestore._native", "-o", str(made)]
    subprocess.run(command, check=True, timeout=60)
    committed = Path(__file__).parents[2] / "shufflestore" / "_native.pyi"
    assert made.read_text() == committed.read_text(), f"run: {' '.join(command[:-1])} {committed}"


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((2, 5), np.int64), np.zeros((2, 5), np.float64), np.zeros((2, 10), np.uint64)[:, ::2],
        np.zeros((2, 4), np.uint64), np.zeros(10, np.uint64), [[0] * 5],
    ],
    ids=lambda wrong: str(getattr(wrong, "dtype", "list")) + str(np.shape(wrong)),
)  # fmt: skip
def test_no_array_is_converted(reader: _native.Reader, wrong: object):
    with pytest.raises(TypeError):
        reader.submit(wrong, np.array([2], np.uint64), np.array([[9]], np.uint64))


def test_outputs_of_the_checksum_calls_are_not_converted_either():
    offsets, sizes = np.array([0, 0], np.uint64), np.array([5, 5], np.uint64)
    out = np.zeros(2, np.uint32)
    read_only = np.zeros(2, np.uint32)
    read_only.flags.writeable = False
    for wrong in (np.zeros(2, np.int64), np.zeros(4, np.uint32)[::2], read_only):
        with pytest.raises(TypeError):
            _native.crc32c_spans(DATA, offsets, sizes, wrong)
    _native.crc32c_spans(DATA, offsets, sizes, out)
    assert (
        out[0] == _native.crc32c(DATA[:5]) == _native.crc32c(DATA[:5].tobytes()) == _native.crc32c(memoryview(DATA)[:5])
    )
    with pytest.raises(ValueError, match="span 0"):
        _native.crc32c_spans(DATA, np.array([2**64 - 1, 0], np.uint64), sizes, out)
    with pytest.raises(ValueError, match="room"):
        _native.gather_limit(DATA, offsets, sizes, np.zeros(4, np.uint8))


def test_the_yardsticks_do_what_they_say():
    offsets, sizes = np.array([5, 1], np.uint64), np.array([10, 6_000], np.uint64)
    out, wide = np.zeros(6_010, np.uint8), np.zeros(3_005, np.int64)
    _native.gather_limit(DATA, offsets, sizes, out)
    _native.widen_limit(DATA, offsets, sizes, wide)
    spans = np.concatenate([DATA[5:15], DATA[1:6_001]])
    assert np.array_equal(out, spans)
    assert np.array_equal(wide, spans.view("<u2").astype(np.int64))
    assert _native.crc32c_chain(DATA, offsets, sizes) == _native.crc32c(spans)


def test_an_array_keeps_its_block_and_gives_it_back(reader: _native.Reader):
    pending = one(reader, 1_000, 3_000)
    assert pending.wait(60.0)
    (out,) = pending.take()
    view = out[1_000:2_000]
    expected = view.copy()
    del pending, out
    gc.collect()
    others = [one(reader, 1_000, 3_000) for _ in range(5)]
    assert all(other.wait(60.0) for other in others)
    assert np.array_equal(view, expected)
    resident = Path("/proc/self/statm").read_text().split()[1]
    for _ in range(300):
        pending = one(reader, 1_000, 3_000)
        assert pending.wait(60.0)
        pending.take()
    grown = (int(Path("/proc/self/statm").read_text().split()[1]) - int(resident)) * 4_096
    assert grown < 100e6, "300 batches of 3 MB were dropped, and the memory stayed"


def test_a_missing_file_of_the_constructor_and_bad_values_are_pythons_own_errors():
    with pytest.raises(ValueError, match="warp"):
        _native.Reader("warp", 1)
    with pytest.raises(ValueError, match="threads"):
        _native.Reader("mmap", 0)
    with pytest.raises(TypeError):
        _native.Reader("mmap", -1)


def test_waiting_lets_other_threads_run(tmp_path: Path):
    """A reader of a pipe that nobody writes waits for ever; the GIL must be free meanwhile."""
    reader = _native.Reader("pread", 1)
    reader.add("/dev/zero", 2**64 - 1)
    slow = one(reader, 1, 3_000_000_000)
    ran = threading.Event()
    threading.Thread(target=ran.set).start()
    begin = time.monotonic()
    slow.wait(0.2)
    assert ran.is_set()
    assert time.monotonic() - begin < 5
    slow.cancel()
    reader.close()


def test_nan_is_no_timeout(reader: _native.Reader):
    pending = one(reader, 10, 10)
    with pytest.raises(ValueError, match="NaN"):
        pending.wait(float("nan"))
    assert pending.wait(float("inf"))
    assert pending.wait(-1.0)


def test_the_checksum_kernel_can_be_named_and_gives_the_same_checksums():
    program = (
        "from shufflestore import _native; print(_native.cpu_features()[-1], _native.crc32c(bytes(range(256)) * 9))"
    )
    told = {}
    for name in ("portable", "sse42", "fold512", "nonsense"):
        environment = os.environ | {"SHUFFLESTORE_CRC32C": name}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        told[name] = done.stdout.split()
    assert told["portable"][0] == "crc32c:portable"
    assert len({crc for _, crc in told.values()}) == 1
