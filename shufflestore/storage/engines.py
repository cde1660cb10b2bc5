"""Which native engine reads a folder: decided from what can be seen, never for the user to know."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shufflestore.storage.base import UNKNOWN_SIZE

__all__ = ["Choice", "DIRECT_RATIO", "ENGINES", "Facts", "choose", "file_system", "resident_share", "threads_for"]

ENGINES: Final = ("auto", "mmap", "pread", "io_uring", "io_uring_direct", "null")
"""What `engine=` may be. "null" reads nothing: it measures everything else."""
PREAD_THREADS: Final = 64
"""Blocking reads in flight: what keeps an NVMe disk or a network file system busy."""
URING_THREADS: Final = 2
"""Each has 128 or 256 reads in flight; a second one checks and copies while the first submits."""
DIRECT_RATIO: Final = 8
"""Data so many times the memory is seldom found in the page cache: then going through it only costs."""
_SAMPLE: Final = 64
"""Files asked how much of them is in the page cache."""
_RESIDENT: Final = 0.95
_REMOTE: Final = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "gpfs", "beegfs", "glusterfs", "afs", "orangefs"}
)


@dataclass(frozen=True)
class Facts:
    """What a choice is made from."""

    data_bytes: int
    """Of all registered files."""
    available_bytes: int
    """Of memory that this process may fill, page cache included."""
    resident: float
    """Share of the data that is in the page cache now, in [0, 1]."""
    file_system: str
    """Its type, as /proc/mounts has it; "" where nobody knows."""
    is_forked: bool
    """Whether this is a forked child."""


@dataclass(frozen=True)
class Choice:
    """An engine, and why."""

    engine: str
    reason: str


def choose(facts: Facts) -> Choice:
    """Return the engine that suits what was seen. Pure.

    - data that fits in half of the memory, or lies in the page cache: "mmap";
    - beyond that, on a disk: "io_uring", "io_uring_direct" from DIRECT_RATIO times the memory on;
    - network file systems, FUSE among them, and forked children: "pread". There a map may be cut short by another
      machine, and io_uring would only hand each read to a thread of the kernel's.
    """
    figures = f"{facts.data_bytes:,} bytes of files, {facts.available_bytes:,} bytes of memory available"
    if facts.is_forked:
        return Choice("pread", "this is a forked child, which should not share its parent's maps")
    if facts.file_system in _REMOTE or facts.file_system.startswith("fuse"):
        return Choice("pread", f"the files are on a network file system ({facts.file_system})")
    if facts.data_bytes < facts.available_bytes // 2:
        return Choice("mmap", f"the data fits in half of the memory: {figures}")
    if facts.resident >= _RESIDENT:
        return Choice("mmap", f"{facts.resident:.0%} of the data is in the page cache: {figures}")
    why = f"the data does not fit in half of the memory: {figures}, {facts.resident:.0%} in the page cache"
    if facts.data_bytes >= DIRECT_RATIO * facts.available_bytes:
        return Choice("io_uring_direct", f"{why}, which is too little to look there first")
    return Choice("io_uring", why)


def threads_for(engine: str) -> int:
    """Return how many threads an engine has where nobody says otherwise."""
    processors = len(os.sched_getaffinity(0))
    if engine == "pread":
        return PREAD_THREADS
    return min(URING_THREADS, processors) if engine.startswith("io_uring") else processors


def resident_share(files: Sequence[tuple[str, int]]) -> float:
    """Return how much of some files is in the page cache, from a sample of them. Opens up to 64 files, reads none.

    Args:
        files: Paths and lengths in bytes; of a length that nobody knows the file is asked.
    """
    from shufflestore import _native

    step = max(len(files) // _SAMPLE, 1)
    held = total = 0
    for path, size in files[::step][:_SAMPLE]:
        try:
            found = _native.resident_bytes(path)
            known = Path(path).stat().st_size if size == UNKNOWN_SIZE else size
        except OSError:  # whoever reads it gets the error
            found, known = 0, 0 if size == UNKNOWN_SIZE else size
        held += min(found, known)
        total += known
    return held / total if total else 0.0


def file_system(folder: str) -> str:
    """Return the type of the file system that a folder is on, "" if the system does not say."""
    try:
        real = os.path.realpath(folder)
        mounts = Path("/proc/mounts").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""
    best, found = -1, ""
    for escaped, kind in (line.split(" ")[1:3] for line in mounts.splitlines()):
        point = escaped.replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        above = point.rstrip("/") + "/"
        if (real + "/").startswith(above) and len(above) >= best:  # of two on one place, the later covers the earlier
            best, found = len(above), kind
    return found
