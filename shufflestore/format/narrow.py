"""Narrow storage: which integers a shard may store in fewer bytes than their type has, and as what.

Those of which a record may have many: below row depth, in lists at any depth. What a record has one
of is copied into the row index and never read from the shard, and stays as it is declared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.types as pt

from shufflestore.errors import CorruptData
from shufflestore.format.schema import (
    Node,
    Role,
    Tree,
    build_tree,
    children_of,
    integer_code,
    is_list,
    rebuilt,
)

__all__ = ["FEATURE", "check_narrow", "narrow_of", "narrowable", "narrowest", "shard_tree", "stored_schema"]

FEATURE: Final = "narrow"
"""What a reader must know: of the snapshot, and of the row index of each shard that stores integers narrower."""
_TYPES: Final = {
    "u1": pa.uint8(), "u2": pa.uint16(), "u4": pa.uint32(), "i1": pa.int8(), "i2": pa.int16(), "i4": pa.int32(),
}  # fmt: skip
_EXTENSION: Final = b"ARROW:extension:name"


# -- what may be stored narrower -----------------------------------------------------------------------


def is_many(tree: Tree, node: Node) -> bool:
    """Whether a node is an integer of more than one byte of which a record may have many."""
    buffer = tree.buffers[node.data] if node.data >= 0 else None
    if buffer is None or buffer.role != Role.VALUES or buffer.is_at_row_depth:
        return False
    return bool(pt.is_integer(node.type) and node.type.bit_width > 8)


def narrowable(tree: Tree) -> tuple[Node, ...]:
    """Return the integers that may be stored narrower, in preorder.

    Left out are columns with an extension type, whose storage is the extension's affair, and what the
    features of the `datasets` library describe as anything but a plain value: it would drop class names.
    """
    permitted = _described(tree)
    return tuple(
        node
        for node in tree.nodes
        if is_many(tree, node)
        and (permitted is None or node.column not in permitted or node.number in permitted[node.column])
        and not _is_extended(tree.schema.field(node.column))
    )


def narrowest(code: str, low: int, high: int) -> str:
    """Return the smallest code that holds the integers [low, high], unsigned if none is negative; `code` if none does.

    >>> narrowest("i8", 0, 65_535), narrowest("i8", -1, 100), narrowest("i4", 0, 2**31 - 1)
    ('u2', 'i1', 'i4')
    """
    for size in (1, 2, 4):
        bits = 8 * size
        fits = high < 1 << bits if low >= 0 else -(1 << bits - 1) <= low and high < 1 << bits - 1
        if fits and size < int(code[1]):
            return f"{'u' if low >= 0 else 'i'}{size}"
    return code


# -- what is stored narrower ---------------------------------------------------------------------------


def stored_schema(tree: Tree, codes: Mapping[int, str]) -> pa.Schema:
    """Return the schema of a shard's file: the data set's, with some integers narrower, its metadata likewise.

    Args:
        tree: Of the data set's schema.
        codes: Node -> numpy code that it is stored as.
    """
    if not codes:
        return tree.schema

    def stored(field: pa.Field, node: Node) -> pa.Field:
        if node.number in codes:
            return field.with_type(_TYPES[codes[node.number]])
        # A map's fields are those of its entries.
        inner = tree.nodes[node.children[0]] if pt.is_map(field.type) else node
        children = iter([tree.nodes[i] for i in inner.children])
        return field.with_type(rebuilt(field.type, lambda child: stored(child, next(children))))

    changed = {tree.nodes[number].column for number in codes}
    fields = [stored(f, tree.top(i)) if i in changed else f for i, f in enumerate(tree.schema)]
    return pa.schema(fields, metadata=_stored_metadata(tree, codes))


def narrow_of(tree: Tree, stored: pa.Schema) -> tuple[tuple[int, str], ...]:
    """Return (node, code) of each integer that a file of the schema `stored` has narrower than `tree` declares it."""
    if stored.equals(tree.schema):
        return ()
    codes = [
        (node.number, integer_code(other.type))
        for node, other in zip(tree.nodes, build_tree(stored).nodes, strict=False)
        if node.type != other.type and integer_code(node.type)
    ]
    return tuple((number, code) for number, code in codes if code is not None)


def check_narrow(tree: Tree, narrow: Mapping[Any, Any]) -> tuple[tuple[int, str], ...]:
    """Return what a description says is narrower: node number as text -> code. Raises CorruptData."""
    declared = {str(node.number): integer_code(node.type) or "" for node in tree.nodes if is_many(tree, node)}
    made = []
    for number, code in narrow.items():
        known = isinstance(code, str) and code in _TYPES and number in declared
        if not known or code[1] >= declared[number][1] or (code[0] == "i" and declared[number][0] == "u"):
            raise CorruptData(f"the header says that node {number!r} is stored as {code!r}, which no integer here is")
        made.append((int(number), code))
    return tuple(sorted(made))


@lru_cache(maxsize=256)  # shards of a data set share a handful
def shard_tree(tree: Tree, whole: frozenset[int], narrow: tuple[tuple[int, str], ...]) -> Tree:
    """Return the tree of one shard: that of the data set, some columns read whole, some integers narrower.

    Args:
        tree: Of the data set's schema.
        whole: All columns that are read whole.
        narrow: From `narrow_of` or `check_narrow`.
    """
    if not narrow and whole == tree.whole:
        return tree
    stored = stored_schema(tree, dict(narrow))
    return replace(build_tree(stored, whole), schema=tree.schema, narrow=narrow)


# -- the features of the `datasets` library ------------------------------------------------------------


def _is_extended(field: pa.Field) -> bool:
    if isinstance(field.type, pa.BaseExtensionType) or _EXTENSION in (field.metadata or {}):
        return True
    return any(_is_extended(child) for child in children_of(field.type))


def _features(schema: pa.Schema) -> tuple[Any, Mapping[str, Any]] | None:
    """The JSON of the `huggingface` metadata and the features in it; None if there are none."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        features = told["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return (told, features) if isinstance(features, dict) else None


