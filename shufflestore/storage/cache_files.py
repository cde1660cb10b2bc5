"""The files of a local cache: mirrors of remote objects with the blocks that are there, and how much they take together.

One folder serves all processes of a machine. In it stand a marker, the sum of what is kept, and a folder for each place that
data sets are read from. A mirror is a sparse file with the offsets of its object; beside it stands a map with one word a block:
0 where the block is absent, else its CRC32C. A word is written after its block, so a process that is killed in between leaves
an absent block.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore._native import crc32c
from shufflestore.errors import OptionError, StorageError

__all__ = ["BLOCK_BYTES", "CacheFolder", "Mirror"]

BLOCK_BYTES: Final = 64 << 10
"""What is fetched and kept at a time: some dozens of small records, which the same epoch asks for too."""
MARKER: Final = "shufflestore-cache"
_SUM: Final = "kept-bytes"
_LOCK: Final = "lock"
_PLACE: Final = "place"
_OURS: Final = (".blocks", ".map", ".whole", ".part")
_log = logging.getLogger("shufflestore")


class Mirror:
    """The blocks of one object. Safe to use from several threads and processes."""

    def __init__(self, stem: Path, size: int, block_bytes: int) -> None:
        """Open or make its files; nothing is read."""
        self.size = size
        self.path = stem.with_name(f"{stem.name}.blocks")
        self._block = block_bytes
        count = -(-size // block_bytes)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        if os.fstat(self._fd).st_size != size:
            os.ftruncate(self._fd, size)
        map_path = stem.with_name(f"{stem.name}.map")
        fd = os.open(map_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            if os.fstat(fd).st_size != 4 * count:
                os.ftruncate(fd, 4 * count)
            if count:
                os.posix_fallocate(
                    fd, 0, 4 * count
                )  # a full disk is an error now, not a signal when the map is written
        finally:
            os.close(fd)
        self.words: NDArray[np.uint32] = np.memmap(map_path, np.uint32, "r+") if count else np.zeros(0, np.uint32)
        """(blocks,) 0, or the CRC32C of a block that is there."""
        self.checked = np.zeros(count, bool)
        """Blocks that this process has held against their CRC32C."""

    def keep(self, block: int, data: NDArray[np.uint8]) -> bool:
        """Write one whole block; False if another process was quicker. Raises OSError, e.g. on a full disk."""
        if self.words[block]:
            return False
        view, at = memoryview(data.data), block * self._block
        while len(view):
            done = os.pwrite(self._fd, view, at)
            view, at = view[done:], at + done
        self.words[block] = crc32c(data.data) or 1
        return True

    def drop(self, blocks: Sequence[int]) -> int:
        """Forget blocks; return how many were there."""
        there = [block for block in blocks if self.words[block]]
        self.words[there] = 0
        self.checked[there] = False
        return len(there)

    def check(self, block: int) -> bool:
        """Whether a block is there as it was written; it is looked at once a process."""
        word = int(self.words[block])
        if not word:
            return False
        if not self.checked[block]:
            data = os.pread(self._fd, self._block, block * self._block)
            if (crc32c(data) or 1) != word or len(data) != min(self._block, self.size - block * self._block):
                return False
            self.checked[block] = True
        return True

    def close(self) -> None:
        """Close its files."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class CacheFolder:
    """What is kept of one place, within the limit of all that share the folder."""

    def __init__(self, folder: str | os.PathLike[str], uri: str, limit_bytes: int | None, block_bytes: int) -> None:
        """Take a folder, made if need be.

        Args:
            folder: Empty, or a cache.
            uri: Of the place that is cached.
            limit_bytes: Of all that the folder keeps; None for no limit.
            block_bytes: Of a block.

        Raises:
            OptionError: The folder has files of somebody else, or a number is out of range.
            StorageError: It cannot be made or written to.
        """
        if block_bytes < 1 or (limit_bytes is not None and limit_bytes < 0):
            raise OptionError(f"{folder}: cache_limit {limit_bytes} and block_bytes {block_bytes} must not be negative")
        self.root, self.limit, self.block_bytes = Path(folder), limit_bytes, block_bytes
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            if not (self.root / MARKER).exists():
                if any(self.root.iterdir()):
                    raise OptionError(
                        f"{self.root} is not empty and no cache of shufflestore; name an empty folder or a new one as cache_dir"
                    )
                (self.root / MARKER).write_text("Everything here may be deleted while no process reads.\n", "utf-8")
            key = hashlib.sha256(f"{uri}\0{block_bytes}".encode()).hexdigest()[:16]
            self.folder = self.root / key
            self.folder.mkdir(exist_ok=True)
            (self.folder / _PLACE).write_text(uri + "\n", "utf-8")
            self._in_use = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as cause:
            raise StorageError(f"{self.root}: the cache cannot be kept there: {cause.strerror}") from cause
        fcntl.flock(self._in_use, fcntl.LOCK_SH)
        self._mirrors: dict[str, Mirror] = {}
        self._lock = threading.Lock()
        self.is_open = True
        """False once nothing more can be kept: the disk is full."""
        self._recount()

    # -- objects -----------------------------------------------------------------------------------

    def stem(self, name: str, size: int) -> Path:
        """Return where an object's files are, without their endings."""
        return self.folder / hashlib.sha256(f"{name}\0{size}".encode()).hexdigest()[:24]

    def mirror(self, name: str, size: int) -> Mirror:
        """Return the mirror of an object."""
        with self._lock:
            if name not in self._mirrors:
                self._mirrors[name] = Mirror(self.stem(name, size), size, self.block_bytes)
            return self._mirrors[name]

    def whole(self, name: str) -> bytes | None:
        """Return a small object that was kept whole, None if it was not or is damaged."""
        try:
            data = self.stem(name, -1).with_suffix(".whole").read_bytes()
        except OSError:
            return None
        return data[4:] if crc32c(data[4:]).to_bytes(4, "little") == data[:4] else None

    def keep_whole(self, name: str, data: bytes) -> None:
        """Keep a small object, where there is room for it."""
        stem = self.stem(name, -1)
        size = len(data) + 4
        if not self.reserve(size):
            return
        part = stem.with_name(f"{stem.name}-{os.getpid()}-{threading.get_ident()}.part")
        try:
            part.write_bytes(crc32c(data).to_bytes(4, "little") + data)
            part.rename(stem.with_suffix(".whole"))
        except OSError as cause:
            self.give_back(size)
            self.stop(cause)

    # -- how much ----------------------------------------------------------------------------------

    def reserve(self, count: int) -> bool:
        """Take room for so many bytes; False where there is none, even without what nobody reads any more."""
        if not self.is_open or count == 0:
            return self.is_open
        try:
            return self._reserve(count)
        except OSError as cause:
            self.stop(cause)
            return False

    def _reserve(self, count: int) -> bool:
        with self._sum() as kept:
            if self.limit is not None and kept[0] + count > self.limit:
                kept[0] -= self._evict(kept[0] + count - self.limit)
                if kept[0] + count > self.limit:
                    return False
            kept[0] += count
        return True

    def give_back(self, count: int) -> None:
        """Return room that was taken and not used."""
        if count:
            try:
                with self._sum() as kept:
                    kept[0] = max(kept[0] - count, 0)
            except OSError as cause:
                self.stop(cause)

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
        with self._sum() as kept:
            return kept[0]

    @contextmanager
    def _sum(self) -> Iterator[list[int]]:
        """The number that all processes share, locked."""
        fd = os.open(self.root / _SUM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            kept = [int.from_bytes(os.pread(fd, 8, 0), "little")]
            before = kept[0]
            yield kept
            if kept[0] != before:
                os.pwrite(fd, kept[0].to_bytes(8, "little"), 0)
        finally:
            os.close(fd)

    def _recount(self) -> None:
        """Count what is there, while nobody else is at work: a process that was killed may have left a wrong sum."""
        with self._sum() as kept:
            if all(_is_idle(folder) for folder in self._others()) and self._is_alone():
                kept[0] = sum(_kept_in(folder, self.block_bytes) for folder in [self.folder, *self._others()])
            if self.limit is not None and kept[0] > self.limit:
                kept[0] -= self._evict(kept[0] - self.limit)

    def _is_alone(self) -> bool:
        try:
            fcntl.flock(self._in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        finally:
            fcntl.flock(self._in_use, fcntl.LOCK_SH)
        return True

    def _others(self) -> list[Path]:
        """Folders of other places, those not used for longest first."""
        found = [path for path in self.root.iterdir() if path != self.folder and (path / _PLACE).is_file()]
        return sorted(found, key=lambda path: (path / _PLACE).stat().st_mtime)

    def _evict(self, wanted: int) -> int:
        """Remove places that nobody reads until so many bytes are free; return the bytes."""
        freed = 0
        for folder in self._others():
            if freed >= wanted:
                break
            if _is_idle(folder):
                freed += _kept_in(folder, self.block_bytes)
                remove(folder)
        return freed

    def close(self) -> None:
        """Let go of all files. Idempotent."""
        with self._lock:
            for mirror in self._mirrors.values():
                mirror.close()
            self._mirrors = {}
            if self._in_use >= 0:
                os.close(self._in_use)
                self._in_use = -1


def _is_idle(folder: Path) -> bool:
    """Whether no process reads a place."""
    try:
        fd = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def _kept_in(folder: Path, block_bytes: int) -> int:
    """Bytes that a place's files keep."""
    total = 0
    for path in folder.iterdir():
        if path.suffix == ".map":
            total += int(np.count_nonzero(np.fromfile(path, np.uint32))) * block_bytes
        elif path.suffix == ".whole":
            total += path.stat().st_size
    return total


def remove(folder: Path) -> None:
    """Remove what a cache made in one of its folders, and the folder if nothing else is in it."""
    for path in list(folder.iterdir()):
        if path.suffix in _OURS or path.name in (_PLACE, _LOCK):
            path.unlink(missing_ok=True)
    try:
        folder.rmdir()
    except OSError:
        pass  # something of somebody else is in it


def described(root: Path) -> list[dict[str, Any]]:
    """Return what a cache keeps: place, bytes and whether somebody reads it. Raises OptionError for no cache."""
    if not (root / MARKER).exists():
        raise OptionError(f"{root} is no cache of shufflestore")
    found = []
    for folder in sorted(path for path in root.iterdir() if (path / _PLACE).is_file()):
        uri = (folder / _PLACE).read_text("utf-8").strip()
        found.append({"place": uri, "bytes": _kept_in(folder, BLOCK_BYTES), "in_use": not _is_idle(folder)})
    return found
