"""Runs of plain records, taken by the native core, give the batches that records taken one by one give."""

from __future__ import annotations

import enum
import itertools
import signal
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shufflestore.convert.records import RecordBuilder
from shufflestore.convert.sources.iterable import records as records_module
from shufflestore.convert.sources.iterable.runs import runs_of
from shufflestore.errors import SchemaError


class Small(enum.IntEnum):
    ONE = 1


class Text(str):
    __slots__ = ()


class Sub(np.ndarray):
    pass


def arrays(dtype: str, *shape: int | None) -> st.SearchStrategy[Any]:
    """Arrays of a dtype; None in a shape is any length."""
    lengths = [st.integers(0, 5) if length is None else st.just(length) for length in shape]
    return st.tuples(st.tuples(*lengths), st.integers(0, 99)).map(
        lambda drawn: (np.arange(np.prod(drawn[0])) + drawn[1]).astype(dtype).reshape(drawn[0])
    )


INTS = st.integers(-128, 127)
FLOATS = st.floats() | st.just(-1.0)
COLUMNS: dict[str, tuple[pa.DataType, st.SearchStrategy[Any], st.SearchStrategy[Any]]] = {
    # column: its type, plain values, and others, of which some fit and some do not
    "list": (
        pa.list_(pa.int32()),
        arrays("i4", None),
        st.one_of(
            arrays("i4", None).map(lambda a: np.repeat(a, 2)[::2]),
            arrays("i4", None).map(lambda a: a[::-1]),
            arrays("i4", None).map(lambda a: a.view(Sub)),
            arrays("i4", None, 2),
            *[arrays(dtype, None) for dtype in (">i4", "i8", "i2", "u4", "f4", "M8[s]", "O", "?")],
            st.sampled_from([None, [], [1, 2], [1, None], [2**40], "a", 5, np.int32(5), np.array(5, np.int32)]),
        ),
    ),
    "large": (pa.large_list(pa.float16()), arrays("f2", None), arrays("f4", None) | st.none()),
    "pair": (pa.list_(pa.uint8(), 2), arrays("u1", 2), arrays("u1", None) | arrays("i1", 2) | st.none()),
    "tensor": (
        pa.fixed_shape_tensor(pa.float64(), [2, 1]),
        arrays("f8", 2, 1),
        arrays("f8", 1, 2) | arrays("f8", 2, 1).map(np.asfortranarray) | arrays("f8", 2) | st.none(),
    ),
    "i1": (
        pa.int8(),
        st.one_of(INTS, INTS.map(np.int8), INTS.map(np.int64), INTS.map(np.longlong)),
        st.sampled_from([128, -129, 2**70, np.int64(128), np.uint64(2**64 - 1), True, 1.0, Small.ONE, None, "1"]),
    ),
    "i8": (
        pa.int64(),
        st.integers(-(2**63), 2**63 - 1),
        st.sampled_from([2**63, -(2**63) - 1, np.timedelta64(1, "s")]),
    ),
    "u4": (pa.uint32(), st.integers(0, 2**32 - 1), st.sampled_from([-1, 2**32, np.int8(-1), np.bool_(True)])),
    "u8": (
        pa.uint64(),
        st.integers(0, 2**64 - 1) | st.integers(0, 2**64 - 1).map(np.uint64),
        st.sampled_from([-1, 2**64, -(2**70), np.array(5)]),
    ),
    "f4": (
        pa.float32(),
        FLOATS | FLOATS.map(np.float64) | st.floats(width=32).map(np.float32),
        st.sampled_from([1, 2**60 + 1, np.int8(1), np.longdouble(1), True, None, "1"]),
    ),
    "f8": (pa.float64(), FLOATS | st.floats(width=16).map(np.float16), st.sampled_from([1, None, np.float32(0.1)])),
    "bool": (pa.bool_(), st.booleans() | st.booleans().map(np.bool_), st.sampled_from([0, 1, None, "x"])),
    "text": (
        pa.string(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
        st.sampled_from([None, "half \ud800", Text("x"), b"x", np.str_("y")]),
    ),
    "large_bytes": (pa.large_binary(), st.binary(max_size=4), st.sampled_from([None, bytearray(b"x"), "x"])),
}
KEYED: list[Any] = [
    OrderedDict,
    lambda record: record | {"other": 1},
    lambda record: record | {1: 1},
    lambda record: {**dict(itertools.islice(record.items(), 1, None)), "other": 1},
    lambda record: dict(itertools.islice(record.items(), 1, None)),
    lambda record: list(record),
    lambda record: None,
]
"""Records that are not dicts with the schema's keys."""


@st.composite
def cases(draw: st.DrawFn) -> tuple[pa.Schema, list[Any]]:
    names = draw(st.lists(st.sampled_from(sorted(COLUMNS)), min_size=1, max_size=4, unique=True))
    schema = pa.schema([(name, COLUMNS[name][0]) for name in names])
    plain = st.fixed_dictionaries({name: COLUMNS[name][1] for name in names})
    made = draw(st.lists(plain, max_size=12))
    for at in draw(st.lists(st.integers(0, 11), max_size=3, unique=True)):
        if at >= len(made):
            continue
        if draw(st.booleans()):
            name = draw(st.sampled_from(names))
            made[at] = made[at] | {name: draw(COLUMNS[name][2])}
        else:
            made[at] = draw(st.sampled_from(KEYED))(made[at])
    return schema, made


def outcome(builder: RecordBuilder, batches: Iterator[pa.RecordBatch | None]) -> list[Any]:
    """Return rows and bytes of all batches, the errors that ended them, and the count of records."""
    found: list[Any] = []

    def note(batch: pa.RecordBatch | None) -> None:
        if batch is not None:
            batch.validate(full=True)
            found.append((batch.num_rows, batch.serialize().to_pybytes()))

    try:
        for batch in batches:
            note(batch)
    except SchemaError as error:
        found.append(str(error))
    try:
        note(builder.flush())
    except SchemaError as error:
        found.append(str(error))
    return [*found, builder.record_count]


def overwritten(records: Iterable[Any]) -> Iterator[Any]:
    """Give records whose arrays are overwritten as soon as the next is asked for."""
    for record in records:
        values = list(record.values()) if type(record) is dict else []
        lent = [v.copy() if type(v) is np.ndarray and v.flags.c_contiguous else v for v in values]
        yield dict(zip(record, lent, strict=True)) if values else record
        for value, own in zip(lent, values, strict=True):
            if value is not own:
                value[...] = 77


@given(case=cases(), batch_bytes=st.integers(1, 300), patience=st.integers(0, 3), ignores=st.booleans())
@example(case=(pa.schema([("i1", pa.int8())]), []), batch_bytes=1, patience=0, ignores=False)
def test_runs_give_the_batches_of_records_taken_one_by_one(case, batch_bytes, patience, ignores):
    schema, records = case
    slow = RecordBuilder(schema, batch_bytes=batch_bytes, ignores_other_keys=ignores)
    expected = outcome(slow, (slow.add(record) for record in records))
    fast = RecordBuilder(schema, batch_bytes=batch_bytes, ignores_other_keys=ignores)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "_PATIENCE", patience)
        assert outcome(fast, fast.add_many(overwritten(records))) == expected


