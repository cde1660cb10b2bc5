"""A batch that was delivered is the caller's, for ever; what is read ahead stays within its budget (H4)."""

from __future__ import annotations

import gc
import hashlib
import random
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import shufflestore as ss
from shufflestore.dataset.stream import Stream
from tests.scenes import SCALE, check_batch, resident_bytes, save, warm_indexes

N = 1_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("buffers") / "data", N)


def parts(value) -> list[np.ndarray]:
    """The bytes of a batch, whatever its format and layout, without a copy."""
    if isinstance(value, pa.Table):
        found = [b for column in value.columns for chunk in column.chunks for b in chunk.buffers() if b is not None]
        return [np.frombuffer(b, np.uint8) for b in found]
    if isinstance(value, dict):
        return [part for one in value.values() for part in parts(one)]
    if isinstance(value, torch.Tensor):
        value = value.numpy()
    if isinstance(value, np.ndarray):
        return [value.reshape(-1).view(np.uint8)] if value.dtype != object else []
    if hasattr(value, "values") and not isinstance(value, list):
        mask = getattr(value, "mask", None)
        return [*parts(value.values), *parts(value.offsets if mask is None else mask)]
    if isinstance(value, list) and value and isinstance(value[0], (np.ndarray, torch.Tensor)):
        return [part for one in value for part in parts(one)]
    return []


def digest(batch) -> bytes:
    return hashlib.blake2b(b"".join(part.tobytes() for part in parts(batch))).digest()


LOADERS = {
    "torch, jagged": {"layout": "jagged"},
    "torch, padded": {"layout": "padded"},
    "torch, list": {"layout": "list"},
    "numpy": {"format": "numpy"},
    "arrow": {"format": "arrow"},
}


def hold_and_mutate(data, count: int, **options) -> tuple[int, int]:
    """Hold some batches for long, overwrite some at once, drop the others; return (batches, bytes held)."""
    rng = random.Random(5)
    held: list[tuple[bytes, object]] = []
    total = size = 0
    loader = ss.DataLoader(data, 16, shuffle=True, return_ids=True, prefetch_bytes=1 << 14, **options)
    while total < count:
        for batch in loader:
            total += 1
            if options.get("layout", "jagged") == "jagged" and options.get("format") != "arrow":
                check_batch(batch)
            fate = rng.random()
            if fate < 0.2:
                held.append((digest(batch), batch))
                size += sum(part.nbytes for part in parts(batch))
            elif fate < 0.6:
                for part in parts(batch):
                    if part.flags.writeable:
                        part[:] = 0xA5  # a buffer that comes back into use or is shared would show it
            if len(held) > 200:
                before, old = held.pop(rng.randrange(len(held)))
                assert digest(old) == before
    loader.close()
    for before, old in held:
        assert digest(old) == before
    return total, size


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
@pytest.mark.parametrize("kind", LOADERS)
def test_a_batch_that_is_held_is_never_changed_by_later_reads(folder, kind, engine):
    with ss.open(folder, engine=engine) as data:
        hold_and_mutate(data, 400, **LOADERS[kind])


@pytest.mark.campaign
def test_campaign_a_million_batches_held_overwritten_and_dropped(folder):
    total = size = 0
    for engine in ("mmap", "pread"):
        with ss.open(folder, engine=engine) as data:
            for options in LOADERS.values():
                count, held = hold_and_mutate(data, int(100_000 * SCALE), **options)
                total, size = total + count, size + held
    print(f"{total:,} batches, {size:,} bytes held and read again later, 0 changed")


@pytest.mark.parametrize("kind", LOADERS)
def test_batches_outlive_the_loader_the_data_set_and_the_collector(tmp_path, kind):
    folder = save(tmp_path / "data", 300)
    data = ss.open(folder)
    kept = list(ss.DataLoader(data, 16, shuffle=True, return_ids=True, **LOADERS[kind]))
    before = [digest(batch) for batch in kept]
    data.close()
    del data
    gc.collect()
    for file in folder.glob("*.arrow"):
        file.write_bytes(b"\0" * file.stat().st_size)  # a view of the map would show it
    other = save(tmp_path / "other", 300)
    for _ in range(3):
        list(ss.DataLoader(other, 16, shuffle=True))
    assert [digest(batch) for batch in kept] == before