def _described(tree: Tree) -> dict[int, set[int]] | None:
    """Column -> its integers that are plain values; None where no features are given."""
    found = _features(tree.schema)
    if found is None:
        return None
    return {
        tree.schema.get_field_index(name): {number for number, _ in _values(tree, tree.top(column), feature)}
        for name, feature in found[1].items()
        if (column := tree.schema.get_field_index(name)) >= 0
    }


def _stored_metadata(tree: Tree, codes: Mapping[int, str]) -> dict[bytes, bytes] | None:
    metadata = tree.schema.metadata
    found = _features(tree.schema)
    if found is None:
        return metadata  # type: ignore[no-any-return]
    told, features = found
    for name, feature in features.items():
        column = tree.schema.get_field_index(name)
        for number, value in _values(tree, tree.top(column), feature) if column >= 0 else ():
            if number in codes:
                value["dtype"] = str(_TYPES[codes[number]])
    return {**metadata, b"huggingface": json.dumps(told).encode()}


def _values(tree: Tree, node: Node, feature: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each integer below a node with the plain value that describes it."""
    inner = [tree.nodes[i] for i in node.children]
    kind = feature.get("_type") if isinstance(feature, dict) else None
    if isinstance(feature, list) and len(feature) == 1:  # an old way to write a list
        kind, feature = "List", {"feature": feature[0]}
    if kind == "Value":
        if pt.is_integer(node.type) and feature.get("dtype") == str(node.type):
            yield node.number, feature
    elif kind in ("Sequence", "List", "LargeList"):
        within = feature.get("feature")
        if pt.is_struct(node.type) and isinstance(within, dict):  # a sequence of dicts is stored as lists
            for child, name in zip(inner, (f.name for f in node.type), strict=True):
                if name in within:
                    yield from _values(tree, child, [within[name]])
        elif (is_list(node.type) or pt.is_fixed_size_list(node.type)) and not pt.is_map(node.type):
            yield from _values(tree, inner[0], within)
    elif isinstance(feature, dict) and not isinstance(kind, str) and pt.is_struct(node.type):
        for child, name in zip(inner, (f.name for f in node.type), strict=True):
            if name in feature:
                yield from _values(tree, child, feature[name])
