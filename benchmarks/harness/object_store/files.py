"""Objects as files: ROOT/bucket/key. Whoever changes a file there changes the object, its ETag too."""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import shutil
import stat
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Final

from benchmarks.harness.object_store.messages import Refusal, Request

__all__ = ["Listed", "Objects", "Opened", "check_content", "is_any_of"]

_OPEN_FILES: Final = 512
_COPIED: Final = 1 << 24


@dataclass(slots=True)
class Opened:
    """One version of an object, open for reading."""

    descriptor: int
    stamp: tuple[int, int, int]
    """Inode, time of the last change in ns, size."""
    headers: dict[str, str]
    """What GET and HEAD tell of it, but its length."""

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.stamp[2]

    @property
    def etag(self) -> str:
        """Its ETag, with quotes."""
        return self.headers["ETag"]


@dataclass(frozen=True, slots=True)
class Listed:
    """An object as a listing tells it."""

    key: str
    size: int
    etag: str
    changed_seconds: float


@dataclass(slots=True)
class _Upload:
    bucket: str
    key: str
    folder: Path
    etags: dict[int, str] = field(default_factory=dict)


class Objects:
    """All buckets under one folder. One thread: each call is atomic to all others."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.absolute())
        self._spare = root.absolute() / ".spare"
        """Files that are no objects yet."""
        self._spare.mkdir(parents=True, exist_ok=True)
        self._opened: OrderedDict[str, Opened] = OrderedDict()
        self._deleted: list[tuple[float, str, Listed]] = []
        """(when, bucket, what) of objects deleted here."""
        self._last_change = 0
        self.uploads: dict[str, _Upload] = {}
        self._completed: dict[str, tuple[Sequence[tuple[int, str]], str]] = {}
        """Parts and ETag by upload."""

    # -- reading -----------------------------------------------------------------------------------

    def open(self, bucket: str, key: str) -> Opened:
        """Return the present version. It is valid until the next call.

        Raises:
            Refusal: NoSuchKey, NoSuchBucket, or a name that is none.
        """
        path = self._path(bucket, key)
        opened = self._opened.get(path)
        try:
            now = os.stat(path)
            if opened is not None and opened.stamp == (now.st_ino, now.st_mtime_ns, now.st_size):
                return opened
            if not stat.S_ISREG(now.st_mode):
                raise FileNotFoundError(path)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as cause:
            raise self._missing(bucket, key, cause) from None
        self._forget(path)
        now = os.fstat(descriptor)
        headers = {
            "ETag": _etag(now),
            "Last-Modified": formatdate(now.st_mtime, usegmt=True),
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        opened = Opened(descriptor, (now.st_ino, now.st_mtime_ns, now.st_size), headers)
        self._opened[path] = opened
        if len(self._opened) > _OPEN_FILES:
            self._forget(next(iter(self._opened)))
        return opened

    def listing(self, bucket: str, prefix: str, stale_seconds: float = 0.0) -> list[Listed]:
        """Return objects in order of their keys' UTF-8 bytes; with `stale_seconds`, those of that long ago as far as known."""
        self.check_bucket(bucket)
        found = list(_walk(self._folder(bucket), "", prefix))
        if stale_seconds > 0:
            then = time.time() - stale_seconds
            found = [one for one in found if one.changed_seconds <= then]
            there = {one.key for one in found}
            for when, where, one in reversed(self._deleted):
                was_there = when > then >= one.changed_seconds
                if where == bucket and was_there and one.key not in there and one.key.startswith(prefix):
                    found.append(one)
                    there.add(one.key)
        return sorted(found, key=lambda one: one.key.encode("utf-8", "surrogateescape"))

    def check_bucket(self, bucket: str) -> None:
        """Raise Refusal (NoSuchBucket) if there is none."""
        if not os.path.isdir(self._folder(bucket)):
            raise Refusal(404, "NoSuchBucket", f"no bucket {bucket}")

    # -- writing -----------------------------------------------------------------------------------

    def make_bucket(self, bucket: str) -> None:
        """Make it, if it is not there."""
        os.makedirs(self._folder(bucket), exist_ok=True)

    def put(self, bucket: str, key: str, body: bytes, conditions: Mapping[str, str]) -> str:
        """Write an object and return its ETag. Raises Refusal, 412 among them, and then nothing is written."""
        self.check_bucket(bucket)
        spare = self._spare / secrets.token_hex(8)
        spare.write_bytes(body)
        return self._publish(spare, bucket, key, conditions)

    def copy(self, bucket: str, key: str, source: tuple[str, str], conditions: Mapping[str, str]) -> str:
        """Copy an object and return its ETag."""
        opened = self.open(*source)
        spare = self._spare / secrets.token_hex(8)
        with spare.open("wb") as file:
            _append(file.fileno(), opened.descriptor, opened.size)
        return self._publish(spare, bucket, key, conditions)

    def delete(self, bucket: str, key: str) -> None:
        """Delete an object, if it is there."""
        path = self._path(bucket, key)
        try:
            was = os.stat(path)
            os.unlink(path)
        except OSError:  # gone already, or a folder: no object
            return
        self._deleted.append((time.time(), bucket, Listed(key, was.st_size, _etag(was), was.st_mtime)))
        del self._deleted[:-10_000]
        self._forget(path)

    def _publish(self, spare: Path, bucket: str, key: str, conditions: Mapping[str, str]) -> str:
        path = self._path(bucket, key)
        try:
            self.check_conditions(bucket, key, conditions)
            # Strictly later than any other change made here: the clock of a file system ticks every 4 ms.
            self._last_change = max(self._last_change + 1, time.time_ns())
            os.utime(spare, ns=(self._last_change, self._last_change))
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.replace(spare, path)
            except (FileExistsError, IsADirectoryError, NotADirectoryError):
                raise Refusal(
                    409, "InvalidKey", f"{key}: a file cannot be a folder too, as keys here would need"
                ) from None
        finally:
            spare.unlink(missing_ok=True)
        self._forget(path)
        return _etag(os.stat(path))

    def check_conditions(self, bucket: str, key: str, conditions: Mapping[str, str]) -> None:
        """Raise Refusal if If-Match or If-None-Match forbid to write."""
        if "if-none-match" not in conditions and "if-match" not in conditions:
            return
        try:
            etag = self.open(bucket, key).etag
        except Refusal:
            if "if-match" in conditions:
                raise
            return
        if is_any_of(etag, conditions.get("if-none-match", "")):
            raise Refusal(412, "PreconditionFailed", f"{key} is there already (If-None-Match)")
        if "if-match" in conditions and not is_any_of(etag, conditions["if-match"]):
            raise Refusal(412, "PreconditionFailed", f"{key} has the ETag {etag} (If-Match)")

    # -- multipart uploads -------------------------------------------------------------------------

    def begin(self, bucket: str, key: str) -> str:
        """Begin an upload in parts and return its id."""
        self.check_bucket(bucket)
        self._path(bucket, key)
        name = secrets.token_hex(16)
        folder = self._spare / name
        folder.mkdir()
        self.uploads[name] = _Upload(bucket, key, folder)
        return name

    def put_part(self, name: str, number: int, body: bytes) -> str:
        """Keep one part, again if it came before, and return its ETag."""
        upload = self._upload(name)
        if not 1 <= number <= 10_000:
            raise Refusal(400, "InvalidArgument", f"part {number} is outside [1, 10,000]")
        (upload.folder / str(number)).write_bytes(body)
        upload.etags[number] = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
        return upload.etags[number]

    def complete(
        self, name: str, parts: Sequence[tuple[int, str]], conditions: Mapping[str, str], can_repeat: bool
    ) -> str:
        """Publish the parts as one object and return its ETag. The upload lives on if that is refused.

        The same again is told the same again if `can_repeat`, else that there is no such upload.
        """
        if can_repeat and name in self._completed and self._completed[name][0] == parts:
            return self._completed[name][1]
        upload = self._upload(name)
        numbers = [number for number, _ in parts]
        if not numbers or numbers != sorted(set(numbers)):
            raise Refusal(400, "InvalidPartOrder", "parts must be named once each, in order")
        for number, etag in parts:
            if upload.etags.get(number, "").strip('"') != etag.strip('"'):
                raise Refusal(400, "InvalidPart", f"part {number} never came, or has another ETag")
        self.check_conditions(upload.bucket, upload.key, conditions)
        spare = self._spare / secrets.token_hex(8)
        with spare.open("wb") as file:
            for number in numbers:
                with (upload.folder / str(number)).open("rb") as part:
                    _append(file.fileno(), part.fileno(), os.fstat(part.fileno()).st_size)
        etag = self._publish(spare, upload.bucket, upload.key, conditions)
        self.abort(name)
        self._completed[name] = (parts, etag)
        return etag

    def abort(self, name: str) -> None:
        """Forget an upload and its parts."""
        shutil.rmtree(self._upload(name).folder)
        del self.uploads[name]

    def _upload(self, name: str) -> _Upload:
        if name not in self.uploads:
            raise Refusal(404, "NoSuchUpload", f"no upload {name}")
        return self.uploads[name]

    # -- names -------------------------------------------------------------------------------------

    def _folder(self, bucket: str) -> str:
        if not bucket or bucket[0] == "." or "\0" in bucket:
            raise Refusal(400, "InvalidBucketName", f"{bucket!r} cannot be a folder here")
        return f"{self.root}/{bucket}"

    def _path(self, bucket: str, key: str) -> str:
        named = f"/{key}/"
        if "\0" in named or "//" in named or "/./" in named or "/../" in named:
            raise Refusal(400, "InvalidURI", f"{bucket}/{key} cannot be a file here")
        return f"{self._folder(bucket)}/{key}"

    def _missing(self, bucket: str, key: str, cause: OSError) -> Refusal:
        if isinstance(cause, (FileNotFoundError, NotADirectoryError)):
            if os.path.isdir(f"{self.root}/{bucket}"):
                return Refusal(404, "NoSuchKey", f"no object {key}")
            return Refusal(404, "NoSuchBucket", f"no bucket {bucket}")
        return Refusal(400, "InvalidURI", f"{key}: {cause.strerror}")

    def _forget(self, path: str) -> None:
        if (opened := self._opened.pop(path, None)) is not None:
            os.close(opened.descriptor)


