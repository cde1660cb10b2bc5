"""Any number of threads read one data set, and a read that waits stops nobody else (G8)."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import shufflestore as ss
from shufflestore.orders import kernels
from shufflestore.orders.epoch import GlobalOrder
from shufflestore.storage.memory import LEAST
from tests.scenes import SCALE, check_batch, check_record, good, run, save

N = 1_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(tmp_path_factory.mktemp("threads") / "data", N)


def together(work: Callable[[int], None], count: int = 8, interval: float = 1e-6) -> None:
    """Run work(0), ..., work(count - 1) in threads that begin together and are switched as often as can be."""
    errors: list[BaseException] = []
    go = threading.Barrier(count)

    def one(number: int) -> None:
        try:
            go.wait(60)
            work(number)
        except BaseException as error:
            errors.append(error)

    those = [threading.Thread(target=one, args=(i,), daemon=True) for i in range(count)]
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        for thread in those:
            thread.start()
        for thread in those:
            thread.join(200 * max(SCALE, 1))
            assert not thread.is_alive(), "hangs"
    finally:
        sys.setswitchinterval(before)
    if errors:
        raise errors[0]


def mixed_reads(data, rounds: int) -> None:
    """Every way to read, by eight threads of one data set."""

    def work(number: int) -> None:
        rng = random.Random(number)
        for _ in range(rounds):
            ids = [rng.randrange(N) for _ in range(rng.choice((1, 7, 40)))]
            kind = rng.randrange(5)
            if kind == 0:
                check_record(data[ids[0]], ids[0])
            elif kind == 1:
                for i, record in zip(ids, data.__getitems__(ids), strict=True):
                    check_record(record, i)
            elif kind == 2:
                table = data.take(ids)
                assert table["label"].to_pylist() == ids
                assert table["kind"].to_pylist() == [("cat", "dog", "emu")[i % 3] for i in ids]
            elif kind == 3:
                view = data.select(ids).project(["tokens", "label"])
                assert [r["label"] for r in view.__getitems__(range(len(ids)))] == ids
            else:
                options = ss.BatchOptions(return_ids=True, prefetch_bytes=1 << 12)
                taken = data.select(range(100)).batches(16, shuffle=True, seed=number, options=options)
                assert sorted(sum((check_batch(b) for b in taken), [])) == list(range(100))

    together(work)


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
def test_eight_threads_that_switch_all_the_time_read_right_data(folder, engine):
    with ss.open(folder, engine=engine) as data:
        mixed_reads(data, 12)


def test_threads_read_right_data_while_index_pages_and_decoded_chunks_make_room_for_others(folder, monkeypatch):
    with ss.open(folder, memory_limit=LEAST) as data:
        monkeypatch.setattr(data.reading, "budget", replace(data.reading.budget, whole=300))  # a few chunks' worth
        mixed_reads(data, 12)


@pytest.mark.campaign
def test_campaign_threads_that_switch_all_the_time(folder, monkeypatch):
    rounds = int(1_000 * SCALE)
    for options in ({"engine": "mmap"}, {"engine": "pread"}, {"memory_limit": LEAST}):
        with ss.open(folder, **options) as data:
            monkeypatch.setattr(data.reading, "budget", replace(data.reading.budget, whole=300))
            mixed_reads(data, rounds)
    print(f"{3 * 8 * rounds:,} reads of eight threads, 0 wrong")


def test_a_data_set_opened_by_many_threads_at_once_is_met_by_all(folder):
    for _ in range(5):
        data = ss.open(folder)  # nothing is known of its shards yet
        together(lambda number, data=data: [check_record(data[i], i) for i in range(number, N, 211)])
        data.close()


def test_each_thread_has_a_loader_of_its_own_over_one_data_set(folder):
    data = ss.open(folder)

    def work(number: int) -> None:
        loader = ss.DataLoader(data, 50, shuffle=True, seed=number, return_ids=True, transform=dict)
        for epoch in range(2):
            ids = sum((check_batch(batch) for batch in loader), [])
            assert ids == GlobalOrder(N, number, epoch).ids(np.arange(N)).tolist()

    together(work)


def test_a_close_in_the_midst_of_reads_ends_them_by_name(folder):
    for _ in range(5):
        data = ss.open(folder, engine="pread")
        begun = threading.Barrier(5)
        said: list[str] = []

        def read(data=data, begun=begun, said=said) -> None:
            check_record(data[0], 0)
            begun.wait(60)
            try:
                while True:
                    for i, record in zip(range(200), data.__getitems__(range(200)), strict=True):
                        check_record(record, i)
            except (ss.errors.StorageError, ValueError) as error:
                said.append(str(error))

        those = [threading.Thread(target=read, daemon=True) for _ in range(4)]
        for thread in those:
            thread.start()
        begun.wait(60)
        data.close()
        for thread in those:
            thread.join(60)
        assert len(said) == 4
        assert all("closed" in text for text in said), said


def test_the_order_is_the_same_while_its_kernel_is_being_compiled(monkeypatch):
    monkeypatch.setattr(kernels, "_kernel", None)
    expected = GlobalOrder(100_000, 3).ids(np.arange(500)).tolist()

    def work(number: int) -> None:
        if number < 2:
            kernels.warm()
        for _ in range(20):
            assert GlobalOrder(100_000, 3).ids(np.arange(500)).tolist() == expected

    together(work, interval=1e-4)


WAITS = """
    import gc, sys, threading
    from pathlib import Path
    import numpy as np
    import shufflestore as ss
    from tests import scenes

    folder, engine, what = Path(sys.argv[1]), *sys.argv[2:]
    data = ss.open(folder, engine=engine)
    scenes.warm_indexes(data)
    held = scenes.Held(folder / "0.arrow")
    pending = data.reading.submit(np.arange(10), np.array([10]), data.projection())
    held.wait_for_openers()
    go = threading.Event()

    def let_go():
        go.wait()
        held.release()

    thread = threading.Thread(target=let_go)
    thread.start()
    sys.setswitchinterval(1e9)  # from here on a thread runs only when another lets it
    go.set()
    if what == "wait":
        try:
            data.reading.deliver(pending[0])
        except ss.errors.ShuffleStoreError:
            pass
    elif what == "close":
        data.close()
    elif what == "drop":
        del data, pending
        gc.collect()
    thread.join()
    held.close()
    held._pipe.unlink()
"""


@pytest.mark.parametrize("engine", ["mmap", "pread", "io_uring"])
@pytest.mark.parametrize("what", ["wait", "close", "drop"])
def test_while_a_read_hangs_other_threads_run(folder, engine, what):
    """Were the GIL held in there, nobody could let the read go on."""
    good(run(WAITS, folder, engine, what, seconds=20))


def test_submitting_and_cancelling_wait_for_no_read(folder):
    program = """
        import sys
        from pathlib import Path
        import numpy as np
        import shufflestore as ss
        from tests import scenes
        folder = Path(sys.argv[1])
        data = ss.open(folder, engine="pread")
        scenes.warm_indexes(data)
        held = scenes.Held(folder / "0.arrow")
        them = [data.reading.submit(np.arange(200), np.array([200]), data.projection()) for _ in range(50)]
        held.wait_for_openers()
        for (ready,) in them:
            ready.pending.cancel()
        held.restore()
        held.release()
        for (ready,) in them:
            assert ready.pending.wait(60)
        data.close()
        held._pipe.unlink()
    """
    good(run(program, folder, seconds=30))
