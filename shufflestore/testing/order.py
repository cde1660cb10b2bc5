"""Promises about the order itself: another each epoch, the promised one, and none of the program's doing."""

from __future__ import annotations

__all__ = ["assert_epochs_differ", "assert_ignores_global_rng", "assert_order_golden"]

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import combinations
from typing import Any

import numpy as np

from shufflestore.errors import OptionError
from shufflestore.testing.delivery import some, told
from shufflestore.testing.driving import WORLDS, Ids, Make, Topology, loaders_of, set_epoch, skip_to, steps

_LEAST = 20
"""Records below which equal places prove nothing."""


def assert_epochs_differ(
    make: Make,
    ids: Ids,
    *,
    topologies: Sequence[Topology] = WORLDS[:1],
    epochs: int = 3,
    calls_set_epoch: bool = True,
) -> None:
    """Assert that no two of the first epochs have the same order, or much the same.

    In a true shuffle, one record on average has the same place in two epochs, and eleven or more have it
    once in 40 million pairs. So a pair fails if more than 10 records and more than a tenth of all do.

    Args:
        make: Returns a new loader of one rank.
        ids: Returns the ids of a batch.
        topologies: To be tried, each by itself.
        epochs: To be compared, each with each; at least 2.
        calls_set_epoch: Whether `set_epoch` is called before each epoch, on the loader, its samplers and its data
            set, whichever have it. Say False if your training loop does not.

    Raises:
        AssertionError: Two epochs agree; which, how far, and their first ids are named.
        OptionError: Less than 20 records, too few to tell, or an argument makes no sense.
    """
    if epochs < 2:
        raise OptionError(f"epochs={epochs}; at least 2 are needed, to be compared")
    for topology in some(topologies):
        loaders = loaders_of(make, topology)
        orders = []
        for epoch in range(epochs):
            if calls_set_epoch:
                for loader in loaders:
                    set_epoch(loader, epoch)
            orders.append(_order(loaders, ids))
        if min(map(len, orders)) < _LEAST:
            raise OptionError(f"an epoch of {min(map(len, orders))} records is too short to tell; {_LEAST} are needed")
        for (a, first), (b, second) in combinations(enumerate(orders), 2):
            same = sum(x == y for x, y in zip(first, second, strict=False))
            if same > max(10, len(first) // 10):
                raise AssertionError(
                    f"{told(topology)}: epochs {a} and {b} have {same} of {len(first)} records in the same place; a true "
                    f"shuffle has one. They begin with {first[:8]} and {second[:8]}"
                )


def assert_order_golden(
    make: Make, ids: Ids, golden: Sequence[int], *, topology: Topology = WORLDS[0], epoch: int = 0
) -> None:
    """Assert that an epoch's order begins as it did when the golden ids were written down.

    It is the order in which all ranks together deliver: step by step, rank by rank, in each batch as it is.

    Args:
        make: Returns a new loader of one rank.
        ids: Returns the ids of a batch.
        golden: The first ids, or all of them; at least one.
        topology: In which the loaders are made.
        epoch: At least 0. It is set where the loader, its samplers or its data set have `set_epoch`; else the
            epochs before it are read.

    Raises:
        AssertionError: The order begins otherwise; the first place where it differs is named.
        OptionError: No golden ids, or a negative epoch.

    >>> assert_order_golden(lambda rank, world_size: [[2, 0], [1]], lambda batch: batch, [2, 0, 1])
    >>> assert_order_golden(lambda rank, world_size: [[2, 0], [1]], lambda batch: batch, [2, 1])
    Traceback (most recent call last):
    AssertionError: world_size=1, epoch 0: place 1 of the order holds 0, the golden order 1 there; it begins with [2, 0]
    """
    expected = [int(i) for i in golden]
    if not expected or epoch < 0:
        raise OptionError(f"{len(expected)} golden ids, epoch={epoch}; at least one id and an epoch from 0 are needed")
    loaders = loaders_of(make, topology)
    for loader in loaders:
        skip_to(loader, epoch)
    found = _order(loaders, ids, len(expected))
    for place, i in enumerate(expected):
        there = found[place] if place < len(found) else "nothing: the epoch is over"
        if there != i:
            raise AssertionError(
                f"{told(topology)}, epoch {epoch}: place {place} of the order holds {there}, the golden order {i} there; "
                f"it begins with {found[: min(len(expected), 8)]}"
            )


def assert_ignores_global_rng(
    make: Make,
    ids: Ids,
    *,
    topologies: Sequence[Topology] = WORLDS[:1],
    epochs: int = 2,
    leaves_it_alone: bool = False,
) -> None:
    """Assert that the order does not depend on the global generators of random, numpy and torch.

    Such an order changes with the model's initialisation, with an augmentation, or with another library's
    call, and differs from rank to rank. The loaders are made and read twice: after seeding the generators
    with 1, and after seeding them with 2 and drawing from them between the steps. torch's is included if
    the program has loaded torch. The generators are put back as they were.

    Args:
        make: Returns a new loader of one rank.
        ids: Returns the ids of a batch.
        topologies: To be tried, each by itself.
        epochs: To be read, at least 1.
        leaves_it_alone: Also assert that reading draws nothing from them. torch's own loader draws a seed for its
            workers each epoch, unless it is given a generator.

    Raises:
        AssertionError: The orders differ, or a generator was drawn from; the first difference is named.
        OptionError: An argument makes no sense.
    """
    if epochs < 1:
        raise OptionError(f"epochs={epochs}; at least 1 is needed")
    for topology in some(topologies):
        orders = [_order_after(seed, make, ids, topology, epochs, leaves_it_alone) for seed in (1, 2)]
        for epoch, (first, second) in enumerate(zip(*orders, strict=True)):
            for place in range(max(len(first), len(second))):
                a, b = (order[place] if place < len(order) else "nothing" for order in (first, second))
                if a != b:
                    raise AssertionError(
                        f"{told(topology)}, epoch {epoch}: the order depends on a global generator: place {place} holds "
                        f"{a} with the generators seeded with 1, {b} with another seed and draws between the steps"
                    )


def _order(loaders: Sequence[Any], ids: Ids, most: int | None = None) -> list[int]:
    """The ids of an epoch as all ranks deliver them, or the first of them."""
    order: list[int] = []
    for step in steps(loaders, ids):
        for each in step:
            order.extend(each.ids)
        if most is not None and len(order) >= most:
            break
    return order


def _order_after(
    seed: int, make: Make, ids: Ids, topology: Topology, epochs: int, leaves_it_alone: bool
) -> list[list[int]]:
    orders = []
    with _seeded(seed):
        loaders = loaders_of(make, topology)
        for epoch in range(epochs):
            for loader in loaders:
                set_epoch(loader, epoch)
            before = _fingerprints()
            order: list[int] = []
            for step in steps(loaders, ids):
                for each in step:
                    order.extend(each.ids)
                if leaves_it_alone and (
                    touched := [name for name, at in _fingerprints().items() if at != before[name]]
                ):
                    raise AssertionError(
                        f"{told(topology)}, epoch {epoch}: reading drew from the global generator of {', '.join(touched)}"
                    )
                if seed != 1:
                    _draw()
                    before = _fingerprints()
            orders.append(order)
    return orders


def _torch() -> Any:
    return sys.modules.get("torch")


def _draw() -> None:
    random.random()
    np.random.random()
    if (torch := _torch()) is not None:
        torch.rand(1)


def _fingerprints() -> dict[str, Any]:
    """The states of the global generators, comparable."""
    name, words, *rest = np.random.get_state()
    found = {"random": random.getstate(), "numpy": (name, np.asarray(words).tobytes(), *rest)}
    if (torch := _torch()) is not None:
        found["torch"] = torch.get_rng_state().numpy().tobytes()
    return found


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the global generators, and put them back as they were."""
    torch = _torch()
    kept = random.getstate(), np.random.get_state(), None if torch is None else torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    if torch is not None:
        torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        if torch is not None:
            torch.set_rng_state(kept[2])
