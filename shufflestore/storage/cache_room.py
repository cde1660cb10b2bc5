"""How much a local cache keeps, for all processes of a machine together, and how room is made in it.

A cache is a folder with a marker. In it stand the sum of what is kept, and a folder for each place that data sets are read
from; its name ends in the bytes of a block. Only files with names of our making are ever looked at or removed.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import OptionError

__all__ = ["LOCK", "MARKER", "PLACE", "Room", "clear", "described", "words_of"]

MARKER: Final = "shufflestore-cache"
PLACE: Final = "place"
"""Where the data of a folder come from, as a person would write it; its time says when they were used last."""
LOCK: Final = "lock"
"""Held shared by every process that reads the place."""
_SUM: Final = "kept-bytes"
_FOLDER: Final = re.compile(r"[0-9a-f]{16}-(\d+)")
_FILE: Final = re.compile(r"[0-9a-f]{24}\.(map|blocks|whole|[0-9]+-[0-9]+\.part)")
_GRAIN_SECONDS: Final = 0.001
_ALL: Final = 1 << 63
_CLEAR_SECONDS: Final = 10.0
_PATIENCE_SECONDS: Final = 0.5
"""For the sum. Whoever holds it longer was stopped, or removes very large files; reading goes on without keeping."""


class Room:
    """The bytes that a cache keeps, and their bound. Safe to use from several threads and processes."""

    def __init__(self, root: Path, limit_bytes: int | None) -> None:
        """Take the folder of a cache.

        Args:
            root: The folder.
            limit_bytes: Of all that it keeps; None for no limit.
        """
        self._root, self._limit = root, limit_bytes

    def take(self, count: int, unit_bytes: int, place: Path) -> int:
        """Take room for up to `count` units, and return for how many there was some.

        Other places than `place` that nobody reads make room, those not used for longest first. Raises OSError.
        """
        with self.sum(_PATIENCE_SECONDS) as kept:
            if self._limit is not None and (lacks := kept[0] + count * unit_bytes - self._limit) > 0:
                kept[0] = max(kept[0] - self._evict(lacks, place), 0)
                count = max(min(count, (self._limit - kept[0]) // unit_bytes), 0)
            kept[0] += count * unit_bytes
        return count

    def give_back(self, size: int) -> None:
        """Return room that was taken and not used. Raises OSError."""
        if size:
            with self.sum(_PATIENCE_SECONDS) as kept:
                kept[0] = max(kept[0] - size, 0)

    @property
    def kept_bytes(self) -> int:
        """What the whole cache keeps, of all places."""
        try:
            return int.from_bytes((self._root / _SUM).read_bytes()[:8], "little")
        except OSError:
            return 0

    def recount(self, place: Path, lock: int) -> None:
        """Count what is there if nobody else is at work, and go down to the limit; the sum must be held by the caller.

        A process that was killed may have left a sum that is too large, and files that count for nothing.

        Args:
            place: Of the caller.
            lock: Its open LOCK, held shared.
        """
        others = self._others(place)
        is_alone = all(_is_idle(folder) for folder in others) and _is_mine_alone(lock)
        if is_alone:
            for folder in [place, *others]:
                _tidy(folder)
            self._write(sum(_kept_in(folder) for folder in [place, *others]))
        if self._limit is None or self.kept_bytes <= self._limit:
            return
        left = self.kept_bytes - self._evict(self.kept_bytes - self._limit, place)
        if left > self._limit and is_alone:  # the limit was lowered
            left -= _free(place, left - self._limit)
        self._write(max(left, 0))

    def clear(self, patience_seconds: float) -> None:
        """Remove what is kept of all places that nobody reads. Raises OSError."""
        with self.sum(patience_seconds) as kept:
            kept[0] = max(kept[0] - self._evict(_ALL, self._root), 0)

    @contextmanager
    def sum(self, patience_seconds: float) -> Iterator[list[int]]:
        """The one number that all processes share, locked. Raises OSError, TimeoutError where it is held for long."""
        with _locked(self._root / _SUM, patience_seconds) as fd:
            kept = [int.from_bytes(os.pread(fd, 8, 0), "little")]
            before = kept[0]
            yield kept
            if kept[0] != before:
                os.pwrite(fd, kept[0].to_bytes(8, "little"), 0)

    def _write(self, kept: int) -> None:
        fd = os.open(self._root / _SUM, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.pwrite(fd, kept.to_bytes(8, "little"), 0)
        finally:
            os.close(fd)

    def lock(self, patience_seconds: float) -> Any:
        """Hold the sum without a look at it, while a place is entered: nobody makes room meanwhile. Raises OSError."""
        return _locked(self._root / _SUM, patience_seconds)

    def _others(self, place: Path) -> list[Path]:
        """Folders of other places, those not used for longest first."""
        found = []
        for folder in _places(self._root):
            if folder != place:
                try:
                    found.append(((folder / PLACE).stat().st_mtime, folder))
                except OSError:
                    found.append((0.0, folder))
        return [folder for _, folder in sorted(found)]

    def _evict(self, wanted: int, place: Path) -> int:
        """Remove what is kept of places that nobody reads until so many bytes are free; return the bytes."""
        freed = 0
        for folder in self._others(place):
            if freed < wanted and _is_idle(folder):
                freed += _free(folder, wanted - freed)
        return freed


@contextmanager
def _locked(path: Path, patience_seconds: float) -> Iterator[int]:
    """Hold the lock of a file, made if need be, and yield its descriptor. Raises OSError, TimeoutError among them."""
    end = time.monotonic() + patience_seconds
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise TimeoutError(f"{path} is locked by a process that does not go on") from None
                time.sleep(_GRAIN_SECONDS)
        yield fd
    finally:
        # Not left to `close`: a child that was forked meanwhile has the descriptor too.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _is_idle(folder: Path) -> bool:
    """Whether no process reads a place."""
    try:
        fd = os.open(folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(fd, fcntl.LOCK_UN)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def words_of(path: Path, count: int) -> NDArray[np.uint32]:
    """Return the (count,) words of a map, zeros where it is missing or too short."""
    words = np.zeros(count, np.uint32)
    try:
        found = np.frombuffer(path.read_bytes()[: 4 * count], "<u4", min(path.stat().st_size // 4, count))
    except (OSError, ValueError):
        return words
    words[: len(found)] = found
    return words


def _is_mine_alone(lock: int) -> bool:
    """Whether nobody else reads the place. Only while the sum is held, since the lock is let go of for a moment."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        fcntl.flock(lock, fcntl.LOCK_SH)
    return True


