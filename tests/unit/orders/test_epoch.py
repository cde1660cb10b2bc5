from __future__ import annotations

import pickle

import numpy as np
import pytest

from shufflestore.errors import OptionError, OrderError
from shufflestore.orders.epoch import ORDER_NAMES, GlobalOrder, OnceOrder, SequentialOrder, make_order
from tests.naive import orders as naive


@pytest.mark.parametrize("kind", ORDER_NAMES)
@pytest.mark.parametrize("length", [0, 1, 2, 100, 70_000])
def test_every_order_is_a_bijection_and_undoes_itself(kind, length):
    order = make_order(kind, length, seed=3, epoch=2)
    positions = np.arange(length, dtype=np.int64)
    ids = order.ids(positions)
    assert order.name == kind
    assert order.length == length
    assert ids.dtype == np.int64
    assert np.array_equal(np.sort(ids), positions)
    assert np.array_equal(order.positions(ids), positions)
    assert order.positions(ids).dtype == np.int64


@pytest.mark.parametrize("kind", ORDER_NAMES)
@pytest.mark.parametrize("bad", [-1, 100, 2**63 - 1])
def test_every_order_names_the_first_value_out_of_range(kind, bad):
    order = make_order(kind, 100)
    with pytest.raises(OrderError, match=rf"position {bad} \(entry 1\) is outside \[0, 100\)"):
        order.ids(np.array([0, bad]))
    with pytest.raises(OrderError, match=rf"id {bad} \(entry 1\)"):
        order.positions(np.array([0, bad]))


@pytest.mark.parametrize("kind", ORDER_NAMES)
def test_no_order_hands_out_the_callers_array(kind):
    positions = np.arange(10)
    ids = make_order(kind, 10).ids(positions)
    ids[:] = -1
    assert positions.tolist() == list(range(10))


def test_sequential_is_the_identity():
    assert SequentialOrder(5).ids(np.arange(5)).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(OrderError, match="length"):
        SequentialOrder(-1)


def test_global_changes_with_seed_epoch_and_word_and_once_with_the_seed_alone():
    everything = np.arange(50)

    def ids(order):
        return tuple(order.ids(everything).tolist())

    assert len({ids(GlobalOrder(50, seed, epoch)) for seed in range(5) for epoch in range(5)}) == 25
    assert ids(GlobalOrder(50, 0, 0, "images")) != ids(GlobalOrder(50, 0, 0))
    assert len({ids(make_order("once", 50, 1, epoch)) for epoch in range(5)}) == 1
    assert ids(make_order("once", 50, 1, 9)) == ids(make_order("global", 50, 1, 0))
    assert ids(make_order("once", 50, 1)) != ids(make_order("once", 50, 2))


def test_the_word_is_the_streams_and_part_of_the_name():
    assert GlobalOrder(9, word="text").name == "global:text"
    assert OnceOrder(9, word="text").name == "once:text"
    assert GlobalOrder(9, 1, 2, "text").ids(np.arange(9)).tolist() == naive.permute(list(range(9)), 9, 1, 2, "text")


@pytest.mark.parametrize("kind", ["", "Global", "shuffle", None, 3])
def test_an_unknown_order_is_refused_with_the_names(kind):
    with pytest.raises(OptionError, match="'sequential', 'global', 'once'"):
        make_order(kind, 10)


@pytest.mark.parametrize("kind", ORDER_NAMES)
def test_an_order_is_a_value_that_crosses_processes(kind):
    order = make_order(kind, 100, 1, 2)
    copy = pickle.loads(pickle.dumps(order))
    assert copy == order
    assert copy.ids(np.arange(100)).tolist() == order.ids(np.arange(100)).tolist()
