"""Batches of worker processes, which cross in memory that is used again: right for as long as anybody holds them."""

from __future__ import annotations

import gc
import itertools
import os

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, IterableDataset

import shufflestore as ss
from shufflestore.loader import segments
from tests.scenes import later_child

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded, use of fork:DeprecationWarning", "ignore:.*pin_memory.*:UserWarning"
)


class Pictures(Dataset):
    """Records whose batches take segments, beside small ones."""

    thread_safe = True

    def __init__(self, length: int = 80, side: int = 50) -> None:
        self.length, self.side = length, side

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        pixels = np.full((self.side, self.side, 3), number % 251, np.uint8)
        return {"number": number, "pixels": pixels, "mask": torch.ones(self.side, self.side, dtype=torch.bool)}


class Made(IterableDataset):
    def __iter__(self):
        return iter([torch.full((100_000,), i, dtype=torch.uint8) for i in range(20)])


def check(batch) -> list[int]:
    """Each image is that of its number."""
    numbers = batch["number"]
    assert (batch["pixels"] == (numbers % 251).to(torch.uint8).view(-1, 1, 1, 1)).all()
    assert batch["mask"].all()
    return numbers.tolist()


@pytest.mark.parametrize(("context", "threads"), [("fork", 1), ("fork", 4), ("spawn", 4), ("forkserver", 1)])
def test_every_batch_is_right_also_those_that_are_kept(context, threads):
    loader = ss.DataLoader(
        Pictures(), 8, shuffle=True, num_workers=2, multiprocessing_context=context, fetch_threads=threads
    )
    kept = list(loader)
    gc.collect()  # the workers are gone
    assert sorted(itertools.chain(*map(check, kept))) == list(range(80))


@pytest.mark.serial
def test_shared_files_with_names_do_as_well_and_are_taken_away():
    before, names = torch.multiprocessing.get_sharing_strategy(), set(os.listdir("/dev/shm"))
    torch.multiprocessing.set_sharing_strategy("file_system")
    try:
        kept = list(ss.DataLoader(Pictures(), 8, num_workers=2))
    finally:
        torch.multiprocessing.set_sharing_strategy(before)
    assert set(os.listdir("/dev/shm")) > names
    assert list(itertools.chain(*map(check, kept))) == list(range(80))
    del kept
    gc.collect()
    assert set(os.listdir("/dev/shm")) <= names


@pytest.mark.parametrize("more", [{"persistent_workers": True}, {"in_order": False}, {"pin_memory": True}], ids=str)
def test_epoch_after_epoch_in_the_same_memory(more):
    loader = ss.DataLoader(Pictures(), 8, shuffle=True, num_workers=2, fetch_threads=4, **more)
    for _ in range(3):
        iterator = iter(loader)
        assert sorted(i for batch in iterator for i in check(batch)) == list(range(80))
        assert len(iterator._segments) <= 2 * 2 * 6, "two tensors of at most six batches, of two workers"
        assert len(iterator._segments) > 0


def test_an_iterable_data_set_and_batches_made_by_the_user_too():
    loader = ss.DataLoader(Made(), None, num_workers=1)
    iterator = iter(loader)
    assert [int(x.float().mean()) for x in iterator] == list(range(20))
    assert 0 < len(iterator._segments) <= 6
    loader = ss.DataLoader(Pictures(), 8, num_workers=1, collate_fn=by_hand)
    assert torch.cat(list(loader)).float().mean().item() == pytest.approx(39.5)


def by_hand(records):
    return torch.stack([torch.from_numpy(record["pixels"]) for record in records])


def as_list(records):
    return [torch.from_numpy(record["pixels"][0].copy()) for record in records]


def test_a_list_of_small_tensors_takes_no_descriptors():
    before = len(os.listdir("/proc/self/fd"))
    iterator = iter(ss.DataLoader(Pictures(2000), 200, num_workers=1, collate_fn=as_list))
    kept = [next(iterator) for _ in range(8)]
    assert len(os.listdir("/proc/self/fd")) - before < 30, "as torch's loader would hold 1,600"
    assert all((x == (i % 251)).all() for i, x in enumerate(itertools.chain(*kept)))


def unsendable(records):
    return {"pixels": by_hand(records), "why": lambda: None}


@pytest.mark.parametrize("threads", [1, 4])
def test_a_batch_that_cannot_be_sent_is_an_error_and_no_hang(threads):
    loader = ss.DataLoader(Pictures(), 8, num_workers=2, collate_fn=unsendable, fetch_threads=threads, timeout=60)
    iterator = iter(loader)
    for _ in range(2):
        with pytest.raises(Exception, match=r"(?s)worker process [01], which cannot send the .*lambda"):
            next(iterator)


@pytest.mark.serial
def test_memory_in_dev_shm_is_given_back():
    def used() -> int:
        found = os.statvfs("/dev/shm")
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    before = used()
    loader = ss.DataLoader(Pictures(400, 300), 8, num_workers=2, fetch_threads=2)
    for batch in loader:
        check(batch)
    del batch
    gc.collect()
    assert used() - before < 16 << 20
    assert not segments._tables, "tables end with their iterators"


def negated(batch):
    batch["pixels"].values.__imul__(-1)  # its memory is the worker's, for as long as he looks at it
    return batch


def test_our_own_batches_go_into_workers_and_come_back_in_segments(tmp_path, monkeypatch):
    taken = []
    take = segments.SegmentPool.take
    monkeypatch.setattr(segments.SegmentPool, "take", lambda pool, size: taken.append(size) or take(pool, size))
    ss.convert(({"number": i, "pixels": np.full(3000, i, np.float32)} for i in range(400)), tmp_path / "data")
    loader = ss.DataLoader(tmp_path / "data", 10, shuffle=True, transform=negated, num_workers=2, format="numpy")
    kept = list(loader)
    assert len(taken) == 40, "by the parent, once a batch"
    numbers = np.concatenate([batch["number"] for batch in kept])
    assert sorted(numbers.tolist()) == list(range(400))
    assert (np.stack([batch["pixels"].values.reshape(10, 3000) for batch in kept]) == -numbers.reshape(40, 10, 1)).all()


def test_a_child_of_the_parent_keeps_the_batch_that_it_saw():
    iterator = iter(ss.DataLoader(Pictures(200), 8, num_workers=1))
    held = [next(iterator)["pixels"].numpy()]
    wanted = held[0].copy()

    def see() -> None:
        assert np.array_equal(held[0], wanted)

    with later_child(see) as code:
        held.clear()
        for batch in iterator:
            check(batch)
        assert code() == 0
