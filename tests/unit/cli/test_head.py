"""`shufflestore head`."""

from __future__ import annotations

import numpy as np

import shufflestore as ss
from shufflestore.cli.head import _jsonable, _short
from shufflestore.orders.epoch import make_order


def test_the_first_records(run, store):
    code, out = run("head", store, "-n", 2)
    assert code == 0
    assert out.splitlines() == [
        "{text: 'record 0', tokens: [], label: 0}",
        "{text: 'record 1', tokens: [0], label: 1}",
    ]


def test_as_json_with_columns(run_json, store):
    code, told = run_json("head", store, "--columns", "label", "--records", 3)
    assert (code, told["records"]) == (0, [{"label": 0}, {"label": 1}, {"label": 2}])


def test_more_than_there_are(run_json, store):
    assert len(run_json("head", store, "-n", 1000)[1]["records"]) == 50


def test_shuffled_as_epoch_0_is(run_json, store):
    _, told = run_json("head", store, "--shuffle", "--seed", 3, "-n", 5)
    expected = make_order("global", 50, 3, 0).ids(np.arange(5)).tolist()
    assert [r["label"] for r in told["records"]] == expected


def test_in_the_block_order(run_json, store):
    _, told = run_json("head", store, "--blocks", "--seed", 3, "-n", 5)
    expected = make_order(f"blocks:{ss.open(store).block_records}:64", 50, 3, 0).ids(np.arange(5)).tolist()
    assert [r["label"] for r in told["records"]] == expected


def test_an_empty_data_set(run, tmp_path):
    with ss.Writer(tmp_path / "s", schema=ss.open.__globals__["pa"].schema({"x": "int64"})):
        pass
    assert run("head", tmp_path / "s") == (0, "")


def test_a_column_that_is_not_there(run_json, store):
    code, told = run_json("head", store, "--columns", "nothing")
    assert (code, told["error"]) == (1, "SchemaError")


def test_long_values_are_shortened():
    assert _short(list(range(100))) == "[0, 1, 2, 3, 4, 5, 6, 7, ... 100 in all]"
    assert len(_short("x" * 1000)) == 100
    assert _jsonable(b"\x00\xff") == {"base64": "AP8="}
