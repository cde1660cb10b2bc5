"""Who am I, by torch.distributed."""

from __future__ import annotations

__all__ = ["from_torch"]

import sys

from shufflestore.orders.partition import Topology


def from_torch() -> Topology | None:
    """Return the default process group's topology, or None if there is none.

    torch is never imported here: a program that has not imported torch.distributed has no process group.
    """
    module = sys.modules.get("torch.distributed")
    if module is None or not module.is_available() or not module.is_initialized():
        return None
    return Topology(int(module.get_rank()), int(module.get_world_size()))
