"""No changed byte reaches a batch: every flip, cut, hole and swap is an error that names its place, or changes nothing.

Read through a store in memory, so that tens of thousands of damaged copies cost seconds; the native
engines and real files take a sample of the same. Exhaustive runs are campaigns and print their totals.
"""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa
import pytest

from shufflestore.dataset import residency
from shufflestore.dataset.dataset import Dataset
from shufflestore.dataset.inplace import index
from shufflestore.dataset.opening import load_manifest
from shufflestore.dataset.opening import open as open_dataset
from shufflestore.dataset.verify import Report, _outside, _records, check_split, verify
from shufflestore.errors import CorruptData, ShuffleStoreError
from shufflestore.format.manifest import Manifest
from tests.invented import MemoryStore, arrow_bytes, memory_store, opened, resolved

ROWS = 33
PLACE = re.compile(
    r"memory://: (shards|snapshots)/[\w.]+.*"
    r"(record \d+ \(row \d+|page \d+|chunk|header|dictionary|manifest|shard table|snapshot|bytes|nothing there|ends at)"
)


def columns(seed: int, rows: int = ROWS) -> pa.Table:
    """Return a table whose values depend on the seed and whose sizes do not."""
    r = random.Random(seed)
    return pa.table(
        {
            "id": pa.array([seed * 1000 + i for i in range(rows)], pa.int64()),
            "text": [None if i % 7 == 3 else "".join(r.choice("abc") for _ in range(i % 5)) for i in range(rows)],
            "tokens": pa.array([[r.randint(0, 9999) for _ in range(i % 4)] for i in range(rows)], pa.list_(pa.int32())),
            "mask": [[r.random() < 0.5 for _ in range(i % 3 * 5)] for i in range(rows)],
            "flag": [r.random() < 0.5 for _ in range(rows)],
            "emb": pa.array([[r.random() for _ in range(3)] for _ in range(rows)], pa.list_(pa.float32(), 3)),
            "tag": pa.array([r.choice(("x", "yy", "zzz")) for _ in range(rows)]).dictionary_encode(),
        }
    )


def shard(seed: int, rows: int = ROWS) -> bytes:
    return arrow_bytes(columns(seed, rows), 13)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return memory_store([shard(1), shard(2), shard(3)])


