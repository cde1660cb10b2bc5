"""Every kind of store over the files of one folder, and how tests read through them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from shufflestore.storage.base import READ, ReadFailure, Store
from shufflestore.storage.cached import CachedStore
from shufflestore.storage.local import LocalStore
from shufflestore.storage.posix import PosixStore
from shufflestore.storage.remote import RemoteStore

STORES: dict[str, Callable[[Path], Store]] = {
    "posix": PosixStore,
    "mmap": functools.partial(LocalStore, engine="mmap"),
    "mmap-1": functools.partial(LocalStore, engine="mmap", threads=1),
    "pread": functools.partial(LocalStore, engine="pread"),
    "pread-2-files": functools.partial(LocalStore, engine="pread", threads=3, max_open_files=2),
    "io_uring": functools.partial(LocalStore, engine="io_uring"),
    "io_uring-2-files": functools.partial(LocalStore, engine="io_uring", threads=2, max_open_files=2),
    "io_uring_direct": functools.partial(LocalStore, engine="io_uring_direct"),
    "auto": LocalStore,
    "cached": lambda folder: CachedStore(PosixStore(folder), f"{folder}-cache", None, block_bytes=1_000),
    "cached-small": lambda folder: CachedStore(LocalStore(folder), f"{folder}-cache", 9_000, block_bytes=4_096),
}
REMOTE = ("s3", "http")
"""Read from a server on loopback that serves the folder."""
PATIENCE_SECONDS = 60.0
SIZES = {"a": 70_000, "deep/b": 5_000, "c": 1}


def bytes_of(name: str) -> np.ndarray:
    return np.random.default_rng(len(name)).integers(0, 256, SIZES[name], np.uint8)


def crc32c(data: bytes) -> int:
    """The definition, bit by bit."""
    state = 0xFFFFFFFF
    for byte in data:
        state ^= byte
        for _ in range(8):
            state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
    return state ^ 0xFFFFFFFF


def made_store(kind: str, folder: Path, request: pytest.FixtureRequest) -> Store:
    if kind not in REMOTE:
        return STORES[kind](folder)
    endpoint = request.getfixturevalue("endpoint")
    if kind == "http":
        return RemoteStore(f"{endpoint}/{folder.name}")
    return RemoteStore(f"s3://{folder.name}", {"endpoint": endpoint, "skip_signature": "true", "region": "here"})


def reads_of(*rows: dict[str, int]) -> np.ndarray:
    reads = np.zeros(len(rows), READ)
    for i, row in enumerate(rows):
        for field, value in row.items():
            reads[i][field] = value
    return reads


def words(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def submit_one(store: Store, reads: np.ndarray, *sizes: int):
    (pending,) = store.submit(reads, words(len(reads)), words(*sizes).reshape(1, -1))
    return pending


def taken(pending) -> list[np.ndarray]:
    assert pending.wait(PATIENCE_SECONDS)
    assert pending.failure() is None
    return pending.take()


def failure_of(pending) -> ReadFailure:
    assert pending.wait(PATIENCE_SECONDS)
    failure = pending.failure()
    assert failure is not None
    return failure
