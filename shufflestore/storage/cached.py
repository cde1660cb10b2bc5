"""A bounded local cache of a remote data set: a Store over a Store.

What is there is read from local files by the native engines. What is not is fetched by whole blocks, each once however
many batches want it, kept, and then read like the rest. Where there is no room, reads go through as they are.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import HAS_CRC, READ, UNKNOWN_SIZE, ZERO, Flow, Pending, Store
from shufflestore.storage.cache_batches import CachedFlow, CachedPending, Failed, reads_of_blocks
from shufflestore.storage.cache_files import BLOCK_BYTES, CacheFolder, Mirror
from shufflestore.storage.descriptors import check
from shufflestore.storage.local import LocalStore
from shufflestore.storage.process import ProcessLock, briefly

__all__ = ["CachedStore"]


class CachedStore:
    """A store whose blocks are kept in a local folder as they are read.

    Safe to use from several threads, after a fork and after pickling; the folder may be shared by any number of processes.
    """

    def __init__(
        self, inner: Store, folder: str | os.PathLike[str], limit_bytes: int | None, *, block_bytes: int = BLOCK_BYTES
    ) -> None:
        """Put a cache before a store; nothing is read yet.

        Args:
            inner: Where the bytes come from. Closed with this one.
            folder: Of the cache: empty, new, or a cache.
            limit_bytes: Of all that the folder keeps, for all data sets; None for no limit.
            block_bytes: Fetched and kept at a time.

        Raises:
            OptionError: The folder has files of somebody else.
        """
        self.inner, self.uri = inner, inner.uri
        self._folder, self._limit, self._block = os.fspath(folder), limit_bytes, block_bytes
        self.files = CacheFolder(folder, inner.uri, limit_bytes, block_bytes)
        self.local = LocalStore(self.files.folder)
        self._numbers: dict[str, int] = {}
        self._sizes: list[tuple[str, int]] = []
        self._inner_of = np.zeros(0, np.uint32)
        self._base = np.zeros(0, np.int64)
        """Where a file's blocks begin in `_seen`; -1 for files that are not kept."""
        self._seen = np.zeros(0, bool)
        """Blocks that this process has found there."""
        self._is_closed = False
        self._lock = ProcessLock()
        self._forget_threads()

    def _forget_threads(self) -> None:
        self._pid = os.getpid()
        self._queue: deque[CachedPending] = deque()
        self._some = threading.Condition(threading.Lock())
        self._filler: threading.Thread | None = None
        self._flying: set[tuple[int, int]] = set()
        self._hits = self._misses = self._throughs = 0

    @property
    def engine(self) -> str:
        """What reads, for telemetry."""
        return f"cache: {self.local.engine}"

    @property
    def engine_reason(self) -> str:
        """Why the local files are read so."""
        return self.local.engine_reason

    @property
    def can_list(self) -> bool:
        """As the store behind it."""
        return getattr(self.inner, "can_list", True)

    def handle(self, name: str, size: int) -> int:
        """Register a file and return its number."""
        number = self._numbers.get(name)
        if number is None:
            with self._here():
                number = self._numbers.get(name)
                if number is None:
                    inner = self.inner.handle(name, size)
                    # Local files have the numbers that they have here: what is there is read without another look.
                    self.local.handle(f"{self.files.stem(name, size).name}.blocks", size)
                    if size != UNKNOWN_SIZE:
                        try:
                            self.files.mirror(name, size)
                        except OSError as cause:
                            self.files.stop(cause)
                            size = UNKNOWN_SIZE  # which nothing is kept of
                    blocks = -(-size // self._block) if size != UNKNOWN_SIZE else 0
                    self._base = np.append(self._base, np.int64(len(self._seen) if blocks else -1))
                    self._seen = np.append(self._seen, np.zeros(blocks, bool))
                    self._sizes.append((name, size))
                    self._inner_of = np.append(self._inner_of, np.uint32(inner))
                    number = self._numbers[name] = len(self._sizes) - 1
        return number

    def flow(self, budget_bytes: int | None) -> CachedFlow:
        """Return what bounds the look-ahead of one stream."""
        return CachedFlow(self, budget_bytes)

    def submit(
        self, reads: NDArray[np.void], ends: NDArray[np.uint64], output_sizes: NDArray[np.uint64], flow: Flow = None
    ) -> Sequence[Pending]:
        """Queue the reads of several batches. Raises ValueError for a bad descriptor."""
        if self._is_closed:
            raise ValueError(f"{self.uri}: the store is closed")
        reads, output_sizes = reads.copy(), output_sizes.copy()
        with self._here():
            if self._are_known(reads):
                return self._all_here(reads, ends, output_sizes, flow)
            try:
                check(reads, ends, output_sizes, len(self._sizes))
            except ValueError as cause:
                raise ValueError(f"{self.uri}: {cause}") from cause
            lacks = self._lacking(reads)
            if not lacks.any():
                return self._all_here(reads, ends, output_sizes, flow)
            made: list[Pending] = []
            begin = 0
            for i, end in enumerate(ends.tolist()):
                batch = CachedPending(self, reads[begin:end], output_sizes[i], flow)
                self._begin(batch, lacks[begin:end])
                made.append(batch)
                begin = end
        return made

    def _all_here(
        self, reads: NDArray[np.void], ends: NDArray[np.uint64], output_sizes: NDArray[np.uint64], flow: Flow
    ) -> Sequence[Pending]:
        """Have all batches of a submission read from local files, in one call."""
        self._hits += len(ends)
        found = self.local.submit(reads, ends, output_sizes, None if flow is None else flow.local)
        made, begin = [], 0
        for i, (end, pending) in enumerate(zip(ends.tolist(), found, strict=True)):
            batch = CachedPending(self, reads[begin:end], output_sizes[i], flow)
            batch.become(pending, is_local=True)
            made.append(batch)
            begin = end
        return made

    def _are_known(self, reads: NDArray[np.void]) -> bool:
        """Whether this process has seen all blocks of these reads, and their records have checksums of their own."""
        if reads.dtype != READ or reads.ndim != 1:
            return False
        real = reads[reads["op"] != ZERO] if (reads["op"] == ZERO).any() else reads
        if not len(real) or not (real["flags"] & HAS_CRC).all() or (real["file"] >= len(self._sizes)).any():
            return False
        base, block = self._base[real["file"]], np.uint64(self._block)
        first = (real["offset"] // block).astype(np.int64)
        last = ((real["offset"] + np.maximum(real["size"], 1) - 1) // block).astype(np.int64)
        # Descriptors that are wrong may overflow here; the local store refuses them.
        if (
            ((last - first) >> 1).any()
            or (base < 0).any()
            or (first < 0).any()
            or (base + last >= len(self._seen)).any()
        ):
            return False
        return bool(self._seen[base + first].all() and self._seen[base + last].all())

    def _lacking(self, reads: NDArray[np.void]) -> NDArray[np.bool_]:
        """Which reads need a block that is not there."""
        lacks = np.zeros(len(reads), bool)
        real = np.flatnonzero((reads["op"] != ZERO) & (reads["size"] > 0))
        files = reads["file"][real]
        for file in np.unique(files).tolist():
            mine = real[files == file]
            name, size = self._sizes[file]
            if size == UNKNOWN_SIZE:
                lacks[mine] = True
                continue
            mirror = self.files.mirror(name, size)
            first = (reads["offset"][mine] // self._block).astype(np.int64)
            last = ((reads["offset"][mine] + reads["size"][mine] - 1) // self._block).astype(np.int64)
            inside = last < len(mirror.words)
            missing = ~inside
            missing[inside] = (mirror.words[first[inside]] == 0) | (mirror.words[last[inside]] == 0)
            for i in np.flatnonzero(inside & ~missing & (last - first > 1)).tolist():
                missing[i] = not mirror.words[first[i] : last[i] + 1].all()
            for i in np.flatnonzero(~missing & ((reads["flags"][mine] & HAS_CRC) == 0)).tolist():
                missing[i] = not all(self._holds(mirror, b) for b in range(int(first[i]), int(last[i]) + 1))
            lacks[mine] = missing
            here = self._base[file] + first[~missing]
            self._seen[here] = self._seen[here - first[~missing] + last[~missing]] = True
        return lacks

    def _holds(self, mirror: Mirror, block: int) -> bool:
        """Whether a block is there and sound; a damaged one is forgotten."""
        if mirror.check(block):
            return True
        self.files.give_back(mirror.drop([block]) * self._block)
        return False

    def _begin(self, batch: CachedPending, lacks: NDArray[np.bool_]) -> None:
        """Have a batch read from where its bytes are."""
        if not lacks.any():
            self._hits += 1
            flow = None if batch.flow is None else batch.flow.local
            batch.become(self._read_here(batch, flow), is_local=True)
            return
        wanted = self._missing(batch.reads[lacks])
        fresh = None if wanted is None else [key for key in wanted if key not in self._flying]
        if fresh is None or not self.files.reserve(len(fresh) * self._block):
            self._throughs += 1
            flow = None if batch.flow is None else batch.flow.through
            batch.become(self.pass_through(batch.reads, batch.sizes, flow), is_local=False)
            return
        self._misses += 1
        self._fetch(batch, fresh)
        with self._some:
            self._queue.append(batch)
            if self._filler is None:
                self._filler = threading.Thread(target=self._fill, name="shufflestore-cache", daemon=True)
                self._filler.start()
            self._some.notify()

    def _missing(self, reads: NDArray[np.void]) -> list[tuple[int, int]] | None:
        """(file, block) of blocks that are not there; None if some can never be."""
        found: dict[tuple[int, int], None] = {}
        for file, offset, size in zip(
            reads["file"].tolist(), reads["offset"].tolist(), reads["size"].tolist(), strict=True
        ):
            name, length = self._sizes[file]
            if length == UNKNOWN_SIZE or offset + size > length:
                return None
            words = self.files.mirror(name, length).words
            for block in range(offset // self._block, (offset + size - 1) // self._block + 1):
                if not words[block]:
                    found[file, block] = None
        return list(found)

    def _fetch(self, batch: CachedPending, blocks: list[tuple[int, int]]) -> None:
        """Ask the store for blocks, neighbours together."""
        batch.blocks = blocks
        if not blocks:
            return
        self._flying.update(blocks)
        reads, batch.ranges = reads_of_blocks(blocks, [size for _, size in self._sizes], self._block)
        total = np.array([[reads["size"].sum()]], np.uint64)
        reads["file"] = self._inner_of[reads["file"]]
        flow = None if batch.flow is None else batch.flow.fetched
        (batch.fetch,) = self.inner.submit(reads, np.array([len(reads)], np.uint64), total, flow)

    def _read_here(self, batch: CachedPending, flow: Any) -> Pending:
        ends = np.array([len(batch.reads)], np.uint64)
        (made,) = self.local.submit(batch.reads, ends, batch.sizes.reshape(1, -1), flow)
        return made

    def pass_through(self, reads: NDArray[np.void], sizes: NDArray[np.uint64], flow: Any) -> Pending:
        """Read one batch from the store, as if there were no cache."""
        reads = reads.copy()
        reads["file"] = self._inner_of[np.where(reads["op"] == ZERO, 0, reads["file"])] if len(self._inner_of) else 0
        (made,) = self.inner.submit(reads, np.array([len(reads)], np.uint64), sizes.reshape(1, -1), flow)
        return made

    def forget(self, read: np.void) -> None:
        """Drop the blocks under one read: they are not what the store has."""
        name, size = self._sizes[int(read["file"])]
        first, last = (int(read["offset"]) + at for at in (0, int(read["size"]) - 1))
        blocks = range(first // self._block, min(last, size - 1) // self._block + 1)
        self._seen[self._base[int(read["file"])] + np.array(blocks)] = False
        self.files.give_back(self.files.mirror(name, size).drop(blocks) * self._block)

    # -- the thread that keeps what comes ------------------------------------------------------------

    def _fill(self) -> None:
        """Keep the blocks of batches as they come, in order, and have the batches read."""
        while True:
            with self._some:
                while not self._queue:
                    if self._is_closed or not self._some.wait(1.0):
                        self._filler = None
                        return
                batch = self._queue.popleft()
            is_kept = self._keep(batch)
            size = int(batch.sizes.sum())
            try:
                if batch.flow is not None:
                    batch.flow.enter(size, lambda one=batch: not one.is_cancelled and not self._is_closed)
                held = size if batch.flow is not None else 0
                if is_kept:
                    batch.become(self._read_here(batch, None), is_local=True, held=held)
                else:  # the store says what is wrong, in terms of the batch's own reads
                    batch.become(self.pass_through(batch.reads, batch.sizes, None), is_local=False, held=held)
            except Exception as cause:  # closed meanwhile
                batch.become(Failed(cause), is_local=False)
            del batch

    def _keep(self, batch: CachedPending) -> bool:
        """Write what came for a batch; False if something did not come or could not be kept."""
        written = 0
        try:
            if batch.fetch is None:
                return True
            while not batch.fetch.wait(3600.0):
                pass
            if batch.fetch.failure() is not None:
                return False
            (data,) = batch.fetch.take()
            for file, offset, size, place in batch.ranges:
                mirror = self.files.mirror(*self._sizes[file])
                for at in range(0, size, self._block):
                    written += mirror.keep(
                        (offset + at) // self._block, data[place + at : place + min(at + self._block, size)]
                    )
            return True
        except OSError as cause:
            self.files.stop(cause)
            return False
        finally:
            self.files.give_back((len(batch.blocks) - written) * self._block)
            self._flying.difference_update(batch.blocks)
            batch.fetch = None

    # -- small files ---------------------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Return the length of a file in bytes. Raises NotFound."""
        return self.inner.size(name)

    def sizes(self, names: Sequence[str]) -> Any:
        """As the store behind it."""
        return self.inner.sizes(names)  # type: ignore[attr-defined]

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return one range, whole file by default; whole files never change and are kept. Raises NotFound."""
        if offset or size is not None:
            return self.inner.read(name, offset, size)
        data = self.files.whole(name)
        if data is None:
            data = self.inner.read(name)
            self.files.keep_whole(name, data)
        return data

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish a small file in the store."""
        return self.inner.put_if_absent(name, data)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the names that the store has now."""
        return self.inner.list(prefix)

    def delete(self, name: str) -> None:
        """Remove a file from the store."""
        self.inner.delete(name)

    def counters(self) -> dict[str, int]:
        """Return what was read: the store's own counts, and batches by where their bytes were."""
        inner: dict[str, int] = getattr(self.inner, "counters", dict)()
        here = self.local.counters()
        return {
            **{name: inner.get(name, 0) + here.get(name, 0) for name in {*inner, *here}},
            "cache_hits": self._hits, "cache_misses": self._misses, "cache_passed": self._throughs,
        }  # fmt: skip

    def close(self) -> None:
        """End all reads and release all files. Idempotent."""
        self._is_closed = True
        if self._pid == os.getpid():
            with self._some:
                self._some.notify_all()
        self.inner.close()
        filler = self._filler
        if filler is not None and filler is not threading.current_thread() and self._pid == os.getpid():
            filler.join(10.0)
        self.local.close()
        self.files.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Cross processes as a store and a folder."""
        return _reopen, (self.inner, self._folder, self._limit, self._block)

    def _here(self) -> threading.Lock:
        if self._pid != os.getpid():
            with briefly:
                if self._pid != os.getpid():
                    self._forget_threads()
        return self._lock.here


def _reopen(inner: Store, folder: str, limit: int | None, block: int) -> CachedStore:
    return CachedStore(inner, folder, limit, block_bytes=block)
