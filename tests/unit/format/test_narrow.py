"""Which integers may be stored narrower, as what, and how a row index says so."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from datasets import Array2D, ClassLabel, Features, LargeList, List, Value

from shufflestore.errors import CorruptData, UnsupportedFeature
from shufflestore.format import layout
from shufflestore.format.layout import parse_header
from shufflestore.format.narrow import check_narrow, narrow_of, narrowable, narrowest, shard_tree, stored_schema
from shufflestore.format.schema import build_tree
from tests.hostile import complaints
from tests.invented import arrow_bytes, index_of, memory_store, opened

INT = pa.int64()


def names(schema: pa.Schema) -> list[str]:
    return [node.name for node in narrowable(build_tree(schema))]


def test_only_integers_that_a_record_has_many_of_may_be_narrower():
    schema = pa.schema(
        [
            ("one", INT),
            ("in_struct", pa.struct([("x", INT), ("xs", pa.large_list(pa.uint16()))])),
            ("tokens", pa.list_(pa.int32())),
            ("bytes", pa.list_(pa.uint8())),
            ("reals", pa.list_(pa.float32())),
            ("days", pa.list_(pa.date32())),
            ("money", pa.list_(pa.decimal128(9))),
            ("fixed_one", pa.list_(INT, 1)),
            ("fixed", pa.list_(pa.list_(INT, 2), 3)),
            ("map", pa.map_(pa.string(), INT)),
            ("coded", pa.list_(pa.dictionary(pa.int32(), INT))),
        ]
    )
    assert names(schema) == [
        "in_struct.xs.item", "tokens.item", "fixed.item.item", "map.entries.value",
    ]  # fmt: skip


def test_extension_types_are_left_alone_whether_or_not_they_are_known_here():
    field = pa.field("t", pa.list_(INT), metadata={b"ARROW:extension:name": b"somebody.else"})
    schema = pa.schema([("a", pa.fixed_shape_tensor(INT, [2])), field, ("l", pa.list_(field)), ("b", pa.list_(INT))])
    assert names(schema) == ["b.item"]


FEATURES = Features(
    {
        "labels": List(ClassLabel(names=["a", "b"])),
        "tokens": List(Value("int32")),
        "both": List({"label": ClassLabel(names=["c"]), "ids": LargeList(Value("int64")), "text": Value("string")}),
        "pair": List(Value("int16"), length=2),
        "grid": Array2D((2, 2), "int64"),
        "one": Value("int64"),
    }
)


def test_class_labels_are_never_narrower_and_features_state_what_is_stored():
    schema = FEATURES.arrow_schema
    tree = build_tree(schema)
    assert names(schema) == ["tokens.item", "both.item.ids.item", "pair.item"]
    codes = {node.number: "u1" for node in narrowable(tree)}
    found = Features.from_arrow_schema(stored_schema(tree, codes))
    expected = dict(FEATURES)
    expected["tokens"], expected["pair"] = List(Value("uint8")), List(Value("uint8"), length=2)
    expected["both"] = List(FEATURES["both"].feature | {"ids": LargeList(Value("uint8"))})
    assert dict(found) == expected
    assert json.loads(schema.metadata[b"huggingface"]) == json.loads(tree.schema.metadata[b"huggingface"])


@pytest.mark.parametrize(
    ("feature", "type_"),
    [
        ([{"dtype": "int32", "_type": "Value"}], pa.list_(pa.int32())),
        ({"feature": {"x": {"dtype": "int32", "_type": "Value"}}, "_type": "Sequence"},
         pa.struct([("x", pa.list_(pa.int32()))])),
    ],
    ids=["list", "sequence_of_dicts"],
)  # fmt: skip
def test_older_ways_to_write_features_are_understood(feature, type_):
    metadata = {"huggingface": json.dumps({"info": {"features": {"c": feature}}})}
    tree = build_tree(pa.schema([("c", type_)], metadata=metadata))
    (node,) = narrowable(tree)
    assert b'"dtype": "uint8"' in stored_schema(tree, {node.number: "u1"}).metadata[b"huggingface"]


@pytest.mark.parametrize("told", ["", "[]", '{"info": {}}', '{"info": {"features": []}}', "\xff"])
def test_metadata_that_is_no_features_is_nobodys_business(told):
    schema = pa.schema([("c", pa.list_(INT))], metadata={"huggingface": told.encode("latin-1")})
    tree = build_tree(schema)
    (node,) = narrowable(tree)
    assert stored_schema(tree, {node.number: "u2"}).metadata == schema.metadata


def test_features_that_are_not_understood_keep_their_integers():
    told = {"a": {"_type": "Polygon"}, "b": {"dtype": "float32", "_type": "Value"}}
    metadata = {"huggingface": json.dumps({"info": {"features": told}})}
    schema = pa.schema([("a", pa.list_(INT)), ("b", pa.list_(INT)), ("c", pa.list_(INT))], metadata=metadata)
    assert names(schema) == ["c.item"]


def test_the_smallest_width_holds_its_ends_and_is_unsigned_where_it_can_be():
    for size in (1, 2, 4):
        bits = 8 * size
        for code in (c for c in ("i2", "i4", "i8", "u2", "u4", "u8") if int(c[1]) > size):
            assert narrowest(code, 0, 2**bits - 1) == f"u{size}"
            assert narrowest(code, 0, 2**bits) != f"u{size}"
            if code[0] == "i":
                assert narrowest(code, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) == f"i{size}"
                assert narrowest(code, -1, 2 ** (bits - 1)) != f"i{size}"
    assert narrowest("u8", 2**63, 2**64 - 1) == "u8"
    assert narrowest("i8", -(2**63), 2**63 - 1) == "i8"
    assert narrowest("i4", 2**31, 2**31) == "i4", "no wider than declared, nor another type of the same width"


DECLARED = pa.schema([("x", INT), ("l", pa.list_(pa.field("v", pa.int32(), nullable=False)), False)])
TREE = build_tree(DECLARED)


def test_names_nullability_and_metadata_stay_as_they_are():
    schema = pa.schema(
        [
            pa.field("m", pa.map_(INT, pa.field("v", pa.list_(INT), False)), metadata={"k": "v"}),
            pa.field("s", pa.struct([pa.field("l", pa.large_list(pa.field("i", INT, False)), metadata={"a": "b"})])),
        ],
        metadata={"of": "all"},
    )
    tree = build_tree(schema)
    stored = stored_schema(tree, {node.number: "u2" for node in narrowable(tree)})
    assert str(stored).replace("uint16", "int64") == str(schema)
    assert str(stored).count("uint16") > 0
    assert stored.metadata == schema.metadata
    assert [n for n, _ in narrow_of(tree, stored)] == [node.number for node in narrowable(tree)]


def test_what_a_header_says_is_narrower_is_checked():
    assert check_narrow(TREE, {"2": "u2"}) == ((2, "u2"),)
    for wrong in ({"2": "i8"}, {"2": "u4"}, {"2": "f2"}, {"2": 2}, {"2": ["u1"]}, {"0": "u1"}, {"1": "u1"}, {"9": "u1"},
                  {"-1": "u1"}, {"02": "u1"}, {"x": "u1"}, {"9" * 5000: "u1"}):  # fmt: skip
        with pytest.raises(CorruptData, match="which no integer here is"):
            check_narrow(TREE, wrong)
    unsigned = build_tree(pa.schema([("l", pa.list_(pa.uint32()))]))
    with pytest.raises(CorruptData, match="no integer here is"):
        check_narrow(unsigned, {"1": "i2"})


def built(code: str = "u2"):
    stored = stored_schema(TREE, {2: code})
    table = pa.table([pa.array([1, 2], INT), pa.array([[1], [2, 3]], stored.field("l").type)], schema=stored)
    return index_of(arrow_bytes(table), schema=DECLARED)


def test_a_header_says_what_is_narrower_and_nothing_where_nothing_is():
    header = built().header
    told = header.encode()
    assert b'"features":["narrow"],"narrow":{"2":"u2"}' in told
    parsed = parse_header(told, TREE, None, "i")
    assert parsed.layout.tree.narrow == ((2, "u2"),)
    assert parsed.encode() == told
    assert parsed.layout is parse_header(told, TREE, None, "i").layout
    plain = index_of(arrow_bytes(DECLARED.empty_table())).header.encode()
    assert b'"features":[]' in plain
    assert b"narrow" not in plain


def test_an_older_reader_refuses_a_narrow_shard_by_the_features_name(monkeypatch):
    monkeypatch.setattr(layout, "FEATURES", frozenset())
    layout._layout.cache_clear()
    with pytest.raises(UnsupportedFeature, match="narrow"):
        parse_header(built().header.encode(), TREE, None, "i")


def test_a_header_whose_features_and_widths_disagree_is_refused():
    told = built().header.encode()
    for wrong in (told.replace(b'["narrow"]', b"[        ]"), told.replace(b'"narrow":{', b'"nerrow":{')):
        with pytest.raises(CorruptData, match="do not fit integers stored as"):
            parse_header(wrong, TREE, None, "i")


def test_every_flip_of_a_narrow_header_is_named_or_harmless():
    messages = complaints(built().header.encode(), lambda changed: parse_header(changed, TREE, None, "i"))
    assert len(messages) > 1000
    assert all(message.startswith("i: ") for message in messages)


def test_a_shard_s_tree_has_the_widths_of_its_file_and_the_schema_of_the_data_set():
    tree = shard_tree(TREE, TREE.whole, ((2, "u1"),))
    assert tree.schema is DECLARED
    assert [b.width for b in tree.buffers if b.role.name == "VALUES"] == [8, 1]
    assert shard_tree(TREE, TREE.whole, ()) is TREE
    assert shard_tree(TREE, frozenset({1}), ((2, "u1"),)).stored.field("l").type.value_type == pa.uint8()


@pytest.mark.parametrize("codec", [None, "zstd"])
def test_shards_of_any_widths_are_one_data_set_also_where_a_column_is_read_whole(codec):
    kinds = [
        ("u1", [0, 255]),
        ("u2", [65_535, None]),
        ("i1", [-128, 127]),
        ("i2", [-32_768]),
        ("", [-(2**31), 2**31 - 1]),
    ]
    files, expected = [], []
    for i, (code, values) in enumerate(kinds):
        stored = stored_schema(NULLABLE, {2: code} if code else {})
        rows = [values, [], None, values[::-1] * 3]
        columns = [pa.array([7 * i, 1, 2, 3], INT), pa.array(rows, stored.field("l").type)]
        files.append(arrow_bytes(pa.table(columns, schema=stored), 3, codec if i % 2 else None))
        expected += rows
    dataset = opened(memory_store(files, schema=NULLABLE.schema))
    assert len({id(header) for header in dataset.reading.indexes.layouts}) <= len(kinds)
    ids = np.random.default_rng(0).permutation(len(expected))
    taken = dataset.take(ids)
    assert taken.schema.equals(NULLABLE.schema)
    assert taken["l"].to_pylist() == [expected[i] for i in ids]
    wide = dataset.columns_at(ids, dataset.projection(widen={"int32": "i8"}))["l"]
    assert wide.to_arrow().to_pylist() == taken["l"].to_pylist()
    if codec is None:
        assert wide.children[0].values.dtype == np.int64


NULLABLE = build_tree(pa.schema([("x", INT), ("l", pa.list_(pa.int32()))]))
