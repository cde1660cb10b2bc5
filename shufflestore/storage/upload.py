"""Requests that change an object store, each settled before it is believed.

An object appears whole or not at all. A file whose name follows from its content is put whatever is there, and held
against what the store then says it has. A file whose name is fixed, a snapshot's root above all, is put only where
nothing is (If-None-Match: *). A put whose reply was lost is settled by looking at what is there.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from shufflestore.errors import NotFound, ShuffleStoreError, StorageError
from shufflestore.storage.remote_client import Answer, answer_of, client_for, library, options_of

__all__ = ["Bucket", "Listed"]

PART_BYTES: Final = 8 << 20
"""Larger files go up in parts of this size: each is there within the 30 s of a request from 300 KB/s on."""
_MOST_PARTS: Final = 10_000
"""S3's limit."""
_PARTS_AT_ONCE: Final = 8
_PATIENT_ATTEMPTS: Final = 4
"""Of a whole multipart upload; each of its parts is tried as often as a request."""
_ATTEMPTS: Final = {"denied": 3, "missing": 3}
"""Fewer where it is seldom the network: credentials that were just renewed, an object that is about to be seen."""
_FIRST_BACKOFF_SECONDS: Final = 0.05
_LONGEST_BACKOFF_SECONDS: Final = 5.0
_UNVERIFIED: Final = Answer("transient", "it holds other bytes than were sent")
R = TypeVar("R")


@dataclass(frozen=True)
class Listed:
    """What lies directly in a folder."""

    folders: tuple[str, ...]
    """Names within the bucket, as those of objects."""
    objects: tuple[Any, ...]
    """obstore's ObjectMeta, its path being the name."""


