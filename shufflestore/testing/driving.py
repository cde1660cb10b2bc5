"""How a foreign loader is driven: made for every rank, told its epoch, read batch by batch."""

from __future__ import annotations

__all__ = [
    "Delivery",
    "Ids",
    "Make",
    "Step",
    "Topology",
    "WORLDS",
    "checked",
    "loaders_of",
    "set_epoch",
    "skip_to",
    "steps",
]

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from shufflestore.errors import OptionError

Make = Callable[..., Any]
"""Returns a new loader: make(rank=0, world_size=2, and the other names of a topology)."""
Ids = Callable[[Any], Iterable[int]]
"""The record ids of one batch, in the batch's order; an array or tensor of integers will do."""
Topology = Mapping[str, Any]
"""Keyword arguments for `make`. "world_size" is 1 if not given; "rank" is added."""

WORLDS: Final[tuple[Topology, ...]] = ({"world_size": 1}, {"world_size": 2}, {"world_size": 3})
"""The topologies that are tried if the caller names none."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """One batch that a loader returned: which records, and where that was."""

    ids: tuple[int, ...]
    rank: int
    batch: int


Step = list[Delivery]
"""What the ranks that were not at their end delivered in one step."""


def checked(topology: Topology) -> int:
    """Return the world size of a topology.

    Raises:
        OptionError: It names a rank, or its world size is no integer of at least 1.
    """
    world = topology.get("world_size", 1)
    if "rank" in topology:
        raise OptionError(f"topology {dict(topology)} names a rank; leave it out: all ranks are made in turn")
    if isinstance(world, bool) or not isinstance(world, (int, np.integer)) or world < 1:
        raise OptionError(f"topology {dict(topology)}: world_size {world!r} is not an integer of at least 1")
    return int(world)


def loaders_of(make: Make, topology: Topology) -> list[Any]:
    """Make the loader of every rank."""
    world = checked(topology)
    return [make(**{**topology, "rank": rank, "world_size": world}) for rank in range(world)]


def set_epoch(loader: Any, epoch: int) -> bool:
    """Call `set_epoch` wherever trainers look for it: the loader, its samplers, its data set.

    Returns:
        Whether it was anywhere.
    """
    batch_sampler = getattr(loader, "batch_sampler", None)
    places = [loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]
    told: list[Any] = []
    for place in [*places, getattr(loader, "dataset", None)]:
        if not any(place is before for before in told) and callable(getattr(place, "set_epoch", None)):
            place.set_epoch(epoch)
            told.append(place)
    return bool(told)


def skip_to(loader: Any, epoch: int) -> None:
    """Bring a new loader to the start of an epoch: by `set_epoch`, else by reading the epochs before."""
    if not set_epoch(loader, epoch):
        for _ in range(epoch):
            for _batch in loader:
                pass


def steps(loaders: Sequence[Any], ids: Ids, limit: int | None = None) -> Iterator[Step]:
    """Read one epoch of all ranks in step: each yields a batch before any yields its next one.

    Args:
        loaders: One a rank.
        ids: The ids of a batch.
        limit: Records, and steps, after which reading stops; None for no limit. A loader that never ends
            is then reported for what it repeats.

    Yields:
        The deliveries of one step: a rank that came to its end earlier is missing.

    Raises:
        OptionError: `ids` returned something that is not integers, or a loader cannot be iterated over.
    """
    running: dict[int, Iterator[Any]] = {}
    for rank, loader in enumerate(loaders):
        if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
            raise OptionError(f"make returned a {type(loader).__name__}, which cannot be iterated over")
        running[rank] = iter(loader)
    records = count = 0
    while running and (limit is None or max(records, count) <= limit):
        step: Step = []
        for rank in list(running):
            try:
                batch = next(running[rank])
            except StopIteration:
                del running[rank]
                continue
            step.append(Delivery(_ids_of(ids, batch), rank, count))
            records += len(step[-1].ids)
        count += 1
        if step:
            yield step


def _ids_of(ids: Ids, batch: Any) -> tuple[int, ...]:
    given = ids(batch)
    found = np.asarray(given if hasattr(given, "__len__") else list(given))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise OptionError(
            f"ids(batch) returned {found.dtype} of shape {found.shape}; a flat sequence of integers is needed, one a record"
        )
    return tuple(found.tolist())
