"""One process's reader of an object store: its client, what is known of the objects, its batches under way."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import ReadFailure
from shufflestore.storage.remote_batches import Batch, Group, RemoteFlow, RemotePending, groups_of
from shufflestore.storage.remote_client import Answer, RemoteOptions, answer_of, client_for, library
from shufflestore.storage.remote_engine import Engine, call
from shufflestore.storage.remote_requests import Request

__all__ = ["Reader", "Version"]

_PATIENCE: Final = 3.0
"""Times `total_seconds` that a question may take before we ourselves must be at fault."""


class Version:
    """Which version of an object is read: the one that was met first."""

    __slots__ = ("size", "tag")

    def __init__(self, meta: Mapping[str, Any]) -> None:
        self.size: int = meta["size"]
        # Without an ETag, the time of the last change must do.
        self.tag: str = meta["e_tag"] or f"changed {meta['last_modified']}"

    @property
    def condition(self) -> str | None:
        """What If-Match may ask for: a strong ETag; weak ones never match."""
        return None if self.tag.startswith(("W/", "changed ")) else self.tag

    def difference(self, meta: Mapping[str, Any]) -> str | None:
        """Say how what came is not of this version, None where it is."""
        other = Version(meta)
        if (other.size, other.tag) == (self.size, self.tag):
            return None
        return f"first it was {self.size:,} bytes, {self.tag}; now it is {other.size:,} bytes, {other.tag}"


class Reader:
    """Reads objects under one prefix. Safe to use from several threads; a forked child makes one of its own."""

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None, options: RemoteOptions) -> None:
        """Make a client; nothing is sent yet."""
        self.uri = uri
        self.options = options
        self._storage_options = storage_options
        self._library = library()
        self.client, self._prefix = client_for(uri, storage_options)
        self.engine = Engine(options)
        self.keys: list[str] = []
        """By file number."""
        self._versions: dict[str, Version] = {}
        self._lock = threading.Lock()
        """Guards the client and the versions; held for moments."""
        self.dropped: deque[Batch] = deque()
        """Batches that nobody can take any more."""
        self._flows: list[RemoteFlow] = []
        self._open: set[Batch] = set()
        self.counts = {"reads": 0, "bytes_read": 0, "bytes_delivered": 0, "batches": 0}

    def key(self, name: str) -> str:
        """Return what an object is called in its bucket."""
        return f"{self._prefix}/{name}" if self._prefix else name

    # -- one request -------------------------------------------------------------------------------

    def get(self, number: int, offset: int, size: int) -> memoryview | Answer:
        """Return one range of a registered object, or why it did not come; one attempt."""
        return self.get_range(self.keys[number], offset, offset + size)

    def get_range(self, key: str, start: int, stop: int) -> memoryview | Answer:
        """Return bytes [start, stop) of an object; one attempt."""
        data = self._get(key, {"range": (start, stop)})
        if isinstance(data, Answer) or len(data) == stop - start:
            return data
        if stop > (end := self._versions[key].size):
            return Answer("beyond", f"the object ends at {end:,} bytes")
        return Answer("transient", f"{len(data):,} bytes came instead of {stop - start:,}")

    def get_whole(self, key: str, most_bytes: int) -> memoryview | int | Answer:
        """Return an object, only its length where that is more than `most_bytes`; one attempt."""
        data = self._get(key, {}, most_bytes)
        if isinstance(data, Answer):
            return data
        end = self._versions[key].size
        if end > most_bytes:
            return end
        return data if len(data) == end else Answer("transient", f"{len(data):,} bytes came instead of {end:,}")

    def _get(self, key: str, options: dict[str, Any], most_bytes: int | None = None) -> memoryview | Answer:
        """Return what comes, of the version that was met first; nothing where the object has more than `most_bytes`."""
        version, client = self._versions.get(key), self.client
        if version is not None and version.condition is not None:
            options["if_match"] = version.condition
        try:
            result = self._library.get(client, key, options=options)
            meta = result.meta
            if (changed := self._compare(key, meta)) is not None:
                return Answer("changed", changed)
            if most_bytes is not None and meta["size"] > most_bytes:
                return memoryview(b"")
            data = memoryview(result.bytes())
        except Exception as cause:  # obstore's errors have several unrelated bases
            return self._explained(answer_of(cause), client, key)
        self.counts["bytes_read"] += len(data)
        return data

    def head(self, key: str) -> Mapping[str, Any] | Answer:
        """Return what the store says of an object; one attempt."""
        found: Mapping[str, Any] | Answer = self.attempt(key, lambda library, client: library.head(client, key))
        return found

    def attempt(self, key: str, function: Callable[[Any, Any], Any]) -> Any:
        """Return function(obstore, client), or an Answer where it raised."""
        client = self.client
        try:
            return function(self._library, client)
        except Exception as cause:  # obstore's errors have several unrelated bases
            return self._explained(answer_of(cause), client, key)

    def known_size(self, number: int) -> int:
        """Return an object's length as far as it is known, else 0."""
        key = self.keys[number]
        if key not in self._versions:
            found = self.head(key)
            if isinstance(found, Answer):
                return 0
            self._compare(key, found)
        return self._versions[key].size

    def _compare(self, key: str, meta: Mapping[str, Any]) -> str | None:
        """Say how an answer is of another version than the first one was; None where it is not."""
        version = self._versions.get(key)
        if version is None:
            with self._lock:
                version = self._versions.setdefault(key, Version(meta))
        elif meta["e_tag"] == version.tag and meta["size"] == version.size:
            return None  # as nearly always
        return version.difference(meta)

    def _explained(self, answer: Answer, client: Any, key: str) -> Answer:
        if answer.kind == "denied":
            with self._lock:
                if self.client is client:  # once, however many requests were refused
                    self.client, _ = client_for(self.uri, self._storage_options)
        elif answer.kind == "changed" and key in self._versions:
            return Answer("changed", f"first it was {self._versions[key].tag}; {answer.text}")
        return answer

    def ask(self, *functions: Callable[[], Any]) -> list[Any]:
        """Run functions of one request each, side by side and with all retries; an Answer for each that is lost."""
        return call(self.engine, functions, _PATIENCE * self.options.total_seconds)

    # -- batches -----------------------------------------------------------------------------------

    def flow(self, budget_bytes: int | None) -> RemoteFlow:
        """Return what bounds a stream of batches."""
        return RemoteFlow(budget_bytes, self.options.max_in_flight)

    def submit(
        self,
        reads: NDArray[np.void],
        batch_of: NDArray[np.int64],
        output_sizes: NDArray[np.uint64],
        flow: RemoteFlow | None,
    ) -> list[RemotePending]:
        """Queue checked batches; see `storage.base.Store.submit`."""
        batches = [Batch(sizes, flow) for sizes in output_sizes.tolist()]
        groups = groups_of(self, reads, batches, batch_of, None if flow is None else flow.group_bytes)
        pendings = [RemotePending(batch, self) for batch in batches]
        with self.engine.lock:
            self.counts["reads"] += len(reads)
            self._sweep()
            self._open.update(batches)
            if flow is None:
                for group in groups:
                    self._start(group)
            else:
                flow.waiting.extend(groups)
                self._advance(flow)
        return pendings

    def take(self, batch: Batch) -> list[NDArray[np.uint8]] | None:
        """Hand a batch's outputs over, None if they were before, and let the next ones start."""
        with self.engine.lock:
            outputs, batch.outputs = batch.outputs, None
            if outputs is not None:
                self._release(batch)
            self._sweep()
            return outputs

    def cancel(self, batch: Batch) -> None:
        """End a batch as it is."""
        with self.engine.lock:
            self._cancel(batch)
            self._sweep()

    def tidy(self) -> None:
        """Give back the budget of batches that were dropped."""
        if self.dropped:
            with self.engine.lock:
                self._sweep()

    def settled(self, batch: Batch, delivered: int) -> None:
        """Count down a batch whose request has ended; the lock is held."""
        self.counts["bytes_delivered"] += delivered
        batch.left -= 1
        if batch.flow is not None:
            batch.flow.outstanding -= 1
        if batch.failure is not None and batch.failure.kind == "remote":
            self._cancel(batch)  # the store is in trouble: what is left of this batch would only add to it
        elif batch.left == 0:
            self._finish(batch)
        if batch.flow is not None and batch.flow.waiting:
            self._advance(batch.flow)

    def close(self) -> None:
        """End every batch and the threads."""
        with self.engine.lock:
            for batch in list(self._open):
                self._cancel(batch)
        self.engine.stop()

    def ask_again(self, request: Request) -> None:
        """Send what takes the place of a request that failed; the lock is held."""
        self.engine.add([request], is_urgent=True)

    def _start(self, group: Group) -> None:
        flow = None
        for batch in group.batches:
            batch.has_started = True
            if batch.done.is_set():
                continue
            flow = batch.flow
            if flow is not None:
                flow.used_bytes += batch.bytes
                flow.outstanding += batch.left
            if not batch.allocate():
                self._cancel(batch)
            elif not batch.left:
                self._finish(batch)
        self.engine.add([one for one in group.requests if not one.is_done], is_urgent=flow is None)

    def _advance(self, flow: RemoteFlow) -> None:
        """Start what there is room for, in order."""
        while flow.waiting and (flow.waiting[0].is_over or flow.has_room(flow.waiting[0].bytes)):
            self._start(flow.waiting.popleft())

    def _cancel(self, batch: Batch) -> None:
        if batch.done.is_set():
            return
        if batch.left:
            batch.fail(batch.failure or ReadFailure(0, "closed", 0, 0, 0))
        if batch.has_started and batch.flow is not None:
            batch.flow.outstanding -= batch.left
        requests = batch.requests
        self._finish(batch)
        for request in requests:
            if not request.work.is_wanted:
                self.engine.schedule.drop(request)

    def _finish(self, batch: Batch) -> None:
        self._open.discard(batch)
        self.counts["batches"] += 1
        batch.requests = []
        if batch.failure is not None:
            batch.outputs = None
            self._release(batch)
        batch.done.set()

    def _release(self, batch: Batch) -> None:
        """Give a batch's bytes back to its stream, once, and start the next batches."""
        if batch.flow is not None and batch.has_started and batch.bytes >= 0:
            batch.flow.used_bytes -= batch.bytes
            batch.bytes = -1
            self._advance(batch.flow)

    def _sweep(self) -> None:
        while self.dropped:
            batch = self.dropped.popleft()
            self._cancel(batch)
            if batch.outputs is not None:
                batch.outputs = None
                self._release(batch)

    def counters(self) -> dict[str, int]:
        """Return what was read and how often it was asked for."""
        return {**self.counts, **self.engine.schedule.counts}
