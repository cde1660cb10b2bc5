"""Dicts to batches: what types values get, and that no value changes on the way."""

from __future__ import annotations

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shufflestore.convert.base import SourceOptions, detect
from shufflestore.convert.records import RecordBuilder, infer_schema
from shufflestore.errors import SchemaError, SourceError

TENSOR = pa.fixed_shape_tensor(pa.float32(), [2, 3])


def build(records, schema=None, **options) -> pa.Table:
    builder = RecordBuilder(schema, **options)
    batches = [batch for record in records if (batch := builder.add(record)) is not None]
    last = builder.flush()
    batches += [] if last is None else [last]
    for batch in batches:
        batch.validate(full=True)
    return pa.Table.from_batches(batches, builder.schema)


@pytest.mark.parametrize(
    ("values", "type_"),
    [
        ([1, None], pa.int64()),
        ([1, 2.5], pa.float64()),
        ([2**63], pa.uint64()),
        ([True, None], pa.bool_()),
        (["a", "ü\U0001f600"], pa.string()),
        ([b"a", bytearray(b"b"), memoryview(b"c")], pa.binary()),
        ([np.int8(1), np.int16(2)], pa.int16()),
        ([np.float32(1.5)], pa.float32()),
        ([np.bool_(True)], pa.bool_()),
        ([np.array(5, np.int32)], pa.int32()),
        ([np.zeros(2, np.uint16), None, np.ones(0, np.uint16)], pa.list_(pa.uint16())),
        ([np.zeros(2, ">i4")], pa.list_(pa.int32())),
        ([np.array([True, False])], pa.list_(pa.bool_())),
        ([np.array(["a", "b"])], pa.list_(pa.string())),
        ([np.zeros((2, 3), np.float32), None], TENSOR),
        ([np.zeros((2, 3), np.float32), np.zeros((1, 3), np.float32)], pa.list_(pa.list_(pa.float32()))),
        ([[1, 2], [], None, [3]], pa.list_(pa.int64())),
        ([[1, None], (2.5,)], pa.list_(pa.float64())),
        ([[["a"], []]], pa.list_(pa.list_(pa.string()))),
        ([[np.zeros(2, np.int8), np.zeros(1, np.int8)]], pa.list_(pa.list_(pa.int8()))),
        ([{"x": 1}, {"y": "b"}, None], pa.struct([("x", pa.int64()), ("y", pa.string())])),
        ([{"x": np.arange(3)}, {"x": None}], pa.struct([("x", pa.list_(pa.int64()))])),
        ([dt.date(2020, 1, 1)], pa.date32()),
        ([dt.datetime(2020, 1, 1)], pa.timestamp("us")),
        ([np.datetime64("2020-01-01T00:00:00")], pa.timestamp("s")),
        ([None, None], pa.null()),
    ],
)
def test_types_follow_values(values, type_):
    records = [{"v": value} for value in values]
    table = build(records)
    assert table.schema.field("v").type == type_
    got = table["v"].to_pylist() if not isinstance(type_, pa.FixedShapeTensorType) else None
    if got is not None:
        assert [plain(v) for v in got] == [plain(v) if not isinstance(v, dict) else plain(v, type_) for v in values]


