"""Anybody's data set: records fetched together, exact state, bad rows, and random numbers that belong to a record."""

from __future__ import annotations

import copy
import gc
import io
import json
import logging
import math
import pickle
import random
import threading
import time

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, RandomSampler, Subset, TensorDataset

import shufflestore as ss
from shufflestore.errors import OptionError, StateError
from shufflestore.loader.fetch import _Threads
from shufflestore.loader.kinds import MANY, fetch_threads_for
from shufflestore.orders.epoch import make_order

N = 103
WORKERS = pytest.mark.parametrize("workers", [0, 2])


class Slow(Dataset):
    """Waits as a disk would, the later records of a batch less."""

    thread_safe = True

    def __init__(self, seconds=0.01, length=64):
        self.seconds, self.length = seconds, length
        self.at_once = self.most = 0

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        self.at_once += 1
        self.most = max(self.most, self.at_once)
        time.sleep(self.seconds * (1 + (self.length - number) / self.length))
        self.at_once -= 1
        return number


class Augmented(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, number):
        return number, random.random(), float(torch.rand(())), float(np.random.random())


class Counting(IterableDataset):
    def __iter__(self):
        return iter(range(50))


def flat(loader):
    return [int(n) for batch in loader for n in (batch.tolist() if isinstance(batch, torch.Tensor) else batch)]


# -- together ------------------------------------------------------------------------------------------


def test_the_records_of_a_batch_wait_together_and_stand_in_their_slots():
    data = Slow()
    batches = [batch.tolist() for batch in ss.DataLoader(data, 16, fetch_threads=16)]
    assert batches == [list(range(i, i + 16)) for i in range(0, 64, 16)]
    assert data.most > 8


def test_the_batches_behind_are_fetched_with_it():
    data = Slow(0.02, 32)
    list(ss.DataLoader(data, 4, fetch_threads=8))
    assert data.most > 4


def test_as_many_threads_work_as_the_cores_can_serve():
    now = [0.0]
    threads = _Threads(16, lambda: now[0])

    def pass_by(busy):
        now[0] += 0.06
        threads.note(busy * 0.06 * threads.cores)
        return threads.working

    least = math.ceil(threads.cores) + 1
    assert [pass_by(1.0) for _ in range(7)] == [max(n, least) for n in (12, 9, 6, 4, 3, 2, 2)]
    assert pass_by(0.9) == least, "between the two nothing changes"
    assert pass_by(0.8) == least + 1
    assert [pass_by(0.1) for _ in range(4)][-1] == 16
    now[0] += 0.01
    threads.note(1.0)
    assert threads.working == 16, "not within a window"
    few = _Threads(1, lambda: now[0])
    now[0] += 1
    few.note(1e9)
    assert few.working == 1


def test_fewer_threads_deliver_all(monkeypatch):
    monkeypatch.setattr(_Threads, "note", lambda self, seconds: setattr(self, "working", 1))
    assert flat(ss.DataLoader(Slow(0), 8, fetch_threads=8)) == list(range(64))


def test_completion_order_holds_the_same_records_as_they_came():
    batches = [batch.tolist() for batch in ss.DataLoader(Slow(), 16, fetch_threads=16, completion_order=True)]
    assert [sorted(batch) for batch in batches] == [list(range(i, i + 16)) for i in range(0, 64, 16)]
    assert batches != [sorted(batch) for batch in batches]


def test_threads_end_with_the_epoch_and_with_an_abandoned_iterator():
    before = threading.active_count()
    loader = ss.DataLoader(Slow(0), 4, fetch_threads=4)
    list(loader)
    next(iter(loader))
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("data", "threads"),
    [
        (TensorDataset(torch.arange(3)), MANY),
        (Subset(Slow(), [1]), MANY),
        (ConcatDataset([Slow(), TensorDataset(torch.arange(3))]), MANY),
        (ConcatDataset([Slow(), Augmented()]), 1),
        (Augmented(), 1),
        (list(range(3)), 1),
    ],
)
def test_automatic_threads_are_many_only_where_that_is_known_to_be_right(data, threads, caplog):
    with caplog.at_level(logging.INFO, "shufflestore"):
        assert fetch_threads_for(data, "auto") == threads
    assert ("thread_safe = True" in caplog.text) == (threads == 1)


