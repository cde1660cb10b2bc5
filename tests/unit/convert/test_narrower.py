"""Shards are written in the smallest widths that hold them, found on the way and never wrong."""

from __future__ import annotations

import itertools

import datasets
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

import shufflestore as ss
from shufflestore.convert.narrower import Narrower
from shufflestore.convert.shards import ShardOptions, ShardWriter
from shufflestore.dataset.verify import verify
from shufflestore.errors import CorruptData
from shufflestore.format import encode
from shufflestore.format.schema import build_tree
from tests import stores

LISTS = pa.schema([("t", pa.list_(pa.int64()))])


def stored_types(folder, column="t"):
    """The type of a column's integers in each shard, in order: by name, or as the data set's table of shards has it."""
    paths = sorted(folder.glob("shards/*.arrow"))
    if (folder / "snapshots").is_dir():
        shards = ss.open(folder).reading.indexes.shards
        paths = [folder / shards.name("data", i) for i in range(len(shards))]
    found = []
    for path in paths:
        with pa.memory_map(str(path)) as file:
            found.append(str(pa.ipc.open_file(file).schema.field(column).type.value_type))
    return found


def write(folder, rows, **options):
    """Write lists of integers, a chunk a record, and return the shards' entries."""
    writer = ShardWriter(folder, "train-00000", LISTS, ShardOptions(chunk_rows=1, **options), lambda *_: None)
    for row in rows:
        writer.add(pa.record_batch([pa.array([row], LISTS.field("t").type)], schema=LISTS))
    return writer.finish()


# -- measuring -------------------------------------------------------------------------------------


def measured(array: pa.Array):
    batch = pa.record_batch([array], ["t"])
    return Narrower(build_tree(batch.schema)).measured(batch)


def test_a_slice_is_measured_and_stored_without_its_neighbours():
    array = pa.array([[10**12], [1, 2], [], None, [300], [10**12]], LISTS.field("t").type)
    for of, expected in ((array.slice(1, 4), (1, 300)), (array.slice(1, 1), (1, 2)), (array.slice(2, 2), (0, 0))):
        assert list(measured(of).ranges.values()) == [expected]
    narrower = Narrower(build_tree(LISTS))
    chunk = narrower.measured(pa.record_batch([array.slice(1, 4)], schema=LISTS))
    codes = narrower.codes([chunk])
    stored = narrower.stored(chunk, narrower.schema(codes), codes)
    assert stored.column(0).type == pa.list_(pa.uint16())
    assert stored.column(0).to_pylist() == array.slice(1, 4).to_pylist()
    assert stored.column(0).values.nbytes == 6


def test_integers_under_nulls_do_not_count_and_null_integers_stay_null():
    values = np.array([1, 2**40, -3, 2**50], np.int64)
    inner = pa.array(values, mask=np.array([False, True, False, True]))
    array = pa.ListArray.from_arrays(pa.array([0, 4]), inner)
    assert list(measured(array).ranges.values()) == [(-3, 1)]
    narrower = Narrower(build_tree(LISTS))
    chunk = narrower.measured(pa.record_batch([array], schema=LISTS))
    codes = narrower.codes([chunk])
    assert list(codes.values()) == ["i1"]
    stored = narrower.stored(chunk, narrower.schema(codes), codes)
    stored.validate(full=True)
    assert stored.column(0).to_pylist() == [[1, None, -3, None]]


def test_the_largest_unsigned_integers_stay_exact():
    type_ = pa.list_(pa.uint64())
    assert list(measured(pa.array([[0, 2**64 - 1]], type_)).ranges.values()) == [(0, 2**64 - 1)]
    narrower = Narrower(build_tree(pa.schema([("t", type_)])))
    assert narrower.codes([measured(pa.array([[0, 2**63]], type_))]) == {}
    assert narrower.codes([measured(pa.array([[0, 2**32 - 1]], type_))]) == {1: "u4"}


# -- shards ----------------------------------------------------------------------------------------


