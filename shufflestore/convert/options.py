"""How a conversion works and what it reports."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

from shufflestore.convert.base import SourceOptions
from shufflestore.convert.shards import ShardOptions

__all__ = ["ConvertOptions", "ConvertReport"]


@dataclass(frozen=True)
class ConvertOptions:
    """How `convert` works; what to convert stands in its own arguments."""

    kind: str | None = None
    """Of the source, e.g. "parquet"; None to detect it."""
    worker_count: int | None = None
    """Processes; None for one a processor. The result does not depend on it."""
    shards: ShardOptions = field(default_factory=ShardOptions)
    source: SourceOptions = field(default_factory=SourceOptions)
    staging_folder: str | os.PathLike[str] | None = None
    """Where shards for an object store are written before they are sent; None for the system's temporary folder, TMPDIR.
    Room for three shards a process is enough."""
    progress: Callable[[int, int, int, int | None], None] | None = None
    """Called some ten times a second with (records, bytes written, source bytes done, source bytes in all)."""


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion wrote."""

    path: str
    snapshot: int
    record_count: int
    """Records that this conversion added."""
    shard_count: int
    byte_count: int
    """Of shards and row indexes."""
    resumed_shard_count: int
    """Shards that an interrupted conversion had written already."""
    duration_seconds: float
    splits: dict[str, int]
    """Records of each split, in the whole data set."""
