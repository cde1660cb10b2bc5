"""A meter counts what happened at next to no cost; what shows it never gets in the way."""

from __future__ import annotations

import copy
import io
import itertools
import pickle
import threading
import timeit

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

import shufflestore as ss
from shufflestore.dataset.stream import Stream, Traffic, planned
from shufflestore.loader.live import Live
from shufflestore.loader.telemetry import WAIT_RANGE, Meter, Pulled, batch_bytes, next_in_range
from shufflestore.orders.epoch import make_order
from shufflestore.orders.partition import Partition
from tests.loops import SECOND, Run


def best(statement, number=50_000, **names):
    """Seconds of a statement, at its best."""
    return min(timeit.repeat(statement, globals=names, number=number, repeat=15)) / number


# -- the meter -------------------------------------------------------------------------------------


def test_waits_and_steps_are_told_apart():
    run = Run()
    run.batches(4, wait=1, step=3, records=10)
    run.end()
    stats = run.meter.stats()
    assert (stats.batches, stats.records, stats.waited_seconds, stats.step_seconds) == (4, 40, 4.0, 12.0)
    assert stats.stall_share == 0.25


def test_what_lies_between_two_passes_and_a_wait_without_a_batch_do_not_count():
    run = Run()
    run.batches(2, wait=1, step=1)
    run.end(wait=100)
    run.clock.now += 1000 * SECOND
    run.batches(2, wait=1, step=1)
    run.end()
    stats = run.meter.stats()
    assert (stats.waited_seconds, stats.step_seconds) == (4.0, 4.0)


def test_what_others_read_before_the_first_wait_does_not_count():
    at = {"read": 500, "used": 50}
    run = Run(lambda: Pulled("pread", at["read"], at["used"], (3, 4), 7, 2, 5))
    at["read"], at["used"] = 1000, 100
    run.batches(1)
    at["read"], at["used"] = 1600, 500
    stats = run.meter.stats()
    assert (stats.bytes_read, stats.bytes_used, stats.bytes_read_per_byte_used) == (600, 400, 1.5)
    assert (stats.engine, stats.lookahead_fill, stats.quarantined, stats.epoch, stats.rank) == ("pread", 0.75, 7, 2, 5)
    at["read"] = 10  # as in a forked child, whose counters are its own
    assert run.meter.stats().bytes_read == 0


@pytest.mark.parametrize(("lookahead", "fill"), [(None, None), ((0, 0), None), ((0, 5), 0.0), ((9, 5), 1.0)])
def test_a_share_of_the_look_ahead_is_one(lookahead, fill):
    assert Meter(lambda: Pulled(lookahead=lookahead)).stats().lookahead_fill == fill


def test_sizes_that_are_handed_over_count_where_nobody_else_counts():
    meter = Meter()
    for _ in range(3):
        meter.wait_began()
        meter.delivered(np.int64(8), 100)
    assert meter.stats().bytes_used == 300
    assert type(meter.stats().records) is int
    meter = Meter(lambda: Pulled(bytes_used=5))
    meter.wait_began()
    meter.delivered(8, 100)
    assert meter.stats().bytes_used == 0
    assert Meter().stats().bytes_used is None


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda meter: pickle.loads(pickle.dumps(meter))])
def test_a_copy_begins_at_zero_and_shows_nothing(how):
    meter = Meter()
    meter.wait_began()
    meter.delivered(5)
    with Live(meter, io.StringIO()):
        other = how(meter)
    assert other.stats().batches == 0
    other.wait_began()
    other.delivered(3)
    assert (other.stats().records, meter.stats().records) == (3, 5)


def test_another_thread_may_ask_at_any_time():
    meter, seen, failed, over = Meter(), [], [], threading.Event()

    def ask():
        try:
            while not over.is_set():
                seen.append(meter.stats())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    for _ in range(20_000):
        meter.wait_began()
        meter.delivered(2)
    over.set()
    thread.join(60)
    assert not failed
    assert all(a.batches <= b.batches for a, b in zip(seen, seen[1:], strict=False))
    assert meter.stats().batches == 20_000


