"""Small checked reads through a store, several at once, with errors that name what was read."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import CorruptData, DataChanged, NotFound, ShardTruncated, ShuffleStoreError, StorageError
from shufflestore.storage.base import COPY, HAS_CRC, READ, Pending, ReadFailure, Store

__all__ = ["Extent", "explain", "fetch", "wait"]

_PATIENCE_SECONDS = 3600.0
"""A local read that takes longer is a dead mount; remote stores have deadlines of their own."""


@dataclass(frozen=True)
class Extent:
    """A range of a file, and what it is to a person."""

    name: str
    file_bytes: int
    offset: int
    size: int
    what: str
    crc: int | None = None


def fetch(store: Store, extents: Sequence[Extent]) -> list[NDArray[np.uint8]]:
    """Return the bytes of several extents, read together.

    Raises:
        NotFound, ShardTruncated, StorageError: The file is missing, too short or unreadable.
        CorruptData: A checksum disagrees.
    """
    if not extents:
        return []
    reads = np.zeros(len(extents), READ)
    reads["file"] = [store.handle(e.name, e.file_bytes) for e in extents]
    reads["offset"] = [e.offset for e in extents]
    reads["size"] = sizes = np.array([e.size for e in extents], np.uint64)
    reads["slot"] = slots = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.uint64)
    reads["crc"] = [e.crc or 0 for e in extents]
    reads["flags"] = [HAS_CRC if e.crc is not None else 0 for e in extents]
    reads["op"] = COPY
    total = np.array([[sizes.sum()]], np.uint64)
    (pending,) = store.submit(reads, np.array([len(extents)], np.uint64), total)
    wait(pending)
    failure = pending.failure()
    if failure is not None:
        e = extents[failure.index]
        raise explain(failure, store.uri, e.name, e.what, e.offset, e.size)
    (data,) = pending.take()
    return [data[int(s) : int(s) + e.size] for s, e in zip(slots, extents, strict=True)]


def wait(pending: Pending) -> None:
    """Wait for a batch of reads. Raises StorageError if the store never answers."""
    if not pending.is_done() and not pending.wait(_PATIENCE_SECONDS):
        pending.cancel()
        raise StorageError(f"no answer to a read within {_PATIENCE_SECONDS:,.0f} s; is the file system still mounted?")


def explain(failure: ReadFailure, uri: str, name: str, what: str, offset: int, size: int) -> ShuffleStoreError:
    """Return the named error for a failed read."""
    place = f"{uri}: {name}: {what} at bytes [{offset:,}, {offset + size:,})"
    if failure.kind == "checksum":
        return CorruptData(
            f"{place} has CRC32C {failure.found:#010x}, expected {failure.expected:#010x}: the file was damaged after "
            f"it was written; run `shufflestore verify` on it, then restore the file or convert again"
        )
    if failure.kind == "short":
        return ShardTruncated(
            f"{place}: the file ends before that ({failure.found:,} of {failure.expected:,} bytes are there); the copy "
            f"was probably cut short: run `shufflestore verify` on it and copy the file again"
        )
    if failure.kind == "memory":
        return StorageError(f"{place}: no memory for a batch that holds it; lower batch_size or prefetch_bytes")
    if failure.kind == "closed":
        return StorageError(f"{place}: the reader was closed while it was under way")
    if failure.kind == "changed":
        return DataChanged(
            f"{place}: the object was replaced while it was being read ({failure.text}); a data set's files never change: "
            "find out who wrote it, and open the data set again"
        )
    if failure.kind == "remote":
        return StorageError(f"{place}: {failure.text}")
    text = f"{place}: {os.strerror(failure.errno)} (errno {failure.errno})"
    if failure.text:
        text = f"{text}: {failure.text}"
    if failure.errno == errno.ENOENT:
        return NotFound(f"{text}; a shard that the manifest names is gone: restore it or convert again")
    return StorageError(text)
