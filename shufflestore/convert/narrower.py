"""Chunks of a shard with their integers in the smallest width that holds them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from numpy.typing import NDArray

from shufflestore.format.narrow import narrowable, narrowest, stored_schema
from shufflestore.format.schema import Node, Tree, children_of, integer_code, is_list

__all__ = ["Measured", "Narrower"]

_EMPTY: Final = (0, 0)
"""The range of no integers at all."""


@dataclass(frozen=True)
class Measured:
    """A chunk and what its integers span."""

    batch: pa.RecordBatch
    ranges: dict[int, tuple[int, int]]
    """Node -> least and greatest of its integers."""


class Narrower:
    """Finds and makes the narrow form of chunks of one schema."""

    def __init__(self, tree: Tree) -> None:
        """Take note of what may be stored narrower.

        Args:
            tree: Of the data set's schema.
        """
        self._tree = tree
        self._nodes = {node.number: node for node in narrowable(tree)}
        self._columns = sorted({node.column for node in self._nodes.values()})

    @property
    def is_idle(self) -> bool:
        """Whether nothing may be stored narrower."""
        return not self._nodes

    def measured(self, batch: pa.RecordBatch) -> Measured:
        """Return a chunk with the range of its integers; those under nulls of a list count, null integers do not."""
        ranges: dict[int, tuple[int, int]] = {}
        for column in self._columns:
            for number, values in self._leaves(batch.column(column), self._tree.top(column)):
                found = pc.min_max(values)
                low, high = found["min"].as_py(), found["max"].as_py()
                ranges[number] = _EMPTY if low is None else (low, high)
        return Measured(batch, ranges)

    def codes(self, chunks: Iterable[Measured]) -> dict[int, str]:
        """Return the smallest width of each integer that holds those of all chunks; left out are those as declared."""
        held = list(chunks)
        made: dict[int, str] = {}
        for number, node in self._nodes.items():
            spans = [chunk.ranges[number] for chunk in held]
            declared = integer_code(node.type) or ""
            code = narrowest(declared, min(low for low, _ in spans), max(high for _, high in spans))
            if code != declared:
                made[number] = code
        return made

    def fits(self, chunk: Measured, codes: dict[int, str]) -> bool:
        """Whether these widths hold a chunk."""
        for number, code in codes.items():
            low, high = chunk.ranges[number]
            kind = np.iinfo(np.dtype(code))
            if low < kind.min or high > kind.max:
                return False
        return True

    def schema(self, codes: dict[int, str]) -> pa.Schema:
        """Return the schema of a shard of these widths."""
        return stored_schema(self._tree, codes)

    def stored(self, chunk: Measured, schema: pa.Schema, codes: dict[int, str]) -> pa.RecordBatch:
        """Return a chunk in the widths that `codes` and `schema` say, which must hold it."""
        arrays = list(chunk.batch.columns)
        for column in {self._nodes[number].column for number in codes}:
            arrays[column] = self._rebuilt(arrays[column], schema.field(column).type, self._tree.top(column), codes)
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _leaves(self, array: pa.Array, node: Node) -> Iterator[tuple[int, pa.Array]]:
        if node.number in self._nodes:
            yield node.number, array
        for inner, number in zip(_inside(array), node.children, strict=True):
            yield from self._leaves(inner, self._tree.nodes[number])

    def _rebuilt(self, array: pa.Array, type_: pa.DataType, node: Node, codes: dict[int, str]) -> pa.Array:
        if array.type == type_:
            return array
        if node.number in codes:
            # What stands under nulls may not fit, and wraps around: it is nobody's business.
            return array.cast(type_, safe=False)
        parts = zip(children_of(type_), _inside(array), node.children, strict=True)
        inner = [self._rebuilt(part, field.type, self._tree.nodes[number], codes) for field, part, number in parts]
        own = [_validity(array)]
        if is_list(type_):
            own.append(pa.py_buffer(_offsets(array) - _offsets(array)[0]))
        return pa.Array.from_buffers(type_, len(array), own, array.null_count, children=inner)


# -- slices: an array's own part of what it shares with its neighbours ---------------------------------


def _inside(array: pa.Array) -> list[pa.Array]:
    """The arrays directly under a nested one, as far as they are its own."""
    if pt.is_struct(array.type):
        return [array.field(i) for i in range(array.type.num_fields)]
    if pt.is_fixed_size_list(array.type):
        size = array.type.list_size
        return [array.values.slice(array.offset * size, len(array) * size)]
    if is_list(array.type):
        first, last = (int(end) for end in _offsets(array)[[0, -1]])
        return [array.values.slice(first, last - first)]
    return []


def _offsets(array: pa.Array) -> NDArray[np.signedinteger[Any]]:
    """(length + 1,) offsets of a list."""
    kind = np.dtype(np.int64 if pt.is_large_list(array.type) else np.int32)
    if not len(array):  # Arrow allows an empty offsets buffer where there are no lists
        return np.zeros(1, kind)
    return np.frombuffer(array.buffers()[1], kind)[array.offset : array.offset + len(array) + 1]


def _validity(array: pa.Array) -> pa.Buffer | None:
    if not array.null_count:
        return None
    first, last = array.offset, array.offset + len(array)
    covering = np.frombuffer(array.buffers()[0], np.uint8)[first // 8 : -(-last // 8)]
    bits = np.unpackbits(covering, bitorder="little")[first % 8 :][: len(array)]
    return pa.py_buffer(np.packbits(bits, bitorder="little"))
