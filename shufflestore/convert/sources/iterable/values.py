"""Python and numpy values as Arrow types and arrays; a value that would change on the way is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from shufflestore.convert.sources import common_type
from shufflestore.errors import SchemaError

__all__ = [
    "INT32_MAX",
    "Misfit",
    "SchemaGuess",
    "casts_exactly",
    "check_record",
    "dtype_of",
    "encode",
    "infer_schema",
    "misfit",
    "offsets_of",
    "own",
    "quick_check",
    "size_of",
    "told",
]

INT32_MAX: Final = 2**31 - 1


class Misfit(Exception):
    """A value has no place in its column; who catches it knows the record."""


# Types


def infer_schema(records: Iterable[Mapping[str, Any]], given: Mapping[str, pa.DataType] | None = None) -> pa.Schema:
    """Return the schema that holds all of `records`.

    Integers become int64 (uint64 past it), a 1-D array a list of its dtype, arrays of one shape a
    fixed shape tensor and of several shapes nested lists. A column that is None throughout is null.

    Args:
        records: At least one column among them.
        given: Types of some columns, which are not looked at.

    Raises:
        SchemaError: Two records disagree, or a value has no Arrow type; record and column are named.

    >>> infer_schema([{"a": 1, "b": None}, {"a": 2.5, "b": "x"}])
    a: double
    b: string
    """
    guess = SchemaGuess(given)
    for number, record in enumerate(records):
        guess.add(record, number)
    return guess.schema()


class SchemaGuess:
    """A schema in the making; see `infer_schema`."""

    def __init__(self, given: Mapping[str, pa.DataType] | None = None) -> None:
        self._given = given or {}
        self._types: dict[str, pa.DataType] = {}

    def add(self, record: Mapping[str, Any], number: int) -> None:
        """Take a record into account; after an error, nothing of it is. Raises SchemaError."""
        found: dict[str, pa.DataType] = {}
        for name, value in record.items():
            if name in self._given:
                found[name] = self._given[name]
                continue
            try:
                type_ = _type_of(value, is_top=True)
            except (Misfit, pa.ArrowException, TypeError, ValueError, OverflowError) as e:
                raise SchemaError(
                    f"record {number:,}: column {name!r} has a {told(value)}, which no Arrow type holds ({e}); "
                    "give numbers, text, bytes, lists, dicts or arrays"
                ) from e
            known = self._types.get(name, pa.null())
            merged = known if known is type_ else _merge(known, type_)
            if merged is None:
                raise SchemaError(
                    f"record {number:,}: column {name!r} has a {told(value)} ({type_}), records before it {known}; "
                    f"make them alike, or give the type with schema={{{name!r}: ...}}"
                )
            found[name] = merged
        self._types.update(found)

    def schema(self) -> pa.Schema:
        """Return the schema so far. Raises SchemaError if there is no column."""
        if not self._types:
            raise SchemaError("no record has a column; give dicts with at least one key")
        return pa.schema(list(self._types.items()))


def _merge(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if isinstance(a, pa.FixedShapeTensorType) or isinstance(b, pa.FixedShapeTensorType):
        if a.equals(b) or pt.is_null(a) or pt.is_null(b):
            return b if pt.is_null(a) else a
        a, b = _as_lists(a), _as_lists(b)
    return common_type(a, b, is_loose=True)


def _as_lists(type_: pa.DataType) -> pa.DataType:
    if not isinstance(type_, pa.FixedShapeTensorType):
        return type_
    inner = type_.value_type
    for _ in type_.shape:
        inner = pa.list_(inner)
    return inner


_NUMBERS: Final = frozenset(np.dtype(code).type for code in "bhilqBHILQefd")


def _type_of(value: Any, *, is_top: bool = False) -> pa.DataType:
    if value is None:
        return pa.null()
    if isinstance(value, (bool, np.bool_)):
        return pa.bool_()
    if isinstance(value, int):
        return _type_of_integers([value])
    if isinstance(value, np.ndarray):
        return _type_of_array(value, is_top=is_top)
    if type(value) in _NUMBERS:
        return _type_of_arrays(value.dtype, None, 0)
    if isinstance(value, Mapping):
        _check_keys(value)
        return pa.struct([(key, _type_of(item)) for key, item in value.items()])
    if isinstance(value, (list, tuple)):
        return pa.list_(_type_of_items(value))
    if isinstance(value, np.generic) and not isinstance(value, (str, bytes)):
        return pa.from_numpy_dtype(value.dtype)
    if isinstance(value, (bytearray, memoryview)):
        return pa.binary()
    if hasattr(value, "__array__") and not isinstance(value, (str, bytes)):
        return _type_of_array(np.asarray(value), is_top=is_top)
    return pa.infer_type([value])


def _type_of_items(values: Sequence[Any]) -> pa.DataType:
    kinds = set(map(type, values)) - {type(None)}
    if kinds == {int}:
        return _type_of_integers([value for value in values if value is not None])
    if len(kinds) == 1 and kinds <= {float, str, bytes}:
        return pa.infer_type(values)
    found = pa.null()
    for value in values:
        merged = common_type(found, _type_of(value), is_loose=True)
        if merged is None:
            raise Misfit(f"the list holds {found} and {told(value)}")
        found = merged
    return found


def _type_of_integers(values: Sequence[int]) -> pa.DataType:
    low, high = min(values), max(values)
    if low < -(2**63) or high >= (2**63 if low < 0 else 2**64):
        raise Misfit(f"[{low}, {high + 1}) fits neither int64 nor uint64")
    return pa.int64() if high < 2**63 else pa.uint64()


def _type_of_array(value: np.ndarray[Any, Any], *, is_top: bool) -> pa.DataType:
    if value.dtype.kind in "OUS":
        return _type_of(value.tolist())
    is_tensor = is_top and value.ndim > 1 and value.size > 0 and value.dtype.kind in "iuf"
    return _type_of_arrays(value.dtype, value.shape if is_tensor else None, value.ndim)


@lru_cache(64)  # records are many, their types few
def _type_of_arrays(dtype: np.dtype[Any], shape: tuple[int, ...] | None, ndim: int) -> pa.DataType:
    inner = pa.from_numpy_dtype(dtype.newbyteorder("="))
    if shape is not None:
        return pa.fixed_shape_tensor(inner, shape)
    for _ in range(ndim):
        inner = pa.list_(inner)
    return inner


# Values

_INTEGERS: Final = (int, np.integer)
_ACCEPTED: Final[tuple[tuple[Callable[[pa.DataType], bool], tuple[type, ...]], ...]] = (
    (pt.is_boolean, (bool, np.bool_)),
    (pt.is_integer, _INTEGERS),
    (pt.is_floating, (float, np.floating, *_INTEGERS)),
    (lambda t: pt.is_string(t) or pt.is_large_string(t) or pt.is_string_view(t), (str,)),
    (lambda t: pt.is_binary(t) or pt.is_large_binary(t), (bytes, bytearray, memoryview)),
)
"""What Python values each kind of column takes. pyarrow alone would cut 1.5 to 1 and take True for 1.0."""


def encode(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Return values as an array of a type; raises Misfit or pyarrow's errors where one does not fit."""
    if isinstance(type_, pa.FixedShapeTensorType):
        flat = [None if v is None else _flat_tensor(v, type_) for v in values]
        return pa.ExtensionArray.from_storage(type_, encode(flat, type_.storage_type))
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, encode(values, type_.storage_type))
    if pt.is_struct(type_):
        return _encode_structs(values, type_)
    if pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_):
        return _encode_lists(values, type_)
    if pt.is_map(type_):
        return pa.array([list(v.items()) if isinstance(v, Mapping) else v for v in values], type_)
    kinds = set(map(type, values)) - {type(None)}
    if any(issubclass(kind, np.ndarray) for kind in kinds):  # of no dimension, or it would not be here
        return encode([v.item() if isinstance(v, np.ndarray) and v.ndim == 0 else _no_array(v) for v in values], type_)
    for is_kind, accepted in _ACCEPTED:
        if is_kind(type_):
            for kind in kinds:
                if not issubclass(kind, accepted) or (issubclass(kind, bool) and bool not in accepted):
                    raise Misfit(f"a {kind.__name__} is none of {', '.join(a.__name__ for a in accepted)}")
    return pa.array(values, type_)


