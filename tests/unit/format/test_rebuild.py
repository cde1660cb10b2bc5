"""Columns read whole are rebuilt from checked numbers alone and delivered as plain values."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shufflestore.errors import CorruptData
from shufflestore.format import rebuild
from shufflestore.format.rebuild import Part, delivered_type, dictionary_fields, rebuild_column
from tests import hostile
from tests.arrays import NULLS, TYPES, pool
from tests.invented import arrow_bytes, memory_store, opened
from tests.property.test_types import values_of


@pytest.mark.parametrize("name", TYPES)
def test_every_type_is_rebuilt_from_compressed_chunks(name):
    for nulls in NULLS:
        array = pool(name, nulls).slice(3, 50)
        taken = opened(memory_store([arrow_bytes(pa.table({"c": array}), 20, "zstd")])).take(range(49, -1, -1))["c"]
        taken.validate(full=True)
        assert values_of(taken) == values_of(array)[::-1]


def test_dictionaries_runs_and_views_are_delivered_as_what_they_stand_for():
    inner = pa.dictionary(pa.int8(), pa.string())
    assert delivered_type(inner) == pa.string()
    assert delivered_type(pa.run_end_encoded(pa.int32(), inner)) == pa.string()
    assert delivered_type(pa.list_view(pa.string_view())) == pa.large_list(pa.large_string())
    assert delivered_type(pa.struct([("d", inner)])) == pa.struct([("d", pa.string())])
    assert delivered_type(pa.map_(pa.string(), inner)) == pa.map_(pa.string(), pa.string())
    assert delivered_type(pa.list_(inner, 3)) == pa.list_(pa.string(), 3)
    union = pa.dense_union([pa.field("d", inner)])
    assert delivered_type(union) == pa.dense_union([pa.field("d", pa.string())])


def test_dictionaries_are_numbered_outermost_first():
    nested = pa.struct(
        [("a", pa.dictionary(pa.int8(), pa.string())), ("b", pa.list_(pa.dictionary(pa.int8(), pa.int64())))]
    )
    assert [d.value_type for d in dictionary_fields(nested)] == [pa.string(), pa.int64()]


def test_a_stream_that_replaces_or_grows_its_dictionary_is_read_with_the_one_in_force():
    def batch(values):
        return pa.record_batch([pa.array(values).dictionary_encode()], ["d"])

    for deltas in (False, True):
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
        with pa.ipc.new_stream(sink, batch(["a"]).schema, options=options) as writer:
            for values in (["a", "b"], ["a", "b", "c"], ["z", "y"], ["z", "y", "x"]):
                writer.write_batch(batch(values))
        dataset = opened(memory_store([sink.getvalue().to_pybytes()]))
        assert dataset.take(range(9, -1, -1))["d"].to_pylist() == ["x", "y", "z", "y", "z", "c", "b", "a", "b", "a"]


@pytest.mark.parametrize("name", [n for n, _ in hostile.whole_edits()])
def test_a_lying_chunk_table_is_refused_by_name(name):
    edited = hostile.Parts()
    edited.set_whole(dict(hostile.whole_edits())[name](edited.whole()))
    message = hostile.refused(lambda: hostile.read_all(edited.store()))
    assert message.startswith("CorruptData: memory://: a.")


def test_a_compressed_buffer_that_claims_too_much_is_refused_before_anything_is_allocated(monkeypatch):
    store = memory_store([arrow_bytes(pa.table({"z": [0] * 100_000}), codec="zstd")])
    assert opened(store).take([99_999])["z"].to_pylist() == [0]
    monkeypatch.setattr(rebuild, "UNPACKED_LIMIT", 799_999)
    with pytest.raises(CorruptData, match="claims to unpack to 800,000 bytes, allowed are 799,999"):
        opened(store).take([0])


@pytest.mark.parametrize(("name", "store"), list(hostile.bombs()))
def test_a_forged_claim_is_a_named_error(name, store):
    assert "unpack" in hostile.refused(lambda: hostile.read_all(store))


def test_bytes_that_arrow_refuses_are_corrupt_data_of_that_column():
    part = Part(0, 16, None, None, ((2, 0),), ((0, 0), (0, 8), (8, 8)), ())
    body = (5).to_bytes(4, "little") + (1).to_bytes(4, "little") + b"abcdefgh"
    with pytest.raises(CorruptData, match="column 's' of a chunk cannot be read back"):
        rebuild_column(pa.field("s", pa.string()), 2, part, body, [])
