"""One request on a connection of its own, and everything that came back, however badly it ended."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Came:
    """What a server sent until it ended the connection."""

    status: int
    """0 if no whole head came."""
    headers: dict[str, str]
    """By name in small letters."""
    body: bytes
    """All that came after the head, counted by nobody. Without a whole head, what there was of it."""
    was_reset: bool

    @property
    def code(self) -> str:
        """The code in S3's error document."""
        found = re.search(rb"<Code>(\w+)</Code>", self.body)
        return found[1].decode() if found else ""


def ask(
    endpoint: str, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
) -> Came:
    """Send one request, ask for the connection to be closed, and read until it is."""
    host, port = endpoint.removeprefix("http://").split(":")
    told = {"Host": f"{host}:{port}", "Connection": "close", **(headers or {})}
    if body is not None:
        told["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
    came, was_reset = bytearray(), False
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + (body or b""))
        try:
            while piece := connection.recv(1 << 16):
                came += piece
        except ConnectionResetError:
            was_reset = True
    return parse(bytes(came), was_reset)


def parse(came: bytes, was_reset: bool) -> Came:
    """Take a reply apart."""
    head, end, body = came.partition(b"\r\n\r\n")
    if not end:
        return Came(0, {}, came, was_reset)
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return Came(int(first.split(" ")[1]), headers, body, was_reset)
