"""A Writer shows readers all of its records or none."""

from __future__ import annotations

import gc

import numpy as np
import pyarrow as pa
import pytest

import shufflestore as ss
from shufflestore.errors import AlreadyExists, OptionError, SchemaError
from tests import stores


def write(target, count, start=0, **options):
    with ss.Writer(target, stores.SCHEMA, options=stores.small().shards, **options) as writer:
        for record in stores.records(start, count):
            writer.write(record)
    return writer


def test_records_come_back_in_the_order_they_were_given(tmp_path):
    writer = write(tmp_path / "out", 300)
    assert stores.seen(tmp_path / "out") == {"train": stores.table(0, 300).to_pylist()}
    assert writer.manifest.record_count == 300
    assert writer.manifest.shard_count > 1
    assert ss.verify(tmp_path / "out").is_sound


def test_nothing_is_seen_before_close_and_close_can_be_called_again(tmp_path):
    writer = ss.Writer(tmp_path)
    writer.write({"x": 1})
    assert stores.snapshots(tmp_path) == []
    writer.close()
    writer.close()
    assert stores.seen(tmp_path) == {"train": [{"x": 1}]}
    with pytest.raises(OptionError, match="closed"):
        writer.write({"x": 2})


def fail_after(writer, count):
    with writer:
        for record in stores.records(0, count):
            writer.write(record)
        raise ZeroDivisionError


def test_leaving_by_an_exception_commits_nothing(tmp_path):
    writer = ss.Writer(tmp_path / "out", options=stores.small().shards)
    with pytest.raises(ZeroDivisionError):
        fail_after(writer, 3_000)
    assert stores.snapshots(tmp_path / "out") == []
    assert not stores.leftovers(tmp_path / "out")
    writer.close()
    assert stores.snapshots(tmp_path / "out") == []
    write(tmp_path / "out", 5)
    assert stores.ids(tmp_path / "out") == list(range(5))


def test_a_writer_that_is_forgotten_commits_nothing(tmp_path):
    writer = ss.Writer(tmp_path / "out")
    writer.write({"x": 1})
    del writer
    gc.collect()
    assert stores.snapshots(tmp_path / "out") == []


def test_a_bad_record_is_named_and_leaves_the_writer_usable(tmp_path):
    with ss.Writer(tmp_path, pa.schema([("x", pa.int8()), ("y", pa.list_(pa.int32()))])) as writer:
        writer.write({"x": 1, "y": [1]})
        for bad in ({"x": "one", "y": []}, {"x": 300, "y": []}, {"x": 1, "y": ["a"]}, {"x": 1, "z": 2}, [1]):
            with pytest.raises(SchemaError, match="record 1"):
                writer.write(bad)
        writer.write({"x": 2, "y": None})
    assert stores.seen(tmp_path) == {"train": [{"x": 1, "y": [1]}, {"x": 2, "y": None}]}


def test_a_record_may_be_changed_once_it_was_given(tmp_path):
    block = np.zeros(3, np.int32)
    with ss.Writer(tmp_path) as writer:
        for i in range(4):
            block[:] = i
            writer.write({"x": block})
    assert [r["x"] for r in stores.seen(tmp_path)["train"]] == [[i] * 3 for i in range(4)]


def test_append_goes_behind_in_any_split_and_takes_the_schema_that_is_there(tmp_path):
    write(tmp_path, 10)
    with ss.Writer(tmp_path, if_exists="append") as writer:
        writer.write(next(stores.records(10, 1)))
    write(tmp_path, 5, 100, if_exists="append", split="test")
    assert stores.seen(tmp_path) == {"train": stores.table(0, 11).to_pylist(), "test": stores.table(100, 5).to_pylist()}


def test_append_to_nothing_begins_a_data_set(tmp_path):
    write(tmp_path / "out", 3, if_exists="append")
    assert stores.ids(tmp_path / "out") == [0, 1, 2]


def test_append_of_other_columns_is_refused_before_the_first_record(tmp_path):
    write(tmp_path, 10)
    with pytest.raises(SchemaError, match=r"cannot append other columns.*'id'"):
        ss.Writer(tmp_path, pa.schema([("x", pa.int8())]), if_exists="append")


def test_overwrite_replaces_and_the_old_snapshot_stays(tmp_path):
    write(tmp_path, 10)
    write(tmp_path, 4, 50, if_exists="overwrite")
    assert stores.ids(tmp_path) == list(range(50, 54))
    assert len(stores.seen(tmp_path, 1)["train"]) == 10


def test_a_data_set_is_not_written_over_and_a_loop_is_not_resumed(tmp_path):
    write(tmp_path, 1)
    with pytest.raises(AlreadyExists):
        ss.Writer(tmp_path)
    with pytest.raises(OptionError, match="cannot resume"):
        ss.Writer(tmp_path, if_exists="resume")


def test_the_slower_of_two_writers_is_told_and_of_two_that_append_none_is(tmp_path):
    first, second = ss.Writer(tmp_path / "a"), ss.Writer(tmp_path / "a")
    for i, writer in enumerate((first, second)):
        writer.write({"x": i})
    first.close()
    with pytest.raises(AlreadyExists, match="another writer committed snapshot 1"):
        second.close()
    assert stores.seen(tmp_path / "a") == {"train": [{"x": 0}]}
    first, second = (ss.Writer(tmp_path / "b", if_exists="append") for _ in range(2))
    for i, writer in enumerate((first, second)):
        writer.write({"x": i})
        writer.close()
    assert stores.seen(tmp_path / "b") == {"train": [{"x": 0}, {"x": 1}]}


def test_two_writers_that_append_the_same_records_append_them_twice(tmp_path):
    for _ in range(2):
        write(tmp_path, 5, if_exists="append")
    pair = [ss.Writer(tmp_path, stores.SCHEMA, "append", options=stores.small().shards) for _ in range(2)]
    for writer in pair:
        writer.write(next(stores.records(7, 1)))
        writer.close()
    assert stores.ids(tmp_path) == [*range(5), *range(5), 7, 7]


def test_no_record_at_all_needs_a_schema(tmp_path):
    with pytest.raises(SchemaError, match="no record was written and no schema given"), ss.Writer(tmp_path / "a"):
        pass
    assert stores.snapshots(tmp_path / "a") == []
    with ss.Writer(tmp_path / "b", pa.schema([("x", pa.int8())])):
        pass
    assert stores.seen(tmp_path / "b") == {"train": []}
