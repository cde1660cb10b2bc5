"""Training data in true random order at full speed.

Names are resolved on first use: importing this package loads nothing else and starts nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shufflestore.collate.layouts import Jagged as Jagged
    from shufflestore.collate.layouts import Padded as Padded
    from shufflestore.collate.packed import Packed as Packed
    from shufflestore.convert.base import SourceOptions as SourceOptions
    from shufflestore.convert.run import ConvertOptions as ConvertOptions
    from shufflestore.convert.run import ConvertReport as ConvertReport
    from shufflestore.convert.run import convert as convert
    from shufflestore.convert.shards import ShardOptions as ShardOptions
    from shufflestore.convert.writer import Writer as Writer
    from shufflestore.dataset.dataset import BatchOptions as BatchOptions
    from shufflestore.dataset.dataset import Dataset as Dataset
    from shufflestore.dataset.gc import gc as gc
    from shufflestore.dataset.inplace import index as index
    from shufflestore.dataset.opening import open as open
    from shufflestore.dataset.verify import verify as verify
    from shufflestore.loader.images import decode_images as decode_images
    from shufflestore.loader.loader import DataLoader as DataLoader
    from shufflestore.loader.loader import merge_states as merge_states
    from shufflestore.loader.sampler import ShuffleSampler as ShuffleSampler
    from shufflestore.orders.random import record_rng as record_rng

__version__ = "0.1.0"

_HOMES = {
    "BatchOptions": "dataset.dataset",
    "ConvertOptions": "convert.run",
    "ConvertReport": "convert.run",
    "DataLoader": "loader.loader",
    "Dataset": "dataset.dataset",
    "Jagged": "collate.layouts",
    "Packed": "collate.packed",
    "Padded": "collate.layouts",
    "ShardOptions": "convert.shards",
    "ShuffleSampler": "loader.sampler",
    "SourceOptions": "convert.base",
    "Writer": "convert.writer",
    "decode_images": "loader.images",
    "gc": "dataset.gc",
    "index": "dataset.inplace",
    "merge_states": "loader.loader",
    "open": "dataset.opening",
    "record_rng": "orders.random",
    "verify": "dataset.verify",
}
"""Where each public name lives."""

__all__ = [
    "BatchOptions",
    "ConvertOptions",
    "ConvertReport",
    "DataLoader",
    "Dataset",
    "Jagged",
    "Packed",
    "Padded",
    "ShardOptions",
    "ShuffleSampler",
    "SourceOptions",
    "Writer",
    "convert",
    "decode_images",
    "gc",
    "index",
    "merge_states",
    "open",
    "record_rng",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name == "convert":  # the package can be called
        return importlib.import_module("shufflestore.convert")
    if name in _HOMES:
        found = getattr(importlib.import_module(f"shufflestore.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module 'shufflestore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__", "errors"])