def _walk(folder: str, key: str, prefix: str) -> Iterator[Listed]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = key + entry.name
            if entry.is_dir():
                below = f"{name}/"
                if below.startswith(prefix) or prefix.startswith(below):
                    yield from _walk(entry.path, below, prefix)
            elif name.startswith(prefix):
                try:
                    now = entry.stat()
                except FileNotFoundError:  # replaced or deleted from outside at this moment
                    continue
                yield Listed(name, now.st_size, _etag(now), now.st_mtime)


def _etag(now: os.stat_result) -> str:
    return f'"{now.st_ino:x}-{now.st_mtime_ns:x}-{now.st_size:x}"'


def is_any_of(etag: str, header: str) -> bool:
    """Whether a header like If-Match names this ETag."""
    return header.strip() == "*" or etag in [one.strip() for one in header.split(",")]


def _append(target: int, source: int, size: int) -> None:
    at = 0
    while at < size:
        at += os.write(target, os.pread(source, min(_COPIED, size - at), at))


# -- checksums -------------------------------------------------------------------------------------


def _crc32c(body: bytes) -> bytes:
    from shufflestore._native import crc32c  # only where somebody sends one

    return crc32c(body).to_bytes(4, "big")


_DIGESTS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "content-md5": lambda body: hashlib.md5(body, usedforsecurity=False).digest(),
    "x-amz-checksum-crc32": lambda body: zlib.crc32(body).to_bytes(4, "big"),
    "x-amz-checksum-crc32c": _crc32c,
    "x-amz-checksum-sha1": lambda body: hashlib.sha1(body, usedforsecurity=False).digest(),
    "x-amz-checksum-sha256": lambda body: hashlib.sha256(body).digest(),
}


def check_content(request: Request) -> None:
    """Raise Refusal (BadDigest) if a checksum that came with a body is not the body's."""
    for name, value in request.headers.items():
        if name in _DIGESTS and base64.b64encode(_DIGESTS[name](request.body)).decode() != value:
            raise Refusal(400, "BadDigest", f"{name} {value} is not that of the {len(request.body):,} bytes that came")
        if name == "x-amz-checksum-crc64nvme":
            raise Refusal(501, "NotImplemented", "crc64nvme is not checked here: send another checksum")
    signed = request.headers.get("x-amz-content-sha256", "")
    if len(signed) == 64 and hashlib.sha256(request.body).hexdigest() != signed:
        raise Refusal(400, "XAmzContentSHA256Mismatch", "the body is not the one that was signed")
