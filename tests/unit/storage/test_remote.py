"""What is particular to object stores; what every store does is in tests/conformance/test_stores.py."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.harness.object_store import Fault, ObjectStore
from shufflestore._native import crc32c
from shufflestore.errors import DataChanged, NotFound, StorageError
from shufflestore.storage.base import HAS_CRC, READ
from shufflestore.storage.remote import RemoteStore

DATA = np.random.default_rng(1).integers(0, 256, 1_000_000, np.uint8)
PATIENCE = 30.0


@pytest.fixture(scope="module")
def running(tmp_path_factory) -> Iterator[tuple[ObjectStore, Path]]:
    root = tmp_path_factory.mktemp("root")
    (root / "bucket/pre fix").mkdir(parents=True)
    with ObjectStore(root) as server:
        yield server, root / "bucket/pre fix"


@pytest.fixture
def place(running) -> Iterator[tuple[ObjectStore, Path]]:
    server, folder = running
    (folder / "a").write_bytes(DATA.tobytes())
    server.configure(faults=(), latency_seconds=0.0)
    server.reset_counts()
    yield running
    server.configure(faults=(), latency_seconds=0.0)


@pytest.fixture
def store(place) -> Iterator[RemoteStore]:
    made = opened(place[0])
    yield made
    made.close()


def opened(server: ObjectStore, **options) -> RemoteStore:
    keys = {"endpoint": server.endpoint, "skip_signature": "true", "region": "here", "total_seconds": 10.0}
    return RemoteStore("s3://bucket/pre fix", {**keys, **options})


def submitted(store: RemoteStore, *batches: list[tuple[int, int]], flow=None, checked=(), wrong=()):
    """One pending a batch of (offset, size); the reads in `checked`, counted over all batches, have checksums, some wrong."""
    file = store.handle("a", len(DATA))
    flat = [one for batch in batches for one in batch]
    reads = np.zeros(len(flat), READ)
    reads["file"] = file
    reads["offset"], reads["size"] = ([one[i] for one in flat] for i in (0, 1))
    reads["slot"] = np.concatenate([np.cumsum([0, *(size for _, size in batch)])[:-1] for batch in batches])
    for i in {*checked, *wrong}:
        reads["flags"][i] = HAS_CRC
        reads["crc"][i] = crc32c(DATA[flat[i][0] : sum(flat[i])]) ^ (i in wrong)
    ends = np.cumsum([len(batch) for batch in batches]).astype(np.uint64)
    sizes = np.array([[sum(size for _, size in batch)] for batch in batches], np.uint64)
    return store.submit(reads, ends, sizes, flow)


def test_neighbours_are_one_request_and_those_far_apart_are_not(place, store):
    server, _ = place
    near = [(10_000 * i, 100) for i in range(8)]
    (pending,) = submitted(store, [(900_000, 50), *near, (900_050, 10)])
    assert pending.wait(PATIENCE)
    (out,) = pending.take()
    expected = np.concatenate([DATA[o : o + s] for o, s in [(900_000, 50), *near, (900_050, 10)]])
    assert np.array_equal(out, expected)
    parted = opened(server, gap_bytes=0)
    (pending,) = submitted(parted, near)
    assert pending.wait(PATIENCE)
    counts = server.counts()["requests"]
    assert counts["GET"] == 1 + 8 + 8, "one for the two that touch, and gaps that would cost a hundred times the bytes"
    assert store.counters()["bytes_delivered"] == 860
    parted.close()


def test_look_ahead_starts_batches_in_order_as_there_is_room(place, store):
    server, _ = place
    server.configure(latency_seconds=0.05)
    flow = store.flow(2_000)
    pendings = list(submitted(store, *([(1_000 * i, 1_000)] for i in range(6)), flow=flow))
    assert (flow.used_bytes, len(flow.waiting)) == (2_000, 4)
    for i, pending in enumerate(pendings[:3]):
        assert pending.wait(PATIENCE)
        assert np.array_equal(pending.take()[0], DATA[1_000 * i : 1_000 * i + 1_000])
    assert flow.used_bytes == 2_000
    assert server.counts()["requests"]["GET"] <= 5, "the last one has no room yet"
    del pendings[3:5], pending  # dropped unread, they make room
    gc.collect()
    assert pendings[-1].wait(PATIENCE)
    pendings[-1].take()
    assert (flow.used_bytes, len(flow.waiting)) == (0, 0)


def test_a_batch_larger_than_the_budget_comes_alone(store):
    flow = store.flow(10)
    for pending in submitted(store, [(0, 5_000)], [(5_000, 5_000)], flow=flow):
        assert flow.used_bytes == 5_000
        assert pending.wait(PATIENCE)
        pending.take()
    assert flow.used_bytes == 0


NEAR = [(10_000 + 100 * i, 100) for i in range(6)]
"""Reads that touch."""


def shared(data=NEAR, ends=(2, 3, 6)) -> list[list[tuple[int, int]]]:
    """Reads far from each other and near ones, dealt to batches."""
    return [[(100_000 * k, 50), *data[a:b]] for k, (a, b) in enumerate(pairwise((0, *ends)), 1)]


def test_a_range_that_several_batches_need_is_one_request(place, store):
    server, _ = place
    for flow in (None, store.flow(None)):
        server.reset_counts()
        batches = shared()
        for batch, pending in zip(batches, submitted(store, *batches, flow=flow), strict=True):
            assert pending.wait(PATIENCE)
            assert np.array_equal(pending.take()[0], np.concatenate([DATA[o : o + s] for o, s in batch]))
        assert server.counts()["requests"]["GET"] == len(batches) + 1
        assert flow is None or (flow.used_bytes, flow.outstanding) == (0, 0)
    assert store.counters()["bytes_delivered"] == 2 * (3 * 50 + 600)


def test_batches_share_ranges_only_as_far_as_the_look_ahead_starts_them_together(place, store):
    server, _ = place
    batches = [[one] for one in NEAR]
    pendings = submitted(store, *batches, flow=store.flow(800))
    for batch, pending in zip(batches, pendings, strict=True):
        assert pending.wait(PATIENCE)
        assert np.array_equal(pending.take()[0], DATA[batch[0][0] : sum(batch[0])])
    assert server.counts()["requests"]["GET"] == 3, "a quarter of the look-ahead is two of them"


@pytest.mark.parametrize("bad", range(3))
def test_a_wrong_checksum_fails_the_batch_whose_it_is(store, bad):
    batches = shared()
    first = [0, 3, 5]
    pendings = submitted(store, *batches, flow=store.flow(None), checked=range(9), wrong=[first[bad] + 1])
    for i, (batch, pending) in enumerate(zip(batches, pendings, strict=True)):
        assert pending.wait(PATIENCE)
        failure = pending.failure()
        if i == bad:
            assert failure is not None
            assert (failure.kind, failure.index) == ("checksum", 1)
        else:
            assert failure is None
            assert np.array_equal(pending.take()[0], np.concatenate([DATA[o : o + s] for o, s in batch]))


def test_a_read_beyond_the_end_fails_the_batch_whose_it_is(store):
    end = len(DATA)
    batches = [[(end - 300, 100)], [(end - 200, 100), (end - 50, 100)], [(end - 100, 100)]]
    pendings = submitted(store, *batches, flow=store.flow(None))
    assert all(pending.wait(PATIENCE) for pending in pendings)
    failure = pendings[1].failure()
    assert failure is not None
    assert (failure.kind, failure.index, failure.expected, failure.found) == ("short", 1, 100, 50)
    for i in (0, 2):
        assert np.array_equal(pendings[i].take()[0], DATA[batches[i][0][0] : sum(batches[i][0])])


def test_a_cancelled_batch_leaves_the_ranges_that_others_need(place, store):
    server, _ = place
    server.configure(latency_seconds=0.05)
    flow = store.flow(None)
    pendings = list(submitted(store, *([one] for one in NEAR), flow=flow))
    pendings[0].cancel()
    del pendings[1]
    gc.collect()
    for (offset, size), pending in zip(NEAR[2:], pendings[1:], strict=True):
        assert pending.wait(PATIENCE)
        assert np.array_equal(pending.take()[0], DATA[offset : offset + size])
    assert server.counts()["requests"]["GET"] == 1
    for pending in submitted(store, *([one] for one in NEAR), flow=flow):
        pending.cancel()
    assert store._reader().engine.schedule.in_flight == 0
    assert (flow.used_bytes, flow.outstanding) == (0, 0)


def test_an_object_that_was_replaced_is_named_at_the_next_read(place, store):
    _, folder = place
    (pending,) = submitted(store, [(0, 10)])
    assert pending.wait(PATIENCE)
    other = folder / "other"
    other.write_bytes(DATA[::-1].tobytes())
    os.replace(other, folder / "a")
    (pending,) = submitted(store, [(50, 10)])
    assert pending.wait(PATIENCE)
    failure = pending.failure()
    assert failure is not None
    assert failure.kind == "changed"
    with pytest.raises(DataChanged, match="open the data set again"):
        store.read("a")


def test_whole_objects_are_one_request_large_ones_several(place, store, monkeypatch):
    server, _ = place
    assert store.read("a") == DATA.tobytes()
    assert server.counts()["request_count"] == 1
    monkeypatch.setattr("shufflestore.storage.remote._ONE_REQUEST_BYTES", 1_000)
    parts = opened(server, most_bytes=300_000)
    assert parts.read("a") == DATA.tobytes()
    assert server.counts()["requests"] == {"GET": 1 + 1 + 4, "HEAD": 1}
    parts.close()


def test_sizes_of_many_are_asked_side_by_side_and_a_missing_one_is_no_error(place, store):
    server, folder = place
    (folder / "b").write_bytes(b"xyz")
    server.configure(latency_seconds=0.2)
    begun = time.monotonic()
    assert store.sizes(["a", "nowhere", "b"] * 10) == [len(DATA), None, 3] * 10
    assert time.monotonic() - begun < 2.0
    with pytest.raises(NotFound, match="nowhere"):
        store.size("nowhere")


def test_a_put_whose_reply_was_lost_counts_as_ours_and_another_one_does_not(place, store):
    server, folder = place
    server.configure(faults=[Fault("reply_lost", 1.0, methods=("PUT",), most=1)])
    assert store.put_if_absent("mine", b"mine")
    assert (folder / "mine").read_bytes() == b"mine"
    (folder / "theirs").write_bytes(b"theirs")
    assert not store.put_if_absent("theirs", b"mine")
    (folder / "mine").unlink()


def test_an_http_server_reads_the_same_and_says_that_it_cannot_list(place):
    server, _ = place
    store = RemoteStore(f"{server.endpoint}/bucket/pre%20fix")
    assert store.read("a", 5, 10) == DATA[5:15].tobytes()
    assert not store.can_list
    with pytest.raises(StorageError, match="HTTP server"):
        list(store.list(""))
    store.close()


def test_a_pickled_store_is_a_place_with_its_options(place):
    store = opened(place[0], max_in_flight=3)
    other = pickle.loads(pickle.dumps(store))
    store.close()
    assert (other.uri, other._options.max_in_flight) == ("s3://bucket/pre fix", 3)
    assert other.read("a", 0, 3) == DATA[:3].tobytes()
    other.close()


def test_counters_tell_requests_retries_and_bytes(place, store):
    server, _ = place
    store.handle("a", len(DATA))
    assert store.counters() == {}
    server.configure(faults=[Fault("slow_down", 1.0, most=2)])
    (pending,) = submitted(store, [(0, 100), (500_000, 200)])
    assert pending.wait(PATIENCE)
    pending.take()
    counts = store.counters()
    assert {name: counts[name] for name in ("reads", "bytes_delivered", "batches", "requests", "retries", "throttled")} == {
        "reads": 2, "bytes_delivered": 300, "batches": 1, "requests": 4, "retries": 2, "throttled": 2
    }  # fmt: skip


def test_a_program_that_ends_while_requests_are_under_way_ends_well(place):
    server, _ = place
    server.configure(latency_seconds=0.3)
    program = (
        "import sys, numpy as np; from shufflestore.storage.base import READ;"
        "from shufflestore.storage.remote import RemoteStore;"
        "store = RemoteStore('s3://bucket/pre fix', {'endpoint': sys.argv[1], 'skip_signature': 'true', 'region': 'here'});"
        "reads = np.zeros(50, READ); reads['file'] = store.handle('a', 10**6); reads['size'] = 9;"
        "reads['offset'] = np.arange(50) * 10_000;"
        "kept = store.submit(reads, np.array([50], np.uint64), np.array([[9]], np.uint64))"
    )
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", program, server.endpoint], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - begun < 20
