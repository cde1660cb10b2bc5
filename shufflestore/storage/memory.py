"""How much memory there is for this process, and how a limit on ours is shared out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from shufflestore.errors import OptionError
from shufflestore.storage.base import SUITABLE_BYTES

__all__ = ["Budget", "allowed_bytes", "available_bytes"]

_MOST_INDEX: Final = 1 << 30
"""Of row indexes: 50 million records of the usual kind; more are kept page by page."""
_MOST_AHEAD: Final = 1 << 30
_MOST_WHOLE: Final = 64 << 20
_MOST_BLOCKS: Final = 64 << 20
LEAST: Final = 32 << 20
"""Below this the row index pages of one window of look-ahead would not fit beside a batch."""
_SHARE: Final = 4
"""Without a limit, ours is this part of what the process may have: the rest is the training's."""


@dataclass(frozen=True)
class Budget:
    """What the parts of one open data set may keep in memory, in bytes."""

    limit: int
    """All of it together, beyond what the interpreter and its packages take."""
    index: int
    """Pages of row indexes."""
    ahead: int
    """Batches that were read ahead and not taken yet; one batch at least, however large."""
    whole: int
    """Decoded columns of chunks that can only be read whole."""
    blocks: int
    """Memory of batches that were let go, kept for those to come. One such store serves the whole process."""

    def flow_bytes(self, asked: int | None) -> int | None:
        """Return the bound of one stream's look-ahead: what was asked for, else None where the store's own choice fits."""
        if asked is not None:
            return asked
        return None if self.ahead >= SUITABLE_BYTES else self.ahead

    @classmethod
    def of(cls, memory_limit: int | None) -> Budget:
        """Share a limit out.

        Args:
            memory_limit: Bytes, at least 32 MiB; None for a quarter of what this process may have.

        Raises:
            OptionError: Too little.
        """
        if memory_limit is None:
            memory_limit = max(allowed_bytes() // _SHARE, LEAST)
        if isinstance(memory_limit, bool) or not isinstance(memory_limit, int) or memory_limit < LEAST:
            raise OptionError(
                f"memory_limit is {memory_limit!r}; it is a number of bytes, at least {LEAST:,} (32 MiB), or None for a "
                "quarter of what this process may have"
            )
        return cls(
            limit=memory_limit,
            index=min(memory_limit // 2, _MOST_INDEX),
            ahead=min(memory_limit // 4, _MOST_AHEAD),
            whole=min(memory_limit // 8, _MOST_WHOLE),
            blocks=min(memory_limit // 8, _MOST_BLOCKS),
        )


def allowed_bytes() -> int:
    """Return the most that this process may ever have: the machine's memory, or less in a container."""
    return min([_machine("MemTotal"), *(most for most, _, _ in _groups())])


def available_bytes() -> int:
    """Return what this process may fill now, page cache included: the machine's, or less in a container."""
    return min([_machine("MemAvailable"), *(max(most - now + cache, 0) for most, now, cache in _groups())])


def _machine(field: str) -> int:
    fields = dict(line.split(":", 1) for line in _text("/proc/meminfo").splitlines() if ":" in line)
    return int(fields.get(field, "0 kB").split()[0]) * 1024


def _groups() -> list[tuple[int, int, int]]:
    """(limit, use, page cache within it) of each memory group around this process, of either version.

    A group's limit binds those within it; each has a limit of its own, so all up to the root count.
    """
    found = []
    for line in _text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, limit, used = "/sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            base, limit, used = "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        for folder in (base + path, *(f"{base}{above}" for above in Path(path).parents)):
            folder = folder.rstrip("/")
            most, now = _text(f"{folder}/{limit}").strip(), _text(f"{folder}/{used}").strip()
            if most.isdigit() and now.isdigit():
                stat = dict(entry.split() for entry in _text(f"{folder}/memory.stat").splitlines())
                cache = int(stat.get("total_cache", stat.get("file", "0")))
                found.append((int(most), int(now), cache))
    return found


def _text(path: str) -> str:
    """Return a small file of the system's, empty where it is not there."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
