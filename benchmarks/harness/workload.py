"""The token set of the figures, in every form that a rival reads; each is built once and reused.

A record's payload is a pure function of its id, and its label gives the id away, so whatever a
loader delivers proves what it is: no table of expected values is kept anywhere.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

__all__ = ["FIXED_TOKENS", "FULL_RECORDS", "SMALL_RECORDS", "Workload"]

FULL_RECORDS: Final = 1_000_000
SMALL_RECORDS: Final = 2_000
"""Of an untimed run: enough for several chunks and batches."""
FIXED_TOKENS: Final = 2048
"""Tokens a record of the fixed set: a usual context length."""
SHORTEST: Final = 64
LONGEST: Final = 1024
CHUNK_RECORDS: Final = 1000
"""What Hugging Face writes, and about what our own shards have at 2.2 KB a record."""
_MASK: Final = 0x2545F4914F6C
_LANE: Final = np.uint32(0x9E3779B1)


def _mix(ids: NDArray[np.int64]) -> NDArray[np.uint64]:
    """SplitMix64: neighbouring ids get unrelated lengths and tokens."""
    x = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def labels_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (n,) labels; `ids_of` undoes it."""
    return ids ^ _MASK


def ids_of(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (n,) record ids that labels give away.

    >>> ids_of(labels_of(np.arange(3))).tolist()
    [0, 1, 2]
    """
    return labels ^ _MASK


def lengths_of(ids: NDArray[np.int64], scale: int = 1) -> NDArray[np.int64]:
    """Return (n,) tokens of each record, in [64, 1024] times `scale`."""
    span = np.uint64(LONGEST - SHORTEST + 1)
    lengths: NDArray[np.int64] = SHORTEST + (_mix(ids) % span).astype(np.int64)
    return lengths * scale


def fixed_lengths_of(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (n,) tokens of each record of the fixed set: 2,048."""
    return np.full(len(ids), FIXED_TOKENS)


def tokens_of(ids: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return the tokens of records end to end, each in [0, 65536)."""
    before = np.cumsum(lengths) - lengths
    start = (_mix(ids) >> np.uint64(32)).astype(np.uint32)
    within = (np.arange(int(lengths.sum())) - np.repeat(before, lengths)).astype(np.uint32)
    tokens: NDArray[np.int32] = ((np.repeat(start, lengths) + within * _LANE) >> np.uint32(16)).astype(np.int32)
    return tokens


def fixed_tokens_of(ids: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return (n, 2048) tokens of the fixed set."""
    return tokens_of(ids, fixed_lengths_of(ids)).astype(np.uint16).reshape(len(ids), FIXED_TOKENS)


def table_of(ids: NDArray[np.int64], scale: int = 1) -> pa.RecordBatch:
    """Return records as Arrow: tokens list<int32>, label int64."""
    lengths = lengths_of(ids, scale)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    tokens = pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokens_of(ids, lengths)))
    return pa.record_batch([tokens, pa.array(labels_of(ids))], ["tokens", "label"])


