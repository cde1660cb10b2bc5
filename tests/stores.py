"""Small data sets for conversions, and what is to be seen of them afterwards: on disk and by readers."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import shufflestore as ss
from shufflestore.convert.base import SourceOptions
from shufflestore.convert.run import ConvertOptions
from shufflestore.convert.shards import ShardOptions
from shufflestore.dataset.opening import load_manifest, snapshots_of
from shufflestore.storage.commit import TEMPORARY
from shufflestore.storage.local import LocalStore

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("text", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("half", pa.list_(pa.float16(), 3)),
        ("nested", pa.struct([("path", pa.string()), ("scores", pa.list_(pa.float32()))])),
    ]
)


def records(start: int, count: int) -> Iterator[dict[str, Any]]:
    """Records of SCHEMA; record i is a function of i alone."""
    for i in range(start, start + count):
        r = random.Random(i)
        yield {
            "id": i,
            "text": None if i % 11 == 5 else "aé漢" * r.randint(0, 6),
            "tokens": [r.randint(0, 999) for _ in range(r.randint(0, 40))],
            "half": [0.5 * i, 1.0, -2.0],
            "nested": {"path": f"{i}.png", "scores": [float(i)] * r.randint(0, 3)} if i % 7 else None,
        }


def table(start: int, count: int) -> pa.Table:
    return pa.Table.from_pylist(list(records(start, count)), SCHEMA)


def parquet(folder: Path, files: int, each: int, start: int = 0, groups: int = 2) -> Path:
    """Write a folder of Parquet files, records going on from file to file; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(files):
        rows = table(start + i * each, each)
        pq.write_table(rows, folder / f"part-{i:03d}.parquet", row_group_size=max(1, each // groups))
    return folder


def jsonl(path: Path, start: int, count: int) -> Path:
    lines = (json.dumps({"id": r["id"], "text": r["text"], "tokens": r["tokens"]}) for r in records(start, count))
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    return path


def small(workers: int = 1, **options: Any) -> ConvertOptions:
    """Options by which a few KB become several bundles of several shards."""
    sizes = ShardOptions(shard_bytes=options.pop("shard_bytes", 6_000), chunk_bytes=1_000, shard_records=40)
    return ConvertOptions(worker_count=workers, shards=sizes, source=SourceOptions(piece_bytes=4_000), **options)


def snapshots(folder: Path) -> list[int]:
    if not (folder / "snapshots").is_dir():
        return []
    store = LocalStore(str(folder))
    found = snapshots_of(store)
    store.close()
    return found


def manifest(folder: Path, snapshot: int | None = None) -> Any:
    store = LocalStore(str(folder))
    found = load_manifest(store, snapshot)
    store.close()
    return found


def named(folder: Path, snapshot: int) -> set[str]:
    """Every file that a snapshot needs."""
    root = manifest(folder, snapshot)
    shards = root.check_table((folder / root.table_name).read_bytes(), "table").table
    return {root.table_name, *shards["data"].to_pylist(), *shards["index"].to_pylist()}


def seen(folder: Path, snapshot: int | None = None) -> dict[str, list[dict[str, Any]]] | None:
    """All records by split, as a reader gets them; None where no snapshot was committed."""
    if not snapshots(folder):
        return None
    found = {}
    for split in manifest(folder, snapshot).splits:
        with ss.open(folder, split.name, snapshot=snapshot) as data:
            found[split.name] = data.take(range(len(data))).to_pylist() if len(data) else []
    return found


def ids(folder: Path, split: str = "train") -> list[int]:
    """The id column, in the order of the data set; nothing where no snapshot was committed."""
    found = seen(folder)
    return [] if found is None else [r["id"] for r in found.get(split, [])]


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but journals; of a root without its nonce and what seals it."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        if re.fullmatch(r"\d+\.json", path.name):
            root = json.loads(content)
            del root["nonce"], root["seal"]
            content = json.dumps(root, sort_keys=True).encode()
        found[path.relative_to(folder).as_posix()] = hashlib.sha256(content).hexdigest()
    return found


def leftovers(folder: Path) -> list[str]:
    """Temporary files and journals: what neither readers nor later conversions need."""
    found = [p for p in folder.rglob("*") if p.name.startswith(TEMPORARY) or ".convert" in p.relative_to(folder).parts]
    return sorted(p.relative_to(folder).as_posix() for p in found)
