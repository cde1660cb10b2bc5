"""Row indexes come when they are needed, page by page, and a record is found whatever else is in memory."""

from __future__ import annotations

import threading

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.dataset import residency
from shufflestore.errors import CorruptData, OptionError
from tests.invented import MemoryStore, arrow_bytes, memory_store, opened

ROWS = 3000


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    tables = [
        pa.table({"x": range(i * ROWS, (i + 1) * ROWS), "s": [str(j) for j in range(i * ROWS, (i + 1) * ROWS)]})
        for i in range(4)
    ]
    return memory_store([arrow_bytes(t, 700) for t in tables])


def test_opening_reads_no_index_and_a_record_only_its_own_header_and_page(store):
    fresh = MemoryStore(store.files)
    dataset = opened(fresh)
    assert fresh.read_names == set()
    dataset.take([ROWS * 2 + 5])
    assert fresh.read_names == {"shards/00002.rows", "shards/00002.arrow"}
    assert dataset.reading.indexes.pages.fetched == 1


def test_pages_that_are_here_are_not_fetched_again(store):
    dataset = opened(MemoryStore(store.files))
    for _ in range(3):
        dataset.take(range(0, 4 * ROWS, 7))
    pages = dataset.reading.indexes
    assert pages.pages.fetched == int(pages.first_page[-1])


@pytest.mark.parametrize("slots", [3, 5, 17])
def test_few_slots_give_the_same_records_as_many(store, slots, monkeypatch):
    monkeypatch.setattr(residency, "LEAST_SLOTS", slots)
    dataset = opened(MemoryStore(store.files), index_memory_bytes=1)
    rng = np.random.default_rng(slots)
    for _ in range(300):
        ids = rng.integers(0, 4 * ROWS, 3)
        assert dataset.take(ids)["x"].to_pylist() == ids.tolist()
    assert dataset.reading.indexes.pages.fetched > slots


def test_a_batch_of_more_pages_than_there_is_room_for_says_so_and_harms_nobody(store, monkeypatch):
    monkeypatch.setattr(residency, "LEAST_SLOTS", 3)
    dataset = opened(MemoryStore(store.files), index_memory_bytes=1)
    for _ in range(5):
        with pytest.raises(OptionError, match="pages of the row index at once, 3 fit"):
            dataset.take(range(0, 4 * ROWS, 100))
        assert dataset.take([11_999, 3, 6000])["x"].to_pylist() == [11_999, 3, 6000]


def test_threads_that_share_few_slots_never_get_each_others_records(store, monkeypatch):
    monkeypatch.setattr(residency, "LEAST_SLOTS", 16)
    dataset = opened(MemoryStore(store.files), index_memory_bytes=1)
    wrong: list[object] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        try:
            for _ in range(150):
                ids = rng.integers(0, 4 * ROWS, 4)
                if dataset.take(ids)["s"].to_pylist() != [str(i) for i in ids]:
                    wrong.append(ids)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=read, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_failed_read_is_no_reason_for_the_next_to_fail(store):
    damaged = MemoryStore(store.files)
    good = damaged.files.pop("shards/00001.rows")
    dataset = opened(damaged)
    for _ in range(3):
        with pytest.raises(OSError, match=r"00001\.rows"):
            dataset.take([ROWS])
    damaged.files["shards/00001.rows"] = good
    assert dataset.take([ROWS, 0])["x"].to_pylist() == [ROWS, 0]


def test_failed_reads_of_pages_use_up_no_room(store):
    damaged = MemoryStore(store.files)
    dataset = opened(damaged)
    dataset.take([ROWS])  # the header is here from now on
    good = damaged.files.pop("shards/00001.rows")
    for _ in range(int(dataset.reading.indexes.first_page[-1]) + 1):
        with pytest.raises(OSError, match=r"00001\.rows: page \d+ of the row index|00001\.rows: nothing"):
            dataset.take([2 * ROWS - 1])
    damaged.files["shards/00001.rows"] = good
    assert dataset.take(range(0, 4 * ROWS, 7))["x"].to_pylist() == list(range(0, 4 * ROWS, 7))


def test_chunks_of_any_size_are_found_through_the_chunk_table():
    batches = [
        pa.record_batch({"x": pa.array(range(a, b), pa.int64())})
        for a, b in [(0, 3), (3, 3), (3, 700), (700, 701), (701, 2000)]
    ]
    dataset = opened(memory_store([arrow_bytes(batches), arrow_bytes(pa.table({"x": range(2000, 2100)}), 10)]))
    ids = np.random.default_rng(0).permutation(2100)
    assert dataset.take(ids)["x"].to_pylist() == ids.tolist()


def test_an_index_that_disagrees_with_the_manifest_is_refused_by_both_names(store):
    damaged = MemoryStore(store.files)
    damaged.files["shards/00000.rows"] = store.files["shards/00001.rows"]
    with pytest.raises(CorruptData, match=r"memory://: shards/00000\.rows: .*SHA-256"):
        opened(damaged).take([0])
