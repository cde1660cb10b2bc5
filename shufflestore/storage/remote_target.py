"""An object store as a place to write data sets to."""

from __future__ import annotations

import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from shufflestore.errors import OptionError, StorageError
from shufflestore.storage import commit
from shufflestore.storage.base import Store
from shufflestore.storage.commit import TEMPORARY, TemporaryFile
from shufflestore.storage.remote import RemoteStore
from shufflestore.storage.target import Found
from shufflestore.storage.upload import PART_BYTES, Bucket
from shufflestore.storage.uri import place_of

__all__ = ["RemoteTarget", "StagedFile"]

_REACH_ATTEMPTS: Final = 5
"""Of the first question to a store: whether it is there is said within seconds."""
_LIST_FROM: Final = 256
"""Names from which on a listing, of a thousand objects a request, costs less than a question for each."""
_FOREIGN_SECONDS: Final = 86_400.0
"""A probe as old as that is nobody's."""


class StagedFile(TemporaryFile):
    """A local copy of what goes to an object store. It need not survive a crash of the machine, so it is not synced."""

    def sync(self) -> None:
        """Close it."""
        self._close()

    def keep(self, name: str) -> Path:
        """Keep the copy, under a name that tells what it is, until its process has ended and a sweep comes by."""
        kept = self.path.with_name(f"{self.path.name}-{name.rpartition('/')[2]}")
        return self.path.rename(kept)


class RemoteTarget:
    """A prefix in an object store; see `storage.target.Target`.

    Shards are written to a local folder first, and leave it once the store holds all of them.
    """

    tick_seconds = 1.0
    """Stores tell times in whole seconds."""
    at_once = 16
    behind = 1

    def __init__(
        self,
        uri: str,
        storage_options: Mapping[str, Any] | None = None,
        staging_folder: str | os.PathLike[str] | None = None,
    ) -> None:
        """Remember where it is; nothing is asked yet.

        Args:
            uri: Of an object store.
            storage_options: See `storage.remote_client.client_for`.
            staging_folder: Local copies go to a folder `shufflestore-<user id>` in it; None for the system's temporary one.

        Raises:
            OptionError: The URI or an option is none that a store knows, or the place can only be read.
            MissingDependency: obstore is not installed.
        """
        place = place_of(uri)
        if place.kind in ("http", "hf"):
            raise OptionError(
                f"{uri}: {place.kind}:// can be read, not written; write to s3://, gs://, az:// or a folder and upload that"
            )
        self.uri = place.uri
        self._options = storage_options
        self._bucket = Bucket(uri, storage_options)
        # A folder of our own in it, for `sweep` looks through all of it.
        self._staging = Path(staging_folder or tempfile.gettempdir()) / f"shufflestore-{os.getuid()}"

    def __str__(self) -> str:
        return self.uri

    # -- what is there -----------------------------------------------------------------------------

    def reach(self) -> None:
        """Ask once for what is there: a wrong bucket, endpoint or credential is an error before any work is done."""
        self._bucket.list(attempts=_REACH_ATTEMPTS)

    def make(self, folder: str = "") -> None:
        pass  # object stores have no folders

    def has(self, folder: str) -> bool:
        return True

    def top(self) -> set[str]:
        found = self._bucket.list()
        return {*found.folders, *(one["path"] for one in found.objects)}

    def files(self, folder: str) -> list[Found]:
        return sorted((_found(one) for one in self._bucket.list(folder).objects), key=lambda one: one.name)

    def find(self, names: Sequence[str]) -> list[Found | None]:
        listed: dict[str, Found] = {}
        if len(names) > _LIST_FROM:
            for folder in sorted({name.rpartition("/")[0] for name in names}):
                listed |= {one.name: one for one in self.files(folder)}
        with ThreadPoolExecutor(self.at_once, "shufflestore-find") as pool:
            return list(pool.map(lambda name: listed.get(name) or self._find(name), names))

    def _find(self, name: str) -> Found | None:
        meta = self._bucket.head(name)
        return None if meta is None else _found(meta)

    def read(self, name: str) -> bytes:
        return self._bucket.read(name)

    def store(self) -> Store:
        return RemoteStore(self.uri, self._options)

    # -- writing -----------------------------------------------------------------------------------

    def probe(self) -> None:
        """Raise StorageError for a store that puts a second object where one is, or may not be written to."""
        if not self._bucket.is_conditional(f"snapshots/{TEMPORARY}probe-{secrets.token_hex(8)}"):
            raise StorageError(
                f"{self.uri}: this store does not honour conditional puts (If-None-Match: *), so two writers could each "
                "believe that they had committed; nothing was written: use a store that honours them (Amazon S3, Google "
                "Cloud Storage, Azure Blob Storage, MinIO, Cloudflare R2, Ceph), or convert to a folder and copy that, "
                "`snapshots` last"
            )

    def publish(self, name: str, content: bytes | Iterable[Any], renews: bool = False) -> bool:
        """Put a file where nothing is; with `renews`, its name follows from its content, so it is simply sent again."""
        parts = [content] if isinstance(content, bytes) else list(content)
        if not renews:
            return self._bucket.create(name, b"".join(parts))
        if sum(memoryview(part).nbytes for part in parts) <= PART_BYTES:
            self._bucket.send(name, b"".join(parts))
            return True
        file = self.stage("", 0)
        try:
            for part in parts:
                file.write(part)
            file.sync()
            return self.publish_file(file, name, renews)
        finally:
            file.abandon()

    def stage(self, folder: str, expected_bytes: int) -> StagedFile:
        try:
            self._staging.mkdir(mode=0o700, parents=True, exist_ok=True)
            owner = self._staging.stat().st_uid
        except OSError as cause:
            raise StorageError(
                f"{self._staging}: cannot be made ({cause.strerror}), and files are staged there: name another folder with "
                "staging_folder or TMPDIR"
            ) from cause
        if owner != os.getuid():
            raise StorageError(
                f"{self._staging} belongs to user {owner}; files are staged there: name another folder with staging_folder "
                "or TMPDIR"
            )
        return StagedFile(self._staging, expected_bytes)

    def publish_file(self, file: TemporaryFile, name: str, renews: bool = False) -> bool:
        """Send a staged file, whose name follows from its content. Its copy goes once the store holds all of it."""
        try:
            self._bucket.send(name, file.path)
        except StorageError as error:
            if not isinstance(file, StagedFile):
                raise
            kept = file.keep(name)
            raise type(error)(f"{error}; the local copy is kept, until a later conversion, as {kept}") from error
        file.abandon()
        return True

    def remove(self, name: str) -> None:
        self._bucket.delete(name)

    def remove_folder(self, folder: str) -> None:
        pass  # object stores have no folders

    def settle(self, folder: str) -> None:
        pass  # what is seen is durable

    def sweep(self) -> int:
        """Remove local copies whose process is gone, and probes that nobody came back for."""
        freed = commit.sweep(self._staging) if self._staging.is_dir() else 0
        for one in self.files("snapshots"):
            is_temporary = one.name.startswith(f"snapshots/{TEMPORARY}")
            if is_temporary and time.time() - one.changed > _FOREIGN_SECONDS:
                self.remove(one.name)
                freed += one.size
        return freed

    def check_room(self, wanted_bytes: int) -> None:
        pass  # a bucket is never full, and staging holds a few shards at a time


def _found(meta: Any) -> Found:
    return Found(meta["path"], meta["size"], meta["last_modified"].timestamp())
