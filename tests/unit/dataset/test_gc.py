"""gc frees what no kept snapshot names, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pytest

from shufflestore.dataset.gc import gc
from shufflestore.dataset.inplace import index, write_snapshot
from shufflestore.dataset.opening import load_manifest, snapshots_of
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.verify import verify
from shufflestore.errors import NotFound, OptionError, ShuffleStoreError
from shufflestore.format.manifest import Split
from shufflestore.storage.local import LocalStore
from tests.invented import arrow_bytes, memory_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of three snapshots, the last two of which share a shard."""
    made = memory_store([arrow_bytes(pa.table({"x": [i, i + 1]})) for i in range(3)])
    for name, data in made.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    store = LocalStore(str(tmp_path))
    manifest = load_manifest(store, 1)
    rows = manifest.check_table(store.read(manifest.table_name), "t").table.to_pylist()
    for kept in (rows[1:], rows[2:]):
        split = Split("train", sum(r["record_count"] for r in kept), len(kept))
        manifest = write_snapshot(tmp_path, manifest.schema, (split,), kept, {}, manifest)
    store.close()
    return tmp_path


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def age(folder: Path, seconds: int) -> None:
    for file in folder.rglob("*"):
        os.utime(file, (file.stat().st_mtime - seconds,) * 2)


def test_old_snapshots_go_with_the_files_that_only_they_name(folder):
    report = gc(folder)
    assert report.kept_snapshots == (3,)
    assert snapshots_of(LocalStore(str(folder))) == [3]
    assert {n for n in names(folder) if n.startswith("shards/")} == {"shards/00002.arrow", "shards/00002.rows"}
    assert verify(folder).is_sound
    assert open_dataset(folder).take([0, 1])["x"].to_pylist() == [2, 3]


def test_as_many_as_are_kept_stay_readable(folder):
    assert gc(folder, keep=2).kept_snapshots == (2, 3)
    assert open_dataset(folder, snapshot=2).take(range(4))["x"].to_pylist() == [1, 2, 2, 3]


def test_a_dry_run_names_what_a_run_would_remove_and_removes_nothing(folder):
    before = names(folder)
    report = gc(folder, dry_run=True)
    assert names(folder) == before
    assert set(report.removed) == set(gc(folder).removed) == before - names(folder)


def test_young_files_that_nobody_names_stay_and_old_ones_go(folder):
    stray = folder / "shards" / "stray.arrow"
    stray.write_bytes(b"x" * 100)
    gc(folder)
    assert stray.exists()
    age(folder, 90_000)
    report = gc(folder)
    assert report.removed == ("shards/stray.arrow",)
    assert report.freed_bytes >= 100


def test_what_is_not_ours_is_never_touched(folder):
    for name in ("README.md", "shards/notes.txt", "snapshots/backup.tar"):
        (folder / name).write_text("mine")
    age(folder, 10**6)
    gc(folder)
    assert {"README.md", "shards/notes.txt", "snapshots/backup.tar"} <= names(folder)


def test_a_damaged_manifest_stops_it_before_anything_is_removed(folder):
    root = folder / "snapshots" / "0000000003.json"
    root.write_bytes(root.read_bytes().replace(b"train", b"trian"))
    before = names(folder)
    with pytest.raises(ShuffleStoreError):
        gc(folder)
    assert names(folder) == before


def test_nothing_to_keep_and_no_store_are_refused(folder, tmp_path):
    with pytest.raises(OptionError, match="keep=0"):
        gc(folder, keep=0)
    with pytest.raises(NotFound):
        gc(tmp_path / "elsewhere")


def test_the_index_folder_of_data_in_place_is_a_store_too(tmp_path):
    file = tmp_path / "data.arrow"
    file.write_bytes(arrow_bytes(pa.table({"x": [1]})))
    index(file)
    file.write_bytes(arrow_bytes(pa.table({"x": [1, 2]})))
    target = index(file)
    assert gc(target).kept_snapshots == (2,)
    assert open_dataset(file).take([1])["x"].to_pylist() == [2]