def test_a_shard_has_the_smallest_width_of_all_its_chunks(tmp_path):
    write(tmp_path, [[1]] * 5 + [[70_000]] + [[-1]] * 5)
    assert stored_types(tmp_path) == ["int32"]


def test_once_widths_are_settled_what_they_do_not_hold_begins_a_shard(tmp_path):
    rows = [[1] * 100] * 30 + [[300] * 100] * 3 + [[1] * 100] * 3
    entries = write(tmp_path, rows, shard_bytes=32_000)  # settled after 2,000 bytes
    assert stored_types(tmp_path)[:2] == ["uint8", "uint16"]
    assert [e["record_count"] for e in entries][0] == 30
    assert sum(e["record_count"] for e in entries) == 36
    assert all(e["features"] == ["narrow"] for e in entries)


def test_a_shard_s_records_are_bounded_although_its_first_chunks_wait(tmp_path):
    assert [e["record_count"] for e in write(tmp_path, [[1]] * 10, shard_records=4)] == [4, 4, 2]


def test_what_waits_is_bounded_by_a_share_of_the_shard(tmp_path):
    writer = ShardWriter(tmp_path, "x", LISTS, ShardOptions(shard_bytes=160_000, chunk_rows=1), lambda *_: None)
    batch = pa.record_batch([pa.array([[1] * 100], LISTS.field("t").type)], schema=LISTS)
    waiting = []
    for _ in range(400):
        writer.add(batch)
        waiting.append(sum(chunk.batch.nbytes for chunk in writer._waiting))
    writer.abandon()
    assert 0 < max(waiting) <= 10_000
    assert not writer._waiting


@pytest.mark.parametrize("rows", [[[]], [None, None], [[None, None]]], ids=["empty", "null", "nulls"])
def test_lists_without_a_single_integer_take_the_smallest_width(tmp_path, rows):
    ss.convert([{"t": row} for row in rows], tmp_path / "s", schema=LISTS)
    assert stored_types(tmp_path / "s") == ["uint8"]
    assert ss.open(tmp_path / "s").take(range(len(rows)))["t"].to_pylist() == rows


def test_without_narrow_a_shard_is_what_it_was_before(tmp_path):
    entries = write(tmp_path, [[1]] * 3, narrow=False)
    assert stored_types(tmp_path) == ["int64"]
    assert entries[0]["features"] == []


def test_a_column_whose_elements_pass_32_bits_in_a_page_is_read_whole_and_widened(tmp_path, monkeypatch):
    """The limit is lowered; what the real one does is the same."""
    monkeypatch.setattr(encode, "_LEVEL_LIMIT", 50)
    rows = [{"t": [i, -i] * (i % 40)} for i in range(100)]
    ss.convert(rows, tmp_path / "s", schema=LISTS)
    dataset = ss.open(tmp_path / "s")
    assert stored_types(tmp_path / "s") == ["int8"]
    ids = list(range(99, -1, -3))
    taken = dataset.take(ids)
    assert dataset.reading.indexes.headers[0].layout.tree.whole == {0}
    assert taken.schema.equals(LISTS)
    assert taken.to_pylist() == [rows[i] for i in ids]
    assert verify(tmp_path / "s").is_sound


# -- data sets -------------------------------------------------------------------------------------


def test_appended_shards_of_other_widths_are_one_data_set_in_every_layout(tmp_path):
    parts = [[0, 255], [65_535], [-(2**31)], [2**40], []]
    for part in parts:
        rows = [{"t": part * k} for k in range(5)]
        ss.convert(rows, tmp_path / "s", schema=LISTS, if_exists="append")
    assert stored_types(tmp_path / "s") == ["uint8", "uint16", "int32", "int64", "uint8"]
    expected = [part * k for part in parts for k in range(5)]
    assert ss.open(tmp_path / "s").manifest.features == ("narrow",)
    for layout in ("jagged", "padded", "packed", "nested", "list"):
        seen = {}
        for batch in ss.DataLoader(tmp_path / "s", 6, shuffle=True, seed=3, layout=layout, return_ids=True):
            seen |= zip(batch["record_id"].tolist(), rows_of(batch["t"], layout), strict=True)
        assert seen == dict(enumerate(expected)), layout


