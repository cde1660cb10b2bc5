"""The planner of reads, step by step in plain Python integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shufflestore.storage.base import ZERO


@dataclass
class Cluster:
    """Reads that share bytes, and the whole blocks that hold them."""

    low: int
    high: int
    end: int
    reads: list[int]


@dataclass
class Fetch:
    """One range and the reads that it serves."""

    file: int
    group: int
    clusters: list[Cluster]

    @property
    def low(self) -> int:
        return self.clusters[0].low

    @property
    def high(self) -> int:
        return self.clusters[-1].high

    @property
    def reads(self) -> list[int]:
        return [i for cluster in self.clusters for i in cluster.reads]

    @property
    def held(self) -> int:
        """Bytes of the blocks that hold reads."""
        return len({byte for cluster in self.clusters for byte in range(cluster.low, cluster.high)})


def clusters_of(reads: Any, indices: list[int], block: int, size: int) -> list[Cluster]:
    made: list[Cluster] = []
    for i in sorted(indices, key=lambda i: int(reads[i]["offset"])):
        begin = int(reads[i]["offset"])
        end = begin + int(reads[i]["size"])
        if made and begin < made[-1].end:
            made[-1].end = max(made[-1].end, end)
            made[-1].reads.append(i)
        else:
            made.append(Cluster(begin // block * block, 0, end, [i]))
    for cluster in made:
        cluster.high = max(min(-(-cluster.end // block) * block, size, 2**63 - 1), cluster.end)
    return made


def naive_plan(
    reads: Any,
    group_of: Any,
    gap_bytes: int,
    most_bytes: int,
    most_waste: float,
    block: int = 1,
    file_sizes: Any = None,
) -> list[Fetch]:
    """Return fetches in the order in which they are needed."""
    needed = [i for i in range(len(reads)) if int(reads[i]["op"]) != ZERO and int(reads[i]["size"]) > 0]
    made: list[Fetch] = []
    for group, file in sorted({(int(group_of[i]), int(reads[i]["file"])) for i in needed}):
        mine = [i for i in needed if (int(group_of[i]), int(reads[i]["file"])) == (group, file)]
        size = 2**63 - 1 if file_sizes is None else int(file_sizes[file])
        fetch: Fetch | None = None
        for cluster in clusters_of(reads, mine, block, size):
            if fetch and cluster.low - fetch.high <= gap_bytes and cluster.high - fetch.low <= most_bytes:
                fetch.clusters.append(cluster)
            else:
                fetch = Fetch(file, group, [cluster])
                made.append(fetch)
    parted: list[Fetch] = []
    for fetch in made:
        is_wasteful = most_waste < 1e18 and fetch.high - fetch.low > most_waste * fetch.held
        pieces = [[fetch.clusters[0]]]
        for before, cluster in zip(fetch.clusters, fetch.clusters[1:], strict=False):
            if is_wasteful and cluster.low > before.high:
                pieces.append([])
            pieces[-1].append(cluster)
        parted += [Fetch(fetch.file, fetch.group, piece) for piece in pieces]
    return sorted(parted, key=lambda fetch: min(fetch.reads))
