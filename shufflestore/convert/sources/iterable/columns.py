"""The columns of a record batch while records are added to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from shufflestore.convert.sources.iterable.values import (
    INT32_MAX,
    Misfit,
    casts_exactly,
    dtype_of,
    encode,
    offsets_of,
    own,
    quick_check,
    size_of,
)

__all__ = ["Column", "adder", "column_of"]

_FEW: Final = 1_024
"""Values a new block has room for; it doubles from there."""


class Column(Protocol):
    """Takes the values of one column, one by one. What `add` lets in, `take` can encode."""

    def add(self, value: Any) -> int: ...  # about its bytes
    def undo(self) -> None: ...  # the last add
    def take(self) -> pa.Array: ...


class _ScalarColumn:
    """Numbers, booleans, and the types that only pyarrow knows, such as timestamps."""

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_
        self._values: list[Any] = []
        self._easy: Any = int if pt.is_integer(type_) else float if pt.is_floating(type_) else None
        if pt.is_boolean(type_):
            self._easy = bool
        self._width = 8
        self._low, self._high = -float("inf"), float("inf")
        if pt.is_integer(type_):
            limits = np.iinfo(type_.to_pandas_dtype())
            self._low, self._high = int(limits.min), int(limits.max)

    def add(self, value: Any) -> int:
        if type(value) is not self._easy or not self._low <= value <= self._high:
            value = self._checked(value)
        self._values.append(value)
        return self._width

    def _checked(self, value: Any) -> Any:
        if isinstance(value, (np.integer, np.floating, np.ndarray)) and value.ndim == 0:
            value = value.item()
            if type(value) is self._easy and self._low <= value <= self._high:
                return value
        if value is not None:
            encode([value], self._type)
        return value

    def undo(self) -> None:
        self._values.pop()

    def take(self) -> pa.Array:
        values, self._values = self._values, []
        return pa.array(values, self._type)


class _TextColumn:
    """Strings and byte strings."""

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_
        self._easy: type = bytes if pt.is_binary(type_) or pt.is_large_binary(type_) else str
        self._is_large = pt.is_large_string(type_) or pt.is_large_binary(type_)
        self._values: list[Any] = []

    def add(self, value: Any) -> int:
        if value is None:
            self._values.append(None)
            return 4
        if type(value) is not self._easy:
            encode([value], self._type)
            value = bytes(value) if self._easy is bytes else str(value)
        if self._easy is str and not value.isascii():
            value = value.encode()  # now, so that half a surrogate pair is found now
        size = len(value)
        if size > INT32_MAX and not self._is_large:
            raise Misfit(f"{size:,} bytes do not fit; use large_{self._type}")
        self._values.append(value)
        return size + 4

    def undo(self) -> None:
        self._values.pop()

    def take(self) -> pa.Array:
        values, self._values = self._values, []
        return pa.array(values, self._type)


class _NestedColumn:
    """All else: structs, lists of strings or of lists, maps, dictionaries."""

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_
        self._values: list[Any] = []
        self._surely_fits = quick_check(type_)

    def add(self, value: Any) -> int:
        if not self._surely_fits(value):
            encode([value], self._type)
        self._values.append(own(value))
        return size_of(value)

    def undo(self) -> None:
        self._values.pop()

    def take(self) -> pa.Array:
        values, self._values = self._values, []
        return encode(values, self._type)


class _ArrayColumn:
    """Lists and tensors of numbers. Arrays are copied into one block, so their owner may overwrite them."""

    def __init__(self, type_: pa.DataType, dtype: np.dtype[Any]) -> None:
        self._type = type_
        self._shape = tuple(type_.shape) if isinstance(type_, pa.FixedShapeTensorType) else None
        self._storage = type_.storage_type if self._shape is not None else type_
        self._fixed = self._storage.list_size if pt.is_fixed_size_list(self._storage) else None
        self._dtype = dtype
        self._items = {int, float} if dtype.kind == "f" else {int}
        self._width = dtype.itemsize
        self._block = np.empty(_FEW, dtype)
        self._room = _FEW
        self._used = 0
        self._lengths: list[int] = []
        self._nulls: list[int] = []
        self._done: list[pa.Array] = []

    def add(self, value: Any) -> int:
        if type(value) is not np.ndarray or (value.dtype is not self._dtype and value.dtype != self._dtype):
            return self._add_other(value)
        shape = value.shape
        if self._shape is not None:
            if shape != self._shape:
                raise Misfit(f"its shape is {shape}, not {self._shape}")
            value = value.reshape(-1)
            size = len(value)
        elif len(shape) == 1 and (self._fixed is None or shape[0] == self._fixed):
            size = shape[0]
        else:
            raise Misfit(f"its shape is {shape}")
        used = self._used
        stop = used + size
        if stop > self._room:
            self._grow(stop)
        self._block[used:stop] = value
        self._used = stop
        self._lengths.append(size)
        return size * self._width + 8

    def _add_other(self, value: Any) -> int:
        if value is None:
            self._nulls.append(len(self._lengths))
            return self.add(np.zeros(self._shape or self._fixed or 0, self._dtype))
        if type(value) is list and self._shape is None and set(map(type, value)) <= self._items:
            return self.add(pa.array(value, self._storage.value_type).to_numpy())
        if hasattr(value, "__array__") and not np.isscalar(value):
            array = np.asarray(value)
            if array.dtype.kind in "iuf" and casts_exactly(array.dtype, self._dtype):
                return self.add(np.ascontiguousarray(array, self._dtype))
        self._seal()
        self._done.append(encode([value], self._type))
        return size_of(value)

    def undo(self) -> None:
        if not self._lengths:
            self._done.pop()  # what `_add_other` made of one value
            return
        self._used -= self._lengths.pop()
        if self._nulls and self._nulls[-1] == len(self._lengths):
            self._nulls.pop()

    def _grow(self, wanted: int) -> None:
        if wanted > INT32_MAX and not pt.is_large_list(self._storage):
            raise Misfit(f"{wanted:,} items do not fit {self._storage}; use a large_list")
        block = np.empty(max(wanted, 2 * self._block.size), self._dtype)
        block[: self._used] = self._block[: self._used]
        self._block, self._room = block, block.size

    def _seal(self) -> None:
        if not self._lengths:
            return
        values = pa.array(self._block[: self._used], self._storage.value_type)
        mask = None
        if self._nulls:
            is_null = np.zeros(len(self._lengths), np.bool_)
            is_null[self._nulls] = True
            mask = pa.array(is_null)
        if self._fixed is not None:
            array = pa.FixedSizeListArray.from_arrays(values, type=self._storage, mask=mask)
        else:
            kind = pa.LargeListArray if pt.is_large_list(self._storage) else pa.ListArray
            offsets = pa.array(offsets_of(self._lengths, self._storage))
            array = kind.from_arrays(offsets, values, type=self._storage, mask=mask)
        self._done.append(array if self._shape is None else pa.ExtensionArray.from_storage(self._type, array))
        # The array keeps the block.
        self._block, self._used, self._lengths, self._nulls = np.empty(self._block.size, self._dtype), 0, [], []

    def take(self) -> pa.Array:
        self._seal()
        done, self._done = self._done, []
        return done[0] if len(done) == 1 else pa.concat_arrays(done)


def column_of(type_: pa.DataType) -> Column:
    """Return what takes the values of a type."""
    storage = type_.storage_type if isinstance(type_, pa.FixedShapeTensorType) else type_
    if pt.is_list(storage) or pt.is_large_list(storage) or pt.is_fixed_size_list(storage):
        dtype = dtype_of(storage.value_type)
        if dtype is not None and dtype.kind in "iuf":
            return _ArrayColumn(type_, dtype)
    if pt.is_string(type_) or pt.is_large_string(type_) or pt.is_binary(type_) or pt.is_large_binary(type_):
        return _TextColumn(type_)
    return _ScalarColumn(type_) if pt.is_primitive(type_) else _NestedColumn(type_)


def adder(field: pa.Field, column: Column) -> Callable[[Any], int]:
    """Return the function that adds a value to a column, or refuses None where the field does."""
    if field.nullable:
        return column.add

    def add(value: Any) -> int:
        if value is None:
            raise Misfit("its schema rules None out")
        return column.add(value)

    return add
