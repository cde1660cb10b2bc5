"""`shufflestore gc`: what goes, what stays, what it says."""

from __future__ import annotations

import pytest

import shufflestore as ss


@pytest.fixture
def replaced(run_json, store, parquet):
    """A store whose first snapshot's shards nobody needs any more."""
    code, _ = run_json("convert", parquet / "a.parquet", store, "--if-exists", "overwrite", "--workers", 1)
    assert code == 0
    return store


def test_a_dry_run_removes_nothing(run, replaced):
    before = sorted(replaced.rglob("*"))
    code, out = run("gc", replaced, "--dry-run")
    assert code == 0
    assert "would remove shards/" in out
    assert sorted(replaced.rglob("*")) == before


def test_only_what_no_kept_snapshot_names_goes(run_json, replaced):
    code, told = run_json("gc", replaced)
    assert (code, told["kept_snapshots"]) == (0, [2])
    assert len(told["removed"]) == 4  # root, table, shard, row index
    assert told["freed_bytes"] > 0
    assert len(ss.open(replaced)) == 30
    assert ss.verify(replaced).is_sound
    assert run_json("gc", replaced)[1]["removed"] == []


def test_snapshots_in_use_can_be_kept(run_json, replaced):
    assert run_json("gc", replaced, "--keep", 2)[1]["removed"] == []
    assert len(ss.open(replaced, snapshot=1)) == 50


def test_young_files_that_no_snapshot_named_stay(run_json, store):
    stray = store / "shards" / "train-00009-000-0123456789abcdef.arrow"
    stray.write_bytes(b"a running conversion is about to commit this")
    assert run_json("gc", store)[1]["removed"] == []
    assert run_json("gc", store, "--grace", 0)[1]["removed"] == [f"shards/{stray.name}"]


def test_a_folder_that_is_no_store(run_json, tmp_path):
    code, told = run_json("gc", tmp_path)
    assert (code, told["error"]) == (2, "NotFound")
