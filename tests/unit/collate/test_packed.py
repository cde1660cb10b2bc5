"""Packed batches: what they are over, what moves, and where int32 ends."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

import shufflestore as ss
from shufflestore.collate.layouts import Jagged, collator, map_arrays
from shufflestore.collate.packed import Packed, packed
from shufflestore.collate.tables import assembler
from shufflestore.collate.tensors import tensor
from shufflestore.errors import OptionError
from shufflestore.format.decode import Column

LIST = pa.list_(pa.int8())


def test_values_are_the_memory_that_was_read_into():
    values = np.array([1, 2, 3], np.int32)
    made = packed("x", values, np.array([0, 2, 3]), tensor)
    assert made.values.data_ptr() == values.ctypes.data


@pytest.mark.parametrize("records", [0, 2])
def test_a_batch_without_elements_has_zero_length(records):
    made = packed("x", np.empty(0, np.int32), np.zeros(records + 1, np.int64))
    assert (len(made), made.max_seqlen, made.position_ids.tolist()) == (records, 0, [])
    assert made.cu_seqlens.tolist() == [0] * (records + 1)


def test_counts_beyond_int32_are_refused_before_anything_is_made_of_them():
    total = 2**31
    values = np.broadcast_to(np.int8(0), total)  # takes no memory
    column = Column(LIST, 1, offsets=np.array([0, total]), children=(Column(pa.int8(), total, values=values),))
    with pytest.raises(OptionError, match=r"column 'x' has 2,147,483,648 elements.*up to 2,147,483,647.*batch_size"):
        collator("x", LIST, "packed")(column)


def test_only_values_change_their_type_and_all_parts_move():
    made = packed("x", np.arange(3), np.array([0, 3]), tensor).to(torch.float16)
    types = (made.values.dtype, made.cu_seqlens.dtype, made.position_ids.dtype)
    assert types == (torch.float16, torch.int32, torch.int64)
    there = made.to("meta", non_blocking=True)
    assert {there.values.device.type, there.cu_seqlens.device.type, there.position_ids.device.type} == {"meta"}
    assert (there.max_seqlen, len(there)) == (3, 1)


def test_every_array_of_it_is_found_by_what_walks_a_batch():
    made = map_arrays({"x": packed("x", np.ones(3), np.array([0, 3]))}, lambda a: a * 2)["x"]
    assert isinstance(made, Packed)
    assert (made.values.tolist(), made.cu_seqlens.tolist(), made.max_seqlen) == ([2, 2, 2], [0, 6], 3)


def test_lists_that_are_not_of_numbers_come_as_in_the_other_layouts(tmp_path):
    table = pa.table({"deep": [[[1], []], []], "text": [["a"], []], "at": [{"in": [1, 2]}, {"in": []}]})
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    ss.index(tmp_path / "x.arrow")
    batch = next(iter(ss.DataLoader(tmp_path / "x.arrow", batch_size=2, layout="packed")))
    assert isinstance(batch["deep"], Jagged)
    assert batch["text"] == [["a"], []]
    assert batch["at"]["in"].cu_seqlens.tolist() == [0, 2, 2]


@pytest.mark.parametrize("layout", ["packed", "nested"])
def test_tables_have_arrow_s_own_lists_and_the_layout_is_refused(layout):
    with pytest.raises(OptionError, match=f"layout='{layout}'.*format='arrow'"):
        assembler(pa.schema([("x", LIST)]), ["x"], "arrow", layout)