def _places(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if _FOLDER.fullmatch(path.name) and path.is_dir()]


def _block_bytes(folder: Path) -> int:
    found = _FOLDER.fullmatch(folder.name)
    return int(found[1]) if found else 1


def _files(folder: Path, ending: str) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name.endswith(ending) and _FILE.fullmatch(path.name))


def _there(path: Path) -> NDArray[np.int64]:
    """Numbers of the blocks that a map says are there."""
    return np.flatnonzero(words_of(path, path.stat().st_size // 4))


def _kept_in(folder: Path) -> int:
    """Bytes that a place's files keep: whole blocks, and small files."""
    blocks = sum(len(_there(path)) for path in _files(folder, ".map"))
    return blocks * _block_bytes(folder) + sum(path.stat().st_size for path in _files(folder, ".whole"))


def _free(folder: Path, wanted: int) -> int:
    """Remove what is kept of a place that nobody reads until so many bytes are free; return the bytes.

    A map goes before its blocks: a process that is killed in between leaves blocks that count as absent.
    """
    block, freed = _block_bytes(folder), 0
    for path in _files(folder, ".map"):
        if freed >= wanted:
            break
        there = _there(path)
        most = -(-(wanted - freed) // block)
        if len(there) > most:
            first = int(there[-most])
            os.truncate(path, 4 * first)
            os.truncate(path.with_suffix(".blocks"), first * block)
            return freed + most * block
        freed += len(there) * block
        path.unlink(missing_ok=True)
        path.with_suffix(".blocks").unlink(missing_ok=True)
    for path in _files(folder, ".whole"):
        if freed >= wanted:
            break
        freed += path.stat().st_size
        path.unlink(missing_ok=True)
    if not _files(folder, ".map") and not _files(folder, ".whole") and _is_idle(folder):
        _tidy(folder)
        for name in (PLACE, LOCK):
            (folder / name).unlink(missing_ok=True)
        try:
            folder.rmdir()
        except OSError:
            pass  # something of somebody else is in it
    return freed


def _tidy(folder: Path) -> None:
    """Remove what killed processes left: files half written, blocks without a map."""
    for path in _files(folder, ".part"):
        path.unlink(missing_ok=True)
    for path in _files(folder, ".blocks"):
        if not path.with_suffix(".map").exists():
            path.unlink(missing_ok=True)


def clear(root: Path) -> None:
    """Remove what a cache keeps of places that no process reads. Raises OptionError for no cache, OSError."""
    _refuse_others(root)
    Room(root, None).clear(_CLEAR_SECONDS)


def described(root: Path) -> list[dict[str, Any]]:
    """Return what a cache keeps: place, bytes and whether somebody reads it. Raises OptionError for no cache."""
    _refuse_others(root)
    found = []
    for folder in _places(root):
        try:
            uri = (folder / PLACE).read_text("utf-8", "replace").strip()
        except OSError:
            uri = ""
        found.append({"place": uri, "bytes": _kept_in(folder), "in_use": not _is_idle(folder)})
    return sorted(found, key=lambda one: str(one["place"]))


def _refuse_others(root: Path) -> None:
    if not (root / MARKER).exists():
        raise OptionError(f"{root} is no cache of shufflestore")
