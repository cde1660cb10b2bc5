"""
The native core: checksums, and readers that gather many small ranges of many files.
"""

from typing import Annotated

import numpy
import numpy.typing
from numpy.typing import NDArray
from typing_extensions import Buffer


def crc32c(data: Buffer, seed: int = 0) -> int:
    """
    Return the CRC32C of the bytes of any contiguous buffer; `seed` is the CRC of what came before.
    """

def crc32c_spans(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sizes: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """Fill out[i] with the CRC32C of data[offsets[i]:][:sizes[i]]."""

def crc32c_chain(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sizes: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], seed: int = 0) -> int:
    """
    Return the CRC32C of the spans data[offsets[i]:][:sizes[i]], one after another.
    """

def gather_limit(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sizes: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    Copy each span into `out`, one after another: the plain C loop, for benchmarks.
    """

def widen_limit(data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], offsets: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], sizes: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], out: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu')]) -> None:
    """
    Copy and widen spans of uint16 into `out`: the plain C loop, for benchmarks.
    """

class Pending:
    """One submitted batch of reads."""

    def wait(self, timeout_seconds: float) -> bool:
        """
        Return True once every read has ended, False when the time is over. Hears signals.
        """

    def is_done(self) -> bool:
        """Whether every read has ended; never waits."""

    def failure(self) -> tuple[int, str, int, int, int] | None:
        """
        Return (index, kind, errno, expected, found) of the first failed read, once done; None if good.
        """

    def take(self) -> list[numpy.typing.NDArray[numpy.uint8]]:
        """Return the outputs of a good batch, once; the caller owns them."""

    def cancel(self) -> None:
        """
        Start no further read of this batch; it then ends as failed, kind "closed".
        """

class Reader:
    """Gathers ranges of files with one engine and its own threads."""

    def __init__(self, engine: str, threads: int, max_open_files: int = 0) -> None: ...

    def add(self, path: str, size: int) -> int:
        """Register a file and return its number. Opens nothing."""

    def submit(self, reads: Annotated[NDArray[numpy.uint64], dict(shape=(None, 5), order='C', device='cpu', writable=False)], ends: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], output_sizes: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu', writable=False)]) -> list[Pending]:
        """
        Queue batches of reads, each five words as storage.base.READ has them; return one Pending each.
        """

    def close(self) -> None:
        """End all reads and threads, close all files. Idempotent."""

    def counters(self) -> dict[str, int]:
        """Return what was read so far."""

    @property
    def engine(self) -> str:
        """The name of the engine."""

def locate(arena: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], pages: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], slots: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], geometry: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], levels: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], reads: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], bits: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], copies: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], nulls: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], offset: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu')], size: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu')], slot: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu')], crc: Annotated[NDArray[numpy.uint32], dict(shape=(None, None), order='C', device='cpu')], shift: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')], counts: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu')], bit_values: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')], fixed: Annotated[NDArray[numpy.uint8], dict(shape=(None, None), order='C', device='cpu')]) -> int:
    """
    Fill in ranges of records from index pages; the first record whose page contradicts itself, or -1.
    """

def lay_out(offset: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu', writable=False)], size: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu', writable=False)], slot: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu', writable=False)], crc: Annotated[NDArray[numpy.uint32], dict(shape=(None, None), order='C', device='cpu', writable=False)], files: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], batch_ends: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], lay: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], verify: bool, reads: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu')], ends: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu')], output_sizes: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu')], regions: Annotated[NDArray[numpy.int64], dict(shape=(None, None, None), order='C', device='cpu')]) -> None:
    """Give every range its slot in its batch's outputs."""

def cpu_features() -> list[str]:
    """Return what the processor offers, and the checksum kernel in use."""
