"""Object stores and HTTP servers through obstore: S3, Google Cloud Storage, Azure, plain HTTP, the Hugging Face Hub."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import DataChanged, NotFound, OptionError, ShardTruncated, StorageError
from shufflestore.storage.base import Pending
from shufflestore.storage.commit import TEMPORARY
from shufflestore.storage.descriptors import check
from shufflestore.storage.process import ProcessLock, briefly
from shufflestore.storage.remote_batches import RemoteFlow
from shufflestore.storage.remote_client import Answer, options_of
from shufflestore.storage.remote_reader import Reader
from shufflestore.storage.upload import Bucket
from shufflestore.storage.uri import place_of

__all__ = ["RemoteStore"]

_ONE_REQUEST_BYTES: Final = 64 << 20
"""A whole object beyond this is read in parts of `most_bytes`, side by side."""


class RemoteStore:
    """A prefix of an object store, or a folder of an HTTP server.

    Safe to use from several threads, after a fork (the child gets a client and threads of its own, and the same file
    numbers) and after pickling (the copy starts with no files registered).
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None = None) -> None:
        """Take a place; nothing is sent and no thread starts before the first read.

        Args:
            uri: "s3://bucket/prefix", "gs://...", "az://...", "http(s)://..." or "hf://...".
            storage_options: See `storage.remote_client.client_for`.

        Raises:
            OptionError: The URI or an option is none that the store knows. MissingDependency: obstore is not installed.
        """
        self._place = place_of(uri)
        self.uri = self._place.uri
        self._storage_options = dict(storage_options or {})
        self._options = options_of(storage_options)
        self._bucket = Bucket(uri, storage_options)
        """For what changes the store. Wrong options are told here, not at the first read."""
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []
        self._is_closed = False
        self._lock = ProcessLock()
        self._reader_: Reader | None = None
        self._pid = os.getpid()

    engine = "remote"
    """What reads, for telemetry."""

    @property
    def can_list(self) -> bool:
        """Whether `list` works: plain HTTP has no listing."""
        return self._place.kind not in ("http", "hf")

    # -- reads of batches --------------------------------------------------------------------------

    def handle(self, name: str, size: int) -> int:
        """Register an object and return its number."""
        number = self._numbers.get(name)
        if number is None:
            self._check(name)
            with self._lock_here():
                number = self._numbers.get(name)
                if number is None:
                    if self._reader_ is not None:
                        self._reader_.keys.append(self._reader_.key(name))
                    self._names.append(name)
                    number = self._numbers[name] = len(self._names) - 1
        return number

    def flow(self, budget_bytes: int | None) -> RemoteFlow:
        """Return what bounds the look-ahead of one stream; None for what keeps `max_in_flight` requests busy."""
        return self._reader().flow(budget_bytes)

    def submit(
        self,
        reads: NDArray[np.void],
        ends: NDArray[np.uint64],
        output_sizes: NDArray[np.uint64],
        flow: RemoteFlow | None = None,
    ) -> Sequence[Pending]:
        """Queue the reads of several batches. Raises ValueError for a bad descriptor."""
        reader = self._reader()
        try:
            batch_of = check(reads, ends, output_sizes, len(self._names))
        except ValueError as cause:
            raise ValueError(f"{self.uri}: {cause}") from cause
        return reader.submit(reads, batch_of, output_sizes, flow)

    def counters(self) -> dict[str, int]:
        """Return what was read so far, by this process.

        reads, bytes_read, bytes_delivered, batches, requests (all of them), retries and hedges (those among them that
        were sent again), throttled.
        """
        reader = self._reader_ if self._pid == os.getpid() else None
        return {} if reader is None else reader.counters()

    # -- small files -------------------------------------------------------------------------------

    def size(self, name: str) -> int:
        """Return the length of an object in bytes. Raises NotFound."""
        reader = self._reader()
        key = reader.key(self._check(name))
        (found,) = reader.ask(lambda: reader.head(key))
        if isinstance(found, Answer):
            raise self._error(name, found)
        return int(found["size"])

    def sizes(self, names: Sequence[str]) -> list[int | None]:
        """Return the lengths of objects, asked for side by side; None for each that is not there now."""
        reader = self._reader()

        def asking(key: str) -> Callable[[], Any]:
            def ask() -> Any:
                found = reader.head(key)
                return None if isinstance(found, Answer) and found.kind == "missing" else found

            return ask

        found = reader.ask(*(asking(reader.key(self._check(name))) for name in names))
        for name, one in zip(names, found, strict=True):
            if isinstance(one, Answer):
                raise self._error(name, one)
        return [None if one is None else int(one["size"]) for one in found]

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return one range, whole object by default. Raises NotFound, ShardTruncated."""
        if offset < 0 or (size is not None and size < 0):
            raise OptionError(f"{self.uri}: {name}: offset {offset} and size {size} must not be negative")
        reader, step = self._reader(), self._options.most_bytes
        key = reader.key(self._check(name))
        if size is None and offset == 0:
            (whole,) = reader.ask(lambda: reader.get_whole(key, _ONE_REQUEST_BYTES))
            if isinstance(whole, Answer):
                raise self._error(name, whole)
            if not isinstance(whole, int):
                return bytes(whole)
        length = self.size(name) if size is None or size == 0 else None
        stop = length if size is None else offset + size
        assert stop is not None, "the length was asked for where there is no size"
        if length is not None and (offset > length or stop > length):
            raise self._short(name, offset, stop, length)
        parts = [(begin, min(begin + step, stop)) for begin in range(offset, stop, step)]
        found = reader.ask(*(partial(reader.get_range, key, begin, end) for begin, end in parts))
        for answer in found:
            if isinstance(answer, Answer):
                if answer.kind == "beyond":
                    raise self._short(name, offset, stop, self.size(name))
                raise self._error(name, answer)
        return b"".join(found)

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish a small object; False, and nothing changed, if the name is taken."""
        self._reader()  # or the store is closed
        return self._bucket.create(self._check(name), data)

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin with `prefix`, sorted, temporary files left out.

        Raises:
            StorageError: The store failed, or it is an HTTP server, which cannot list.
        """
        if not self.can_list:
            raise StorageError(f"{self.uri}: an HTTP server cannot say which files it has; name the one you want")
        reader = self._reader()
        above = prefix.rpartition("/")[0]
        lead = reader.key("") if self._place.prefix else ""

        def listed() -> Any:
            def names(library: Any, client: Any) -> list[str]:
                return [one["path"] for page in library.list(client, prefix=lead + above) for one in page]

            return reader.attempt(above, names)

        (found,) = reader.ask(listed)
        if isinstance(found, Answer):
            raise self._error(f"{prefix}*", found)
        named = sorted(path.removeprefix(lead) for path in found)
        for name in named:
            if name.startswith(prefix) and not any(part.startswith(TEMPORARY) for part in name.split("/")):
                yield name

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is no error."""
        self._reader()  # or the store is closed
        self._bucket.delete(self._check(name))

    # -- life --------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all reads and threads. Idempotent."""
        self._is_closed = True
        if self._pid == os.getpid() and self._reader_ is not None:
            self._reader_.close()

    def __reduce__(self) -> tuple[object, ...]:
        """Cross processes as a place and its options, without files or reads."""
        return RemoteStore, (self.uri, self._storage_options)

    def _lock_here(self) -> threading.Lock:
        if self._pid != os.getpid():
            with briefly:
                if self._pid != os.getpid():
                    self._reader_, self._pid = None, os.getpid()
        return self._lock.here

    def _reader(self) -> Reader:
        """The reader of this process, made now if there is none."""
        with self._lock_here():
            if self._is_closed:
                raise ValueError(f"{self.uri}: the store is closed")
            if self._reader_ is None:
                self._reader_ = reader = Reader(self.uri, self._storage_options, self._options)
                reader.keys = [reader.key(name) for name in self._names]
                weakref.finalize(self, reader.engine.let_go).atexit = False
            return self._reader_

    def _check(self, name: str) -> str:
        if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
            raise OptionError(
                f"{self.uri}: {name!r} is not a name of an object here; a name has no empty part, no '.' and no '..'"
            )
        return name

    def _short(self, name: str, offset: int, stop: int, length: int) -> ShardTruncated:
        return ShardTruncated(
            f"{self.uri}: {name}: bytes [{offset:,}, {stop:,}) are wanted but the object ends at {length:,}; the copy was "
            "probably cut short: run `shufflestore verify`"
        )

    def _error(self, name: str, answer: Answer) -> Exception:
        what = f"{self.uri}: {name}: {answer.text}"
        if answer.kind == "missing":
            return NotFound(f"{what}; is this the right place?")
        if answer.kind == "changed":
            return DataChanged(f"{what}; open the data set again")
        if answer.kind == "closed":
            return ValueError(f"{self.uri}: the store is closed")
        if answer.kind == "denied":
            return StorageError(
                f"{what}; set the credentials as for any program that uses this store, or pass them in storage_options "
                "(public data: storage_options={'skip_signature': 'true'})"
            )
        return StorageError(f"{what}; every attempt failed: is the store reachable, and the region or endpoint right?")
