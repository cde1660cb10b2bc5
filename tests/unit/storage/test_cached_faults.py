"""The cache when something goes wrong, or somebody does not go on: right bytes all the same, and no hang."""

from __future__ import annotations

import fcntl
import gc
import logging
import os
import random
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shufflestore.storage import cache_files
from shufflestore.storage.base import READ
from shufflestore.storage.cache_blocks import SOUND, reads_of_blocks
from shufflestore.storage.cache_files import CacheFolder
from shufflestore.storage.cache_filler import Fill
from shufflestore.storage.cache_room import described
from shufflestore.storage.cached import CachedStore
from shufflestore.storage.posix import PosixStore
from tests.scenes import child_code, files_of
from tests.unit.storage.test_cached import BLOCK, DATA, SIZES, read, right

EVERYWHERE = [(name, at, min(90, SIZES[name] - at)) for name in SIZES for at in range(0, SIZES[name], 450)]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return files_of(tmp_path / "source", DATA)


@pytest.fixture
def opened(source: Path, tmp_path: Path) -> Iterator[Callable[..., CachedStore]]:
    """Opens the cache of a place, again and again."""
    stores: list[CachedStore] = []

    def open_(limit: int | None = None, inner: PosixStore | None = None, uri: str = "") -> CachedStore:
        inner = inner or PosixStore(source)
        inner.uri = uri or inner.uri
        stores.append(CachedStore(inner, tmp_path / "cache", limit, block_bytes=BLOCK))
        return stores[-1]

    yield open_
    for store in stores:
        store.close()


def submit(store: CachedStore, offsets: list[int], flow: Any = None, size: int = 10) -> list[Any]:
    """A batch for each offset in "a"."""
    reads = np.zeros(len(offsets), READ)
    reads["file"], reads["offset"], reads["size"] = store.handle("a", SIZES["a"]), offsets, size
    ends = np.arange(1, len(reads) + 1, dtype=np.uint64)
    return list(store.submit(reads, ends, np.full((len(reads), 1), size, np.uint64), flow))


def taken(pending: Any) -> bytes:
    assert pending.wait(20)
    assert pending.failure() is None
    out: bytes = pending.take()[0].tobytes()
    return out


class Failing(PosixStore):
    """Loses the first batches that it is asked for."""

    lost = 1

    def submit(self, reads: Any, ends: Any, output_sizes: Any, flow: Any = None) -> Any:
        made = super().submit(reads, ends, output_sizes, flow)
        if self.lost:
            self.lost -= 1
            for pending in made:
                pending.cancel()
        return made


def test_a_batch_that_waits_for_blocks_of_another_gets_its_bytes_though_they_never_come(source: Path, opened: Any):
    store = opened(inner=Failing(source))
    first, second = submit(store, [5, 50])
    assert taken(second) == DATA["a"][50:60].tobytes(), "not the zeros of a sparse file"
    assert taken(first) == DATA["a"][5:15].tobytes()
    assert store.files.kept_bytes == 0, "the room is given back"


def test_a_batch_that_waits_for_blocks_of_one_that_was_cancelled_gets_its_bytes(opened: Any):
    first, second = submit(opened(), [5, 50])
    first.cancel()
    assert taken(second) == DATA["a"][50:60].tobytes()
    assert first.wait(20)


@pytest.mark.parametrize("is_dropped", [False, True])
def test_a_stream_that_nobody_reads_holds_up_no_other(opened: Any, is_dropped: bool):
    store = opened()
    kept, other = store.flow(20), store.flow(20)
    waiting = submit(store, list(range(0, 20_000, 1_000)), kept)
    assert taken(waiting[0]) == DATA["a"][:10].tobytes()
    if is_dropped:
        del waiting, kept
        gc.collect()
    (another,) = submit(store, [24_000], other)
    assert taken(another) == DATA["a"][24_000:24_010].tobytes()
    if not is_dropped:
        assert [taken(one) for one in waiting[1:]] == [
            DATA["a"][o : o + 10].tobytes() for o in range(1_000, 20_000, 1_000)
        ]


def test_batches_that_the_garbage_collector_takes_give_their_room_back(opened: Any):
    store = opened()
    flow = store.flow(40)
    flying = submit(store, list(range(0, 20_000, 1_000)), flow)
    for i in range(0, len(flying), 2):
        flying[i] = None
    gc.collect()
    for i in range(1, len(flying), 2):
        assert taken(flying[i]) == DATA["a"][1_000 * i : 1_000 * i + 10].tobytes()
    del flying
    gc.collect()
    flow.settle()
    assert flow.used_bytes == 0


def test_no_more_is_ahead_than_was_allowed(opened: Any):
    store = opened()
    for _ in range(2):  # first as blocks come, then from local files
        flow = store.flow(400)
        flying = submit(store, list(range(0, 25_000, 100)), flow, size=50)
        for i, pending in enumerate(flying):
            assert taken(pending) == DATA["a"][100 * i : 100 * i + 50].tobytes()
            assert flow.used_bytes <= flow.budget_bytes == 400


