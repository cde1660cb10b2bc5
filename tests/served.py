"""A small converted data set on an object store of our own, and how tests read it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

import shufflestore as ss
from benchmarks.harness.object_store import ObjectStore
from tests.stores import small, table

BUCKET = "bucket"
PREFIX = "sets/one"
BATCH = 32


def converted(root: Path, records: int) -> Path:
    """Convert so many records into the bucket; return the folder."""
    import pyarrow.parquet as pq

    source = root / "source.parquet"
    pq.write_table(table(0, records), source)
    folder = root / BUCKET / PREFIX
    folder.parent.mkdir(parents=True)
    ss.convert(source, folder, options=small(shard_bytes=200_000))
    return folder


def keys(server: ObjectStore, **options: Any) -> dict[str, Any]:
    """Return the storage options that lead to the server."""
    return {"endpoint": server.endpoint, "skip_signature": "true", "region": "here", **options}


@contextmanager
def opened(server: ObjectStore, **options: Any) -> Iterator[ss.Dataset]:
    """Open the data set over S3's interface."""
    data = ss.open(f"s3://{BUCKET}/{PREFIX}", storage_options=keys(server, **options))
    try:
        yield data
    finally:
        data.close()


def epoch(data: ss.Dataset, seed: int = 5) -> Iterator[pa.Table]:
    """The batches of one epoch."""
    return iter(data.batches(BATCH, shuffle=True, seed=seed, format="arrow"))


def data_requests(server: ObjectStore) -> int:
    """GETs that the server has met."""
    found: int = server.counts()["requests"].get("GET", 0)
    return found
