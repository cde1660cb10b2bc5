"""Data sets that no disk holds: bytes in memory, and shards made up when somebody asks for them.

`MemoryStore` is the Store contract over a dict. `memory_store` puts real Arrow files, row indexes
and a manifest into one. `VirtualStore` claims any number of shards and has the bytes of one for all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore import _native
from shufflestore.dataset.dataset import Dataset
from shufflestore.dataset.inplace import fetcher, shard_entry
from shufflestore.dataset.opening import load_manifest, open_store
from shufflestore.errors import NotFound, ShardTruncated
from shufflestore.format.arrowfile import scan
from shufflestore.format.encode import BuiltIndex, build_index
from shufflestore.format.manifest import SHARD_TABLE, Manifest, Shards, Split, snapshot_name
from shufflestore.format.resolve import Resolved
from shufflestore.format.schema import build_tree
from shufflestore.storage.base import COPY, HAS_CRC, READ, WIDEN, ZERO, ReadFailure
from shufflestore.storage.memory import Budget

_WIDENED = {op: pair for pair, op in WIDEN.items()}


class MemoryPending:
    """A batch that was read when it was submitted."""

    def __init__(self, outputs: list[NDArray[np.uint8]], failure: ReadFailure | None) -> None:
        self._outputs, self._failure = outputs, failure

    def wait(self, timeout_seconds: float) -> bool:
        return True

    def is_done(self) -> bool:
        return True

    def failure(self) -> ReadFailure | None:
        return self._failure

    def take(self) -> list[NDArray[np.uint8]]:
        if self._failure is not None:
            raise ValueError("the batch failed: it has no outputs")
        return self._outputs

    def cancel(self) -> None:
        pass


class MemoryStore:
    """Named byte strings. `files` may be changed at any time; the next read sees it."""

    def __init__(self, files: Mapping[str, bytes], uri: str = "memory://") -> None:
        self.files = dict(files)
        self.uri = uri
        self.names: list[str] = []
        self._numbers: dict[str, int] = {}
        self.read_names: set[str] = set()
        """Files of which something was read."""

    def bytes_of(self, name: str) -> bytes:
        if name not in self.files:
            raise NotFound(f"{self.uri}: {name}: nothing there")
        return self.files[name]

    def handle(self, name: str, size: int) -> int:
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def flow(self, budget_bytes: int | None) -> None:
        pass

    def submit(
        self, reads: NDArray[np.void], ends: NDArray[np.uint64], output_sizes: NDArray[np.uint64], flow: None = None
    ) -> Sequence[MemoryPending]:
        first, made = 0, []
        for end, sizes in zip(ends.tolist(), output_sizes.tolist(), strict=True):
            made.append(self._batch(reads[first:end], sizes))
            first = end
        return made

    def _batch(self, reads: NDArray[np.void], sizes: Sequence[int]) -> MemoryPending:
        outputs = [np.full(size, 0xA5, np.uint8) for size in sizes]  # whoever reads beyond a slot sees this
        for i, (offset, slot, size, file, crc, output, op, flags, _) in enumerate(reads.tolist()):
            target = outputs[output]
            assert slot + size <= len(target), "a slot reaches outside its output"
            if op == ZERO:
                target[slot : slot + size] = 0
                continue
            name = self.names[file]
            self.read_names.add(name)
            data = self.bytes_of(name)[offset : offset + size]
            if len(data) < size:
                return MemoryPending([], ReadFailure(i, "short", 0, size, len(data)))
            if flags & HAS_CRC and (found := _native.crc32c(data)) != crc:
                return MemoryPending([], ReadFailure(i, "checksum", 0, crc, found))
            came = np.frombuffer(data, np.uint8)
            if op != COPY:
                came = came.view(_WIDENED[op][0]).astype(_WIDENED[op][1]).view(np.uint8)
            target[slot : slot + len(came)] = came
        return MemoryPending(outputs, None)

    def size(self, name: str) -> int:
        return len(self.bytes_of(name))

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        data = self.bytes_of(name)
        stop = len(data) if size is None else offset + size
        if stop > len(data):
            raise ShardTruncated(f"{self.uri}: {name} ends at {len(data)}, wanted [{offset}, {stop})")
        return data[offset:stop]

    def put_if_absent(self, name: str, data: bytes) -> bool:
        return self.files.setdefault(name, data) is data

    def list(self, prefix: str) -> Iterator[str]:
        yield from sorted(name for name in self.files if name.startswith(prefix))

    def delete(self, name: str) -> None:
        self.files.pop(name, None)

    def close(self) -> None:
        pass


def arrow_bytes(
    table: pa.Table | Sequence[pa.RecordBatch],
    chunk_rows: int | None = None,
    codec: str | None = None,
    stream: bool = False,
) -> bytes:
    """Return an Arrow file or stream of a table, its record batches in order."""
    batches = table.to_batches(max_chunksize=chunk_rows) if isinstance(table, pa.Table) else list(table)
    schema = table.schema if isinstance(table, pa.Table) else batches[0].schema
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression=codec, unify_dictionaries=not stream)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(sink, schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return sink.getvalue().to_pybytes()


def index_of(data: bytes, checksums: bool = True, schema: pa.Schema | None = None) -> BuiltIndex:
    """Return the row index of an Arrow file at hand."""
    array = np.frombuffer(data, np.uint8)
    found = scan(fetcher(array), len(array))
    return build_index(array, found, build_tree(schema or found.schema), checksums)


def joined(built: BuiltIndex) -> bytes:
    """Return the bytes of a row index."""
    return b"".join(bytes(memoryview(part)) for part in built.parts)


def memory_store(
    files: Sequence[bytes],
    checksums: bool = True,
    splits: Sequence[str] = ("train",),
    schema: pa.Schema | None = None,
) -> MemoryStore:
    """Return a committed data set of Arrow files, dealt to the splits in turn; of their schema if none is given."""
    store: dict[str, bytes] = {}
    entries: list[dict[str, Any]] = []
    counts = [[0, 0] for _ in splits]
    made_of = pa.schema([])
    for i, data in enumerate(files):
        built = index_of(data, checksums, schema)
        split = i % len(splits)
        made_of = built.header.layout.tree.schema
        store[f"shards/{i:05d}.arrow"], store[f"shards/{i:05d}.rows"] = data, joined(built)
        digest = hashlib.sha256(built.parts[0]).digest()
        entries.append(shard_entry(f"shards/{i:05d}.arrow", f"shards/{i:05d}.rows", split, built, digest))
        counts[split][0] += built.header.row_count
        counts[split][1] += 1
    table = Shards(pa.Table.from_pylist(entries, schema=SHARD_TABLE)).encode()
    made = tuple(Split(name, *count) for name, count in zip(splits, counts, strict=True))
    _commit(store, made_of, made, table)
    return MemoryStore(store)


def _commit(store: dict[str, bytes], schema: pa.Schema, splits: tuple[Split, ...], table: bytes) -> Manifest:
    digest = hashlib.sha256(table).hexdigest()
    manifest = Manifest(schema, splits, f"snapshots/{digest[:16]}.shards", len(table), digest)
    store[manifest.table_name] = table
    store[snapshot_name(1)] = manifest.encode("0123456789abcdef")
    return manifest


def opened(
    store: MemoryStore, split: str | None = None, verify: bool = True, index_memory_bytes: int | None = None
) -> Dataset:
    """Open the newest snapshot of a store, through the same door as a folder's."""
    budget = Budget.of(None)
    if index_memory_bytes is not None:
        budget = replace(budget, index=index_memory_bytes)
    return open_store(store, load_manifest(store, None), split, None, verify, budget)


