"""Runs of plain records: the native core copies them into columns, and no Python code looks at a value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from shufflestore import _native
from shufflestore.convert.sources.iterable.values import INT32_MAX, dtype_of

__all__ = ["Runs", "runs_of"]

_INT64_MAX: Final = 2**63 - 1
_SCALARS: Final[dict[str, tuple[type, ...]]] = {
    "i": tuple(np.dtype(code).type for code in "lbhiqBHILQ"),
    "u": tuple(np.dtype(code).type for code in "lbhiqBHILQ"),
    "f": (np.float64, np.float32, np.float16),
    "b": (np.bool_,),
}
"""numpy's scalars that a column of each kind takes as it takes Python's; subclasses are looked at one by one."""

_TEXTS: Final = (pt.is_string, pt.is_large_string, pt.is_binary, pt.is_large_binary)


class Runs:
    """Takes records that are dicts with a schema's keys and plain values; leaves all others to its caller.

    Plain are numbers and booleans of Python and numpy that fit, `str`, `bytes`, and contiguous arrays of
    exactly the column's dtype and shape. They are copied at once, so their owner may overwrite them.
    """

    def __init__(self, fields: list[tuple[pa.Field, np.dtype[Any] | None]], *, ignores_other_keys: bool) -> None:
        """Begin; see `runs_of`."""
        self._fields = fields
        self._packer = _native.Packer(ignores_other_keys)
        for field, dtype in fields:
            storage = _storage(field.type)
            most = _INT64_MAX if _is_large(storage) else INT32_MAX
            if dtype is None:
                is_bytes = pt.is_binary(storage) or pt.is_large_binary(storage)
                self._packer.add_texts(field.name, is_bytes, most)
            elif not pt.is_nested(storage):
                kinds = _SCALARS[dtype.kind]
                self._packer.add_scalars(field.name, dtype.kind, dtype.itemsize, list(kinds))
            else:
                shape = _shape(field.type)
                self._packer.add_arrays(field.name, np.ndarray, dtype.kind, dtype.itemsize, shape, most)

    @property
    def record_count(self) -> int:
        """Records held."""
        return self._packer.count

    @property
    def byte_count(self) -> int:
        """About their bytes, as `Column.add` counts them."""
        return self._packer.byte_count

    def consume(self, records: Iterator[Any], byte_limit: int) -> list[Any] | None:
        """Take records until about so many bytes are held.

        Returns:
            Nothing, or the one record that is not plain, in a list; None at the end of `records`.

        Raises:
            KeyboardInterrupt: Within 1,024 records, those before it are held.
            Exception: What `records` raises; those before it are held.
        """
        return self._packer.consume(records, byte_limit)

    def take(self) -> list[pa.Array]:
        """Return the columns of the records held, and hold none. The arrays keep the core's memory, uncopied."""
        count = self.record_count
        taken = self._packer.hand_over()
        return [
            _array(field.type, dtype, count, values, ends)
            for (field, dtype), (values, ends) in zip(self._fields, taken, strict=True)
        ]


def runs_of(schema: pa.Schema, *, ignores_other_keys: bool = False) -> Runs | None:
    """Return what takes runs of a schema's records; None where it has a column of another kind.

    Args:
        schema: Of the records.
        ignores_other_keys: Take records with more keys than the schema's, too.
    """
    fields: list[tuple[pa.Field, np.dtype[Any] | None]] = []
    for field in schema:
        storage = _storage(field.type)
        if pt.is_list(storage) or pt.is_large_list(storage) or pt.is_fixed_size_list(storage):
            dtype = dtype_of(storage.value_type)
            shape = _shape(field.type)
            if dtype is None or dtype.kind not in "iuf" or (shape is not None and 0 in shape):
                return None
        elif any(is_text(storage) for is_text in _TEXTS):
            dtype = None
        else:
            dtype = dtype_of(storage)
            if dtype is None or dtype.kind not in _SCALARS or dtype == np.float16:
                return None
        fields.append((field, dtype))
    return Runs(fields, ignores_other_keys=ignores_other_keys)


def _storage(type_: pa.DataType) -> pa.DataType:
    return type_.storage_type if isinstance(type_, pa.FixedShapeTensorType) else type_


def _is_large(storage: pa.DataType) -> bool:
    return bool(pt.is_large_list(storage) or pt.is_large_string(storage) or pt.is_large_binary(storage))


def _shape(type_: pa.DataType) -> list[int] | None:
    if isinstance(type_, pa.FixedShapeTensorType):
        return list(type_.shape)
    return [type_.list_size] if pt.is_fixed_size_list(type_) else None


def _array(
    type_: pa.DataType, dtype: np.dtype[Any] | None, count: int, values: np.ndarray[Any, Any], ends: Any
) -> pa.Array:
    """Return a column of what the core has gathered of it. Not by `pa.array`, which imports pandas if it is there."""
    storage = _storage(type_)
    buffers = [None]
    if ends is not None:
        offsets = np.empty(count + 1, np.int64 if _is_large(storage) else np.int32)
        offsets[0] = 0
        offsets[1:] = ends.view(np.int64)
        buffers.append(pa.py_buffer(offsets))
    if dtype is not None and dtype.kind == "b":
        values = np.packbits(values, bitorder="little")
    if not pt.is_nested(storage):
        return pa.Array.from_buffers(type_, count, [*buffers, pa.py_buffer(values)])
    assert dtype is not None, "lists are of numbers"
    items = pa.Array.from_buffers(storage.value_type, values.size // dtype.itemsize, [None, pa.py_buffer(values)])
    array = pa.Array.from_buffers(storage, count, buffers, children=[items])
    return array if storage is type_ else pa.ExtensionArray.from_storage(type_, array)
