"""`shufflestore index`: beside the data, and the data untouched."""

from __future__ import annotations

import pyarrow as pa
import pytest

import shufflestore as ss


@pytest.fixture
def folder(tmp_path):
    table = pa.table({"x": range(100), "text": [f"t{i}" for i in range(100)]})
    (tmp_path / "data").mkdir()
    with pa.ipc.new_file(tmp_path / "data" / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=16)
    return tmp_path / "data"


def test_it_says_where_the_index_is(run, folder):
    before = (folder / "a.arrow").read_bytes()
    code, out = run("index", folder)
    assert code == 0
    assert out.rstrip().endswith(f"-> {folder / '.shufflestore'}")
    assert (folder / "a.arrow").read_bytes() == before
    assert ss.open(folder).take([42])["x"].to_pylist() == [42]


def test_as_json_without_checksums(run_json, folder):
    code, told = run_json("index", folder, "--no-checksums")
    assert code == 0
    assert told["data_bytes"] == (folder / "a.arrow").stat().st_size
    code, report = run_json("verify", folder)
    assert (code, report["unchecked_shard_count"]) == (0, 1)


def test_damaged_and_missing_data(run_json, folder, tmp_path):
    data = folder / "a.arrow"
    data.write_bytes(data.read_bytes()[:-100])
    code, told = run_json("index", folder)
    assert (code, "a.arrow" in told["message"]) == (1, True)
    code, told = run_json("index", tmp_path / "nowhere")
    assert (code, told["error"]) == (2, "NotFound")
