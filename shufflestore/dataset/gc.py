"""Free what no committed snapshot needs."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from shufflestore.dataset.opening import load_manifest, snapshots_of
from shufflestore.errors import NotFound, OptionError
from shufflestore.format.manifest import snapshot_name
from shufflestore.storage.commit import TEMPORARY, remove, sweep
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

    Never a file that a kept snapshot names. Readers of a removed snapshot lose their files: keep as
    many as are in use.

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
    store = LocalStore(str(folder))
    numbers = snapshots_of(store)
    kept, dropped = numbers[-keep:], numbers[:-keep]
    # Everything is read before anything is removed: a damaged manifest stops here.
    needed = set().union(*(_names(store, number) for number in kept)) if kept else set()
    freed_names = set().union(*(_names(store, number) for number in dropped)) if dropped else set()
    store.close()
    doomed = [
        file
        for file in sorted(_files(folder))
        if file not in needed and (file in freed_names or _age(folder / file) >= grace_seconds)
    ]
    if not kept:
        doomed = []
    freed = sum((folder / file).stat().st_size for file in doomed)
    if not dry_run:
        # Roots first: from then on nobody can open what is about to lose its files.
        for file in sorted(doomed, key=lambda name: not name.endswith(".json")):
            remove(folder / file)
        freed += sweep(folder)
    return GcReport(str(path), tuple(doomed), freed, tuple(kept))


def _names(store: LocalStore, number: int) -> set[str]:
    """Every file that a snapshot needs, its own root included."""
    manifest = load_manifest(store, number)
    table = manifest.check_table(store.read(manifest.table_name), manifest.table_name).table
    return {snapshot_name(number), manifest.table_name, *table.column("data").to_pylist(), *table.column("index").to_pylist()}


def _files(folder: Path) -> list[str]:
    """Files of the kinds that this package writes; anything else in the folder is not ours to remove."""
    found = []
    for inner, endings in (("snapshots", (".json", ".shards")), ("shards", (".arrow", ".rows")), ("rows", (".rows",))):
        names = (f.name for f in (folder / inner).glob("*") if f.suffix in endings)
        found += [f"{inner}/{name}" for name in names if not name.startswith(TEMPORARY)]
    return found


def _age(file: Path) -> float:
    return time.time() - file.stat().st_mtime
