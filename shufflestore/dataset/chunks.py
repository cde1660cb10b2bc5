"""The chunk table of a shard: which rows each chunk has, and where columns that are read whole lie."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shufflestore.errors import CorruptData
from shufflestore.format.layout import IndexHeader, Layout
from shufflestore.format.rebuild import dictionary_fields

__all__ = ["ChunkTable"]


@dataclass(frozen=True, eq=False)
class ChunkTable:
    """The chunk table of one shard."""

    first_row: NDArray[np.int64]
    """(chunks + 1,)"""
    first_page: NDArray[np.int64]
    """(chunks + 1,)"""
    whole: dict[str, Any]

    @classmethod
    def parse(cls, data: bytes, header: IndexHeader, name: str) -> ChunkTable:
        """Return the table from bytes whose CRC was right. Raises CorruptData."""
        layout = header.layout
        chunks, buffers = header.chunk_count, len(layout.tree.buffers)
        fixed = 16 * (chunks + 1) + 16 * chunks * buffers
        try:
            rows = np.frombuffer(data, "<i8", chunks + 1)
            pages = np.frombuffer(data, "<i8", chunks + 1, 8 * (chunks + 1))
            whole = json.loads(data[fixed:])
        except (ValueError, RecursionError) as cause:
            raise CorruptData(f"{name}: the chunk table is damaged ({cause})") from cause
        steps = np.diff(rows)
        ok = rows[0] == 0 and rows[-1] == header.row_count and pages[0] == 0 and (steps >= 0).all()
        # Whole pages for each chunk, or else a record's page would be another's.
        ok = ok and np.array_equal(np.diff(pages), -(-steps // layout.rows_per_page)) and pages[-1] == header.page_count
        if not ok or not isinstance(whole, dict) or not _lists_whole(whole, chunks, layout):
            raise CorruptData(f"{name}: the chunk table disagrees with the header's counts")
        return cls(rows, pages, whole)

    def rows(self, chunk: int) -> int:
        """Return how many rows a chunk has."""
        return int(self.first_row[chunk + 1] - self.first_row[chunk])


def _lists_whole(whole: dict[str, Any], chunks: int, layout: Layout) -> bool:
    """Whether the chunk table lists every column that is read whole, and dictionaries with all they need."""
    if not layout.tree.whole:
        return not whole
    columns, listed, ids = whole.get("columns"), whole.get("dictionaries"), whole.get("ids")
    if not (isinstance(columns, dict) and isinstance(listed, list) and isinstance(ids, list)):
        return False
    if any(not isinstance(parts := columns.get(str(c)), list) or len(parts) != chunks for c in layout.tree.whole):
        return False
    if len(ids) != sum(len(dictionary_fields(field.type)) for field in layout.tree.schema):
        return False
    return all(isinstance(d, dict) and isinstance(d.get("before"), int) and {"id", "delta"} <= d.keys() for d in listed)
