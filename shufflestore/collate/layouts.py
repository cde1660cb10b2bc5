"""Columns of a batch as numpy arrays, in the layout that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final, Generic, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.types as pt
from numpy.typing import NDArray

from shufflestore.collate.packed import packed
from shufflestore.errors import OptionError, SchemaError
from shufflestore.format.decode import Column, numpy_type

__all__ = [
    "Collate",
    "Jagged",
    "LAYOUTS",
    "Layout",
    "Leaf",
    "Nulls",
    "Padded",
    "as_it_is",
    "collator",
    "map_arrays",
    "to_numpy",
]

A = TypeVar("A")
Layout = Literal["jagged", "padded", "list", "nested", "packed"]
LAYOUTS: Final = ("jagged", "padded", "list", "nested", "packed")
Nulls = float | Mapping[str, float] | None
"""What stands for null numbers: a value for all columns, by column name, or None to refuse them."""


@dataclass(eq=False)  # not frozen: made for every batch
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


@dataclass(eq=False)
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


Leaf = Callable[[NDArray[Any]], Any]
"""What is made of each array in the end, e.g. a tensor."""
Collate = Callable[[Column], Any]


def as_it_is(array: NDArray[Any]) -> NDArray[Any]:
    """Return an array: the leaf of numpy's own batches."""
    return array


def to_numpy(name: str, column: Column, layout: Layout = "jagged", nulls: Nulls = None) -> Any:
    """Return a column of a batch as numpy arrays; see `collator`."""
    return collator(name, column.type, layout, nulls)(opened(column))


def collator(
    name: str, type_: pa.DataType, layout: Layout = "jagged", nulls: Nulls = None, leaf: Leaf = as_it_is
) -> Collate:
    """Return what makes arrays of one column of any batch.

    Fixed shapes are stacked, (records, ...). Variable-length numbers come in `layout`: a Jagged,
    a Padded, a list of arrays, or a Packed. Strings, bytes and all that numpy has no numbers for come as
    lists. Structs come as dicts. Dates, times and durations come as integers in Arrow's own unit.
    A null list is an empty one; what is inside a null struct or fixed-size list is null.

    Args:
        name: Of the column, for errors.
        type_: As it is delivered.
        layout: For variable-length numbers.
        nulls: What stands for null numbers.
        leaf: Called with every array.

    Returns:
        collate(column) for a column that is `opened`. Raises SchemaError for null numbers where `nulls` does not
        say what stands for them.

    Raises:
        OptionError: No such layout, or "nested", which torch alone has: see `tensors.nested`.
    """
    if layout not in LAYOUTS:
        raise OptionError(f"layout {layout!r}; allowed are {list(LAYOUTS)}")
    if layout == "nested":
        raise OptionError("layout='nested' makes torch's nested tensors: it needs format='torch' of a DataLoader")
    return _collator(name, type_, layout, nulls, leaf)


def _collator(name: str, type_: pa.DataType, layout: Layout, nulls: Nulls, leaf: Leaf) -> Collate:
    if pt.is_struct(type_):
        fields_ = [type_.field(i) for i in range(type_.num_fields)]
        inner = [(f.name, _collator(f"{name}.{f.name}", f.type, layout, nulls, leaf)) for f in fields_]
        return lambda column: {
            key: collate(_below(child, column.valid))
            for (key, collate), child in zip(inner, column.children, strict=True)
        }
    if not is_numeric(type_):
        return lambda column: column.to_arrow().to_pylist()
    if pt.is_list(type_) or pt.is_large_list(type_):
        return _list_collator(name, type_, layout, nulls, leaf)
    if pt.is_fixed_size_list(type_):
        return _fixed_list_collator(name, type_, nulls, leaf)
    fill = nulls.get(name) if isinstance(nulls, Mapping) else nulls

    def numbers(column: Column) -> Any:
        values = column.values
        assert values is not None, "a numeric column has values"
        return leaf(values) if column.valid is None else leaf(_filled(name, values, column.valid, fill))

    return numbers


