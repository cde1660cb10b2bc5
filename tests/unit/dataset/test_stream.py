"""A stream reads ahead within its budget, never skips, and ends for good after an error."""

from __future__ import annotations

import time

import numpy as np
import pyarrow as pa
import pytest

import shufflestore as ss
from shufflestore.dataset import stream as module
from shufflestore.dataset.stream import WINDOW_IDS, Stream, Traffic
from shufflestore.errors import CorruptData
from tests.invented import MemoryStore, arrow_bytes, memory_store, opened

N = 400
TABLE = pa.table({"x": range(N), "s": ["x" * 100] * N})


def stream(
    dataset, budget: int | None, batch: int = 4, planned: list | None = None, finish=None, traffic=None, **projection
) -> Stream:
    step = 0

    def plan(batches: int):
        nonlocal step
        first, step = step, min(step + batches * batch, N)
        ids = np.arange(first, step)
        if planned is not None:
            planned.append(len(ids))
        ends = np.arange(batch, len(ids) + batch, batch).clip(max=len(ids))
        return (ids, ends) if len(ids) else None

    return Stream(
        dataset.reading, dataset.projection(**projection), plan,
        finish or (lambda ids, made: made["x"].values.tolist()), budget, traffic,
    )  # fmt: skip


@pytest.fixture
def store() -> MemoryStore:
    return memory_store([arrow_bytes(TABLE, 50)])


@pytest.mark.parametrize("budget", [0, 1000, 50_000, 1 << 30])
def test_every_batch_comes_once_and_in_order_whatever_the_budget(store, budget):
    assert [i for batch in stream(opened(store), budget) for i in batch] == list(range(N))


def test_the_first_window_is_one_batch_and_windows_grow_to_their_limit(store):
    planned: list[int] = []
    list(stream(opened(store), 1 << 30, 4, planned))
    assert planned[0] == 4
    assert max(planned) <= WINDOW_IDS
    assert max(planned) > 4


def test_a_window_has_a_bounded_number_of_reads(monkeypatch):
    monkeypatch.setattr(module, "WINDOW_READS", 40)
    table = pa.table({f"s{i}": ["x"] * N for i in range(4)} | {"x": range(N)})  # four reads a record
    planned: list[int] = []
    assert [i for batch in stream(opened(memory_store([arrow_bytes(table)])), None, 4, planned) for i in batch] == list(
        range(N)
    )
    assert max(planned) <= 10


def test_an_error_ends_the_stream_and_nothing_behind_it_is_delivered(store):
    table = pa.table({"x": range(N), "s": [f"{i:0100d}" for i in range(N)]})
    damaged = memory_store([arrow_bytes(table, 50)])
    damaged.files["shards/00000.arrow"] = damaged.files["shards/00000.arrow"].replace(
        b"0" * 97 + b"203", b"0" * 97 + b"2!3"
    )
    made = stream(opened(damaged), 5000)
    seen = []
    with pytest.raises(CorruptData, match="record 203"):
        seen.extend(i for batch in made for i in batch)
    assert seen == list(range(200))
    assert list(made) == []


def test_damage_in_an_index_page_ends_the_stream_too(store):
    header = opened(store).reading.indexes.header(0)
    data = bytearray(store.files["shards/00000.rows"])
    data[header.pages_at + 5 * header.layout.page_bytes + 100] ^= 1
    store.files["shards/00000.rows"] = bytes(data)
    made = stream(opened(store), 2000)
    seen = []
    with pytest.raises(CorruptData, match="page 5"):
        seen.extend(i for batch in made for i in batch)
    assert seen == list(range(len(seen)))
    assert list(made) == []


def test_an_error_of_the_users_own_function_closes_the_stream(store):
    def finish(ids, made):
        if 8 in ids:
            raise KeyError("mine")
        return ids.tolist()

    made = stream(opened(store), 5000, finish=finish)
    with pytest.raises(KeyError, match="mine"):
        list(made)
    assert list(made) == []


def test_closing_is_idempotent_and_final(store):
    made = stream(opened(store), 5000)
    next(made)
    made.close()
    made.close()
    assert list(made) == []


# -- what was delivered, and how far ahead it is ---------------------------------------------------


def test_used_bytes_are_those_that_the_records_take_in_their_files(store):
    traffic = Traffic()
    made = stream(opened(store), None, traffic=traffic)
    assert traffic.used_bytes == 0
    next(made)
    assert traffic.used_bytes == 4 * (8 + 100), "what is read ahead is not delivered"
    list(made)
    assert traffic.used_bytes == N * (8 + 100)
    list(stream(opened(store), None, batch=7, traffic=traffic))
    assert traffic.used_bytes == 2 * N * (8 + 100), "streams that follow one another add up"


def test_used_bytes_do_not_grow_with_wider_integers_but_with_columns_that_are_read_whole():
    words = pa.array(["ab", "abcd"] * (N // 2))
    table = pa.table(
        {
            "x": range(N),
            "t": pa.array([[1, 2, 3]] * N, pa.list_(pa.uint16())),
            "d": words.dictionary_encode(),
        }
    )
    used = {}
    for name, wide in (("t", {}), ("t", {"uint16": "i8"}), ("d", {})):
        traffic = Traffic()
        dataset = opened(memory_store([arrow_bytes(table, 50)]))
        list(stream(dataset, None, finish=lambda ids, made: 0, traffic=traffic, columns=[name], widen=wide))
        used[name, len(wide)] = traffic.used_bytes
    assert used["t", 0] == used["t", 1] == N * 3 * 2
    assert N * 3 <= used["d", 0] <= N * 3 + N * 4 + 8 * N, "the text and its offsets"


def test_what_is_ahead_is_told_and_a_stream_that_is_gone_is_not_kept(tmp_path):
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow_bytes(TABLE, 50))
    ss.index(path)
    dataset, traffic = ss.open(path), Traffic()
    assert traffic.ahead is None
    made = stream(dataset, 2_000, traffic=traffic)
    seen = [traffic.ahead for _ in made]
    assert all(0 <= ready <= most + 400 and most <= 2_000 for ready, most in seen), "or one batch"
    assert any(ready for ready, _ in seen)
    assert seen[-1] == (0, 0)
    made.close()
    assert traffic.ahead == (0, 0)
    del made
    assert traffic.ahead is None


def test_nothing_is_ahead_in_a_store_that_reads_when_it_is_asked(store):
    traffic = Traffic()
    made = stream(opened(store), 2_000, traffic=traffic)
    next(made)
    assert traffic.ahead is None


@pytest.mark.parametrize("budget", [None, 1 << 20])
def test_all_that_is_ahead_is_ready_when_the_store_has_had_time(tmp_path, budget):
    path = tmp_path / "x.arrow"
    path.write_bytes(arrow_bytes(TABLE, 50))
    ss.index(path)
    traffic = Traffic()
    made = stream(ss.open(path), budget, traffic=traffic)
    for _ in range(8):
        next(made)
    stop = time.monotonic() + 60
    while traffic.ahead[0] < traffic.ahead[1]:
        assert time.monotonic() < stop
    assert traffic.ahead[0] > 0
