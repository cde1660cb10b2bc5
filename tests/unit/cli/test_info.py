"""`shufflestore info`."""

from __future__ import annotations


def test_for_people(run, store):
    code, out = run("info", store)
    assert code == 0
    assert out.splitlines()[0] == f"{store}: 50 records in 1 shards, snapshot 1"
    assert "  split train: 50 records" in out
    assert "  column label: int64" in out
    assert "  narrow: some shards store integers of lists in fewer bytes" in out


def test_as_json(run_json, store):
    code, told = run_json("info", store)
    assert code == 0
    assert told["record_count"] == 50
    assert told["features"] == ["narrow"]
    assert told["columns"] == {"text": "string", "tokens": "list<element: int64>", "label": "int64"}
    files = {kind: sum(p.stat().st_size for p in store.glob(f"shards/*.{kind}")) for kind in ("arrow", "rows")}
    assert (told["data_bytes"], told["index_bytes"]) == (files["arrow"], files["rows"])


def test_what_is_no_data_set(run_json, tmp_path):
    code, told = run_json("info", tmp_path / "nowhere")
    assert (code, told["error"]) == (2, "NotFound")
    code, told = run_json("info", tmp_path)
    assert (code, told["error"]) == (1, "SourceError")
