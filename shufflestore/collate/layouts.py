"""Columns of a batch as numpy arrays, in the layout that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Final, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from shufflestore.errors import OptionError, SchemaError
from shufflestore.format.decode import Column, numpy_type

__all__ = ["Jagged", "LAYOUTS", "Layout", "Nulls", "Padded", "map_arrays", "to_numpy"]

A = TypeVar("A")
Layout = Literal["jagged", "padded", "list"]
LAYOUTS: Final = ("jagged", "padded", "list")
Nulls = float | Mapping[str, float] | None
"""What stands for null numbers: a value for all columns, by column name, or None to refuse them."""


@dataclass(frozen=True, eq=False)
class Jagged(Generic[A]):
    """Variable-length records end to end.

    Record i of the batch is `values[offsets[i]:offsets[i + 1]]`.

    >>> j = Jagged(np.array([1, 2, 3]), np.array([0, 2, 2, 3]))
    >>> [record.tolist() for record in j]
    [[1, 2], [], [3]]
    """

    values: A
    """All elements, (offsets[-1], ...); a dict or a Jagged where the elements have parts of their own."""
    offsets: A
    """(records + 1,) int64, from 0."""

    def __len__(self) -> int:
        return len(self.offsets) - 1  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        """Return one record, a view."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of a batch of {len(self)}; allowed are [0, {len(self)})")
        index %= len(self)
        ends: Any = self.offsets
        return _cut(self.values, int(ends[index]), int(ends[index + 1]))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> A:
        """(records,) elements of each record."""
        ends: Any = self.offsets
        made: A = ends[1:] - ends[:-1]
        return made

    def to(self, *args: Any, **kwargs: Any) -> Jagged[Any]:
        """Return the same on another device or in another dtype, as `torch.Tensor.to`; offsets keep their dtype."""
        moved = map_arrays(self.values, lambda array: array.to(*args, **kwargs))
        ends: Any = self.offsets
        device = next(iter(arrays_of(moved)), ends).device
        return Jagged(moved, ends.to(device, non_blocking=bool(kwargs.get("non_blocking", False))))

    def pin_memory(self) -> Jagged[Any]:
        """Return a copy in page-locked memory, as `torch.Tensor.pin_memory`."""
        return Jagged(
            map_arrays(self.values, lambda a: a.pin_memory()), map_arrays(self.offsets, lambda a: a.pin_memory())
        )


@dataclass(frozen=True, eq=False)
class Padded(Generic[A]):
    """Variable-length records, each filled up with zeros to the longest of the batch.

    >>> p = Padded(np.array([[1, 2], [3, 0]]), np.array([2, 1]))
    >>> p.mask.tolist()
    [[True, True], [True, False]]
    """

    values: A
    """(records, longest, ...)."""
    lengths: A
    """(records,) int64."""

    def __len__(self) -> int:
        return len(self.lengths)  # type: ignore[arg-type]

    @property
    def mask(self) -> A:
        """(records, longest) True where a value is the record's own."""
        lengths: Any = self.lengths
        longest = self.values.shape[1]  # type: ignore[attr-defined]
        if isinstance(lengths, np.ndarray):
            made: A = np.arange(longest) < lengths[:, None]  # type: ignore[assignment]
        else:
            made = lengths.new_tensor(range(longest)) < lengths[:, None]
        return made

    def to(self, *args: Any, **kwargs: Any) -> Padded[Any]:
        """Return the same on another device or in another dtype, as `torch.Tensor.to`; lengths keep their dtype."""
        values: Any = self.values
        lengths: Any = self.lengths
        moved = values.to(*args, **kwargs)
        return Padded(moved, lengths.to(moved.device, non_blocking=bool(kwargs.get("non_blocking", False))))

    def pin_memory(self) -> Padded[Any]:
        """Return a copy in page-locked memory, as `torch.Tensor.pin_memory`."""
        return Padded(
            map_arrays(self.values, lambda a: a.pin_memory()), map_arrays(self.lengths, lambda a: a.pin_memory())
        )


def map_arrays(value: Any, change: Callable[[Any], Any]) -> Any:
    """Return a value with `change` applied to every array in it; strings and other leaves stay."""
    if isinstance(value, np.ndarray):
        return change(value)
    if isinstance(value, Jagged):
        return Jagged(map_arrays(value.values, change), change(value.offsets))
    if isinstance(value, dict):
        return {key: map_arrays(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [map_arrays(inner, change) for inner in value]
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_arrays(getattr(value, f.name), change) for f in fields(value)})
    return change(value) if hasattr(value, "dtype") and hasattr(value, "shape") else value


def arrays_of(value: Any) -> Iterator[Any]:
    """Yield every array in a value."""
    found: list[Any] = []

    def note(array: Any) -> Any:
        found.append(array)
        return array

    map_arrays(value, note)
    yield from found


def _cut(values: Any, start: int, stop: int) -> Any:
    if isinstance(values, dict):
        return {key: _cut(inner, start, stop) for key, inner in values.items()}
    if isinstance(values, Jagged):
        return [values[i] for i in range(start, stop)]
    return values[start:stop]


