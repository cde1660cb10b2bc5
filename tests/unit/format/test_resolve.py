"""Projections and programs: which reads, bits, levels and copies a set of columns needs, in each shard's layout."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.errors import CorruptData
from shufflestore.format.layout import layout_of
from shufflestore.format.resolve import Located, locate, program_for, wanted_for, widened
from shufflestore.format.schema import build_tree
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
    found, _ = dataset.reading.indexes.locate(dataset.reading.indexes.find(np.arange(2)), wanted)
    validity = next(i for i, b in enumerate(wanted.reads) if b.role.name == "VALIDITY")
    assert found.size[:, validity].tolist() == [0, 0]
    assert found.all_valid[validity]
    assert found.is_all_set


def test_columns_that_a_shard_holds_whole_answer_with_no_ranges():
    whole = build_tree(SCHEMA, [1])
    program = program_for(layout_of(whole, (True,) * len(whole.buffers), True), wanted_for(TREE, (0, 1, 2), ()))
    assert program.levels[0].tolist()[:2] == [-1, -1]
    assert program.reads[0, 4] == -1
    assert program.levels[1, 0] >= 0


def test_widening_names_the_buffers_of_the_types_it_has_rules_for():
    tree = build_tree(pa.schema([("t", pa.list_(pa.uint16())), ("u", pa.uint16()), ("i", pa.int32())]))
    assert sorted(tree.nodes[tree.buffers[b].node].name for b in widened(tree, {"uint16": "i8"})) == ["t.item", "u"]


def test_hundreds_of_levels_are_resolved_together():
    table = pa.table({f"s{i}": [str(i), None] for i in range(300)})
    assert opened(memory_store([arrow_bytes(table)])).take([0, 1]).to_pylist() == table.to_pylist()


@pytest.mark.parametrize("slot", [-1, 2, 10**6])
def test_an_entry_outside_its_page_is_refused(slot):
    built = index_of(arrow_bytes(pa.table({"s": ["a", "b"]})))
    arena = np.frombuffer(joined(built), np.uint8)[built.header.pages_at :]
    wanted = wanted_for(built.header.layout.tree, (0,), ())
    program = program_for(built.header.layout, wanted)
    one = np.zeros(1, np.int64)
    with pytest.raises(CorruptData, match=f"contradicts itself at entry {slot} of the page at 0"):
        locate(arena, one, np.array([slot]), one, program, Located.empty(1, wanted))
