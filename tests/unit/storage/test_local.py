"""How the local store chooses its engine, its threads and its files."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shufflestore import _native
from shufflestore.errors import EngineUnavailable, OptionError
from shufflestore.storage import local
from shufflestore.storage.base import READ, UNKNOWN_SIZE
from shufflestore.storage.local import LocalStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(bytes(100))
    return tmp_path


def read_some(store: LocalStore, name: str = "a", size: int = 100) -> None:
    reads = np.zeros(1, READ)
    reads["file"], reads["size"] = store.handle(name, size), 10
    (pending,) = store.submit(reads, np.array([1], np.uint64), np.array([[10]], np.uint64))
    assert pending.wait(60.0)
    assert pending.failure() is None


def test_small_data_is_mapped_and_large_data_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "available_bytes", lambda: 1_000)
    small, large = LocalStore(folder), LocalStore(folder)
    read_some(small)
    large.handle("b", 500)
    read_some(large)
    assert (small.engine, large.engine) == ("mmap", "io_uring")
    assert "fits" in small.engine_reason
    assert "does not fit" in large.engine_reason
    assert "600 bytes" in large.engine_reason


def test_data_that_outgrows_the_memory_is_read_from_then_on(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(local, "available_bytes", lambda: 1_000)
    store = LocalStore(folder)
    read_some(store)
    assert store.engine == "mmap"
    store.handle("b", 900)
    store.handle("c", UNKNOWN_SIZE)
    read_some(store)
    assert store.engine == "io_uring"
    assert store.counters()["batches"] == 2
    store.close()


def test_the_choice_and_its_reason_are_logged_once(folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "shufflestore")
    store = LocalStore(folder)
    read_some(store)
    read_some(store)
    (record,) = caplog.records
    assert store.engine in record.getMessage()
    assert store.engine_reason in record.getMessage()


def test_a_forked_child_reads_by_pread(folder: Path):
    store = LocalStore(folder)
    read_some(store)
    child = os.fork()
    if child == 0:
        try:
            read_some(store)
            code = 0 if store.engine == "pread" and "forked" in store.engine_reason else 1
            store.close()
        except BaseException:
            code = 2
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert store.engine == "mmap"


def test_an_engine_nobody_has_is_an_option_error(folder: Path):
    with pytest.raises(OptionError, match="warp"):
        LocalStore(folder, engine="warp")


def test_an_engine_asked_for_by_name_that_cannot_run_says_so_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(engine: str, threads: int, max_open_files: int) -> None:
        raise OSError(95, "the kernel has none", engine)

    monkeypatch.setattr(_native, "Reader", refuse)
    with pytest.raises(EngineUnavailable, match="the kernel has none"):
        LocalStore(folder, engine="mmap")


def test_nothing_starts_and_nothing_opens_before_the_first_read(folder: Path):
    before = len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))
    store = LocalStore(folder, engine="pread", threads=7)
    for i in range(1_000):
        store.handle(f"missing-{i}", UNKNOWN_SIZE)
    assert (len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))) == before
    read_some(store)
    assert len(os.listdir("/proc/self/task")) == before[0] + 7
    assert store.counters()["open_files"] == 1
    store.close()
    assert (len(os.listdir("/proc/self/task")), len(os.listdir("/proc/self/fd"))) == before


def test_without_the_native_core_the_error_says_what_to_do(folder: Path):
    code = (
        "import sys; sys.modules['shufflestore._native'] = None\n"
        "from shufflestore.storage.local import LocalStore\n"
        f"LocalStore({str(folder)!r}, engine='pread')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "EngineUnavailable" in done.stderr
    assert "PosixStore" in done.stderr
