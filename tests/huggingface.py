"""Hugging Face data sets of every feature, and what `datasets` and torch make of them, for comparison."""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import torch
from datasets import Array2D, Array3D, ClassLabel, Features, Image, LargeList, List, Value
from torch.utils.data import default_collate

from shufflestore.loader.huggingface import Served

COUNT = 60
_RNG = np.random.default_rng(5)


def _ragged(make: Callable[[int], Any]) -> list[Any]:
    return [make(i % 5) for i in range(COUNT)]


def _some_null(values: list[Any], every: int = 7) -> list[Any]:
    return [None if i % every == 3 else v for i, v in enumerate(values)]


NUMBERS = range(COUNT)
COLUMNS: dict[str, tuple[Any, list[Any]]] = {
    **{
        kind: (Value(kind), [(i * 37) % 120 for i in NUMBERS])
        for kind in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
    },
    **{kind: (Value(kind), [i / 3 for i in NUMBERS]) for kind in ("float16", "float32", "float64")},
    "huge_uint64": (Value("uint64"), pa.array([2**64 - 1 - i for i in NUMBERS], pa.uint64())),
    "large_int64": (Value("int64"), [2**60 + i for i in NUMBERS]),
    "huge_float64": (Value("float64"), [1e300 * (i - 3) for i in NUMBERS]),
    "bool": (Value("bool"), [i % 3 == 0 for i in NUMBERS]),
    "label": (ClassLabel(names=["a", "b", "c"]), [i % 3 for i in NUMBERS]),
    "text": (Value("string"), [f"text {i} \u00e9\u4e2d" * (i % 3) for i in NUMBERS]),
    "large_text": (Value("large_string"), [f"text {i}" for i in NUMBERS]),
    "text_zeros": (Value("string"), [f"a\0{i}" + "\0" * (i % 3) for i in NUMBERS]),
    "bytes": (Value("binary"), [bytes([i, 1]) for i in NUMBERS]),
    "large_bytes": (Value("large_binary"), [bytes(range(i % 4)) for i in NUMBERS]),
    "null_int32": (Value("int32"), _some_null(list(NUMBERS))),
    "null_int64": (Value("int64"), _some_null([2**60 + i for i in NUMBERS])),
    "null_uint8": (Value("uint8"), _some_null(list(NUMBERS))),
    "null_float16": (Value("float16"), _some_null([i / 2 for i in NUMBERS])),
    "null_float64": (Value("float64"), _some_null([i / 3 for i in NUMBERS])),
    "null_bool": (Value("bool"), _some_null([i % 2 == 0 for i in NUMBERS])),
    "null_text": (Value("string"), _some_null([f"t{i}\0" for i in NUMBERS])),
    "null_bytes": (Value("binary"), _some_null([b"%d" % i for i in NUMBERS])),
    "all_null": (Value("float32"), [None] * COUNT),
    "null_type": (Value("null"), [None] * COUNT),
    "timestamp": (Value("timestamp[us]"), [dt.datetime(2020, 1, 1 + i % 28) for i in NUMBERS]),
    "date": (Value("date32"), [dt.date(2020, 1, 1 + i % 28) for i in NUMBERS]),
    "decimal": (Value("decimal128(10, 2)"), [decimal.Decimal(i) / 4 for i in NUMBERS]),
    "list_int32": (List(Value("int32")), _ragged(lambda n: list(range(n)))),
    "list_uint16": (List(Value("uint16")), _ragged(lambda n: list(range(n + 1)))),
    "list_float64": (List(Value("float64")), _ragged(lambda n: [0.1] * n)),
    "list_bool": (List(Value("bool")), _ragged(lambda n: [True, False] * n)),
    "list_uint64": (List(Value("uint64")), pa.array(_ragged(lambda n: [2**64 - 1] * n), pa.list_(pa.uint64()))),
    "list_empty": (List(Value("int32")), [[]] * COUNT),
    "list_equal": (List(Value("int32")), [[i, i + 1, i + 2] for i in NUMBERS]),
    "list_equal_bool": (List(Value("bool")), [[i % 2 == 0, True] for i in NUMBERS]),
    "list_equal_f32": (List(Value("float32")), [[i / 7, 2.5] for i in NUMBERS]),
    "list_fixed": (List(Value("int16"), length=4), [[i, 1, 2, 3] for i in NUMBERS]),
    "list_large": (LargeList(Value("int64")), _ragged(lambda n: list(range(n)))),
    "list_inner_null": (List(Value("int32")), [[i, None if i % 4 == 1 else 2] for i in NUMBERS]),
    "list_null": (List(Value("int32")), _some_null([[i, 2] for i in NUMBERS])),
    "list_fixed_null": (List(Value("int16"), length=2), _some_null([[i, 1] for i in NUMBERS])),
    "list_text": (List(Value("string")), _ragged(lambda n: [f"s{n}\0"] * n)),
    "list_text_equal": (List(Value("string")), [[f"s{i}", "b"] for i in NUMBERS]),
    "list_text_null": (List(Value("string")), _some_null([[None, f"x{i}"] for i in NUMBERS])),
    "lists_equal": (List(List(Value("int32"))), [[[i, 1], [2, 3], [4, 5]] for i in NUMBERS]),
    "lists_outer": (List(List(Value("int32"))), _ragged(lambda n: [[n, 1]] * n)),
    "lists_outer_one": (List(List(Value("int32"))), _ragged(lambda n: [[n, 1]] * (n + 1))),
    "lists_inner": (List(List(Value("float32"))), _ragged(lambda n: [[0.5] * n, [1.5]])),
    "lists_empty": (List(List(Value("float32"))), [[[], []]] * COUNT),
    "lists_fixed": (List(List(Value("uint8"), length=2), length=3), [[[i, 1]] * 3 for i in NUMBERS]),
    "lists_text": (List(List(Value("string"))), _ragged(lambda n: [["a"] * n, ["b", None]])),
    "array2d": (Array2D((2, 3), "int32"), [np.arange(6).reshape(2, 3) + i for i in NUMBERS]),
    "array2d_bool": (Array2D((2, 2), "bool"), [np.eye(2, dtype=bool)] * COUNT),
    "array2d_null": (Array2D((2, 2), "int64"), _some_null([np.full((2, 2), 2**60 + i) for i in NUMBERS])),
    "array2d_free": (Array2D((None, 2), "int32"), _ragged(lambda n: np.ones((n + 1, 2), int))),
    "array3d": (Array3D((3, 2, 2), "uint8"), [np.arange(12).reshape(3, 2, 2) + i for i in NUMBERS]),
    "array3d_f64": (Array3D((1, 2, 2), "float64"), [_RNG.random((1, 2, 2)) for _ in NUMBERS]),
    "struct": ({"a": Value("int32"), "b": Value("string")}, [{"a": i, "b": f"b{i}"} for i in NUMBERS]),
    "structs": (List({"role": Value("string"), "n": Value("int64")}), _ragged(lambda n: [{"role": "u", "n": n}] * n)),
    "image_bytes": (Image(decode=False), [{"bytes": b"%d" % i, "path": None} for i in NUMBERS]),
    "struct_list": ({"t": List(Value("int32"))}, _ragged(lambda n: {"t": [n] * n})),
}
"""Name -> feature and `COUNT` values."""


