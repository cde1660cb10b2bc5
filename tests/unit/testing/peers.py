"""Loaders of ourselves and of others, each as its own documentation sets it up: what the proof kit is tried on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import datasets
import torch.utils.data
from datasets.distributed import split_dataset_by_node
from torch.utils.data import DataLoader, DistributedSampler

import shufflestore as ss

with warnings.catch_warnings():  # torchdata 0.11 imports what later versions of torch call old
    warnings.simplefilter("ignore")
    from torchdata.stateful_dataloader import StatefulDataLoader
    from torchdata.stateful_dataloader.sampler import RandomSampler as StatefulRandomSampler

BATCH = 8
ALONE = ({"world_size": 1},)


def plain(batch: Any) -> Iterable[int]:
    """A batch that is ids: a tensor, an array or a list of numbers."""
    return batch


def by_name(batch: Any) -> Iterable[int]:
    """A batch of columns, one of which is the ids."""
    return batch["id"]


@dataclass(frozen=True)
class Peer:
    """A kind of loader: for n records and batches of a size it gives what the kit asks for."""

    name: str
    make_for: Callable[..., Callable[..., Any]]
    ids: Callable[[Any], Iterable[int]] = plain
    worlds: tuple[dict[str, int], ...] = ({"world_size": 1}, {"world_size": 2}, {"world_size": 3})
    elsewhere: tuple[dict[str, int], ...] = worlds
    """Between which a run is resumed."""


def ours(folder: Any) -> Callable[..., Callable[..., Any]]:
    """The package's loader, over a store that holds the ids as a column."""

    def make_for(n: int, size: int = BATCH):
        path = folder / f"{n}"
        if not path.exists():
            ss.convert([{"id": i} for i in range(n)], path)

        def make(rank=0, world_size=1, batch_size=size):
            return ss.DataLoader(path, batch_size, shuffle=True, seed=1, rank=rank, world_size=world_size)

        return make

    return make_for


def torch_random(n, size=BATCH):
    """`shuffle=True`: the sampler's seed comes from torch's global generator. One rank only."""
    return lambda rank=0, world_size=1: DataLoader(range(n), size, shuffle=True)


def torch_generator(n, size=BATCH):
    """`shuffle=True` with a generator of its own. One rank only."""

    def make(rank=0, world_size=1):
        generator = torch.Generator()
        generator.manual_seed(1)
        return DataLoader(range(n), size, shuffle=True, generator=generator)

    return make


def torch_distributed(n, size=BATCH):
    """The sampler that every tutorial of DistributedDataParallel shows."""

    def make(rank=0, world_size=1):
        return DataLoader(range(n), size, sampler=DistributedSampler(range(n), world_size, rank, seed=1))

    return make


def stateful_distributed(n, size=BATCH):
    """torchdata's loader in torch's place, with the same sampler."""

    def make(rank=0, world_size=1, num_workers=0):
        sampler = DistributedSampler(range(n), world_size, rank, seed=1)
        return StatefulDataLoader(range(n), size, sampler=sampler, num_workers=num_workers)

    return make


def stateful_random(n, size=BATCH):
    """torchdata's loader with its own sampler and a generator. One rank only."""

    def make(rank=0, world_size=1, num_workers=0):
        generator = torch.Generator()
        generator.manual_seed(1)
        sampler = StatefulRandomSampler(range(n), generator=generator)
        return StatefulDataLoader(range(n), size, sampler=sampler, num_workers=num_workers)

    return make


def streamed(n: int) -> Any:
    """A Hugging Face iterable data set, as streaming gives one: records in stored order, in some files."""
    return datasets.Dataset.from_dict({"id": list(range(n))}).to_iterable_dataset(num_shards=6)


def hf_buffer(n, size=BATCH):
    """What streaming calls shuffle: a buffer, here of a quarter of the records, and the order of the files."""

    def make(rank=0, world_size=1):
        shuffled = streamed(n).shuffle(seed=1, buffer_size=max(2, n // 4))
        return split_dataset_by_node(shuffled, rank, world_size).batch(size)

    return make


def hf_in_order(n, size=BATCH):
    """The same without the shuffle."""
    return lambda rank=0, world_size=1: split_dataset_by_node(streamed(n), rank, world_size).batch(size)


OTHERS = [
    Peer("torch DataLoader, shuffle=True", torch_random, worlds=ALONE, elsewhere=ALONE),
    Peer("torch DataLoader, shuffle=True, generator", torch_generator, worlds=ALONE, elsewhere=ALONE),
    Peer("torch DataLoader, DistributedSampler", torch_distributed),
    Peer(
        "torchdata StatefulDataLoader, its RandomSampler, generator",
        stateful_random,
        worlds=ALONE,
        elsewhere=({"num_workers": 0}, {"num_workers": 2}),
    ),
    Peer("torchdata StatefulDataLoader, DistributedSampler", stateful_distributed),
    Peer("Hugging Face IterableDataset.shuffle(buffer_size)", hf_buffer, by_name),
    Peer("Hugging Face IterableDataset, not shuffled", hf_in_order, by_name),
]