def test_close_ends_batches_that_wait_for_blocks_or_for_room(opened: Any):
    store = opened()
    flying = submit(store, list(range(0, 20_000, 1_000)), store.flow(20))
    store.close()
    for pending in flying:
        assert pending.wait(20)
        failure = pending.failure()
        assert failure is None or failure.kind == "closed"


def test_of_a_cache_of_half_the_size_half_of_the_reads_come(source: Path, opened: Any):
    counts = []
    store = opened(limit=13 * BLOCK)
    order = np.random.default_rng(0).permutation(253)
    for _ in range(3):
        before = store.counters()
        for batch in np.array_split(order, 10):
            spans = [("a", 100 * int(i), 100) for i in batch]
            assert read(store, spans) == right(spans)
        counts.append({name: value - before.get(name, 0) for name, value in store.counters().items()})
    for later in counts[1:]:
        assert (later["cache_hits"], later["cache_misses"], later["cache_passed"]) == (130, 0, 123)


def test_objects_take_no_descriptors(opened: Any):
    store = opened()
    before = len(os.listdir("/proc/self/fd"))
    for i in range(3_000):
        store.handle(f"object-{i}", 10**6)
    read(store, [("a", 0, 10)])
    assert len(os.listdir("/proc/self/fd")) < before + 20


