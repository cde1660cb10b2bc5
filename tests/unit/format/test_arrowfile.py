"""The scanner finds every message of a file or stream, and refuses what leaves the bytes at hand."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.errors import CorruptData, FormatError, UnsupportedFeature
from shufflestore.format.arrowfile import column_parts, is_stream, scan
from tests.arrays import NULLS, TYPES, pool
from tests.invented import arrow_bytes

TABLE = pa.table({"a": pa.array(range(100), pa.int32()), "s": [str(i) for i in range(100)]})


def scanned(data: bytes):
    return scan(lambda offset, size: data[offset : offset + size], len(data))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
def test_batches_rows_and_codec_are_those_that_were_written(stream, codec):
    found = scanned(arrow_bytes(TABLE, 30, codec, stream))
    assert [b.row_count for b in found.batches] == [30, 30, 30, 10]
    assert {b.codec for b in found.batches} == {codec}
    assert (found.row_count, found.is_stream, found.schema) == (100, stream, TABLE.schema)


def test_buffers_lie_where_arrow_put_them():
    data = arrow_bytes(TABLE, 30)
    offset, length = scanned(data).batches[1].buffers[1].tolist()
    assert np.frombuffer(data[offset : offset + length], np.int32)[:30].tolist() == list(range(30, 60))


@pytest.mark.parametrize("name", TYPES)
def test_every_type_has_the_nodes_and_buffers_that_its_message_has(name):
    for nulls in NULLS:
        found = scanned(arrow_bytes(pa.table({"c": pool(name, nulls), "d": pool("int8", "none")}), 64))
        for batch in found.batches:
            first, second = column_parts(found.schema, batch)
            assert second.first_buffer == first.buffer_count == len(batch.buffers) - 2


def test_dictionaries_and_deltas_are_found_with_the_batch_from_which_they_hold():
    def batch(values):
        return pa.record_batch([pa.array(values).dictionary_encode()], ["d"])

    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=True)
    with pa.ipc.new_stream(sink, batch(["a"]).schema, options=options) as writer:
        for values in (["a", "b"], ["a", "b", "c"], ["z"]):
            writer.write_batch(batch(values))
    found = scanned(sink.getvalue().to_pybytes())
    assert [(d.before, d.is_delta) for d in found.dictionaries] == [(0, False), (1, True), (2, False)]
    assert found.dictionary_ids == (0,)


def test_files_streams_and_neither_are_told_apart():
    def kind(data):
        return is_stream(lambda offset, size: data[offset : offset + size], len(data))

    assert not kind(arrow_bytes(TABLE))
    assert kind(arrow_bytes(TABLE, stream=True))
    for data in (b"", b"ARROW", b"PAR1" * 9, bytes(100)):
        with pytest.raises(FormatError, match="neither an Arrow IPC file nor a stream"):
            kind(data)


@pytest.mark.parametrize("stream", [False, True])
def test_a_file_cut_anywhere_is_refused_or_has_whole_batches_only(stream):
    data = arrow_bytes(TABLE, 30, stream=stream)
    whole = 0
    for length in range(len(data)):
        try:
            whole += scanned(data[:length]).row_count in (0, 30, 60, 90, 100)
        except FormatError:
            whole += 1
    assert whole == len(data)


def test_a_file_with_a_batch_named_twice_is_refused():
    data = bytearray(arrow_bytes(TABLE, 50))
    length = struct.unpack("<i", data[-10:-6])[0]
    at = data.index(struct.pack("<I", 2), len(data) - 10 - length) + 4
    data[at + 24 : at + 48] = data[at : at + 24]
    with pytest.raises(CorruptData, match="overlap"):
        scanned(bytes(data))


def test_records_that_no_bytes_stand_for_are_refused_beyond_a_limit():
    batch = pa.RecordBatch.from_arrays([pa.Array.from_buffers(pa.null(), 2**30, [None])], ["n"])
    with pytest.raises(UnsupportedFeature, match=r"1,073,741,824 records"):
        scanned(arrow_bytes([batch]))


def test_metadata_before_arrow_0_15_is_read_without_its_mark():
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, TABLE.schema, options=pa.ipc.IpcWriteOptions(use_legacy_format=True)) as writer:
        writer.write_table(TABLE, max_chunksize=40)
    data = sink.getvalue().to_pybytes()
    assert data[8:12] != b"\xff\xff\xff\xff"
    assert [b.row_count for b in scanned(data).batches] == [40, 40, 20]


def test_column_names_that_are_no_utf8_are_a_named_error():
    data = bytearray(arrow_bytes(pa.table({"abcdefgh": [1]})))
    start = 0
    while (start := data.find(b"abcdefgh", start)) >= 0:
        data[start : start + 8] = b"\xff\xfe\xfd\xfc\xff\xff\xff\xff"
    with pytest.raises(FormatError, match="schema message is damaged"):
        scanned(bytes(data))
