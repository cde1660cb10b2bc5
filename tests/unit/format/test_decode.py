"""Gathered bytes become columns: offsets from 0, zeros under nulls, sums held against the row index."""

from __future__ import annotations

import base64
import hashlib

import numpy as np
import pyarrow as pa
import pytest

from shufflestore import _native
from shufflestore.dataset.inplace import shard_entry
from shufflestore.errors import CorruptData
from shufflestore.format.decode import Column, numpy_type
from tests.hostile import store_of
from tests.invented import arrow_bytes, index_of, joined, memory_store, opened


def columns(table: pa.Table, ids: list[int], widen: dict[str, str] | None = None) -> dict[str, Column]:
    dataset = opened(memory_store([arrow_bytes(table, 3)]))
    return dataset.columns_at(np.array(ids), dataset.projection(widen=widen))


def test_offsets_begin_at_zero_and_values_stand_end_to_end():
    made = columns(pa.table({"l": [[1, 2], [], [3], [4, 5, 6]]}), [3, 0, 1])["l"]
    assert made.offsets.tolist() == [0, 3, 5, 5]
    assert made.children[0].values.tolist() == [4, 5, 6, 1, 2]
    assert made.valid is None


def test_arrays_belong_to_the_batch_alone_and_may_be_written():
    made = columns(pa.table({"x": [1, 2], "l": [[1], [2]]}), [1, 0])
    made["x"].values[:] = 9
    made["l"].children[0].values[:] = 9
    assert made["l"].to_arrow().to_pylist() == [[9], [9]]


def test_integers_are_widened_where_asked_and_nowhere_else():
    table = pa.table({"l": pa.array([[1, 65535], []], pa.list_(pa.uint16())), "x": pa.array([1, 2], pa.int16())})
    made = columns(table, [0], {"uint16": "i8"})
    assert made["l"].children[0].values.dtype == np.int64
    assert made["l"].children[0].values.tolist() == [1, 65535]
    assert made["x"].values.dtype == np.int16


def test_inner_offsets_that_disagree_with_the_index_are_refused_although_their_checksum_is_right():
    table = pa.table({"deep": [[[1], [2, 3]], [[4]], [[5, 6], []]]})
    data = bytearray(arrow_bytes(table))
    at = data.index(np.array([0, 1, 3, 4, 6, 6], np.int32).tobytes())
    data[at : at + 24] = np.array([0, 2, 3, 4, 6, 6], np.int32).tobytes()  # same sums, other cuts: an honest index
    store = memory_store([bytes(data)])
    assert opened(store).take([0])["deep"].to_pylist() == [[[1, 2], [3]]]
    built = index_of(arrow_bytes(table))
    index = bytearray(joined(built))
    layout, page = built.header.layout, built.header.pages_at
    data[at : at + 24] = np.array([0, 9, 3, 4, 6, 6], np.int32).tobytes()  # within record 0: 9, then back
    place = next(i for i, b in enumerate(layout.reads) if b.role.name == "OFFSETS")
    entry = page + layout.page_head_bytes + layout.crcs + 4 * place
    index[entry : entry + 4] = _native.crc32c(data[at : at + 12]).to_bytes(4, "little")
    crc = _native.crc32c(index[page : page + layout.page_bytes]).to_bytes(4, "little")
    index[built.header.header_bytes - 4 : built.header.header_bytes] = crc
    digest = hashlib.sha256(index[: built.header.header_bytes]).digest()
    schema = base64.b64encode(table.schema.serialize().to_pybytes()).decode()
    splits = [{"name": "train", "record_count": 3, "shard_count": 1}]
    entry_row = shard_entry("a.arrow", "a.rows", 0, built, digest)
    lying = store_of(
        [entry_row], {"a.arrow": bytes(data), "a.rows": bytes(index)}, schema=schema, splits=splits, record_count=3
    )
    assert opened(lying).take([1])["deep"].to_pylist() == [[[4]]]
    with pytest.raises(CorruptData, match=r"'deep\.item'|'deep': offsets inside a record disagree"):
        opened(lying).take([0])


def test_a_column_of_more_than_31_bits_of_offsets_says_so():
    offsets = np.array([0, 2**31], np.int64)
    column = Column(pa.string(), 1, None, offsets, np.zeros(0, np.uint8))
    with pytest.raises(OverflowError, match="2,147,483,648 elements pass"):
        column.to_arrow()


@pytest.mark.parametrize(
    ("type_", "kind"),
    [(pa.bool_(), "?"), (pa.int8(), "i1"), (pa.uint64(), "u8"), (pa.float16(), "f2"), (pa.date32(), "i4"), (pa.date64(), "i8"),
     (pa.timestamp("ns"), "i8"), (pa.time32("s"), "i4"), (pa.duration("us"), "i8")],
)  # fmt: skip
def test_numbers_have_a_numpy_type(type_, kind):
    assert numpy_type(type_) == np.dtype(kind)


@pytest.mark.parametrize(
    "type_", [pa.string(), pa.decimal128(9, 2), pa.binary(4), pa.month_day_nano_interval(), pa.null()]
)
def test_what_is_no_number_has_none(type_):
    assert numpy_type(type_) is None