def plain(value: Any, type_: pa.DataType | None = None) -> Any:
    """Return a value as Arrow gives it back."""
    if isinstance(value, np.datetime64):
        return value.item()
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, dict):
        value = {f.name: value.get(f.name) for f in type_} if type_ is not None else value
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def test_tensors_keep_their_values_nulls_and_shape():
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), None, np.ones((3, 2), np.float32).T]
    column = build([{"x": a} for a in arrays])["x"].combine_chunks()
    assert column.type == TENSOR
    assert column.null_count == 1
    assert column.storage.to_pylist() == [None if a is None else a.ravel().tolist() for a in arrays]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.int64(), 1.5),
        (pa.int64(), True),
        (pa.int64(), "1"),
        (pa.int8(), 200),
        (pa.int8(), np.int64(200)),
        (pa.uint64(), -1),
        (pa.float64(), True),
        (pa.float64(), 2**60 + 1),
        (pa.bool_(), 1),
        (pa.string(), b"a"),
        (pa.string(), 1),
        (pa.string(), "half \ud800"),
        (pa.binary(), "a"),
        (pa.null(), 1),
        (pa.list_(pa.int32()), [1.5]),
        (pa.list_(pa.int32()), [2**40]),
        (pa.list_(pa.int32()), np.zeros(2)),
        (pa.list_(pa.int32()), np.zeros((2, 2), np.int32)),
        (pa.list_(pa.int32()), np.array([2**40], np.int64)),
        (pa.list_(pa.int32()), 5),
        (pa.list_(pa.int32()), "ab"),
        (pa.list_(pa.int32()), {"a": 1}),
        (pa.list_(pa.string()), ["a", 1]),
        (pa.list_(pa.int32(), 2), np.zeros(3, np.int32)),
        (pa.list_(pa.int32(), 2), [1, 2, 3]),
        (pa.struct([("x", pa.int64())]), {"x": 1, "y": 2}),
        (pa.struct([("x", pa.int64())]), {"x": "a"}),
        (pa.struct([("x", pa.int64())]), [1]),
        (TENSOR, np.zeros((3, 2), np.float32)),
        (TENSOR, np.zeros((2, 3), np.float64)),
        (pa.timestamp("s"), "yesterday"),
    ],
)
def test_a_value_that_would_change_is_refused_and_the_builder_goes_on(type_, value):
    schema = pa.schema([("k", pa.int64()), ("l", pa.list_(pa.int8())), ("v", type_)])
    builder = RecordBuilder(schema)
    assert builder.add({"k": 0, "l": np.ones(2, np.int8), "v": None}) is None
    with pytest.raises(SchemaError, match=r"record 1: column 'v' has a .*but the schema says .*schema="):
        builder.add({"k": 1, "l": [None, 1], "v": value})
    builder.add({"k": 2, "l": None, "v": None})
    assert builder.flush().select(["k", "l"]).to_pylist() == [{"k": 0, "l": [1, 1]}, {"k": 2, "l": None}]


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"a": 1}, {"a": "x"}], r"record 1: column 'a' has a str 'x' \(string\), records before it int64"),
        ([{"a": [1, "x"]}], "record 0: column 'a' has a list"),
        ([{"a": 1j}], "record 0: column 'a' has a complex"),
        ([{"a": np.zeros(2, complex)}], "record 0: column 'a' has a complex128 array"),
        ([{"a": object()}], "record 0: column 'a' has a object"),
        ([{"a": 2**70}], "record 0: column 'a' has a int"),
        ([[1]], r"record 0 is a list \[1\]; a record is a dict"),
        ([{1: 2}], "the key 1 is a int"),
        ([{}], "no record has a column"),
    ],
)
def test_records_without_one_schema_are_refused(records, message):
    with pytest.raises(SchemaError, match=message):
        build(records)


def test_a_late_value_of_another_type_is_named_by_record():
    records = [{"a": None if i < 5_000 else i, "b": i} for i in range(5_001)]
    with pytest.raises(SchemaError, match=r"record 5,000: column 'a' has a int 5000, but the schema says null"):
        build(records)
    with pytest.raises(SchemaError, match=r"record 2,000 has the key 'c', which is not among \['a', 'b'\]"):
        build([{"a": 1, "b": 2}] * 2_000 + [{"a": 1, "b": 2, "c": 3}])


def test_nulls_are_given_a_type_within_the_first_thousand():
    table = build([{"a": None if i < 999 else [1.5]} for i in range(3_000)])
    assert table.schema.field("a").type == pa.list_(pa.float64())
    assert table["a"].null_count == 999


def test_missing_keys_are_null_and_required_ones_an_error():
    assert build([{"a": 1}, {"b": "x"}]).to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]
    schema = pa.schema([pa.field("a", pa.int64(), nullable=False), ("b", pa.string())])
    with pytest.raises(SchemaError, match=r"record 0: column 'a' has a NoneType .*rules None out"):
        build([{"b": "x"}], schema)


def test_an_array_that_its_owner_overwrites_keeps_its_value():
    shared, items = np.zeros(3, np.int32), [0]

    def give():
        for i in range(2_500):
            shared[:], items[0] = i, i
            yield {"x": shared, "l": items}

    for source in (detect(give), detect(give())):
        table = pa.Table.from_batches([b for p in source.pieces() for b in source.read(p)])
        assert table["x"].to_pylist() == [[i] * 3 for i in range(2_500)]
        assert table["l"].to_pylist() == [[i] for i in range(2_500)]