@given(case=cases(), held=st.integers(1, 4), patience=st.integers(0, 3))
def test_the_first_records_may_make_the_schema(case, held, patience):
    _, records = case
    slow, fast = RecordBuilder(batch_bytes=100), RecordBuilder(batch_bytes=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records_module, "HELD_RECORDS", held)
        patch.setattr(records_module, "_PATIENCE", patience)
        expected = outcome(slow, (slow.add(record) for record in records))
        assert outcome(fast, fast.add_many(overwritten(records))) == expected


@given(names=st.sets(st.sampled_from(sorted(COLUMNS)), min_size=1), count=st.integers(1, 9), data=st.data())
def test_every_plain_value_goes_by_runs(names, count, data):
    """Otherwise the test above would compare the slow way with itself."""
    runs = runs_of(pa.schema([(name, COLUMNS[name][0]) for name in sorted(names)]))
    plain = data.draw(st.lists(st.fixed_dictionaries({n: COLUMNS[n][1] for n in names}), min_size=1, max_size=count))
    assert runs.consume(iter(plain), 1 << 40) is None
    assert runs.record_count == len(plain)


@pytest.mark.parametrize(
    "type_",
    [pa.timestamp("s"), pa.float16(), pa.list_(pa.string()), pa.struct([("x", pa.int8())]), pa.list_(pa.int8(), 0)],
)
def test_a_schema_with_a_column_of_another_kind_has_no_runs(type_):
    assert runs_of(pa.schema([("a", pa.int8()), ("b", type_)])) is None


