"""A faulty object store costs time, never data; what stays broken is a named error within its deadline.

Of every kind of fault a hundred requests here; the campaigns have the rates, seeds and sizes of the figures, and an
outage of a minute. The same rules in simulated time: tests/unit/storage/test_remote_requests.py.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import shufflestore as ss
from benchmarks.harness.object_store import FAULTS, Fault, ObjectStore
from shufflestore.errors import CorruptData, DataChanged, NotFound, ShuffleStoreError, StorageError
from shufflestore.storage.remote import RemoteStore
from tests.served import BUCKET, PREFIX, converted, data_requests, epoch, keys, opened

RECORDS = 96
NEVER_READING = {"commit_409", "commit_412", "reply_lost", "stale_list"}
"""Faults that meet writes and listings."""
NEVER_OVER = {"other_version", "expired_token", "missing_once"}
"""Faults that mean something when they are repeated: their own tests are below."""
PASSING = sorted(set(FAULTS) - NEVER_READING - NEVER_OVER)
QUICK = {"stall_seconds": 0.3, "drip_bytes_per_second": 2_000.0}
SCALE = int(os.environ.get("SHUFFLESTORE_SCALE", "1"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    converted(root, RECORDS)
    return root


@pytest.fixture(scope="module")
def running(root: Path) -> Iterator[ObjectStore]:
    with ObjectStore(root, **QUICK) as server:
        yield server


@pytest.fixture
def server(running: ObjectStore) -> Iterator[ObjectStore]:
    running.configure(faults=(), tail=None, latency_seconds=0.0, seed=0)
    yield running
    running.configure(faults=())


@pytest.fixture(scope="module")
def expected(root: Path) -> list[list[dict]]:
    """The epoch as the same files give it from the disk."""
    with ss.open(root / BUCKET / PREFIX) as data:
        return [batch.to_pylist() for batch in epoch(data)]


@pytest.fixture(scope="module")
def needed(running: ObjectStore) -> int:
    """GETs of an epoch from a sound store, its opening included."""
    running.configure(faults=())
    running.reset_counts()
    with opened(running, hedge=False) as data:
        for _ in epoch(data):
            pass
    return data_requests(running)


# -- faults that pass ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PASSING)
def test_an_epoch_is_exact_whatever_befalls_one_request_in_five(server, expected, kind):
    rate = {"flipped_bit": 0.02, "drip": 0.05, "stall": 0.05}.get(
        kind, 0.2
    )  # a bit is flipped twice in a row: no accident
    server.configure(faults=[Fault(kind, rate, methods=("GET",), suffix=".arrow")])
    server.reset_counts()
    with opened(server, read_seconds=5.0) as data:
        assert [batch.to_pylist() for batch in epoch(data)] == expected
    assert server.counts()["faults"][kind] > 0


@pytest.mark.parametrize(("rate", "most"), [(0.05, 1.1), (0.2, 1.35)])
def test_mixed_faults_cost_few_requests_more_and_no_record(server, expected, needed, rate, most):
    kinds = ("slow_down", "reset_before_headers", "short_body", "wrong_range")
    server.configure(faults={kind: rate / len(kinds) for kind in kinds})
    server.reset_counts()
    with opened(server, hedge=False) as data:
        assert [batch.to_pylist() for batch in epoch(data)] == expected
        counts = data.reading.store.counters()
    asked = data_requests(server)
    assert 1 + rate / 2 < asked / needed <= most + 0.05, "a tenth of a thousand requests is not the mean of many"
    assert counts["retries"] > 0


def test_at_one_failure_in_two_the_epoch_is_exact_or_a_named_error(server, expected):
    server.configure(faults={"slow_down": 0.25, "reset_in_body": 0.25})
    begun, said = time.monotonic(), "attempts"
    try:
        with opened(server) as data:
            assert [batch.to_pylist() for batch in epoch(data)] == expected
    except StorageError as error:
        said = str(error)
    assert "attempts" in said
    assert time.monotonic() - begun < 150


def test_credentials_that_expired_once_are_renewed(server, expected):
    with opened(server) as data:
        server.configure(faults=[Fault("expired_token", 1.0, most=3, suffix=".arrow")])
        assert [batch.to_pylist() for batch in epoch(data)] == expected


def test_an_object_that_is_not_to_be_seen_yet_is_asked_for_again(server, expected):
    with opened(server) as data:
        server.configure(faults=[Fault("missing_once", 1.0, most=3, suffix=".arrow")])
        assert [batch.to_pylist() for batch in epoch(data)] == expected


# -- faults that stay ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("slow_down", StorageError, "503"),
        ("reset_before_headers", StorageError, "attempts"),
        ("expired_token", StorageError, "403"),
        ("missing_once", NotFound, "404"),
        ("flipped_bit", CorruptData, "CRC32C"),
        ("other_version", DataChanged, "replaced"),
    ],
)
def test_what_stays_broken_is_an_error_that_names_object_bytes_record_and_answer(server, kind, error, said):
    with opened(server, total_seconds=5.0) as data:
        next(epoch(data))
        server.configure(faults=[Fault(kind, 1.0, methods=("GET",), suffix=".arrow")])
        begun = time.monotonic()
        with pytest.raises(error) as raised:
            for _ in epoch(data, seed=6):
                pass
        assert time.monotonic() - begun < 15
    text = str(raised.value)
    assert said in text
    for part in (f"s3://{BUCKET}/{PREFIX}: shards/", "record ", "column ", "at bytes ["):
        assert part in text, text
    server.configure(faults=())


def test_a_store_that_answers_nothing_is_an_error_within_the_deadline(server):
    with opened(server, read_seconds=1.0, total_seconds=2.0) as data:
        next(epoch(data))
        server.configure(faults=[Fault("stall", 1.0, suffix=".arrow")], stall_seconds=60.0)
        begun = time.monotonic()
        with pytest.raises(StorageError, match=r"timed out.*attempts"):
            for _ in epoch(data, seed=6):
                pass
        assert 1.0 <= time.monotonic() - begun <= 2.0 * 1.1 + 1.0, "its first second may begin late"
    server.configure(stall_seconds=QUICK["stall_seconds"])


def test_a_server_that_takes_no_connection_is_an_error_within_the_deadline():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        fill = [socket.socket() for _ in range(4)]
        for one in fill:  # the queue is full: further connections hang
            one.setblocking(False)
            one.connect_ex(listening.getsockname())
        options = {"connect_seconds": 0.5, "total_seconds": 2.0}
        store = RemoteStore(f"http://127.0.0.1:{listening.getsockname()[1]}/x", options)
        begun = time.monotonic()
        with pytest.raises(StorageError, match="attempts"):
            store.size("a")
        assert time.monotonic() - begun <= 2.0 * 1.1 + 1.0
        store.close()
        for one in fill:
            one.close()


def replaced_mid_epoch(tmp_path: Path, seed: int, expected: list[list[dict]]) -> None:
    """One shard is exchanged while an epoch is read: what was delivered is right, and then the error has its name."""
    folder = tmp_path / BUCKET / PREFIX
    with ObjectStore(tmp_path, latency_seconds=0.002) as server:
        data = ss.open(f"s3://{BUCKET}/{PREFIX}", storage_options=keys(server, max_in_flight=4))
        store = data.reading.store
        batches = epoch(data)
        delivered = [next(batches).to_pylist() for _ in range(1 + seed % 3)]
        shards = sorted(one for one in (folder / "shards").glob("*.arrow") if f"shards/{one.name}" in store._numbers)
        victim = shards[seed % len(shards)]
        other = victim.with_name("other")
        other.write_bytes(bytes(reversed(victim.read_bytes())))
        os.replace(other, victim)
        with pytest.raises(DataChanged, match="replaced"):
            for _ in range(8):  # what was read ahead is right too
                delivered.append(next(batches, None) or next(batches := epoch(data, seed=7)))
        whole = [one if isinstance(one, list) else one.to_pylist() for one in delivered]
        assert whole[: len(expected)] == expected[: len(whole)]
        data.close()


def test_an_object_replaced_in_the_middle_of_an_epoch_is_named_and_never_mixed(tmp_path, expected):
    converted(tmp_path, RECORDS)
    replaced_mid_epoch(tmp_path, 0, expected)


# -- threads ---------------------------------------------------------------------------------------


def test_closing_while_requests_hang_ends_soon_and_leaves_no_thread(server):
    before = threading.active_count()
    with opened(server) as data:
        next(epoch(data))
        server.configure(latency_seconds=0.5)
        batches = epoch(data, seed=6)
        begun = time.monotonic()
    assert time.monotonic() - begun < 2.0
    del batches
    end = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end:
        time.sleep(0.01)
    assert threading.active_count() <= before


# -- campaigns -------------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("rate", [0.001, 0.01, 0.05, 0.2, 0.5])
def test_campaign_every_kind_at_every_rate(tmp_path, rate):
    records = 10_000 * SCALE
    folder = converted(tmp_path, records)
    with ss.open(folder) as data:
        expected = [batch.to_pylist() for batch in epoch(data)]
    done = errors = 0
    with ObjectStore(tmp_path, **QUICK) as server:
        for kind in PASSING:
            for seed in (0, 1):
                server.configure(faults=[Fault(kind, rate, methods=("GET",))], seed=seed)
                try:
                    with opened(server, read_seconds=5.0) as data:
                        assert [batch.to_pylist() for batch in epoch(data)] == expected
                except ShuffleStoreError:
                    assert rate == 0.5 or (kind == "flipped_bit" and rate >= 0.01)
                    errors += 1
                done += 1
    print(f"{done} epochs of {records} records at {rate:.1%}: {done - errors} exact, {errors} named errors")


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_campaign_an_object_replaced_in_the_middle_of_an_epoch(tmp_path, expected):
    for case in range(200 * SCALE):
        folder = tmp_path / str(case)
        folder.mkdir()
        converted(folder, RECORDS)
        replaced_mid_epoch(folder, case, expected)


@pytest.mark.campaign
@pytest.mark.serial
@pytest.mark.timeout(600)
def test_campaign_a_minute_of_refusals(tmp_path):
    converted(tmp_path, 2_000)
    with ObjectStore(tmp_path, latency_seconds=0.01) as server, opened(server, max_in_flight=32, gap_bytes=0) as data:
        ended = threading.Event()
        failed: list[BaseException] = []

        def read() -> None:
            seed = 0
            try:
                while not ended.is_set():
                    seed += 1
                    for _ in epoch(data, seed):
                        if ended.is_set():
                            return
            except BaseException as error:
                failed.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        time.sleep(5)
        server.reset_counts()
        time.sleep(5)
        server.configure(faults=[Fault("slow_down", total_seconds=60.0)])
        time.sleep(85)
        ended.set()
        reader.join(60)
        tenths = np.array(server.counts()["requests_per_100_ms"])
    assert not failed
    before = tenths[:40].mean()
    assert tenths[50 + 100 : 50 + 590].mean() <= 0.1 * before
    assert tenths[50 + 600 + 150 :].mean() >= 0.9 * before


@pytest.mark.campaign
@pytest.mark.serial
@pytest.mark.timeout(600)
def test_campaign_one_request_in_a_hundred_takes_two_seconds(tmp_path):
    converted(tmp_path, 5_000)
    with ObjectStore(tmp_path, latency_seconds=0.01) as server, opened(server, max_in_flight=64, gap_bytes=0) as data:
        random = np.random.default_rng(0)

        def seconds_of_a_batch() -> float:
            ids, begun = random.integers(0, len(data), 64), time.monotonic()
            data.take(ids)
            return time.monotonic() - begun

        for _ in range(20):
            seconds_of_a_batch()
        server.configure(tail=(0.01, 2.0))
        before = data.reading.store.counters()
        times = [seconds_of_a_batch() for _ in range(300)]
        after = data.reading.store.counters()
    asked, hedged = (after[name] - before[name] for name in ("requests", "hedges"))
    print(
        f"median {np.median(times):.4f} s, 99 % {np.quantile(times, 0.99):.4f} s, {hedged} hedges of {asked} requests"
    )
    assert np.quantile(times, 0.99) <= 2 * np.median(times)
    assert hedged <= 0.04 * (asked - hedged)
