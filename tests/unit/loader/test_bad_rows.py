"""Records of anybody's data set that cannot be read: raised, skipped or filled, by the record alone."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import Dataset

import shufflestore as ss
from shufflestore.errors import OptionError

N = 103
WORKERS = pytest.mark.parametrize("workers", [0, 2])


class Damaged(Dataset):
    def __len__(self):
        return N

    def __getitem__(self, number):
        if number % 10 == 3:
            raise OSError(f"record {number} cannot be read")
        return number


class Mostly(Damaged):
    def __getitems__(self, numbers):
        return [self[number] for number in numbers]


def flat(loader):
    return [int(n) for batch in loader for n in (batch.tolist() if isinstance(batch, torch.Tensor) else batch)]


@WORKERS
@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("kind", [Damaged, Mostly])
def test_skipped_rows_leave_shorter_batches_and_a_report(kind, threads, workers):
    loader = ss.DataLoader(kind(), 8, on_error="skip", fetch_threads=threads, num_workers=workers)
    batches = [list(map(int, batch)) for batch in loader]
    assert batches == [[n for n in range(i, min(i + 8, N)) if n % 10 != 3] for i in range(0, N, 8)]
    assert [bad.record_id for bad in loader.quarantine] == list(range(3, N, 10))
    assert loader.quarantine[1].cause == "OSError: record 13 cannot be read"


@WORKERS
def test_filled_rows_are_the_next_that_can_be_read(workers):
    loader = ss.DataLoader(Damaged(), 8, on_error="fill", num_workers=workers)
    assert flat(loader) == [n + 1 if n % 10 == 3 else n for n in range(N)]
    assert [bad.replaced_by for bad in loader.quarantine] == list(range(4, N + 1, 10))


def test_a_batch_of_bad_rows_alone_is_empty_and_still_a_step():
    loader = ss.DataLoader(Damaged(), sampler=[3, 13, 23, 4], batch_size=2, on_error="skip")
    assert [list(batch) for batch in loader] == [[], [4]]


def test_nothing_readable_at_all_is_one_error():
    class Gone(Damaged):
        def __getitem__(self, number):
            raise OSError("gone")

    with pytest.raises(OptionError, match="none of them can be read either"):
        list(ss.DataLoader(Gone(), 8, on_error="fill"))
