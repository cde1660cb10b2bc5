"""An index vouches for the bytes that lie in the shard: every range, start and checksum is what a reader will find."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from shufflestore import _native
from shufflestore.errors import CorruptData
from shufflestore.format.arrowfile import scan
from shufflestore.format.encode import build_index
from shufflestore.format.schema import build_tree
from tests.invented import arrow_bytes, index_of, joined, memory_store, opened, resolved


def test_ranges_hold_the_bytes_of_each_value_and_their_checksum():
    texts = ["a", "", "ccc", None, "é" * 9]
    data = arrow_bytes(pa.table({"s": texts}), 2)
    _, reads = resolved(opened(memory_store([data])))
    assert reads["reserved"].tolist() == [0, 2, 4]
    for offset, size, crc, i in reads[["offset", "size", "crc", "reserved"]].tolist():
        assert data[offset : offset + size] == texts[i].encode()
        assert crc == _native.crc32c(texts[i].encode())


def test_a_null_record_reads_nothing_whatever_hides_under_it():
    hidden = pa.Array.from_buffers(
        pa.string(), 3, [pa.py_buffer(b"\x05"), *pa.array(["a", "secret", "c"]).buffers()[1:]]
    )
    found, reads = resolved(opened(memory_store([arrow_bytes(pa.table({"s": hidden}))])))
    assert reads[["reserved", "size"]].tolist() == [(0, 1), (2, 1)]
    assert found.counts[0].tolist() == [1, 0, 1]


def test_bits_below_row_depth_are_read_as_the_bytes_that_cover_them():
    table = pa.table({"m": [[True] * 5, [False] * 9, [], [True] * 3]})
    found, reads = resolved(opened(memory_store([arrow_bytes(table)])))
    assert reads[["reserved", "size"]].tolist() == [(0, 1), (1, 2), (3, 2)]
    assert found.shift[-1].tolist() == [0, 5, 0, 6]


def test_the_same_shard_gives_the_same_index_and_nothing_else_does():
    data = arrow_bytes(pa.table({"s": ["a", "b"]}))
    assert joined(index_of(data)) == joined(index_of(data))
    assert joined(index_of(data)) != joined(index_of(arrow_bytes(pa.table({"s": ["a", "c"]}))))


def test_without_checksums_entries_are_smaller_and_no_crc_stands_anywhere():
    data = arrow_bytes(pa.table({"s": ["a", "b"], "t": ["c", "d"]}))
    with_, without = index_of(data).header, index_of(data, checksums=False).header
    assert with_.layout.entry_bytes - without.layout.entry_bytes == 8
    assert without.outside_crc == 0


def test_rows_of_a_chunk_fill_whole_pages_of_their_own():
    header = index_of(arrow_bytes(pa.table({"s": [str(i) for i in range(1000)]}), 600)).header
    per = header.layout.rows_per_page
    assert header.page_count == -(-600 // per) + -(-400 // per)


@pytest.mark.parametrize(
    ("type_", "offsets", "values", "complaint"),
    [
        (pa.string(), [0, 5, 3], b"abcde", "offsets decrease"),
        (pa.string(), [-1, 1, 2], b"abcde", "offsets decrease"),
        (pa.string(), [0, 2, 2**30], b"abcde", "reach 1,073,741,824, but it has"),
        (pa.large_string(), [0, 1, 2**60], b"abcde", "reach 1,152,921,504,606,846,976, but it has"),
        (pa.large_string(), [0, 1, 2**40], b"abcde", "reach 1,099,511,627,776, but it has"),
    ],
)
def test_offsets_that_lead_astray_are_refused_by_column(type_, offsets, values, complaint):
    width = np.int64 if type_ == pa.large_string() else np.int32
    buffers = [None, pa.py_buffer(np.array(offsets, width)), pa.py_buffer(values)]
    data = bytearray(arrow_bytes(pa.table({"c": pa.array(["ab", "cde"], type_)})))
    good = np.array([0, 2, 5], width).tobytes()
    at = data.index(good)
    data[at : at + len(good)] = buffers[1].to_pybytes()
    with pytest.raises(CorruptData, match=f"'c'.*{complaint}|{complaint}.*"):
        index_of(bytes(data))


def test_a_level_of_more_than_32_bits_is_read_whole_instead(monkeypatch):
    monkeypatch.setattr("shufflestore.format.encode._LEVEL_LIMIT", 50)
    data = arrow_bytes(pa.table({"long": ["x" * 20] * 9, "short": ["y"] * 9}))
    built = index_of(data)
    assert built.header.layout.tree.whole == {0}
    store = memory_store([data])
    assert opened(store).take([8, 0]).to_pylist() == [{"long": "x" * 20, "short": "y"}] * 2


def test_shards_that_hold_a_column_whole_mix_with_shards_that_do_not():
    plain = pa.table({"s": ["a", None, "c"], "x": [1, 2, 3]})
    store = memory_store([arrow_bytes(plain), arrow_bytes(plain, codec="lz4"), arrow_bytes(plain, 2)])
    taken = opened(store).take([8, 5, 0, 3, 4, 1])
    assert taken["s"].to_pylist() == ["c", "c", "a", "a", None, None]
    assert taken["x"].to_pylist() == [3, 3, 1, 1, 2, 2]


def test_an_index_needs_the_columns_of_its_data_set():
    data = np.frombuffer(arrow_bytes(pa.table({"x": [1]})), np.uint8)
    found = scan(lambda offset, size: data[offset : offset + size].tobytes(), len(data))
    assert build_index(data, found, build_tree(pa.schema([("x", pa.int64())]))).header.row_count == 1
