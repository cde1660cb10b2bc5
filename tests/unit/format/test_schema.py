"""One walk over a schema numbers nodes, buffers and levels as Arrow's own messages do."""

from __future__ import annotations

import pyarrow as pa
import pytest

from shufflestore.errors import SchemaError, UnsupportedFeature
from shufflestore.format.arrowfile import column_shape
from shufflestore.format.schema import ROW, Role, build_tree, is_whole, plain_type, schema_digest
from tests.arrays import NESTED, SCALARS, TYPES, pool


def roles(tree) -> list[tuple[str, str, int, int, int]]:
    return [(tree.nodes[b.node].name, b.role.name, b.level, b.factor, b.width) for b in tree.buffers]


def test_the_example_of_the_format_page_is_numbered_in_preorder():
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    tree = build_tree(
        pa.schema([("tokens", pa.list_(pa.int32())), ("label", pa.int64()), ("messages", pa.list_(message))])
    )
    assert roles(tree) == [
        ("tokens", "VALIDITY", ROW, 1, 0),
        ("tokens", "OFFSETS", ROW, 1, 4),
        ("tokens.item", "VALIDITY", 0, 1, 0),
        ("tokens.item", "VALUES", 0, 1, 4),
        ("label", "VALIDITY", ROW, 1, 0),
        ("label", "VALUES", ROW, 1, 8),
        ("messages", "VALIDITY", ROW, 1, 0),
        ("messages", "OFFSETS", ROW, 1, 4),
        ("messages.item", "VALIDITY", 1, 1, 0),
        ("messages.item.role", "VALIDITY", 1, 1, 0),
        ("messages.item.role", "OFFSETS", 1, 1, 4),
        ("messages.item.role", "VALUES", 2, 1, 1),
        ("messages.item.content", "VALIDITY", 1, 1, 0),
        ("messages.item.content", "OFFSETS", 1, 1, 4),
        ("messages.item.content", "VALUES", 3, 1, 1),
    ]
    assert tree.level_count == 4


def test_fixed_size_lists_multiply_and_make_no_level():
    tree = build_tree(pa.schema([("m", pa.list_(pa.list_(pa.int8(), 3), 2))]))
    values = tree.buffers[-1]
    assert (values.level, values.factor, values.role) == (ROW, 6, Role.VALUES)
    assert tree.level_count == 0
    assert not values.is_at_row_depth
    assert build_tree(pa.schema([("m", pa.list_(pa.int8(), 1))])).buffers[-1].is_at_row_depth


@pytest.mark.parametrize("name", TYPES)
def test_nodes_and_buffers_of_every_type_are_as_many_as_a_message_has(name):
    type_ = pool(name, "none").type
    tree = build_tree(pa.schema([("c", type_)]))
    nodes, buffers, views = column_shape(type_)
    if is_whole(type_):
        assert (len(tree.nodes), len(tree.buffers), tree.whole) == (1, 0, {0})
    else:
        assert (len(tree.nodes), len(tree.buffers), views) == (nodes, buffers, 0)


def test_types_without_a_range_for_each_row_are_whole_however_deep():
    assert {n for n in (*SCALARS, *NESTED) if is_whole(pool(n, "none").type)} == {
        "string_view", "binary_view", "list_view", "large_list_view", "dictionary", "dictionary_int", "struct_dictionary",
        "list_dictionary", "large_list_dictionary", "fixed_list_dictionary", "struct_view", "list_view_view",
    }  # fmt: skip


def test_columns_may_be_read_whole_that_need_not():
    tree = build_tree(pa.schema([("a", pa.int8()), ("b", pa.string())]), [1])
    assert tree.whole == {1}
    assert tree.column_buffers(1) == []
    assert [b.number for b in tree.column_buffers(0)] == [0, 1]
    assert tree.top(1).name == "b"


def test_a_column_name_that_stands_twice_is_refused_by_name():
    with pytest.raises(SchemaError, match="'x' stands twice"):
        build_tree(pa.schema([("x", pa.int8()), ("y", pa.int8()), ("x", pa.string())]))


def test_lists_so_wide_that_sizes_would_overflow_are_refused():
    type_ = pa.list_(pa.list_(pa.list_(pa.int8(), 2**20), 2**20), 2**20)
    with pytest.raises(UnsupportedFeature, match="values a record"):
        build_tree(pa.schema([("c", type_)]))


def test_a_hundred_thousand_columns_are_numbered_in_a_second_or_so():
    tree = build_tree(pa.schema([(f"c{i}", pa.int8()) for i in range(100_000)]))
    assert tree.top(99_999).number == 99_999
    assert [b.number for b in tree.column_buffers(50_000)] == [100_000, 100_001]


def test_extension_types_are_what_they_store_at_every_depth():
    deep = pa.struct([("u", pa.uuid()), ("l", pa.list_(pa.fixed_shape_tensor(pa.int8(), (2, 2))))])
    assert plain_type(deep) == pa.struct([("u", pa.binary(16)), ("l", pa.list_(pa.list_(pa.int8(), 4)))])
    assert plain_type(pa.map_(pa.string(), pa.uuid())) == pa.map_(pa.string(), pa.binary(16))
    assert plain_type(pa.dictionary(pa.int8(), pa.string())) == pa.dictionary(pa.int8(), pa.string())
    assert build_tree(pa.schema([("c", pa.list_(pa.uuid()))])).nodes[1].type == pa.binary(16)


def test_the_digest_sees_names_types_order_and_nullability_but_no_metadata():
    base = pa.schema([("a", pa.int8()), ("b", pa.list_(pa.field("item", pa.int8())))])
    same = pa.schema(
        [
            pa.field("a", pa.int8(), metadata={"k": "v"}),
            ("b", pa.list_(pa.field("item", pa.int8(), metadata={"k": "v"}))),
        ],
        metadata={"huggingface": "{}"},
    )
    assert schema_digest(base) == schema_digest(same)
    others = [
        pa.schema([("a", pa.int8()), ("c", base.field("b").type)]),
        pa.schema([("a", pa.int16()), ("b", base.field("b").type)]),
        pa.schema([("b", base.field("b").type), ("a", pa.int8())]),
        pa.schema([pa.field("a", pa.int8(), nullable=False), ("b", base.field("b").type)]),
        pa.schema([("a", pa.int8()), ("b", pa.list_(pa.field("item", pa.int8(), nullable=False)))]),
    ]
    assert len({schema_digest(s) for s in (base, *others)}) == 6
    assert schema_digest(pa.schema([("u", pa.uuid())])) == schema_digest(pa.schema([("u", pa.binary(16))]))
