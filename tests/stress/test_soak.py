"""Memory, descriptors, threads and maps do not grow: with epochs, abandoned iterators, opened data sets (H1, H2)."""

from __future__ import annotations

import gc
import itertools
import os
import statistics
import threading
import time
import weakref
from collections.abc import Callable

import pytest

import shufflestore as ss
from shufflestore.format import decode, layout, resolve
from tests.scenes import SCALE, check_batch, descriptors, maps, resident_bytes, save, threads

pytestmark = pytest.mark.serial
MIB = 1 << 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save(tmp_path_factory.mktemp("soak") / "tiny", 12, files=2, chunk_rows=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("soak") / "data", 1_000)


def slope(samples: list[int]) -> float:
    """Theil-Sen: the median of the slopes of all pairs, in bytes a sample."""
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in itertools.combinations(enumerate(samples), 2))


def steady(samples: list[int]) -> float:
    """By how many bytes the samples grow at the least: what leaks grows in both halves, what is taken once in one only."""
    half = len(samples) // 2
    return min(slope(samples[: half + 1]), slope(samples[half:])) * len(samples)


def forget() -> None:
    """Empty the caches of plans, which are bounded, and let given up transforms end, so that what is left can be counted."""
    for module in (decode, layout, resolve):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                assert value.cache_info().maxsize is not None
                value.cache_clear()
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith(("shufflestore-transform", "shufflestore-fetch")):
            thread.join(60)
            while thread.native_id in map(int, os.listdir("/proc/self/task")):
                pass  # Python's thread is over, the system's is about to be
    # Those that Python has forgotten already may still be ending: wait until their number stands.
    counts = [-1, threads()]
    while counts[-1] != counts[-2]:
        time.sleep(0.1)
        counts.append(threads())


