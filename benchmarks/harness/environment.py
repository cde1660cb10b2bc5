"""The circumstances of a run: machine, versions, what else went on, what was in the page cache."""

from __future__ import annotations

import ctypes
import importlib.metadata
import mmap
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["describe", "resident_share", "warm_up"]

_PACKAGES = ("shufflestore", "numpy", "numba", "pyarrow", "torch", "datasets", "grain", "pytest-benchmark")


def describe() -> dict[str, Any]:
    """Return machine, versions and load as JSON values."""
    from shufflestore import _native

    return {
        "processor": _first("/proc/cpuinfo", "model name"),
        "cpus": len(os.sched_getaffinity(0)),
        "features": list(_native.cpu_features()),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "huge_pages": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "kernel": platform.release(),
        "system": _first("/etc/os-release", "PRETTY_NAME", "=").strip('"'),
        "python": platform.python_version(),
        "load_before": [round(x, 2) for x in os.getloadavg()],
        "revision": _revision(),
        "versions": {name: version for name in _PACKAGES if (version := _version(name))},
    }


def warm_up(path: Path) -> float:
    """Read every file at a path once; return the share of its bytes that is in the page cache then."""
    files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
    for file in files:
        with file.open("rb", buffering=0) as opened:
            while opened.read(16 << 20):
                pass
    return resident_share(files)


def resident_share(files: list[Path]) -> float:
    """Return the share of the files' pages that is in the page cache, by mincore(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    pages = there = 0
    for file in files:
        size = file.stat().st_size
        if not size:
            continue
        count = -(-size // mmap.PAGESIZE)
        flags = (ctypes.c_ubyte * count)()
        access = mmap.PROT_READ | mmap.PROT_WRITE
        # Copy-on-write and never written: ctypes takes the address of a writable map only.
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE, access) as view:
            anchor = ctypes.c_char.from_buffer(view)
            code = libc.mincore(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(size), flags)
            del anchor
        if code == 0:
            pages += count
            there += sum(flag & 1 for flag in bytes(flags))
    return round(there / pages, 4) if pages else 1.0


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str:
    root = Path(__file__).parents[2]
    try:
        shown = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return shown.stdout.strip()


def _first(path: str, key: str, separator: str = ":") -> str:
    for line in _text(path).splitlines():
        if line.startswith(key):
            return line.partition(separator)[2].strip()
    return "unknown"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"
