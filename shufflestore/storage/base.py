"""The Store contract: where bytes are, and how a batch of reads is asked for.

A store knows names, bytes and descriptors of reads. It knows nothing of Arrow or records.
Reads are asynchronous: `submit` takes the reads of several batches at once and returns one
`Pending` a batch; a batch's reads finish in any order, each in its own slot of the batch's
outputs, so the bytes delivered are the same from run to run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "COPY",
    "Flow",
    "HAS_CRC",
    "Pending",
    "READ",
    "ReadFailure",
    "SUITABLE_BYTES",
    "Store",
    "UNKNOWN_SIZE",
    "WIDEN",
    "ZERO",
]

READ: Final = np.dtype(
    [
        ("offset", "<u8"),  # first byte in the file
        ("slot", "<u8"),  # first byte in the output
        ("size", "<u8"),  # bytes in the file (ZERO: bytes in the output)
        ("file", "<u4"),  # what `Store.handle` returned
        ("crc", "<u4"),  # expected CRC32C of the file's bytes, where flags has HAS_CRC
        ("output", "<u2"),  # which of the batch's outputs
        ("op", "u1"),  # COPY, ZERO or one of WIDEN
        ("flags", "u1"),
        ("reserved", "<u4"),  # the submitter's own note; stores do not look at it
    ]
)
"""One read: 40 bytes, five 64-bit words, little endian, no padding."""

COPY: Final = 0
"""The bytes as they are."""
ZERO: Final = 1
"""No read at all: the slot is filled with zeros."""
HAS_CRC: Final = 1
"""Flag: compare the CRC32C of the bytes that came with `crc`."""
UNKNOWN_SIZE: Final = 2**64 - 1
"""A file length that nobody vouched for."""

SUITABLE_BYTES: Final = 64 << 20
"""No store's own choice of a look-ahead is larger."""

_NARROW: Final = ("u1", "i1", "u2", "i2", "u4", "i4")
_WIDE: Final = ("u2", "i2", "u4", "i4", "u8", "i8")
WIDEN: Final[dict[tuple[str, str], int]] = {
    (source, target): 16 + 8 * s + t
    for s, source in enumerate(_NARROW)
    for t, target in enumerate(_WIDE)
    if int(target[1]) > int(source[1]) and not (source[0] == "i" and target[0] == "u")
}
"""Op codes that read integers of the first kind and store them as the second, e.g. ("u2", "i8")."""


@dataclass(frozen=True)
class ReadFailure:
    """Why a batch failed: the failed read with the lowest index in its batch."""

    index: int
    """Index of the read within its batch's reads."""
    kind: str
    """"errno", "short" (the file ends before the read does), "checksum", "memory", "closed", "changed" (the object is not
    the one that was read before) or "remote" (the store did not give it, for the reason in `text`)."""
    errno: int
    """The system's error number where kind is "errno", else 0."""
    expected: int
    """Expected CRC32C (checksum) or bytes wanted (short)."""
    found: int
    """Found CRC32C (checksum) or bytes that were there (short)."""
    text: str = field(default="", compare=False)
    """What a remote store answered, and how often it was asked."""


Flow = Any
"""What `Store.flow` returned: the store's own affair."""


class Pending(Protocol):
    """One submitted batch of reads."""

    def wait(self, timeout_seconds: float) -> bool:
        """Return True once every read has ended, False when the time is over.

        Releases the GIL, and looks for signals at least every 50 ms.
        """

    def is_done(self) -> bool:
        """Whether every read has ended; never waits."""

    def failure(self) -> ReadFailure | None:
        """What went wrong, once done; None where nothing did."""

    def take(self) -> list[NDArray[np.uint8]]:
        """Return the outputs, once, and give up their ownership. Writable, one dimension.

        Raises:
            ValueError: The batch is not done, it failed (see `failure`), or they were taken before.
        """

    def cancel(self) -> None:
        """Start no further read. The batch then ends as failed, kind "closed"."""


@runtime_checkable
class Store(Protocol):
    """Named immutable byte strings under one root."""

    uri: str
    """Where this is, as a person would write it; the first word of every error."""

    def handle(self, name: str, size: int) -> int:
        """Register a file that will be read and return its number for `READ["file"]`.

        Cheap, opens nothing, the same number for the same name. `size` is the length the
        manifest vouches for, or UNKNOWN_SIZE.
        """

    def flow(self, budget_bytes: int | None) -> Flow:
        """Return what bounds the look-ahead of one stream of batches; for `submit`, in this process alone.

        Args:
            budget_bytes: Outputs of batches that have started and were not taken; one batch at least,
                however large. None for what suits this store, at most SUITABLE_BYTES.
        """

    def submit(
        self,
        reads: NDArray[np.void],
        ends: NDArray[np.uint64],
        output_sizes: NDArray[np.uint64],
        flow: Flow = None,
    ) -> Sequence[Pending]:
        """Queue the reads of several batches and return at once.

        Args:
            reads: (n,) of READ, batch after batch. Copied.
            ends: (b,), batch i has reads [ends[i - 1], ends[i]). ends[-1] is n.
            output_sizes: (b, k) bytes of each output of each batch.
            flow: Of the stream that they belong to and that takes them in their order; they start as it has
                room. None for reads that start at once.

        Returns:
            One Pending a batch, in the same order. Batches are worked on in that order.

        Raises:
            ValueError: A slot reaches outside its output, an op or file is unknown, shapes disagree.
        """

    def size(self, name: str) -> int:
        """Return the length of a file in bytes. Raises NotFound."""

    def read(self, name: str, offset: int = 0, size: int | None = None) -> bytes:
        """Return one range, whole file by default. Raises NotFound, ShardTruncated."""

    def put_if_absent(self, name: str, data: bytes) -> bool:
        """Publish a small file durably; False, and nothing changed, if the name is taken."""

    def list(self, prefix: str) -> Iterator[str]:
        """Yield the names that begin with `prefix`, sorted, temporary files left out."""

    def delete(self, name: str) -> None:
        """Remove a file; a missing one is no error."""

    def close(self) -> None:
        """End all reads and release all files. Idempotent."""
