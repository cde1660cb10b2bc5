"""F4: a disk that fills up at any byte: the error says how much is needed, nothing is left, and it goes on once there is room."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest

import shufflestore as ss
from shufflestore.convert.journal import Journal
from shufflestore.errors import OutOfSpace
from shufflestore.storage import commit
from tests import layouts, stores
from tests.crashes import Seam


class Full(Seam):
    """A disk with room for so many bytes; removing a file gives its bytes back."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def around(self, number, op, arguments, call):
        if op == "write":
            with self.lock:
                fits = min(len(arguments[1]), self.room)
                if fits == 0:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.room -= fits
            return call(arguments[0], arguments[1][:fits])  # the kernel writes what fits
        if op == "unlink" and os.path.exists(arguments[0]) and os.stat(arguments[0]).st_nlink == 1:
            self.room += os.stat(arguments[0]).st_size
        return call(*arguments)


def endless_source():
    """Records whose number is not known before, so that no look at the free space can say no."""
    return stores.records(0, 1_500)


def convert(target, mode="error"):
    return ss.convert(
        endless_source, target, schema=stores.SCHEMA, if_exists=mode, options=stores.small(shard_bytes=40_000)
    )


def check_error(error: pytest.ExceptionInfo[OutOfSpace], target: Path) -> None:
    text = str(error.value)
    assert str(target) in text
    assert re.search(r"[\d,]+ bytes more are needed|[\d,]+ bytes are to be written", text) or "mkdir" in text, text
    assert "make room" in text


def fill_and_go_on(target: Path, rooms: list[int], monkeypatch) -> int:
    """Run out of space with each amount of room, on top of what is there; then finish. Returns how often."""
    refused = 0
    for room in rooms:
        with monkeypatch.context() as patched:
            patched.setattr(commit, "system", Full(room))
            with pytest.raises(OutOfSpace) as error:
                convert(target, "resume")
        check_error(error, target)
        assert not list(target.rglob(f"{commit.TEMPORARY}*"))
        assert stores.snapshots(target) == []
        refused += 1
    convert(target, "resume")
    return refused


@pytest.fixture(scope="module")
def whole():
    with layouts.memory_home() as home:
        convert(home / "whole")
        yield (
            home,
            stores.digests(home / "whole"),
            sum(p.stat().st_size for p in (home / "whole").rglob("*") if p.is_file()),
        )


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.5, 0.9, 0.99])
def test_a_disk_that_fills_up_says_so_leaves_nothing_and_can_be_gone_on_with(whole, share, monkeypatch):
    home, digests, size = whole
    target = home / f"full-{share}"
    assert fill_and_go_on(target, [int(share * size)], monkeypatch) == 1
    assert stores.digests(target) == digests


@pytest.mark.campaign
def test_a_disk_that_fills_up_in_steps_of_16_kib(whole, monkeypatch, capsys):
    home, digests, size = whole
    refused = 0
    for room in range(0, size - 4096, 16_384):
        target = home / "step"
        shutil.rmtree(target, ignore_errors=True)
        refused += fill_and_go_on(target, [room], monkeypatch)
        assert stores.digests(target) == digests
    with capsys.disabled():
        print(f"\nF4 (seam): {refused} sizes of room in [0, {size:,}) bytes, each refused, cleaned up and gone on with")


def test_free_space_is_looked_at_before_anything_is_written(tmp_path, monkeypatch):
    source = stores.parquet(tmp_path / "source", 2, 50)
    free = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(OutOfSpace, match=r"[\d,]+ bytes are to be written, 10 are free there; make room"):
        ss.convert(source, tmp_path / "out", options=stores.small())
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    monkeypatch.undo()
    ss.convert(source, tmp_path / "out", options=stores.small())


def test_what_a_resume_needs_is_only_what_is_not_there_yet(tmp_path, monkeypatch):
    layout = layouts.make("first", tmp_path)
    target = layout.fresh("out")
    monkeypatch.setattr(Journal, "end", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # all is written but the end of it
        stores.ss.convert(layout.job["source"], target, options=stores.small())
    monkeypatch.undo()
    shutil.rmtree(target / "snapshots")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 10, 10))
    report = ss.convert(layout.job["source"], target, if_exists="resume", options=stores.small())
    assert report.resumed_shard_count == report.shard_count
    layout.check_recovered(target)


# -- a real file system ----------------------------------------------------------------------------


@contextmanager
def small_disk(place: Path, size: int, inodes: int = 0):
    place.mkdir(exist_ok=True)
    options = f"size={size}" + (f",nr_inodes={inodes}" if inodes else "")
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here ({done.stderr.strip()}); the same runs through the seam above")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def grow(place: Path, size: int, inodes: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size},nr_inodes={inodes}", str(place)], check=True)


def run_out_and_go_on(place: Path, size: int, inodes: int, digests: dict[str, str]) -> bool:
    with small_disk(place, size, inodes) as disk:
        target = disk / "store"
        error = None
        try:
            convert(target)
        except OutOfSpace as raised:
            error = str(raised)
        if error is not None:
            assert str(target) in error
            assert "make room" in error
            assert not list(disk.rglob(f"{commit.TEMPORARY}*"))
            assert stores.snapshots(target) == []
            grow(disk, 64 << 20, 10_000)
            convert(target, "resume")
            assert stores.digests(target) == digests
            assert not stores.leftovers(target)
            return True
        assert stores.digests(target) == digests
        return False


@pytest.mark.parametrize("size", [4_096, 65_536, 131_072])
def test_a_full_file_system_says_so_and_can_be_gone_on_with(whole, tmp_path, size):
    assert run_out_and_go_on(tmp_path / "disk", size, 10_000, whole[1])


@pytest.mark.parametrize("inodes", [2, 3, 6, 9])
def test_a_file_system_out_of_inodes_says_so_and_can_be_gone_on_with(whole, tmp_path, inodes):
    assert run_out_and_go_on(tmp_path / "disk", 64 << 20, inodes, whole[1])


@pytest.mark.campaign
def test_a_file_system_of_each_size_up_to_full(whole, tmp_path, capsys):
    refused = [
        run_out_and_go_on(tmp_path / "disk", size, 10_000, whole[1]) for size in range(4_096, 2 * whole[2], 16_384)
    ]
    out_of_names = [
        run_out_and_go_on(tmp_path / "disk", 64 << 20, inodes, whole[1])
        for inodes in [*range(2, 40), *range(40, 400, 12)]
    ]
    with capsys.disabled():
        print(f"\nF4 (tmpfs): {len(refused)} sizes, {sum(refused)} refused")
        print(f"F4 (tmpfs): {len(out_of_names)} inode limits, {sum(out_of_names)} refused")
    assert not refused[-1]
    assert not out_of_names[-1]
