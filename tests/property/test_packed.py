"""Layouts packed and nested hold what their naive twins hold, for any records, element type and nulls."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from shufflestore.collate.layouts import collator
from shufflestore.collate.tables import assembler
from shufflestore.collate.tensors import tensor
from tests.invented import arrow_bytes, memory_store, opened
from tests.naive import packed as naive

NUMBERS = st.integers(-(2**31), 2**31 - 1)
RECORDS = st.lists(st.lists(NUMBERS, max_size=9) | st.none(), min_size=1, max_size=20)


def read(records, type_=None, codec=None):
    array = pa.array(records, pa.list_(type_ or pa.int32()))
    data = opened(memory_store([arrow_bytes(pa.table({"x": array, "same": array}), codec=codec)]))
    return data, data.columns_at(np.arange(len(records)), data.projection())


@given(RECORDS, st.sampled_from([None, "zstd"]))
@example([[]], None)
@example([None, [1], []], None)
def test_packed_is_its_naive_twin(records, codec):
    data, columns = read(records, codec=codec)
    values, ends, longest, places = naive.packed([record or [] for record in records])
    for leaf, int32, int64 in ((None, np.int32, np.int64), (tensor, torch.int32, torch.int64)):
        made = assembler(data.schema, ["x"], "arrays", "packed", leaf=leaf)(np.arange(len(records)), columns)["x"]
        assert (made.values.tolist(), made.cu_seqlens.tolist()) == (values, ends)
        assert (made.max_seqlen, made.position_ids.tolist(), len(made)) == (longest, places, len(records))
        assert (made.values.dtype, made.cu_seqlens.dtype, made.position_ids.dtype) == (int32, int32, int64)


@given(st.lists(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=5), min_size=1, max_size=8))
def test_packed_elements_may_have_a_shape(records):
    _, columns = read(records, pa.list_(pa.int32(), 2))
    made = collator("x", columns["x"].type, "packed")(columns["x"])
    values, ends, longest, places = naive.packed(records)
    assert made.values.shape == (len(values), 2)
    assert made.values.tolist() == [list(pair) for pair in values]
    assert (made.cu_seqlens.tolist(), made.max_seqlen, made.position_ids.tolist()) == (ends, longest, places)


@given(RECORDS)
@example([[]])
@example([[], [], []])
def test_nested_holds_the_records_and_equal_lengths_can_be_computed_with_each_other(records):
    data, columns = read(records)
    made = assembler(data.schema, ["x", "same"], "arrays", "nested", leaf=tensor)(np.arange(len(records)), columns)
    expected = [record or [] for record in records]
    assert made["x"].layout == torch.jagged
    assert [record.tolist() for record in made["x"].unbind()] == expected
    doubled = made["x"].to(torch.int64) + made["same"]
    assert [record.tolist() for record in doubled.unbind()] == [[2 * n for n in record] for record in expected]
