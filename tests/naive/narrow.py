"""What a shard stores its integers as, believed at sight: from the values as Python has them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.types as pt

SIZES = ((pa.uint8(), pa.int8()), (pa.uint16(), pa.int16()), (pa.uint32(), pa.int32()))


def smallest(type_: pa.DataType, values: list[int]) -> pa.DataType:
    """The first of uint8, int8, uint16, ... that is smaller than the type and holds all values; unsigned if it can."""
    for unsigned, signed in SIZES:
        bits = unsigned.bit_width
        if bits >= type_.bit_width:
            break
        if all(0 <= v < 2**bits for v in values):
            return unsigned
        if pt.is_signed_integer(type_) and all(-(2 ** (bits - 1)) <= v < 2 ** (bits - 1) for v in values):
            return signed
    return type_


def stored(type_: pa.DataType, values: list[Any], is_many: bool = False) -> pa.DataType:
    """The type that values are stored as.

    Args:
        type_: As declared.
        values: Of all records of the shard, those under nulls left out.
        is_many: Whether a record may have many of them.
    """
    values = [value for value in values if value is not None]
    if pt.is_integer(type_):
        return smallest(type_, values) if is_many else type_
    if pt.is_struct(type_):
        return pa.struct([f.with_type(stored(f.type, [v[f.name] for v in values], is_many)) for f in type_])
    if pt.is_map(type_):
        key = stored(type_.key_type, [k for v in values for k, _ in v], True)
        return pa.map_(key, stored(type_.item_type, [i for v in values for _, i in v], True))
    flat = [inner for value in values for inner in value] if hasattr(type_, "value_field") else []
    if pt.is_fixed_size_list(type_):
        item = stored(type_.value_type, flat, is_many or type_.list_size > 1)
        return pa.list_(type_.value_field.with_type(item), type_.list_size)
    if pt.is_list(type_):
        return pa.list_(type_.value_field.with_type(stored(type_.value_type, flat, True)))
    if pt.is_large_list(type_):
        return pa.large_list(type_.value_field.with_type(stored(type_.value_type, flat, True)))
    return type_
