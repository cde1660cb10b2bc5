"""Attempts on the reader: (name, attempt) pairs that must be refused, may be read, or must do no harm."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pyarrow as pa

from shufflestore.dataset.foreign import discover
from shufflestore.dataset.inplace import shard_entry
from shufflestore.format.manifest import SHARD_TABLE, Manifest, Shards, snapshot_name
from tests.hostile import (
    DESCRIPTIONS,
    ENTRIES,
    PICKLE,
    ROOTS,
    ROWS,
    TABLE,
    TEXTS,
    Attempt,
    Parts,
    bombs,
    edited_descriptions,
    mutated,
    page_edits,
    read_all,
    signed,
    store_of,
    tables,
    whole_edits,
)
from tests.invented import MemoryStore, arrow_bytes, index_of, joined, memory_store, opened


def _arrow_files() -> Iterator[tuple[str, bytes]]:
    good = arrow_bytes(TABLE, 16)
    footer = struct.unpack("<i", good[-10:-6])[0]
    yield "pickle", PICKLE
    yield "pickle that begins like a file", b"ARROW1\0\0" + PICKLE + b"ARROW1"
    yield "magic alone", b"ARROW1"
    yield "magic twice", b"ARROW1\0\0ARROW1"
    for length in (0, -1, 2**31 - 1, footer + 4096):
        yield f"footer of {length} bytes", good[:-10] + struct.pack("<i", length) + good[-6:]
    blocks = good.index(struct.pack("<I", 3), len(good) - footer - 10)  # the vector of three record batches
    for field, code in ((0, "<q"), (16, "<q")):
        for value in (-1, 2**40, 2**63 - 1, 3):
            changed = bytearray(good)
            struct.pack_into(code, changed, blocks + 4 + field, value)
            yield f"block field {field} is {value}", bytes(changed)
    changed = bytearray(good)
    changed[blocks + 28 : blocks + 52] = changed[blocks + 4 : blocks + 28]
    yield "one batch named twice", bytes(changed)
    many = pa.record_batch({"n": pa.Array.from_buffers(pa.null(), 2**31 - 1, [None])})
    yield "2^31 - 1 records of nothing", arrow_bytes([many])
    yield "big-endian or what not", b"\xff\xff\xff\xff" + b"\x10\0\0\0" + bytes(64)
    yield "stream without a schema", arrow_bytes(TABLE, stream=True)[-200:]


STATES: dict[str, bytes] = {
    "deep": b"[" * 200_000, "a list": b"[]", "a pickle": PICKLE, "no files": b"{}", "files a number": b'{"_data_files": 7}',
    "files of numbers": b'{"_data_files": [7]}', "file above": b'{"_data_files": [{"filename": "../x.arrow"}]}',
    "file absolute": b'{"_data_files": [{"filename": "/etc/passwd"}]}',
    "file with NUL": b'{"_data_files": [{"filename": "a\\u0000"}]}',
    "file half a pair": b'{"_data_files": [{"filename": "\\ud800"}]}',
    "file a list": b'{"_data_files": [{"filename": []}]}',
    "columns a number": b'{"_data_files": [{"filename": "x"}], "_format_columns": 7}', "not UTF-8": b'{"\xff": 1}',
    "indices above": b'{"_data_files": [{"filename": "x"}], "_indices_data_files": [{"filename": "../../x"}]}',
    "1e999": b'{"_data_files": 1e999}', "key of NaN": b'{"_data_files": NaN}',
}  # fmt: skip
DICTS: dict[str, bytes] = {
    "splits above": b'{"splits": [".."]}', "split here": b'{"splits": ["."]}', "split with a slash": b'{"splits": ["a/b"]}',
    "split with NUL": b'{"splits": ["a\\u0000"]}', "no splits": b'{"splits": []}', "splits a text": b'{"splits": "abc"}',
    "splits of numbers": b'{"splits": [1]}', "deep": b'{"a":' * 100_000, "half a pair": b'{"splits": ["\\udfff"]}',
}  # fmt: skip


def attacks(folder: Path) -> Iterator[tuple[str, Attempt]]:
    """Yield what must be refused."""
    parts = Parts()
    good = json.loads(parts.store().files[snapshot_name(1)])
    entry = shard_entry("a.arrow", "a.rows", 0, parts.built, hashlib.sha256(parts.built.parts[0]).digest())
    files = {"a.arrow": parts.data, "a.rows": joined(parts.built)}
    for name, data in TEXTS.items():
        yield f"root: {name}", partial(Manifest.decode, data, "root")
    for name, change in ROOTS.items():
        store = MemoryStore(store_of([entry], files).files | {snapshot_name(1): signed(change(good))})
        yield f"root: {name}", partial(read_all, store)
    for name, changes in ENTRIES.items():
        records = changes.get("record_count", ROWS)
        splits = [{"name": "train", "record_count": min(records, 2**63 - 1), "shard_count": 1}]
        store = store_of([entry | changes], files, splits=splits, record_count=min(records, 2**63 - 1))
        yield f"shard table: {name}", partial(_take, store, 0 if records else 5)
    for name, data in tables():
        wrapped = [{"name": "train", "record_count": ROWS, "shard_count": 2 if "wrap" in name else 1}]
        store = store_of(data, files, splits=wrapped, shard_count=wrapped[0]["shard_count"])
        yield f"shard table: {name}", partial(read_all, store)
    for name, text in DESCRIPTIONS.items():
        yield f"index header: {name}", partial(read_all, parts.store(text))
    for name, value in edited_descriptions():
        yield f"index header: {name}", partial(read_all, parts.store(json.dumps(value).encode()))
    for place in (2, 3, 4, 6, 7, 8, 9, 10, 15):
        for number in (2, 2**31 + 1):
            edited = Parts()
            edited.fixed[place] = number
            yield f"index header: field {place} is {number}", partial(read_all, edited.store())
    for name, edit in page_edits(parts):
        edited = Parts()
        edit(edited)
        yield f"page: {name}", partial(read_all, edited.store())
    for name, change in whole_edits():
        edited = Parts()
        edited.set_whole(change(edited.whole()))
        yield f"chunk table: {name}", partial(read_all, edited.store())
    for name, store in bombs():
        yield f"bomb of {name} bytes", partial(read_all, store)
    for name, data in _arrow_files():
        yield f"Arrow file: {name}", partial(index_of, data)
    for kind, listed in (("state.json", STATES), ("dataset_dict.json", DICTS)):
        for number, (name, data) in enumerate(listed.items()):
            place = folder / f"{kind}-{number}"
            place.mkdir(exist_ok=True)
            (place / kind).write_bytes(data)
            yield f"{kind}: {name}", partial(discover, place)


def mutations() -> Iterator[tuple[str, Attempt]]:
    """Yield files that may be read or refused, but nothing else."""
    for stream in (False, True):
        data = arrow_bytes(TABLE, 16, stream=stream)
        for seed in range(150):
            yield f"mutated {'stream' if stream else 'file'} {seed}", partial(index_of, mutated(data, seed))
    parts = Parts()
    entry = shard_entry("a.arrow", "a.rows", 0, parts.built, hashlib.sha256(parts.built.parts[0]).digest())
    table = Shards(pa.Table.from_pylist([entry], schema=SHARD_TABLE)).encode()
    files = {"a.arrow": parts.data, "a.rows": joined(parts.built)}
    for seed in range(100):
        store = store_of(mutated(table, seed), files)
        yield f"mutated shard table {seed}", partial(read_all, store)


def harmless() -> Iterator[tuple[str, Attempt]]:
    """Yield data that carries pickles and names, and must be read as the plain data that it also is."""
    keys = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": PICKLE}
    field = pa.field("x", pa.int64(), metadata=keys)
    inner = pa.list_(pa.field("item", pa.int64(), metadata=keys))
    for name, schema in {
        "column extension with a pickle": pa.schema([field]),
        "inner extension with a pickle": pa.schema([("x", inner)]),
        "metadata of pickles": pa.schema(
            [("x", pa.int64())], metadata={"pandas": PICKLE, "huggingface": b"[" * 100_000}
        ),
        "an extension nobody knows": pa.schema([field.with_metadata({**keys, "ARROW:extension:name": "evil.type"})]),
    }.items():
        values = pa.array(
            [[1, 2]] * 5 if "inner" in name else range(5), pa.list_(pa.int64()) if "inner" in name else pa.int64()
        )
        batch = pa.record_batch([values], schema=pa.schema([("x", values.type)]))
        data = arrow_bytes([pa.RecordBatch.from_arrays([values.cast(schema.field(0).type)], schema=schema)])
        assert batch.num_rows == 5
        yield name, partial(_plain, data)


def _take(store: MemoryStore, number: int) -> object:
    return opened(store).take([number])


def _plain(data: bytes) -> None:
    taken = opened(memory_store([data])).take([4, 0])
    assert str(taken.schema.field(0).type).startswith(("int64", "list")), taken.schema
    assert len(taken) == 2