class Bucket:
    """A prefix in an object store. Safe to use from several threads, after a fork, and after pickling.

    Every method tries again what may have been chance, a bounded number of times, and raises StorageError: with the
    hint to look at credentials where they were refused, NotFound where there is no such bucket.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, Any] | None) -> None:
        """Remember where it is; nothing is asked yet. Raises OptionError, MissingDependency."""
        self.uri = uri.rstrip("/")
        self._options = None if storage_options is None else dict(storage_options)
        self._attempts = options_of(storage_options).attempts
        self._clients: tuple[int, Any, Any] = (0, None, None)
        _, self._prefix = client_for(uri, storage_options)

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross processes as a place and how to get there, without connections."""
        return Bucket, (self.uri, self._options)

    # -- what is there -----------------------------------------------------------------------------

    def list(self, folder: str = "", attempts: int | None = None) -> Listed:
        """Return what lies directly in a folder; nothing where there is none."""

        def once() -> Listed:
            found = self._ask("list_with_delimiter", folder)
            objects = tuple({**one, "path": self._name(one["path"])} for one in found["objects"])
            return Listed(tuple(self._name(path.rstrip("/")) for path in found["common_prefixes"]), objects)

        return self._tried("list", folder, once, attempts)

    def head(self, name: str) -> Any:
        """Return an object's ObjectMeta, its path being the name; None where there is none."""
        # Asked twice: to believe that something is gone costs more than a request.
        found = self._tried("look at", name, lambda: self._head(name) or self._head(name))
        return None if found is None else {**found, "path": name}

    def read(self, name: str) -> bytes:
        """Return a small object as two answers in a row have it, for no checksum vouches for one. Raises NotFound."""
        found = self._tried("read", name, lambda: self._agreed(name))
        if found is None:
            raise NotFound(f"{self.uri}/{name} is not there")
        return found

    # -- changes -----------------------------------------------------------------------------------

    def delete(self, name: str) -> None:
        """Remove an object; a missing one is no error."""

        def once() -> None:
            try:
                self._ask("delete", name)
            except Exception as cause:
                if answer_of(cause).kind != "missing":
                    raise

        self._tried("delete", name, once)

    def is_conditional(self, name: str) -> bool:
        """Return whether the store refuses a second put of one name, which is tried with a name of nobody else's."""

        def again() -> bool:
            try:
                self._put(name, secrets.token_bytes(8), mode="create")
            except Exception as cause:
                if answer_of(cause).kind != "exists":
                    raise
                return True
            return False

        try:
            self.create(name, secrets.token_bytes(8))
            found = self._tried("put", name, again)
        except StorageError as error:
            cause = error.__cause__
            if type(cause).__name__ != "NotSupportedError" and "status code: 501" not in str(cause):
                raise
            found = False
        self.delete(name)
        return found

    def create(self, name: str, data: bytes) -> bool:
        """Put an object where there is none; False if another one is there. Both are certain."""
        is_made = is_doubtful = False

        def once() -> bool:
            nonlocal is_made, is_doubtful
            failure: Exception | None = None
            try:
                if not is_made:
                    told = self._put(name, data, mode="create")
                    is_made = True
                    if _tag(told) == hashlib.md5(data, usedforsecurity=False).hexdigest():
                        return True
            except Exception as cause:
                kind = answer_of(cause).kind
                if kind in ("denied", "fatal") or type(cause).__name__ == "NotSupportedError":
                    raise
                failure = cause
                is_doubtful |= kind != "exists"
            there = self._agreed(name)
            if is_made:
                if there == data:
                    return True
                if there is not None:
                    self.delete(name)  # nobody else's: the store has said that it made it from our put
                is_made = False
                raise _Unsettled(_UNVERIFIED)
            if there is None:
                raise failure or _Unsettled(_UNVERIFIED)
            # A put whose reply was lost may have been done, and the next one then finds our own object there.
            return is_doubtful and there == data

        return self._tried("put", name, once)

    def send(self, name: str, body: bytes | Path) -> None:
        """Put a file whose name follows from its content, whatever is there, and make sure of what the store has."""
        size = len(body) if isinstance(body, bytes) else body.stat().st_size
        part_bytes = 0 if size <= PART_BYTES else max(PART_BYTES, -(-size // _MOST_PARTS >> 20) << 20)
        tag = ""

        def once() -> None:
            nonlocal tag
            failure: Exception | None = None
            try:
                self._put(name, body, part_bytes=part_bytes)
            except Exception as cause:
                if answer_of(cause).kind in ("denied", "fatal"):
                    raise
                failure = cause
            tag = tag or _expected_tag(body, part_bytes)
            if not self._holds(name, body, size, tag):
                raise failure or _Unsettled(_UNVERIFIED)

        self._tried(
            "put", name, once, attempts=self._attempts if not part_bytes else min(self._attempts, _PATIENT_ATTEMPTS)
        )

    # -- one request -------------------------------------------------------------------------------

    def _key(self, name: str) -> str:
        return "/".join(part for part in (self._prefix, name) if part)

    def _name(self, key: str) -> str:
        return key.removeprefix(f"{self._prefix}/" if self._prefix else "")

    def _ask(self, call: str, name: str, *arguments: Any, **options: Any) -> Any:
        """Ask the store once, by a function of obstore. Nothing here asks it otherwise, so that tests can make it fail."""
        process, plain, patient = self._clients
        if process != os.getpid():
            plain, _ = client_for(self.uri, self._options)
            # Nobody but obstore can try one part of an upload again.
            patient, _ = client_for(self.uri, self._options, retries=self._attempts - 1)
            self._clients = (os.getpid(), plain, patient)
        client = patient if options.get("use_multipart") else plain
        found = getattr(library(), call)(client, self._key(name) or None, *arguments, **options)
        return (found.meta["size"], found.bytes()) if call == "get" else found

    def _head(self, name: str) -> Any:
        try:
            return self._ask("head", name)
        except Exception as cause:
            if answer_of(cause).kind == "missing":
                return None
            raise

    def _got(self, name: str) -> bytes | None:
        try:
            size, data = self._ask("get", name)
        except Exception as cause:
            if answer_of(cause).kind == "missing":
                return None
            raise
        if len(data) != size:
            raise _Unsettled(Answer("transient", f"{len(data):,} bytes came of {size:,}"))
        return bytes(data)

    def _agreed(self, name: str) -> bytes | None:
        """See `read`."""
        first = self._got(name)
        second = self._got(name)
        if first != second:
            raise _Unsettled(Answer("transient", "two answers in a row differ"))
        return first

    def _put(self, name: str, body: bytes | Path, mode: str = "overwrite", part_bytes: int = 0) -> Any:
        if not part_bytes:
            return self._ask("put", name, body, mode=mode, use_multipart=False)
        return self._ask("put", name, body, use_multipart=True, chunk_size=part_bytes, max_concurrency=_PARTS_AT_ONCE)

    def _holds(self, name: str, body: bytes | Path, size: int, tag: str) -> bool:
        """Whether the store has these bytes: by length and MD5 where its tags are that, else by reading them back."""
        meta = self._head(name)
        if meta is None or meta["size"] != size:
            return False
        if _tag(meta) == tag:
            return True
        start = 0
        for piece in _pieces(body, PART_BYTES):
            back = self._ask("get_range", name, start=start, length=len(piece))
            if bytes(back) != piece:
                return False
            start += len(piece)
        return True

    def _tried(
        self,
        verb: str,
        name: str,
        once: Callable[[], R],
        attempts: int | None = None,
    ) -> R:
        """Do something until it works, a bounded number of times, waiting for a random part of ever longer times."""
        counts: dict[str, int] = {}
        most = self._attempts if attempts is None else attempts
        for attempt in range(most):
            try:
                return once()
            except ShuffleStoreError:
                raise
            except Exception as cause:  # obstore's errors have several unrelated bases
                answer = cause.answer if isinstance(cause, _Unsettled) else answer_of(cause)
                counts[answer.kind] = counts.get(answer.kind, 0) + 1
                is_last = attempt + 1 == most or counts[answer.kind] >= _ATTEMPTS.get(answer.kind, most)
                if is_last or answer.kind == "fatal":
                    raise self._explained(verb, name, answer, attempt + 1) from cause
            longest = min(_FIRST_BACKOFF_SECONDS * 3.0**attempt, _LONGEST_BACKOFF_SECONDS)
            time.sleep(random.uniform(0.0, longest))
        raise AssertionError("there is at least one attempt")

    def _explained(self, verb: str, name: str, answer: Answer, tries: int) -> StorageError:
        what = f"{self.uri}{'/' if name else ''}{name}: {verb} failed {tries} times: {answer.text}"
        if verb == "put" and answer.kind == "transient":
            what += " (what was sent may still arrive)"
        if answer.kind == "denied":
            return StorageError(
                f"{what}; check the credentials (variables of the store's own kind, or storage_options), and that they may "
                "read, list, write and delete there"
            )
        if answer.kind == "missing" or "status code: 404" in answer.text:
            return NotFound(f"{what}; check that the bucket exists, and its region and endpoint (storage_options)")
        return StorageError(
            f"{what}; what was committed before is unharmed: see to the store, its endpoint and the network, then run it "
            "again (a conversion goes on with if_exists='resume')"
        )


class _Unsettled(Exception):
    """An answer that cannot be relied on."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.text)
        self.answer = answer


def _tag(meta: Any) -> str:
    return str(meta.get("e_tag") or "").strip('"')


def _pieces(body: bytes | Path, size: int) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield from (body[start : start + size] for start in range(0, len(body), size))
        return
    with body.open("rb") as file:
        while piece := file.read(size):
            yield piece


def _expected_tag(body: bytes | Path, part_bytes: int) -> str:
    """Return the ETag that S3 gives to a file: its MD5, or that of the parts' MD5s and how many there are."""
    if not part_bytes:
        whole = hashlib.md5(usedforsecurity=False)
        for piece in _pieces(body, PART_BYTES):
            whole.update(piece)
        return whole.hexdigest()
    digests = [hashlib.md5(piece, usedforsecurity=False).digest() for piece in _pieces(body, part_bytes)]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"
