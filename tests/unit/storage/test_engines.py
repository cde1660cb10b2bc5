"""Which engine is chosen from what was seen, and that what is seen is so."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from shufflestore import _native
from shufflestore.storage.base import UNKNOWN_SIZE
from shufflestore.storage.engines import DIRECT_RATIO, ENGINES, Facts, choose, file_system, resident_share, threads_for

SMALL = Facts(data_bytes=400, available_bytes=1_000, resident=0.0, file_system="ext4", is_forked=False)


@pytest.mark.parametrize(
    ("facts", "engine", "reason"),
    [
        (SMALL, "mmap", "fits in half"),
        (replace(SMALL, data_bytes=500), "io_uring", "does not fit"),
        (replace(SMALL, data_bytes=900, resident=0.95), "mmap", "95% of the data is in the page cache"),
        (replace(SMALL, data_bytes=900, resident=0.94), "io_uring", "94% in the page cache"),
        (replace(SMALL, data_bytes=1_000 * DIRECT_RATIO - 1), "io_uring", "does not fit"),
        (replace(SMALL, data_bytes=1_000 * DIRECT_RATIO), "io_uring_direct", "too little to look there first"),
        (replace(SMALL, is_forked=True), "pread", "forked"),
        (replace(SMALL, file_system="nfs4"), "pread", "network file system (nfs4)"),
        (replace(SMALL, file_system="fuse.sshfs"), "pread", "fuse.sshfs"),
        (replace(SMALL, file_system="fuseblk", data_bytes=10**9), "pread", "fuseblk"),
        (replace(SMALL, data_bytes=0, available_bytes=0), "io_uring_direct", "does not fit"),
    ],
)
def test_the_choice_and_its_reason(facts: Facts, engine: str, reason: str):
    found = choose(facts)
    assert found.engine == engine
    assert reason in found.reason


def test_every_engine_has_threads_here():
    assert all(1 <= threads_for(engine) <= 1024 for engine in ENGINES)
    assert threads_for("pread") > threads_for("io_uring")


def test_residency_is_what_was_read(tmp_path: Path):
    cached, cold = tmp_path / "cached", tmp_path / "cold"
    for path in (cached, cold):
        with path.open("wb") as file:
            file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())
    with cold.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if _native.resident_bytes(str(cold)) == 1 << 20:
        pytest.skip("this file system keeps everything in memory")
    assert _native.resident_bytes(str(cached)) == 1 << 20
    assert _native.resident_bytes(str(cold)) == 0
    assert resident_share([(str(cached), 1 << 20), (str(cold), UNKNOWN_SIZE)]) == 0.5
    assert resident_share([(str(cached), UNKNOWN_SIZE), (str(tmp_path / "nobody"), 3 << 20)]) == 0.25
    with pytest.raises(FileNotFoundError, match="nobody"):
        _native.resident_bytes(str(tmp_path / "nobody"))


def test_no_file_is_no_residency():
    assert resident_share([]) == 0.0


def test_the_file_system_is_the_one_that_covers_the_folder():
    assert file_system("/proc/self") == "proc"
    assert file_system("/sys") == "sysfs"
    assert file_system("/no/such/folder") == file_system("/")
