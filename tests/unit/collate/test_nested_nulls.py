"""A null around numbers makes them null: no format shows what Arrow happens to keep below it."""

from __future__ import annotations

import pyarrow as pa
import pytest

import shufflestore as ss

STRUCT = pa.StructArray.from_arrays([pa.array([1, 7]), pa.array(["a", "b"])], ["n", "s"], mask=pa.array([False, True]))
FIXED = pa.FixedSizeListArray.from_arrays(pa.array([1, 2, 3, 4]), 2, mask=pa.array([False, True]))


@pytest.fixture
def store(tmp_path):
    table = pa.table({"struct": STRUCT, "fixed": FIXED})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    ss.convert(tmp_path / "a.arrow", tmp_path / "store", options=ss.ConvertOptions(worker_count=1))
    return tmp_path / "store"


@pytest.mark.parametrize("format", ["torch", "numpy"])
@pytest.mark.parametrize("column", ["struct", "fixed"])
def test_numbers_below_a_null_are_refused(store, column, format):
    with pytest.raises(TypeError, match="nulls"):
        next(iter(ss.DataLoader(store, batch_size=2, columns=[column], format=format)))


def test_or_filled(store):
    batch = next(iter(ss.DataLoader(store, batch_size=2, format="numpy", fill_nulls=-1)))
    assert batch["struct"]["n"].tolist() == [1, -1]
    assert batch["struct"]["s"] == ["a", None]
    assert batch["fixed"].tolist() == [[1, 2], [-1, -1]]


def test_single_records_keep_structs_whole(store):
    data = ss.open(store)
    assert [data[i]["struct"] for i in range(2)] == [{"n": 1, "s": "a"}, None]
    assert data.__getitems__([0, 1])[1]["fixed"] is None