def flat(work: Callable[[], None], rounds: int, growth_bytes: int = 4 * MIB) -> None:
    """Do the work again and again; assert that after a warm-up nothing has grown."""
    for _ in range(max(rounds // 10, 3)):
        work()
    forget()
    before = threads(), descriptors(), maps(), len(gc.get_objects())
    samples = [resident_bytes()]
    step = max(rounds // 40, 1)
    for i in range(rounds):
        work()
        if (i + 1) % step == 0:
            samples.append(resident_bytes())
    forget()
    after = threads(), descriptors(), maps(), len(gc.get_objects())
    growth = steady(samples)
    most = max(samples) - samples[0]
    print(f"{rounds:,} rounds: memory {growth / MIB:+.2f} MiB by its slope in either half, {most / MIB:+.2f} at most")
    assert after[:3] == before[:3], "threads, descriptors, maps"
    assert after[3] - before[3] < 200, "objects"
    assert growth <= growth_bytes / 2, samples
    assert most <= growth_bytes + 8 * MIB, samples


@pytest.mark.parametrize("at", [0, 7, 20, 40])
def test_what_grows_all_the_time_is_told_from_what_was_taken_once(at):
    once = [MIB * (100 + 2 * (i >= at)) + 7_000 * i for i in range(41)]
    assert steady(once) < MIB / 2
    assert steady([sample + MIB * i // 10 for i, sample in enumerate(once)]) > 3.9 * MIB


def epochs(tiny) -> Callable[[], None]:
    loader = ss.DataLoader(tiny, 5, shuffle=True, return_ids=True)

    def work() -> None:
        assert sorted(i for batch in loader for i in check_batch(batch)) == list(range(12))

    return work


def abandoned(data) -> Callable[[], None]:
    loader = ss.DataLoader(data, 5, shuffle=True, return_ids=True)
    fates = itertools.cycle(range(4))

    def work() -> None:
        fate = next(fates)
        iterator = iter(loader) if fate < 3 else data.batches(5, shuffle=True, options=ss.BatchOptions(return_ids=True))
        for _ in range(fate):
            check_batch(next(iterator))

    return work


def abandoned_loaders(data) -> Callable[[], None]:
    def work() -> None:
        loader = ss.DataLoader(data, 5, return_ids=True, transform=dict, transform_threads=2)
        check_batch(next(iter(loader)))

    return work


def opened(folder, engine, ends: str) -> Callable[[], None]:
    def work() -> None:
        data = ss.open(folder, engine=engine)
        check_batch(next(iter(ss.DataLoader(data, 20, shuffle=True, return_ids=True))))
        if ends == "closed":
            data.close()

    return work


class Numbers(list):
    """Somebody else's data set, of which several threads fetch."""

    thread_safe = True


def foreign(length: int, steps: int | None = None) -> Callable[[], None]:
    loader = ss.DataLoader(Numbers(range(length)), 5, shuffle=True, fetch_threads=3)

    def work() -> None:
        got = [n for batch in itertools.islice(loader, steps) for n in batch.tolist()]
        assert sorted(got) == list(range(length)) if steps is None else len(set(got)) == 5 * steps

    return work


def test_epochs_and_abandoned_iterators_over_somebody_elses_data():
    flat(foreign(12), 300)
    flat(foreign(100, steps=2), 300)


def test_two_thousand_epochs_of_a_tiny_set(tiny):
    flat(epochs(tiny), 2_000)


def test_two_thousand_abandoned_iterators(folder):
    with ss.open(folder) as data:
        flat(abandoned(data), 2_000)


def test_abandoned_loaders_with_transforms_leave_no_thread(folder):
    with ss.open(folder) as data:
        flat(abandoned_loaders(data), 200)


@pytest.mark.parametrize("ends", ["closed", "dropped"])
def test_data_sets_opened_and_closed_or_dropped(folder, ends):
    flat(opened(folder, "auto", ends), 300)


def test_what_is_dropped_is_gone_without_the_collector(folder):
    """Threads, files and the look-ahead of 64 MiB must not wait for a collection that may come late."""
    gc.collect()
    gc.disable()
    try:
        before = threads(), descriptors(), maps()
        for engine in ("mmap", "pread"):
            data = ss.open(folder, engine=engine)
            for loader in (
                ss.DataLoader(data, 5, return_ids=True),
                ss.DataLoader(data, 5, return_ids=True, format="numpy"),
            ):
                iterator = iter(loader)
                check_batch(next(iterator))
            assert threads() > before[0]
            del iterator, loader, data
            assert (threads(), descriptors(), maps()) == before
    finally:
        gc.enable()


def test_a_broken_off_loop_gives_its_look_ahead_back_at_once(folder):
    loader = ss.DataLoader(folder, 5, return_ids=True)
    for step, batch in enumerate(loader):
        check_batch(batch)
        if step == 2:
            stream = weakref.ref(loader._reading()._items)
            assert stream()._ahead, "something was read ahead"
            break
    assert stream() is None
    assert loader._reading() is None
    assert loader.state_dict()["position"] == 15


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_campaign_ten_thousand_of_each(tiny, folder):
    flat(epochs(tiny), int(10_000 * SCALE))
    for engine in ("mmap", "pread"):
        with ss.open(folder, engine=engine) as data:
            flat(abandoned(data), int(10_000 * SCALE))
            flat(abandoned_loaders(data), int(2_000 * SCALE))
        for ends in ("closed", "dropped"):
            flat(opened(folder, engine, ends), int(1_000 * SCALE))


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_campaign_a_hundred_thousand_batches_of_somebody_elses_data():
    flat(foreign(500), int(1_000 * SCALE))
    flat(foreign(100, steps=2), int(2_000 * SCALE))
    loader = ss.DataLoader(Numbers(range(10_000)), 5, shuffle=True, num_workers=2, persistent_workers=True)

    def epoch() -> None:
        assert sorted(n for batch in loader for n in batch.tolist()) == list(range(10_000))

    flat(epoch, int(20 * SCALE), growth_bytes=16 * MIB)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_campaign_two_hundred_thousand_batches(folder):
    with ss.open(folder) as data:
        loader = ss.DataLoader(data, 5, shuffle=True, return_ids=True)

        def work() -> None:
            assert sorted(i for batch in loader for i in check_batch(batch)) == list(range(1_000))

        flat(work, int(1_000 * SCALE))
