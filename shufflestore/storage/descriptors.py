"""Checks of read descriptors, for stores whose core does not check them itself."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from shufflestore.storage.base import COPY, HAS_CRC, READ, WIDEN, ZERO

__all__ = ["GROWS", "check"]

_LARGEST_OFFSET: Final = 2**63 - 1
_SOURCE_BYTES: Final = np.zeros(256, np.uint64)
"""By op: bytes of an integer in the file; 0 where the op is unknown."""
_TARGET_BYTES: Final = np.zeros(256, np.uint64)
_SOURCE_BYTES[[COPY, ZERO]] = _TARGET_BYTES[[COPY, ZERO]] = 1
for (_source, _target), _op in WIDEN.items():
    _SOURCE_BYTES[_op], _TARGET_BYTES[_op] = int(_source[1]), int(_target[1])
GROWS: Final = _TARGET_BYTES // np.maximum(_SOURCE_BYTES, 1)
"""By op: bytes in the slot for one in the file; 0 where the op is unknown."""


def check(
    reads: NDArray[np.void], ends: NDArray[np.uint64], output_sizes: NDArray[np.uint64], file_count: int
) -> NDArray[np.int64]:
    """Return the batch of each read, after checking a submission; see `storage.base.Store.submit`.

    Raises:
        ValueError: A slot reaches outside its output, an op or file is unknown, shapes disagree. The first such read is
            named.

    O(n), a few passes over the descriptors.
    """
    if reads.dtype != READ or reads.ndim != 1 or ends.ndim != 1 or output_sizes.ndim != 2:
        raise ValueError(f"reads {reads.dtype}{reads.shape}, ends {ends.shape}, output_sizes {output_sizes.shape}")
    if len(output_sizes) != len(ends):
        raise ValueError(f"output_sizes has {len(output_sizes)} rows, but there are {len(ends)} batches")
    bounds = np.concatenate([[0], ends.astype(np.int64)])
    if (bounds[1:] < bounds[:-1]).any() or bounds[-1] != len(reads):
        raise ValueError(f"ends must rise and end at the {len(reads)} reads, not {ends.tolist()[:10]}")
    batch = np.repeat(np.arange(len(ends)), np.diff(bounds))
    if len(reads):
        _check_each(reads, batch, output_sizes, file_count)
    return batch


def _check_each(
    reads: NDArray[np.void], batch: NDArray[np.int64], output_sizes: NDArray[np.uint64], file_count: int
) -> None:
    size, op = reads["size"], reads["op"]
    source, is_read = _SOURCE_BYTES[op], op != ZERO
    width = np.maximum(source, 1)
    ratio = GROWS[op]
    output = reads["output"].astype(np.int64)
    is_output = output < output_sizes.shape[1]
    room = output_sizes[batch, np.where(is_output, output, 0)] if output_sizes.shape[1] else np.zeros_like(size)
    # No sum is formed before its terms are known to be small: 64 bits would wrap.
    fits = (size <= room // np.maximum(ratio, 1)) & (reads["slot"] <= room)
    fits &= np.where(fits, size * ratio, 0) <= room - np.minimum(reads["slot"], room)
    in_file = (reads["offset"] <= _LARGEST_OFFSET) & (size <= _LARGEST_OFFSET)
    in_file &= size <= _LARGEST_OFFSET - np.minimum(reads["offset"], _LARGEST_OFFSET)
    rules = [
        ((reads["flags"] & ~np.uint8(HAS_CRC)) == 0, "flags have bits that mean nothing"),
        (is_output, f"output is not one of the {output_sizes.shape[1]} of a batch"),
        (source > 0, "op is unknown"),
        (size % width == 0, "size is no multiple of the bytes of an integer that op widens"),
        (~is_read | (reads["file"] < file_count), f"file is not one of the {file_count} that are registered"),
        (~is_read | in_file, "file bytes pass the largest offset, 2^63 - 1"),
        (fits, "slot reaches outside its output"),
    ]
    good = np.logical_and.reduce([rule for rule, _ in rules])
    if good.all():
        return
    first = int(np.argmin(good))
    why = next(text for rule, text in rules if not rule[first])
    values = ", ".join(f"{name} {reads[name][first]}" for name in READ.names or () if name != "reserved")
    raise ValueError(f"read {first} (batch {batch[first]}): {why}: {values}; its output has {room[first]} bytes")
