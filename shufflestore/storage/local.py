"""Files through the native engines: the store for local disks and mounted network file systems."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import EngineUnavailable, OptionError, StorageError
from shufflestore.storage.base import READ, UNKNOWN_SIZE, Pending, ReadFailure
from shufflestore.storage.engines import ENGINES, Choice, Facts, choose, file_system, resident_share, threads_for
from shufflestore.storage.folder import Folder
from shufflestore.storage.memory import available_bytes
from shufflestore.storage.process import ProcessLock, briefly

if TYPE_CHECKING:
    from shufflestore import _native

__all__ = ["LocalFlow", "LocalPending", "LocalStore"]

CACHED_AHEAD_BYTES: Final = 8 << 20
"""Look-ahead over mapped files: some milliseconds of work."""
AHEAD_BYTES: Final = 64 << 20
"""Look-ahead where reads wait for a disk or a network."""
_log = logging.getLogger("shufflestore")


class LocalFlow:
    """Bounds the look-ahead of one stream of batches; see `storage.base.Store.flow`."""

    def __init__(self, budget_bytes: int | None) -> None:
        """Remember the bound; None for what suits the engine."""
        self._budget = budget_bytes
        self._reader: _native.Reader | None = None
        self._flow: _native.Flow | None = None

    @property
    def used_bytes(self) -> int:
        """Bytes of outputs that have started and were not taken."""
        return 0 if self._flow is None else self._flow.used

    @property
    def budget_bytes(self) -> int:
        """Their bound: the one asked for, else what suits the engine; 0 while no engine was chosen."""
        if self._budget is not None:
            return self._budget
        return 0 if self._reader is None else _suitable_bytes(self._reader)

    def of(self, reader: _native.Reader) -> _native.Flow:
        """Return the core's flow, another one after the store has changed to another engine."""
        if self._flow is None or self._reader is not reader:
            limit = _suitable_bytes(reader) if self._budget is None else self._budget
            self._flow, self._reader = reader.flow(limit), reader
        return self._flow


def _suitable_bytes(reader: _native.Reader) -> int:
    return CACHED_AHEAD_BYTES if reader.engine == "mmap" else AHEAD_BYTES


class LocalPending:
    """One submitted batch; see `storage.base.Pending`."""

    __slots__ = ("_batch", "_reader")

    def __init__(self, batch: _native.Pending, reader: _native.Reader) -> None:
        """Wrap the native batch, and keep alive the reader whose threads fill it."""
        self._batch = batch
        self._reader = reader

    def wait(self, timeout_seconds: float) -> bool:
        """Return True once every read has ended, False when the time is over."""
        return self._batch.wait(timeout_seconds)

    def is_done(self) -> bool:
        """Whether every read has ended."""
        return self._batch.is_done()

    def failure(self) -> ReadFailure | None:
        """Return what went wrong, once done. Raises ValueError before."""
        found = self._batch.failure()
        return None if found is None else ReadFailure(*found)

    def take(self) -> list[NDArray[np.uint8]]:
        """Return the outputs, once. Raises ValueError if the batch is not done, failed, or was taken."""
        return self._batch.take()

    def cancel(self) -> None:
        """Start no further read."""
        self._batch.cancel()