class Judge:
    """Holds a damaged copy of a store against the good one."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        dataset = opened(store)
        self.ids = np.random.default_rng(0).permutation(len(dataset))
        self.good = dataset.take(self.ids).to_pylist()
        self.served = {name: np.ones(len(data), bool) for name, data in store.files.items()}
        for name in store.files:
            if name.startswith("shards/"):
                self.served[name] = self._served(name)
        self.counts: Counter[str] = Counter()

    def _served(self, name: str) -> np.ndarray:
        """Which bytes a read of all rows depends on, found by asking the store what it was asked for."""
        asked = np.zeros(len(self.store.files[name]), bool)

        class Watching(MemoryStore):
            def _batch(self, reads, sizes):
                for offset, _, size, file, *_ in reads.tolist():
                    if self.names[file] == name:
                        asked[offset : offset + size] = True
                return super()._batch(reads, sizes)

        opened(Watching(self.store.files)).take(self.ids)
        return asked

    def judge(self, changes: dict[str, bytes], must_show: bool) -> None:
        """Read and verify a copy with some files changed; count what happened, refuse what must not."""
        damaged = MemoryStore(self.store.files | changes)
        dataset, message = None, ""
        try:
            dataset = opened(damaged)
            rows = dataset.take(self.ids).to_pylist()
            outcome = "unchanged" if rows == self.good else "SILENT"
        except ShuffleStoreError as error:
            outcome, message = "detected", str(error)
        self.counts[outcome] += 1
        assert outcome != "detected" or PLACE.search(message), f"no file and place in: {message}"
        assert outcome != "SILENT", sorted(changes)
        assert outcome == "detected" or not must_show, sorted(changes)
        if dataset is not None:
            report = Report("memory://")
            check_split(dataset, report)
            assert not report.is_sound, f"verify found nothing in {sorted(changes)}"
        self.counts["verified"] += 1

    def flips(self, name: str, bits: Iterable[int]) -> None:
        data = self.store.files[name]
        for bit in bits:
            changed = bytearray(data)
            changed[bit // 8] ^= 1 << bit % 8
            self.judge({name: bytes(changed)}, bool(self.served[name][bit // 8]))


def sampled(total: int, count: int, seed: int = 0) -> list[int]:
    """Return every so-manieth number and the first and last ones."""
    if count >= total:
        return list(range(total))
    return sorted(random.Random(seed).sample(range(total), count) + [0, total - 1])


def test_every_flip_of_the_manifest_and_its_shard_table_is_refused(store):
    manifest = load_manifest(store, None)
    refused = 0
    for name in ("snapshots/0000000001.json", manifest.table_name):
        data = bytearray(store.files[name])
        for bit in range(8 * len(data)):
            data[bit // 8] ^= 1 << bit % 8
            with pytest.raises(ShuffleStoreError, match=re.escape(name)):
                Manifest.decode(bytes(data), name) if name.endswith("json") else manifest.check_table(bytes(data), name)
            data[bit // 8] ^= 1 << bit % 8
            refused += 1
    assert refused == 8 * (len(store.files["snapshots/0000000001.json"]) + manifest.table_bytes)


@pytest.mark.parametrize(("name", "count"), [("shards/00001.arrow", 600), ("shards/00001.rows", 400)])
def test_flips_in_a_shard_and_its_row_index_are_detected(store, name, count):
    judge = Judge(store)
    judge.flips(name, sampled(8 * len(store.files[name]), count))
    assert judge.counts["verified"] == count + 2 or judge.counts["verified"] == count + 1
    assert judge.counts["detected"] > 0


def test_every_flip_of_an_index_header_and_chunk_table_is_detected(store):
    judge = Judge(store)
    header = opened(store).reading.indexes.header(0)
    end = 8 * (header.header_bytes + header.table_bytes)
    judge.flips("shards/00000.rows", range(0, end, 37))
    assert judge.counts["detected"] == len(range(0, end, 37))


@pytest.mark.parametrize("slots", [4, 4096])
def test_damage_is_found_again_by_the_next_read_and_others_stay_readable(store, slots, monkeypatch):
    monkeypatch.setattr(residency, "LEAST_SLOTS", slots)
    damaged = MemoryStore(store.files)
    page = opened(store).reading.indexes.header(1).pages_at
    changed = bytearray(store.files["shards/00001.rows"])
    changed[page + 40] ^= 1
    damaged.files["shards/00001.rows"] = bytes(changed)
    dataset = opened(damaged, index_memory_bytes=1)
    good = opened(store).take(list(range(ROWS)))
    for _ in range(40):  # a failed read must not use up what keeps pages
        with pytest.raises(ShuffleStoreError, match="page 0 of the row index"):
            dataset.take([ROWS])
        assert dataset.take(list(range(ROWS))) == good
    damaged.files["shards/00001.rows"] = store.files["shards/00001.rows"]
    assert dataset.take([ROWS]) == opened(store).take([ROWS])


def cuts(data: bytes, step: int) -> Iterator[bytes]:
    yield from (data[:n] for n in range(0, len(data), step))


def sectors(data: bytes, size: int, stale: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        stop = min(start + size, len(data))
        for fill in (bytes(stop - start), b"\xff" * (stop - start), stale[start:stop].ljust(stop - start, b"\0")):
            if data[start:stop] != fill:
                yield data[:start] + fill + data[stop:]


def resized(data: bytes, step: int) -> Iterator[bytes]:
    yield from (data + b"\0", data + data[-64:], data * 2)
    for at in range(0, len(data), step):
        yield data[:at] + b"\0" + data[at:]
        yield data[:at] + data[at + 1 :]
        yield data[:at] + data[at + 8 :]


def all_damage(store: MemoryStore, names: Iterable[str], step: int, sector: int) -> Iterator[tuple[str, bytes]]:
    other = memory_store([shard(11), shard(12), shard(13)])
    for name in names:
        data = store.files[name]
        stale = other.files.get(name, b"")
        for kind in (cuts(data, step), sectors(data, sector, stale), resized(data, 2 * step)):
            yield from ((name, changed) for changed in kind)


def test_cuts_holes_and_shifts_are_detected_or_change_nothing(store):
    judge = Judge(store)
    for name, changed in all_damage(store, sorted(store.files), 211, 1024):
        judge.judge({name: changed}, must_show=name.startswith("snapshots/"))
    assert judge.counts["verified"] == judge.counts["detected"] + judge.counts["unchanged"] > 300


def identity_faults(store: MemoryStore) -> Iterator[dict[str, bytes]]:
    """Right checksums in the wrong place."""
    files = store.files
    other = memory_store([shard(21), shard(22), shard(23)])
    for a in range(3):
        for kind in ("arrow", "rows"):
            mine, yours = f"shards/{a:05d}.{kind}", f"shards/{(a + 1) % 3:05d}.{kind}"
            assert len(files[mine]) == len(files[yours])
            yield {mine: files[yours], yours: files[mine]}
            yield {mine: files[yours]}
            yield {mine: other.files[mine]}
        pair = [f"shards/{a:05d}.{kind}" for kind in ("arrow", "rows")]
        yield {name: other.files[name] for name in pair}
        yield {name: files[name.replace(f"{a:05d}", f"{(a + 1) % 3:05d}")] for name in pair}
    table = load_manifest(store, None).table_name
    yield {table: other.files[load_manifest(other, None).table_name]}
    yield {"snapshots/0000000002.json": files["snapshots/0000000001.json"]}


def test_right_checksums_in_the_wrong_place_are_detected(store):
    judge = Judge(store)
    for changes in identity_faults(store):
        judge.judge(changes, must_show=True)
    assert judge.counts["detected"] == 3 * 8 + 2


def test_swapped_records_and_pages_of_equal_size_are_detected(store):
    judge = Judge(store)
    name = "shards/00000.arrow"
    data = store.files[name]
    places = opened(store)
    _, reads = resolved(places)
    swaps = 0
    for one, two in itertools.pairwise(reads.tolist()):  # neighbours of one buffer
        lo, size, hi = int(one[0]), int(one[2]), int(two[0])
        if size == two[2] and lo + size <= hi and data[lo : lo + size] != data[hi : hi + size]:
            changed = bytearray(data)
            changed[lo : lo + size], changed[hi : hi + size] = data[hi : hi + size], data[lo : lo + size]
            judge.judge({name: bytes(changed)}, must_show=True)
            swaps += 1
    assert swaps >= 10
    name = "shards/00000.rows"
    start, size = places.reading.indexes.header(0).pages_at, 4096
    pages = [store.files[name][start + i * size :][:size] for i in range(3)]
    judge.judge({name: store.files[name][:start] + pages[1] + pages[0] + pages[2]}, must_show=True)


def test_a_missing_or_renamed_file_is_named(store):
    for name in sorted(store.files):
        if name == "snapshots/0000000001.json":
            continue
        damaged = MemoryStore(store.files)
        damaged.files["elsewhere"] = damaged.files.pop(name)
        with pytest.raises(ShuffleStoreError, match=re.escape(name)):
            opened(damaged).take(list(range(3 * ROWS)))


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_flips_in_real_files_are_named_by_each_engine_and_by_verify(tmp_path, engine):
    path = tmp_path / "data.arrow"
    path.write_bytes(shard(5))
    folder = index(path)
    good = open_dataset(path).take(range(ROWS)).to_pylist()
    files = [path, *sorted(p for p in folder.rglob("*") if p.is_file())]
    r, found, messages = random.Random(1), Counter(), []
    for _ in range(60):
        file = r.choice(files)
        data = file.read_bytes()
        changed = bytearray(data)
        changed[r.randrange(len(data))] ^= 1 << r.randrange(8)
        file.write_bytes(changed)
        try:
            with open_dataset(path, engine=engine) as dataset:
                assert dataset.take(range(ROWS)).to_pylist() == good, "silent"
            found["unchanged"] += 1
        except ShuffleStoreError as error:
            found["detected"] += 1
            messages.append((file.name, str(error)))
        try:
            report = verify(path)
            assert not report.is_sound, file
            assert all(path.name in problem or file.name in problem for problem in report.problems), report.problems
        except ShuffleStoreError as error:
            messages.append((file.name, str(error)))
        file.write_bytes(data)
    assert all(str(path) in message or name in message for name, message in messages)
    assert found["detected"] > 20
    assert verify(path).is_sound


def owners(dataset: Dataset, size: int) -> np.ndarray:
    """Return, for each byte of the first shard, a record that reads it; -1 for bytes that none does."""
    owner = np.full(size, -1)
    for offset, length, record in resolved(dataset)[1][["offset", "size", "reserved"]].tolist():
        owner[offset : offset + length] = record
    return owner


def flip_a_whole_shard(store: MemoryStore, name: str) -> Counter[str]:
    """Flip every bit of a shard: records' bits against a read of the record, the others against verify."""
    counts: Counter[str] = Counter()
    data, damaged = store.files[name], MemoryStore(store.files)
    dataset = opened(damaged)
    owner = owners(dataset, len(data))
    header, projection = dataset.reading.indexes.header(0), dataset.projection()
    covered = _records(dataset.reading, np.arange(len(dataset)), projection, Report("memory://"))
    changed = bytearray(data)
    for bit in range(8 * len(data)):
        changed[bit // 8] ^= 1 << bit % 8
        damaged.files[name] = bytes(changed)
        record = int(owner[bit // 8])
        if record >= 0:
            with pytest.raises(ShuffleStoreError, match=rf"{name}: record \d+ "):
                dataset.take([record])
            counts["flips of records, named by a read"] += 1
        else:
            # What verify does last; it has read all records by then, which no flip here can change.
            with pytest.raises(CorruptData, match=rf"{name}: the bytes between records"):
                _outside(dataset.reading, 0, header, covered)
            counts["flips elsewhere, named by verify"] += 1
        changed[bit // 8] ^= 1 << bit % 8
    return counts


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_campaign_every_flip_of_a_64_kib_shard():
    started, rows = time.monotonic(), 500
    while len(shard(9, rows)) < 65_536:
        rows += 20
    counts = flip_a_whole_shard(memory_store([shard(9, rows)]), "shards/00000.arrow")
    print(f"\nC1, shard of {rows} records: {dict(counts)} in {time.monotonic() - started:.0f} s, silent 0")
    assert sum(counts.values()) >= 524_288


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_campaign_every_flip_of_a_small_shard_and_of_its_whole_index():
    started = time.monotonic()
    judge = Judge(memory_store([arrow_bytes(columns(1))]))
    for name in ("shards/00000.rows", "shards/00000.arrow"):
        judge.flips(name, range(8 * len(judge.store.files[name])))
    print(f"\nC1, small shard and index: {dict(judge.counts)} in {time.monotonic() - started:.0f} s, silent 0")


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_campaign_cuts_at_every_length_and_holes_of_every_size(store):
    started = time.monotonic()
    judge = Judge(store)
    for step, sector in ((1, 64), (3, 512), (5, 4096)):
        for name, changed in all_damage(store, sorted(store.files), step, sector):
            judge.judge({name: changed}, must_show=name.startswith("snapshots/"))
    print(f"\nC2: {dict(judge.counts)} in {time.monotonic() - started:.0f} s, silent 0")
    assert judge.counts["verified"] >= 50_000