@dataclass(frozen=True)
class Workload:
    """Where the data lies, how much of it there is, and what is asked of it."""

    folder: Path
    record_count: int = FULL_RECORDS
    batch_size: int = 256
    is_timed: bool = True
    scale: int = 1
    """Records are so many times as long: 1 is 2.2 KB."""

    @property
    def is_full(self) -> bool:
        """Whether results speak of the sizes that the figures name."""
        return self.record_count >= FULL_RECORDS

    @property
    def fixed_count(self) -> int:
        """Records of the fixed set: 4 KiB each, a fifth of the bytes."""
        return max(self.record_count // 10, 500)

    def fixed_part(self) -> Workload:
        """The fixed set as a workload of its own: fewer, larger records, batches of 32."""
        return replace(self, record_count=self.fixed_count, batch_size=32)

    @property
    def iterable_count(self) -> int:
        """Records of a conversion from Python: all in memory, a fifth of a gigabyte at full size."""
        return max(self.record_count // 10, 500)

    # -- forms of the token set --------------------------------------------------------------------

    def chunks(self, count: int | None = None) -> Iterator[pa.RecordBatch]:
        """Yield the first `count` records (all of them by default), chunk by chunk."""
        total = count or self.record_count
        step = max(CHUNK_RECORDS // self.scale, 1)
        for start in range(0, total, step):
            yield table_of(np.arange(start, min(start + step, total)), self.scale)

    def lengths(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return (n,) tokens of each record."""
        return lengths_of(ids, self.scale)

    def saved(self) -> Path:
        """The token set as Hugging Face's `save_to_disk` writes it, without a row index."""

        def build(path: Path) -> None:
            import datasets

            table = pa.Table.from_batches(self.chunks())
            datasets.Dataset(table).save_to_disk(str(path), max_shard_size="500MB")

        return self.once("saved", build)

    def indexed(self, checksums: bool) -> Path:
        """The saved folder (the same files, linked) with a row index beside them."""

        def build(path: Path) -> None:
            import shufflestore as ss

            path.mkdir()
            for file in self.saved().iterdir():
                if file.is_file():
                    os.link(file, path / file.name)
            ss.index(path, checksums=checksums)

        return self.once("indexed" if checksums else "indexed-unchecked", build)

    def store(self, narrow: bool = True) -> Path:
        """The token set converted; tokens as uint16, or as the int32 that they come as."""

        def build(path: Path) -> None:
            from shufflestore.convert.options import ShardOptions
            from shufflestore.convert.run import ConvertOptions, convert

            options = ConvertOptions(kind="arrow", shards=ShardOptions(narrow=narrow))
            convert(str(self.saved() / "*.arrow"), path, options=options)

        return self.once("store" if narrow else "store-wide", build)

    def flat(self) -> Path:
        """The token set as a person would lay it out for numpy: tokens.i32, offsets.npy, labels.npy."""

        def build(path: Path) -> None:
            path.mkdir()
            lengths = self.lengths(np.arange(self.record_count))
            np.save(path / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]))
            np.save(path / "labels.npy", labels_of(np.arange(self.record_count)))
            with (path / "tokens.i32").open("wb") as file:
                for chunk in self.chunks():
                    file.write(memoryview(chunk.column(0).values.to_numpy()))

        return self.once("flat", build)

    def fixed(self) -> Path:
        """Records of fixed_size_list<uint16, 2048> and a label, converted."""

        def build(path: Path) -> None:
            from shufflestore.convert.run import ConvertOptions, convert

            source = path.with_name("fixed.arrow.partial")
            kind = pa.list_(pa.uint16(), FIXED_TOKENS)
            schema = pa.schema([("tokens", kind), ("label", pa.int64())])
            with pa.OSFile(str(source), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
                for start in range(0, self.fixed_count, 500):
                    ids = np.arange(start, min(start + 500, self.fixed_count))
                    flat = pa.array(fixed_tokens_of(ids).reshape(-1))
                    tokens = pa.FixedSizeListArray.from_arrays(flat, FIXED_TOKENS)
                    writer.write_batch(pa.record_batch([tokens, pa.array(labels_of(ids))], schema=schema))
            convert(str(source), path, options=ConvertOptions(kind="arrow"))
            source.unlink()

        return self.once("fixed", build)

    def parquet(self) -> Path:
        """The token set as Parquet, as pyarrow writes it by default."""

        def build(path: Path) -> None:
            import pyarrow.parquet as pq

            with pq.ParquetWriter(path, next(self.chunks()).schema) as writer:
                held: list[pa.RecordBatch] = []
                for chunk in self.chunks():
                    held.append(chunk)
                    if len(held) == 32:
                        writer.write_table(pa.Table.from_batches(held))
                        held = []
                if held:
                    writer.write_table(pa.Table.from_batches(held))

        return self.once("tokens.parquet", build)

    # -- building ----------------------------------------------------------------------------------

    def once(self, name: str, build: Callable[[Path], None]) -> Path:
        """Return the form called `name`, built if it is not there; safe beside other processes."""
        larger = f"x{self.scale}" if self.scale > 1 else ""
        path = self.folder / f"tokens-{self.record_count}{larger}" / name
        if path in _SEEN:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(f"{name}.lock")):
            if not _is_usable(path):
                partial = path.with_name(f"{name}.partial")
                for old in (partial, path):
                    if old.is_dir():
                        shutil.rmtree(old)
                build(partial)
                partial.rename(path)
        _SEEN.add(path)
        return path


_SEEN: set[Path] = set()
"""Forms that this process has looked at already."""


def _is_usable(path: Path) -> bool:
    """Whether a form is there, and if it is ours, in a format that this version reads."""
    if not (path / "snapshots").is_dir() and not (path / ".shufflestore").is_dir():
        return path.exists()
    from shufflestore.dataset.opening import open as open_dataset
    from shufflestore.errors import ShuffleStoreError

    try:
        with open_dataset(path) as data:
            data.take([0, len(data) - 1])
    except ShuffleStoreError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
