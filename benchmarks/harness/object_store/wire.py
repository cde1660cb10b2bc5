"""The server: HTTP/1.1 connections, latency, bandwidth, and the faults that lie in how a reply is sent."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections import Counter
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.object_store.answers import answer
from benchmarks.harness.object_store.faults import Dealer, Settings, alter, lead_astray, refuse
from benchmarks.harness.object_store.files import Objects
from benchmarks.harness.object_store.messages import Refusal, Reply, Request, parse_request

__all__ = ["CONTROL", "Connection", "Server"]

CONTROL: Final = "_control"
"""The "bucket" that settings and counts are behind. It is never slow, never faulty and never counted."""
_PIECE: Final = 1 << 16
_CREDIT_SECONDS: Final = 0.005
"""By how much bandwidth may be made up for: timers are late by a millisecond or two."""
_HEAD_BYTES: Final = 1 << 16
_DRIPS: Final = 10
"""Pieces a second of a dripping body."""


class Server:
    """What all connections share."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.loop = asyncio.get_running_loop()
        self.objects = Objects(root)
        self.settings = settings
        self.dealer = Dealer(settings, self.loop.time())
        self._free_at = 0.0
        self._in_flight = 0
        self.reset_counts()

    def configure(self, changes: dict[str, Any]) -> None:
        """Change settings, and draw from the first request on again. Raises ValueError."""
        self.settings = self.settings.but(changes)
        self.dealer = Dealer(self.settings, self.loop.time(), self.dealer.dealt)

    # -- counts ------------------------------------------------------------------------------------

    def reset_counts(self) -> None:
        """Count from 0 again."""
        self._since = self.loop.time()
        self._requests: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self._buckets: Counter[int] = Counter()
        self.bytes_sent = 0
        self.connection_count = 0
        self._most_in_flight = self._in_flight
        self.dealer.dealt.clear()

    def counts(self) -> dict[str, Any]:
        """Return what was counted, as JSON can carry it."""
        return {
            "requests": dict(self._requests),
            "request_count": self._requests.total(),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "bytes_sent": self.bytes_sent,
            "faults": dict(self.dealer.dealt),
            "in_flight": self._in_flight,
            "most_in_flight": self._most_in_flight,
            "connection_count": self.connection_count,
            "open_upload_count": len(self.objects.uploads),
            "requests_per_100_ms": [self._buckets[at] for at in range(max(self._buckets, default=-1) + 1)],
        }

    def begin(self, request: Request) -> tuple[str | None, float]:
        """Count a request and return its fault and its latency."""
        now = self.loop.time()
        self._in_flight += 1
        self._most_in_flight = max(self._most_in_flight, self._in_flight)
        self._requests[request.operation] += 1
        self._buckets[int((now - self._since) * 10)] += 1
        return self.dealer.deal(request, now)

    def end(self) -> None:
        """Count a request as answered, or as given up by the client."""
        self._in_flight -= 1

    def reserve(self, size: int) -> float:
        """Return the seconds until so many bytes have passed the bandwidth that all share."""
        rate = self.settings.bandwidth_bytes_per_second
        if rate is None:
            return 0.0
        now = self.loop.time()
        self._free_at = max(self._free_at, now - _CREDIT_SECONDS) + size / rate
        return self._free_at - now

    def control(self, request: Request) -> Reply:
        """Answer a request about the server itself."""
        try:
            if request.method == "POST" and request.key == "reset":
                self.reset_counts()
            elif request.method == "POST":
                self.configure(json.loads(request.body))
        except (ValueError, TypeError) as cause:
            return Reply(400, {"Content-Type": "text/plain"}, str(cause).encode())
        return Reply(200, {"Content-Type": "application/json"}, json.dumps(self.counts()).encode())


