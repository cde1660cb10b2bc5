"""Columns as the row index sees them: one tree of nodes, one list of buffers, for every Arrow type.

In Arrow a row is one contiguous range in every buffer at every depth. So one walk over the
schema, in the preorder of Arrow's own messages, says for each buffer what a row's range is
counted in: rows, or the elements of the *level* (the variable-length list or string) around it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

import pyarrow as pa
import pyarrow.types as pt

from shufflestore.errors import SchemaError, UnsupportedFeature
from shufflestore.lazy import lazy

__all__ = ["Buffer", "Node", "ROW", "Role", "Tree", "build_tree", "plain_type", "schema_digest", "tree_of"]

ROW: Final = -1
"""The level of what is counted in rows."""


class Role(IntEnum):
    """What a buffer holds."""

    VALIDITY = 0
    OFFSETS = 1
    VALUES = 2
    BITS = 3
    """Values of one bit each: the data of a bool column."""
    WHOLE = 4
    """Part of a column that is only read whole."""


@dataclass(frozen=True)
class Buffer:
    """One buffer of a record batch message."""

    number: int
    """Place in the message's list of buffers."""
    node: int
    role: Role
    level: int
    """What a row's range is counted in: ROW, or the level whose elements these are."""
    factor: int
    """Entries for each row or element of that level (fixed-size lists multiply)."""
    width: int
    """Bytes an entry, as it is stored; 0 for bits."""

    @property
    def is_at_row_depth(self) -> bool:
        """Whether a row has exactly one entry."""
        return self.level == ROW and self.factor == 1


@dataclass(frozen=True)
class Node:
    """One field of the schema, at any depth."""

    number: int
    """Place in the preorder of all nodes, which is the order of Arrow's field nodes."""
    name: str
    type: pa.DataType
    """The plain type: an extension type, at any depth, is read as what it stores."""
    column: int
    parent: int
    """Number of the node around it; -1 at the top."""
    level: int
    factor: int
    opens: int
    """The level that this node's own values make: strings, lists; else ROW."""
    validity: int
    """Number of its validity buffer; -1 if the type has none."""
    data: int
    """Number of its offsets, values or bits buffer; the bytes of a string stand one behind; -1 if none."""
    children: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Tree:
    """All nodes and buffers of a schema, in preorder. Compared by identity, so that caches are cheap."""

    schema: pa.Schema
    nodes: tuple[Node, ...]
    buffers: tuple[Buffer, ...]
    level_count: int
    whole: frozenset[int]
    """Columns that are read whole, chunk by chunk."""
    stored: pa.Schema
    """As the shard's file has it: `schema`, but for integers that it stores narrower; widths are those of this one."""
    narrow: tuple[tuple[int, str], ...] = ()
    """(node, numpy code) of the integers that are stored narrower; nodes as in the tree of the data set's schema."""

    def top(self, column: int) -> Node:
        """Return the top node of a column."""
        return self._tops[column]

    def column_buffers(self, column: int) -> list[Buffer]:
        """Return a column's buffers in order."""
        return self._column_buffers[column]

    @lazy
    def _tops(self) -> dict[int, Node]:
        return {n.column: n for n in self.nodes if n.parent == -1}

    @lazy
    def _column_buffers(self) -> list[list[Buffer]]:
        # By column once: a table of ten thousand columns must not be walked ten thousand times.
        found: list[list[Buffer]] = [[] for _ in self.schema]
        for buffer in self.buffers:
            found[self.nodes[buffer.node].column].append(buffer)
        return found

    def ancestors(self, node: int) -> Iterator[Node]:
        """Yield a node and those around it, innermost first."""
        while node != -1:
            yield self.nodes[node]
            node = self.nodes[node].parent


def integer_code(type_: pa.DataType) -> str | None:
    """Return numpy's code of an integer type, "u2" for uint16; None for other types."""
    if not pt.is_integer(type_):
        return None
    return f"{'i' if pt.is_signed_integer(type_) else 'u'}{type_.bit_width // 8}"


def storage_type(type_: pa.DataType) -> pa.DataType:
    """Return what an extension type stores; other types as they are."""
    while isinstance(type_, pa.BaseExtensionType):
        type_ = type_.storage_type
    return type_


