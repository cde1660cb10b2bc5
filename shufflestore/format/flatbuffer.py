"""A reader and a writer for the few flatbuffer tables that Arrow's messages are made of.

Everything read is checked against the bytes at hand before it is used, so a hostile message
ends in FormatError and nothing else.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import FormatError

__all__ = ["Table", "root", "table"]

_MAX_FIELDS: Final = 64
"""No Arrow table has a third as many; a larger vtable is damage."""


class Table:
    """One table inside a flatbuffer."""

    __slots__ = ("_data", "_fields", "_position")

    def __init__(self, data: bytes, position: int) -> None:
        self._data = data
        self._position = position
        distance = self._int("<i", position)
        start = position - distance
        size = self._int("<H", start)
        if size < 4 or size % 2 or size > 4 + 2 * _MAX_FIELDS:
            raise FormatError(f"a flatbuffer table at byte {position} has a field list of {size} bytes")
        if start < 0 or start + size > len(data):
            raise FormatError(f"a flatbuffer field list [{start}, {start + size}) leaves [0, {len(data)})")
        self._fields: tuple[int, ...] = struct.unpack_from(f"<{(size - 4) // 2}H", data, start + 4)

    def _int(self, code: str, position: int) -> int:
        if position < 0 or position + struct.calcsize(code) > len(self._data):
            raise FormatError(f"a flatbuffer points to byte {position}, outside [0, {len(self._data)})")
        return int(struct.unpack_from(code, self._data, position)[0])

    def _at(self, field: int) -> int:
        """Position of a field's value, 0 if it is absent."""
        if field >= len(self._fields) or self._fields[field] == 0:
            return 0
        return self._position + self._fields[field]

    def number(self, field: int, code: str, default: int = 0) -> int:
        """Return a scalar; `code` as for struct, e.g. "<q"."""
        position = self._at(field)
        return self._int(code, position) if position else default

    def table(self, field: int) -> Table | None:
        """Return an inner table, None if it is absent."""
        position = self._at(field)
        return Table(self._data, position + self._int("<I", position)) if position else None

    def _vector(self, field: int, item_bytes: int) -> tuple[int, int]:
        position = self._at(field)
        if not position:
            return 0, 0
        start = position + self._int("<I", position)
        count = self._int("<I", start)
        if start + 4 + count * item_bytes > len(self._data):
            raise FormatError(f"a flatbuffer vector of {count} items at byte {start} leaves the message")
        return start + 4, count

    def tables(self, field: int) -> list[Table]:
        """Return a vector of tables."""
        start, count = self._vector(field, 4)
        places = [start + 4 * i for i in range(count)]
        return [Table(self._data, place + self._int("<I", place)) for place in places]

    def structs(self, field: int, dtype: np.dtype[np.void] | np.dtype[np.int64]) -> NDArray[np.void]:
        """Return a vector of structs or numbers as an array of its own."""
        start, count = self._vector(field, dtype.itemsize)
        return np.frombuffer(self._data, dtype, count, start).copy() if count else np.empty(0, dtype)


def root(data: bytes) -> Table:
    """Return the outermost table of a flatbuffer."""
    if len(data) < 8:
        raise FormatError(f"a flatbuffer of {len(data)} bytes is too short to be one")
    return Table(data, int(struct.unpack_from("<I", data)[0]))


def table(fields: Sequence[tuple[str, int] | bytes | NDArray[np.void] | None]) -> bytes:
    """Return one table, its position first, ready to stand at a multiple of 8.

    Args:
        fields: In field order: a scalar as (struct code, value), an inner table made by this
            function, a vector of structs as an array, or None for an absent field.
    """
    slots: list[int] = []
    inline = bytearray(4)  # the distance to the field list, filled in below
    later: list[tuple[int, bytes | NDArray[np.void]]] = []
    for field in fields:
        if field is None:
            slots.append(0)
            continue
        code, value = field if isinstance(field, tuple) else ("<I", 0)
        inline += bytes(-len(inline) % struct.calcsize(code))
        slots.append(len(inline))
        if not isinstance(field, tuple):
            later.append((len(inline), field))
        inline += struct.pack(code, value)
    listing = struct.pack(f"<HH{len(slots)}H", 4 + 2 * len(slots), len(inline), *slots)
    # Layout: position of the table, field list, padding, the table at a multiple of 8, what it points to.
    start = 4 + len(listing)
    start += -start % 8
    out = bytearray(struct.pack("<I", start) + listing)
    out += bytes(start - len(out)) + inline
    struct.pack_into("<i", out, start, start - 4)
    for place, target in later:
        out += bytes(-len(out) % 8)
        if isinstance(target, bytes):
            # An inner table brings its own position word; point past it.
            _point(out, start + place, len(out) + struct.unpack_from("<I", target)[0])
            out += target
        else:
            out += bytes(4)  # items of 8 bytes stand at a multiple of 8, their count before them
            _point(out, start + place, len(out))
            out += struct.pack("<I", len(target)) + target.tobytes()
    return bytes(out) + bytes(-len(out) % 8)


def _point(out: bytearray, place: int, target: int) -> None:
    struct.pack_into("<I", out, place, target - place)
