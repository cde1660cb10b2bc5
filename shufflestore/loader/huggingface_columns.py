"""Columns of a batch as Hugging Face's formats and torch's `default_collate` would have them, made without records.

A column is made here where one pass over its values does, and by `datasets` itself where its rules are
about single values: text among nulls, structs, dates, lists in lists of different lengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
import torch
from numpy.typing import NDArray
from torch.utils.data import default_collate

from shufflestore.collate.layouts import opened
from shufflestore.format.decode import Column

__all__ = ["Plain", "Ragged", "Rule", "Stacked", "Values", "rule_for", "table_array"]

_INT64_MAX: Final = np.uint64(2**63 - 1)
_ViewsOnTheirOwn = torch._C._AutoDispatchBelowADInplaceOrView
"""Where torch keeps no book of which tensor is a view of which, as in its own custom operators: views of one tensor
would refuse to be written to where gradients are recorded, and take a third longer to make."""


class Values(Protocol):
    """One column of a batch."""

    def records(self) -> list[Any]:
        """Return each record's value, as `Dataset.__getitems__` would."""
        ...

    def collated(self) -> Any:
        """Return what `default_collate` makes of the records; raises what it raises."""
        ...


Rule = Callable[[Column], "Values | None"]
"""rule(column) -> its values, or None where `datasets` must make them."""


@dataclass(frozen=True, eq=False, slots=True)
class Plain:
    """Python objects, one a record."""

    values: list[Any]

    def records(self) -> list[Any]:
        """Return the objects."""
        return self.values

    def collated(self) -> Any:
        """Return what torch makes of them."""
        return default_collate(self.values)


@dataclass(frozen=True, eq=False, slots=True)
class Stacked:
    """Numbers of one shape, (records, ...)."""

    array: NDArray[Any]
    format: str | None

    def records(self) -> list[Any]:
        """Return tensors, arrays or numpy scalars, or nested lists."""
        array = self.array
        if self.format == "torch":
            with _ViewsOnTheirOwn():
                return list(torch.from_numpy(array).unbind())
        return list(array) if self.format == "numpy" else array.tolist()

    def collated(self) -> Any:
        """Return a tensor; for python's nested lists, lists of tensors that each have one number a record."""
        array = self.array
        if self.format is not None:
            return torch.from_numpy(array)
        if array.dtype == np.uint64 and (array > _INT64_MAX).any():
            return default_collate(array.tolist())  # refuses it
        if array.dtype != bool:
            array = array.astype(np.float64 if array.dtype.kind == "f" else np.int64, copy=False)
        return _nested(np.ascontiguousarray(np.moveaxis(array, 0, -1)))


def _nested(array: NDArray[Any]) -> Any:
    return torch.from_numpy(array) if array.ndim == 1 else [_nested(inner) for inner in array]


@dataclass(frozen=True, eq=False, slots=True)
class Ragged:
    """Numbers of several lengths: record i has values[offsets[i]:offsets[i + 1]]."""

    values: NDArray[Any]
    offsets: NDArray[np.int64]
    format: str | None

    def records(self) -> list[Any]:
        """Return tensors, arrays or lists that share one memory."""
        if self.format == "torch":
            with _ViewsOnTheirOwn():
                return list(torch.from_numpy(self.values).split_with_sizes(np.diff(self.offsets).tolist()))
        values: Any = self.values if self.format is not None else self.values.tolist()
        return [values[a:b] for a, b in pairwise(self.offsets.tolist())]

    def collated(self) -> Any:
        """Raise what torch raises for records of several lengths."""
        return default_collate(self.records())


def rule_for(type_: pa.DataType, format: str | None) -> Rule:
    """Return what makes a column's values.

    Args:
        type_: Of the column in the data set's table, extension types included.
        format: "torch", "numpy", or None for python's objects.
    """
    shape = getattr(type_, "shape", None) if isinstance(type_, pa.ExtensionType) else None
    if isinstance(type_, pa.BaseExtensionType):
        if shape is None or None in shape or 0 in shape or not _is_number(_leaf(type_.storage_type)):
            return lambda _column: None
        return _tensor_rule(tuple(shape), format)
    leaf = _leaf(type_)
    if _is_number(leaf):
        return _number_rule(format)
    if format is None:
        return lambda column: Plain(column.to_arrow().to_pylist())
    if not _is_text(leaf):
        return lambda _column: None
    if leaf is type_:
        return _text_rule(format)
    if format == "torch":  # strings in lists are objects to numpy, and left alone
        return lambda column: Plain(column.to_arrow().to_pylist())
    return lambda _column: None


