"""The members of a tar file, plain or gzipped, in order, with the place of all that is wrong.

Python's `tarfile` takes a damaged header, and an archive that ends between two members, for the end of the
archive: records would be lost without a word. Formats: v7, ustar, GNU long names, pax (POSIX.1-2001).
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn, Protocol

import pyarrow as pa

from shufflestore.errors import SourceError

__all__ = ["Member", "Tar", "is_packed", "open_tar"]

_BLOCK: Final = 512
_STEP_BYTES: Final = 16 << 20
"""Read at once at most: a size in a damaged header must not become an allocation."""
_MAX_HEADER_BYTES: Final = 1 << 20
"""Of a long name or pax records; names are at most a few KB."""
_FILES: Final = (b"0", b"\0", b"7")
_OTHERS: Final = (b"3", b"4", b"5", b"6", b"K", b"g")
"""Devices, folders, pipes, names of links, pax records that concern all members: nothing to read."""


@dataclass(frozen=True)
class Member:
    """A regular file in a tar."""

    name: str
    start: int
    """Where its first header begins."""
    data: int
    """Where its bytes begin."""
    size: int

    @property
    def stop(self) -> int:
        """Where the next header begins."""
        return self.data + -(-self.size // _BLOCK) * _BLOCK


class _Bytes(Protocol):
    def read(self, at: int, size: int) -> bytes:
        """Return bytes [at, at + size), fewer at the end; `at` never goes back behind what was read."""
        ...


class _Plain:
    def __init__(self, file: io.FileIO) -> None:
        self._file = file

    def read(self, at: int, size: int) -> bytes:
        return os.pread(self._file.fileno(), size, at)


class _Packed:
    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._at = 0

    def read(self, at: int, size: int) -> bytes:
        while self._at < at:
            data = self._file.read(min(_STEP_BYTES, at - self._at))
            if not data:
                return b""
            self._at += len(data)
        data = self._file.read(size)
        self._at += len(data)
        return data


def is_packed(path: str) -> bool:
    """Whether a file is compressed, by its name."""
    return path.lower().endswith((".gz", ".tgz"))


@contextmanager
def open_tar(path: str) -> Iterator[Tar]:
    """Open a tar file; errors on the way are SourceErrors with its name and the byte reached."""
    tar = None
    try:
        if is_packed(path):
            if not Path(path).stat().st_size:  # pyarrow takes it for an empty text
                raise SourceError(f"{path} has no bytes, compressed text has some; it was cut short, copy it again")
            with io.BufferedReader(pa.input_stream(path, compression="gzip"), 1 << 20) as packed:
                tar = Tar(path, _Packed(packed))
                yield tar
        else:
            with io.FileIO(path) as plain:
                tar = Tar(path, _Plain(plain))
                yield tar
    except (pa.ArrowException, OSError) as e:
        where = f" behind byte {tar.reached:,} of its text" if tar is not None else ""
        raise SourceError(f"{path} cannot be read{where} ({e}); it is damaged or was cut short") from e


class Tar:
    """An open archive. Bytes are counted in the tar, of a gzipped file in its text."""

    def __init__(self, path: str, file: _Bytes) -> None:
        self._path = path
        self._file = file
        self.reached = 0
        """Where the next header begins; behind the last member the mark of the end."""

    def members(self, start: int = 0, stop: int | None = None) -> Iterator[Member]:
        """Yield the regular files whose headers begin in [start, stop), None for the end of the archive.

        Folders and devices are passed over. Bytes of a gzipped file can be read until the next member is asked for.

        Raises:
            SourceError: A header is damaged, the archive cut short, bytes follow its end, or a member is a
                link or sparse; with the byte.
        """
        self.reached = at = start
        name: str | None = None
        size: int | None = None
        while stop is None or self.reached < stop:
            header = self._exactly(at, _BLOCK, "a header")
            if not any(header):
                self._check_end(at + _BLOCK)
                return
            kind, own_name, own_size = self._parse(header, at)
            member = Member(name or own_name, self.reached, at + _BLOCK, own_size if size is None else size)
            if kind in (b"L", b"x"):
                text = self._exactly(member.data, self._header_size(own_size, at), "the name of a member")
                if kind == b"L":
                    name = self._text(text.partition(b"\0")[0], at)
                else:
                    name, size = self._pax(text, at, (name, size))
                at = Member("", at, at + _BLOCK, own_size).stop
                continue
            if kind in _FILES and not member.name.endswith("/"):
                yield member
            elif kind in (b"1", b"2"):
                self._refuse(member.start, f"{member.name} is a link; pack with tar --dereference --hard-dereference")
            elif kind not in _OTHERS and kind not in _FILES:
                self._refuse(member.start, f"{member.name} is a member of kind {kind!r}, of which no bytes are read")
            self.reached = at = member.stop
            name = size = None

    def read(self, member: Member) -> bytes:
        """Return a member's bytes."""
        return self._exactly(member.data, member.size, member.name)

    def _exactly(self, at: int, size: int, what: str) -> bytes:
        parts: list[bytes] = []
        while size:
            part = self._file.read(at, min(size, _STEP_BYTES))
            if not part:
                self._refuse(at, f"it ends there or before, where {what} is due; it was cut short, copy it again")
            parts.append(part)
            at, size = at + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _check_end(self, at: int) -> None:
        """Behind the mark of the end there are zeros only; reading a gzipped file to its end checks it, too."""
        while True:
            rest = self._file.read(at, _STEP_BYTES)
            if not rest:
                return
            if rest.count(0) < len(rest):
                self._refuse(
                    at,
                    "there are bytes behind the mark of its end; if tars were joined, give them as files of their own",
                )
            at += len(rest)

    def _parse(self, header: bytes, at: int) -> tuple[bytes, str, int]:
        """Return (kind, name, size) of a header whose sum is right."""
        told = self._number(header[148:156], at, "sum")
        if told != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            self._refuse(at, "the header there is damaged or none; is this a tar?")
        name = header[:100].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        return header[156:157], self._text(name, at), self._number(header[124:136], at, "size")

    def _number(self, field: bytes, at: int, what: str) -> int:
        if field[0] == 0x80:
            return int.from_bytes(field[1:], "big")
        digits = field.partition(b"\0")[0].strip()
        if digits.strip(b"01234567"):
            self._refuse(at, f"the {what} in the header there is {digits!r}, no octal number; it is damaged")
        return int(digits or b"0", 8)

    def _header_size(self, size: int, at: int) -> int:
        if size > _MAX_HEADER_BYTES:
            self._refuse(
                at, f"a name of {size:,} bytes is announced there, more than {_MAX_HEADER_BYTES:,}; it is damaged"
            )
        return size

    def _pax(self, text: bytes, at: int, known: tuple[str | None, int | None]) -> tuple[str | None, int | None]:
        """Return name and size that pax records give, else those known."""
        name, size = known
        while text.strip(b"\0"):
            digits, _, _ = text.partition(b" ")
            length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
            key, sign, value = text[len(digits) + 1 : length].partition(b"=")
            if not sign or value[-1:] != b"\n" or length > len(text):
                self._refuse(at, f"the pax records there are damaged: {text[:40]!r}")
            if key.startswith(b"GNU.sparse"):
                self._refuse(at, "a sparse member is there; pack without tar --sparse")
            if key == b"path":
                name = self._text(value[:-1], at)
            elif key == b"size":
                if not value[:-1].isdigit():
                    self._refuse(at, f"the size in the pax records there is {value!r}; they are damaged")
                size = int(value)
            text = text[length:]
        return name, size

    def _text(self, name: bytes, at: int) -> str:
        try:
            return name.decode()
        except UnicodeDecodeError:
            self._refuse(at, f"the name {name!r} there is not UTF-8; pack with names that are")

    def _refuse(self, at: int, reason: str) -> NoReturn:
        raise SourceError(f"{self._path} byte {at:,}: {reason}")
