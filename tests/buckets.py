"""What lies in an object store, as files, and how tests get there."""

from __future__ import annotations

import logging
import random
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from obstore.exceptions import AlreadyExistsError, GenericError, NotFoundError, PermissionDeniedError
from werkzeug.serving import make_server

from shufflestore.errors import StorageError
from shufflestore.storage.commit import TemporaryFile
from shufflestore.storage.remote_target import RemoteTarget
from shufflestore.storage.targets import target_at
from shufflestore.storage.upload import Bucket

FOLDERS = ("", ".convert", "rows", "shards", "snapshots")


def mirror(uri: str, options: dict[str, Any], folder: Path) -> Path:
    """Copy what lies at a prefix into a folder, one object a file; return the folder."""
    target = target_at(uri, options)
    for inner in FOLDERS:
        for one in target.files(inner):
            (folder / one.name).parent.mkdir(parents=True, exist_ok=True)
            (folder / one.name).write_bytes(target.read(one.name))
    return folder


def names(uri: str, options: dict[str, Any]) -> set[str]:
    """The names of all that lies at a prefix."""
    target = target_at(uri, options)
    return {one.name for inner in FOLDERS for one in target.files(inner)}


BUCKET = "bucket"
KEY = {"access_key_id": "test", "secret_access_key": "test", "region": "us-east-1"}


@contextmanager
def serve(refuse: Callable[[dict[str, Any]], str] = lambda environ: "") -> Iterator[str]:
    """Run an S3 server on loopback that keeps one empty bucket in memory; give its address.

    Args:
        refuse: Asked about each request, by its WSGI environment: the status to answer instead, such as "503 Slow Down".
    """
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    application = DomainDispatcherApplication(create_backend_app)

    def answer(environ: dict[str, Any], start: Any) -> Any:
        if status := refuse(environ):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(status, [("Content-Length", "0")])
            return [b""]
        return application(environ, start)

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    thread = threading.Thread(target=server.serve_forever, name="buckets", daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.port}"
    try:
        with urllib.request.urlopen(urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT"), timeout=60):
            yield endpoint
    finally:
        server.shutdown()
        thread.join(timeout=60)
        server.server_close()


def options(endpoint: str) -> dict[str, Any]:
    """The storage_options by which the server is reached."""
    return {"endpoint": endpoint, **KEY}


def variables(endpoint: str) -> dict[str, str]:
    """The environment variables that say the same."""
    return {"AWS_ENDPOINT_URL": endpoint, **{f"AWS_{name.upper()}": value for name, value in KEY.items()}}


FAULTS = (
    "refused", "reset", "lost", "denied", "conflict", "flipped", "short", "dropped", "unseen", "stale",
)  # fmt: skip


class FaultyBucket(Bucket):
    """A bucket some of whose requests fail, each in a way that suits it."""

    def __init__(self, uri: str, how: dict[str, Any], faults: Sequence[str], rate: float, seed: int) -> None:
        super().__init__(uri, how)
        self.faults, self.rate = faults, rate
        self.random = random.Random(seed)
        self.lock = threading.Lock()
        self.lists: dict[str, Any] = {}
        self.done: Counter[str] = Counter()
        self.asked = 0

    def _ask(self, call: str, name: str, *arguments: Any, **options: Any) -> Any:
        with self.lock:
            self.asked += 1
            suitable = [fault for fault in self.faults if call in SUITS[fault]]
            fault = self.random.choice(suitable) if suitable and self.random.random() < self.rate else ""
            is_create = options.get("mode") == "create"
            if (fault == "conflict" and not is_create) or (
                fault in ("flipped", "short") and is_create and self.rate > 0.3
            ):
                fault = ""  # what is stored damaged must be removed again, which then fails too often
            self.done[fault] += bool(fault)
        return self._answer(fault, call, name, arguments, options)

    def _answer(self, fault: str, call: str, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        ask = super()._ask
        if fault == "refused":
            raise GenericError("Server returned error response: status code: 503 Slow Down")
        if fault == "reset":
            raise GenericError("connection reset by peer")
        if fault == "denied":
            raise PermissionDeniedError("ExpiredToken")
        if fault == "conflict":
            raise AlreadyExistsError("409 ConditionalRequestConflict")
        if fault == "unseen":
            raise NotFoundError("404")
        if fault == "stale" and name in self.lists:
            return self.lists[name]
        if call == "put" and fault in ("flipped", "short"):
            arguments = (self.damaged(fault, arguments[0]), *arguments[1:])
        if fault == "dropped":
            return {"e_tag": '"0123456789abcdef0123456789abcdef"', "version": None}
        found = ask(call, name, *arguments, **options)
        if fault == "lost":
            raise GenericError("connection closed before message completed")
        if call == "get" and fault in ("flipped", "short"):
            return found[0], self.damaged(fault, bytes(found[1]))
        if call == "list_with_delimiter":
            self.lists[name] = found
        return found

    def damaged(self, fault: str, body: bytes | Path) -> bytes:
        data = bytearray(body if isinstance(body, bytes) else body.read_bytes())
        if fault == "short" or not data:
            return bytes(data[: len(data) // 2])
        with self.lock:
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return bytes(data)


SUITS: dict[str, set[str]] = {
    "refused": {"put", "get", "get_range", "head", "list_with_delimiter", "delete"},
    "reset": {"put", "get", "get_range", "head", "list_with_delimiter", "delete"},
    "lost": {"put", "delete"},
    "denied": {"put", "get", "head", "list_with_delimiter", "delete"},
    "conflict": {"put"},
    "flipped": {"put", "get"},
    "short": {"put", "get"},
    "dropped": {"put"},
    "unseen": {"get", "head"},
    "stale": {"list_with_delimiter"},
}
"""Which requests can fail how: refused or reset before they count, answered and lost, served wrong, not seen yet."""


class FaultyTarget(RemoteTarget):
    """A target whose store fails, and that looks at each local copy as it goes: the store must have it all by then."""

    def __init__(self, uri: str, how: dict[str, Any], staging: Path, bucket: FaultyBucket) -> None:
        super().__init__(uri, how, staging)
        self._bucket = bucket
        self._sound = Bucket(uri, how)
        self.kept = 0

    def publish_file(self, file: TemporaryFile, name: str, renews: bool = False) -> bool:
        data = file.path.read_bytes()
        try:
            found = super().publish_file(file, name, renews)
        except StorageError as error:
            (copy,) = (path for path in self._staging.iterdir() if path.name.endswith(name.rpartition("/")[2]))
            assert copy.read_bytes() == data, "the local copy of what was not sent is kept"
            assert str(copy) in str(error)  # noqa: PT017 - it goes on its way below
            copy.unlink()
            self.kept += 1
            raise
        assert self._sound.read(name) == data, "the local copy went before the store had it"
        assert not file.path.exists()
        return found
