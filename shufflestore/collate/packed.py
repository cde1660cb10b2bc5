"""Variable-length records end to end with what attention over packed sequences asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import OptionError

__all__ = ["Packed", "packed"]

A = TypeVar("A")
_INT32_LIMIT: Final = 2**31 - 1


@dataclass(eq=False)
class Packed(Generic[A]):
    """Variable-length records end to end, as variable-length attention kernels take them.

    Record i of the batch is `values[cu_seqlens[i]:cu_seqlens[i + 1]]`.

    >>> p = packed("tokens", np.array([7, 8, 9]), np.array([0, 2, 2, 3]))
    >>> (p.cu_seqlens.tolist(), p.max_seqlen, p.position_ids.tolist())
    ([0, 2, 2, 3], 2, [0, 1, 0])
    """

    values: A
    """All elements, (cu_seqlens[-1], ...)."""
    cu_seqlens: A
    """(records + 1,) int32, from 0."""
    max_seqlen: int
    """Elements of the longest record; 0 where there is none."""
    position_ids: A
    """(cu_seqlens[-1],) int64: each element's place in its own record, from 0."""

    def __len__(self) -> int:
        return len(self.cu_seqlens) - 1  # type: ignore[arg-type]

    def to(self, *args: Any, **kwargs: Any) -> Packed[Any]:
        """Return the same on another device or in another dtype, as `torch.Tensor.to`; only `values` change dtype."""
        values: Any = self.values
        moved = values.to(*args, **kwargs)
        non_blocking = bool(kwargs.get("non_blocking", False))
        ends, places = (counts.to(moved.device, non_blocking=non_blocking) for counts in self._counts())
        return Packed(moved, ends, self.max_seqlen, places)

    def pin_memory(self) -> Packed[Any]:
        """Return a copy in page-locked memory, as `torch.Tensor.pin_memory`."""
        values: Any = self.values
        ends, places = (counts.pin_memory() for counts in self._counts())
        return Packed(values.pin_memory(), ends, self.max_seqlen, places)

    def _counts(self) -> tuple[Any, Any]:
        return self.cu_seqlens, self.position_ids


def packed(
    name: str,
    values: NDArray[Any],
    offsets: NDArray[np.int64],
    leaf: Callable[[NDArray[Any]], Any] = np.asarray,
) -> Packed[Any]:
    """Return jagged values as a Packed.

    Args:
        name: Of the column, for errors.
        values: (offsets[-1], ...); shared, not copied.
        offsets: (records + 1,) from 0, rising.
        leaf: Called with every array.

    Raises:
        OptionError: The elements pass 2^31 - 1, the largest that `cu_seqlens` can show.

    O(elements).
    """
    total = int(offsets[-1])
    if total > _INT32_LIMIT:
        raise OptionError(
            f"column {name!r} has {total:,} elements in this batch; layout='packed' counts them in int32, up to "
            f"{_INT32_LIMIT:,}: take a smaller batch_size, or layout='jagged', whose offsets are int64"
        )
    lengths = np.diff(offsets)
    places = np.arange(total)
    places -= np.repeat(offsets[:-1], lengths)
    longest = int(lengths.max(initial=0))
    return Packed(leaf(values), leaf(offsets.astype(np.int32)), longest, leaf(places))
