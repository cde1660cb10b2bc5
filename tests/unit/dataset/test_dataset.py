"""A data set as people hold it: numbers, views, batches, and the errors they meet."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.dataset.dataset import BatchOptions
from shufflestore.dataset.inplace import index
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.errors import OptionError, SchemaError, ShuffleStoreError
from tests.invented import arrow_bytes, memory_store, opened

N = 50
TABLE = pa.table({"x": range(N), "s": [str(i) for i in range(N)], "l": [[i] * (i % 3) for i in range(N)]})


@pytest.fixture(scope="module")
def dataset():
    return opened(memory_store([arrow_bytes(TABLE.slice(0, 20), 7), arrow_bytes(TABLE.slice(20), 9)]))


def test_take_gives_row_i_for_the_ith_number(dataset):
    ids = [49, 0, 0, 20, 19]
    assert dataset.take(ids) == TABLE.take(ids)
    assert dataset.take(np.array(ids, np.uint8), columns=["s", "x"]) == TABLE.take(ids).select(["s", "x"])


@pytest.mark.parametrize("bad", [[50], [-1], [0, 2**63], np.array([2**64 - 1], np.uint64)])
def test_a_number_outside_is_refused_with_what_is_allowed(dataset, bad):
    with pytest.raises(OptionError, match=r"does not exist|chosen by a list"):
        dataset.take(bad)


@pytest.mark.parametrize("bad", [["a"], [1.5], [[1]], [True, False], [None]])
def test_records_are_chosen_by_integers_only(dataset, bad):
    with pytest.raises(OptionError, match="list of integers"):
        dataset.take(bad)


def test_items_are_those_of_a_sequence(dataset):
    assert dataset[3] == {"x": 3, "s": "3", "l": pytest.approx(np.array([]))}
    assert dataset[-1]["s"] == "49"
    assert [r["x"] for r in dataset.__getitems__([5, 5, 2])] == [5, 5, 2]
    assert [r["x"] for r in dataset[10:20:3].__getitems__([0, 3])] == [10, 19]
    for outside in (N, -N - 1):
        with pytest.raises(IndexError, match="does not exist"):
            dataset[outside]


@pytest.mark.parametrize(
    "ids",
    [range(5, 40, 3), range(40, 5, -7), [3, 3, 1], slice(None, None, -1), np.arange(7), range(0), [], slice(10, 5)],
)
def test_views_of_views_are_what_a_list_would_be(dataset, ids):
    whole = list(range(N))
    expected = whole[ids] if isinstance(ids, slice) else [whole[i] for i in ids]
    view = dataset.select(ids)
    assert [r["x"] for r in view.__getitems__(range(len(view)))] == expected
    for inner in (range(len(expected) - 1, -1, -1), slice(1, None, 2), list(range(len(expected)))[::3]):
        again = expected[inner] if isinstance(inner, slice) else [expected[i] for i in inner]
        narrowed = view.select(inner)
        assert narrowed.take(range(len(narrowed)))["x"].to_pylist() == again


def test_views_have_identities_of_their_own_and_the_whole_has_the_stores(dataset):
    views = [
        dataset,
        dataset.select(range(10)),
        dataset.select(range(10, 0, -1)),
        dataset.select([1, 2]),
        dataset.select([2, 1]),
    ]
    assert len({v.identity for v in views}) == 5
    assert dataset.select(range(N)).identity == dataset.identity
    assert dataset.project(["s"]).identity == dataset.identity


def test_projections_deliver_and_name_only_their_columns(dataset):
    view = dataset.project(["l", "x"])
    assert view.column_names == view.schema.names == ["l", "x"]
    assert view.take([2]).column_names == ["l", "x"]
    with pytest.raises(SchemaError, match="no column 's'"):
        view.take([0], columns=["s"])
    with pytest.raises(OptionError, match="write columns=\\['x'\\]"):
        dataset.project("x")
    with pytest.raises(OptionError, match="twice"):
        dataset.project(["x", "x"])


def test_batches_in_order_and_shuffled_are_each_record_once(dataset):
    plain = [b["x"].tolist() for b in dataset.batches(8)]
    assert plain == [list(range(i, min(i + 8, N))) for i in range(0, N, 8)]
    shuffled = [i for b in dataset.batches(8, shuffle=True, seed=1) for i in b["x"].tolist()]
    assert sorted(shuffled) == list(range(N))
    assert shuffled != list(range(N))
    assert shuffled == [i for b in dataset.batches(3, shuffle=True, seed=1) for i in b["x"].tolist()]
    assert shuffled != [i for b in dataset.batches(8, shuffle=True, seed=1, epoch=1) for i in b["x"].tolist()]


def test_batches_of_a_view_carry_its_own_ids(dataset):
    view = dataset.select(range(40, 20, -2))
    for batch in view.batches(4, shuffle=True, options=BatchOptions(return_ids=True)):
        assert sorted(batch) == ["l", "record_id", "s", "x"]
        assert batch["x"].tolist() == batch["record_id"].tolist()


def test_arrow_batches_have_the_schema_of_the_data(dataset):
    tables = list(dataset.batches(20, format="arrow"))
    assert pa.concat_tables(tables) == TABLE
    assert tables[0].schema == TABLE.schema


def test_what_batches_cannot_do_is_said_before_anything_is_read(dataset):
    with pytest.raises(OptionError, match="format 'pandas'"):
        dataset.batches(4, format="pandas")
    with pytest.raises(ShuffleStoreError):
        dataset.batches(0)
    clash = opened(memory_store([arrow_bytes(pa.table({"record_id": [1]}))]))
    with pytest.raises(OptionError, match="record_id"):
        clash.batches(1, options=BatchOptions(return_ids=True))


def test_extension_types_and_metadata_come_back_on_tables():
    field = pa.field("u", pa.uuid(), metadata={"k": "v"})
    values = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16, None], pa.binary(16)))
    table = pa.table([values], schema=pa.schema([field], metadata={"huggingface": "{}"}))
    taken = opened(memory_store([arrow_bytes(table)])).take([1, 0])
    assert taken.schema.equals(table.schema, check_metadata=True)
    assert taken["u"].combine_chunks().storage.to_pylist() == [None, b"x" * 16]


def test_a_data_set_travels_as_a_path_and_a_view(tmp_path):
    path = tmp_path / "data.arrow"
    path.write_bytes(arrow_bytes(TABLE, 8))
    index(path)
    with open_dataset(path) as here:
        text = pickle.dumps(here.select(range(9, 0, -1)).project(["x"]))
        assert len(text) < 3000
        assert pickle.loads(text).take([0, 8]).to_pydict() == {"x": [9, 1]}
        path.write_bytes(arrow_bytes(TABLE.slice(0, 5)))
        index(path)
        with pytest.raises(ShuffleStoreError, match="changed between two processes"):
            pickle.loads(text)
