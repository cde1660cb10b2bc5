"""shufflestore.DataLoader where memory is short: its own choice of engine, under a limit of its own."""

from __future__ import annotations

from typing import Any

from benchmarks.loaders.ours import Ours

__all__ = ["MEMORY_LIMIT", "rivals"]

MEMORY_LIMIT = 128 << 20
"""Bytes for look-ahead, row indexes and caches."""


def rivals() -> list[Ours]:
    """Return our loader under the limit, over tokens stored as uint16 and over the int32 that they come as.

    As it is: numba's compiler takes 95 MB, and a loader starts it only after 50 million ids.
    """
    options: dict[str, Any] = {"is_compiled": False, "memory_limit": MEMORY_LIMIT}
    return [Ours("ours, cold", **options), Ours("ours, cold, not narrow", "store-wide", **options)]
