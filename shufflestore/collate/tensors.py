"""Arrays of batches as torch tensors that share the memory the core read into."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from shufflestore.errors import SchemaError

__all__ = ["WIDENED", "tensor"]

WIDENED: Final = {"uint16": "i8", "uint32": "i8"}
"""Arrow types that the core widens while it reads, because torch counts and indexes in int64."""
_WIDER: Final = frozenset(map(np.dtype, ("uint16", "uint32", "uint64")))


def tensor(array: NDArray[Any]) -> torch.Tensor:
    """Return a tensor over a writable array's memory, a copy only where torch lacks the type.

    uint16, uint32 and uint64 become int64.

    Raises:
        SchemaError: A uint64 beyond 2^63 - 1, which int64 cannot hold.
    """
    if array.dtype in _WIDER:
        array = _widened(array)
    return torch.from_numpy(array)


def _widened(array: NDArray[Any]) -> NDArray[np.int64]:
    if array.dtype != np.uint64:
        return array.astype(np.int64)
    signed = array.view(np.int64)
    if len(signed) and int(signed.min()) < 0:
        raise SchemaError("a uint64 value passes 2^63 - 1, the largest that torch.int64 holds; take format='numpy'")
    return signed