def test_a_store_that_was_never_closed_lets_its_place_go(source: Path, tmp_path: Path):
    store = CachedStore(PosixStore(source), tmp_path / "cache", None, block_bytes=BLOCK)
    read(store, [("a", 0, 10)])
    assert [one["in_use"] for one in described(tmp_path / "cache")] == [True]
    store._filler.stop()  # whose thread holds the store for a second more
    del store
    gc.collect()
    assert [one["in_use"] for one in described(tmp_path / "cache")] == [False]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_folder_that_cannot_be_written_to_serves_what_it_has(opened: Any, tmp_path: Path, is_damaged: bool):
    read(store := opened(), [("a", 0, 10)])
    store.close()
    if is_damaged:
        (path,) = (p for p in store.files.folder.glob("*.blocks") if p.stat().st_size)
        path.write_bytes(bytes(SIZES["a"]))
    cache = os.fspath(tmp_path / "cache")
    subprocess.run(["mount", "--bind", cache, cache], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", cache], check=True)
        before = described(tmp_path / "cache")
        store = opened()
        for checked in (True, False):
            spans = [("a", 5, 10), ("a", 9_000, 10), ("b", 0, 4_000)]
            assert read(store, spans, checked) == right(spans)
        assert store.read("b") == DATA["b"].tobytes()
        assert (store.counters()["cache_hits"] > 0) is True
        store.close()
        assert described(tmp_path / "cache") == before
    finally:
        subprocess.run(["umount", "-l", cache], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
@pytest.mark.parametrize("pages", [1, 2, 3, 4, 6, 9])
def test_a_disk_that_is_full_at_any_size_ends_the_keeping_and_not_the_reading(
    source: Path, tmp_path: Path, pages: int, caplog: pytest.LogCaptureFixture
):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={4 * pages}k", "none", os.fspath(disk)], check=True)
    try:
        with caplog.at_level(logging.WARNING, "shufflestore"):
            store = CachedStore(PosixStore(source), disk / "cache", None, block_bytes=BLOCK)
            for _ in range(2):
                for i in range(0, len(EVERYWHERE), 5):
                    assert read(store, EVERYWHERE[i : i + 5]) == right(EVERYWHERE[i : i + 5])
                assert store.read("b") == DATA["b"].tobytes()
            store.close()
        assert [r.getMessage().partition(": ")[2] for r in caplog.records] == [
            "nothing more is kept here (No space left on device); reading goes on without"
        ]
        subprocess.run(["mount", "-o", "remount,size=1m", os.fspath(disk)], check=True)
        for _ in range(2):
            store = CachedStore(PosixStore(source), disk / "cache", None, block_bytes=BLOCK)
            assert read(store, EVERYWHERE, checked=False) == right(EVERYWHERE)
            store.close()
        assert store.counters()["cache_hits"] == len(EVERYWHERE)
    finally:
        subprocess.run(["umount", "-l", os.fspath(disk)], check=True)


def test_a_limit_that_was_lowered_holds_from_the_next_opening_on(opened: Any):
    read(store := opened(), EVERYWHERE)
    store.close()
    assert store.files.kept_bytes > 20 * BLOCK
    store = opened(limit=7 * BLOCK)
    assert store.files.kept_bytes == 7 * BLOCK
    assert sum(p.stat().st_blocks * 512 for p in store.files.folder.glob("*.blocks")) <= 7 * BLOCK + 3 * 4096
    assert read(store, EVERYWHERE, checked=False) == right(EVERYWHERE)
    assert store.counters()["cache_hits"] > 0
    store.close()


def test_no_more_is_removed_of_another_place_than_is_needed(opened: Any):
    read(old := opened(limit=10 * BLOCK, uri="old"), [("a", i * BLOCK, 10) for i in range(8)])
    old.close()
    read(new := opened(limit=10 * BLOCK, uri="new"), [("a", i * BLOCK, 10) for i in range(5)])
    assert {one["place"]: one["bytes"] for one in described(new.files.root)} == {"new": 5 * BLOCK, "old": 5 * BLOCK}
    new.close()
    old = opened(limit=10 * BLOCK, uri="old")
    spans = [("a", i * BLOCK, 10) for i in range(8)]
    assert read(old, spans, checked=False) == right(spans)


def test_a_sum_that_is_damaged_is_counted_anew(opened: Any):
    read(store := opened(limit=9 * BLOCK), EVERYWHERE)
    kept = store.files.kept_bytes
    store.close()
    for damage in (b"", b"\xff" * 8, b"\x01"):
        (store.files.root / "kept-bytes").write_bytes(damage)
        store = opened(limit=9 * BLOCK)
        assert store.files.kept_bytes == kept
        store.close()


def test_a_process_that_stopped_while_it_held_the_sum_holds_up_nobody(opened: Any, monkeypatch: pytest.MonkeyPatch):
    store = opened()
    monkeypatch.setattr(cache_files, "_ENTER_SECONDS", 0.2)
    with open(store.files.root / "kept-bytes", "rb") as sum_:
        fcntl.flock(sum_, fcntl.LOCK_EX)
        spans = [("a", 10, 10), ("a", 3_000, 10)]
        assert read(store, spans) == right(spans)
        assert store.counters()["cache_passed"] == 2
        assert read(opened(), spans) == right(spans), "nor one that opens the cache now"
    assert store.files.is_open


def test_threads_that_make_one_folder_at_once_all_get_it(tmp_path: Path):
    for turn in range(20):
        start, made = threading.Barrier(8), []

        def enter(root: Path = tmp_path / f"cache-{turn}", start: Any = start, made: Any = made) -> None:
            start.wait(20)
            made.append(CacheFolder(root, "place", None, BLOCK))

        threads = [threading.Thread(target=enter) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(made) == 8
        for folder in made:
            folder.close()


def test_snapshots_are_asked_for_anew_since_their_names_are_numbers(source: Path, opened: Any):
    (source / "snapshots").mkdir()
    for text in (b"first", b"written anew"):
        (source / "snapshots/0000000001.json").write_bytes(text)
        assert opened().read("snapshots/0000000001.json") == text


@pytest.mark.parametrize("checked", [True, False])
def test_bits_that_flip_anywhere_in_the_local_files_reach_nobody(opened: Any, checked: bool):
    r = random.Random(int(checked))
    for _ in range(60):
        store = opened()
        assert read(store, EVERYWHERE, checked) == right(EVERYWHERE)
        assert store.read("b") == DATA["b"].tobytes()
        store.close()
        files = [p for p in store.files.root.rglob("*") if p.is_file() and p.stat().st_size]
        path = r.choice([p for p in files if p.suffix in (".blocks", ".map", ".whole")] * 9 + files)
        data = bytearray(path.read_bytes())
        if r.random() < 0.2:
            del data[r.randrange(len(data)) :]
        else:
            at = r.randrange(len(data))
            data[at : at + 8] = bytes(b ^ 1 << r.randrange(8) for b in data[at : at + 8])
        path.write_bytes(data)


def test_children_forked_while_blocks_come_read_on(opened: Any):
    store = opened()
    flow = store.flow(200)
    flying = submit(store, list(range(0, 25_000, 50)), flow)
    for turn in range(8):
        at = 1_000 * turn + 7

        def work(at: int = at) -> None:
            assert read(store, [("a", at, 10), ("b", 10, 50)]) == right([("a", at, 10), ("b", 10, 50)])
            flying.clear()  # the parent's, which must not wait for the parent's locks
            gc.collect()

        assert child_code(work, 20) == 0
        assert taken(flying[turn]) == DATA["a"][50 * turn : 50 * turn + 10].tobytes()


def test_a_block_that_comes_twice_stays_known_as_sound(opened: Callable[..., CachedStore]):
    store = opened()
    assert read(store, [("a", 5, 10)], checked=False) == right([("a", 5, 10)])
    assert store.blocks.of(0)[0] == SOUND
    reads, ranges = reads_of_blocks([(0, 0)], [SIZES["a"]], BLOCK)
    again = store.read_through(reads, np.array([BLOCK], np.uint64), None)
    assert again.wait(30)
    assert store.files.take(1, BLOCK) == 1
    store._keep(Fill(lambda: None, None, again, [0], ranges))
    assert store.blocks.of(0)[0] == SOUND
    assert store.files.kept_bytes == BLOCK
