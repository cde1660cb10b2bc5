"""Faults at one chosen call that changes the disk, in this process or in one that dies of it.

`commit.system` is the one place where the package changes a disk; `Seam` stands in for it. Processes
to be killed are forked by a small server (`python -m tests.crashes`), so that one costs milliseconds.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shufflestore as ss
from shufflestore.errors import ShuffleStoreError
from shufflestore.storage import commit
from tests import stores

OPS = ("open", "write", "fsync", "link", "unlink", "mkdir", "utime")


class Seam(commit.SystemCalls):
    """Numbers the calls that change a disk, whatever thread makes them, and hands each to `around`."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.ops: list[str] = []

    def around(self, number: int, op: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        return call(*arguments)


def _watched(op: str) -> Callable[..., Any]:
    plain = getattr(commit.SystemCalls, op)

    def watched(self: Seam, *arguments: Any) -> Any:
        with self.lock:
            number = len(self.ops)
            self.ops.append(op)
        return self.around(number, op, arguments, lambda *given: plain(self, *given))

    return watched


for _op in OPS:
    setattr(Seam, _op, _watched(_op))


class DieAt(Seam):
    """Sends this process a signal at one call: before it, or halfway through a write."""

    def __init__(self, at: int, when: str, number: int = signal.SIGKILL) -> None:
        super().__init__()
        self.at, self.when, self.signal = at, when, number

    def around(self, number: int, op: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        if number != self.at:
            return call(*arguments)
        done = None
        if self.when == "torn" and op == "write":
            done = call(arguments[0], arguments[1][: len(arguments[1]) // 2])
        os.kill(os.getpid(), self.signal)
        return call(*arguments) if done is None else done


def do(job: dict[str, Any]) -> None:
    """Do what a job says, in this process."""
    if job["do"] == "convert":
        options = stores.small(job.get("workers", 1))
        ss.convert(job["source"], job["target"], if_exists=job["if_exists"], options=options)
    elif job["do"] == "write":
        with ss.Writer(job["target"], stores.SCHEMA, job["if_exists"], options=stores.small().shards) as writer:
            for record in stores.records(job["start"], job["count"]):
                writer.write(record)
    else:
        raise ValueError(job)


@dataclass(frozen=True)
class Outcome:
    """How a forked process ended."""

    status: int
    error: str
    """Class and message of the error it ended with, if it did."""

    @property
    def was_killed(self) -> bool:
        return os.WIFSIGNALED(self.status) and os.WTERMSIG(self.status) == signal.SIGKILL

    @property
    def was_stopped(self) -> bool:
        return os.WIFSTOPPED(self.status)

    @property
    def is_good(self) -> bool:
        return self.status == 0


class Forks:
    """Forks processes of jobs from a warm one that has no threads."""

    def __enter__(self) -> Forks:
        root = Path(__file__).resolve().parents[1]
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.crashes"], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait(30)

    def start(self, job: dict[str, Any]) -> int:
        """Begin a job; return the process's id."""
        return int(self._ask({"start": job}))

    def wait(self, pid: int) -> Outcome:
        """Wait until a process has ended or stopped."""
        return Outcome(*self._ask({"wait": pid}))

    def run(self, job: dict[str, Any]) -> Outcome:
        return self.wait(self.start(job))

    def _ask(self, question: dict[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _serve() -> None:
    # Loaded once, before the first fork; pandas because pyarrow loads it when it is there.
    for module in ("shufflestore.convert.sources.jsonl", "shufflestore.convert.sources.parquet", "pandas"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    pipes: dict[int, int] = {}
    for line in sys.stdin:
        question = json.loads(line)
        if "start" in question:
            reading, writing = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                _run_and_exit(question["start"], writing)
            os.close(writing)
            pipes[pid] = reading
            answer: Any = pid
        else:
            pid, status = os.waitpid(question["wait"], os.WUNTRACED)
            error = ""
            if not os.WIFSTOPPED(status):
                with os.fdopen(pipes.pop(pid)) as told:
                    error = told.read()
            answer = [status, error]
        print(json.dumps(answer), flush=True)


def _run_and_exit(job: dict[str, Any], writing: int) -> None:
    code = 1
    try:
        if "die_at" in job:
            number = getattr(signal, job.get("signal", "SIGKILL"))
            commit.system = DieAt(job["die_at"], job.get("when", "before"), number)
        do(job)
        code = 0
    except BaseException as error:
        os.write(writing, f"{type(error).__name__}: {error}".encode())
        code = 3 if isinstance(error, ShuffleStoreError) else 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    _serve()