def rows_of(values, layout):
    """The rows of a batch's column as lists; the tensors are of int64."""
    if layout == "packed":
        ends = values.cu_seqlens.tolist()
        rows = [values.values[a:b] for a, b in itertools.pairwise(ends)]
    elif layout == "padded":
        rows = [row[:length] for row, length in zip(values.values, values.lengths.tolist(), strict=True)]
    else:
        rows = list(values.unbind() if layout == "nested" else values)
    assert all(row.dtype == torch.int64 for row in rows)
    return [row.tolist() for row in rows]


def test_the_features_of_a_snapshot_are_those_of_its_shards(tmp_path):
    def features(rows, narrow, if_exists):
        options = ss.ConvertOptions(shards=ShardOptions(narrow=narrow))
        ss.convert(rows, tmp_path / "s", schema=LISTS, if_exists=if_exists, options=options)
        return ss.open(tmp_path / "s").manifest.features

    rows = [{"t": [1]}]
    assert features(rows, False, "error") == ()
    assert features(rows, True, "append") == ("narrow",)
    assert features(rows, False, "append") == ("narrow",), "the base has narrow shards still"
    assert features(rows, False, "overwrite") == ()
    assert features([{"t": [2**40]}], True, "append") == (), "nothing in it is stored narrower"


def test_a_writer_stores_narrow_too(tmp_path):
    with ss.Writer(tmp_path / "s") as writer:
        for i in range(10):
            writer.write({"t": [i], "x": i})
    assert stored_types(tmp_path / "s") == ["uint8"]
    assert ss.open(tmp_path / "s")[3]["t"].dtype == np.int64


def test_damage_to_a_narrow_value_is_found(tmp_path):
    ss.convert([{"t": [65_000, i]} for i in range(100)], tmp_path / "s", schema=LISTS)
    (path,) = (tmp_path / "s").glob("shards/*.arrow")
    data = bytearray(path.read_bytes())
    data[data.index(np.array([65_000, 50], np.uint16).tobytes())] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert verify(tmp_path / "s").problem_count == 1
    with pytest.raises(CorruptData, match="record 50"):
        ss.open(tmp_path / "s").take([50])


def test_other_readers_open_a_narrow_shard_and_keep_its_class_names(tmp_path):
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("int64")),
            "tags": datasets.List(datasets.ClassLabel(names=["no", "yes"])),
            "label": datasets.ClassLabel(names=["a", "b"]),
        }
    )
    rows = {"tokens": [[1, 2], [], [60_000]], "tags": [[0, 1], [], [1]], "label": [0, 1, 0]}
    ss.convert(datasets.Dataset.from_dict(rows, features), tmp_path / "s")
    (path,) = (tmp_path / "s").glob("shards/*.arrow")
    assert pa.ipc.open_file(path).read_all().to_pydict() == rows
    assert pl.read_ipc(path).to_dict(as_series=False) == rows
    found = datasets.load_dataset("arrow", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    expected = dict(features) | {"tokens": datasets.List(datasets.Value("uint16"))}
    assert dict(found.features) == expected
    assert found[:] == rows
    assert ss.open(tmp_path / "s").schema.metadata[b"huggingface"].count(b'"int64"') == 1


def test_records_of_an_older_store_are_read_beside_narrow_ones(tmp_path):
    options = ss.ConvertOptions(shards=ShardOptions(narrow=False))
    ss.convert(list(stores.records(0, 50)), tmp_path / "s", schema=stores.SCHEMA, options=options)
    ss.convert(list(stores.records(50, 50)), tmp_path / "s", schema=stores.SCHEMA, if_exists="append")
    assert stored_types(tmp_path / "s", "tokens") == ["int32", "uint16"]
    taken = ss.open(tmp_path / "s").take(range(100))
    assert taken.schema.equals(stores.SCHEMA)
    assert taken.to_pylist() == stores.table(0, 100).to_pylist()
