"""A data set that no disk holds: real manifest, real reads, one shard under a hundred thousand names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.harness.workload import Workload, table_of
from shufflestore.dataset.inplace import fetcher, mapped, publish_index
from shufflestore.format.arrowfile import scan
from shufflestore.format.encode import build_index
from shufflestore.format.manifest import SHARD_TABLE, Manifest, Shards, Split, snapshot_name
from shufflestore.format.schema import build_tree
from shufflestore.storage.local import LocalStore

__all__ = ["SHARD_RECORDS", "InventedStore", "invent"]

SHARD_RECORDS = 10_000
_NAME = re.compile(r"shards/train-\d{8}\.(arrow|rows)")


class InventedStore(LocalStore):
    """A local store in which every shard's name leads to the same two files.

    All reads are real ones through the native core. Record i of the data set has the tokens and
    the label of record i mod 10,000.
    """

    def __init__(self, root: str, data: str, index: str) -> None:
        """Say which two files stand for every shard."""
        super().__init__(root)
        self._real = {"arrow": data, "rows": index}

    def path(self, name: str) -> str:
        """Return where a file really is."""
        match = _NAME.fullmatch(name)
        return super().path(self._real[match[1]] if match else name)


def invent(folder: Path, shard_count: int) -> None:
    """Write the shard's two files and a snapshot of `shard_count` shards, unless they are there."""
    if (folder / snapshot_name(1)).exists():
        return
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "snapshots").mkdir(exist_ok=True)
    source = folder / "shard.arrow"
    with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_file(sink, table_of(np.arange(1)).schema) as writer:
        for start in range(0, SHARD_RECORDS, 1000):
            writer.write_batch(table_of(np.arange(start, start + 1000)))
    data = mapped(source)
    found = scan(fetcher(data), len(data))
    entry = publish_index(folder, "shard.arrow", 0, build_index(data, found, build_tree(found.schema)))
    (folder / "index-name").write_text(entry["index"])
    table = Shards(pa.Table.from_arrays(list(_columns(entry, shard_count)), schema=SHARD_TABLE)).encode()
    digest = hashlib.sha256(table).hexdigest()
    split = Split("train", SHARD_RECORDS * shard_count, shard_count)
    manifest = Manifest(found.schema, (split,), f"snapshots/{digest[:16]}.shards", len(table), digest)
    (folder / manifest.table_name).write_bytes(table)
    (folder / snapshot_name(1)).write_bytes(manifest.encode("0123456789abcdef"))


def _columns(entry: dict[str, Any], count: int) -> Iterator[pa.Array]:
    ends = {"data": "arrow", "index": "rows"}
    for field in SHARD_TABLE:
        if field.name in ends:
            yield pa.array([f"shards/train-{i:08d}.{ends[field.name]}" for i in range(count)], field.type)
        else:
            yield pa.array([entry[field.name]] * count, field.type)


def invented(workload: Workload, record_count: int) -> Path:
    """Return the folder of an invented data set, made if it is not there."""
    folder = workload.folder / f"invented-{record_count}"
    invent(folder, max(record_count // SHARD_RECORDS, 1))
    return folder


def opened_store(folder: Path) -> InventedStore:
    """Return the store of an invented data set."""
    return InventedStore(str(folder), "shard.arrow", (folder / "index-name").read_text())
