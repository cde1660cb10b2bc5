"""B2: any one call that changes the disk fails, is cut short or interrupted: nothing committed is harmed, a second try works."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from shufflestore.errors import OutOfSpace, ShuffleStoreError, StorageError
from shufflestore.storage import commit
from tests import layouts, stores
from tests.crashes import Seam, do

FAULTS = ("EIO", "ENOSPC", "EDQUOT", "EINTR", "short")
HARMLESS = ("EINTR", "short")
SWALLOWED = ("unlink",)
"""Of a temporary file: what comes of it is a file that a sweep removes, not a failed conversion."""


class Faulty(Seam):
    """Fails at one call, and remembers what was synced, linked and failed."""

    def __init__(self, at: int, fault: str) -> None:
        super().__init__()
        self.at, self.fault = at, fault
        self.failed: tuple[str, str] | None = None
        self.synced: list[str] = []
        self.linked: list[str] = []

    def around(self, number, op, arguments, call):
        place = os.readlink(f"/proc/self/fd/{arguments[0]}") if op in ("write", "fsync") else str(arguments[0])
        with self.lock:
            if op == "fsync":
                self.synced.append(place)
            if op == "link":
                self.linked.append(place)
        if number == self.at:
            if self.fault == "short":
                return (
                    call(arguments[0], arguments[1][: max(1, len(arguments[1]) // 3)])
                    if op == "write"
                    else call(*arguments)
                )
            self.failed = (op, place)
            code = getattr(errno, self.fault)
            raise OSError(code, os.strerror(code))
        return call(*arguments)


@pytest.fixture(scope="module")
def made():
    with layouts.memory_home() as home:
        yield {name: layouts.make(name, home / name) for name in layouts.LAYOUTS}


def fail_and_try_again(layout: layouts.Layout, at: int, fault: str, monkeypatch) -> str:
    target = layout.fresh("victim")
    seam = Faulty(at, fault)
    error = None
    with monkeypatch.context() as patched:
        patched.setattr(commit, "system", seam)
        try:
            do(layout.job_at(target))
        except ShuffleStoreError as raised:
            error = raised
    assert threads_of_shards() == 0, "no thread is left behind"
    layout.check_readers(target)
    if fault in HARMLESS or seam.failed is None:
        assert error is None, "a signal or a short write is no failure"
        layout.check_recovered(target)
        return "unharmed"
    op, place = seam.failed
    check_temporaries(target, place if op == "unlink" else None)
    if error is None:
        assert op in SWALLOWED, f"{op} of {place} failed and nobody was told"
        assert stores.seen(target) == layout.after
        return "swallowed"
    check_error(error, fault, target)
    if op == "fsync":
        assert seam.synced.count(place) == 1 or Path(place).is_dir(), "a failed fsync must not be tried again"
        assert place not in seam.linked, "what was not synced must get no name"
        assert Path(place).is_dir() or not Path(place).exists()
    layout.recover(target)
    assert stores.seen(target) == layout.after
    if layout.job["do"] == "convert" and op != "unlink":
        layout.check_recovered(target)
    return "refused"


def threads_of_shards() -> int:
    return sum(t.name.startswith("shufflestore-seal") for t in threading.enumerate())


def check_temporaries(target: Path, stuck: str | None) -> None:
    found = [str(p) for p in target.rglob(f"{commit.TEMPORARY}*")] if target.exists() else []
    assert found in ([], [stuck]), "a failed conversion removes its temporary files"


def check_error(error: ShuffleStoreError, fault: str, target: Path) -> None:
    """The error is of its family, names a file and says what to do."""
    text = str(error)
    assert isinstance(error, OutOfSpace if fault in ("ENOSPC", "EDQUOT") else StorageError), repr(error)
    assert str(target.parent) in text
    assert "resume" in text or "run it again" in text
    assert os.strerror(getattr(errno, fault)) in text


def test_a_failing_call_harms_nothing_that_was_committed_and_the_second_try_works(made, monkeypatch):
    every = [(name, at) for name in made for at, op in enumerate(made[name].ops) if op != "write" and name != "splits"]
    chosen = [(name, at, fault) for name, at in random.Random(2).sample(every, 30) for fault in ("EIO", "ENOSPC")]
    writes = [(name, at) for name in made for at, op in enumerate(made[name].ops) if op == "write"]
    chosen += [(name, at, fault) for name, at in random.Random(3).sample(writes, 4) for fault in FAULTS]
    chosen += [(name, len(made[name].ops) - back, "EIO") for name in made for back in range(1, 9)]
    outcomes = Counter(fail_and_try_again(made[name], at, fault, monkeypatch) for name, at, fault in chosen)
    assert set(outcomes) == {"refused", "swallowed", "unharmed"}


@pytest.mark.campaign
@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_each_call_failing_in_each_way_harms_nothing(made, name, monkeypatch, capsys):
    layout = made[name]
    totals: Counter[str] = Counter()
    for at, op in enumerate(layout.ops):
        faults = FAULTS if op == "write" else [f for f in FAULTS if f != "short"]
        # Writes are many and alike: every third gets all faults, the others the two that matter most.
        for fault in faults if op != "write" or at % 3 == 0 else ("EIO", "ENOSPC"):
            totals[fail_and_try_again(layout, at, fault, monkeypatch)] += 1
    with capsys.disabled():
        print(f"\nB2 {name}: {len(layout.ops)} calls, {sum(totals.values())} runs, 0 damaged: {dict(totals)}")


def test_a_failed_fsync_of_a_shard_gives_it_up_and_a_second_conversion_writes_a_new_one(tmp_path, monkeypatch):
    """After a failed fsync Linux calls the pages clean; trying again would succeed and lie."""
    source = stores.jsonl(tmp_path / "x.jsonl", 0, 60)
    failed: list[str] = []

    class FirstSyncFails(Seam):
        def around(self, number, op, arguments, call):
            if op == "fsync" and "shards/" in (place := os.readlink(f"/proc/self/fd/{arguments[0]}")) and not failed:
                failed.append(place)
                raise OSError(errno.EIO, "Input/output error")
            if op == "link":
                assert arguments[0] not in failed
            return call(*arguments)

    monkeypatch.setattr(commit, "system", FirstSyncFails())
    job = {"do": "convert", "source": str(source), "target": str(tmp_path / "out"), "if_exists": "error"}
    with pytest.raises(StorageError, match=r"fsync failed: Input/output error.*resume"):
        do(job)
    assert failed
    assert not Path(failed[0]).exists()
    do({**job, "if_exists": "resume"})
    assert stores.ids(tmp_path / "out") == list(range(60))
    assert not stores.leftovers(tmp_path / "out")


def write_all(writer, count):
    for record in stores.records(0, count):
        writer.write(record)


def test_an_error_of_the_disk_leaves_a_writer_that_neither_takes_more_nor_commits(tmp_path, monkeypatch):
    class FullAfter(Seam):
        written = 0

        def around(self, number, op, arguments, call):
            if op == "write":
                self.written += len(arguments[1])
                if self.written > 20_000:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return call(*arguments)

    target = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(commit, "system", FullAfter())
        writer = stores.ss.Writer(target, stores.SCHEMA, options=stores.small().shards)
        writer._builder._batch_bytes = 1_000
        with pytest.raises(OutOfSpace, match="make room"):
            write_all(writer, 5_000)
    with pytest.raises(StorageError, match="failed before"):
        writer.write(next(stores.records(0, 1)))
    with pytest.raises(StorageError, match=r"nothing was\s+committed"):
        writer.close()
    assert stores.snapshots(target) == []
    assert not stores.leftovers(target)
