"""B3 in a model: the power fails after any call, and the disk has kept as little, or as unlucky a part, as it may.

The seam records a conversion call by call. After each, disks are made up that obey only what fsync
promises: file contents count once the file was synced, names once their folder was. Kills cannot
prove this, since the page cache outlives a process.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from shufflestore.storage import commit
from tests import layouts, stores
from tests.crashes import Seam, do


class Remembering(Seam):
    """Keeps what each call did, in the order in which they were done."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[str, str, object]] = []

    def around(self, number, op, arguments, call):
        with self.lock:
            place = os.readlink(f"/proc/self/fd/{arguments[0]}") if op in ("write", "fsync") else str(arguments[0])
            result = call(*arguments)
            detail: object = None
            if op == "write":
                detail = bytes(arguments[1][:result])
            elif op == "link":
                detail = str(arguments[1])
            elif op == "open":
                detail = bool(arguments[1] & os.O_CREAT)
            self.done.append((op, place, detail))
            return result


class Inode:
    def __init__(self, content: bytes = b"") -> None:
        self.content = self.synced = content


class Disk:
    """What a disk may hold once the power is back, from the calls made so far."""

    def __init__(self, top: Path, base: Path) -> None:
        self.top = top
        self.names: dict[str, Inode | None] = {}  # None for a folder
        for path in sorted(base.rglob("*")) if base.exists() else []:
            self.names[str(top / path.relative_to(base))] = Inode(path.read_bytes()) if path.is_file() else None
        if base.exists():
            self.names[str(top)] = None
        self.durable = dict(self.names)

    def play(self, op: str, place: str, detail: object) -> None:
        if op == "open" and detail:
            self.names[place] = Inode()
        elif op == "write":
            self.file(place).content += detail
        elif op == "link":
            self.names[str(detail)] = self.names[place]
        elif op == "mkdir":
            self.names[place] = None
        elif op == "unlink":
            self.names.pop(place, None)
        elif op == "fsync" and self.names.get(place) is not None:
            self.file(place).synced = self.file(place).content
        elif op == "fsync":
            for name in {*self.names, *self.durable}:
                if os.path.dirname(name) == place:
                    self.keep(name)

    def keep(self, name: str) -> None:
        if name in self.names:
            self.durable[name] = self.names[name]
        else:
            self.durable.pop(name, None)

    def file(self, place: str) -> Inode:
        found = self.names[place]
        assert found is not None
        return found

    def write(self, kind: str, r: random.Random) -> None:
        """Make the disk: only what is promised, or all names with promised contents, or each change by a throw."""
        shutil.rmtree(self.top, ignore_errors=True)
        names = {"promised": self.durable, "names": self.names}.get(kind)
        if names is None:
            names = dict(self.durable)
            for name in sorted({*self.names, *self.durable}):
                if r.random() < 0.5:
                    names.pop(name, None)
                    if name in self.names:
                        names[name] = self.names[name]
        for name, inode in sorted(names.items()):
            if all(str(above) in names for above in Path(name).parents if self.top in (above, *above.parents)):
                if inode is None:
                    Path(name).mkdir(parents=True, exist_ok=True)
                else:
                    Path(name).write_bytes(inode.synced)


@pytest.fixture(scope="module")
def made():
    with layouts.memory_home() as home:
        yield {name: layouts.make(name, home / name) for name in layouts.LAYOUTS}


def recorded(layout: layouts.Layout, monkeypatch) -> list[tuple[str, str, object]]:
    seam = Remembering()
    with monkeypatch.context() as patched:
        patched.setattr(commit, "system", seam)
        do(layout.job_at(layout.fresh("cut")))
    return seam.done


def cut_and_recover(layout, calls, kinds, resumes, seed) -> int:
    """Cut the power after each call that the disk could tell from the one before; return how often."""
    target = layout.home / "cut"
    disk = Disk(target, layout.home / "base")
    r = random.Random(seed)
    cuts = 0
    for number, call in enumerate(calls):
        disk.play(*call)
        if call[0] == "write" and number % 16:
            continue
        for kind in kinds:
            disk.write(kind, r)
            saw = layout.check_readers(target)
            if number == len(calls) - 1:
                assert saw == "after", "success was reported, so it stays"
            cuts += 1
            if r.random() < resumes:
                layout.recover(target)
                assert stores.seen(target) == layout.after
                cuts += 0
    return cuts


@pytest.mark.parametrize("name", ["first", "append", "writer"])
def test_no_power_cut_leaves_a_mixture_nor_takes_back_a_success(made, name, monkeypatch):
    calls = recorded(made[name], monkeypatch)
    cut_and_recover(made[name], calls, ("promised", "names"), 0.05, 1)


@pytest.mark.campaign
@pytest.mark.parametrize("name", layouts.LAYOUTS)
def test_no_power_cut_of_many_leaves_a_mixture(made, name, monkeypatch, capsys):
    calls = recorded(made[name], monkeypatch)
    cuts = cut_and_recover(made[name], calls, ("promised", "names", "some", "some", "some"), 1.0, 2)
    with capsys.disabled():
        print(f"\nB3 (model) {name}: {len(calls)} calls, {cuts} power cuts each with a recovery, 0 mixtures")


@pytest.mark.parametrize("skipped", ["file", "folder"])
def test_the_model_notices_a_missing_fsync(made, skipped, monkeypatch):
    """The test of the test: without one of the two syncs, some cut must show damage."""
    layout = made["first"]
    calls = [
        call for call in recorded(layout, monkeypatch)
        if call[0] != "fsync" or (skipped == "file") != (commit.TEMPORARY in call[1])
    ]  # fmt: skip
    with pytest.raises((AssertionError, stores.ss.errors.ShuffleStoreError)):
        cut_and_recover(layout, calls, ("promised", "names"), 0.0, 1)
