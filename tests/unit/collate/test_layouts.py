"""Columns of a batch as numpy arrays: jagged, padded or listed, with nulls only where somebody says what they are."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.collate.layouts import Jagged, Padded, arrays_of, map_arrays, to_numpy
from shufflestore.errors import OptionError, SchemaError
from tests.invented import arrow_bytes, memory_store, opened


def column(values, type_=None, codec=None):
    array = values if isinstance(values, pa.Array) else pa.array(values, type_)
    dataset = opened(memory_store([arrow_bytes(pa.table({"c": array}), codec=codec)]))
    return dataset.columns_at(np.arange(len(array)), dataset.projection())["c"]


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_lists_of_numbers_are_jagged_padded_or_listed_with_the_same_values(codec):
    values = [[1, 2], [], [3], [4, 5, 6]]
    made = column(values, pa.list_(pa.int32()), codec)
    jagged = to_numpy("c", made)
    assert isinstance(jagged, Jagged)
    assert [r.tolist() for r in jagged] == values
    assert (jagged[-1].tolist(), jagged.lengths.tolist(), len(jagged)) == ([4, 5, 6], [2, 0, 1, 3], 4)
    padded = to_numpy("c", made, "padded")
    assert isinstance(padded, Padded)
    assert padded.values.tolist() == [[1, 2, 0], [0, 0, 0], [3, 0, 0], [4, 5, 6]]
    assert [row[mask].tolist() for row, mask in zip(padded.values, padded.mask, strict=True)] == values
    assert [r.tolist() for r in to_numpy("c", made, "list")] == values


def test_a_record_outside_a_jagged_batch_is_an_index_error():
    with pytest.raises(IndexError, match=r"allowed are \[0, 2\)"):
        to_numpy("c", column([[1], [2]]))[2]


@pytest.mark.parametrize("codec", [None, "lz4"])
@pytest.mark.parametrize(
    ("values", "type_", "dtype"),
    [
        ([1, 2], pa.int8(), np.int8),
        ([True, False], pa.bool_(), bool),
        ([0.5, 1.5], pa.float16(), np.float16),
        ([1, 2], pa.timestamp("s"), np.int64),
    ],
)
def test_numbers_are_arrays_of_their_own_type(values, type_, dtype, codec):
    made = to_numpy("c", column(values, type_, codec))
    assert made.dtype == dtype
    assert made.tolist() == [int(v) if dtype is np.int64 else v for v in values]


def test_fixed_shapes_are_stacked():
    made = to_numpy("c", column([[[1, 2], [3, 4], [5, 6]]] * 4, pa.list_(pa.list_(pa.int16(), 2), 3)))
    assert made.shape == (4, 3, 2)
    assert made[3].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_structs_are_dicts_and_lists_of_structs_jagged_dicts():
    made = to_numpy("c", column([{"a": 1, "s": "x"}, {"a": 2, "s": "y"}]))
    assert made["a"].tolist() == [1, 2]
    assert made["s"] == ["x", "y"]
    inner = to_numpy("c", column([[{"a": 1}], [], [{"a": 2}, {"a": 3}]]))
    assert inner[2]["a"].tolist() == [2, 3]


def test_strings_bytes_decimals_and_maps_are_lists():
    assert to_numpy("c", column(["a", None])) == ["a", None]
    assert to_numpy("c", column([b"\x00", b""])) == [b"\x00", b""]
    assert to_numpy("c", column([[("k", 1)], []], pa.map_(pa.string(), pa.int8()))) == [[("k", 1)], []]


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_null_numbers_are_refused_by_column_until_somebody_says_what_they_are(codec):
    made = column([1, None, 3], codec=codec)
    with pytest.raises(SchemaError, match=r"column 'c' has 1 nulls.*fill_nulls=\{'c': -1\}"):
        to_numpy("c", made)
    assert to_numpy("c", made, nulls=-1).tolist() == [1, -1, 3]
    assert to_numpy("c", made, nulls={"c": 7}).tolist() == [1, 7, 3]
    with pytest.raises(SchemaError):
        to_numpy("c", made, nulls={"other": 7})


def test_null_elements_need_the_same_word_and_a_null_list_is_an_empty_one():
    with pytest.raises(SchemaError):
        to_numpy("c", column([[1, None]]))
    assert [r.tolist() for r in to_numpy("c", column([[1, None], None]), nulls=0)] == [[1, 0], []]


def test_a_layout_that_does_not_exist_is_refused():
    with pytest.raises(OptionError, match="allowed are"):
        to_numpy("c", column([[1]]), "ragged")


def test_padding_any_lengths_keeps_every_value():
    r = random.Random(0)
    for _ in range(100):
        values = [[r.randint(1, 99) for _ in range(r.randint(0, 6))] for _ in range(r.randint(1, 9))]
        made = column(values, pa.list_(pa.int64()))
        padded = to_numpy("c", made, "padded")
        assert padded.values.shape == (len(values), max(map(len, values)))
        assert [row[:n].tolist() for row, n in zip(padded.values, padded.lengths, strict=True)] == values
        assert int(padded.values.sum()) == sum(map(sum, values))


def test_every_array_of_a_batch_is_found_and_changed_in_place_of_itself():
    batch = {
        "j": Jagged(np.ones(3), np.array([0, 3])),
        "p": Padded(np.ones((1, 2)), np.array([2])),
        "l": [np.ones(1), "text"],
        "s": "kept",
    }
    assert len(list(arrays_of(batch))) == 5
    doubled = map_arrays(batch, lambda a: a * 2)
    assert doubled["j"].values.tolist() == [2, 2, 2]
    assert doubled["l"][1] == "text"
    assert doubled["s"] == "kept"
    assert batch["p"].values.tolist() == [[1, 1]]
