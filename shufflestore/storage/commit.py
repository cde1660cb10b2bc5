"""Durable publish: a name appears only once its bytes are on the disk, and never changes again.

Temporary name, write, fsync, link if absent, fsync of the folder, and only then success. A
failed fsync abandons the file: Linux marks its pages clean, so a retry would succeed and lie.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import secrets
import time
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

from shufflestore.errors import OutOfSpace, StorageError

try:
    from shufflestore._native import start_writing as _start_writing
except ImportError:  # advice to the disk, nothing that a file's content depends on

    def _start_writing(fd: int, offset: int, size: int) -> None:
        pass


__all__ = [
    "SystemCalls",
    "TEMPORARY",
    "TemporaryFile",
    "make_folder",
    "publish",
    "publish_file",
    "remove",
    "sweep",
    "sync_folder",
    "system",
]

TEMPORARY: Final = ".tmp-"
"""Prefix of names that mean nothing yet."""
_AHEAD_BYTES: Final = 16 << 20
"""Written bytes that the disk is set to work on while more come; large enough for long extents."""
_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
R = TypeVar("R")


class SystemCalls:
    """The calls that change a disk, in one place so that tests can make each of them fail."""

    def open(self, path: str, flags: int, mode: int = 0o666) -> int:
        return os.open(path, flags, mode)

    def write(self, fd: int, data: memoryview) -> int:
        return os.write(fd, data)

    def fsync(self, fd: int) -> None:
        os.fsync(fd)

    def link(self, source: str, target: str) -> None:
        os.link(source, target)

    def unlink(self, path: str) -> None:
        Path(path).unlink()

    def mkdir(self, path: str) -> None:
        Path(path).mkdir()

    def utime(self, path: str) -> None:
        os.utime(path)

    def close(self, fd: int) -> None:
        os.close(fd)


system: SystemCalls = SystemCalls()
"""What this module calls; tests put a faulty one here."""


def _retried(call: Callable[..., R], *arguments: Any) -> R:
    """Call again while a signal interrupts. Python does so itself; a seam or a shim may not."""
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            continue


class TemporaryFile(io.RawIOBase):
    """A file under a temporary name, to be synced and then published or abandoned.

    A writable file object, for whatever writes formats. Owns its descriptor.
    """

    def __init__(self, folder: Path, expected_bytes: int = 0) -> None:
        """Create it.

        Args:
            folder: Where it will be published.
            expected_bytes: For the message when there is no room.
        """
        super().__init__()
        self.path = folder / f"{TEMPORARY}{_machine()}-{os.getpid()}-{secrets.token_hex(6)}"
        self._expected = expected_bytes
        self._size = 0
        self._started = 0
        """Bytes that are on their way to the disk."""
        self._fd = self._do("create", system.open, str(self.path), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._size

    def write(self, data: Any) -> int:
        """Write all of it. Raises OutOfSpace, StorageError."""
        view = memoryview(data).cast("B")
        total = len(view)
        while len(view):
            done = self._do("write", system.write, self._fd, view)
            view = view[done:]
            self._size += done
        if self._size - self._started >= _AHEAD_BYTES:
            _start_writing(self._fd, self._started, self._size - self._started)
            self._started = self._size
        return total

    def sync(self) -> None:
        """Put everything on the disk and close. After an error the file must be abandoned."""
        try:
            self._do("fsync", system.fsync, self._fd)
        finally:
            self._close()

    def abandon(self) -> None:
        """Remove the file, if it is still there. Idempotent, never raises."""
        self._close()
        try:
            _retried(system.unlink, str(self.path))
        except OSError:
            pass  # a sweep finds it; the error that led here matters more

    def _close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                system.close(fd)
            except OSError:
                pass  # the descriptor is gone either way, and fsync has spoken for the bytes

    def _do(self, verb: str, call: Callable[..., R], *arguments: Any) -> R:
        try:
            return _retried(call, *arguments)
        except OSError as cause:
            raise _explained(verb, self.path, cause, max(self._expected - self._size, 0)) from cause


def _explained(verb: str, path: Path, cause: OSError, wanted: int) -> StorageError:
    what = f"{path}: {verb} failed: {cause.strerror} (errno {cause.errno})"
    if cause.errno in _NO_ROOM:
        more = f"; about {wanted:,} bytes more are needed for this file" if wanted else ""
        return OutOfSpace(f"{what}{more}; make room on that file system and resume")
    return StorageError(
        f"{what}; what was committed before is unharmed: see to the disk, then run it again (a conversion goes on with "
        "if_exists='resume')"
    )


def publish(path: Path, content: bytes | Iterable[Any], renews: bool = False) -> bool:
    """Give a new file its name once its bytes are on the disk.

    Args:
        path: The name. Its folder exists.
        content: Bytes, or buffers to be written one after another.
        renews: See `publish_file`.

    Returns:
        False, and nothing has changed, if the name was taken.

    Raises:
        OutOfSpace, StorageError: Nothing was published, no temporary file is left.
    """
    parts = [content] if isinstance(content, bytes) else list(content)
    file = TemporaryFile(path.parent, sum(memoryview(part).nbytes for part in parts))
    try:
        for part in parts:
            file.write(part)
        file.sync()
        return publish_file(file, path, renews)
    except BaseException:
        file.abandon()
        raise


def publish_file(file: TemporaryFile, path: Path, renews: bool = False) -> bool:
    """Give a synced temporary file its name, durably; False, and it is removed, if the name was taken.

    Args:
        file: Synced.
        path: The name. Its folder exists.
        renews: Make a file that has the name already look new, so that `gc` does not take it from a
            conversion that relies on it. For names that follow from the content.

    Raises:
        OutOfSpace, StorageError: The name may or may not be there; its bytes are whole if it is.
    """
    try:
        is_new = _linked(file, path, renews)
    except OSError as cause:
        file.abandon()
        raise _explained("link", path, cause, 0) from cause
    file.abandon()
    sync_folder(path.parent)
    return is_new


def _linked(file: TemporaryFile, path: Path, renews: bool) -> bool:
    while True:
        try:
            _retried(system.link, str(file.path), str(path))
            return True
        except FileExistsError:
            pass
        try:
            # On NFS the reply to a link that worked may be lost; the second try then finds the name taken.
            is_ours = file.path.stat().st_nlink == 2 and file.path.samefile(path)
            if renews and not is_ours:
                _retried(system.utime, str(path))
            return is_ours
        except PermissionError:
            return False  # another user's file: only its owner may renew it
        except FileNotFoundError:
            if not file.path.exists():
                raise
            # Removed between the two calls: the name is free again.


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, durably; no error if it is there. Raises OutOfSpace, StorageError."""
    if path.is_dir():
        return
    make_folder(path.parent)
    try:
        _retried(system.mkdir, str(path))
    except FileExistsError as cause:
        if not path.is_dir():
            raise _explained("mkdir", path, cause, 0) from cause
    except OSError as cause:
        raise _explained("mkdir", path, cause, 0) from cause
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk. Raises StorageError."""
    try:
        fd = _retried(system.open, str(folder), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as cause:
        raise _explained("open folder", folder, cause, 0) from cause
    try:
        _retried(system.fsync, fd)
    except OSError as cause:
        raise _explained("fsync", folder, cause, 0) from cause
    finally:
        try:
            system.close(fd)
        except OSError:
            pass  # fsync has spoken


def remove(path: Path) -> None:
    """Remove a published file; a missing one is no error. Raises StorageError."""
    try:
        _retried(system.unlink, str(path))
    except FileNotFoundError:
        pass
    except OSError as cause:
        raise _explained("unlink", path, cause, 0) from cause


def sweep(folder: Path, foreign_after_seconds: float = 86_400.0) -> int:
    """Remove temporary files whose writer is gone; return the bytes freed.

    Args:
        folder: Searched with everything below it.
        foreign_after_seconds: Of a writer on another machine, or before a reboot, nobody here knows
            whether it lives: its files go when they were not written to for so long.
    """
    freed = 0
    for path in folder.rglob(f"{TEMPORARY}*"):
        machine, _, rest = path.name.removeprefix(TEMPORARY).partition("-")
        try:
            status = path.stat()
            if machine == _machine():
                is_live = Path("/proc", rest.partition("-")[0]).exists()
            else:
                is_live = time.time() - status.st_mtime < foreign_after_seconds
            if not is_live:
                _retried(system.unlink, str(path))
                freed += status.st_size
        except FileNotFoundError:
            continue
    return freed


@cache
def _machine() -> str:
    """Eight hex digits that name this machine since it was started."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        boot = os.uname().nodename.encode()
    return hashlib.sha256(boot).hexdigest()[:8]
