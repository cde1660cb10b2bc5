"""What was delivered against what should have been: nothing lost, nothing twice, nothing foreign."""

from __future__ import annotations

__all__ = ["assert_exactly_once", "check_delivered", "expected_ids", "limit_of", "some", "told"]

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from shufflestore.errors import OptionError
from shufflestore.testing.driving import WORLDS, Ids, Make, Topology, loaders_of, set_epoch, steps

_NAMED = 8
"""Ids that a message names of each kind; the count tells of the others."""


def assert_exactly_once(
    make: Make,
    ids: Ids,
    records: int | Iterable[int],
    *,
    topologies: Sequence[Topology] = WORLDS,
    epochs: int = 2,
) -> None:
    """Assert that each epoch delivers every record exactly once over all ranks.

    Each topology's loaders are made once and read for so many epochs; before each, `set_epoch` is called on
    the loader, its samplers and its data set, whichever have it. A loader that pads or drops the remainder
    fails, by design, where the records fill no whole number of batches.

    Args:
        make: Returns a new loader of one rank.
        ids: Returns the ids of a batch.
        records: How many, n, if their ids are 0 .. n - 1; else the ids.
        topologies: To be tried, each by itself.
        epochs: To be read, at least 1.

    Raises:
        AssertionError: Records were lost, repeated or foreign; ids, counts, ranks and batches are named.
        OptionError: An argument makes no sense.

    Cost: every epoch of every topology is read once; O(records) memory.

    >>> def make(rank, world_size):
    ...     return [[i, i + 1] for i in range(0, 8, 2)][rank::world_size]
    >>> assert_exactly_once(make, lambda batch: batch, 8)
    >>> assert_exactly_once(make, lambda batch: batch, 9, topologies=[{"world_size": 2}])
    Traceback (most recent call last):
    AssertionError: world_size=2, epoch 0: 8 records delivered, 9 expected; 1 lost: 8
    """
    expected = expected_ids(records)
    if epochs < 1:
        raise OptionError(f"epochs={epochs}; at least 1 is needed")
    for topology in some(topologies):
        loaders = loaders_of(make, topology)
        for epoch in range(epochs):
            for loader in loaders:
                set_epoch(loader, epoch)
            delivered = [
                (f"rank {each.rank} batch {each.batch}", each.ids)
                for step in steps(loaders, ids, limit_of(expected))
                for each in step
            ]
            check_delivered(f"{told(topology)}, epoch {epoch}", expected, delivered)


def expected_ids(records: int | Iterable[int]) -> frozenset[int]:
    """Return the ids that an epoch should deliver.

    Raises:
        OptionError: A negative count, no record at all, or an id that stands there twice.
    """
    given = np.asarray(list(records) if isinstance(records, Iterable) else range(records))
    found = frozenset(given.tolist())
    if not found or len(found) != given.size:
        raise OptionError(
            f"records: {given.size} ids, {len(found)} of them different; give at least one, and each of them once"
        )
    return found


def limit_of(expected: Collection[int]) -> int:
    """Return after how many records of an epoch a loader is taken to have no end."""
    return 3 * len(expected) + 100


def told(topology: Topology) -> str:
    """Return a topology as a message names it."""
    return ", ".join(f"{name}={value!r}" for name, value in {"world_size": 1, **topology}.items())


def check_delivered(what: str, expected: Collection[int], delivered: Iterable[tuple[str, Collection[int]]]) -> None:
    """Assert that the batches hold each expected id once.

    Args:
        what: Where we are: the beginning of the message.
        expected: Ids; membership is asked for.
        delivered: Of each batch a name for where it came, and its ids.

    Raises:
        AssertionError: They do not.
    """
    places: dict[int, list[str]] = {}
    count = 0
    for place, batch in delivered:
        count += len(batch)
        for i in batch:
            places.setdefault(i, []).append(place)
    lost = sorted(i for i in expected if i not in places)
    repeated = sorted(i for i in places if len(places[i]) > 1)
    foreign = sorted(i for i in places if i not in expected)
    if not lost and not repeated and not foreign:
        return
    said = []
    if lost:
        said.append(f"{len(lost)} lost: {_list(map(str, lost), len(lost))}")
    for kind, found in (("repeated", repeated), ("foreign", foreign)):
        if found:
            named = (f"{i} ({_list(places[i], len(places[i]))})" for i in found)
            said.append(f"{len(found)} {kind}: {_list(named, len(found))}")
    raise AssertionError(f"{what}: {count} records delivered, {len(expected)} expected; " + "; ".join(said))


def _list(items: Iterable[str], count: int) -> str:
    shown = [item for _, item in zip(range(_NAMED), items)]  # noqa: B905 - the shorter one ends it
    return ", ".join(shown) + (f" and {count - _NAMED} more" if count > _NAMED else "")


def some(topologies: Sequence[Topology]) -> Sequence[Topology]:
    """Return the topologies.

    Raises:
        OptionError: There is none.
    """
    if not topologies:
        raise OptionError("topologies is empty, so that nothing would be tried; give at least one")
    return topologies
