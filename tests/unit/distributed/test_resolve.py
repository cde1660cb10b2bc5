from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from shufflestore.distributed import resolve
from shufflestore.errors import OptionError
from shufflestore.orders.partition import Topology


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delitem(sys.modules, "torch.distributed", raising=False)


def test_given_goes_before_torch_before_the_launcher_before_alone(monkeypatch):
    assert resolve() == Topology(0, 1)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert resolve() == Topology(1, 2)
    group = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_rank=lambda: 3, get_world_size=lambda: 4
    )
    monkeypatch.setitem(sys.modules, "torch.distributed", group)
    assert resolve() == Topology(3, 4)
    assert resolve(0, 9) == Topology(0, 9)


@pytest.mark.parametrize(("rank", "world_size"), [(0, None), (None, 2)])
def test_half_a_topology_is_refused(rank, world_size):
    with pytest.raises(OptionError, match="both or neither"):
        resolve(rank, world_size)


@pytest.mark.parametrize(("rank", "world_size"), [(2, 2), (-1, 2), (0, 0)])
def test_an_impossible_topology_is_refused(rank, world_size):
    with pytest.raises(OptionError):
        resolve(rank, world_size)
