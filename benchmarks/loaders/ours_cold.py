"""shufflestore.DataLoader where memory is short: its own choice of engine, under a limit of its own."""

from __future__ import annotations

from benchmarks.loaders.ours import Ours

__all__ = ["MEMORY_LIMIT", "rivals"]

MEMORY_LIMIT = 64 << 20
"""Bytes for look-ahead, row indexes and caches."""


def rivals() -> list[Ours]:
    """Return our loader under the limit."""
    return [Ours("ours, cold", memory_limit=MEMORY_LIMIT)]
