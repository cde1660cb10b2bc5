"""Projections and programs: which reads, bits, levels and copies a set of columns needs, in each shard's layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from shufflestore import _native
from shufflestore.errors import CorruptData
from shufflestore.format.layout import layout_of
from shufflestore.format.resolve import Arena, Window, program_for, resolve, wanted_for, widened
from shufflestore.format.schema import build_tree
from shufflestore.storage.base import READ
from tests.invented import arrow_bytes, index_of, joined, memory_store, opened

SCHEMA = pa.schema([("a", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.int32())), ("b", pa.bool_())])
TREE = build_tree(SCHEMA)


def test_a_projection_wants_only_what_its_columns_need():
    wanted = wanted_for(TREE, (1,), ())
    assert [TREE.nodes[b.node].name for b in wanted.reads] == ["s"]
    assert (len(wanted.levels), wanted.fixed_bytes, len(wanted.bits), wanted.outputs) == (1, 0, 1, {1: 0})
    assert wanted_for(TREE, (0, 3), ()).fixed_bytes == 8
    assert wanted_for(TREE, (0, 3), ()).outputs == {}


def test_the_same_projection_is_the_same_object():
    assert wanted_for(TREE, (1, 2), ()) is wanted_for(TREE, (1, 2), ())
    layout = layout_of(TREE, (True,) * len(TREE.buffers), True)
    assert program_for(layout, wanted_for(TREE, (1,), ())) is program_for(layout, wanted_for(TREE, (1,), ()))


def test_buffers_that_a_shard_lacks_are_answered_without_a_read():
    table = pa.table({"l": pa.array([[1], [2, 3]], pa.list_(pa.int32()))})
    dataset = opened(memory_store([arrow_bytes(table)]))
    wanted = dataset.projection().wanted
    indexes = dataset.reading.indexes
    found = indexes.resolve(indexes.find(np.arange(2)), np.array([2]), wanted, True)
    validity = next(b.number for b in wanted.reads if b.role.name == "VALIDITY")
    assert found.places[0][wanted.read_of[validity]][1] == 0
    assert len(found.reads) == 2
    assert found.all_valid[wanted.bit_range_of[validity]]
    assert all(found.all_set)


def test_columns_that_a_shard_holds_whole_answer_with_no_ranges():
    table = pa.table({"s": ["a", "b"], "l": pa.array([[1], [2, 3]], pa.list_(pa.int32()))})
    packed, plain = arrow_bytes(table, codec="zstd"), arrow_bytes(table)
    dataset = opened(memory_store([packed, plain]))
    indexes, wanted = dataset.reading.indexes, dataset.projection().wanted
    found = indexes.resolve(indexes.find(np.arange(4)), np.array([4]), wanted, True)
    assert found.counts.tolist() == [[0, 0, 1, 1], [0, 0, 1, 2]]
    assert found.reads.view(READ)["reserved"].reshape(-1).tolist() == [2, 3, 2, 3]


def test_widening_names_the_buffers_of_the_types_it_has_rules_for():
    tree = build_tree(pa.schema([("t", pa.list_(pa.uint16())), ("u", pa.uint16()), ("i", pa.int32())]))
    assert sorted(tree.nodes[tree.buffers[b].node].name for b in widened(tree, {"uint16": "i8"})) == ["t.item", "u"]


def test_hundreds_of_levels_are_resolved_together():
    table = pa.table({f"s{i}": [str(i), None] for i in range(300)})
    assert opened(memory_store([arrow_bytes(table)])).take([0, 1]).to_pylist() == table.to_pylist()


def one(entry: int) -> Window:
    return Window(np.zeros(1, np.int64), np.array([entry]), np.zeros(1, np.uint32), None, np.array([1]))


@pytest.mark.parametrize("entry", [-1, 2, 10**6])
def test_an_entry_outside_its_page_is_refused(entry):
    built = index_of(arrow_bytes(pa.table({"s": ["a", "b"]})))
    layout = built.header.layout
    arena = Arena(
        np.frombuffer(joined(built), np.uint8)[built.header.pages_at :], np.ones(1, np.int32), layout.page_bytes
    )
    wanted = wanted_for(layout.tree, (0,), ())
    with pytest.raises(CorruptData, match=f"contradicts itself at entry {entry} of page 0"):
        resolve(arena, [program_for(layout, wanted)], one(entry), wanted, True)


def test_a_page_that_is_not_there_is_asked_for_and_not_read():
    layout = index_of(arrow_bytes(pa.table({"s": ["a", "b"]}))).header.layout
    wanted = wanted_for(layout.tree, (0,), ())
    arena = Arena(np.empty(0, np.uint8), np.zeros(1, np.int32), layout.page_bytes)
    assert resolve(arena, [program_for(layout, wanted)], one(0), wanted, True) is None


def test_numbers_that_lead_outside_are_refused_before_anything_is_touched():
    layout = index_of(arrow_bytes(pa.table({"s": ["a", "b"], "x": [1, 2]}))).header.layout
    wanted, other = wanted_for(layout.tree, (0, 1), ()), wanted_for(layout.tree, (0,), ())
    arena = Arena(np.empty(0, np.uint8), np.zeros(1, np.int32), layout.page_bytes)
    with pytest.raises(ValueError, match="another projection"):
        resolve(arena, [program_for(layout, other)], one(0), wanted, True)
    with pytest.raises(ValueError, match="layout has no program"):
        resolve(arena, [program_for(layout, wanted)], replace(one(0), layout=np.array([1])), wanted, True)
    for ends in ([2], [-1], [0]):
        with pytest.raises(ValueError, match="batch"):
            resolve(arena, [program_for(layout, wanted)], replace(one(0), batch_ends=np.array(ends)), wanted, True)
    geometry, none = np.array([32, 12, 4096, 0]), np.empty((0, 8), np.int64)
    for level in ([9, 24, 0, 0], [8, 25, 0, 0], [8, 24, 0, 1]):
        with pytest.raises(ValueError, match="program: a level"):
            _native.Program(geometry, np.array([level]), none, none[:, :2], none[:, :3], none[0:0, 0])
