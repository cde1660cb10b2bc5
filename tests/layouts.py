"""Conversions to be interrupted: a first one, splits, an append, an overwrite, one file, a Writer."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shufflestore.errors import AlreadyExists
from tests import crashes, stores

LAYOUTS = ("first", "splits", "append", "overwrite", "jsonl", "writer", "writer-append")


@dataclass
class Layout:
    """One conversion, what was there before it, and what is there after it."""

    name: str
    home: Path
    """Holds `base`, the target as it was (or nothing), and `done`, the target after an undisturbed run."""
    job: dict[str, Any]

    def __post_init__(self) -> None:
        self.before = stores.seen(self.home / "base")
        self.kept = stores.digests(self.home / "base")
        done = self.fresh("done")
        counted = crashes.Seam()
        crashes.commit.system, plain = counted, crashes.commit.system
        try:
            crashes.do(self.job_at(done))
        finally:
            crashes.commit.system = plain
        self.ops = counted.ops
        self.after = stores.seen(done)
        self.digests = stores.digests(done)
        assert self.after != self.before
        assert not stores.leftovers(done)

    def moments(self) -> list[tuple[int, str]]:
        """Each instant at which it may die: before each call, and halfway through each write."""
        torn = [(at, "torn") for at, op in enumerate(self.ops) if op == "write"]
        return [(at, "before") for at in range(len(self.ops))] + torn

    def fresh(self, name: str) -> Path:
        """The target as it was, under a name."""
        target = self.home / name
        shutil.rmtree(target, ignore_errors=True)
        if (self.home / "base").exists():
            shutil.copytree(self.home / "base", target)
        return target

    def job_at(self, target: Path, **changes: Any) -> dict[str, Any]:
        return {**self.job, "target": str(target), **changes}

    def check_readers(self, target: Path) -> str:
        """Readers see what was there or all that was to come, and nothing that was there has changed."""
        found = stores.seen(target)
        assert found in (self.before, self.after), f"{self.name}: a mixture"
        for name, digest in self.kept.items():
            assert stores.digests(target)[name] == digest, f"{self.name}: {name} was changed"
        return "before" if found == self.before else "after"

    def recover(self, target: Path) -> None:
        """Do what a person does after a crash: resume, or where nothing had begun, begin."""
        if self.job["do"] == "write":
            if stores.seen(target) != self.after:
                crashes.do(self.job_at(target))
            return
        try:
            crashes.do(self.job_at(target, if_exists="resume"))
        except AlreadyExists as raised:
            error = raised
        else:
            return
        assert "nothing is unfinished" in str(error)
        crashes.do(self.job_at(target))

    def check_recovered(self, target: Path) -> None:
        """All is as if nothing had happened, to the byte."""
        assert stores.seen(target) == self.after
        if self.job["do"] == "convert":
            assert stores.digests(target) == self.digests
            assert not stores.leftovers(target)
        else:
            found = stores.digests(target)
            assert {name: found[name] for name in self.digests} == self.digests


@contextmanager
def memory_home() -> Iterator[Path]:
    """A folder in memory where there is one: syncing thousands of files to a disk proves nothing about kills."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as home:
        yield Path(home)


def make(name: str, home: Path) -> Layout:
    """Make a layout's source and what is there before it, and run it once undisturbed."""
    home.mkdir(parents=True, exist_ok=True)
    base, source = home / "base", home / "source"
    mode = "append" if name.endswith("append") else "overwrite" if name == "overwrite" else "error"
    job: dict[str, Any] = {"do": "convert", "if_exists": mode, "source": str(source)}
    if name == "splits":
        job["source"] = {
            part: str(stores.parquet(source / part, 2, 30, 100 * i)) for i, part in enumerate(("train", "test"))
        }
    elif name == "jsonl":
        job["source"] = str(stores.jsonl(home / "source.jsonl", 0, 150))
    elif name.startswith("writer"):
        job = {"do": "write", "if_exists": mode, "start": 0, "count": 90}
    else:
        stores.parquet(source, 2, 40)
    if mode != "error":
        old = {"do": "convert", "if_exists": "error", "source": str(stores.parquet(home / "old", 1, 25, 5_000))}
        crashes.do({**old, "target": str(base)})
    return Layout(name, home, job)
