"""A data set whose every value follows from its record's number, and programs that run apart with a deadline."""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import shufflestore as ss

ROOT = Path(__file__).parents[1]
SCALE = float(os.environ.get("SHUFFLESTORE_SCALE", "1"))
"""Multiplies the sizes of campaigns."""
KINDS = ("cat", "dog", "emu")


def table(first: int, last: int) -> pa.Table:
    """Return records [first, last): each column's value is a function of the record's number."""
    numbers = range(first, last)
    return pa.table(
        {
            "label": pa.array(numbers, pa.int64()),
            "tokens": pa.array([list(range(i, i + i % 9)) for i in numbers], pa.list_(pa.int32())),
            "pixels": pa.array([[i % 251] * 4 for i in numbers], pa.list_(pa.uint8(), 4)),
            "text": [f"record {i}" for i in numbers],
            "kind": pa.array([KINDS[i % 3] for i in numbers]).dictionary_encode(),
        }
    )


def save(folder: Path, count: int = 1_000, files: int = 4, chunk_rows: int = 64) -> Path:
    """Write a data set of several Arrow files with a row index beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, count, files + 1).astype(int).tolist()
    for i, (first, last) in enumerate(itertools.pairwise(edges)):
        made = table(first, last)
        with pa.OSFile(str(folder / f"{i}.arrow"), "wb") as sink, pa.ipc.new_file(sink, made.schema) as writer:
            writer.write_table(made, max_chunksize=chunk_rows)
    ss.index(folder)
    return folder


def files_of(folder: Path, data: dict[str, np.ndarray]) -> Path:
    """Make a folder of files that hold the arrays' bytes; return it."""
    folder.mkdir()
    for name, array in data.items():
        (folder / name).write_bytes(array.tobytes())
    return folder


def check_record(record: dict[str, Any], number: int) -> None:
    """Assert that a record as a dict is that record."""
    assert int(record["label"]) == number
    assert list(record["tokens"]) == list(range(number, number + number % 9))
    assert list(record["pixels"]) == [number % 251] * 4
    assert record["text"] == f"record {number}"
    assert record["kind"] == KINDS[number % 3]


def check_batch(batch: dict[str, Any]) -> list[int]:
    """Assert that the columns of a batch, those that there are, belong to its record_id; return that."""
    ids = [int(i) for i in batch["record_id"]]
    if "label" in batch:
        assert [int(i) for i in batch["label"]] == ids
    if "tokens" in batch:
        assert [list(map(int, t)) for t in batch["tokens"]] == [list(range(i, i + i % 9)) for i in ids]
    if "pixels" in batch:
        assert [list(map(int, p)) for p in batch["pixels"]] == [[i % 251] * 4 for i in ids]
    if "text" in batch:
        assert list(batch["text"]) == [f"record {i}" for i in ids]
    if "kind" in batch:
        assert list(batch["kind"]) == [KINDS[i % 3] for i in ids]
    return ids


def threads() -> int:
    """Return how many threads this process has, native ones too."""
    return len(os.listdir("/proc/self/task"))


def descriptors() -> int:
    """Return how many files this process has open."""
    return len(os.listdir("/proc/self/fd"))


def maps() -> int:
    """Return how many files of data sets are mapped into this process."""
    return Path("/proc/self/maps").read_text().count(".arrow")


def resident_bytes() -> int:
    """Return how much memory of its own this process has: anonymous pages, not maps of files."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) * 1024


class Held:
    """A file whose openers wait, as on a network that does not answer, until `release`."""

    def __init__(self, file: Path) -> None:
        self._file, self._aside, self._pipe = file, Path(f"{file}.aside"), Path(f"{file}.pipe")
        file.rename(self._aside)
        os.mkfifo(file)
        os.link(file, self._pipe)
        self._writer: int | None = None

    def wait_for_openers(self) -> None:
        """Return once a native thread of this process waits for the file."""
        opens = "257" if os.uname().machine == "x86_64" else "56"  # openat
        while True:
            for task in Path("/proc/self/task").iterdir():
                try:
                    is_ours = (task / "comm").read_text().startswith("shuffle-")
                    if is_ours and (task / "syscall").read_text().split()[0] == opens:
                        return
                except OSError:
                    continue  # that thread has just ended

    def restore(self) -> None:
        """Put the file back. Who waits, waits on."""
        if self._aside.exists():
            self._aside.replace(self._file)

    def release(self) -> None:
        """Let all go who wait; they find nothing to read."""
        if self._writer is None:
            self._writer = os.open(self._pipe, os.O_RDWR)

    def close(self) -> None:
        """Put everything back."""
        self.restore()
        self.release()
        if self._writer is not None:
            os.close(self._writer)


def warm_indexes(data: ss.Dataset) -> None:
    """Have all pages of the row indexes in memory, without a byte of the data files."""
    indexes = data.reading.indexes
    indexes.resolve(np.arange(len(data)), np.array([len(data)]), data.projection().wanted, True)


_PRELUDE = """
import faulthandler, sys
faulthandler.enable()
sys.path.insert(0, {root!r})
"""


def run(
    program: str, *arguments: object, seconds: int = 60, flags: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own; one that hangs shows its stacks and is killed with its children."""
    text = _PRELUDE.format(root=str(ROOT)) + textwrap.dedent(program)
    child = subprocess.Popen(
        [sys.executable, *flags, "-c", text, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/", start_new_session=True,
    )  # fmt: skip
    try:
        told, errors = child.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        child.send_signal(signal.SIGABRT)
        try:
            told, errors = child.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            told, errors = "", "and does not even abort"
        raise AssertionError(f"hangs after {seconds} s\n{told[-4000:]}\n{errors[-8000:]}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(arguments, child.returncode, told, errors)


def good(done: subprocess.CompletedProcess[str]) -> str:
    """Return what a program printed; assert that it ended well and complained of nothing."""
    assert (done.returncode, done.stderr) == (0, ""), f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def child_code(work: Callable[[], None], seconds: int = 60) -> int:
    """Fork; do some work in the child, which shows its stacks and dies if it hangs; return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(_child(work, seconds), 0)[1])


@contextlib.contextmanager
def later_child(work: Callable[[], None], seconds: int = 60) -> Iterator[Callable[[], int]]:
    """Fork now; what is yielded lets the child do its work, and returns its exit code."""
    wait, go = os.pipe()

    def waited() -> None:
        os.close(go)  # so that a parent that fails ends the wait
        os.read(wait, 1)
        work()

    child = _child(waited, seconds)

    def code() -> int:
        os.write(go, b"!")
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    try:
        yield code
    finally:
        os.close(go)
        os.close(wait)


def _child(work: Callable[[], None], seconds: int) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            # Not dump_traceback_later: in a child it would wait for the thread that its parent had for it.
            faulthandler.register(signal.SIGALRM, file=sys.__stderr__, chain=True)
            signal.alarm(seconds)
            work()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)
    return child