def test_batches_are_cut_by_bytes():
    builder = RecordBuilder(batch_bytes=100_000)
    sizes = [b.nbytes for i in range(3_000) if (b := builder.add({"x": np.zeros(1_000, np.int8)})) is not None]
    assert len(sizes) > 15
    assert max(sizes[1:]) < 110_000


def test_arrays_and_lists_may_alternate():
    values = [np.arange(3), [1, None], None, [4], np.arange(2, dtype=np.int8), (5, 6), np.arange(0)]
    table = build([{"x": v} for v in values], pa.schema([("x", pa.list_(pa.int64()))]))
    assert table["x"].to_pylist() == [[0, 1, 2], [1, None], None, [4], [0, 1], [5, 6], []]


@pytest.mark.parametrize("offsets", [pa.list_, pa.large_list])
def test_offsets_have_the_width_of_the_schema(offsets):
    schema = pa.schema([("x", offsets(pa.float32())), ("y", offsets(pa.string()))])
    records = [{"x": np.ones(i, np.float32), "y": ["a"] * i} for i in range(4)]
    assert build(records, schema)["y"].to_pylist() == [["a"] * i for i in range(4)]


def test_a_map_and_a_dictionary_column_are_built():
    schema = pa.schema([("m", pa.map_(pa.string(), pa.int64())), ("d", pa.dictionary(pa.int8(), pa.string()))])
    table = build([{"m": {"a": 1}, "d": "x"}, {"m": None, "d": None}], schema)
    assert table.to_pylist() == [{"m": [("a", 1)], "d": "x"}, {"m": None, "d": None}]


@pytest.mark.parametrize("empty", [[], iter(()), lambda: iter(())])
def test_no_records_is_an_error(empty):
    with pytest.raises(SourceError, match="gives no records"):
        detect(empty).schema()


def test_what_gives_no_dicts_is_named():
    with pytest.raises(SchemaError, match="record 0 is a int 1; a record is a dict"):
        detect([1, 2]).schema()


def test_a_type_given_overrules_what_records_disagree_on():
    source = detect([{"a": 1}, {"a": 2.5}], options=SourceOptions(schema={"a": "float32"}))
    assert source.schema() == pa.schema([("a", pa.float32())])


def test_the_fingerprint_tells_records_apart():
    assert detect([{"a": np.zeros(2_000)}]).fingerprint() == detect([{"a": np.zeros(2_000)}]).fingerprint()
    changed = np.zeros(2_000)
    changed[1_000] = 1
    assert detect([{"a": changed}]).fingerprint() != detect([{"a": np.zeros(2_000)}]).fingerprint()


PLAIN = {
    "a": st.lists(st.integers(-9, 9) | st.none()),
    "b": st.text(st.characters(exclude_categories=["Cs"]), max_size=3),
    "c": st.floats(allow_nan=False),
}


@given(st.lists(st.fixed_dictionaries(PLAIN), min_size=1))
def test_plain_records_come_back_as_they_went_in(records):
    schema = pa.schema([("a", pa.list_(pa.int64())), ("b", pa.string()), ("c", pa.float64())])
    assert build(records, schema).to_pylist() == records


def test_integers_past_53_bits_are_not_rounded_to_floats():
    schema = pa.schema([("x", pa.list_(pa.float64()))])
    assert build([{"x": np.array([3])}], schema)["x"].to_pylist() == [[3.0]]
    with pytest.raises(SchemaError, match="record 0"):
        build([{"x": np.array([2**60 + 1])}], schema)


@given(
    arrays=st.lists(st.none() | st.lists(st.integers(0, 255), max_size=5), min_size=1, max_size=50),
    batch_bytes=st.integers(1, 200),
)
def test_arrays_agree_with_pyarrows_own_conversion(arrays, batch_bytes):
    values = [None if a is None else np.array(a, np.uint8) for a in arrays]
    schema = pa.schema([("x", pa.list_(pa.uint8()))])
    assert build([{"x": v} for v in values], schema, batch_bytes=batch_bytes)["x"].to_pylist() == arrays


def test_infer_schema_of_nested_arrays_of_equal_shape_is_a_list_inside_a_struct():
    assert infer_schema([{"s": {"x": np.zeros((2, 2))}}]).field("s").type == pa.struct(
        [("x", pa.list_(pa.list_(pa.float64())))]
    )
