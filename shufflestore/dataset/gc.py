"""Free what no committed snapshot needs."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from shufflestore.dataset.opening import UNFINISHED, load_manifest, snapshots_of
from shufflestore.errors import NotFound, OptionError
from shufflestore.format.manifest import snapshot_name
from shufflestore.storage.base import Store
from shufflestore.storage.commit import TEMPORARY
from shufflestore.storage.target import Found, Target
from shufflestore.storage.targets import target_at

__all__ = ["GcReport", "gc"]

GRACE_SECONDS = 86_400.0
"""A file that no snapshot names may belong to a conversion that runs now; younger ones stay."""


@dataclass(frozen=True)
class GcReport:
    """What `gc` removed, or would remove."""

    path: str
    removed: tuple[str, ...]
    """Names within the store."""
    freed_bytes: int
    kept_snapshots: tuple[int, ...]


def gc(
    path: str | os.PathLike[str],
    keep: int = 1,
    grace_seconds: float = GRACE_SECONDS,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> GcReport:
    """Remove old snapshots and files that no kept snapshot names.

    Never a file that a kept snapshot names, nor one that an unfinished conversion may go on with: to
    be rid of these, throw it away first (`if_exists="overwrite"`, or remove `.convert`). Readers of a
    removed snapshot lose their files: keep as many as are in use.

    Args:
        path: A store, in a folder or an object store.
        keep: Newest snapshots to keep, at least 1.
        grace_seconds: Files younger than this stay unless a removed snapshot named them; a running
            conversion may be about to commit them.
        dry_run: Only say what would go.
        storage_options: Of the object store: region, endpoint, credentials, as for `open`.

    Raises:
        OptionError: `keep` below 1. NotFound: No snapshot there.
    """
    if keep < 1:
        raise OptionError(f"keep={keep}; at least the newest snapshot must stay")
    target = target_at(path, storage_options)
    if "snapshots" not in target.top():
        raise NotFound(f"{target} is not a store; nothing was removed")
    names = _Names.read(target, keep)
    doomed = [file.name for file in _files(target) if names.is_free(file, grace_seconds)]
    if not dry_run and _Names.numbers(target) != names.seen:
        # Somebody committed meanwhile, perhaps one of these files.
        return gc(path, keep, grace_seconds, dry_run, storage_options)
    freed = 0
    removed = []
    # Roots first, and for good: from then on nobody can open what is about to lose its files.
    roots = [file for file in doomed if file.endswith(".json")]
    for file in [*roots, *(file for file in doomed if file not in roots)]:
        (now,) = target.find([file])
        if now is None or not names.is_free(now, grace_seconds):
            continue  # renewed by a conversion since
        freed += now.size
        removed.append(file)
        if not dry_run:
            target.remove(file)
            if file == (roots or [""])[-1]:
                target.settle("snapshots")
    freed += 0 if dry_run else target.sweep()
    return GcReport(str(path), tuple(sorted(removed)), freed, tuple(names.kept))


@dataclass(frozen=True)
class _Names:
    """Which files snapshots need, and which they no longer do."""

    target: Target
    seen: list[int]
    kept: list[int]
    needed: frozenset[str]
    freed: dict[str, float]
    """Files of snapshots that go, and when the newest of these was committed."""

    @staticmethod
    def numbers(target: Target) -> list[int]:
        with closing(target.store()) as store:
            return snapshots_of(store)

    @classmethod
    def read(cls, target: Target, keep: int) -> _Names:
        """Everything is read before anything is removed: a damaged manifest stops here."""
        numbers = cls.numbers(target)
        kept = numbers[-keep:]
        freed: dict[str, float] = {}
        with closing(target.store()) as store:
            needed = frozenset().union(*(_names(store, number) for number in kept))
            roots = target.find([snapshot_name(number) for number in numbers[:-keep]])
            for number, root in zip(numbers[:-keep], roots, strict=True):
                if root is not None:
                    freed |= dict.fromkeys(_names(store, number) - needed, root.changed)
        return cls(target, numbers, kept, needed, freed)

    def is_free(self, file: Found, grace_seconds: float) -> bool:
        if file.name in self.needed or not self.kept:
            return False
        if file.name in self.freed and file.changed + self._doubt(file) <= self.freed[file.name]:
            return True
        # Named by no snapshot, or renewed since by a conversion that made the very same file again.
        is_old = time.time() - file.changed >= grace_seconds
        return is_old and self.target.find([UNFINISHED]) == [None]

    def _doubt(self, file: Found) -> float:
        """Seconds by which a file may have been renewed although the times do not show it; a root never is."""
        return 0.0 if file.name.endswith(".json") else self.target.tick_seconds


def _names(store: Store, number: int) -> set[str]:
    """Every file that a snapshot needs, its own root included."""
    manifest = load_manifest(store, number)
    table = manifest.check_table(store.read(manifest.table_name), manifest.table_name).table
    return {
        snapshot_name(number),
        manifest.table_name,
        *table.column("data").to_pylist(),
        *table.column("index").to_pylist(),
    }


def _files(target: Target) -> list[Found]:
    """Files of the kinds that this package writes; anything else in the folder is not ours to remove."""
    found = []
    for inner, endings in (("rows", (".rows",)), ("shards", (".arrow", ".rows")), ("snapshots", (".json", ".shards"))):
        there = (file for file in target.files(inner) if file.name.endswith(endings))
        found += [file for file in there if not file.name.startswith(f"{inner}/{TEMPORARY}")]
    return found
