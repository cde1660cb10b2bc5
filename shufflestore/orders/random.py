"""Randomness that belongs to a record, not to the process that happens to work on it."""

from __future__ import annotations

__all__ = ["record_rng"]

import numpy as np

from shufflestore.errors import OptionError
from shufflestore.orders.keys import GOLDEN, mix64

_PURPOSE = 0x7265636F72642121  # b"record!!": a stream apart from every order's


def record_rng(seed: int, epoch: int, record_id: int) -> np.random.Generator:
    """Return the random generator of one record in one epoch.

    It depends on the three numbers alone, so an augmentation comes out the same at any number of
    workers, ranks and threads, and after a resume. For one seed no two (epoch, record) pairs share a
    stream: half of the Philox key is a bijection of the epoch, the other half of the record.

    Args:
        seed: Any integer, taken modulo 2**64.
        epoch: In [0, 2**64).
        record_id: In [0, 2**64).

    Returns:
        A generator of its own, at its beginning. Its raw bits are promised across versions; what
        methods such as `normal` make of them is numpy's promise.

    Raises:
        OptionError: `epoch` or `record_id` is out of range.

    About 20 us; for more than one draw a record keep the generator.
    Method: Philox-4x64-10, Salmon and others, SC 2011.

    >>> record_rng(0, 1, 7).integers(1000, size=3).tolist() == record_rng(0, 1, 7).integers(1000, size=3).tolist()
    True
    """
    for name, value in (("epoch", epoch), ("record_id", record_id)):
        if not 0 <= value < 2**64:
            raise OptionError(f"{name} {value} is outside [0, 2**64)")
    state = mix64(int(seed) + GOLDEN)
    state = mix64((state ^ int(epoch)) + 2 * GOLDEN)
    state = mix64((state ^ _PURPOSE) + 3 * GOLDEN)
    key = np.array([state, mix64(int(record_id) + GOLDEN)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