def _no_array(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        raise Misfit("an array stands for one value")
    return value


def _flat_tensor(value: Any, type_: pa.FixedShapeTensorType) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.shape != tuple(type_.shape):
        raise Misfit(f"its shape is {array.shape}, not {tuple(type_.shape)}")
    return array.reshape(-1)


def _encode_structs(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    names = {field.name for field in type_}
    for value in values:
        if value is not None and not isinstance(value, Mapping):
            raise Misfit(f"a {told(value)} is no dict")
        if value is not None and not value.keys() <= names:
            raise Misfit(f"the key {min(map(str, value.keys() - names))!r} is not among {sorted(names)}")
    children = [encode([None if v is None else v.get(f.name) for v in values], f.type) for f in type_]
    absent = pa.array([v is None for v in values], pa.bool_())
    if not children:
        return pa.array([None if v is None else {} for v in values], type_)
    return pa.StructArray.from_arrays(children, fields=list(type_), mask=absent)


def _encode_lists(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    for value in values:
        if value is not None and (not hasattr(value, "__len__") or isinstance(value, (str, bytes, Mapping))):
            raise Misfit(f"a {told(value)} is no list")
    is_null = np.fromiter((v is None for v in values), np.bool_, len(values))
    mask = pa.array(is_null) if is_null.any() else None
    if pt.is_fixed_size_list(type_):
        size = type_.list_size
        for value in values:
            if value is not None and len(value) != size:
                raise Misfit(f"it has {len(value):,} items, not {size:,}")
        padding = [None] * size
        items = _encode_items([padding if v is None else v for v in values], type_.value_type)
        return pa.FixedSizeListArray.from_arrays(items, type=type_, mask=mask)
    offsets = offsets_of([0 if v is None else len(v) for v in values], type_)
    items = _encode_items([v for v in values if v is not None], type_.value_type)
    kind = pa.LargeListArray if pt.is_large_list(type_) else pa.ListArray
    return kind.from_arrays(pa.array(offsets), items, type=type_, mask=mask)


def _encode_items(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Return the items of several lists as one array."""
    if values and all(isinstance(v, np.ndarray) and v.ndim == 1 for v in values):
        wanted = dtype_of(type_)
        if wanted is not None:
            if all(casts_exactly(v.dtype, wanted) for v in values):
                return pa.array(np.concatenate(values, dtype=wanted), type_)
            if wanted.kind == "f" and any(v.dtype.kind == "f" and v.itemsize > wanted.itemsize for v in values):
                raise Misfit(f"values would be rounded to {wanted}")
    return encode(list(chain.from_iterable(v.tolist() if _is_plain(v) else v for v in values)), type_)


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.kind != "M"


def casts_exactly(given: np.dtype[Any], wanted: np.dtype[Any]) -> bool:
    """Return whether every value of one dtype is one of another; numpy calls int64 to float64 safe, too."""
    rounds = given.kind in "iu" and given.itemsize == 8 and wanted.kind == "f"
    return np.can_cast(given, wanted, "safe") and not rounds


def dtype_of(type_: pa.DataType) -> np.dtype[Any] | None:
    """Return the dtype of numbers and booleans; None for other types."""
    return np.dtype(type_.to_pandas_dtype()) if pt.is_primitive(type_) and not pt.is_temporal(type_) else None


def offsets_of(lengths: Sequence[int], type_: pa.DataType) -> np.ndarray[Any, Any]:
    """Return the offsets of lists of these lengths, in the width of their type; raises Misfit past it."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    if pt.is_large_list(type_):
        return offsets
    if offsets[-1] > INT32_MAX:
        raise Misfit(f"{offsets[-1]:,} items do not fit {type_}; use a large_list")
    return offsets.astype(np.int32)


def quick_check(type_: pa.DataType) -> Callable[[Any], bool]:
    """Return a function that says True of plain values which surely fit; of others `encode` must say.

    Encoding one value costs microseconds a level; this costs a tenth, and nearly all values are plain.
    """
    if pt.is_struct(type_):
        inner = {field.name: quick_check(field.type) for field in type_}
        return lambda value: (
            value is None
            or (
                type(value) is dict
                and value.keys() <= inner.keys()
                and all(inner[name](item) for name, item in value.items())
            )
        )
    if pt.is_list(type_) or pt.is_large_list(type_):
        if pt.is_nested(type_.value_type):
            one = quick_check(type_.value_type)
            return lambda value: value is None or (type(value) is list and all(map(one, value)))
        some = _quick_leaves(type_.value_type)
        return lambda value: value is None or (type(value) is list and some(value))
    leaves = _quick_leaves(type_)
    return lambda value: value is None or leaves((value,))


def _quick_leaves(type_: pa.DataType) -> Callable[[Sequence[Any]], bool]:
    if pt.is_integer(type_):
        limits = np.iinfo(type_.to_pandas_dtype())
        low, high = int(limits.min), int(limits.max)
        return lambda values: (
            set(map(type, values)) <= {int} and (not values or (low <= min(values) and max(values) <= high))
        )
    if pt.is_string(type_):
        return lambda values: set(map(type, values)) <= {str} and "".join(values).isascii()
    kind = bool if pt.is_boolean(type_) else float if pt.is_floating(type_) else bytes if pt.is_binary(type_) else None
    return lambda values: kind is not None and set(map(type, values)) <= {kind}


# Words


def own(value: Any) -> Any:
    """Return a value that its giver can no longer overwrite, at the first depth."""
    return value.copy() if isinstance(value, (np.ndarray, list, bytearray)) else value


def size_of(value: Any) -> int:
    """Return about what a value takes."""
    if type(value) is np.ndarray:
        return value.nbytes + 8
    if isinstance(value, (str, bytes, bytearray)):
        return len(value) + 4
    if hasattr(value, "nbytes"):
        return int(value.nbytes) + 8
    if isinstance(value, Mapping):
        return sum(map(size_of, value.values()))
    if isinstance(value, (list, tuple)):
        return 8 + (8 * len(value) if not value or isinstance(value[0], (int, float)) else sum(map(size_of, value)))
    return 8


def told(value: Any) -> str:
    """Return a value as errors show it."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '...'}"


def misfit(number: int, field: pa.Field, value: Any, why: Exception) -> SchemaError:
    """Return the error for a value that its column has no place for."""
    return SchemaError(
        f"record {number:,}: column {field.name!r} has a {told(value)}, but the schema says {field.type} ({why}); "
        f"mend the record, or give another type with schema={{{field.name!r}: ...}}"
    )


def check_record(record: Any, number: int) -> None:
    """Raise SchemaError unless a record is a dict with strings as keys."""
    if type(record) is not dict and not isinstance(record, Mapping):
        raise SchemaError(f"record {number:,} is a {told(record)}; a record is a dict of column names and values")
    _check_keys(record)


def _check_keys(record: Mapping[Any, Any]) -> None:
    for key in record:
        if not isinstance(key, str):
            raise SchemaError(f"the key {key!r} is a {type(key).__name__}; column names are strings")
