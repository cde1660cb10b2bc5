"""The files of a local cache: mirrors of remote objects, with the blocks that are there.

A mirror is a sparse file with the offsets of its object; beside it stands a map with one word a block: 0 where the block is
absent, else its CRC32C. A word is written after its block, so a process that is killed in between leaves an absent block.
Nothing stays open and nothing is mapped: a full disk or a file that somebody cuts short is an error, never a signal.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore._native import crc32c
from shufflestore.errors import OptionError, StorageError
from shufflestore.storage.cache_room import LOCK, MARKER, PLACE, Room, words_of

__all__ = ["BLOCK_BYTES", "CacheFolder", "Mirror"]

BLOCK_BYTES: Final = 64 << 10
"""What is fetched and kept at a time: some dozens of small records, which the same epoch asks for too."""
_VERSION: Final = 1
"""Of the layout of a place's files; another one is another folder."""
_ENTER_SECONDS: Final = 10.0
_CLOSED_TO_US: Final = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_log = logging.getLogger("shufflestore")


class Mirror:
    """The blocks of one object. Safe to use from several threads and processes."""

    def __init__(self, stem: Path, size: int, block_bytes: int) -> None:
        """Take its place; no file is opened or made."""
        self.path, self._map = stem.with_suffix(".blocks"), stem.with_suffix(".map")
        self._size, self._block = size, block_bytes
        self.count = -(-size // block_bytes)

    def words(self) -> NDArray[np.uint32]:
        """Return a word a block as the map has it now: 0, or the CRC32C of a block that is there. Reads 4 bytes a block."""
        return words_of(self._map, self.count)

    def keep(self, blocks: Iterable[tuple[int, NDArray[np.uint8]]], kept: list[int]) -> None:
        """Write whole blocks that no other process has written yet.

        Args:
            blocks: Numbers and bytes.
            kept: Numbers of the blocks that were written are appended, up to an error.

        Raises:
            OSError: E.g. the disk is full.
        """
        with _opened(self.path) as file, _opened(self._map) as words:
            if os.fstat(file.fd).st_size != self._size:
                os.ftruncate(file.fd, self._size)
            if os.fstat(words.fd).st_size != 4 * self.count:
                os.posix_fallocate(words.fd, 0, 4 * self.count)
            for block, data in blocks:
                if any(os.pread(words.fd, 4, 4 * block)):
                    continue
                _write(file.fd, data.data, block * self._block)
                _write(words.fd, memoryview(_word(data).to_bytes(4, "little")), 4 * block)
                kept.append(block)

    def drop(self, blocks: Iterable[int]) -> int:
        """Forget blocks; return how many were there. Raises OSError."""
        there = self.words()
        found = [block for block in blocks if there[block]]
        if found:
            with _opened(self._map) as words:
                for block in found:
                    _write(words.fd, memoryview(bytes(4)), 4 * block)
        return len(found)

    def sound(self, blocks: Sequence[int]) -> list[bool]:
        """Return of each block whether it is there as it was written. Reads the blocks."""
        words = self.words()
        found = []
        try:
            with _opened(self.path, os.O_RDONLY) as file:
                for block in blocks:
                    data = os.pread(file.fd, self._block, block * self._block)
                    is_whole = len(data) == min(self._block, self._size - block * self._block)
                    found.append(is_whole and bool(words[block]) and _word(data) == int(words[block]))
        except OSError:
            return [False] * len(blocks)
        return found


class CacheFolder:
    """What is kept of one place, within the limit of all that share the folder."""

    def __init__(self, folder: str | os.PathLike[str], uri: str, limit_bytes: int | None, block_bytes: int) -> None:
        """Take a folder, made if need be.

        Args:
            folder: Empty, or a cache. One that cannot be written to serves what it has.
            uri: Of the place that is cached.
            limit_bytes: Of all that the folder keeps; None for no limit.
            block_bytes: Of a block.

        Raises:
            OptionError: The folder has files of somebody else, or a number is out of range.
            StorageError: It cannot be made or written to.
        """
        if block_bytes < 1 or (limit_bytes is not None and limit_bytes < 0):
            raise OptionError(
                f"{folder}: cache_limit is {limit_bytes} and block_bytes {block_bytes}; at least 0 and 1 are needed"
            )
        self.root, self.block_bytes = Path(folder), block_bytes
        self.folder = self.root / f"{_hash(_VERSION, uri)[:16]}-{block_bytes}"
        self.room = Room(self.root, limit_bytes)
        self.is_open = True
        """False where nothing more can be kept: the disk is full, or read only."""
        self._in_use: weakref.finalize[..., CacheFolder] | None = None
        try:
            self._enter(uri)
        except OSError as cause:
            is_closed_to_us = cause.errno in _CLOSED_TO_US and (self.root / MARKER).exists()
            if not (is_closed_to_us or cause.errno in _FULL or isinstance(cause, TimeoutError)):
                raise StorageError(f"{self.root}: the cache cannot be kept there: {cause.strerror or cause}") from cause
            self.stop(cause)
            if self._in_use is None:
                self._hold_if_there()

    def _enter(self, uri: str) -> None:
        """Make what is not there yet, and hold the place's lock. Raises OSError."""
        self.root.mkdir(parents=True, exist_ok=True)
        names = [path.name for path in self.root.iterdir()]
        if MARKER not in names:
            if names:
                raise OptionError(
                    f"{self.root} is not empty and no cache of shufflestore; name an empty folder or a new one as cache_dir"
                )
            _publish(self.root / MARKER, b"Everything here may be deleted while no process reads.\n")
        with self.room.lock(_ENTER_SECONDS):
            self.folder.mkdir(exist_ok=True)
            lock = self._hold(os.O_RDWR | os.O_CREAT)
            (self.folder / PLACE).write_text(uri + "\n", "utf-8")
            self.room.recount(self.folder, lock)

    def _hold(self, flags: int) -> int:
        """Hold the lock of the place, which says that it is in use; return its descriptor. Raises OSError."""
        fd = os.open(self.folder / LOCK, flags | os.O_CLOEXEC, 0o666)
        self._in_use = weakref.finalize(self, os.close, fd)
        fcntl.flock(fd, fcntl.LOCK_SH)
        return fd

    def _hold_if_there(self) -> None:
        try:
            self._hold(os.O_RDONLY)
        except OSError:
            pass  # nothing is kept of this place, or nobody may lock it: what goes missing is read from the store

    def stem(self, name: str, size: int) -> Path:
        """Return where an object's files are, without their endings."""
        return self.folder / _hash(name, size)[:24]

    def mirror(self, name: str, size: int) -> Mirror:
        """Return the mirror of an object."""
        return Mirror(self.stem(name, size), size, self.block_bytes)

    def whole(self, name: str) -> bytes | None:
        """Return a small object that was kept whole, None if it was not or is damaged."""
        try:
            data = self.stem(name, -1).with_suffix(".whole").read_bytes()
        except OSError:
            return None
        return data[4:] if crc32c(data[4:]).to_bytes(4, "little") == data[:4] else None

    def keep_whole(self, name: str, data: bytes) -> None:
        """Keep a small object, where there is room for it."""
        stem, size = self.stem(name, -1), len(data) + 4
        path = stem.with_suffix(".whole")
        if path.exists() or not self.take(1, size):
            return
        part = stem.with_suffix(f".{os.getpid()}-{threading.get_ident()}.part")
        try:
            part.write_bytes(crc32c(data).to_bytes(4, "little") + data)
            part.rename(path)
        except OSError as cause:
            part.unlink(missing_ok=True)
            self.give_back(size)
            self.stop(cause)

    def forget_whole(self, name: str) -> None:
        """Drop a small object that is damaged or was removed."""
        path = self.stem(name, -1).with_suffix(".whole")
        try:
            size = path.stat().st_size
            path.unlink()
        except OSError:
            return
        self.give_back(size)

    def take(self, count: int, unit_bytes: int) -> int:
        """Take room for up to `count` units; return for how many there was some."""
        if not self.is_open or not count:
            return 0
        try:
            return self.room.take(count, unit_bytes, self.folder)
        except TimeoutError:
            return 0
        except OSError as cause:
            self.stop(cause)
            return 0

    def give_back(self, size: int) -> None:
        """Return room that was taken and not used. Where that fails, less is kept than could be, until the next count."""
        try:
            self.room.give_back(size)
        except OSError:
            pass

    def stop(self, cause: OSError) -> None:
        """Keep nothing more in this process; say so once."""
        if self.is_open:
            self.is_open = False
            _log.warning(
                "%s: nothing more is kept here (%s); reading goes on without", self.root, cause.strerror or cause
            )

    @property
    def kept_bytes(self) -> int:
        """What the whole folder keeps, of all places."""
        return self.room.kept_bytes

    def close(self) -> None:
        """Let the place go. Idempotent."""
        if self._in_use is not None:
            try:
                os.utime(self.folder / PLACE)
            except OSError:
                pass  # read only, or removed
            self._in_use()
            self._in_use = None


class _opened:
    """A file that is open for a moment."""

    def __init__(self, path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> None:
        self.fd = os.open(path, flags | os.O_CLOEXEC, 0o666)

    def __enter__(self) -> _opened:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)


def _hash(*what: object) -> str:
    return hashlib.sha256("\0".join(map(str, what)).encode("utf-8", "surrogatepass")).hexdigest()


def _word(data: bytes | NDArray[np.uint8]) -> int:
    """What stands in a map for a block: its CRC32C, but never 0."""
    return crc32c(data if isinstance(data, bytes) else data.data) or 1


def _write(fd: int, view: memoryview, at: int) -> None:
    while len(view):
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def _publish(path: Path, data: bytes) -> None:
    """Write a small file that a power cut must not take."""
    with _opened(path) as file:
        _write(file.fd, memoryview(data), 0)
        os.fsync(file.fd)
    with _opened(path.parent, os.O_RDONLY) as folder:
        os.fsync(folder.fd)
