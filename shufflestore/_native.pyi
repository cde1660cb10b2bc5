"""
The native core: checksums, and readers that gather many small ranges of many files.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any

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

class Packer:
    """Takes the plain records of an iterator, column by column."""

    def __init__(self, ignores_other_keys: bool) -> None: ...

    def add_scalars(self, name: str, family: str, width: int, types: Sequence[object]) -> None:
        """
        Expect numbers (family i, u, f) or booleans (b) of so many bytes; besides Python's, of these types.
        """

    def add_arrays(self, name: str, type: object, family: str, width: int, shape: Sequence[int] | None, most: int) -> None:
        """
        Expect arrays of this shape, or of one dimension if it is None; then at most so many items in all.
        """

    def add_texts(self, name: str, is_bytes: bool, most: int) -> None:
        """Expect strings or byte strings, at most so many bytes in all."""

    def consume(self, records: Iterator[object], byte_limit: int) -> list[Any] | None:
        """
        Copy records until about so many bytes are held; return [], or [the record that is not plain], or
        None at the end. What an iterator raises goes through; the records before it are held.
        """

    def hand_over(self) -> list[tuple[numpy.typing.NDArray[numpy.uint8], numpy.typing.NDArray[numpy.uint8] | None]]:
        """
        Return values and, where lengths differ, their ends as int64, of each column, and hold none.
        """

    @property
    def count(self) -> int:
        """Records held."""

    @property
    def byte_count(self) -> int:
        """About their bytes."""

def place(data: Buffer, data_offset: int, reads: numpy.typing.NDArray[numpy.uint64], outputs: Sequence[numpy.typing.NDArray[numpy.uint8]]) -> tuple[int, int] | None:
    """
    Fill the slots of reads, five words each as storage.base.READ has them, from `data`, the file's bytes from
    `data_offset` on: checked, copied or widened. Return None, or (index, found CRC32C) of the first wrong one;
    slots before it are filled, its own holds anything. ValueError, and nothing written, for a read outside
    `data` or its output.
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

class Flow:
    """Bounds the outputs of batches that are taken one after another."""

    @property
    def used(self) -> int:
        """Bytes of outputs that have started and were not taken."""

class Reader:
    """Gathers ranges of files with one engine and its own threads."""

    def __init__(self, engine: str, threads: int, max_open_files: int = 0) -> None: ...

    def add(self, path: str, size: int) -> int:
        """Register a file and return its number. Opens nothing."""

    def submit(self, reads: Annotated[NDArray[numpy.uint64], dict(shape=(None, 5), order='C', device='cpu', writable=False)], ends: Annotated[NDArray[numpy.uint64], dict(shape=(None,), order='C', device='cpu', writable=False)], output_sizes: Annotated[NDArray[numpy.uint64], dict(shape=(None, None), order='C', device='cpu', writable=False)], flow: Flow | None = None) -> list[Pending]:
        """
        Queue batches of reads, each five words as storage.base.READ has them; return one Pending each.
        """

    def flow(self, limit: int) -> Flow:
        """
        Return what bounds the outputs, started and not taken, of batches submitted with it.
        """

    def close(self) -> None:
        """End all reads and threads, close all files. Idempotent."""

    def counters(self) -> dict[str, int]:
        """Return what was read so far."""

    @property
    def engine(self) -> str:
        """The name of the engine."""

def bound_block_cache(bytes: int) -> None:
    """
    Keep at most so many bytes of memory for batches to come, in this process; the least asked for counts.
    """

def resident_bytes(path: str) -> int:
    """
    Return how many bytes of a file the page cache holds now. Reads nothing.
    """

def start_writing(fd: int, offset: int, size: int) -> None:
    """
    Have the system begin to put written bytes on the disk, so that fsync finds little left. Promises nothing.
    """

class Shards:
    """
    Which records each shard has, and how its pages are cut; see format/resolve.py.
    """

    def __init__(self, first_id: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], page_rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], chunk_rows: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], chunk_pages: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], first_page: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], layout: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], files: Annotated[NDArray[numpy.uint32], dict(shape=(None,), order='C', device='cpu', writable=False)], chunks: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], chunk_first_row: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], chunk_first_page: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

    def find(self, ids: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], places: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu')]) -> int:
        """
        Fill in shard, chunk, row, page and entry of each id; return how many lie in shards not known yet.
        """

class Arena:
    """Checked pages of row indexes in memory; see format/resolve.py."""

    def __init__(self, data: Annotated[NDArray[numpy.uint8], dict(shape=(None,), order='C', device='cpu', writable=False)], slot_of: Annotated[NDArray[numpy.int32], dict(shape=(None,), order='C', device='cpu', writable=False)], slot_bytes: int) -> None: ...

class Program:
    """
    How shards of one layout answer for a projection; see format/resolve.py.
    """

    def __init__(self, geometry: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)], levels: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], reads: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], bits: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], copies: Annotated[NDArray[numpy.int64], dict(shape=(None, None), order='C', device='cpu', writable=False)], nulls: Annotated[NDArray[numpy.int64], dict(shape=(None,), order='C', device='cpu', writable=False)]) -> None: ...

def resolve(arena: Arena, shards: Shards, programs: list[Program], ids: numpy.typing.NDArray[numpy.int64], batch_ends: numpy.typing.NDArray[numpy.int64], lay: numpy.typing.NDArray[numpy.int64], verify: bool, ends: numpy.typing.NDArray[numpy.uint64], output_sizes: numpy.typing.NDArray[numpy.uint64], regions: numpy.typing.NDArray[numpy.int64], counts: numpy.typing.NDArray[numpy.int64], offsets: numpy.typing.NDArray[numpy.int64], bits: numpy.typing.NDArray[numpy.uint8], shift: numpy.typing.NDArray[numpy.uint8], fixed: numpy.typing.NDArray[numpy.uint8]) -> tuple[int, numpy.typing.NDArray[numpy.uint64]]:
    """
    Resolve a window. Return -1, -2 if a page is not there, -3 if a shard is not known yet, or the first record
    whose page contradicts itself; and the reads, five words each, batch after batch.
    """

def cpu_features() -> list[str]:
    """Return what the processor offers, and the checksum kernel in use."""
