"""Columns of a batch as an Arrow table, or record by record."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from shufflestore.collate.layouts import Layout, Nulls, to_numpy
from shufflestore.errors import OptionError, SchemaError
from shufflestore.format.decode import Column

__all__ = ["RECORD_ID", "assemble", "check_record_id", "records_of", "to_table"]

RECORD_ID: Final = "record_id"
"""Column that `return_ids` adds: the records' numbers in their split, int64."""


def check_record_id(names: Sequence[str]) -> None:
    """Raise OptionError if a data set has a column of its own where `return_ids` would add one."""
    if RECORD_ID in names:
        raise OptionError(f"return_ids=True adds a column {RECORD_ID!r}, which the data set has already; leave it out")


def assemble(
    columns: dict[str, Column],
    ids: NDArray[np.int64] | None,
    format: Literal["numpy", "arrow"],
    layout: Layout,
    nulls: Nulls,
    schema: pa.Schema,
) -> Any:
    """Return a batch as it is delivered: a dict by column, or a table.

    Args:
        columns: As decoded.
        ids: (records,) to be added as "record_id"; None for none.
        format: "numpy" or "arrow".
        layout: Of variable-length numbers in numpy.
        nulls: What stands for null numbers in numpy.
        schema: Of the data set.
    """
    if ids is not None:
        columns = columns | {RECORD_ID: Column(pa.int64(), len(ids), values=ids.copy())}
    if format == "arrow":
        return to_table(columns, schema)
    made = {name: to_numpy(name, column, layout, nulls) for name, column in columns.items()}
    for name, shape in tensor_shapes(schema):
        if name in made and isinstance(made[name], np.ndarray):
            made[name] = made[name].reshape(-1, *shape)
    return made


@lru_cache(maxsize=64)
def tensor_shapes(schema: pa.Schema) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Return the columns of fixed-shape tensors and the shape of one record's, as it lies in memory."""
    found = [(field.name, field.type) for field in schema if isinstance(field.type, pa.FixedShapeTensorType)]
    return tuple((name, tuple(type_.shape)) for name, type_ in found)


def to_table(columns: dict[str, Column], schema: pa.Schema) -> pa.Table:
    """Return columns as a table with the schema's fields and metadata, extension types put back on.

    Raises:
        OverflowError: A column passes its type's 32-bit offsets.
    """
    arrays, fields = [], []
    for name, column in columns.items():
        array = column.to_arrow()
        number = schema.get_field_index(name)
        declared = schema.field(number) if number >= 0 else pa.field(name, array.type)
        if isinstance(declared.type, pa.BaseExtensionType) and declared.type.storage_type == array.type:
            array = pa.ExtensionArray.from_storage(declared.type, array)
        arrays.append(array)
        fields.append(declared.with_type(array.type))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=schema.metadata))


def records_of(columns: dict[str, Column], count: int, schema: pa.Schema) -> list[dict[str, Any]]:
    """Return columns as one dict a record.

    Args:
        columns: As decoded.
        count: Records.
        schema: Of the data set.
    """
    shapes = dict(tensor_shapes(schema))
    parts: dict[str, list[Any]] = {}
    for name, column in columns.items():
        try:
            made = to_numpy(name, column, "list")
            values = column.to_arrow().to_pylist() if isinstance(made, dict) else list(made)
        except (SchemaError, TypeError):
            values = column.to_arrow().to_pylist()
        parts[name] = [v.reshape(shapes[name]) for v in values] if name in shapes and column.valid is None else values
    return [{name: values[i] for name, values in parts.items()} for i in range(count)]
