"""Durable publish: whole or absent, whichever system call fails or is the last one."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shufflestore.errors import OutOfSpace, StorageError
from shufflestore.storage import commit
from shufflestore.storage.commit import SystemCalls, TemporaryFile, publish, publish_file, remove, sweep

CALLS = [name for name in vars(SystemCalls) if not name.startswith("_")]
CONTENT = [b"first", memoryview(b"second"), bytes(100_000)]
WHOLE = b"".join(bytes(part) for part in CONTENT)


class Recorded(SystemCalls):
    """The real calls, each written down; the k-th one is handed to `fault` first."""

    def __init__(self, k: int = -1, fault: Callable[[str], None] = lambda name: None) -> None:
        self.names: list[str] = []
        self._k, self._fault = k, fault

    def __getattribute__(self, name: str):
        real = super().__getattribute__(name)
        if name not in CALLS:
            return real

        def call(*arguments):
            self.names.append(name)
            if len(self.names) - 1 == self._k:
                self._fault(name)
            return real(*arguments)

        return call


def fails_with(number: int) -> Callable[[str], None]:
    def fault(name: str) -> None:
        raise OSError(number, os.strerror(number))

    return fault


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Recorded]:
    def install(*arguments) -> Recorded:
        made = Recorded(*arguments)
        monkeypatch.setattr(commit, "system", made)
        return made

    return install


def test_the_name_appears_after_the_bytes_are_synced_and_before_the_folder_is(tmp_path: Path, record):
    calls = record()
    assert publish(tmp_path / "name", CONTENT)
    assert (tmp_path / "name").read_bytes() == WHOLE
    assert os.listdir(tmp_path) == ["name"]
    synced = [i for i, name in enumerate(calls.names) if name == "fsync"]
    linked = calls.names.index("link")
    assert max(i for i, name in enumerate(calls.names) if name == "write") < synced[0] < linked < synced[1]


def test_a_taken_name_is_left_alone(tmp_path: Path):
    (tmp_path / "name").write_bytes(b"mine")
    assert not publish(tmp_path / "name", b"theirs")
    assert (tmp_path / "name").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["name"]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_whichever_call_fails_the_name_is_whole_or_absent_and_nothing_is_left(tmp_path: Path, record, number: int):
    calls = record()
    publish(tmp_path / "measure", CONTENT)
    for k in range(len(calls.names)):
        folder = tmp_path / f"{number}-{k}"
        folder.mkdir()
        faulty = record(k, fails_with(number))
        failure = None
        try:
            assert publish(folder / "name", CONTENT)
        except StorageError as error:
            failure = error
        name = faulty.names[k]
        if number in (errno.ENOSPC, errno.EDQUOT):
            assert failure is None or isinstance(failure, OutOfSpace)
        # After the link is there, an error may be raised with the name in place: whole, and perhaps not durable.
        assert (folder / "name").exists() <= ((folder / "name").exists() and (folder / "name").read_bytes() == WHOLE)
        assert failure or name in ("close", "unlink"), f"call {k}, {name}: the failure was swallowed"
        left = [entry for entry in os.listdir(folder) if entry.startswith(commit.TEMPORARY)]
        assert left == [] or name == "unlink"


def test_a_failed_fsync_is_never_repeated(tmp_path: Path, record):
    calls = record()
    publish(tmp_path / "measure", b"x")
    first = calls.names.index("fsync")
    faulty = record(first, fails_with(errno.EIO))
    with pytest.raises(StorageError, match="fsync"):
        publish(tmp_path / "name", b"x")
    assert faulty.names.count("fsync") == 1
    assert os.listdir(tmp_path) == ["measure"]


def test_calls_that_a_signal_interrupts_are_repeated(tmp_path: Path, record):
    calls = record()
    publish(tmp_path / "measure", CONTENT)
    for k, name in enumerate(calls.names):
        if name != "close":  # which must not be repeated: the descriptor is gone
            record(k, fails_with(errno.EINTR))
            assert publish(tmp_path / f"name-{k}", CONTENT)


def test_no_room_names_the_bytes_that_are_wanted(tmp_path: Path, record):
    calls = record()
    publish(tmp_path / "measure", bytes(5_000))
    record(calls.names.index("write"), fails_with(errno.ENOSPC))
    with pytest.raises(OutOfSpace, match="5,000"):
        publish(tmp_path / "name", bytes(5_000))


def test_a_link_whose_reply_was_lost_has_succeeded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Lossy(SystemCalls):
        def link(self, source: str, target: str) -> None:
            os.link(source, target)
            raise FileExistsError(errno.EEXIST, "sent twice", target)

    monkeypatch.setattr(commit, "system", Lossy())
    assert publish(tmp_path / "name", b"mine")
    assert (tmp_path / "name").read_bytes() == b"mine"
    assert os.listdir(tmp_path) == ["name"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Short(SystemCalls):
        def write(self, fd: int, data: memoryview) -> int:
            return os.write(fd, data[:7])

    monkeypatch.setattr(commit, "system", Short())
    assert publish(tmp_path / "name", b"0123456789" * 5)
    assert (tmp_path / "name").read_bytes() == b"0123456789" * 5


def test_a_process_that_dies_at_any_call_leaves_whole_or_nothing_and_the_sweep_cleans_up(tmp_path: Path, record):
    calls = record()
    publish(tmp_path / "measure", CONTENT)
    (tmp_path / "measure").unlink()
    for k in range(len(calls.names)):
        folder = tmp_path / str(k)
        folder.mkdir()
        child = os.fork()
        if child == 0:
            commit.system = Recorded(k, lambda name: os._exit(7))
            publish(folder / "name", CONTENT)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        commit.system = SystemCalls()
        if (folder / "name").exists():
            assert (folder / "name").read_bytes() == WHOLE
        sweep(tmp_path)
        assert set(os.listdir(folder)) <= {"name"}


def test_a_file_written_elsewhere_is_published_when_synced(tmp_path: Path):
    file = TemporaryFile(tmp_path)
    file.write(b"abc")
    assert file.tell() == 3
    assert [name.startswith(commit.TEMPORARY) for name in os.listdir(tmp_path)] == [True]
    file.sync()
    assert publish_file(file, tmp_path / "name")
    assert os.listdir(tmp_path) == ["name"]
    file.abandon()
    assert (tmp_path / "name").read_bytes() == b"abc"


def test_the_sweep_spares_files_of_the_living_and_young_ones_of_other_machines(tmp_path: Path):
    mine = TemporaryFile(tmp_path)
    young, old = tmp_path / ".tmp-0badcafe-1-x", tmp_path / ".tmp-0badcafe-2-x"
    for path in (young, old):
        path.write_bytes(b"12345")
    os.utime(old, (time.time() - 200_000,) * 2)
    assert sweep(tmp_path) == 5
    assert sorted(os.listdir(tmp_path)) == sorted([young.name, mine.path.name])
    mine.abandon()


def test_many_processes_that_publish_one_name_agree_on_one_winner(tmp_path: Path):
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from shufflestore.storage.commit import publish
        sys.stdin.readline()
        print(publish(Path(sys.argv[1]), sys.argv[2].encode() * 1000))
    """)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "name"), str(i)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for i in range(4)
    ]  # fmt: skip
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.communicate(timeout=60)[0].strip() for racer in racers]
    assert sorted(said) == ["False"] * 3 + ["True"]
    assert (tmp_path / "name").read_bytes() == str(said.index("True")).encode() * 1000
    assert os.listdir(tmp_path) == ["name"]


def test_remove_may_be_repeated(tmp_path: Path):
    publish(tmp_path / "name", b"")
    remove(tmp_path / "name")
    remove(tmp_path / "name")
    assert os.listdir(tmp_path) == []
