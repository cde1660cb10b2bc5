"""The Target contract: a place that data sets are written to, file by file; and what a folder makes of it.

Names are relative and use "/", as in a Store. A file appears under its name whole or not at all, and once it has a
name it is durable.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shufflestore.errors import AlreadyExists, NotFound, OutOfSpace
from shufflestore.storage import commit
from shufflestore.storage.base import Store
from shufflestore.storage.commit import TemporaryFile
from shufflestore.storage.local import LocalStore

__all__ = ["FolderTarget", "Found", "Target"]


@dataclass(frozen=True)
class Found:
    """A file that is there."""

    name: str
    size: int
    changed: float
    """Seconds since 1970, by the clock of whoever holds the file."""


class Target(Protocol):
    """One place to write to. Values that cross processes; safe to use from several threads."""

    uri: str
    """As a person would write it; `str()` gives it too."""
    tick_seconds: float
    """Two changes less than this apart may bear the same time."""
    at_once: int
    """Questions that are best asked side by side."""
    behind: int
    """Runs of shards that may still be on their way while the next one is made."""

    def reach(self) -> None:
        """Make sure that this is a place to write to, at the cost of one question. Raises StorageError."""

    def make(self, folder: str = "") -> None:
        """Make it ready to take files, in one of its folders or at all. Raises StorageError."""

    def probe(self) -> None:
        """Make sure that of two writers who publish one name only one succeeds. Raises StorageError."""

    def has(self, folder: str) -> bool:
        """Whether files can be put into a folder now."""

    def top(self) -> set[str]:
        """Return the names of the files and folders at the top; none where nothing is there yet."""

    def files(self, folder: str) -> list[Found]:
        """Return the files that lie directly in a folder, sorted by name, temporary ones too; none without it."""

    def find(self, names: Sequence[str]) -> list[Found | None]:
        """Return what is there by each of some names."""

    def read(self, name: str) -> bytes:
        """Return a small file. Raises NotFound, StorageError."""

    def publish(self, name: str, content: bytes | Iterable[Any], renews: bool = False) -> bool:
        """Give a new file its name; see `storage.commit.publish`."""

    def stage(self, folder: str, expected_bytes: int) -> TemporaryFile:
        """Return a local file to write, that `publish_file` will then put into `folder`."""

    def publish_file(self, file: TemporaryFile, name: str, renews: bool = False) -> bool:
        """Give a staged and synced file its name, and remove it from where it was staged; as `publish`."""

    def remove(self, name: str) -> None:
        """Remove a file; a missing one is no error. Raises StorageError."""

    def remove_folder(self, folder: str) -> None:
        """Remove a folder if it is there and empty."""

    def settle(self, folder: str) -> None:
        """Make sure that names which others may have put into a folder are durable. Raises StorageError."""

    def sweep(self) -> int:
        """Remove temporary files whose writer is gone; return the bytes freed."""

    def check_room(self, wanted_bytes: int) -> None:
        """Raise OutOfSpace unless so much can be written."""

    def store(self) -> Store:
        """Return a store to read it through; the caller closes it."""


class FolderTarget:
    """A folder, through `storage.commit`."""

    tick_seconds = 0.0
    at_once = 1
    behind = 0

    def __init__(self, root: Path) -> None:
        """Remember where it is; it need not exist yet."""
        self.root = root
        self.uri = str(root)

    def __str__(self) -> str:
        return self.uri

    def reach(self) -> None:
        """Raise AlreadyExists for a file."""
        if self.root.exists() and not self.root.is_dir():
            raise AlreadyExists(f"{self.root} is a file; give a folder")

    def make(self, folder: str = "") -> None:
        commit.make_folder(self.root / folder)

    def probe(self) -> None:
        pass  # a file system's link does

    def has(self, folder: str) -> bool:
        return (self.root / folder).is_dir()

    def top(self) -> set[str]:
        return {p.name for p in self.root.iterdir()} if self.root.is_dir() else set()

    def files(self, folder: str) -> list[Found]:
        found = (self._find(f"{folder}/{path.name}") for path in (self.root / folder).glob("*"))
        return sorted((one for one in found if one is not None), key=lambda one: one.name)

    def find(self, names: Sequence[str]) -> list[Found | None]:
        return [self._find(name) for name in names]

    def _find(self, name: str) -> Found | None:
        path = self.root / name
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Found(name, status.st_size, status.st_mtime) if path.is_file() else None

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError as cause:
            raise NotFound(f"{self.root / name}: {cause.strerror}") from cause

    def publish(self, name: str, content: bytes | Iterable[Any], renews: bool = False) -> bool:
        return commit.publish(self.root / name, content, renews)

    def stage(self, folder: str, expected_bytes: int) -> TemporaryFile:
        return TemporaryFile(self.root / folder, expected_bytes)

    def publish_file(self, file: TemporaryFile, name: str, renews: bool = False) -> bool:
        return commit.publish_file(file, self.root / name, renews)

    def remove(self, name: str) -> None:
        commit.remove(self.root / name)

    def remove_folder(self, folder: str) -> None:
        try:
            (self.root / folder).rmdir()
        except OSError:
            pass  # not there, or not empty

    def settle(self, folder: str) -> None:
        commit.sync_folder(self.root / folder)

    def sweep(self) -> int:
        return commit.sweep(self.root)

    def check_room(self, wanted_bytes: int) -> None:
        free = shutil.disk_usage(self.root).free
        if wanted_bytes > free:
            raise OutOfSpace(
                f"{self.root}: about {wanted_bytes:,} bytes are to be written, {free:,} are free there; make room or "
                "choose another target"
            )

    def store(self) -> Store:
        return LocalStore(str(self.root))
