"""(b) of the reliability plan, for the cache: killed at any moment, or cut off from power, it never serves a wrong byte."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shufflestore._native import crc32c
from shufflestore.storage.base import HAS_CRC, READ
from shufflestore.storage.cache_room import described
from shufflestore.storage.cached import CachedStore
from shufflestore.storage.posix import PosixStore
from tests.scenes import SCALE, files_of

BLOCK = 4_096
SIZES = {"a": 600_001, "b": 90_000}
DATA = {name: np.random.default_rng(i).integers(1, 256, size, np.uint8) for i, (name, size) in enumerate(SIZES.items())}
"""Without zeros, so that a hole in a sparse file is never right by chance."""
LIMIT = 120 * BLOCK


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return files_of(tmp_path / "source", DATA)


def opened(source: Path, cache: Path, limit: int | None = LIMIT) -> CachedStore:
    return CachedStore(PosixStore(source), cache, limit, block_bytes=BLOCK)


def check(store: CachedStore, spans: list[tuple[str, int, int]], checked: bool) -> None:
    """Read spans as one batch and hold them against the source."""
    reads = np.zeros(len(spans), READ)
    parts = []
    for i, (name, offset, size) in enumerate(spans):
        part = DATA[name][offset : offset + size]
        reads[i]["file"], reads[i]["offset"], reads[i]["size"] = store.handle(name, SIZES[name]), offset, size
        reads[i]["slot"] = sum(map(len, parts))
        if checked:
            reads[i]["crc"], reads[i]["flags"] = crc32c(part.tobytes()), HAS_CRC
        parts.append(part)
    total = sum(map(len, parts))
    (pending,) = store.submit(reads, np.array([len(reads)], np.uint64), np.array([[total]], np.uint64))
    assert pending.wait(60)
    assert pending.failure() is None, pending.failure()
    assert np.array_equal(pending.take()[0], np.concatenate(parts))


def everything(store: CachedStore, checked: bool) -> None:
    check(
        store,
        [(name, at, min(900, SIZES[name] - at)) for name in SIZES for at in range(0, SIZES[name], 2_048)],
        checked,
    )


def some(r: random.Random) -> list[tuple[str, int, int]]:
    names = r.choices(list(SIZES), k=12)
    return [(name, at := r.randrange(SIZES[name]), min(r.randrange(1, 9_000), SIZES[name] - at)) for name in names]


def spawn(work: Callable[[], None]) -> int:
    """Fork a child that works until it is done or killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads, which is what is meant here
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def ended(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def check_after(source: Path, cache: Path, checked: bool) -> None:
    """Assert that what was left serves right bytes, is counted right and within its bound, and leaves nothing behind."""
    store = opened(source, cache)
    (one,) = described(cache)
    assert store.files.kept_bytes == one["bytes"] <= LIMIT
    everything(store, checked)
    assert store.read("b") == DATA["b"].tobytes()
    assert store.files.kept_bytes <= LIMIT
    store.close()
    assert not list(cache.rglob("*.part"))


def kill_at_random(source: Path, cache: Path, times: int, seed: int) -> int:
    """Kill 1 to 4 processes that share a cache after a random time, again and again; return how many were at work."""
    r = random.Random(seed)
    killed = 0
    for turn in range(times):
        if turn % 10 == 0:
            shutil.rmtree(cache, ignore_errors=True)

        def work(own: int = r.randrange(2**30), checked: bool = bool(turn % 2)) -> None:
            mine = random.Random(own)
            store = opened(source, cache)
            while True:
                check(store, some(mine), checked)
                store.read(mine.choice(list(SIZES)))

        children = [spawn(work) for _ in range(r.choice([1, 1, 2, 4]))]
        time.sleep(r.uniform(0.0, 0.08))
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            assert ended(child) == -signal.SIGKILL, "wrong bytes, or an error"
        killed += sum(1 for _ in children)
        if cache.exists():
            check_after(source, cache, checked=bool(turn % 3))
    return killed


@pytest.mark.serial
def test_processes_killed_at_50_random_moments_leave_a_cache_that_serves_right_bytes(source: Path, tmp_path: Path):
    assert kill_at_random(source, tmp_path / "cache", 50, seed=0) >= 50


@pytest.mark.campaign
@pytest.mark.serial
def test_processes_killed_at_many_random_moments(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    times = int(1_000 * SCALE)
    killed = kill_at_random(source, tmp_path / "cache", times, seed=1)
    with capsys.disabled():
        print(f"\ncache: {killed:,} processes killed at {times:,} random moments, 0 wrong bytes")


CALLS = (
    "open",
    "pwrite",
    "ftruncate",
    "posix_fallocate",
    "fsync",
    "mkdir",
    "rename",
    "unlink",
    "rmdir",
    "utime",
    "truncate",
)


def die_at(number: int, halfway: bool) -> None:
    """Have this process killed at its n-th call that may change the disk; of a write, after half of it."""
    count = 0

    def wrapped(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                if halfway and name == "pwrite" and len(args[1]) > 1:
                    call(args[0], args[1][: len(args[1]) // 2], args[2])
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **keywords)

        return around

    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


def small_fill(source: Path, cache: Path) -> None:
    store = opened(source, cache)
    check(store, [("a", 10, 9_000), ("b", 0, 100), ("a", 590_000, 10_001)], checked=True)
    check(store, [("a", 50_000, 10)], checked=False)
    store.read("b")
    store.close()


@pytest.mark.parametrize("halfway", [False, True])
def test_a_process_killed_at_any_call_that_changes_the_disk(source: Path, tmp_path: Path, halfway: bool):
    cache = tmp_path / "cache"
    for number in range(1, 200):
        shutil.rmtree(cache, ignore_errors=True)

        def work(number: int = number) -> None:
            die_at(number, halfway)
            small_fill(source, cache)

        code = ended(spawn(work))
        if cache.exists():
            check_after(source, cache, checked=bool(number % 2))
        if code == 0:
            assert number > 30, "there were that many calls"
            return
        assert code == -signal.SIGKILL
    raise AssertionError("the work never came to its end")


def cut_power(made: Path, target: Path, r: random.Random) -> None:
    """Make what a disk may hold after a power cut: of each file some pages, never written ones zero, names lost at will."""
    shutil.rmtree(target, ignore_errors=True)
    for path in sorted(made.rglob("*")):
        if path.is_dir() or (path.name != "shufflestore-cache" and r.random() < 0.1):
            continue
        data = bytearray(path.read_bytes())
        if path.name != "shufflestore-cache":  # synced when it was made
            grain = r.choice([512, 4_096, 65_536])
            for at in range(0, len(data), grain):
                if r.random() < 0.4:
                    data[at : at + grain] = bytes(len(data[at : at + grain]))
            if r.random() < 0.2:
                del data[r.randrange(len(data) + 1) :]
        to = target / path.relative_to(made)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_bytes(data)


@pytest.mark.parametrize("checked", [True, False])
def test_a_cache_that_lost_power_serves_right_bytes(source: Path, tmp_path: Path, checked: bool):
    made = tmp_path / "made"
    store = opened(source, made)
    for _ in range(10):
        check(store, some(random.Random(3)), checked=True)
    everything(store, checked=True)
    store.read("b")
    store.close()
    r = random.Random(int(checked))
    for _ in range(int(40 * SCALE)):
        cut_power(made, tmp_path / "cut", r)
        check_after(source, tmp_path / "cut", checked)


@pytest.mark.serial
def test_eight_processes_share_one_cache_its_bytes_and_its_bound(source: Path, tmp_path: Path):
    cache = tmp_path / "cache"

    def work(own: int) -> None:
        r = random.Random(own)
        store = opened(source, cache)
        for turn in range(40):
            check(store, some(r), checked=bool((own + turn) % 2))
        store.close()

    children = {spawn(lambda i=i: work(i)) for i in range(8)}  # type: ignore[misc]
    most = 0
    while children:
        blocks = [path.stat().st_blocks * 512 for path in cache.glob("*/*.blocks")]
        most = max(most, sum(blocks))
        child, status = os.waitpid(-1, os.WNOHANG)
        if child:
            children.discard(child)
            assert os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    assert LIMIT // 2 < most <= LIMIT
    check_after(source, cache, checked=False)
