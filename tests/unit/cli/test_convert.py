"""`shufflestore convert`: what it writes, says and refuses."""

from __future__ import annotations

import gzip

import numpy as np
import pyarrow as pa
import pytest

import shufflestore as ss
from shufflestore.cli.convert import _Bar


def test_it_says_what_it_wrote(run, parquet, tmp_path):
    code, out = run("convert", parquet, tmp_path / "s", "--workers", 1)
    assert code == 0
    assert out.startswith("50 records in ")
    assert out.rstrip().endswith(f"-> {tmp_path / 's'} (snapshot 1)")
    assert ss.open(tmp_path / "s").take([49])["label"].to_pylist() == [49]


def test_as_json(run_json, parquet, tmp_path):
    code, told = run_json("convert", parquet, tmp_path / "s", "--workers", 1)
    assert code == 0
    assert (told["record_count"], told["snapshot"], told["splits"]) == (50, 1, {"train": 50})


def test_columns_sizes_and_a_forced_kind(run_json, parquet, tmp_path):
    code, told = run_json(
        "convert", parquet / "*.parquet", tmp_path / "s", "--columns", "label,text", "--from", "parquet",
        "--shard-bytes", "1KiB", "--chunk-rows", 5, "--workers", 1,
    )  # fmt: skip
    assert code == 0
    assert told["shard_count"] > 1
    assert ss.open(tmp_path / "s").column_names == ["label", "text"]


def test_integers_stay_as_wide_as_they_are_declared_where_that_is_said(run, run_json, parquet, tmp_path):
    for name, given, stored in (("a", (), "uint8"), ("b", ("--no-narrow",), "int64")):
        assert run("convert", parquet, tmp_path / name, "--workers", 1, *given)[0] == 0
        (shard,) = (tmp_path / name).glob("shards/*.arrow")
        assert pa.ipc.open_file(shard).schema.field("tokens").type.value_type == stored
        assert run_json("info", tmp_path / name)[1]["columns"]["tokens"] == "list<element: int64>"


def test_what_is_there_is_not_touched(run, run_json, store, parquet):
    before = sorted(p.name for p in store.rglob("*"))
    code, told = run_json("convert", parquet, store)
    assert (code, told["error"]) == (2, "AlreadyExists")
    assert sorted(p.name for p in store.rglob("*")) == before


def test_append_and_overwrite_and_resume(run_json, store, parquet):
    code, told = run_json("convert", parquet, store, "--if-exists", "append", "--workers", 1)
    assert (code, told["snapshot"], told["splits"]) == (0, 2, {"train": 100})
    code, told = run_json("convert", parquet, store, "--if-exists", "overwrite", "--workers", 1)
    assert (code, told["snapshot"], told["splits"]) == (0, 3, {"train": 50})
    code, told = run_json("convert", parquet, store, "--if-exists", "resume", "--workers", 1)
    assert (code, told["record_count"], told["splits"]) == (0, 0, {"train": 50})


def test_token_files(run_json, tmp_path):
    np.arange(100, dtype=np.uint32).tofile(tmp_path / "t.bin")
    options = ("--token-dtype", "uint32", "--record-tokens", 10, "--workers", 1)
    code, told = run_json("convert", tmp_path / "t.bin", tmp_path / "s", *options)
    assert (code, told["record_count"]) == (0, 10)


def test_a_malformed_source_is_the_data_s_fault(run_json, tmp_path):
    with gzip.open(tmp_path / "bad.jsonl.gz", "wt") as file:
        file.write('{"a": 1}\nnot json\n')
    code, told = run_json("convert", tmp_path / "bad.jsonl.gz", tmp_path / "s")
    assert code == 1
    assert "bad.jsonl.gz" in told["message"]


def test_a_source_that_is_not_there(run_json, tmp_path):
    code, told = run_json("convert", tmp_path / "nowhere", tmp_path / "s")
    assert code in (1, 2)
    assert "nowhere" in told["message"]


@pytest.mark.parametrize("total", [None, 0, 1000])
def test_the_progress_line_fits_whatever_is_known(capsys, total):
    bar = _Bar()
    bar(10, 100, 0, total)
    bar(10_000_000, 10**12, 1000, total)
    bar.end()
    err = capsys.readouterr().err
    assert "10,000,000 records" in err
    assert err.endswith("\r")
