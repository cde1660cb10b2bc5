"""The Store contract in plain Python over a folder: the twin that the native engines must agree with.

Believable at sight rather than fast, and the last resort where the native core is not built.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import COPY, HAS_CRC, WIDEN, ZERO, Pending, ReadFailure
from shufflestore.storage.descriptors import check
from shufflestore.storage.folder import Folder, pread_fully

__all__ = ["PosixPending", "PosixStore"]

_WIDENED: Final = {op: pair for pair, op in WIDEN.items()}


def _python_crc32c() -> Callable[[bytes | memoryview], int]:
    """Return CRC32C as a table and a loop, for machines without the native core."""
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(0x82F63B78), np.uint32(0))
    steps = table.tolist()

    def crc32c(data: bytes | memoryview) -> int:
        state = 0xFFFFFFFF
        for byte in data:
            state = (state >> 8) ^ steps[(state ^ byte) & 0xFF]
        return state ^ 0xFFFFFFFF

    return crc32c


_crc32c: Callable[[bytes | memoryview], int]
try:
    from shufflestore._native import crc32c as _crc32c
except ImportError:
    _crc32c = _python_crc32c()


class PosixStore(Folder):
    """Reads by `os.pread` in the thread that waits for them; nothing happens before somebody waits."""

    def __init__(self, root: str | os.PathLike[str], *, roots: Mapping[str, str] | None = None) -> None:
        """Open a folder as a store.

        Args:
            root: A folder.
            roots: Folders that names beginning with "@key/" lie under.
        """
        super().__init__(root, roots)
        self._numbers: dict[str, int] = {}
        self._paths: list[str] = []
        self._pendings: list[PosixPending] = []
        self._is_closed = False

    def handle(self, name: str, size: int) -> int:
        """Register a file and return its number."""
        number = self._numbers.get(name)
        if number is None:
            path = self.path(name)
            number = self._numbers[name] = len(self._paths)
            self._paths.append(path)
        return number

    def flow(self, budget_bytes: int | None) -> None:
        """Return None: a batch is read when somebody waits for it, so nothing is ahead."""

    def submit(
        self,
        reads: NDArray[np.void],
        ends: NDArray[np.uint64],
        output_sizes: NDArray[np.uint64],
        flow: None = None,
    ) -> Sequence[Pending]:
        """Queue the reads of several batches. Raises ValueError for a bad descriptor."""
        if self._is_closed:
            raise ValueError(f"{self.uri}: the store is closed")
        reads = reads.copy()
        check(reads, ends, output_sizes, len(self._paths))
        begins = [0, *ends.tolist()][: len(ends)]
        made = [
            PosixPending(self._paths, reads[begin:end], sizes)
            for begin, end, sizes in zip(begins, ends.tolist(), output_sizes.tolist(), strict=True)
        ]
        self._pendings = [pending for pending in self._pendings if not pending.is_done()] + made
        return made

    def close(self) -> None:
        """Cancel what nobody has waited for. Idempotent."""
        self._is_closed = True
        for pending in self._pendings:
            pending.cancel()
        self._pendings = []

    def __reduce__(self) -> tuple[object, ...]:
        """Cross processes as a place, without files or reads."""
        return _reopen, (type(self), self.root, self.roots, self.uri)


def _reopen(kind: type[PosixStore], root: str, roots: dict[str, str], uri: str) -> PosixStore:
    store = kind(root, roots=roots)
    store.uri = uri
    return store


class PosixPending:
    """One batch, read by whoever waits for it."""

    def __init__(self, paths: Sequence[str], reads: NDArray[np.void], output_sizes: Sequence[int]) -> None:
        """Keep what is to be read."""
        self._paths = paths
        self._reads = reads
        self._sizes = output_sizes
        self._outputs: list[NDArray[np.uint8]] | None = None
        self._failure: ReadFailure | None = None
        self._next = 0
        self._is_done = False
        self._is_cancelled = False
        self._lock = threading.Lock()

    def wait(self, timeout_seconds: float) -> bool:
        """Read until all is read or the time is over, at least one read."""
        end = time.monotonic() + timeout_seconds
        if not self._lock.acquire(timeout=min(max(timeout_seconds, 0.0), threading.TIMEOUT_MAX)):
            return self._is_done
        with contextlib.closing(_Unlock(self._lock)):
            while not self._is_done:
                self._step()
                if time.monotonic() >= end:
                    break
        return self._is_done

    def is_done(self) -> bool:
        """Whether every read has ended."""
        return self._is_done

    def failure(self) -> ReadFailure | None:
        """Return what went wrong, once done. Raises ValueError before."""
        if not self._is_done:
            raise ValueError("the batch is not done yet")
        return self._failure

    def take(self) -> list[NDArray[np.uint8]]:
        """Return the outputs, once. Raises ValueError if the batch is not done, failed, or was taken."""
        if self.failure() is not None:
            raise ValueError("the batch failed: it has no outputs")
        if self._outputs is None:
            raise ValueError("the outputs were taken before")
        outputs, self._outputs = self._outputs, None
        return outputs

    def cancel(self) -> None:
        """Start no further read."""
        self._is_cancelled = True
        if self._lock.acquire(blocking=False):
            with contextlib.closing(_Unlock(self._lock)):
                if not self._is_done:
                    self._step()

    def _step(self) -> None:
        """Do the next read, or find out that there is none. The lock is held."""
        if self._is_cancelled and self._next < len(self._reads):
            self._failure = ReadFailure(self._next, "closed", 0, 0, 0)
            self._next = len(self._reads)
        elif self._outputs is None:
            self._allocate()
        elif self._next < len(self._reads):
            failure = self._read(self._next, self._outputs)
            self._failure = self._failure or failure
            self._next += 1
        if self._next == len(self._reads) and (self._outputs is not None or self._failure is not None):
            self._is_done = True
        if self._is_done and self._failure is not None:
            self._outputs = None

    def _allocate(self) -> None:
        try:
            self._outputs = [np.empty(size, np.uint8) for size in self._sizes]
        except (MemoryError, ValueError):  # numpy's word for a size beyond the address space is ValueError
            self._failure = ReadFailure(0, "memory", 0, max(self._sizes), 0)
            self._next = len(self._reads)

    def _read(self, index: int, outputs: Sequence[NDArray[np.uint8]]) -> ReadFailure | None:
        read = self._reads[index]
        op, size, offset = int(read["op"]), int(read["size"]), int(read["offset"])
        slot = outputs[int(read["output"])][int(read["slot"]) :]
        if op == ZERO:
            slot[:size] = 0
            return None
        try:
            data = _read_range(self._paths[int(read["file"])], size, offset) if size else b""
        except MemoryError:
            return ReadFailure(index, "memory", 0, size, 0)
        except OSError as cause:
            return ReadFailure(index, "errno", cause.errno or 0, 0, 0)
        if len(data) < size:
            return ReadFailure(index, "short", 0, size, len(data))
        if int(read["flags"]) & HAS_CRC and (found := _crc32c(data)) != int(read["crc"]):
            return ReadFailure(index, "checksum", 0, int(read["crc"]), found)
        came = np.frombuffer(data, np.uint8)
        if op != COPY:
            source, target = _WIDENED[op]
            came = came.view(f"<{source}").astype(f"<{target}").view(np.uint8)
        slot[: len(came)] = came
        return None


class _Unlock:
    """Lets go of a lock that was taken with a time limit."""

    def __init__(self, lock: threading.Lock) -> None:
        self.close = lock.release


def _read_range(path: str, size: int, offset: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return pread_fully(fd, size, offset)
    finally:
        os.close(fd)