class Connection(asyncio.Protocol):
    """One client's connection: one request at a time, the next once the reply is sent."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._buffer = bytearray()
        self._request: Request | None = None
        """The one whose body is coming, or that is being answered."""
        self._body_start = self._body_stop = 0
        self._is_busy = False
        self._is_lost = False
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None

    # -- what asyncio calls ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._server.connection_count += 1

    def connection_lost(self, cause: Exception | None) -> None:
        self._is_lost = True
        self.resume_writing()
        if self._task is not None:
            self._task.cancel()
        elif self._timer is not None and self._request is not None and self._request.method in ("GET", "HEAD"):
            self._timer.cancel()  # what is to be written is written all the same, as anywhere
            self._end()

    def pause_writing(self) -> None:
        self._drained = self._server.loop.create_future()

    def resume_writing(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._is_busy:
            self._take()

    # -- requests ----------------------------------------------------------------------------------

    def _take(self) -> None:
        """Begin the next request if all of it is there."""
        if self._request is None and not self._parse():
            return
        if len(self._buffer) < self._body_stop:
            return
        request = self._request
        assert request is not None
        if self._body_stop > self._body_start:
            request.body = bytes(memoryview(self._buffer)[self._body_start : self._body_stop])
        del self._buffer[: self._body_stop]
        self._is_busy = True
        if request.bucket == CONTROL:
            self._write(self._server.control(request))
            self._go_on()
            return
        kind, seconds = self._server.begin(request)
        if seconds > 0:
            self._timer = self._server.loop.call_later(seconds, self._answer, request, kind)
        else:
            self._answer(request, kind)

    def _parse(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 and len(self._buffer) < _HEAD_BYTES:
            return False
        try:
            if end < 0:
                raise Refusal(431, "RequestHeaderSectionTooLarge", "more than 64 KiB of headers")
            self._request = parse_request(bytes(self._buffer[:end]))
            length = self._request.headers.get("content-length", "0")
            if "transfer-encoding" in self._request.headers or not length.isdecimal():
                raise Refusal(411, "MissingContentLength", "a body needs Content-Length here")
        except Refusal as refusal:
            self._write(refusal.reply())
            self._is_busy = True
            self._transport.close()
            return False
        self._body_start = end + 4
        self._body_stop = self._body_start + int(length)
        if self._request.headers.get("expect", "").lower() == "100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _answer(self, request: Request, kind: str | None) -> None:
        """Carry the request out and reply, at once where nothing stands against it."""
        server = self._server
        self._timer = None
        try:
            if kind is not None:
                if kind == "reset_before_headers":
                    self._reset()
                    self._end()
                    return
                if (refusal := refuse(kind, request, server.settings)) is not None:
                    raise refusal
                lead_astray(kind, request)
            reply = answer(server.objects, request, server.settings)
            if kind is not None:
                alter(kind, reply, server.dealer.number)
        except Refusal as refusal:
            reply = refusal.reply()
        except Exception as cause:  # ours to mend; the client must not wait for it
            server.loop.call_exception_handler({"message": f"{request.method} {request.target}", "exception": cause})
            reply = Refusal(500, "InternalError", repr(cause)).reply()
        if request.method == "HEAD" and reply.body:
            reply.headers["Content-Length"], reply.body = str(reply.length), b""
        if self._is_lost:
            self._finish(reply)
            return
        server.statuses[reply.status] += 1
        if kind is None and reply.file is None and server.settings.bandwidth_bytes_per_second is None:
            self._write(reply)
            self._end()
        else:
            self._task = server.loop.create_task(self._send(reply, kind))
            self._task.add_done_callback(lambda task: self._finish(reply, task))

    def _write(self, reply: Reply) -> None:
        if not self._is_lost:
            self._transport.write(reply.head() + reply.body)
            self._server.bytes_sent += len(reply.body)

    def _end(self) -> None:
        self._server.end()
        self._go_on()

    def _go_on(self) -> None:
        request = self._request
        self._request = self._task = None
        if self._is_lost:
            return
        if request is not None and request.headers.get("connection", "").lower() == "close":
            self._transport.close()
            return
        self._is_busy = False
        if self._buffer:
            # Not at once: a client that sends many requests ahead would make this a deep recursion.
            self._server.loop.call_soon(self._take_if_idle)

    def _take_if_idle(self) -> None:
        if not self._is_busy and not self._is_lost:
            self._take()

    # -- replies that take their time, and faulty ones ---------------------------------------------

    async def _send(self, reply: Reply, kind: str | None) -> None:
        if kind == "short_body_without_length":
            reply.headers["Connection"] = "close"
            await self._send_part(_without_length(reply), reply, 0, reply.length // 2)
            self._transport.close()
        elif kind in ("reset_in_headers", "reset_in_body", "reply_lost", "short_body"):
            await self._break_off(reply, kind)
        elif kind in ("drip", "stall"):
            await self._dawdle(reply, kind)
        else:
            await self._send_part(reply.head(), reply, 0, reply.length)
            if kind == "bytes_after_body":
                self._transport.write(b"surplus")

    def _finish(self, reply: Reply, task: asyncio.Task[None] | None = None) -> None:
        """End a request whose reply is sent, or whose client has gone, which is all that cancels a task."""
        reply.close()
        if task is not None and not task.cancelled() and (cause := task.exception()) is not None:
            self._server.loop.call_exception_handler({"message": "a reply could not be sent", "exception": cause})
            self._transport.abort()
        self._end()

    async def _send_part(self, head: bytes, reply: Reply, start: int, stop: int) -> None:
        """Send a head and [start, stop) of the body, as quickly as bandwidth and client allow."""
        self._transport.write(head)
        for piece in reply.pieces(start, stop, _PIECE):
            if (seconds := self._server.reserve(len(piece))) > 0.0005:
                await asyncio.sleep(seconds)
            self._transport.write(piece)
            self._server.bytes_sent += len(piece)
            if self._drained is not None:
                await self._drained

    async def _break_off(self, reply: Reply, kind: str) -> None:
        head = reply.head()
        if kind == "reset_in_headers":
            self._transport.write(head[: len(head) // 2])
        elif kind != "reply_lost":
            await self._send_part(head, reply, 0, reply.length // 2)
        if kind == "short_body":
            self._transport.close()
            return
        await asyncio.sleep(0.005)  # a reset overtakes what is not delivered yet
        self._reset()

    async def _dawdle(self, reply: Reply, kind: str) -> None:
        settings = self._server.settings
        if kind == "stall":
            head, half = reply.head(), reply.length // 2
            if half:
                await self._send_part(head, reply, 0, half)
                head = b""
            await asyncio.sleep(settings.stall_seconds)
            await self._send_part(head, reply, half, reply.length)
            return
        self._transport.write(reply.head())
        step = max(int(settings.drip_bytes_per_second / _DRIPS), 1)
        for at in range(0, reply.length, step):
            await asyncio.sleep(step / settings.drip_bytes_per_second)
            await self._send_part(b"", reply, at, min(at + step, reply.length))

    def _reset(self) -> None:
        """End the connection with RST."""
        sock = self._transport.get_extra_info("socket")
        if sock is not None and not self._is_lost:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _without_length(reply: Reply) -> bytes:
    lines = reply.head().split(b"\r\n")
    return b"\r\n".join(line for line in lines if not line.lower().startswith(b"content-length:"))
