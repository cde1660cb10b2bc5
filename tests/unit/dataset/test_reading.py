"""Batches are submitted together, delivered in any order, and every failure names record, column, shard and bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch

import shufflestore as ss
from shufflestore.errors import CorruptData, NotFound, ShardTruncated
from tests.invented import MemoryStore, arrow_bytes, memory_store, opened

TABLE = pa.table(
    {"x": range(90), "s": [f"text {i}" for i in range(90)], "d": pa.array(["a", "b", "c"] * 30).dictionary_encode()}
)


@pytest.fixture
def store() -> MemoryStore:
    return memory_store([arrow_bytes(TABLE.slice(i, 30), 11) for i in (0, 30, 60)])


def test_batches_of_a_window_may_be_delivered_in_any_order(store):
    dataset = opened(store)
    ids, ends = np.arange(89, -1, -1), np.array([1, 1, 40, 90])
    ready = dataset.reading.submit(ids, ends, dataset.projection())
    for number in (3, 0, 2, 1):
        made = dataset.reading.deliver(ready[number])
        first = [0, *ends][number]
        assert made["x"].values.tolist() == ids[first : ends[number]].tolist()
        assert made["d"].to_arrow().to_pylist() == [TABLE["d"][int(i)].as_py() for i in ids[first : ends[number]]]


def damaged(store: MemoryStore, name: str, text: bytes) -> MemoryStore:
    copy = MemoryStore(store.files)
    copy.files[name] = copy.files[name].replace(text, text[:-1] + b"!")
    return copy


def test_damage_names_record_row_column_shard_and_bytes(store):
    dataset = opened(damaged(store, "shards/00001.arrow", b"text 41"))
    with pytest.raises(CorruptData) as caught:
        dataset.take([3, 41, 80])
    message = str(caught.value)
    for part in (
        "memory://: shards/00001.arrow",
        "record 41 (row 11 of the shard)",
        "column 's'",
        "CRC32C",
        "shufflestore verify",
    ):
        assert part in message
    assert dataset.take([3, 40, 42])["s"].to_pylist() == ["text 3", "text 40", "text 42"]


def test_without_verification_damage_is_the_readers_own_affair(store):
    dataset = opened(damaged(store, "shards/00001.arrow", b"text 41"), verify=False)
    assert dataset.take([41])["s"].to_pylist() == ["text 4!"]


def test_a_shard_cut_short_or_gone_is_named(store):
    cut = MemoryStore(store.files)
    cut.files["shards/00002.arrow"] = cut.files["shards/00002.arrow"][:900]
    with pytest.raises(ShardTruncated, match=r"shards/00002\.arrow: record \d+ .*cut short"):
        opened(cut).take(range(60, 90))
    gone = MemoryStore(store.files)
    del gone.files["shards/00002.arrow"]
    with pytest.raises(NotFound, match=r"00002\.arrow"):
        opened(gone).take([60])


def test_a_column_read_whole_is_kept_and_read_once_a_chunk(store):
    dataset = opened(MemoryStore(store.files))
    first = dataset.take(range(90))
    dataset.reading.store.files = {}
    assert dataset.take(range(90), columns=["d"]) == first.select(["d"])


def test_what_is_kept_of_columns_read_whole_is_bounded(store):
    dataset = opened(MemoryStore(store.files))
    dataset.reading.budget = replace(dataset.reading.budget, whole=100)
    for _ in range(3):
        assert dataset.take(range(90))["d"].to_pylist() == TABLE["d"].to_pylist()
    assert dataset.reading._whole_bytes <= 100


def test_damage_in_a_column_read_whole_names_the_chunk(store):
    copy = MemoryStore(store.files)
    indexes = opened(store).reading.indexes
    indexes.header(0)
    start, _ = indexes.table(0).whole["columns"]["2"][1]["span"]
    data = bytearray(copy.files["shards/00000.arrow"])
    data[start] ^= 1
    copy.files["shards/00000.arrow"] = bytes(data)
    with pytest.raises(CorruptData, match=r"shards/00000\.arrow: column 'd' of chunk 1 at bytes"):
        opened(copy).take([15])
    assert opened(copy).take([3])["d"].to_pylist() == [TABLE["d"][3].as_py()]


def test_only_the_columns_asked_for_are_read(store):
    dataset = opened(damaged(store, "shards/00001.arrow", b"text 41"))
    assert dataset.take([41], columns=["x", "d"]).to_pylist() == [{"x": 41, "d": TABLE["d"][41].as_py()}]


def test_a_column_that_only_some_shards_hold_whole_is_widened_and_joined(tmp_path):
    table = pa.table({"t": pa.array([[i, 65_535 - i] for i in range(40)], pa.list_(pa.uint16()))})
    plain, packed = arrow_bytes(table.slice(0, 20), 7), arrow_bytes(table.slice(20), 7, codec="zstd")
    for number, data in enumerate((plain, packed)):
        (tmp_path / f"{number}.arrow").write_bytes(data)
    loader = ss.DataLoader(tmp_path, 8, shuffle=True, return_ids=True)
    for batch in loader:
        assert batch["t"].values.dtype == torch.int64
        for number, record in zip(batch["record_id"].tolist(), batch["t"], strict=True):
            assert record.tolist() == [number, 65_535 - number]
