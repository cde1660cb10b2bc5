"""Sizes beyond 31, 32 and 33 bits, and the smallest there are."""

from __future__ import annotations

import hashlib
import resource
import time

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.dataset.dataset import BatchOptions
from shufflestore.dataset.opening import load_manifest
from shufflestore.errors import OptionError, ShuffleStoreError
from shufflestore.format.manifest import Manifest, Shards
from tests.invented import MemoryStore, Template, VirtualStore, arrow_bytes, memory_store, opened

SCHEMA = pa.schema([("row", pa.int64())])


def template(rows: int) -> Template:
    return Template.of(pa.table({"row": np.arange(rows)}, schema=SCHEMA), chunk_rows=4096)


@pytest.fixture(scope="module")
def big() -> Template:
    return template(1 << 17)


def virtual(records: int, shard: Template) -> VirtualStore:
    rows = shard.entry["record_count"]
    whole, rest = divmod(records, rows)
    return VirtualStore(SCHEMA, [(shard, whole)] + ([(template(rest), 1)] if rest else []))


@pytest.mark.parametrize("records", [2**31 - 1, 2**31, 2**32, 2**33])
def test_records_around_the_edges_of_32_bits_are_where_they_should_be(records, big):
    store = virtual(records, big)
    dataset = opened(store, index_memory_bytes=1 << 20)
    rows = big.entry["record_count"]
    ids = [0, rows - 1, rows, 2**31 - 2, records // 2, records - 2, records - 1]
    assert len(dataset) == records
    assert dataset.take(ids)["row"].to_pylist() == [i % rows for i in ids]
    assert store.read_names == {f"shards/{i // rows:010d}.index" for i in ids}
    with pytest.raises(OptionError, match="does not exist"):
        dataset.take([records])
    assert dataset[-1]["row"] == (records - 1) % rows


@pytest.mark.parametrize("records", [2**31, 2**33])
def test_a_shuffled_epoch_of_that_many_records_begins_with_ids_of_the_whole_range(records, big):
    dataset = opened(virtual(records, big), index_memory_bytes=1)
    batches = dataset.batches(256, shuffle=True, options=BatchOptions(return_ids=True))
    ids = np.concatenate([next(batches)["record_id"] for _ in range(4)])
    assert ids.dtype == np.int64
    assert len(set(ids.tolist())) == len(ids)
    assert ids.min() >= 0
    assert records // 2 < ids.max() < records


def test_the_last_records_of_2_to_the_62_are_found():
    last = template(1000)
    giant = 2**61 - 500
    store = VirtualStore(SCHEMA, [(Template.claiming(giant), 2), (last, 1)])
    dataset = opened(store)
    assert len(dataset) == 2**62
    assert dataset.take([2**62 - 1, 2**62 - 1000, 2**62 - 500])["row"].to_pylist() == [999, 0, 500]
    assert dataset.select(range(2**62 - 1, 2**62 - 4, -1)).take([0, 1, 2])["row"].to_pylist() == [999, 998, 997]


def test_more_than_2_to_the_62_records_are_refused_by_name():
    store = VirtualStore(SCHEMA, [(Template.claiming(2**61), 2), (template(1), 1)])
    with pytest.raises(ShuffleStoreError, match=r"2\*\*62"):
        opened(store)


@pytest.mark.serial
def test_a_thousand_million_records_in_a_hundred_thousand_shards_open_at_once():
    store = virtual(10**9, template(10_000))
    opened(store).close()  # whatever is imported on first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    dataset = opened(store)
    opening = time.process_time() - started
    started = time.process_time()
    batch = next(dataset.batches(256, shuffle=True))
    first = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    print(f"\n10^9 records, 10^5 shards: open {opening:.3f} s, first batch of 256 {first:.3f} s, {grown} MB more")
    assert len(batch["row"]) == 256
    # Twice what is promised, since others may use the machine; the benchmark holds the promise itself.
    assert opening < 0.4
    assert first < 0.2
    assert grown < 200


EMPTY = pa.schema([("x", pa.int32()), ("s", pa.string())])


@pytest.mark.parametrize("verify", [True, False])
def test_no_records_at_all_are_a_data_set_like_any_other(verify):
    dataset = opened(memory_store([arrow_bytes(EMPTY.empty_table())]), verify=verify)
    assert len(dataset) == 0
    assert dataset.take([]).schema.names == ["x", "s"]
    assert list(dataset.batches(4)) == []
    assert dataset.select([]).take([]).num_rows == 0
    with pytest.raises(IndexError):
        dataset[0]
    with pytest.raises(OptionError):
        dataset.take([0])


def test_one_record_is_read_by_every_door():
    dataset = opened(memory_store([arrow_bytes(pa.table({"x": [7], "s": ["only"]}))]))
    assert dataset[0] == {"x": 7, "s": "only"}
    assert dataset[-1]["s"] == "only"
    assert [b["x"].tolist() for b in dataset.batches(5, shuffle=True)] == [[7]]
    assert dataset.take([0, 0, 0])["x"].to_pylist() == [7, 7, 7]
    assert list(dataset.batches(5, options=BatchOptions(drop_last=True))) == []


def test_records_without_columns_are_counted_and_delivered():
    data = arrow_bytes([pa.RecordBatch.from_struct_array(pa.array([{}] * 5, pa.struct([])))])
    dataset = opened(memory_store([data]))
    assert len(dataset) == 5
    assert dataset.take([4, 0]).num_columns == 0
    assert dataset[3] == {}
    assert dataset.project([])[2] == {}


def test_records_of_no_bytes_come_back_as_such():
    table = pa.table({"s": [""] * 40, "l": pa.array([[]] * 40, pa.list_(pa.list_(pa.int8()))), "n": pa.nulls(40)})
    dataset = opened(memory_store([arrow_bytes(table, 7)]))
    assert dataset.take([39, 0, 20]).to_pylist() == [{"s": "", "l": [], "n": None}] * 3


def test_empty_shards_and_chunks_between_others_hold_nothing_up():
    some = pa.table({"x": pa.array([1, 2, 3], pa.int32()), "s": ["a", "b", "c"]})
    empty = arrow_bytes(EMPTY.empty_table())
    hollow = arrow_bytes(
        [
            b
            for t in (some, EMPTY.empty_table(), some)
            for b in (t.to_batches() or [pa.RecordBatch.from_pylist([], EMPTY)])
        ]
    )
    dataset = opened(memory_store([empty, hollow, empty, arrow_bytes(some), empty]))
    assert dataset.take(range(9))["x"].to_pylist() == [1, 2, 3] * 3


def test_a_record_larger_than_the_look_ahead_is_delivered_alone():
    table = pa.table({"x": range(6), "blob": [b"x" * (3 << 20)] * 6})
    dataset = opened(memory_store([arrow_bytes(table, 2)]))
    stream = dataset.batches(1, options=BatchOptions(prefetch_bytes=1 << 20))
    assert [b["x"].tolist() for b in stream] == [[i] for i in range(6)]


def test_a_million_shards_open_lazily_and_any_record_of_them_is_found():
    small = template(3)
    store = VirtualStore(SCHEMA, [(small, 1_000_000)])
    dataset = opened(store)
    assert dataset.take([0, 2_999_999, 1_500_001])["row"].to_pylist() == [0, 2, 1]
    assert store.read_names == {f"shards/{i:010d}.index" for i in (0, 500_000, 999_999)}


def test_counts_of_a_split_that_the_shards_do_not_add_up_to_are_refused():
    store = virtual(10, template(5))
    good = load_manifest(store, None)
    table = Shards(good.check_table(store.files[good.table_name], "t").table.slice(0, 1)).encode()
    digest = hashlib.sha256(table).hexdigest()
    made = Manifest(SCHEMA, good.splits, good.table_name, len(table), digest)
    damaged = MemoryStore(store.files | {good.table_name: table, "snapshots/0000000001.json": made.encode("n")})
    with pytest.raises(ShuffleStoreError, match="do not add up"):
        opened(damaged)