def _list_collator(name: str, type_: pa.DataType, layout: Layout, nulls: Nulls, leaf: Leaf) -> Collate:
    if layout == "jagged" or not _is_flat(type_.value_type):
        inner = _collator(name, type_.value_type, "jagged", nulls, leaf)
        return lambda column: Jagged(inner(column.children[0]), leaf(_ends(column)))
    plain = _collator(name, type_.value_type, "jagged", nulls, as_it_is)
    if layout == "list":
        return lambda column: [leaf(array) for array in Jagged(plain(column.children[0]), _ends(column))]

    if layout == "packed":
        return lambda column: packed(name, plain(column.children[0]), _ends(column), leaf)

    def padded(column: Column) -> Padded[Any]:
        values, lengths = plain(column.children[0]), np.diff(_ends(column))
        longest = int(lengths.max(initial=0))
        out = np.zeros((len(lengths), longest, *values.shape[1:]), values.dtype)
        out[np.arange(longest) < lengths[:, None]] = values
        return Padded(leaf(out), leaf(lengths))

    return padded


def _fixed_list_collator(name: str, type_: pa.DataType, nulls: Nulls, leaf: Leaf) -> Collate:
    size = type_.list_size
    if not _is_flat(type_.value_type):
        return lambda column: column.to_arrow().to_pylist()
    plain = _collator(name, type_.value_type, "jagged", nulls, as_it_is)

    def stacked(column: Column) -> Any:
        made = plain(_below(column.children[0], column.valid, size))
        return leaf(made.reshape(column.length, size, *made.shape[1:]))

    return stacked


def _ends(column: Column) -> NDArray[np.int64]:
    assert column.offsets is not None, "a list has offsets"
    return column.offsets


def _below(child: Column, valid: NDArray[np.bool_] | None, each: int = 1) -> Column:
    """Return a column inside another, null also where the one around it is, which has no mark of its own here."""
    if valid is None:
        return child
    above = valid if each == 1 else np.repeat(valid, each)
    return replace(child, valid=above if child.valid is None else above & child.valid)


def is_numeric(type_: pa.DataType) -> bool:
    """Whether numpy has numbers for a type, at the bottom of any lists and structs."""
    if pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_):
        return is_numeric(type_.value_type)
    return bool(pt.is_struct(type_)) or numpy_type(type_) is not None


def _is_flat(type_: pa.DataType) -> bool:
    """Whether a type's values are one array: numbers, or fixed-size lists of them."""
    return _is_flat(type_.value_type) if pt.is_fixed_size_list(type_) else numpy_type(type_) is not None


def _filled(name: str, values: NDArray[Any], valid: NDArray[np.bool_], fill: float | None) -> NDArray[Any]:
    if fill is None:
        raise SchemaError(
            f"column {name!r} has {int((~valid).sum())} nulls in this batch, which numbers cannot show; say what "
            f"stands for them (fill_nulls={{{name!r}: -1}}), leave the column out, or take format='arrow'"
        )
    return np.where(valid, values, np.asarray(fill).astype(values.dtype))


def opened(column: Column) -> Column:
    """Return a column with its parts laid open where it was read whole, as far as numpy has numbers for them."""
    return column if column.arrow is None else from_arrow(column.arrow)


def from_arrow(array: pa.Array) -> Column:
    """Return an Arrow array as a decoded column; what is neither a number nor made of numbers keeps the array."""
    type_, length = array.type, len(array)
    valid = None if array.null_count == 0 else np.asarray(array.is_valid().to_numpy(zero_copy_only=False), bool)
    kind = numpy_type(type_)
    if pt.is_boolean(type_):
        bits = array.fill_null(False).to_numpy(zero_copy_only=False)
        return Column(type_, length, valid, None, np.require(bits, requirements="W"))
    if kind is not None:
        width = kind.itemsize
        raw = np.frombuffer(array.buffers()[1] or b"", np.uint8)[array.offset * width : (array.offset + length) * width]
        return Column(type_, length, valid, None, np.require(raw.view(kind), requirements="W"))
    if pt.is_list(type_) or pt.is_large_list(type_):
        lengths = np.asarray(array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False), np.int64)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        return Column(type_, length, valid, ends, None, (from_arrow(array.flatten()),))
    if pt.is_fixed_size_list(type_):
        size = type_.list_size
        values = array.values.slice(
            array.offset * size, length * size
        )  # also what hides under nulls, to keep the shape
        return Column(type_, length, valid, None, None, (from_arrow(values),))
    if pt.is_struct(type_):
        return Column(type_, length, valid, None, None, tuple(from_arrow(child) for child in array.flatten()))
    return Column(type_, length, arrow=array)
