"""Arrays of batches as torch tensors that share the memory the core read into."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from shufflestore.collate.layouts import Jagged
from shufflestore.errors import SchemaError

__all__ = ["WIDENED", "nested", "tensor"]

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


def nested(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch with its jagged tensors as torch's nested tensors (`torch.jagged` layout) over the same memory.

    Columns whose records have the same lengths share their offsets: torch lets no others be computed with
    each other. A Jagged of a Jagged or of a dict, which torch does not have, stays.

    >>> jagged = Jagged(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 3]))
    >>> [record.tolist() for record in nested({"x": jagged})["x"].unbind()]
    [[1, 2], [3]]
    """
    known: list[_Ends] = []
    return {name: _nested(column, known) for name, column in batch.items()}


class _Ends(NamedTuple):
    """Offsets, and the lengths of the shortest and the longest record, if there is any."""

    offsets: torch.Tensor
    shortest: int | None
    longest: int | None


def _nested(value: Any, known: list[_Ends]) -> Any:
    """Return a value with its jagged tensors nested; offsets not met before are added to `known`."""
    if isinstance(value, dict):
        return {key: _nested(inner, known) for key, inner in value.items()}
    if not isinstance(value, Jagged) or not isinstance(value.values, torch.Tensor):
        return value
    found = next((ends for ends in known if torch.equal(ends.offsets, value.offsets)), None)
    if found is None:
        lengths = np.diff(value.offsets.numpy())
        # Told here, they need not be fetched back from a GPU later.
        found = _Ends(value.offsets, *((int(lengths.min()), int(lengths.max())) if len(lengths) else (None, None)))
        known.append(found)
    return torch.nested.nested_tensor_from_jagged(
        value.values, found.offsets, min_seqlen=found.shortest, max_seqlen=found.longest
    )