def rebuilt(type_: pa.DataType, change: Callable[[pa.Field], pa.Field]) -> pa.DataType:
    """Return a nested type with each field directly under it changed; other types as they are."""
    if pt.is_struct(type_):
        return pa.struct([change(field) for field in children_of(type_)])
    if pt.is_map(type_):
        return pa.map_(change(type_.key_field), change(type_.item_field), type_.keys_sorted)
    if pt.is_fixed_size_list(type_):
        return pa.list_(change(type_.value_field), type_.list_size)
    for is_kind, make in _LISTS:
        if is_kind(type_):
            return make(change(type_.value_field))
    if pt.is_union(type_):
        return pa.union([change(field) for field in children_of(type_)], type_.mode, type_.type_codes)
    if pt.is_dictionary(type_):
        value = change(pa.field("", type_.value_type)).type
        return pa.dictionary(type_.index_type, value, type_.ordered)
    if pt.is_run_end_encoded(type_):
        return pa.run_end_encoded(type_.run_end_type, change(pa.field("", type_.value_type)).type)
    return type_


_FACTOR_LIMIT: Final = 2**31 - 1
_LISTS: Final = (
    (pt.is_list, pa.list_),
    (pt.is_large_list, pa.large_list),
    (pt.is_list_view, pa.list_view),
    (pt.is_large_list_view, pa.large_list_view),
)


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return a type with every extension type in it, at any depth, replaced by what it stores."""
    return rebuilt(storage_type(type_), lambda field: field.with_type(plain_type(field.type)))


def children_of(type_: pa.DataType) -> list[pa.Field]:
    """Return the fields directly under a type, a map's being its entries."""
    if pt.is_map(type_):
        entries = pa.struct([type_.key_field.with_name("key"), type_.item_field.with_name("value")])
        return [pa.field("entries", entries, nullable=False)]
    if pt.is_run_end_encoded(type_):
        return [pa.field("run_ends", type_.run_end_type), pa.field("values", type_.value_type)]
    return [type_.field(i) for i in range(type_.num_fields)]


def is_whole(type_: pa.DataType) -> bool:
    """Whether a row of this type has no range of its own somewhere inside."""
    type_ = storage_type(type_)
    if (
        pt.is_dictionary(type_)
        or pt.is_run_end_encoded(type_)
        or pt.is_union(type_)
        or pt.is_string_view(type_)
        or pt.is_binary_view(type_)
        or pt.is_list_view(type_)
        or pt.is_large_list_view(type_)
    ):
        return True
    return any(is_whole(child.type) for child in children_of(type_))


def is_wide_offset(type_: pa.DataType) -> bool:
    """Whether a variable-length type counts in 64 bits."""
    return bool(pt.is_large_list(type_) or pt.is_large_string(type_) or pt.is_large_binary(type_))


def is_text_or_bytes(type_: pa.DataType) -> bool:
    """Whether values are strings or byte strings of any length."""
    return bool(pt.is_string(type_) or pt.is_large_string(type_) or pt.is_binary(type_) or pt.is_large_binary(type_))


def is_list(type_: pa.DataType) -> bool:
    """Whether values are lists of any length, maps included."""
    return bool(pt.is_list(type_) or pt.is_large_list(type_) or pt.is_map(type_))


class _Builder:
    """Walks a schema once, numbering nodes, buffers and levels as Arrow's messages do."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.buffers: list[Buffer] = []
        self.levels = 0

    def buffer(self, node: int, role: Role, level: int, factor: int, width: int) -> int:
        number = len(self.buffers)
        self.buffers.append(Buffer(number, node, role, level, factor, width))
        return number

    def whole(self, name: str, type_: pa.DataType, column: int) -> None:
        """A column read whole has one node here; its true shape is the reader's affair."""
        self.nodes.append(Node(len(self.nodes), name, type_, column, -1, ROW, 1, ROW, -1, -1, ()))

    def walk(self, name: str, declared: pa.DataType, column: int, parent: int, level: int, factor: int) -> int:
        type_ = plain_type(declared)
        if factor > _FACTOR_LIMIT:
            raise UnsupportedFeature(f"column {name!r} has {factor:,} values a record, allowed are {_FACTOR_LIMIT:,}")
        number = len(self.nodes)
        self.nodes.append(Node(number, name, type_, column, parent, level, factor, ROW, -1, -1, ()))
        validity = data = -1
        opens = ROW
        inner_level, inner_factor = level, factor
        if not pt.is_null(type_):
            validity = self.buffer(number, Role.VALIDITY, level, factor, 0)
        if is_text_or_bytes(type_) or is_list(type_):
            opens, self.levels = self.levels, self.levels + 1
            data = self.buffer(number, Role.OFFSETS, level, factor, 8 if is_wide_offset(type_) else 4)
            inner_level, inner_factor = opens, 1
            if is_text_or_bytes(type_):
                self.buffer(number, Role.VALUES, opens, 1, 1)
        elif pt.is_fixed_size_list(type_):
            inner_factor = factor * type_.list_size
        elif pt.is_boolean(type_):
            data = self.buffer(number, Role.BITS, level, factor, 0)
        elif not (pt.is_struct(type_) or pt.is_null(type_)):
            data = self.buffer(number, Role.VALUES, level, factor, fixed_width(type_, name))
        inner = tuple(
            self.walk(f"{name}.{child.name}", child.type, column, number, inner_level, inner_factor)
            for child in children_of(type_)
        )
        self.nodes[number] = Node(number, name, type_, column, parent, level, factor, opens, validity, data, inner)
        return number