def to_numpy(name: str, column: Column, layout: Layout = "jagged", nulls: Nulls = None) -> Any:
    """Return a column of a batch as numpy arrays.

    Fixed shapes are stacked, (records, ...). Variable-length numbers come in `layout`: a Jagged,
    a Padded, or a list of arrays. Strings, bytes and all that numpy has no numbers for come as
    lists. Structs come as dicts. Dates, times and durations come as integers in Arrow's own unit.
    A null list is an empty one; what is inside a null struct or fixed-size list is null.

    Args:
        name: Of the column, for errors.
        column: As decoded.
        layout: For variable-length numbers.
        nulls: What stands for null numbers.

    Raises:
        SchemaError: Null numbers, and `nulls` does not say what stands for them.
        OptionError: No such layout.
    """
    if layout not in LAYOUTS:
        raise OptionError(f"layout {layout!r}; allowed are {list(LAYOUTS)}")
    if column.arrow is not None:
        return _from_arrow(name, column.arrow, layout, nulls)
    type_ = column.type
    if pt.is_struct(type_):
        names = [type_.field(i).name for i in range(type_.num_fields)]
        inner = [_below(child, column.valid) for child in column.children]
        return {n: to_numpy(f"{name}.{n}", c, layout, nulls) for n, c in zip(names, inner, strict=True)}
    if not _is_numeric(type_):
        return column.to_arrow().to_pylist()
    if column.offsets is not None:
        values = to_numpy(name, column.children[0], "jagged", nulls)
        return _in_layout(Jagged(values, column.offsets), layout)
    if column.children:  # a fixed-size list
        made = to_numpy(name, _below(column.children[0], column.valid, type_.list_size), "jagged", nulls)
        if isinstance(made, np.ndarray):
            return made.reshape(column.length, type_.list_size, *made.shape[1:])
        return column.to_arrow().to_pylist()
    return _filled(name, column, nulls)


def _below(child: Column, valid: NDArray[np.bool_] | None, each: int = 1) -> Column:
    """Return a column inside another, null also where the one around it is, which has no mark of its own here."""
    if valid is None:
        return child
    above = valid if each == 1 else np.repeat(valid, each)
    return replace(child, valid=above if child.valid is None else above & child.valid)


@lru_cache(maxsize=256)
def _is_numeric(type_: pa.DataType) -> bool:
    """Whether numpy has numbers for a type, at the bottom of any lists and structs."""
    if pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_):
        return _is_numeric(type_.value_type)
    if pt.is_struct(type_):
        return True
    return numpy_type(type_) is not None


def _filled(name: str, column: Column, nulls: Nulls) -> NDArray[Any]:
    assert column.values is not None, "a numeric column has values"
    if column.valid is None:
        return column.values
    fill = nulls.get(name) if isinstance(nulls, Mapping) else nulls
    if fill is None:
        raise SchemaError(
            f"column {name!r} has {int((~column.valid).sum())} nulls in this batch, which numbers cannot show; say what "
            f"stands for them (fill_nulls={{{name!r}: -1}}), leave the column out, or take format='arrow'"
        )
    return np.where(column.valid, column.values, np.asarray(fill).astype(column.values.dtype))


def _in_layout(jagged: Jagged[Any], layout: Layout) -> Any:
    if layout == "jagged" or not isinstance(jagged.values, np.ndarray):
        return jagged
    if layout == "list":
        return list(jagged)
    lengths = np.diff(jagged.offsets)
    longest = int(lengths.max(initial=0))
    out = np.zeros((len(lengths), longest, *jagged.values.shape[1:]), jagged.values.dtype)
    out[np.arange(longest) < lengths[:, None]] = jagged.values
    return Padded(out, lengths)


def _from_arrow(name: str, array: pa.Array, layout: Layout, nulls: Nulls) -> Any:
    """A column that was read whole: the common shapes through the same door, the rest as a list."""
    made = from_arrow(array)
    return array.to_pylist() if made is None else to_numpy(name, made, layout, nulls)


def from_arrow(array: pa.Array) -> Column | None:
    """Return a decoded column for an Arrow array of numbers or lists of numbers, else None."""
    type_, length = array.type, len(array)
    valid = None if array.null_count == 0 else np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
    kind = numpy_type(type_)
    if pt.is_boolean(type_):
        return Column(type_, length, valid, None, np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False)))
    if kind is not None:
        width = kind.itemsize
        raw = np.frombuffer(array.buffers()[1] or b"", np.uint8)[array.offset * width : (array.offset + length) * width]
        return Column(type_, length, valid, None, raw.view(kind))
    if pt.is_list(type_) or pt.is_large_list(type_):
        child = from_arrow(array.flatten())
        if child is None:
            return None
        lengths = np.asarray(array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        return Column(type_, length, valid, np.concatenate([[0], np.cumsum(lengths)]), None, (child,))
    return None
