"""Data sets of torch's kind, and what a loader made of them as plain values: for tests that hold ours against torch's."""

from __future__ import annotations

import random
import time

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info


class Squares(Dataset):
    """Records that say which they are, and where they were made."""

    def __init__(self, length=37):
        self.length = length

    def __len__(self):
        return self.length

    def __getitem__(self, number):
        return {"n": number, "square": torch.tensor([number, number**2]), "text": f"record {number}"}


class Batched(Squares):
    def __getitems__(self, numbers):
        return [self[number] for number in numbers]


class Shared(Squares):
    thread_safe = True


class Where(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, number):
        info = get_worker_info()
        if info is None:
            return number, -1, -1, -1, False
        return number, info.id, info.num_workers, info.seed, info.dataset is self


class Drawn(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, number):
        return number, random.random(), float(torch.rand(())), float(np.random.random())


class Broken(Squares):
    def __getitem__(self, number):
        if number == 9:
            raise KeyError("record nine is broken")
        return super().__getitem__(number)


class Sleepy(Squares):
    def __getitem__(self, number):
        time.sleep(30 if number == 5 else 0)
        return f"record {number}"


class Stream(IterableDataset):
    def __init__(self, length=23):
        self.length = length

    def __iter__(self):
        info = get_worker_info()
        return iter(range(0 if info is None else info.id, self.length, 1 if info is None else info.num_workers))


class Sized(Stream):
    def __len__(self):
        return self.length


def plain(value):
    """Nested values as lists, tensors told from numbers."""
    if isinstance(value, torch.Tensor):
        return ("tensor", str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(plain, value)]
    return value


def batches(loader):
    return [plain(batch) for batch in loader]


def keep(records):
    return records


def total(records):
    return sum(record["n"] for record in records)


def seeded(worker):
    random.seed(1000 + worker)