def saved(folder: Any, names: list[str] | None = None, shards: int = 1) -> datasets.Dataset:
    """Return a data set of some columns, read back from the files it was saved to."""
    chosen = {name: COLUMNS[name] for name in names or COLUMNS}
    features = Features({name: feature for name, (feature, _) in chosen.items()})
    made = datasets.Dataset.from_dict({name: values for name, (_, values) in chosen.items()}, features=features)
    made.save_to_disk(str(folder), num_shards=shards)
    return datasets.load_from_disk(str(folder))


def read(served: Served, ids: list[int]) -> Any:
    """Return what the assembler gets for some records: numbers and columns."""
    data = served.dataset
    numbers = data.selection.ids(np.array(ids, np.int64))
    return numbers, data.columns_at(numbers, data.projection(None, served.widen))


def outcome(work: Callable[[], Any]) -> Any:
    """Return what a function returns, or the type of what it raises."""
    try:
        return work()
    except Exception as error:
        return type(error)


def difference(found: Any, due: Any, where: str = "") -> str | None:
    """Return the first disagreement of two values in type, dtype, shape, order of keys or value; None for none."""
    if type(found) is not type(due):
        return f"{where}: {type(found)} ({found!r:.200}) instead of {type(due)} ({due!r:.200})"
    if isinstance(due, dict):
        if list(found) != list(due):
            return f"{where}: keys {list(found)} instead of {list(due)}"
        return next(filter(None, (difference(found[k], due[k], f"{where}.{k}") for k in due)), None)
    if isinstance(due, (list, tuple)):
        if len(found) != len(due):
            return f"{where}: {len(found)} instead of {len(due)}"
        pairs = enumerate(zip(found, due, strict=True))
        return next(filter(None, (difference(f, d, f"{where}[{i}]") for i, (f, d) in pairs)), None)
    if isinstance(due, (torch.Tensor, np.ndarray)):
        if (found.dtype, found.shape) != (due.dtype, due.shape):
            return f"{where}: {found.dtype}{tuple(found.shape)} instead of {due.dtype}{tuple(due.shape)}"
        if isinstance(due, np.ndarray) and due.dtype == object:
            return difference(list(found), list(due), where)
        same = np.array_equal(np.asarray(found), np.asarray(due), equal_nan=np.asarray(due).dtype.kind == "f")
        return None if same else f"{where}: {found} instead of {due}"
    is_nan = isinstance(due, (float, np.floating)) and due != due
    return None if (found != found if is_nan else found == due) else f"{where}: {found!r} instead of {due!r}"


def compared(found: Served, dataset: datasets.Dataset, ids: list[int]) -> str | None:
    """Return the first difference of records and batch from those of `datasets` and torch."""
    due = outcome(lambda: dataset.__getitems__(ids))
    batch = outcome(lambda: default_collate(dataset.__getitems__(ids)))
    return difference(outcome(lambda: found.records(*read(found, ids))), due, "records") or difference(
        outcome(lambda: found.collate(*read(found, ids))), batch, "batch"
    )
