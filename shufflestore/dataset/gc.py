"""Free what no committed snapshot needs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from shufflestore.dataset.opening import UNFINISHED, load_manifest, snapshots_of
from shufflestore.errors import NotFound, OptionError
from shufflestore.format.manifest import snapshot_name
from shufflestore.storage.commit import TEMPORARY, remove, sweep, sync_folder
from shufflestore.storage.local import LocalStore

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
    path: str | os.PathLike[str], keep: int = 1, grace_seconds: float = GRACE_SECONDS, dry_run: bool = False
) -> GcReport:
    """Remove old snapshots and files that no kept snapshot names.

    Never a file that a kept snapshot names, nor one that an unfinished conversion may go on with: to
    be rid of these, throw it away first (`if_exists="overwrite"`, or remove `.convert`). Readers of a
    removed snapshot lose their files: keep as many as are in use.

    Args:
        path: A store.
        keep: Newest snapshots to keep, at least 1.
        grace_seconds: Files younger than this stay unless a removed snapshot named them; a running
            conversion may be about to commit them.
        dry_run: Only say what would go.

    Raises:
        OptionError: `keep` below 1. NotFound: No snapshot there.
    """
    if keep < 1:
        raise OptionError(f"keep={keep}; at least the newest snapshot must stay")
    folder = Path(path)
    if not (folder / "snapshots").is_dir():
        raise NotFound(f"{folder} is not a store; nothing was removed")
    names = _Names.read(folder, keep)
    doomed = [file for file in sorted(_files(folder)) if names.is_free(file, grace_seconds)]
    if not dry_run and _Names.numbers(folder) != names.seen:
        return gc(path, keep, grace_seconds, dry_run)  # somebody committed meanwhile, perhaps one of these files
    freed = 0
    removed = []
    # Roots first, and for good: from then on nobody can open what is about to lose its files.
    roots = [file for file in doomed if file.endswith(".json")]
    for file in [*roots, *(file for file in doomed if file not in roots)]:
        if not names.is_free(file, grace_seconds):
            continue  # renewed by a conversion since
        freed += (folder / file).stat().st_size
        removed.append(file)
        if not dry_run:
            remove(folder / file)
            if file == (roots or [""])[-1]:
                sync_folder(folder / "snapshots")
    freed += 0 if dry_run else sweep(folder)
    return GcReport(str(path), tuple(sorted(removed)), freed, tuple(names.kept))


@dataclass(frozen=True)
class _Names:
    """Which files snapshots need, and which they no longer do."""

    folder: Path
    seen: list[int]
    kept: list[int]
    needed: frozenset[str]
    freed: dict[str, float]
    """Files of snapshots that go, and when the newest of these was committed."""

    @staticmethod
    def numbers(folder: Path) -> list[int]:
        store = LocalStore(str(folder))
        found = snapshots_of(store)
        store.close()
        return found

    @classmethod
    def read(cls, folder: Path, keep: int) -> _Names:
        """Everything is read before anything is removed: a damaged manifest stops here."""
        numbers = cls.numbers(folder)
        store = LocalStore(str(folder))
        kept = numbers[-keep:]
        needed = frozenset().union(*(_names(store, number) for number in kept))
        freed: dict[str, float] = {}
        for number in numbers[:-keep]:
            committed = (folder / snapshot_name(number)).stat().st_mtime
            freed |= dict.fromkeys(_names(store, number) - needed, committed)
        store.close()
        return cls(folder, numbers, kept, needed, freed)

    def is_free(self, file: str, grace_seconds: float) -> bool:
        if file in self.needed or not self.kept:
            return False
        try:
            changed = (self.folder / file).stat().st_mtime
        except FileNotFoundError:
            return False
        if file in self.freed and changed <= self.freed[file]:
            return True
        # Named by no snapshot, or renewed since by a conversion that made the very same file again.
        return time.time() - changed >= grace_seconds and not (self.folder / UNFINISHED).exists()


def _names(store: LocalStore, number: int) -> set[str]:
    """Every file that a snapshot needs, its own root included."""
    manifest = load_manifest(store, number)
    table = manifest.check_table(store.read(manifest.table_name), manifest.table_name).table
    return {
        snapshot_name(number),
        manifest.table_name,
        *table.column("data").to_pylist(),
        *table.column("index").to_pylist(),
    }


def _files(folder: Path) -> list[str]:
    """Files of the kinds that this package writes; anything else in the folder is not ours to remove."""
    found = []
    for inner, endings in (("snapshots", (".json", ".shards")), ("shards", (".arrow", ".rows")), ("rows", (".rows",))):
        names = (f.name for f in (folder / inner).glob("*") if f.suffix in endings)
        found += [f"{inner}/{name}" for name in names if not name.startswith(TEMPORARY)]
    return found