def test_no_two_batches_and_no_two_columns_share_memory(folder):
    batches = list(ss.DataLoader(folder, 16, shuffle=True, return_ids=True, format="numpy", fill_nulls=0))
    spans = sorted(
        (part.__array_interface__["data"][0], part.nbytes) for batch in batches for part in parts(batch) if part.nbytes
    )
    for (first, size), (second, _) in zip(spans, spans[1:], strict=False):
        assert first + size <= second


def test_what_a_user_writes_into_a_record_or_batch_is_not_seen_by_anybody_else(folder):
    data = ss.open(folder)
    for _ in range(3):
        record = data[7]
        assert record["tokens"].tolist() == [7, 8, 9, 10, 11, 12, 13]
        record["tokens"][:] = 0
        record["pixels"][:] = 9
        (one,) = data.batches(1000, options=ss.BatchOptions(return_ids=True))
        check_batch(one)
        for part in parts(one):
            part[:] = 1


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
@pytest.mark.parametrize("budget", [0, 1 << 12, 1 << 16, 1 << 20])
def test_the_look_ahead_keeps_to_its_budget_or_one_batch(folder, budget, engine):
    data = ss.open(folder, engine=engine)
    stream = data.batches(10, shuffle=True, options=ss.BatchOptions(return_ids=True, prefetch_bytes=budget))
    assert isinstance(stream, Stream)
    largest = most = 0
    for batch in stream:
        check_batch(batch)
        largest = max(largest, sum(part.nbytes for part in parts(batch)) + 1024)
        most = max(most, stream.flow.used_bytes)
    assert most <= max(budget, largest), (most, largest)
    assert stream.flow.used_bytes == 0
    if budget >= 1 << 16:
        assert most > min(budget, N * 40) / 4


def test_batches_that_are_dropped_cancelled_or_fail_give_their_room_back(folder):
    data = ss.open(folder, engine="pread")
    options = ss.BatchOptions(return_ids=True, prefetch_bytes=1 << 12)
    for _ in range(50):
        stream = data.batches(10, shuffle=True, options=options)
        check_batch(next(stream))
        flow = stream.flow
        stream.close()
        stop = time.monotonic() + 60
        while flow.used_bytes:
            assert time.monotonic() < stop
    assert sum(len(check_batch(batch)) for batch in data.batches(10, options=options)) == N


@pytest.mark.serial
def test_memory_is_the_budget_and_the_batches_that_somebody_holds(tmp_path):
    wide = pa.table({"x": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2_000 * 8_192, np.uint8)), 8_192)})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, wide.schema) as writer:
        writer.write_table(wide, max_chunksize=100)
    ss.index(tmp_path / "x.arrow")
    del wide
    budget, batch = 2 << 20, 20 * 8_192
    data = ss.open(Path(tmp_path / "x.arrow"), engine="pread")
    warm_indexes(data)
    peaks = []
    for _ in range(3):
        gc.collect()
        before = resident_bytes()
        peak = 0
        for one in ss.DataLoader(data, 20, shuffle=True, prefetch_bytes=budget, format="numpy"):
            assert one["x"].shape == (20, 8_192)
            peak = max(peak, resident_bytes() - before)
        peaks.append(peak)
    # The set has 16 MiB. Blocks once used wait in a cache for the next batch, hence the minimum of the rounds.
    assert min(peaks) <= budget + 10 * batch, peaks


def test_a_list_of_all_batches_is_the_epoch(folder):
    for prefetch in (0, 1 << 12, 64 << 20):
        batches = list(ss.DataLoader(folder, 16, shuffle=True, return_ids=True, prefetch_bytes=prefetch))
        assert sorted(i for batch in batches for i in check_batch(batch)) == list(range(N))
        gc.collect()
        assert sorted(i for batch in reversed(batches) for i in check_batch(batch)) == list(range(N))
