"""An entry holds what the format page says it holds, and a header is believed only where all of it agrees."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.errors import CorruptData, FormatError, UnsupportedFeature
from shufflestore.format.layout import COPIED_LIMIT, FIXED, MIN_PAGE, layout_of, parse_header
from shufflestore.format.schema import build_tree
from tests.hostile import complaints
from tests.invented import arrow_bytes, index_of

MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string())])
EXAMPLE = pa.schema(
    [
        ("tokens", pa.list_(pa.int32())),
        ("label", pa.int64()),
        ("text", pa.large_string()),
        ("messages", pa.list_(MESSAGE)),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("mask", pa.list_(pa.bool_())),
        ("emb", pa.list_(pa.float16(), 768)),
    ]
)


def layout(schema: pa.Schema, absent: str = "", checksums: bool = True):
    tree = build_tree(schema)
    present = tuple(not (absent and b.role.name == absent) for b in tree.buffers)
    return layout_of(tree, present, checksums)


def test_the_example_of_the_format_page_has_the_entry_it_says():
    made = layout(EXAMPLE, absent="VALIDITY")
    assert (made.head_bytes, 4 * made.tree.level_count, 4 * len(made.reads)) == (8, 32, 40)
    assert made.entry_bytes == 80


def test_tokens_and_a_label_take_eighteen_bytes_or_less():
    schema = pa.schema([("tokens", pa.list_(pa.int32())), ("label", pa.int64())])
    assert layout(schema, absent="VALIDITY").entry_bytes == 8 + 4 + 4
    assert layout(schema).entry_bytes <= 18 + 4


def test_small_values_are_copied_in_schema_order_until_they_fill_the_limit():
    schema = pa.schema([(f"c{i}", pa.int64()) for i in range(6)] + [("small", pa.int8())])
    made = layout(schema, absent="VALIDITY")
    assert list(made.copied.values()) == [0, 8, 16, 24]
    assert made.head_bytes == COPIED_LIMIT
    assert len(made.reads) == 3


def test_what_is_copied_depends_on_the_schema_and_not_on_the_shard():
    schema = pa.schema([("a", pa.int32()), ("b", pa.int64())])
    tree = build_tree(schema)
    with_all, with_none = (layout_of(tree, (x,) * 4, True) for x in (True, False))
    assert set(with_all.copied) == set(with_none.copied)


@pytest.mark.parametrize("columns", [1, 8, 200, 3000])
def test_a_page_is_the_smallest_power_of_two_that_holds_thirty_two_entries(columns):
    made = layout(pa.schema([(f"s{i}", pa.string()) for i in range(columns)]))
    assert made.page_bytes >= MIN_PAGE
    assert made.page_bytes & (made.page_bytes - 1) == 0
    assert made.rows_per_page >= 32
    assert made.page_head_bytes + (made.rows_per_page + 1) * made.entry_bytes <= made.page_bytes
    if made.page_bytes > MIN_PAGE:
        assert made.page_head_bytes + 33 * made.entry_bytes > made.page_bytes // 2


def test_more_columns_than_a_page_can_hold_are_refused_by_name():
    with pytest.raises(UnsupportedFeature, match="200,000 columns"):
        layout(pa.schema([(f"s{i}", pa.string()) for i in range(200_000)]))


TABLE = pa.table({"x": range(500), "s": [str(i) for i in range(500)]})
BUILT = index_of(arrow_bytes(TABLE, 100))
HEADER = BUILT.parts[0]
TREE = build_tree(TABLE.schema)


def test_a_header_comes_back_as_it_was_written():
    parsed = parse_header(HEADER, TREE, hashlib.sha256(HEADER).digest(), "i")
    made = BUILT.header
    for name in (
        "row_count",
        "shard_bytes",
        "index_bytes",
        "chunk_count",
        "page_count",
        "chunk_rows",
        "outside_crc",
        "pages_at",
    ):
        assert getattr(parsed, name) == getattr(made, name), name
    assert np.array_equal(parsed.page_crcs, made.page_crcs)
    assert parsed.encode() == HEADER
    assert parsed.index_bytes == sum(memoryview(p).nbytes for p in BUILT.parts)


def test_a_header_of_another_digest_is_refused():
    with pytest.raises(CorruptData, match=r"i: .*SHA-256"):
        parse_header(HEADER, TREE, bytes(32), "i")


def test_every_flip_of_a_header_that_is_not_vouched_for_is_named_or_harmless():
    """Without a digest (while indexing) no flip may end in anything but a named error."""
    messages = complaints(HEADER, lambda changed: parse_header(changed, TREE, None, "i"))
    assert len(messages) > 1000
    assert all(message.startswith("i: ") for message in messages)


@pytest.mark.parametrize("length", [0, 7, 8, FIXED.size, len(HEADER) - 1])
def test_a_header_cut_short_is_refused(length):
    with pytest.raises(FormatError, match="i: "):
        parse_header(HEADER[:length], TREE, None, "i")


def test_an_index_of_another_schema_is_refused():
    with pytest.raises(CorruptData, match="another schema"):
        parse_header(HEADER, build_tree(pa.schema([("x", pa.int32()), ("s", pa.string())])), None, "i")


def test_regular_chunks_are_told_from_irregular_ones():
    assert BUILT.header.chunk_rows == 100
    odd = index_of(arrow_bytes([b.slice(0, 60 + 10 * i) for i, b in enumerate(TABLE.to_batches(max_chunksize=100))]))
    assert odd.header.chunk_rows == 0
    assert struct.unpack_from("<Q", b"".join(map(bytes, odd.parts[1:2])), 8 * 5)[0] == odd.header.row_count
