from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from shufflestore.distributed.torchdist import from_torch
from shufflestore.orders.partition import Topology


def stand_in(*, is_available=True, is_initialized=True):
    return SimpleNamespace(
        is_available=lambda: is_available,
        is_initialized=lambda: is_initialized,
        get_rank=lambda: 2,
        get_world_size=lambda: 5,
    )


def test_without_torch_there_is_no_group_and_torch_stays_unimported(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch.distributed", raising=False)
    before = set(sys.modules)
    assert from_torch() is None
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("module", "topology"),
    [
        (stand_in(), Topology(2, 5)),
        (stand_in(is_initialized=False), None),
        (stand_in(is_available=False), None),
    ],
)
def test_an_initialised_group_says_who_this_is(monkeypatch, module, topology):
    monkeypatch.setitem(sys.modules, "torch.distributed", module)
    assert from_torch() == topology


def test_the_real_torch_is_asked_as_it_wants_to_be(tmp_path):
    distributed = pytest.importorskip("torch.distributed")
    assert from_torch() is None
    store = f"file://{tmp_path}/store"
    distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        assert from_torch() == Topology(0, 1)
    finally:
        distributed.destroy_process_group()