def test_handles_that_threads_cannot_share_are_refused_by_name(tmp_path):
    import sqlite3

    class Holds(Augmented):
        def __init__(self, handle):
            self.handle = handle

    (tmp_path / "x").write_bytes(b"x")
    with (tmp_path / "x").open("rb") as file, sqlite3.connect(":memory:") as connection:
        for handle, words in ((file, "an open file"), (connection, "an SQLite connection")):
            for data in (Holds(handle), Subset(Holds(handle), [1])):
                with pytest.raises(OptionError, match=f"Holds.handle is {words}"):
                    ss.DataLoader(data, fetch_threads=4)
            assert fetch_threads_for(Holds(handle), 1) == 1
    connection.close()
    assert fetch_threads_for(Holds(io.BytesIO()), 4) == 4


@pytest.mark.parametrize("threads", [0, -1, 1.5, "many", True, 5000])
def test_wrong_numbers_of_threads_are_refused(threads):
    with pytest.raises(OptionError, match="fetch_threads="):
        ss.DataLoader(range(9), fetch_threads=threads)


# -- state ---------------------------------------------------------------------------------------------


@WORKERS
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("taken", [0, 1, 5, 13])
def test_a_state_resumes_exactly_with_other_workers_and_batches(taken, shuffle, workers):
    order = make_order("global" if shuffle else "sequential", N, 3, 0).ids(np.arange(N)).tolist()
    loader = ss.DataLoader(range(N), 8, shuffle, num_workers=workers, seed=3)
    iterator = iter(loader)
    got = [int(n) for _ in range(taken) for n in next(iterator)]
    state = loader.state_dict()
    assert len(json.dumps(state)) < 1024
    again = ss.DataLoader(range(N), 5, shuffle, num_workers=2 - workers)
    again.load_state_dict(state)
    assert again.remaining == -(-(N - len(got)) // 5)
    second = iter(again)
    if taken < 13:
        got += next(second).tolist()
    third = ss.DataLoader(range(N), 7, shuffle)
    third.load_state_dict(again.state_dict())
    assert got + flat(third) == order
    assert sorted(flat(third)) == list(range(N)), "the next epoch is whole"
    assert third.state_dict()["epoch"] == 1


@WORKERS
def test_what_was_prefetched_does_not_count(workers):
    loader = ss.DataLoader(range(N), 8, True, num_workers=workers, prefetch_factor=3 if workers else None)
    iterator = iter(loader)
    for step in range(13):
        assert loader.state_dict()["position"] == min(8 * step, N)
        next(iterator)
    assert loader.state_dict()["position"] == N


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_divide_a_foreign_data_set_only_when_named(world, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", str(world))
    assert sorted(flat(ss.DataLoader(range(N), 8, True))) == list(range(N))
    shares = [
        flat(ss.DataLoader(range(N), 4, True, rank=rank, world_size=world, remainder="uneven")) for rank in range(world)
    ]
    assert sorted(n for share in shares for n in share) == list(range(N))


@WORKERS
def test_a_users_sampler_is_run_again_and_its_first_batches_left_out(workers):
    def make():
        sampler = RandomSampler(range(N), generator=torch.Generator().manual_seed(4))
        return ss.DataLoader(range(N), 8, sampler=sampler, num_workers=workers)

    whole = flat(make())
    loader = make()
    iterator = iter(loader)
    got = [int(n) for _ in range(4) for n in next(iterator)]
    again = make()
    again.load_state_dict(loader.state_dict())
    second = iter(again)
    got += next(second).tolist()
    third = make()
    third.load_state_dict(json.loads(json.dumps(again.state_dict())))
    assert got + flat(third) == whole


@WORKERS
def test_an_iterable_data_set_is_run_again_and_its_first_batches_left_out(workers):
    whole = flat(ss.DataLoader(Counting(), 4, num_workers=workers))
    loader = ss.DataLoader(Counting(), 4, num_workers=workers)
    iterator = iter(loader)
    got = [int(n) for _ in range(3) for n in next(iterator)]
    again = ss.DataLoader(Counting(), 4, num_workers=workers)
    again.load_state_dict(loader.state_dict())
    second = iter(again)
    got += next(second).tolist()
    third = ss.DataLoader(Counting(), 4, num_workers=workers)
    third.load_state_dict(again.state_dict())
    assert got + flat(third) == whole


def test_states_that_do_not_fit_are_refused():
    ordered, sampled = ss.DataLoader(range(N), 8), ss.DataLoader(range(N), 8, sampler=[1, 2])
    with pytest.raises(StateError, match="a loader with a list saves another one"):
        sampled.load_state_dict(ordered.state_dict())
    with pytest.raises(StateError, match="no field 'snapshot'"):
        ordered.load_state_dict(sampled.state_dict())
    with pytest.raises(StateError, match="damaged"):
        sampled.load_state_dict(sampled.state_dict() | {"delivered": 3})
    with pytest.raises(StateError, match="range:102"):
        ss.DataLoader(range(102), 8, sampler=[1]).load_state_dict(sampled.state_dict())


@pytest.mark.parametrize("persistent", [False, True])
def test_state_with_persistent_workers_over_epochs(persistent):
    loader = ss.DataLoader(range(N), 8, True, num_workers=2, persistent_workers=persistent)
    first = flat(loader)
    iterator = iter(loader)
    part = next(iterator).tolist()
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, 8)
    loader.load_state_dict(state)
    rest = flat(loader)
    assert sorted(part + rest) == sorted(first)


@pytest.mark.parametrize(
    "make", [copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 8, "shuffle": True, "seed": 3, "drop_last": True},
        {"batch_size": 8, "num_workers": 2, "prefetch_factor": 3},
        {"sampler": [5, 6, 7, 8], "batch_size": 2},
        {"batch_sampler": [[1], [2, 3], [4]]},
        {"batch_size": 4, "sampler": ss.ShuffleSampler(range(N), seed=2)},
        {"batch_size": 8, "shuffle": True, "generator": torch.Generator().manual_seed(4)},
    ],
    ids=["shuffled", "workers", "sampler", "batch sampler", "our sampler", "generator"],
)
def test_a_copy_goes_on_where_the_loader_is(arguments, make):
    loader = ss.DataLoader(range(N), **copy.deepcopy(arguments))
    assert flat(make(loader)) == flat(make(loader)) != []
    iterator = iter(loader)
    next(iterator)
    other = make(loader)
    assert flat(other) == [int(n) for batch in iterator for n in batch]


