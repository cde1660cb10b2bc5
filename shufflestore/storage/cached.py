"""A bounded local cache of a remote data set: a Store over a Store.

What is there is read from local files by the native engines. What is not is fetched by whole blocks, each once however
many batches want it, kept, and then read like the rest. What finds no room is read from the store as it is.
"""

from __future__ import annotations

import os
import re
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import READ, UNKNOWN_SIZE, ZERO, Flow, Pending, Store
from shufflestore.storage.cache_batches import CachedFlow, CachedPending, Submission
from shufflestore.storage.cache_blocks import ABSENT, SOUND, THERE, Blocks, reads_of_blocks
from shufflestore.storage.cache_files import BLOCK_BYTES, CacheFolder, Mirror
from shufflestore.storage.cache_filler import Fill, Filler
from shufflestore.storage.descriptors import check
from shufflestore.storage.local import LocalStore
from shufflestore.storage.process import ProcessLock, briefly

__all__ = ["CachedStore"]

_NUMBERED: Final = re.compile(r"snapshots/\d+\.json")
"""Names that do not follow from what is in them: a data set that is written anew has the same."""
_LOOK_SECONDS: Final = 1.0
"""Between two looks at a file's map, for what other processes have kept meanwhile."""
_FULL_SECONDS: Final = 1.0
"""After no room was found, before it is looked for again."""


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
            folder: Of the cache: empty, new, or a cache. One that cannot be written to serves what it has.
            limit_bytes: Of all that the folder keeps, for all data sets; None for no limit.
            block_bytes: Fetched and kept at a time.

        Raises:
            OptionError: The folder has files of somebody else, or a number is out of range.
            StorageError: It cannot be made or written to.
        """
        self.inner, self.uri = inner, inner.uri
        self._folder, self._limit = os.fspath(folder), limit_bytes
        self.files = CacheFolder(folder, inner.uri, limit_bytes, block_bytes)
        self.local = LocalStore(self.files.folder)
        self.blocks = Blocks(block_bytes)
        self._numbers: dict[str, int] = {}
        self._sizes: list[int] = []
        self._mirrors: list[Mirror] = []
        self._looked: list[float] = []
        """When a file's map was read last."""
        self._inner_of = np.zeros(16, np.uint32)
        self.is_closed = False
        self._lock = ProcessLock()
        self._begin_process()

    def _begin_process(self) -> None:
        """Start afresh in this process, without a parent's thread."""
        self._filler = Filler(self._keep)
        self._flying: set[int] = set()
        """Blocks on their way."""
        self._full_until = 0.0
        self._hits = self._misses = self._passed = 0
        self._pid = os.getpid()

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

    # -- reads of batches ----------------------------------------------------------------------------

    def handle(self, name: str, size: int) -> int:
        """Register a file and return its number."""
        number = self._numbers.get(name)
        if number is None:
            with self._here():
                number = self._numbers.get(name)
                if number is None:
                    inner, number = self.inner.handle(name, size), len(self._sizes)
                    mirror = self.files.mirror(name, size)
                    # Local files have the numbers that they have here: what is there is read without another look.
                    self.local.handle(mirror.path.name, size)
                    if number == len(self._inner_of):
                        self._inner_of = np.resize(self._inner_of, 2 * number)
                    self._inner_of[number] = inner
                    self._sizes.append(size)
                    self._mirrors.append(mirror)
                    self._looked.append(-_LOOK_SECONDS)
                    self.blocks.add(None if size == UNKNOWN_SIZE else size)
                    self._numbers[name] = number
        return number

    def flow(self, budget_bytes: int | None) -> CachedFlow:
        """Return what bounds the look-ahead of one stream."""
        return CachedFlow(self, budget_bytes)

    def submit(
        self, reads: NDArray[np.void], ends: NDArray[np.uint64], output_sizes: NDArray[np.uint64], flow: Flow = None
    ) -> Sequence[Pending]:
        """Queue the reads of several batches. Raises ValueError for a bad descriptor."""
        if reads.dtype != READ or reads.ndim != 1:
            raise ValueError(f"{self.uri}: reads is {reads.dtype}{reads.shape}, not (n,) of storage.base.READ")
        # As bytes: numpy copies records field by field.
        reads = np.frombuffer(bytearray(np.ascontiguousarray(reads).view(np.uint8)), READ)
        output_sizes = output_sizes.copy()
        with self._here():
            if self.is_closed:
                raise ValueError(f"{self.uri}: the store is closed")
            held = self.blocks.held(reads)
            if not held.all():
                try:
                    check(reads, ends, output_sizes, len(self._sizes))
                except ValueError as cause:
                    raise ValueError(f"{self.uri}: {cause}") from cause
                self._look(reads[~held])
                held = self.blocks.held(reads)
            of = Submission(self, reads, ends, output_sizes, flow)
            if held.all():
                return self._all_here(of, ends)
            made = [CachedPending(of, i) for i in range(len(ends))]
            for i, batch in enumerate(made):
                self._start(batch, ~held[of.bounds[i] : of.bounds[i + 1]], flow)
        return made

    def _all_here(self, of: Submission, ends: NDArray[np.uint64]) -> Sequence[Pending]:
        """Have all batches of a submission read from local files, in one call."""
        self._hits += len(of.reads)
        found = self.local.submit(of.reads, ends, of.sizes, None if of.flow is None else of.flow.local)
        return [CachedPending(of, i, pending) for i, pending in enumerate(found)]

    def _start(self, batch: CachedPending, lacks: NDArray[np.bool_], flow: CachedFlow | None) -> None:
        """Have a batch read at once, or once the blocks have come that it lacks and that there is room for."""
        fill = self._fill_of(batch, flow) if lacks.any() else None
        missing = int(np.count_nonzero(lacks))
        self._hits += len(lacks) - missing
        if fill is None:
            batch.start(*((None, None) if flow is None else (flow.local, flow.through)))
            return
        self._misses += missing
        batch.expect()
        self._filler.add(fill)

    def _fill_of(self, batch: CachedPending, flow: CachedFlow | None) -> Fill | None:
        """Ask the store for blocks, neighbours together; None if nothing would come of waiting."""
        flying = frozenset(self._flying)  # first: a block that comes meanwhile must not be fetched again
        lacking = self.blocks.lacking(batch.reads)
        fresh = [block for block in lacking if block not in flying]
        is_shared = len(fresh) < len(lacking)
        fresh = fresh[: self._room(len(fresh))]
        if not fresh:
            return Fill(weakref.ref(batch), flow, None, [], []) if is_shared else None
        reads, ranges = reads_of_blocks(self.blocks.places(fresh), self._sizes, self.blocks.block_bytes)
        total = reads["size"].sum(keepdims=True)
        fetch = self.read_through(reads, total, None if flow is None else flow.fetched)
        self._flying.update(fresh)
        return Fill(weakref.ref(batch), flow, fetch, fresh, ranges)

    def _room(self, count: int) -> int:
        """Take room for up to so many blocks; return for how many."""
        if not count or not self.files.is_open or time.monotonic() < self._full_until:
            return 0
        found = self.files.take(count, self.blocks.block_bytes)
        if not found:
            self._full_until = time.monotonic() + _FULL_SECONDS
        return found

    def _look(self, reads: NDArray[np.void]) -> None:
        """Look in the files of reads which blocks are there now, and sound where that matters."""
        now = time.monotonic()
        for file, is_unsure in self.blocks.touched(reads).items():
            if now >= self._looked[file] + _LOOK_SECONDS:
                self._looked[file] = now
                first, before = self.blocks.first(file), self.blocks.of(file)
                found = np.where(self._mirrors[file].words() != 0, np.maximum(before, THERE), ABSENT)
                self.blocks.set(np.arange(first, first + len(found)), found.astype(np.uint8))
            if is_unsure:
                self._judge(file, reads[reads["file"] == file])

    def _judge(self, file: int, reads: NDArray[np.void]) -> None:
        """Hold blocks under reads without checksums against their own; those that are damaged are forgotten."""
        first = self.blocks.first(file)
        there = self.blocks.of(file)
        asked = [block - first for block in self.blocks.lacking(reads) if there[block - first] == THERE]
        for block, is_sound in zip(asked, self._mirrors[file].sound(asked), strict=True):
            if is_sound:
                self.blocks.set([first + block], SOUND)
            else:
                self._drop(file, [block])

    def read_here(self, reads: NDArray[np.void], sizes: NDArray[np.uint64], flow: Any) -> Pending:
        """Submit one batch of reads whose blocks are there."""
        ends = np.array([len(reads)], np.uint64)
        (made,) = self.local.submit(reads, ends, sizes.reshape(1, -1), flow)
        return made

    def read_through(self, reads: NDArray[np.void], sizes: NDArray[np.uint64], flow: Any) -> Pending:
        """Submit one batch to the store behind."""
        reads = reads.copy()
        reads["file"] = self._inner_of[np.where(reads["op"] == ZERO, 0, reads["file"])]
        (made,) = self.inner.submit(reads, np.array([len(reads)], np.uint64), sizes.reshape(1, -1), flow)
        return made

    def count_passed(self, count: int) -> None:
        """Take note of reads that the store does as they are."""
        self._passed += count

    def forget(self, read: np.void) -> None:
        """Drop the blocks under one read: they are not what the store has."""
        file, offset, size = int(read["file"]), int(read["offset"]), int(read["size"])
        block, count = self.blocks.block_bytes, self._mirrors[file].count
        self._drop(file, range(offset // block, min((offset + size - 1) // block + 1, count)))

    def _drop(self, file: int, blocks: Sequence[int]) -> None:
        self.blocks.set([self.blocks.first(file) + block for block in blocks], ABSENT)
        try:
            self.files.give_back(self._mirrors[file].drop(blocks) * self.blocks.block_bytes)
        except OSError:
            pass  # read only: they are found again, and found damaged again

    def _keep(self, fill: Fill) -> None:
        """Write what came for a batch. In the filler's thread."""
        kept = 0
        block_bytes = self.blocks.block_bytes
        try:
            if fill.fetch is None or not fill.fetch.is_done() or fill.fetch.failure() is not None:
                return
            (data,) = fill.fetch.take()
            for file, offset, size, place in fill.ranges:
                begins = range(0, size, block_bytes)
                numbers = [(offset + at) // block_bytes for at in begins]
                pieces = [data[place + at : place + min(at + block_bytes, size)] for at in begins]
                mine: list[int] = []
                try:
                    self._mirrors[file].keep(zip(numbers, pieces, strict=True), mine)
                finally:
                    kept += len(mine)
                first = self.blocks.first(file)
                known = np.maximum(self.blocks.of(file)[numbers], THERE)  # of those that were there, more may be known
                known[np.isin(numbers, mine)] = SOUND
                self.blocks.set([first + number for number in numbers], known)
        except OSError as cause:
            self.files.stop(cause)
        finally:
            self.files.give_back((len(fill.blocks) - kept) * block_bytes)
            self._flying.difference_update(fill.blocks)
            fill.fetch = None

    # -- small files ---------------------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Return the length of a file in bytes. Raises NotFound."""
        return self.inner.size(name)

    def sizes(self, names: Sequence[str]) -> Any:
        """As the store behind it."""
        return self.inner.sizes(names)  # type: ignore[attr-defined]

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return one range, whole file by default; files named by what is in them are kept whole. Raises NotFound."""
        if offset or size is not None or _NUMBERED.fullmatch(name):
            return self.inner.read(name, offset, size)
        data = self.files.whole(name)
        if data is None:
            data = self.inner.read(name)
            self.files.forget_whole(name)
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
        self.files.forget_whole(name)

    def counters(self) -> dict[str, int]:
        """Return what was read by this process: the counts of both stores together, and reads by where their bytes were.

        cache_hits were there, cache_misses waited for their blocks, cache_passed came from the store as they were.
        """
        inner: dict[str, int] = getattr(self.inner, "counters", dict)()
        here = self.local.counters()
        return {
            **{name: inner.get(name, 0) + here.get(name, 0) for name in {*inner, *here}},
            "cache_hits": self._hits, "cache_misses": self._misses, "cache_passed": self._passed,
        }  # fmt: skip

    def close(self) -> None:
        """End all reads and release all files. Idempotent."""
        self.is_closed = True
        self.inner.close()
        if self._pid == os.getpid():
            self._filler.stop()
        self.local.close()
        self.files.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Cross processes as a store and a folder."""
        return _reopen, (self.inner, self._folder, self._limit, self.blocks.block_bytes)

    def _here(self) -> threading.Lock:
        if self._pid != os.getpid():
            with briefly:
                if self._pid != os.getpid():
                    self._begin_process()
        return self._lock.here


def _reopen(inner: Store, folder: str, limit: int | None, block: int) -> CachedStore:
    return CachedStore(inner, folder, limit, block_bytes=block)
