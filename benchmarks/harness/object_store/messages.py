"""What goes over the wire: a request taken apart, a reply put together, an error as S3 writes it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from html import escape
from http import HTTPStatus
from typing import Final
from urllib.parse import parse_qsl, unquote

__all__ = ["Refusal", "Reply", "Request", "parse_request"]

_REASONS: Final = {status.value: status.phrase for status in HTTPStatus}
_BODILESS: Final = (204, 304)


class Refusal(Exception):
    """Ends a request with a status and S3's error document."""

    def __init__(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"{status} {code}: {message}")
        self.status, self.code, self.message = status, code, message
        self.headers = headers or {}

    def reply(self) -> Reply:
        """Return it as a reply."""
        told = f"<Error><Code>{self.code}</Code><Message>{escape(self.message, quote=False)}</Message></Error>"
        return Reply.document(self.status, told, self.headers)


@dataclass(slots=True)
class Request:
    """One request. The body follows once it has come."""

    method: str
    target: str
    """As sent, with its query."""
    bucket: str
    key: str
    """"" for the bucket itself."""
    query: dict[str, str]
    headers: dict[str, str]
    """By name in small letters; of several with one name the last."""
    body: bytes = b""
    is_stale: bool = False
    """A listing may only tell what was there some seconds ago."""

    @property
    def operation(self) -> str:
        """The method, or LIST for a GET of a bucket."""
        return "LIST" if self.method == "GET" and not self.key else self.method

    @property
    def is_commit(self) -> bool:
        """Whether it writes an object on a condition."""
        writes = self.method == "PUT" or (self.method == "POST" and "uploadId" in self.query)
        return writes and ("if-none-match" in self.headers or "if-match" in self.headers)


def parse_request(head: bytes) -> Request:
    """Return the request whose head this is. Raises Refusal (400) if it is none."""
    first, *lines = head.decode("latin-1").split("\r\n")
    try:
        method, target, _ = first.split(" ")
    except ValueError:
        raise Refusal(400, "BadRequest", f"no HTTP/1.1 request: {first[:80]!r}") from None
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    path, _, asked = target.partition("?")
    if "%" in path:
        path = unquote(path)
    _, _, path = path.partition("/")
    bucket, _, key = path.partition("/")
    query = dict(parse_qsl(asked, keep_blank_values=True)) if asked else {}
    return Request(method, target, bucket, key, query, headers)


@dataclass(slots=True)
class Reply:
    """One reply: its body in memory, or a part of an open file."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: tuple[int, int, int] | None = None
    """(descriptor, start, stop) instead of `body`. The reply owns the descriptor."""

    @classmethod
    def document(cls, status: int, xml: str, headers: dict[str, str] | None = None) -> Reply:
        """Return a reply with an XML document."""
        head = {"Content-Type": "application/xml", **(headers or {})}
        return cls(status, head, f'<?xml version="1.0" encoding="UTF-8"?>\n{xml}'.encode())

    @property
    def length(self) -> int:
        """Bytes of the body."""
        return len(self.body) if self.file is None else self.file[2] - self.file[1]

    def head(self) -> bytes:
        """Return status line and headers. Content-Length is the body's where no header says otherwise."""
        lines = [f"HTTP/1.1 {self.status} {_REASONS.get(self.status, '')}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if "Content-Length" not in self.headers and self.status not in _BODILESS:
            lines.append(f"Content-Length: {self.length}")
        lines.append("\r\n")
        return "\r\n".join(lines).encode("latin-1")

    def pieces(self, start: int, stop: int, piece_bytes: int) -> Iterator[bytes]:
        """Yield bytes [start, stop) of the body."""
        for at in range(start, stop, piece_bytes):
            until = min(at + piece_bytes, stop)
            if self.file is None:
                yield self.body[at:until]
            else:
                yield os.pread(self.file[0], until - at, self.file[1] + at)

    def load(self) -> None:
        """Bring the whole body into memory, so that it can be altered."""
        if self.file is not None:
            self.body = b"".join(self.pieces(0, self.length, 1 << 20))
            self.close()

    def close(self) -> None:
        """Give the file back."""
        if self.file is not None:
            os.close(self.file[0])
            self.file = None
