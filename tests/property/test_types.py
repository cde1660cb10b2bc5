"""Every Arrow type, whatever its nulls, slice offset, length, chunks and storage, comes back as pyarrow sees it."""

from __future__ import annotations

import random
import time
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.format.rebuild import delivered_type
from shufflestore.format.schema import is_whole, plain_type
from tests.arrays import NULLS, TYPES, pool
from tests.invented import arrow_bytes, memory_store, opened

OFFSETS, LENGTHS = range(18), range(131)
STORED = (("file", None), ("stream", None), ("file", "lz4"), ("file", "zstd"))
SPAN_TYPES = tuple(name for name in TYPES if not is_whole(pool(name, "none").type))


def values_of(array: pa.Array | pa.ChunkedArray) -> list[Any]:
    """Return what pyarrow says the values are, extension types as what they store."""
    if isinstance(array, pa.ChunkedArray):
        return [value for chunk in array.chunks for value in values_of(chunk)]
    return _stored((array.storage if isinstance(array, pa.ExtensionArray) else array).to_pylist())


def _stored(value: Any) -> Any:
    if isinstance(value, list):
        return [_stored(inner) for inner in value]
    if isinstance(value, dict):
        return {key: _stored(inner) for key, inner in value.items()}
    return value.bytes if isinstance(value, uuid.UUID) else value


def cut(r: random.Random, columns: dict[str, pa.Array]) -> list[pa.RecordBatch]:
    """Return columns as record batches, of one size or of any sizes, empty ones too."""
    length = len(next(iter(columns.values())))
    if r.random() < 0.5:
        step = r.choice((1, 7, 32, 64, 131))
        ends = list(range(step, length, step))
    else:
        ends = sorted(r.randint(0, length) for _ in range(r.randint(0, 4)))
    whole = pa.record_batch(list(columns.values()), list(columns))
    return [whole.slice(a, b - a) for a, b in zip([0, *ends], [*ends, length], strict=True)]


def round_trip(r: random.Random, names: list[str]) -> None:
    """Store one slice of each type's pool and read it in any order, with repetition, wholly and in part."""
    length, seed = r.choice(LENGTHS), r.randrange(3)
    (kind, codec), checksums = r.choice(STORED), r.random() < 0.7
    columns = {n: pool(n, r.choice(NULLS), seed).slice(r.choice(OFFSETS), length) for n in names}
    story = {"length": length, "seed": seed, "kind": kind, "codec": codec, "checksums": checksums}
    data = arrow_bytes(cut(r, columns), codec=codec, stream=kind == "stream")
    dataset = opened(memory_store([data], checksums), verify=checksums)
    assert len(dataset) == length, story
    ids = [r.randrange(length) for _ in range(r.choice((0, 1, 5, 64, 150)))] if length else []
    chosen = r.sample(names, r.randint(1, len(names))) if r.random() < 0.3 else names
    table = dataset.take(ids, columns=chosen)
    table.validate(full=True)
    assert table.column_names == chosen
    for name in chosen:
        oracle = values_of(columns[name])
        assert values_of(table[name]) == [oracle[i] for i in ids], (name, story, ids)
        plain = delivered_type(columns[name].type) if codec or is_whole(columns[name].type) else None
        kept = columns[name].type if isinstance(columns[name], pa.ExtensionArray) else plain
        assert table[name].type in (kept, plain_type(columns[name].type)), (name, story)


def rounds(count: int, seed: int, types: tuple[str, ...], width: int) -> int:
    """Run `count` data sets of `width` types each; return the combinations of type, nulls, offset and length."""
    for number in range(count):
        r = random.Random(f"{seed}/{number}")
        names = r.sample(types, width)
        try:
            round_trip(r, names)
        except AssertionError:
            raise
        except Exception as cause:
            raise AssertionError(f"seed {seed}, round {number}, types {names}") from cause
    return count * width


@pytest.mark.parametrize("name", TYPES)
def test_each_type_alone_comes_back_with_every_pattern_of_nulls(name):
    for number in range(8):
        r = random.Random(f"{name}/{number}")
        round_trip(r, [name])


@pytest.mark.parametrize("seed", range(4))
def test_types_beside_each_other_come_back_at_any_offset_and_length(seed):
    assert rounds(60, seed, SPAN_TYPES, 12) == 720


def test_hundreds_of_columns_of_every_type_are_read_together():
    r = random.Random(7)
    length = 40
    columns = {f"{n}.{nulls}": pool(n, nulls).slice(r.choice(OFFSETS), length) for n in SPAN_TYPES for nulls in NULLS}
    dataset = opened(memory_store([arrow_bytes(cut(r, columns))]))
    ids = [r.randrange(length) for _ in range(60)]
    table = dataset.take(ids)
    for name, array in columns.items():
        oracle = values_of(array)
        assert values_of(table[name]) == [oracle[i] for i in ids], name


def test_what_arrow_keeps_under_nulls_is_delivered_as_zeros():
    numbers = pa.Array.from_buffers(pa.int64(), 3, [pa.py_buffer(b"\x05"), pa.array([1, 0xDEAD, 3]).buffers()[1]])
    text = pa.array(["a", "secret", "c"])
    text = pa.Array.from_buffers(pa.string(), 3, [pa.py_buffer(b"\x05"), *text.buffers()[1:]])
    wide = pa.Array.from_buffers(pa.binary(16), 3, [pa.py_buffer(b"\x05"), pa.py_buffer(b"x" * 48)])
    struct = pa.StructArray.from_arrays([pa.array([7, 8, 9])], ["inner"], mask=pa.array([False, True, False]))
    table = pa.table({"n": numbers, "s": text, "w": wide, "t": struct})
    taken = opened(memory_store([arrow_bytes(table)])).take([1, 1, 0])
    assert taken["n"].chunk(0).buffers()[1].to_pybytes()[:16] == bytes(16)
    assert b"secret" not in b"".join(b.to_pybytes() for b in taken["s"].chunk(0).buffers() if b)
    assert taken["w"].chunk(0).buffers()[1].to_pybytes()[:32] == bytes(32)
    assert np.frombuffer(taken["t"].chunk(0).field(0).buffers()[1], np.int64).tolist() == [0, 0, 7]


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_campaign_twenty_thousand_combinations_of_type_nulls_offset_and_length():
    started, done = time.monotonic(), 0
    for seed in range(100, 140):
        done += rounds(50, seed, SPAN_TYPES, 14) + rounds(20, seed, TYPES, 10)
    print(f"\nL1: {done:,} combinations equal to pyarrow in {time.monotonic() - started:.0f} s")
    assert done >= 20_000