@pytest.mark.serial
def test_a_call_costs_less_than_a_microsecond():
    meter = Meter()
    meter.wait_began()
    bare = best("f(1)", f=lambda _: None)
    both = best("m.wait_began(); m.delivered(256)", m=meter)
    assert both < 2 * max(1e-6, 25 * bare), "40 ns a bare call where nothing else runs"


def test_bytes_of_batches_of_any_shape():
    tensor, array = torch.zeros(3, dtype=torch.int64), np.zeros(5, np.float32)
    assert batch_bytes(tensor) == 24
    assert batch_bytes({"a": tensor, "b": [array, (b"xyz", "text", 5)]}) == 24 + 20 + 3
    assert batch_bytes(None) == 0
    assert batch_bytes([[[[[tensor]]]]]) == 0, "deeper than 4 levels nobody looks"


# -- the profiler ----------------------------------------------------------------------------------


def test_each_wait_is_a_range_of_the_profile():
    items = iter(range(5))
    assert next_in_range(items) == 0
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        assert [next_in_range(items) for _ in range(3)] == [1, 2, 3]
    assert next_in_range(items) == 4
    ranges = [event for event in seen.events() if event.name == WAIT_RANGE]
    assert len(ranges) == 3
    with profile(activities=[ProfilerActivity.CPU]), pytest.raises(StopIteration):
        next_in_range(items)


@pytest.mark.serial
def test_a_range_that_nobody_wants_costs_a_small_part_of_one():
    items = itertools.repeat(1)
    bare, ours = (best("f(items)", f=f, items=items) for f in (next, next_in_range))
    always = best("with record_function('x'): next(items)", 1_000, record_function=record_function, items=items)
    assert ours - bare < (always - bare) / 8, "30 to 60 ns of some microseconds where nothing else runs"


# -- with the real thing ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.arrow"
    lengths = np.random.default_rng(0).integers(1, 200, 2_000)
    table = pa.table(
        {
            "tokens": pa.array([np.full(n, i, np.uint16) for i, n in enumerate(lengths)], pa.list_(pa.uint16())),
            "label": pa.array(range(2_000), pa.int64()),
        }
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    ss.index(path)
    return path, int(lengths.sum())


@pytest.mark.parametrize("engine", ["mmap", "pread"])
def test_a_meter_over_our_own_reading_counts_every_byte(data, engine):
    path, tokens = data
    opened, traffic, epoch = ss.open(path, engine=engine), Traffic(), 0
    store = opened.reading.store
    opened.take([0])  # somebody else reads, before
    meter = Meter(
        lambda: Pulled(
            store.engine, store.counters().get("bytes_read", 0), traffic.used_bytes, traffic.ahead, epoch=epoch
        )
    )
    fills = []
    for epoch in range(2):
        moment = meter.stats()
        plan = planned(Partition(2_000, 64), make_order("global", 2_000, 0, epoch), opened.selection)
        stream = Stream(
            opened.reading, opened.projection(["tokens"], {"uint16": "i8"}), plan, lambda ids, _: ids, None, traffic
        )
        meter.wait_began()
        for ids in stream:
            meter.delivered(len(ids))
            fills.append(meter.stats().lookahead_fill)
            meter.wait_began()
    stats, second = meter.stats(), meter.stats().since(moment)
    assert stats.records == 2 * (2_000 // 64 * 64)
    assert (stats.engine, stats.epoch) == (engine, 1)
    assert second.bytes_used == second.bytes_read, "row indexes are in memory by then: nothing is read in vain"
    assert 0.98 * 2 * tokens < second.bytes_used <= 2 * tokens, "all but the last records, two bytes a token"
    assert stats.bytes_read_per_byte_used > 1
    assert all(fill is None or 0 <= fill <= 1 for fill in fills)
    assert any(fill for fill in fills)
    assert "MB/s" in str(stats)
