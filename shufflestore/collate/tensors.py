"""Batches as torch tensors that share the memory the core read into."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch

from shufflestore.collate.layouts import map_arrays
from shufflestore.errors import SchemaError

__all__ = ["WIDENED", "to_torch"]

WIDENED: Final = {"uint16": "i8", "uint32": "i8"}
"""Arrow types that the core widens while it reads, because torch counts and indexes in int64."""


def to_torch(value: Any) -> Any:
    """Return a batch with every numpy array turned into a tensor, without copying where torch has the type.

    uint16, uint32 and uint64 become int64. Lists of strings and other leaves stay.

    Raises:
        SchemaError: A uint64 beyond 2^63 - 1, which int64 cannot hold.
    """
    return map_arrays(value, _tensor)


def _tensor(array: Any) -> torch.Tensor:
    kind = array.dtype
    if kind == np.uint64:
        array = array.view(np.int64)
        if len(array) and int(array.min()) < 0:
            raise SchemaError("a uint64 value passes 2^63 - 1, the largest that torch.int64 holds; take format='numpy'")
    elif kind in (np.uint16, np.uint32):
        array = array.astype(np.int64)
    if not array.flags.writeable:
        array = array.copy()
    return torch.from_numpy(array)