def fixed_width(type_: pa.DataType, name: str) -> int:
    """Return the bytes of one value of a fixed-width type."""
    try:
        bits = type_.bit_width
    except ValueError:
        raise UnsupportedFeature(f"column {name!r} has type {type_}, which this version cannot read") from None
    if bits % 8:
        raise UnsupportedFeature(f"column {name!r} has type {type_} of {bits} bits, not whole bytes")
    return int(bits // 8)


def build_tree(schema: pa.Schema, whole: Sequence[int] | frozenset[int] = ()) -> Tree:
    """Return the nodes and buffers of a schema.

    Args:
        schema: Any Arrow schema. Column names must differ.
        whole: Columns to read whole besides those whose type demands it (compressed ones).

    Raises:
        SchemaError: Two columns have the same name.
    """
    doubled = sorted(name for name, count in Counter(schema.names).items() if count > 1)
    if doubled:
        raise SchemaError(f"column name {doubled[0]!r} stands twice in the schema; rename one of them")
    builder = _Builder()
    forced = frozenset(whole) | {i for i, field in enumerate(schema) if is_whole(field.type)}
    for i, field in enumerate(schema):
        if i in forced:
            builder.whole(field.name, field.type, i)
        else:
            builder.walk(field.name, field.type, i, -1, ROW, 1)
    return Tree(schema, tuple(builder.nodes), tuple(builder.buffers), builder.levels, forced, schema)


@lru_cache(maxsize=64)
def tree_of(schema: pa.Schema) -> Tree:
    """Return the tree of a schema, the same one for equal schemas, so that what is kept for a tree is kept once."""
    return build_tree(schema)


def schema_digest(schema: pa.Schema) -> bytes:
    """Return 32 bytes that differ where names, types, order or nullability differ.

    The SHA-256 of `field_text` of each column, a line each. Metadata does not count: it carries no
    values. The text is our own, so that no other library's encoding decides whether data can be opened.
    """
    return hashlib.sha256("".join(field_text(field) + "\n" for field in schema).encode()).digest()


def field_text(field: pa.Field) -> str:
    """Return a field as text: name, type, nullability; extension types as what they store.

    >>> field_text(pa.field("x", pa.list_(pa.field("item", pa.int32(), nullable=False))))
    '"x":list<"item":int32 not null>'
    """
    return f"{json.dumps(field.name)}:{type_text(field.type)}{'' if field.nullable else ' not null'}"


def type_text(type_: pa.DataType) -> str:
    """Return a type as text: Arrow's name, parameters in brackets, fields between angles."""
    type_ = storage_type(type_)
    if pt.is_dictionary(type_):
        ordered = " ordered" if type_.ordered else ""
        return f"dictionary<{type_text(type_.index_type)},{type_text(type_.value_type)}{ordered}>"
    fields = ",".join(field_text(child) for child in children_of(type_))
    if pt.is_union(type_):
        return f"{type_.mode}_union[{','.join(map(str, type_.type_codes))}]<{fields}>"
    if pt.is_map(type_):
        return f"map<{fields}>{' sorted' if type_.keys_sorted else ''}"
    for test, name in _NESTED:
        if test(type_):
            size = f"[{type_.list_size}]" if name == "fixed_size_list" else ""
            return f"{name}{size}<{fields}>"
    return str(type_)


_NESTED: Final = (
    (pt.is_list, "list"),
    (pt.is_large_list, "large_list"),
    (pt.is_list_view, "list_view"),
    (pt.is_large_list_view, "large_list_view"),
    (pt.is_fixed_size_list, "fixed_size_list"),
    (pt.is_struct, "struct"),
    (pt.is_run_end_encoded, "run_end_encoded"),
)
