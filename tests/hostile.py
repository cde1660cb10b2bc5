"""Manifests, shard tables and row indexes that somebody made to do harm, every digest and checksum right.

`tests/attacks.py` makes attempts of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import pickle
import random
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from shufflestore import _native
from shufflestore.dataset.inplace import shard_entry
from shufflestore.errors import FormatError, ShuffleStoreError
from shufflestore.format.arrowfile import scan
from shufflestore.format.layout import FIXED
from shufflestore.format.manifest import SHARD_TABLE, Manifest, Shards, Split, _canonical, _seal, snapshot_name
from tests.invented import MemoryStore, arrow_bytes, index_of, joined, opened

Attempt = Callable[[], object]


class Payload:
    """Unpickling one of these would be seen by everybody."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import os; os.environ['PWNED'] = '1'",)


PICKLE = pickle.dumps(Payload())
ROWS = 40
TABLE = pa.table(
    {
        "x": pa.array(range(ROWS), pa.int64()),
        "s": ["s" * (i % 9) for i in range(ROWS)],
        "l": [[i] * (i % 4) for i in range(ROWS)],
        "d": pa.array(["a", "b"] * (ROWS // 2)).dictionary_encode(),
        "f": pa.array([[i, i] for i in range(ROWS)], pa.list_(pa.int16(), 2)),
    }
)
SCHEMA = TABLE.schema


def store_of(entries: list[dict[str, Any]] | bytes, files: dict[str, bytes], **root: Any) -> MemoryStore:
    """Return a store with a shard table and root of right digests, some values of the root replaced."""
    table = (
        entries if isinstance(entries, bytes) else Shards(pa.Table.from_pylist(entries, schema=SHARD_TABLE)).encode()
    )
    split = Split("train", ROWS, 1)
    made = Manifest(SCHEMA, (split,), "snapshots/t.shards", len(table), hashlib.sha256(table).hexdigest())
    value = json.loads(made.encode("n")) | root
    return MemoryStore(files | {"snapshots/t.shards": table, snapshot_name(1): signed(value)})


def signed(value: dict[str, Any]) -> bytes:
    """Return a root of any values, its digest and seal right."""
    plain = {k: v for k, v in value.items() if k not in ("digest", "seal", "nonce")}
    digest = hashlib.sha256(_canonical(plain)).hexdigest()
    return json.dumps(plain | {"digest": digest, "nonce": "n", "seal": _seal("n", digest)}).encode()


class Parts:
    """A good shard and its index taken apart, to be put together again with right checksums."""

    def __init__(self, table: pa.Table = TABLE, codec: str | None = None, chunk_rows: int | None = 16) -> None:
        self.data = arrow_bytes(table, chunk_rows, codec)
        self.built = index_of(self.data)
        whole, header = joined(self.built), self.built.header
        self.fixed = list(FIXED.unpack_from(whole))
        self.description = json.loads(whole[FIXED.size : FIXED.size + self.fixed[14]])
        self.table = bytearray(whole[header.header_bytes :][: header.table_bytes])
        self.pages = bytearray(whole[header.pages_at :])
        self.entry: dict[str, Any] = {}

    def store(self, description: bytes | None = None) -> MemoryStore:
        described = description if description is not None else json.dumps(self.description).encode()
        size = self.built.header.layout.page_bytes
        pages = [bytes(self.pages[i : i + size]) for i in range(0, len(self.pages), size)]
        fixed = list(self.fixed)
        fixed[1] = FIXED.size + len(described) + 4 * len(pages)
        fixed[11], fixed[12], fixed[14] = len(self.table), _native.crc32c(self.table), len(described)
        start = -(-(fixed[1] + len(self.table)) // size) * size
        fixed[5] = start + len(self.pages)
        header = FIXED.pack(*fixed) + described + struct.pack(f"<{len(pages)}I", *map(_native.crc32c, pages))
        index = (header + self.table).ljust(start, b"\0") + self.pages
        entry = shard_entry("a.arrow", "a.rows", 0, self.built, hashlib.sha256(header).digest())
        entry |= {"index_bytes": len(index), "header_bytes": len(header)} | self.entry
        return store_of([entry], {"a.arrow": self.data, "a.rows": index})

    def whole(self) -> dict[str, Any]:
        at = self.table.index(b"{")
        return json.loads(self.table[at:])

    def set_whole(self, value: Any) -> None:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.table[self.table.index(b"{") :] = text


def read_all(store: MemoryStore) -> object:
    dataset = opened(store)
    return dataset.take(list(range(len(dataset))))


def must_read(store: MemoryStore) -> None:
    assert read_all(store) is not None


ROOTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "deep value": lambda v: v | {"options": json.loads("[" * 40 + "]" * 40)},
    "deep but parsed": lambda v: v | {"options": {"x": json.loads("[" * 400 + "]" * 400)}},
    "record count negative": lambda v: v | {"record_count": -1},
    "record count of a bool": lambda v: v | {"shard_count": True},
    "record count of 2^63": lambda v: v | {"splits": [{"name": "t", "record_count": 2**63, "shard_count": 1}]},
    "sum of 2^63": lambda v: (
        v | {"splits": [{"name": str(i), "record_count": 2**62, "shard_count": 1} for i in range(4)]}
    ),
    "counts that do not add up": lambda v: v | {"record_count": 41},
    "no splits": lambda v: v | {"splits": [], "record_count": 0, "shard_count": 0},
    "splits of numbers": lambda v: v | {"splits": [1, 2]},
    "splits of one text": lambda v: v | {"splits": "abc"},
    "splits a number": lambda v: v | {"splits": 7},
    "split without a name": lambda v: v | {"splits": [{"record_count": 1, "shard_count": 1}]},
    "a split twice": lambda v: v | {"splits": v["splits"] * 2},
    "split name a list": lambda v: v | {"splits": [v["splits"][0] | {"name": []}]},
    "schema a number": lambda v: v | {"schema": 5},
    "schema no base64": lambda v: v | {"schema": "!!!"},
    "schema a pickle": lambda v: v | {"schema": base64.b64encode(PICKLE).decode()},
    "schema cut": lambda v: v | {"schema": v["schema"][:100]},
    "schema empty": lambda v: v | {"schema": ""},
    "table missing": lambda v: {k: x for k, x in v.items() if k != "shard_table"},
    "table a list": lambda v: v | {"shard_table": [1, 2, 3]},
    "table above the root": lambda v: v | {"shard_table": v["shard_table"] | {"name": "../../etc/passwd"}},
    "table absolute": lambda v: v | {"shard_table": v["shard_table"] | {"name": "/etc/passwd"}},
    "table name with NUL": lambda v: v | {"shard_table": v["shard_table"] | {"name": "a\0b"}},
    "table name half a pair": lambda v: v | {"shard_table": v["shard_table"] | {"name": "\ud800"}},
    "table name of no text": lambda v: v | {"shard_table": v["shard_table"] | {"name": None}},
    "table bytes negative": lambda v: v | {"shard_table": v["shard_table"] | {"bytes": -5}},
    "table bytes huge": lambda v: v | {"shard_table": v["shard_table"] | {"bytes": 2**62}},
    "table digest of another": lambda v: v | {"shard_table": v["shard_table"] | {"sha256": "0" * 64}},
    "snapshot of another number": lambda v: v | {"snapshot": 7},
    "snapshot a float": lambda v: v | {"snapshot": "1"},
    "options a number": lambda v: v | {"options": 5},
    "options a text": lambda v: v | {"options": "abc"},
    "version newer": lambda v: v | {"version": 2},
    "version 0": lambda v: v | {"version": 0},
    "version a text": lambda v: v | {"version": "1"},
    "version huge": lambda v: v | {"version": 10**30},
    "features unknown": lambda v: v | {"features": ["rot13"]},
    "features of numbers": lambda v: v | {"features": [1]},
    "features a text": lambda v: v | {"features": "x"},
    "format of another": lambda v: v | {"format": "parquet"},
    "format missing": lambda v: {k: x for k, x in v.items() if k != "format"},
}
TEXTS: dict[str, bytes] = {
    "empty": b"", "pickle": PICKLE, "pickle in JSON's clothes": b'"' + base64.b64encode(PICKLE) + b'"', "null": b"null",
    "number": b"5", "list": b"[]", "true": b"true", "deep lists": b"[" * 100_000, "deep dicts": b'{"a":' * 50_000,
    "closed deep lists": b"[" * 900 + b"]" * 900, "NaN": b'{"a": NaN}', "infinity": b'{"a": -Infinity}',
    "1e999": b'{"format": "shufflestore", "version": 1e999}', "a float": b'{"version": 1.0}',
    "ten thousand digits": b'{"version": ' + b"9" * 10_000 + b"}", "key twice": b'{"a": 1, "a": 2}',
    "inner key twice": b'{"a": {"b": 1, "b": 1}}', "two megabytes": b" " * (2 << 20), "not UTF-8": b'{"\xff": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"), "cut": b'{"format": "shufflestore"', "tail": b"{} {}", "NUL": b"\0" * 100,
    "yaml": b"!!python/object/apply:os.system ['true']", "half a pair": b'{"format": "\\ud800"}',
    "many keys": json.dumps({str(i): i for i in range(80_000)}).encode(),
}  # fmt: skip
ENTRIES: dict[str, dict[str, Any]] = {
    "no records claimed": {"record_count": 0}, "2^64 - 1 records": {"record_count": 2**64 - 1},
    "2^63 records": {"record_count": 2**63}, "data of 2^64 - 1 bytes": {"data_bytes": 2**64 - 1},
    "data longer than it is": {"data_bytes": 10**6}, "index of 2^64 - 1 bytes": {"index_bytes": 2**64 - 1},
    "header longer than the index": {"header_bytes": 2**32 - 1}, "header empty": {"header_bytes": 0},
    "header cut": {"header_bytes": 60}, "no pages": {"page_count": 0}, "2^32 - 1 pages": {"page_count": 2**32 - 1},
    "pages of no bytes": {"page_bytes": 0}, "pages of three bytes": {"page_bytes": 3}, "pages of 2^31": {"page_bytes": 2**31},
    "split 9": {"split": 9}, "name above": {"data": "../../x"}, "name absolute": {"index": "/etc/passwd"},
    "name empty": {"index": ""}, "name with NUL": {"data": "a\0b"}, "name of a root nobody gave": {"data": "@other/x"},
    "index is the data": {"index": "a.arrow"}, "digest of another": {"header_sha256": bytes(32)},
    "2^50 pages": {"page_count": 2**31, "index_bytes": 2**55},
}  # fmt: skip


def tables() -> Iterator[tuple[str, bytes]]:
    good = Parts()
    entry = shard_entry("a.arrow", "a.rows", 0, good.built, hashlib.sha256(good.built.parts[0]).digest())
    rows = pa.Table.from_pylist([entry], schema=SHARD_TABLE)
    nullable = pa.schema([field.with_nullable(True) for field in SHARD_TABLE])
    yield "a null", arrow_bytes(pa.Table.from_pylist([entry | {"record_count": None}], schema=nullable))
    yield "fewer columns", arrow_bytes(rows.drop_columns(["split"]))
    yield "text for numbers", arrow_bytes(rows.set_column(3, "record_count", pa.array(["40"])))
    yield "a bomb", arrow_bytes(pa.concat_tables([rows] * 20_000).combine_chunks(), codec="zstd")
    yield "a stream", arrow_bytes(rows, stream=True)
    yield "a pickle", PICKLE
    yield "nothing", b""
    two = pa.Table.from_pylist(
        [entry | {"record_count": 2**63 + 20}, entry | {"record_count": 2**63 + 20}], schema=SHARD_TABLE
    )
    yield "counts that wrap around", Shards(two).encode()


def mutated(data: bytes, seed: int) -> bytes:
    """Return bytes with a few places overwritten by what parsers dislike."""
    r = random.Random(seed)
    changed = bytearray(data)
    for _ in range(r.randint(1, 3)):
        at = r.randrange(len(data) - 8) & ~3
        changed[at : at + 4] = struct.pack("<i", r.choice((-1, 0, 2**31 - 1, -(2**31), 255, r.randrange(2**20))))
    return bytes(changed)


DESCRIPTIONS: dict[str, bytes] = {
    "deep": b"[" * 50_000, "a list": b"[]", "a number": b"7", "nothing": b"", "a pickle": PICKLE, "no keys": b"{}",
    "features of lists": b'{"features": [[]], "whole": [3], "schema": "", "present": ""}',
    "features a number": b'{"features": 7}',
    "infinite columns": b'{"features": [], "whole": [1e999], "schema": "", "present": ""}', "whole a text": b'{"whole": "x"}',
    "schema no hex": b'{"whole": [], "schema": "zz", "present": ""}',
    "schema a number": b'{"whole": [], "schema": 1, "present": ""}',
}  # fmt: skip


def edited_descriptions() -> Iterator[tuple[str, dict[str, Any]]]:
    good = Parts().description
    yield "a column that is not there", good | {"whole": [3, 99]}
    yield "a negative column", good | {"whole": [-1]}
    yield "fewer columns whole than must be", good | {"whole": []}
    yield "buffers of another", good | {"present": "ff"}
    yield "no buffers", good | {"present": ""}
    yield "another schema", good | {"schema": "00" * 32}
    yield "a feature", good | {"features": ["compressed-pages"]}


def page_edits(parts: Parts) -> Iterator[tuple[str, Callable[[Parts], None]]]:
    """Edits of a page that its checksum then vouches for."""
    layout = parts.built.header.layout
    levels, head = layout.tree.level_count, layout.page_head_bytes

    def put(at: int, code: str, value: int) -> Callable[[Parts], None]:
        return lambda p: struct.pack_into(code, p.pages, at, value)

    yield "page of no rows", put(16, "<I", 0)
    for value in (2**40, 2**62, 2**63, 2**64 - 2):
        yield f"first row {value}", put(8, "<Q", value)
        for level in range(levels):
            yield f"base {value} of level {level}", put(24 + 8 * level, "<Q", value)
        for read in range(len(layout.reads)):
            yield f"offset {value} of read {read}", put(24 + 8 * levels + 8 * read, "<Q", value)
    for level in range(levels):
        yield f"start of level {level} beyond", put(head + layout.starts + 4 * level, "<I", 2**32 - 1)


def whole_edits() -> Iterator[tuple[str, Callable[[dict[str, Any]], Any]]]:
    def part(**changes: Any) -> Callable[[dict[str, Any]], Any]:
        def edit(value: dict[str, Any]) -> dict[str, Any]:
            value["columns"]["3"][0] |= changes
            return value

        return edit

    for name, changes in {
        "span beyond": {"span": [0, 2**40]}, "span negative": {"span": [-8, 8]}, "span of one": {"span": [1]},
        "span of floats": {"span": [0.5, 1]}, "span of 2^70": {"span": [2**70, 1]}, "span a text": {"span": "ab"},
        "no nodes": {"nodes": []}, "nodes negative": {"nodes": [[-1, 0]]}, "more nulls than rows": {"nodes": [[16, 17]]},
        "rows beyond": {"nodes": [[2**40, 0]]}, "fewer rows": {"nodes": [[3, 0]]}, "two nodes": {"nodes": [[16, 0], [16, 0]]},
        "no buffers": {"buffers": []}, "buffers beyond": {"buffers": [[0, 0], [0, 2**40]]}, "buffers of text": {"buffers": "ab"},
        "codec unknown": {"codec": "exec"}, "codec a list": {"codec": []}, "codec where there is none": {"codec": "zstd"},
        "crc a text": {"crc": "x"}, "crc too wide": {"crc": 2**40}, "crc wrong": {"crc": 1}, "views": {"views": [1]},
        "views negative": {"views": [-1]}, "views a number": {"views": 5}, "a bool": {"span": [True, 8]},
    }.items():  # fmt: skip
        yield name, part(**changes)
    yield "no columns", lambda v: v | {"columns": {}}
    yield "columns a list", lambda v: v | {"columns": []}
    yield "a chunk less", lambda v: v | {"columns": {"3": v["columns"]["3"][:-1]}}
    yield "dictionaries a number", lambda v: v | {"dictionaries": 7}
    yield "dictionaries of lists", lambda v: v | {"dictionaries": [[]]}
    yield "a dictionary without an id", lambda v: v | {"dictionaries": [{}]}
    yield "no dictionary", lambda v: v | {"dictionaries": []}
    yield "ids of nothing", lambda v: v | {"ids": []}
    yield "infinite before", lambda v: v | {"dictionaries": [v["dictionaries"][0] | {"before": float("inf")}]}
    yield "dictionary beyond", lambda v: v | {"dictionaries": [v["dictionaries"][0] | {"span": [0, 2**50]}]}
    yield "dictionary of five nodes", lambda v: v | {"dictionaries": [v["dictionaries"][0] | {"nodes": [[2, 0]] * 5}]}
    yield "a list", lambda v: []
    yield "deep", lambda v: b'{"a":' * 60_000


def bombs() -> Iterator[tuple[str, MemoryStore]]:
    """Compressed columns whose claims are read before anything is allocated."""
    big = pa.table({"z": pa.array(np.zeros(ROWS * 64, np.int64))})
    for claim in (2**40, 2**62, -2, -(2**63)):
        sink = bytearray(arrow_bytes(big, codec="zstd"))
        found = scan(lambda offset, size, s=sink: bytes(s[offset : offset + size]), len(sink))
        struct.pack_into("<q", sink, int(found.batches[0].buffers[1, 0]), claim)
        data = bytes(sink)
        built = index_of(data)
        entry = shard_entry("a.arrow", "a.rows", 0, built, hashlib.sha256(built.parts[0]).digest())
        schema = base64.b64encode(big.schema.serialize().to_pybytes()).decode()
        splits = [{"name": "train", "record_count": len(big), "shard_count": 1}]
        files = {"a.arrow": data, "a.rows": joined(built)}
        yield str(claim), store_of([entry], files, schema=schema, splits=splits, record_count=len(big))


def complaints(data: bytes, parse: Callable[[bytes], object]) -> list[str]:
    """Change each bit of some bytes in turn; return what the errors say of those that are refused."""
    messages = []
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        try:
            parse(bytes(changed))
        except FormatError as error:
            messages.append(str(error))
    return messages


def refused(attempt: Attempt) -> str:
    """Return the message of the named error that an attempt ends in; anything else is a failure."""
    try:
        attempt()
    except ShuffleStoreError as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was refused")
