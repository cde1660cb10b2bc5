"""Our own data under torch's arguments: users' code in worker processes, users' samplers, rows that cannot be read."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, SequentialSampler, WeightedRandomSampler

import shufflestore as ss
from shufflestore.errors import CorruptData, OptionError
from shufflestore.loader.native import ColumnCollate

N = 103
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


def records():
    return [
        {"n": i, "tokens": np.arange(i, i + i % 7, dtype=np.int32), "text": f"record number {i:05}"} for i in range(N)
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("native") / "store"
    ss.convert(records(), path)
    return path


@pytest.fixture
def damaged(tmp_path):
    """The texts of records 17 and 40 were changed on the disk."""
    ss.convert(records(), tmp_path / "store")
    found = 0
    for shard in (tmp_path / "store").rglob("*.arrow"):
        data = bytearray(shard.read_bytes())
        for number in (17, 40):
            at = data.find(f"record number {number:05}".encode())
            if at >= 0:
                data[at] ^= 1
                found += 1
        shard.chmod(0o644)
        shard.write_bytes(data)
    assert found == 2
    return tmp_path / "store"


def marked(batch):
    return batch | {"worker": torch.full((len(batch["n"]),), os.getpid())}


def collated(rows):
    return [(row["n"], row["text"], os.getpid()) for row in rows]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_transform_runs_in_worker_processes_in_order(folder, workers):
    loader = ss.DataLoader(folder, 8, shuffle=True, seed=2, num_workers=workers, transform=marked)
    for _ in range(2):
        batches = list(loader)
        ids = [n for batch in batches for n in batch["n"].tolist()]
        loader.set_epoch(0)
        plain = ss.DataLoader(folder, 8, shuffle=True, seed=2)
        assert ids == [n for batch in plain for n in batch["n"].tolist()]
        assert all(
            batch["tokens"][i].tolist() == list(range(n, n + n % 7))
            for batch in batches
            for i, n in enumerate(batch["n"].tolist())
        )
        pids = {pid for batch in batches for pid in batch["worker"].tolist()}
        assert len(pids) == max(workers, 1)
        assert (os.getpid() in pids) == (workers == 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_collate_fn_gets_record_dicts_in_worker_processes(folder, workers):
    loader = ss.DataLoader(folder, 10, num_workers=workers, collate_fn=collated)
    rows = [row for batch in loader for row in batch]
    assert [(n, text) for n, text, _ in rows] == [(i, f"record number {i:05}") for i in range(N)]
    assert ({pid for _, _, pid in rows} == {os.getpid()}) == (workers == 0)


def test_state_counts_what_workers_delivered_not_what_they_hold(folder):
    loader = ss.DataLoader(folder, 8, shuffle=True, num_workers=2, transform=marked)
    iterator = iter(loader)
    seen = [n for _ in range(3) for n in next(iterator)["n"].tolist()]
    state = loader.state_dict()
    assert state["position"] == 24
    loader.close()
    other = ss.DataLoader(folder, 5, shuffle=True)
    other.load_state_dict(state)
    assert sorted(seen + [n for batch in other for n in batch["n"].tolist()]) == list(range(N))


def broken(batch):
    if 40 in batch["n"].tolist():
        raise KeyError("no forty")
    return batch


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_in_a_transform_comes_in_its_place(folder, workers):
    iterator = iter(ss.DataLoader(folder, 8, num_workers=workers, transform=broken))
    for step in range(5):
        assert next(iterator)["n"].tolist() == list(range(8 * step, 8 * step + 8))
    with pytest.raises(KeyError, match="no forty"):
        next(iterator)


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"sampler": [5, 5, 102, 0], "batch_size": 3},
        lambda: {
            "sampler": WeightedRandomSampler([1.0] * N, 30, generator=torch.Generator().manual_seed(1)),
            "batch_size": 8,
        },
        lambda: {"batch_sampler": [[3], [4, 5], [], [6]]},
        lambda: {"batch_sampler": BatchSampler(SequentialSampler(range(N)), 9, drop_last=True)},
    ],
)
def test_a_users_sampler_supplies_the_records(folder, make):
    expected = [list(map(int, batch)) for batch in torch.utils.data.DataLoader(range(N), **make(), collate_fn=list)]
    loader = ss.DataLoader(folder, **make(), return_ids=True)
    assert [batch["record_id"].tolist() for batch in loader] == expected
    assert len(loader) == len(expected)
    again = ss.DataLoader(folder, **make(), return_ids=True)
    iterator = iter(loader := ss.DataLoader(folder, **make(), return_ids=True))
    got = [next(iterator)["record_id"].tolist()]
    again.load_state_dict(loader.state_dict())
    assert got + [batch["record_id"].tolist() for batch in again] == expected


def test_a_users_sampler_numbers_the_records_of_a_view(folder):
    view = ss.open(folder).select(range(100, 20, -2))
    loader = ss.DataLoader(view, batch_size=3, sampler=[0, 39, 5, 5])
    assert [batch["n"].tolist() for batch in loader] == [[100, 22, 90], [90]]


@pytest.mark.parametrize("number", [103, -1, 1.5, "x"])
def test_a_sampler_that_gives_no_record_is_refused(folder, number):
    with pytest.raises(OptionError, match=r"the sampler gave .*; records are numbered by integers in \[0, 103\)"):
        list(ss.DataLoader(folder, sampler=[0, number]))


def test_a_trainer_may_make_it_anew_from_its_own_attributes(folder):
    loader = ss.DataLoader(folder, 8, shuffle=True, seed=3, rank=1, world_size=2, remainder="drop", return_ids=True)
    assert isinstance(loader.collate_fn, ColumnCollate)
    assert type(loader.batch_sampler) is BatchSampler
    assert isinstance(loader.sampler, ss.ShuffleSampler)
    again = ss.DataLoader(
        loader.dataset, batch_sampler=loader.batch_sampler, collate_fn=loader.collate_fn, num_workers=loader.num_workers,
        return_ids=loader.return_ids,
    )  # fmt: skip
    expected = [batch["record_id"].tolist() for batch in loader]
    again.set_epoch(0)
    assert [batch["record_id"].tolist() for batch in again] == expected
    assert len(again) == len(loader) == 6
    loader.sampler.set_epoch(0)
    assert [batch["record_id"].tolist() for batch in loader] == expected
    loader.set_epoch(0)
    assert list(loader.batch_sampler) == expected, "a plain torch loader over it delivers the same"
    with pytest.raises(OptionError, match="batches are columns"):
        loader.collate_fn([])


@pytest.mark.parametrize("layout", ["path", "open"])
@pytest.mark.parametrize("threads", [1, 2])
def test_bad_rows_are_skipped_by_the_row_alone(damaged, layout, threads):
    data = ss.open(damaged) if layout == "open" else damaged
    with pytest.raises(CorruptData):
        list(ss.DataLoader(data, 8))
    loader = ss.DataLoader(data, 8, on_error="skip", return_ids=True, transform=dict, transform_threads=threads)
    batches = [batch["record_id"].tolist() for batch in loader]
    assert batches == [[n for n in range(i, min(i + 8, N)) if n not in (17, 40)] for i in range(0, N, 8)]
    assert [bad.record_id for bad in loader.quarantine] == [17, 40]
    assert "was damaged" in loader.quarantine[0].cause
    for world in (2, 3):
        shares = [
            [
                b["record_id"].tolist()
                for b in ss.DataLoader(data, 8, True, on_error="skip", return_ids=True, rank=r, world_size=world)
            ]
            for r in range(world)
        ]
        assert len(set(map(len, shares))) == 1, "all ranks have equally many steps"
        assert sorted(n for share in shares for batch in share for n in batch) == [
            n for n in range(N) if n not in (17, 40)
        ]


def test_bad_rows_are_filled_with_the_next(damaged):
    loader = ss.DataLoader(damaged, 8, on_error="fill", return_ids=True)
    ids = [n for batch in loader for n in batch["record_id"].tolist()]
    assert ids == [n + 1 if n in (17, 40) else n for n in range(N)]
    assert [(bad.record_id, bad.replaced_by) for bad in loader.quarantine] == [(17, 18), (40, 41)]
    state = ss.DataLoader(damaged, 8, on_error="fill", return_ids=True)
    iterator = iter(state)
    for _ in range(3):
        next(iterator)
    after = ss.DataLoader(damaged, 5, on_error="fill", return_ids=True)
    after.load_state_dict(state.state_dict())
    assert [n for batch in after for n in batch["record_id"].tolist()] == ids[24:]


def test_a_column_that_is_whole_is_read_though_another_is_damaged(damaged):
    loader = ss.DataLoader(damaged, 8, columns=["n"])
    assert [n for batch in loader for n in batch["n"].tolist()] == list(range(N))


@pytest.mark.parametrize("argument", [{"seed_records": True}, {"completion_order": True}], ids=str)
def test_arguments_that_mean_nothing_here_are_refused(folder, argument):
    with pytest.raises(OptionError, match="is for data sets of other kinds"):
        ss.DataLoader(folder, 4, **argument)


def test_single_records_come_as_dicts(folder):
    rows = list(ss.DataLoader(folder, batch_size=None))
    assert [row["n"] for row in rows] == list(range(N))


def test_a_copy_goes_on_where_the_loader_is(folder):
    loader = ss.DataLoader(folder, 8, shuffle=True, seed=3, return_ids=True, layout="padded", columns=["n", "tokens"])
    iterator = iter(loader)
    next(iterator)
    other = pickle.loads(pickle.dumps(loader))
    rest = [batch["record_id"].tolist() for batch in iterator]
    got = list(other)
    assert [batch["record_id"].tolist() for batch in got] == rest
    assert list(got[0]) == ["n", "tokens", "record_id"]
