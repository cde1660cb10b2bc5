"""A data set in use crosses fork, spawn and forkserver: children read right data, whatever the parent's threads do (G3)."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import threading

import pytest

import shufflestore as ss
from tests.scenes import SCALE, Held, check_batch, check_record, child_code, good, run, save, threads, warm_indexes

N = 1_000
# Python 3.12 on warns of forks with threads: our subject.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("fork") / "data", N)


def loader_of(data, **options):
    return ss.DataLoader(data, 50, shuffle=True, seed=3, return_ids=True, **options)


def check_epoch(loader) -> None:
    assert sorted(i for batch in loader for i in check_batch(batch)) == list(range(N))


def forks(folder, count: int) -> None:
    """Fork while two threads read and the main thread's own iterator is under way."""
    data = ss.open(folder)
    stop, errors, reads = threading.Event(), [], [0] * 2

    def keep_busy(number: int) -> None:
        try:
            while not stop.is_set():
                for i, record in zip((number, 999 - number), data.__getitems__([number, 999 - number]), strict=True):
                    check_record(record, i)
                reads[number] += 1
        except BaseException as error:
            errors.append(error)

    busy = [threading.Thread(target=keep_busy, args=(i,)) for i in range(2)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    for thread in busy:
        thread.start()
    loader = loader_of(data, prefetch_bytes=1 << 14)
    seen: list[int] = []
    iterator = iter(loader)

    def use_records() -> None:
        for i, record in zip((1, 998, 500), data.__getitems__([1, 998, 500]), strict=True):
            check_record(record, i)

    def use_the_loader() -> None:
        check_epoch(loader)

    def go_on() -> None:
        rest = [i for batch in iterator for i in check_batch(batch)]
        assert sorted(seen + rest) == list(range(N))

    def close_it() -> None:
        loader.close()
        data.close()
        gc.collect()

    kinds = [gc.collect, use_records, use_the_loader, go_on, close_it]
    try:
        for i in range(count):
            work = kinds[i % len(kinds)]
            assert child_code(work) == 0, f"fork {i}: {work.__name__}"
            batch = next(iterator, None)
            if batch is None:
                assert sorted(seen) == list(range(N))
                seen.clear()
                iterator = iter(loader)
            else:
                seen += check_batch(batch)
    finally:
        sys.setswitchinterval(interval)
        stop.set()
        for thread in busy:
            thread.join(60)
    assert not errors
    assert min(reads) > 0
    check_epoch(loader)
    print(f"{count} forks, {sum(reads):,} reads of the parent's threads beside them, 0 hangs, 0 wrong records")


def test_children_forked_while_threads_read_use_ignore_or_go_on(folder):
    forks(folder, 50)


@pytest.mark.campaign
def test_campaign_a_thousand_forks(folder):
    forks(folder, int(1_000 * SCALE))


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_child_goes_on_where_its_parents_reads_and_transforms_were_under_way(tmp_path, engine, count):
    """The parent's native threads wait for a file and its transform for a word: neither exists in the child."""
    folder = save(tmp_path / "data", N, files=2)
    # Each with threads of its own, since those of one soon wait all. Without the column that is read by chunks.
    data, other, third = (ss.open(folder, engine=engine).project(["label", "tokens", "text"]) for _ in range(3))
    for one in (data, other, third):
        warm_indexes(one)
    parent, word = os.getpid(), threading.Event()

    def transform(batch):
        assert os.getpid() != parent or word.wait(60)
        return batch

    held = Held(folder / "1.arrow")  # records [500, 1000)
    small = {"prefetch_bytes": 1 << 13}
    reading = [
        iter(ss.DataLoader(data, 50, return_ids=True, **small)),
        other.batches(50, options=ss.BatchOptions(return_ids=True, **small)),
    ]
    seen = [[i for _ in range(9) for i in check_batch(next(iterator))] for iterator in reading]
    transforming = iter(ss.DataLoader(third, 50, return_ids=True, transform=transform, transform_threads=count))
    done: list[int] = []
    waiting = threading.Thread(target=lambda: done.extend(check_batch(next(transforming))), daemon=True)
    try:
        held.wait_for_openers()
        waiting.start()

        def go_on() -> None:
            held.restore()
            for iterator, before in zip(reading, seen, strict=True):
                assert before + [i for batch in iterator for i in check_batch(batch)] == list(range(N))

        assert child_code(go_on) == 0
        word.set()
        waiting.join(60)
        assert done == list(range(50))
        word.clear()  # what is ahead of that iterator now waits for ever

        def go_on_transforming() -> None:
            assert done + [i for batch in transforming for i in check_batch(batch)] == list(range(N))

        assert child_code(go_on_transforming) == 0
    finally:
        word.set()
        held.close()


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_a_child_goes_on_with_its_parents_iterator_where_the_parent_stood(folder, engine):
    data = ss.open(folder, engine=engine)
    for iterator in (
        iter(loader_of(data)),
        iter(loader_of(data, transform=dict, transform_threads=2)),
        data.batches(50, shuffle=True, options=ss.BatchOptions(return_ids=True)),
    ):
        seen = [i for _ in range(3) for i in check_batch(next(iterator))]

        def go_on(iterator=iterator, seen=seen) -> None:
            assert sorted(seen + [i for batch in iterator for i in check_batch(batch)]) == list(range(N))

        assert child_code(go_on) == 0
        go_on()


def test_grandchildren_read_too(folder):
    data = ss.open(folder)
    loader = loader_of(data)
    next(iter(loader))

    def grandchild() -> None:
        check_epoch(loader)

    def child() -> None:
        check_record(data[7], 7)
        assert child_code(grandchild) == 0
        check_epoch(loader)

    assert child_code(child) == 0
    check_epoch(loader)


def test_a_child_that_uses_nothing_starts_no_thread_and_closes_nothing_of_its_parents(folder):
    data = ss.open(folder)
    iterator = iter(loader_of(data))
    check_batch(next(iterator))

    def alone() -> None:
        assert threads() == 1
        gc.collect()
        assert threads() == 1
        check_record(data[3], 3)
        assert threads() > 1

    assert child_code(alone) == 0
    assert child_code(data.close) == 0
    assert sum(len(check_batch(batch)) for batch in iterator) == N - 50


def test_kernels_may_be_compiled_before_the_fork_after_it_and_during_it():
    # logging and concurrent.futures lock around a fork: imported by numba between the two, they would only unlock.
    program = """
        import concurrent.futures.thread, logging, threading
        import numpy as np
        from tests import scenes
        from shufflestore.orders import kernels
        from shufflestore.orders.epoch import GlobalOrder

        positions = np.arange(5_000)
        expected = GlobalOrder(100_000, 1).ids(positions).tolist()

        def work():
            kernels.warm()
            assert GlobalOrder(100_000, 1).ids(positions).tolist() == expected

        assert scenes.child_code(work) == 0
        compiling = threading.Thread(target=kernels.warm)
        compiling.start()
        while compiling.is_alive():
            assert scenes.child_code(kernels.warm) == 0
        compiling.join(60)
        assert scenes.child_code(work) == 0
        work()
    """
    good(run(program))


def _record(data, number: int):
    return data[number]


def test_a_pool_of_processes_reads_one_data_set(folder):
    program = """
        import multiprocessing, sys
        import shufflestore as ss
        from tests import scenes
        from tests.stress.test_fork import _record

        if __name__ == "__main__":
            data = ss.open(sys.argv[1])
            scenes.check_record(data[3], 3)
            with multiprocessing.get_context(sys.argv[2]).Pool(2) as pool:
                asked = [(data.select(range(0, 1000, 2)), i) for i in range(0, 500, 7)]
                for (_, i), record in zip(asked, pool.starmap_async(_record, asked, 8).get(60)):
                    scenes.check_record(record, 2 * i)
    """
    good(run(program, folder, "fork"))


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_a_data_set_and_its_views_are_arguments_of_a_process(folder, method):
    data = ss.open(folder)
    check_record(data[5], 5)
    context = multiprocessing.get_context(method)
    out = context.Queue()
    for view, expected in ((data, list(range(N))), (data.select([5, 3, 999]), [3, 5, 999])):
        process = context.Process(target=_numbers, args=(view, out))
        process.start()
        assert sorted(out.get(timeout=60)) == expected
        process.join(60)
        assert process.exitcode == 0


def _numbers(data, out) -> None:
    out.put([int(i) for batch in data.project(["label"]).batches(50, shuffle=True) for i in batch["label"]])


def test_two_threads_of_a_child_start_with_one_set_of_files_between_them(folder):
    data = ss.open(folder)
    check_record(data[5], 5)

    def work() -> None:
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        errors: list[BaseException] = []
        go = threading.Barrier(8)

        def read(number: int) -> None:
            try:
                go.wait(60)
                for i in range(number, N, 97):
                    check_record(data[i], i)
            except BaseException as error:
                errors.append(error)

        those = [threading.Thread(target=read, args=(i,)) for i in range(8)]
        for thread in those:
            thread.start()
        for thread in those:
            thread.join(60)
        sys.setswitchinterval(interval)
        assert not errors, errors
        assert len(data.reading.store._readers) == 1

    for _ in range(10):
        assert child_code(work) == 0


def test_forks_from_another_thread_than_the_main_one_do_no_harm(folder):
    data = ss.open(folder)
    check_record(data[5], 5)
    codes: list[int] = []
    loader = loader_of(data)

    def fork() -> None:
        codes.extend(child_code(lambda: check_epoch(loader)) for _ in range(5))

    thread = threading.Thread(target=fork)
    thread.start()
    while thread.is_alive():
        check_record(data[17], 17)
    thread.join(60)
    assert codes == [0] * 5
    assert os.getpid() == data.reading.store._home
