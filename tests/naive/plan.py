"""The planner of reads, one read after another in plain Python integers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from shufflestore.storage.base import ZERO


@dataclass
class Fetch:
    """One range and the reads that it serves."""

    file: int
    group: int
    begin: int
    end: int
    used: int
    gaps: list[int] = field(default_factory=list)
    """Where, in `reads`, a gap comes before."""
    reads: list[int] = field(default_factory=list)


def naive_plan(reads: Any, group_of: Any, gap_bytes: int, most_bytes: int, most_waste: float) -> list[Fetch]:
    """Return fetches without alignment, in the order in which they are needed."""
    rows = [(int(g), int(r["file"]), int(r["offset"]), i) for i, (r, g) in enumerate(zip(reads, group_of, strict=True))]
    made: list[Fetch] = []
    for group, file, offset, index in sorted(rows):
        read = reads[index]
        if int(read["op"]) == ZERO or int(read["size"]) == 0:
            continue
        end = offset + int(read["size"])
        last = made[-1] if made else None
        if last is not None and (last.group, last.file) == (group, file):
            gap = offset - last.end
            fits = max(end, last.end) - last.begin <= most_bytes
            if gap < 0 or (gap <= gap_bytes and fits):
                last.used += max(end - max(offset, last.end), 0)
                if gap > 0:
                    last.gaps.append(len(last.reads))
                last.end = max(last.end, end)
                last.reads.append(index)
                continue
        made.append(Fetch(file, group, offset, end, end - offset, [], [index]))
    parted: list[Fetch] = []
    for fetch in made:
        if fetch.end - fetch.begin <= most_waste * fetch.used:
            parted.append(fetch)
            continue
        edges = [0, *fetch.gaps, len(fetch.reads)]
        for a, b in zip(edges, edges[1:], strict=False):
            some = fetch.reads[a:b]
            begin = min(int(reads[i]["offset"]) for i in some)
            end = max(int(reads[i]["offset"]) + int(reads[i]["size"]) for i in some)
            parted.append(Fetch(fetch.file, fetch.group, begin, end, end - begin, [], some))
    return sorted(parted, key=lambda fetch: min(fetch.reads))