@dataclass(frozen=True)
class Template:
    """The bytes that stand for any number of shards."""

    entry: dict[str, Any]
    data: bytes
    index: bytes

    @classmethod
    def of(cls, table: pa.Table, chunk_rows: int | None = None) -> Template:
        """Return the template of real shards."""
        data = arrow_bytes(table, chunk_rows)
        built = index_of(data)
        return cls(shard_entry("", "", 0, built, hashlib.sha256(built.parts[0]).digest()), data, joined(built))

    @classmethod
    def claiming(cls, rows: int) -> Template:
        """Return the template of shards that have so many records and must never be read."""
        claims = {"record_count": rows, "data_bytes": 2**40, "index_bytes": 2**20, "header_bytes": 4096}
        return cls(claims | {"split": 0, "header_sha256": bytes(32), "page_count": 1, "page_bytes": 4096}, b"", b"")


class VirtualStore(MemoryStore):
    """Any number of shards, each with the bytes of its template: 10^9 records cost one shard's memory."""

    def __init__(self, schema: pa.Schema, runs: Iterable[tuple[Template, int]]) -> None:
        """Commit a data set of `count` shards of each template, in order."""
        super().__init__({}, "virtual://")
        runs = list(runs)
        self._templates = [template for template, _ in runs]
        counts = np.array([count for _, count in runs], np.int64)
        self._ends = np.cumsum(counts)
        which = np.repeat(np.arange(len(runs)), counts)
        columns: list[pa.Array] = []
        for field in SHARD_TABLE:
            if field.name in ("data", "index"):
                numbers = np.char.add("shards/", np.char.zfill(np.arange(len(which)).astype("U10"), 10))
                columns.append(pa.array(np.char.add(numbers, f".{field.name}"), pa.string()))
            else:
                values = pa.array([template.entry[field.name] for template in self._templates], field.type)
                columns.append(values.take(pa.array(which)))
        table = Shards(pa.Table.from_arrays(columns, schema=SHARD_TABLE)).encode()
        rows = sum(int(count) * template.entry["record_count"] for template, count in runs)
        self.manifest = _commit(self.files, schema, (Split("train", rows, len(which)),), table)

    def bytes_of(self, name: str) -> bytes:
        if not name.startswith("shards/"):
            return super().bytes_of(name)
        number, _, kind = name.removeprefix("shards/").partition(".")
        template = self._templates[int(np.searchsorted(self._ends, int(number), side="right"))]
        assert template.data, f"{name} was only claimed, nothing may read it"
        return template.data if kind == "data" else template.index


def resolved(dataset: Dataset, columns: Sequence[str] | None = None) -> tuple[Resolved, NDArray[np.void]]:
    """Return what all records of a data set resolve to, as one batch, and the reads with their names."""
    indexes, count = dataset.reading.indexes, len(dataset)
    wanted = dataset.projection(columns).wanted
    found = indexes.resolve(np.arange(count), np.array([count]), wanted, True)
    return found, found.reads.view(READ).reshape(-1)
