"""Arrow arrays of every type that training data has, to be sliced and stored by tests."""

from __future__ import annotations

import datetime as dt
import decimal
import random
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NULLS = ("none", "all", "some")
POOL = 160
"""Values of each pool: offsets up to 17 and lengths up to 130 are slices of it."""


def _integer(bits: int, signed: bool) -> Callable[[random.Random], int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return lambda r: r.choice((low, high, 0, 1, r.randint(low, high)))


def _text(r: random.Random) -> str:
    return "".join(r.choice("aé漢😀 \0z") for _ in range(r.choice((0, 1, 2, 5, 13, 40))))


def _bytes(r: random.Random) -> bytes:
    return r.randbytes(r.choice((0, 1, 3, 12, 13, 50)))


def _real(r: random.Random) -> float:
    return r.choice((0.0, -1.5, 1024.0, 0.25, r.randint(-1000, 1000) / 8))


def _half(r: random.Random) -> Any:
    return np.float16(_real(r))


SCALARS: dict[str, tuple[pa.DataType, Callable[[random.Random], Any]]] = {
    **{f"int{b}": (getattr(pa, f"int{b}")(), _integer(b, True)) for b in (8, 16, 32, 64)},
    **{f"uint{b}": (getattr(pa, f"uint{b}")(), _integer(b, False)) for b in (8, 16, 32, 64)},
    "bool": (pa.bool_(), lambda r: r.random() < 0.5),
    "float16": (pa.float16(), _half),
    "float32": (pa.float32(), _real),
    "float64": (pa.float64(), _real),
    "string": (pa.string(), _text),
    "large_string": (pa.large_string(), _text),
    "binary": (pa.binary(), _bytes),
    "large_binary": (pa.large_binary(), _bytes),
    "fixed_size_binary": (pa.binary(5), lambda r: r.randbytes(5)),
    "fixed_size_binary_0": (pa.binary(0), lambda r: b""),
    "decimal32": (pa.decimal32(7, 2), lambda r: decimal.Decimal(r.randint(-(10**6), 10**6)).scaleb(-2)),
    "decimal64": (pa.decimal64(15, 3), lambda r: decimal.Decimal(r.randint(-(10**14), 10**14)).scaleb(-3)),
    "decimal128": (pa.decimal128(30, 4), lambda r: decimal.Decimal(r.randint(-(10**20), 10**20)).scaleb(-4)),
    "decimal256": (pa.decimal256(60, 4), lambda r: decimal.Decimal(r.randint(-(10**25), 10**25)).scaleb(-4)),
    "date32": (pa.date32(), lambda r: dt.date(1970, 1, 1) + dt.timedelta(r.randint(-9999, 9999))),
    "date64": (pa.date64(), lambda r: dt.date(1970, 1, 1) + dt.timedelta(r.randint(-9999, 9999))),
    "time32": (pa.time32("ms"), lambda r: dt.time(r.randint(0, 23), 1, 2, 3000)),
    "time64": (pa.time64("us"), lambda r: dt.time(r.randint(0, 23), 1, 2, r.randint(0, 999999))),
    "timestamp": (pa.timestamp("us"), lambda r: dt.datetime(2000, 1, 1) + dt.timedelta(seconds=r.random() * 1e9)),
    "timestamp_tz": (pa.timestamp("ms", "UTC"), lambda r: r.randint(0, 2**40)),
    "duration": (pa.duration("us"), lambda r: dt.timedelta(microseconds=r.randint(-(10**9), 10**9))),
    "interval": (pa.month_day_nano_interval(), lambda r: (r.randint(-9, 9), r.randint(-9, 9), r.randint(-9, 9))),
    "null": (pa.null(), lambda r: None),
    "string_view": (pa.string_view(), _text),
    "binary_view": (pa.binary_view(), _bytes),
}


def _items(name: str, most: int = 5) -> Callable[[random.Random], list[Any]]:
    make = value_of(name)
    return lambda r: [None if r.random() < 0.2 else make(r) for _ in range(r.randint(0, most))]


def _exactly(name: str, size: int) -> Callable[[random.Random], list[Any]]:
    make = value_of(name)
    return lambda r: [None if r.random() < 0.2 else make(r) for _ in range(size)]


def _fields(**names: str) -> Callable[[random.Random], dict[str, Any]]:
    return lambda r: {k: None if r.random() < 0.2 else value_of(v)(r) for k, v in names.items()}


def type_of(name: str) -> pa.DataType:
    return SCALARS[name][0] if name in SCALARS else NESTED[name][0]


def value_of(name: str) -> Callable[[random.Random], Any]:
    return lambda r: (SCALARS.get(name) or NESTED[name])[1](r)


def _pairs(r: random.Random) -> list[tuple[str, Any]]:
    return [(str(i), None if r.random() < 0.2 else r.randint(0, 99)) for i in range(r.randint(0, 4))]


_STRUCT = pa.struct([("a", pa.int32()), ("b", pa.string()), ("c", pa.bool_())])
_DEEP = pa.struct([("s", _STRUCT), ("l", pa.list_(pa.string())), ("f", pa.list_(pa.int16(), 3))])
_DICT = pa.dictionary(pa.int8(), pa.string())
NESTED: dict[str, tuple[pa.DataType, Callable[[random.Random], Any]]] = {
    "list_int": (pa.list_(pa.int32()), _items("int32")),
    "list_float16": (pa.list_(pa.float16()), _items("float16")),
    "list_bool": (pa.list_(pa.bool_()), _items("bool", 19)),
    "list_string": (pa.list_(pa.string()), _items("string")),
    "list_null": (pa.list_(pa.null()), _items("null")),
    "large_list": (pa.large_list(pa.large_string()), _items("large_string")),
    "struct": (_STRUCT, _fields(a="int32", b="string", c="bool")),
    "struct_empty": (pa.struct([]), lambda r: {}),
    "list_struct": (pa.list_(_STRUCT), _items("struct")),
    "list_list": (pa.list_(pa.list_(pa.int32())), _items("list_int")),
    "list_list_bool": (pa.list_(pa.large_list(pa.list_(pa.bool_()))), lambda r: [[_items("bool")(r)], [], None]),
    "list_list_string": (pa.list_(pa.list_(pa.string())), _items("list_string")),
    "fixed_list": (pa.list_(pa.float32(), 4), _exactly("float32", 4)),
    "fixed_list_1": (pa.list_(pa.int32(), 1), _exactly("int32", 1)),
    "fixed_list_1_string": (pa.list_(pa.string(), 1), _exactly("string", 1)),
    "fixed_list_1_struct": (pa.list_(_STRUCT, 1), _exactly("struct", 1)),
    "fixed_list_1_bool": (pa.list_(pa.bool_(), 1), _exactly("bool", 1)),
    "fixed_list_0": (pa.list_(pa.int32(), 0), lambda r: []),
    "fixed_list_bool": (pa.list_(pa.bool_(), 11), _exactly("bool", 11)),
    "fixed_list_string": (pa.list_(pa.string(), 3), _exactly("string", 3)),
    "fixed_list_list": (pa.list_(pa.list_(pa.int32()), 2), _exactly("list_int", 2)),
    "fixed_list_struct": (pa.list_(_STRUCT, 2), _exactly("struct", 2)),
    "fixed_fixed": (pa.list_(pa.list_(pa.int8(), 3), 2), lambda r: [_exactly("int8", 3)(r), None]),
    "list_fixed_list": (pa.list_(pa.list_(pa.float32(), 4)), _items("fixed_list")),
    "list_fixed_string": (pa.list_(pa.list_(pa.string(), 3)), _items("fixed_list_string", 3)),
    "list_decimal": (pa.list_(pa.decimal128(30, 4)), _items("decimal128")),
    "struct_deep": (_DEEP, _fields(s="struct", l="list_string", f="fixed_list_int16")),
    "fixed_list_int16": (pa.list_(pa.int16(), 3), _exactly("int16", 3)),
    "map": (pa.map_(pa.string(), pa.int64()), _pairs),
    "list_map": (pa.list_(pa.map_(pa.string(), pa.int64())), _items("map", 3)),
    "list_view": (pa.list_view(pa.int32()), _items("int32")),
    "large_list_view": (pa.large_list_view(pa.string()), _items("string")),
    "dictionary": (_DICT, lambda r: r.choice(("x", "yy", "", "zzz"))),
    "dictionary_int": (pa.dictionary(pa.uint16(), pa.float64()), lambda r: r.choice((0.5, 2.0, -1.0))),
    "struct_dictionary": (pa.struct([("d", _DICT), ("n", pa.int8())]), _fields(d="dictionary", n="int8")),
    "list_dictionary": (pa.list_(_DICT), _items("dictionary")),
    "large_list_dictionary": (pa.large_list(_DICT), _items("dictionary")),
    "fixed_list_dictionary": (pa.list_(_DICT, 2), _exactly("dictionary", 2)),
    "struct_view": (pa.struct([("v", pa.string_view())]), _fields(v="string_view")),
    "list_view_view": (pa.list_view(pa.string_view()), _items("string_view")),
}
BUILT = (
    "run_end", "run_end_string", "sparse_union", "dense_union", "tensor", "uuid", "map_dictionary", "list_run_end",
    "list_uuid", "struct_uuid",
)  # fmt: skip
TYPES = (*SCALARS, *NESTED, *BUILT)


def _built(name: str, nulls: str, r: random.Random) -> pa.Array:
    """Arrays that `pa.array` cannot make from values."""
    if name.startswith("run_end"):
        inner = _filled(pa.string() if name.endswith("string") else pa.int32(), nulls, r, lambda r: r.randint(0, 2))
        return pc.run_end_encode(inner.cast(pa.string() if name.endswith("string") else pa.int32()))
    if name.endswith("union"):
        children = [pool("int32", nulls), pool("string", nulls)]
        tags = pa.array([r.randint(0, 1) for _ in range(POOL)], pa.int8())
        if name == "sparse_union":
            return pa.UnionArray.from_sparse(tags, children)
        return pa.UnionArray.from_dense(tags, pa.array(range(POOL), pa.int32()), children)
    if name == "tensor":
        storage = pa.array(
            [None if x is None else x[:4] for x in pool("fixed_list", nulls).to_pylist()], type_of("fixed_list")
        )
        return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float32(), (2, 2)), storage)
    if name == "uuid":
        storage = _filled(pa.binary(16), nulls, r, lambda r: r.randbytes(16))
        return pa.ExtensionArray.from_storage(pa.uuid(), storage)
    if name == "list_uuid":
        return pa.ListArray.from_arrays(pa.array(range(POOL + 1), pa.int32()), pool("uuid", nulls))
    if name == "struct_uuid":
        return pa.StructArray.from_arrays([pool("uuid", nulls)], fields=[pa.field("u", pa.uuid())])
    if name == "list_run_end":
        return pa.ListArray.from_arrays(pa.array(range(POOL + 1), pa.int32()), pool("run_end", nulls))
    assert name == "map_dictionary", name
    keys = pa.array([str(i) for i in range(POOL)])
    return pa.MapArray.from_arrays(pa.array(range(POOL + 1), pa.int32()), keys, pool("dictionary", nulls))


def _filled(type_: pa.DataType, nulls: str, r: random.Random, make: Callable[[random.Random], Any]) -> pa.Array:
    chance = {"none": 0.0, "all": 1.0, "some": 0.3}[nulls]
    values = [None if r.random() < chance else make(r) for _ in range(POOL)]
    if pa.types.is_string(type_):
        values = [None if v is None else str(v) for v in values]
    return pa.array(values, type_)


@lru_cache(maxsize=4096)
def pool(name: str, nulls: str, seed: int = 0) -> pa.Array:
    """Return POOL values of a type: without nulls, all null, or a third of them."""
    r = random.Random(f"{name}/{nulls}/{seed}")
    if name == "struct_dictionary" and nulls == "all":  # pa.array makes one that its own validation refuses
        children = [pool("dictionary", "some"), pool("int8", "some")]
        return pa.StructArray.from_arrays(children, fields=list(type_of(name)), mask=pa.array([True] * POOL))
    if name in BUILT:
        return _built(name, nulls, r)
    return _filled(type_of(name), nulls, r, value_of(name))