class LocalStore(Folder):
    """A folder whose files are read by native threads.

    Safe to use from several threads, after a fork (the child gets threads of its own, and the
    same file numbers) and after pickling (the copy starts with no files registered).
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        engine: str = "auto",
        threads: int | None = None,
        *,
        roots: Mapping[str, str] | None = None,
        max_open_files: int = 0,
    ) -> None:
        """Open a folder as a store; no thread starts and no file is opened before the first read.

        Args:
            root: A folder.
            engine: One of `storage.engines.ENGINES`. "auto" decides by `storage.engines.choose` at the first read, and
                again when twice as much data was registered.
            threads: None for what suits the engine.
            roots: Folders that names beginning with "@key/" lie under.
            max_open_files: Files kept open at a time; 0 for the smaller of 4,096 and the limit - 64.

        Raises:
            OptionError: There is no such engine.
            EngineUnavailable: The engine cannot run here.
        """
        super().__init__(root, roots)
        if engine not in ENGINES:
            raise OptionError(f"engine is {engine!r}; allowed are {', '.join(ENGINES)}")
        self._wanted = engine
        self._threads = threads
        self._max_open_files = max_open_files
        self._home = os.getpid()
        self._numbers: dict[str, int] = {}
        self._files: list[tuple[str, int]] = []
        self._data_bytes = 0
        self._is_closed = False
        self._lock = ProcessLock()
        self._forget()
        if engine != "auto":
            self._readers.append(self._make_reader(self._choose()))

    @property
    def engine(self) -> str:
        """The engine at work, the one that would be chosen now if none is yet."""
        return self._readers[-1].engine if self._is_current() and self._readers else self._choose().engine

    @property
    def engine_reason(self) -> str:
        """Why it is that one, with the figures."""
        return self._reason or self._choose().reason

    def handle(self, name: str, size: int) -> int:
        """Register a file and return its number."""
        number = self._numbers.get(name)
        if number is not None:
            return number
        path = self.path(name)
        with self._lock_here():
            number = self._numbers.get(name)
            if number is None:
                self._files.append((path, size))
                self._data_bytes += 0 if size == UNKNOWN_SIZE else size
                for reader in self._readers:
                    reader.add(path, size)
                number = self._numbers[name] = len(self._files) - 1
        return number

    def flow(self, budget_bytes: int | None) -> LocalFlow:
        """Return what bounds the look-ahead of one stream.

        None stands for CACHED_AHEAD_BYTES while files are mapped: buffers that come back soon are still in the
        processor's caches, which is worth a third of the copying. For reads that may wait for a disk it
        stands for AHEAD_BYTES.
        """
        return LocalFlow(budget_bytes)

    def submit(
        self,
        reads: NDArray[np.void],
        ends: NDArray[np.uint64],
        output_sizes: NDArray[np.uint64],
        flow: LocalFlow | None = None,
    ) -> Sequence[Pending]:
        """Queue the reads of several batches. Raises ValueError for a bad descriptor."""
        if reads.dtype != READ or reads.ndim != 1:
            raise ValueError(f"reads is {reads.dtype}{reads.shape}, not (n,) of storage.base.READ")
        words = np.ascontiguousarray(reads).view(np.uint64).reshape(len(reads), 5)
        reader = self._reader()
        try:
            batches = reader.submit(
                words,
                np.ascontiguousarray(ends, dtype=np.uint64),
                np.ascontiguousarray(output_sizes, dtype=np.uint64),
                None if flow is None else flow.of(reader),
            )
        except ValueError as cause:
            if "closed" in str(cause):  # not by `close`, which was asked about above: by the end of the interpreter
                raise StorageError(f"{self.uri}: {cause}: the interpreter is ending; read before that") from cause
            raise ValueError(f"{self.uri}: {cause}") from cause
        return [LocalPending(batch, reader) for batch in batches]

    def counters(self) -> dict[str, int]:
        """Return what was read so far, by this process: reads, bytes_read, bytes_delivered, batches and more."""
        total: dict[str, int] = {}
        for reader in self._readers if self._is_current() else ():
            for name, value in reader.counters().items():
                total[name] = total.get(name, 0) + value
        return total

    def close(self) -> None:
        """End all reads and release all files. Idempotent."""
        self._is_closed = True
        with self._lock_here():
            for reader in self._readers:
                reader.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Cross processes as a place and a choice, without files or reads."""
        return _reopen, (self.root, self._wanted, self._threads, self.roots, self._max_open_files, self.uri)

    def _is_current(self) -> bool:
        return self._pid == os.getpid()

    def _forget(self) -> None:
        """Start afresh in this process, without a parent's threads."""
        self._readers: list[_native.Reader] = []
        self._reason = ""
        self._chosen_for = 0
        self._look_again_at = 0
        """Bytes read by the engine at work after which the choice is made again."""
        self._pid = os.getpid()

    def _lock_here(self) -> threading.Lock:
        if not self._is_current():
            with briefly:
                if not self._is_current():
                    self._forget()
        return self._lock.here

    def _reader(self) -> _native.Reader:
        """The reader for the next batch, made now if there is none or if the data has outgrown it."""
        with self._lock_here():
            if self._is_closed:
                raise ValueError(f"{self.uri}: the store is closed")
            if self._readers and not self._is_due():
                return self._readers[-1]
            choice = self._choose()
            self._chosen_for, self._reason = self._data_bytes, choice.reason
            made = next((reader for reader in self._readers if reader.engine == choice.engine), None)
            if made is None:
                self._readers.append(self._suitable_reader(choice))
            elif made is not self._readers[-1]:
                self._readers.remove(made)
                self._readers.append(made)
                _log.info("%s: engine %s from now on: %s", self.uri, choice.engine, choice.reason)
            self._look_again_at = self._readers[-1].counters()["bytes_read"] + self._data_bytes
            return self._readers[-1]

    def _is_due(self) -> bool:
        """Whether the choice is to be made once more.

        Of maps: as much data again was registered. Of reads: an epoch's worth was read, and may be in the page cache now.
        """
        if self._wanted != "auto":
            return False
        reader = self._readers[-1]
        if reader.engine == "mmap":
            return self._data_bytes > 2 * self._chosen_for
        if os.getpid() != self._home:
            return False
        return reader.counters()["bytes_read"] > self._look_again_at or self._data_bytes > 2 * self._chosen_for

    def _choose(self) -> Choice:
        if self._wanted != "auto":
            return Choice(self._wanted, "asked for by name")
        available = available_bytes()
        is_small = self._data_bytes < available // 2
        return choose(
            Facts(
                data_bytes=self._data_bytes,
                available_bytes=available,
                resident=0.0 if is_small else resident_share(self._files),
                file_system=file_system(self._files[0][0] if self._files else self.root),
                is_forked=os.getpid() != self._home,
            )
        )

    def _suitable_reader(self, choice: Choice) -> _native.Reader:
        """Make the reader of a choice, or threads that block where the system has no io_uring for us."""
        try:
            return self._make_reader(choice)
        except EngineUnavailable as cause:
            if not choice.engine.startswith("io_uring") or self._wanted != "auto":
                raise
            _warn_once(f"{cause}; reading with blocking calls instead, which take more of the processors")
            return self._make_reader(Choice("pread", f"{choice.reason}; {cause}"))

    def _make_reader(self, choice: Choice) -> _native.Reader:
        """Make a reader that knows every registered file by its number."""
        engine, reason = choice.engine, choice.reason
        try:
            from shufflestore import _native
        except ImportError as cause:
            raise EngineUnavailable(
                f"{self.uri}: engine {engine!r} needs the native core, which is not there ({cause}); "
                "install shufflestore from a wheel, or read through storage.posix.PosixStore"
            ) from cause
        threads = threads_for(engine) if self._threads is None else self._threads
        try:
            reader = _native.Reader(engine, threads, self._max_open_files)
        except OSError as cause:
            raise EngineUnavailable(f"{self.uri}: engine {engine!r} cannot run here: {cause}") from cause
        for path, size in self._files:
            reader.add(path, size)
        self._reason, self._chosen_for = reason, self._data_bytes
        _log.info("%s: engine %s, %d threads: %s", self.uri, engine, threads, reason)
        return reader


@cache
def _warn_once(text: str) -> None:
    _log.warning("%s", text)


def _reopen(
    root: str, engine: str, threads: int | None, roots: dict[str, str], max_open_files: int, uri: str
) -> LocalStore:
    store = LocalStore(root, engine, threads, roots=roots, max_open_files=max_open_files)
    store.uri = uri
    return store