@pytest.mark.parametrize(
    "make",
    [
        lambda: ss.DataLoader(range(N), 8, True),
        lambda: ss.DataLoader(range(N), 8, sampler=ss.ShuffleSampler(N)),
        lambda: ss.DataLoader(range(N), 8, True, num_workers=2),
    ],
    ids=["own", "sampler", "workers"],
)
def test_what_remains_is_counted_in_batches(make):
    loader = make()
    assert loader.remaining == len(loader) == 13
    iterator = iter(loader)
    for left in (12, 11):
        next(iterator)
        assert loader.remaining == left
    other = make()
    other.load_state_dict(loader.state_dict())
    assert other.remaining == 11
    assert len(list(other)) == 11
    assert other.remaining == 0


def test_a_finished_epoch_is_followed_by_the_next_without_a_warning(caplog):
    loader = ss.DataLoader(range(N), 8, True)
    list(loader)
    after = ss.DataLoader(range(N), 8, True)
    after.load_state_dict(loader.state_dict())
    after.set_epoch(1)
    assert len(flat(after)) == N
    assert not caplog.records


def test_a_dropped_loader_with_persistent_workers_ends_them_at_once():
    loader = ss.DataLoader(range(N), 8, True, num_workers=2, persistent_workers=True)
    list(loader)
    gc.disable()
    try:
        workers = loader._iterator._workers
        began = time.monotonic()
        del loader
        assert not any(worker.is_alive() for worker in workers), "without the collector"
        assert time.monotonic() - began < 4, "torch waits 5 s for a worker that does not listen"
    finally:
        gc.enable()


# -- random numbers ------------------------------------------------------------------------------------


def test_seeded_records_are_augmented_alike_by_any_workers():
    def drawn(**options):
        loader = ss.DataLoader(Augmented(), 4, True, seed=9, seed_records=True, **options)
        return {int(n): tuple(rest) for batch in loader for n, *rest in zip(*batch, strict=True)}

    alone = drawn()
    assert alone == drawn(num_workers=2) == drawn(num_workers=1, multiprocessing_context="spawn")
    assert len(set(alone.values())) == 40
    loader = ss.DataLoader(Augmented(), 4, True, seed=9, seed_records=True)
    list(loader)
    assert {int(n): tuple(rest) for batch in loader for n, *rest in zip(*batch, strict=True)} != alone
    with pytest.raises(OptionError, match="seed_records=True"):
        ss.DataLoader(Augmented(), 4, seed_records=True, fetch_threads=2)


@pytest.mark.parametrize("argument", [{"columns": ["x"]}, {"format": "numpy"}, {"return_ids": True}], ids=str)
def test_arguments_for_columns_are_refused_where_there_are_none(argument):
    with pytest.raises(OptionError, match=f"{next(iter(argument))}=.* says how columns become batches"):
        ss.DataLoader(range(9), 4, **argument)
