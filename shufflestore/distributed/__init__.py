"""Who am I: each file asks one source and makes a `Topology`; `resolve` asks them in turn."""

from __future__ import annotations

__all__ = ["from_environment", "from_torch", "resolve"]

from shufflestore.distributed.env import from_environment
from shufflestore.distributed.torchdist import from_torch
from shufflestore.errors import OptionError
from shufflestore.orders.partition import Topology


def resolve(rank: int | None = None, world_size: int | None = None) -> Topology:
    """Return who this process is: as given, else by torch.distributed, by the launcher, or alone.

    Args:
        rank: In [0, world_size), or None to find out.
        world_size: In [1, 2**31), or None to find out. Both are given or neither is.

    Raises:
        OptionError: One is given without the other, they are out of range, or the launcher's
            variables contradict themselves.

    >>> resolve(2, 8)
    Topology(rank=2, world_size=8)
    """
    if (rank is None) != (world_size is None):
        raise OptionError(f"rank={rank} and world_size={world_size}: give both or neither")
    if rank is not None and world_size is not None:
        return Topology(rank, world_size)
    return from_torch() or from_environment() or Topology()