class Trouble(Exception):
    pass


@pytest.mark.parametrize("trouble", [Trouble, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("good", [0, 1, 100])
def test_what_an_iterator_raises_goes_through_and_the_records_before_it_are_kept(trouble, good):
    def give() -> Iterator[dict[str, Any]]:
        for i in range(good):
            yield {"x": i, "y": np.full(i, i)}
        raise trouble("here")

    builder = RecordBuilder(pa.schema([("x", pa.int64()), ("y", pa.list_(pa.int64()))]))
    with pytest.raises(trouble, match="here"):
        list(builder.add_many(give()))
    assert builder.record_count == good
    kept = builder.flush()
    assert (kept.to_pylist() if kept is not None else []) == [{"x": i, "y": [i] * i} for i in range(good)]


def test_signals_are_heard_while_no_python_code_runs():
    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    builder = RecordBuilder(pa.schema([("x", pa.int64())]), batch_bytes=1 << 50)
    before = signal.signal(signal.SIGVTALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0.02)
        with pytest.raises(KeyboardInterrupt):
            list(builder.add_many(itertools.repeat({"x": 7})))
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    kept = builder.flush()
    assert kept.num_rows == builder.record_count > 1_000
    assert set(kept["x"].to_pylist()) == {7}


def test_a_key_whose_comparison_raises_raises_as_it_does_one_by_one():
    class Key(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            raise Trouble("compared")

    builder = RecordBuilder(pa.schema([("x", pa.int64()), ("y", pa.int64())]))
    with pytest.raises(Trouble, match="compared"):
        list(builder.add_many([{"x": 1, "y": 2}, {"x": 1, Key("y"): 2}]))
    assert builder.flush().to_pylist() == [{"x": 1, "y": 2}]


def test_a_builder_may_be_given_records_both_ways():
    builder = RecordBuilder(pa.schema([("x", pa.list_(pa.int16()))]))
    for start in range(0, 40, 4):
        assert not list(builder.add_many({"x": np.full(i, i, np.int16)} for i in (start, start + 1)))
        assert builder.add({"x": np.full(start + 2, start + 2, np.int16)}) is None
        assert builder.add({"x": [start + 3]}) is None
    assert builder.record_count == 40
    assert [row["x"] for row in builder.flush().to_pylist()] == [[i] if i % 4 == 3 else [i] * i for i in range(40)]
    assert builder.flush() is None


def test_arrays_of_batches_outlive_the_builder():
    def give() -> Iterator[dict[str, Any]]:
        for i in range(3_000):
            yield {"x": np.full(i % 50, i, np.int32)}

    builder = RecordBuilder(pa.schema([("x", pa.list_(pa.int32()))]), batch_bytes=10_000)
    batches = [*builder.add_many(give()), builder.flush()]
    del builder
    assert len(batches) > 20
    assert [row for b in batches for row in b["x"].to_pylist()] == [[i] * (i % 50) for i in range(3_000)]