def _leaf(type_: pa.DataType) -> pa.DataType:
    """What stands at the bottom of lists."""
    while pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_):
        type_ = type_.value_type
    return type_


def _is_number(type_: pa.DataType) -> bool:
    return bool(pt.is_boolean(type_) or pt.is_integer(type_) or pt.is_floating(type_))


def _is_text(type_: pa.DataType) -> bool:
    return bool(
        pt.is_string(type_) or pt.is_large_string(type_) or pt.is_binary(type_) or pt.is_large_binary(type_)
    )  # fmt: skip


# -- numbers ---------------------------------------------------------------------------------------


def _number_rule(format: str | None) -> Rule:
    def values(column: Column) -> Values | None:
        column = opened(column)
        found = column.values
        if column.valid is not None and found is not None:
            if format is None:
                return Plain([v if ok else None for v, ok in zip(found.tolist(), column.valid.tolist(), strict=True)])
            return None if found.dtype == bool else Stacked(_with_nan(found, column.valid), format)
        dense = _dense(column)
        if dense is None:
            return Plain(column.to_arrow().to_pylist()) if format is None else None
        array, offsets = dense
        array = array if format is None else converted(array)
        return Stacked(array, format) if offsets is None else Ragged(array, offsets, format)

    return values


def converted(array: NDArray[Any]) -> NDArray[Any]:
    """Return numbers in the type of the tensor formats: int64, float32 or bool."""
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # beyond float32 is infinite, as for torch
            return array.astype(np.float32, copy=False)
    return array if array.dtype == bool else array.astype(np.int64, copy=False)


def _with_nan(values: NDArray[Any], valid: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Integers go through float64 on their way, as Arrow has them where one is null."""
    wide = values if values.dtype.kind == "f" else values.astype(np.float64)
    made: NDArray[np.float32] = converted(np.where(valid, wide, np.nan).astype(wide.dtype, copy=False))
    return made


def _dense(column: Column) -> tuple[NDArray[Any], NDArray[np.int64] | None] | None:
    """Numbers as one array, (records, ...), or end to end with offsets; None where neither shows them as they are."""
    if column.valid is not None:
        return None
    if not column.children:
        return None if column.values is None else (column.values, None)
    inner = _dense(column.children[0])
    if inner is None or inner[1] is not None:
        return None
    array, count = inner[0], column.length
    if column.offsets is None:
        size: int | None = column.type.list_size
    else:
        size = _one_length(column.offsets)
    if size is None:
        assert column.offsets is not None, "its lengths differ"
        # An empty list of lists has lost the shape of what it lacks.
        is_lost = array.ndim > 1 and bool((np.diff(column.offsets) == 0).any())
        return None if is_lost else (array, column.offsets)
    if size == 0 and array.ndim > 1:
        return None
    return array.reshape(count, size, *array.shape[1:]), None


def _one_length(offsets: NDArray[np.int64]) -> int | None:
    """The length of every list, None if they differ."""
    count = len(offsets) - 1
    size = int(offsets[-1]) // max(count, 1)
    return size if np.array_equal(offsets, np.arange(count + 1) * size) else None


def _tensor_rule(shape: tuple[int, ...], format: str | None) -> Rule:
    """Of `Array2D` and its like: one array a record, whatever the lists say that it is stored as."""

    def values(column: Column) -> Values | None:
        column = opened(column)
        while column.children and column.valid is None:
            column = column.children[0]
        array = column.values
        if column.valid is not None or array is None or len(array) % math.prod(shape):
            return None
        array = array.reshape(-1, *shape)
        return Stacked(array if format is None else converted(array), format)

    return values


# -- text ------------------------------------------------------------------------------------------


def _text_rule(format: str) -> Rule:
    def values(column: Column) -> Values:
        texts = column.to_arrow().to_pylist()
        if not texts or None in texts:
            return Plain(texts)
        if format == "numpy":
            return Plain(list(np.asarray(texts)))
        data = column.values
        if data is not None and data.all():
            return Plain(texts)
        return Plain(np.asarray(texts).tolist())  # numpy drops zeros at the end

    return values


# -- for `datasets` itself -------------------------------------------------------------------------


def table_array(column: Column, type_: pa.DataType) -> pa.Array:
    """Return a column as an Arrow array of the data set's own type, extension types put back on."""
    array = column.to_arrow()
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, array.cast(type_.storage_type))
    return array if array.type == type_ else array.cast(type_)
