"""The server as a process of its own, and the handle by which tests and benchmarks hold it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import json
import os
import resource
import selectors
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

from benchmarks.harness.object_store.faults import Settings
from benchmarks.harness.object_store.wire import CONTROL, Connection, Server

__all__ = ["ObjectStore", "main"]

_ROOT: Final = Path(__file__).resolve().parents[3]
_PATIENCE_SECONDS: Final = 30.0
"""For the process to start, and for an answer about itself."""


class ObjectStore:
    """An object store on loopback, as slow and as faulty as wanted. A context manager.

    It speaks HTTP/1.1: GET (ranges, conditions), HEAD, PUT and DELETE of /bucket/key, ListObjectsV2, multipart uploads, copies
    and bulk deletes as S3 has them. Signatures are not looked at, so any keys will do. Each folder under `root` is a bucket, each
    file below it an object; files may be changed while it runs. The process ends with the `with` block, or with this one.

    Example:
        with ObjectStore(folder, latency_seconds=0.01, faults={"slow_down": 0.05}) as store:
            S3Store("bucket", endpoint=store.endpoint, skip_signature=True, client_options={"allow_http": True})
    """

    def __init__(self, root: Path, **settings: Any) -> None:
        """Keep the settings; nothing starts yet.

        Args:
            root: The folder of buckets. Made if it is not there.
            settings: Fields of `Settings`; `faults` may be a mapping of kind to rate.

        Raises:
            ValueError: A setting or a fault is none.
        """
        self._root = root
        self._settings = Settings().but(settings)
        self._process: subprocess.Popen[str] | None = None
        self._port = 0

    def __enter__(self) -> ObjectStore:
        told = json.dumps(self._settings.as_dict())
        command = [sys.executable, "-m", "benchmarks.harness.object_store", "--root", str(self._root.absolute())]
        self._process = subprocess.Popen(
            [*command, "--settings", told, "--until-stdin-ends"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert self._process.stdout is not None
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                line = self._process.stdout.readline() if selector.select(_PATIENCE_SECONDS) else ""
            if not line.strip().isdecimal():
                raise RuntimeError(f"the object store said {line!r} instead of its port; its errors are on stderr")
            self._port = int(line)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait(_PATIENCE_SECONDS)
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()

    @property
    def endpoint(self) -> str:
        """Return "http://127.0.0.1:PORT"."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """Return the id of the process."""
        if self._process is None:
            raise RuntimeError("the object store is not running: use it in a `with` block")
        return self._process.pid

    def configure(self, **settings: Any) -> None:
        """Change settings of the running server; those not named stay. Draws and `total_seconds` begin anew.

        Raises:
            ValueError: A setting or a fault is none.
        """
        self._settings = self._settings.but(settings)
        changed = self._settings.as_dict()
        self._ask("POST", "", json.dumps({name: changed[name] for name in settings}))

    def counts(self) -> dict[str, Any]:
        """Return what was counted since the start or `reset_counts`.

        requests (by GET, HEAD, LIST, PUT, POST, DELETE), request_count, statuses (by "206" and so on; none for a reset before
        headers), bytes_sent (of bodies), faults (by kind), in_flight, most_in_flight, connection_count, open_upload_count, and
        requests_per_100_ms, a list from the moment of the reset to the last request.
        """
        return self._ask("GET", "")

    def reset_counts(self) -> None:
        """Count from 0 again."""
        self._ask("POST", "reset")

    def _ask(self, method: str, what: str, body: str = "") -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_SECONDS)
        try:
            connection.request(method, f"/{CONTROL}/{what}", body)
            answer = connection.getresponse()
            told = answer.read()
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(told.decode())
        counted: dict[str, Any] = json.loads(told)
        return counted


async def _serve(root: Path, settings: Settings, port: int, until_stdin_ends: bool) -> None:
    loop = asyncio.get_running_loop()
    server = Server(root, settings)
    listening = await loop.create_server(lambda: Connection(server), "127.0.0.1", port, backlog=4096)
    ended = asyncio.Event()

    def read() -> None:
        if not os.read(sys.stdin.fileno(), 1024):
            ended.set()

    if until_stdin_ends:  # which it does too where whoever started this was killed
        loop.add_reader(sys.stdin.fileno(), read)
    print(listening.sockets[0].getsockname()[1], flush=True)
    gc.collect()
    gc.freeze()
    await ended.wait()
    os._exit(0)  # connections are open, replies are waiting: nobody is there to care


def main(arguments: list[str] | None = None) -> None:
    """Serve until killed. The first line printed is the port."""
    parser = argparse.ArgumentParser(prog="benchmarks.harness.object_store", description=__doc__)
    parser.add_argument("--root", type=Path, required=True, help="the folder of buckets")
    parser.add_argument("--port", type=int, default=0, help="any free one if not given")
    parser.add_argument("--settings", type=json.loads, default={}, metavar="JSON", help="fields of Settings")
    parser.add_argument("--until-stdin-ends", action="store_true", help="end once standard input does")
    given = parser.parse_args(arguments)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    asyncio.run(_serve(given.root, Settings().but(given.settings), given.port, given.until_stdin_ends))
