"""Projections and programs: which reads, bits, levels and copies a set of columns needs, in each shard's layout."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from shufflestore import _native
from shufflestore.dataset.reading import widening
from shufflestore.format.layout import layout_of
from shufflestore.format.resolve import (
    PAGE_MISSING,
    RESOLVED,
    SHARD_MISSING,
    program_for,
    resolve,
    wanted_for,
    widened,
)
from shufflestore.format.schema import build_tree
from shufflestore.storage.base import READ
from tests.invented import arrow_bytes, index_of, joined, memory_store, opened

SCHEMA = pa.schema([("a", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.int32())), ("b", pa.bool_())])
TREE = build_tree(SCHEMA)


def test_a_projection_wants_only_what_its_columns_need():
    wanted = wanted_for(TREE, (1,), (), widening)
    assert [TREE.nodes[b.node].name for b in wanted.reads] == ["s"]
    assert (len(wanted.levels), wanted.fixed_bytes, len(wanted.bits), wanted.outputs) == (1, 0, 1, {1: 0})
    assert wanted_for(TREE, (0, 3), (), widening).fixed_bytes == 8
    assert wanted_for(TREE, (0, 3), (), widening).outputs == {}


def test_the_same_projection_is_the_same_object():
    assert wanted_for(TREE, (1, 2), (), widening) is wanted_for(TREE, (1, 2), (), widening)
    layout = layout_of(TREE, (True,) * len(TREE.buffers), True)
    assert program_for(layout, wanted_for(TREE, (1,), (), widening)) is program_for(
        layout, wanted_for(TREE, (1,), (), widening)
    )


def test_buffers_that_a_shard_lacks_are_answered_without_a_read():
    table = pa.table({"l": pa.array([[1], [2, 3]], pa.list_(pa.int32()))})
    dataset = opened(memory_store([arrow_bytes(table)]))
    wanted = dataset.projection().wanted
    indexes = dataset.reading.indexes
    found = indexes.resolve(np.arange(2), np.array([2]), wanted, True)
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
    found = indexes.resolve(np.arange(4), np.array([4]), wanted, True)
    assert found.counts.tolist() == [[0, 0, 1, 1], [0, 0, 1, 2]]
    assert found.reads.view(READ)["reserved"].reshape(-1).tolist() == [2, 3, 2, 3]


def test_widening_names_the_buffers_of_the_types_it_has_rules_for():
    tree = build_tree(pa.schema([("t", pa.list_(pa.uint16())), ("u", pa.uint16()), ("i", pa.int32())]))
    assert sorted(tree.nodes[tree.buffers[b].node].name for b in widened(tree, {"uint16": "i8"})) == ["t.item", "u"]


def test_hundreds_of_levels_are_resolved_together():
    table = pa.table({f"s{i}": [str(i), None] for i in range(300)})
    assert opened(memory_store([arrow_bytes(table)])).take([0, 1]).to_pylist() == table.to_pylist()


def setting(table: pa.Table, **changes):
    """Return the arguments of `resolve` for record 0 of a table, some of them changed."""
    built = index_of(arrow_bytes(table))
    header = built.header
    wanted = wanted_for(header.layout.tree, tuple(range(len(table.schema))), (), widening)
    one = {
        "first_id": np.array([0, header.row_count]),
        "page_rows": np.array([header.layout.rows_per_page]),
        "chunk_rows": np.array([header.chunk_rows]),
        "chunk_pages": np.array([header.pages_per_chunk]),
        "first_page": np.array([0, header.page_count]),
        "layout": np.array([0]),
        "files": np.zeros(1, np.uint32),
        "chunks": np.array([0]),
        "chunk_first_row": np.empty(0, np.int64),
        "chunk_first_page": np.empty(0, np.int64),
    }
    pages = np.frombuffer(joined(built), np.uint8)[header.pages_at :]
    shards = _native.Shards(**one | {name: changes.pop(name) for name in list(changes) if name in one})
    given = {
        "arena": _native.Arena(pages, changes.pop("slot_of", np.ones(1, np.int32)), header.layout.page_bytes),
        "shards": shards,
        "programs": [program_for(header.layout, wanted)],
        "ids": np.array([0]),
        "batch_ends": np.array([1]),
        "wanted": wanted,
        "verify": True,
    }
    return given | changes


TWO = pa.table({"s": ["a", "b"], "x": [1, 2]})


def test_a_page_or_a_shard_that_is_not_there_is_asked_for_and_not_read():
    assert resolve(**setting(TWO))[0] == RESOLVED
    assert resolve(**setting(TWO, slot_of=np.zeros(1, np.int32)))[0] == PAGE_MISSING
    assert resolve(**setting(TWO, page_rows=np.array([0])))[0] == SHARD_MISSING


@pytest.mark.parametrize(
    "change",
    [{"chunk_rows": np.array([1000])}, {"slot_of": np.array([2], np.int32)}, {"slot_of": np.array([-5], np.int32)},
     {"first_page": np.array([7, 8])}, {"first_page": np.array([-1, 0])}, {"page_rows": np.array([1])}],
    ids=str,
)  # fmt: skip
def test_an_entry_or_a_page_outside_what_there_is_is_refused_and_not_read(change):
    found, _ = resolve(**setting(TWO, first_id=np.array([0, 1000]), ids=np.array([999]), **change))
    assert found == 0


def test_numbers_that_lead_outside_are_refused_before_anything_is_touched():
    other = wanted_for(TREE, (0,), (), widening)
    layout = layout_of(TREE, (True,) * len(TREE.buffers), True)
    for wrong, error, message in (
        ({"programs": [program_for(layout, other)]}, ValueError, "another projection"),
        ({"programs": []}, ValueError, "layout has no program"),
        ({"layout": np.array([1])}, ValueError, "layout has no program"),
        ({"chunk_rows": np.array([0])}, ValueError, "chunks of a shard are not in the table"),
        ({"batch_ends": np.array([2])}, ValueError, "batch"),
        ({"batch_ends": np.array([-1])}, ValueError, "batch"),
        ({"batch_ends": np.array([0])}, ValueError, "batch"),
        ({"ids": np.array([2])}, IndexError, r"record 2 does not exist; allowed are \[0, 2\)"),
        ({"ids": np.array([-1])}, IndexError, "record -1"),
    ):
        with pytest.raises(error, match=message):
            resolve(**setting(TWO, **wrong))


def test_programs_that_lead_outside_an_entry_are_refused():
    geometry, none = np.array([32, 12, 4096, 0]), np.empty((0, 10), np.int64)
    two, three, nothing = np.empty((0, 2), np.int64), np.empty((0, 3), np.int64), np.empty(0, np.int64)
    for level in ([9, 24, 0, 0], [8, 25, 0, 0], [8, 24, 0, 1], [8, -1, 0, 0]):
        with pytest.raises(ValueError, match="program: a level"):
            _native.Program(geometry, np.array([level]), none, two, three, nothing)
    for copied in ([5, 0, 8], [0, 0, 8], [-1, 0, 4]):
        with pytest.raises(ValueError, match="program: a copied value"):
            _native.Program(geometry, np.empty((0, 4), np.int64), none, two, np.array([copied]), nothing)
    with pytest.raises(ValueError, match="program: a bit"):
        _native.Program(geometry, np.empty((0, 4), np.int64), none, np.array([[96, 0]]), three, nothing)
