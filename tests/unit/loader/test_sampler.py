"""ShuffleSampler stands for torch's two samplers: exact, O(1), the same at any world size, resumable."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler
from torch.utils.data.distributed import DistributedSampler

import shufflestore as ss
from shufflestore.errors import OptionError, OrderError, StateError
from shufflestore.orders.epoch import make_order

N = 103


def ranks(world, **more):
    return [ss.ShuffleSampler(range(N), world, rank, seed=7, **more) for rank in range(world)]


def interleaved(shares):
    """What all ranks gave out, in the order of the whole."""
    longest = max(map(len, shares))
    return [share[i] for i in range(longest) for share in shares if i < len(share)]


def test_trainers_take_it_for_a_distributed_sampler():
    sampler = ss.ShuffleSampler(range(N), 4, 1)
    assert isinstance(sampler, DistributedSampler)
    assert (sampler.num_replicas, sampler.rank, sampler.epoch, sampler.num_samples) == (4, 1, 0, 26)
    assert sampler.total_size == 104
    assert not sampler.drop_last
    assert sampler.shuffle


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("remainder", ["pad", "drop", "uneven"])
def test_ranks_share_the_global_order_in_turn(world, remainder):
    shares = [list(sampler) for sampler in ranks(world, remainder=remainder)]
    order = make_order("global", N, 7, 0).ids(np.arange(N)).tolist()
    whole = interleaved(shares)
    if remainder == "uneven":
        assert whole == order
    elif remainder == "drop":
        assert whole == order[: N // world * world]
    else:
        assert whole == order + order[: -N % world]
    assert [len(s) for s in ranks(world, remainder=remainder)] == [len(share) for share in shares]


def test_padding_and_dropping_are_by_whole_batches_where_the_batch_size_is_known():
    shares = [list(s) for s in ranks(2, remainder="drop", batch_size=25)]
    assert [len(share) for share in shares] == [50, 50]
    shares = [list(s) for s in ranks(2, remainder="pad", batch_size=25)]
    assert [len(share) for share in shares] == [75, 75]


def test_uneven_shares_that_would_leave_a_rank_without_its_last_batch_are_refused():
    bad = ss.ShuffleSampler(range(101), 4, 0, remainder="uneven", batch_size=25)
    with pytest.raises(OptionError, match="ranks get 1 or 2 batches"):
        iter(bad)
    assert len(list(ss.ShuffleSampler(range(101), 4, 0, remainder="uneven", batch_size=20))) == 26


def test_each_epoch_is_another_order_by_itself_or_as_set():
    sampler = ss.ShuffleSampler(N, seed=7)
    first, second = list(sampler), list(sampler)
    assert sorted(first) == sorted(second) == list(range(N))
    assert first != second
    sampler.set_epoch(0)
    assert list(sampler) == first
    fixed = ss.ShuffleSampler(N, seed=7, reshuffle="once")
    assert list(fixed) == list(fixed) == first
    assert list(ss.ShuffleSampler(N, shuffle=False)) == list(range(N))


@pytest.mark.parametrize("taken", [0, 1, 17, 51])
@pytest.mark.parametrize("world", [1, 2, 5])
def test_a_state_resumes_exactly_at_another_world_size(taken, world):
    samplers = ranks(2, remainder="uneven")
    iterators = [iter(sampler) for sampler in samplers]
    before = interleaved([[next(iterator) for _ in range(taken)] for iterator in iterators])
    states = [sampler.state_dict() for sampler in samplers]
    assert states[0] == states[1]
    assert len(json.dumps(states[0])) < 1024
    after = []
    for rank in range(world):
        sampler = ss.ShuffleSampler(range(N), world, rank, remainder="uneven")
        sampler.load_state_dict(json.loads(json.dumps(states[0])))
        after.append(list(sampler))
    assert before + interleaved(after) == make_order("global", N, 7, 0).ids(np.arange(N)).tolist()


def test_a_loader_that_draws_ahead_says_how_many_records_arrived():
    sampler = ss.ShuffleSampler(range(N), seed=7)
    iterator = iter(torch.utils.data.DataLoader(range(N), 4, sampler=sampler, num_workers=2))
    got = [n for _ in range(5) for n in next(iterator).tolist()]
    assert sampler.state_dict()["position"] > 20
    fresh = ss.ShuffleSampler(range(N))
    fresh.load_state_dict(sampler.state_dict(delivered=20))
    assert sorted(got + list(fresh)) == list(range(N))
    with pytest.raises(OrderError, match="104 delivered records are outside"):
        sampler.state_dict(delivered=104)


def test_states_of_other_data_seeds_and_orders_are_refused():
    state = ss.ShuffleSampler(range(N), seed=7).state_dict()
    for other, words in (
        (ss.ShuffleSampler(range(N - 1)), "data set"),
        (ss.ShuffleSampler(range(N), seed=8), "seed 7"),
        (ss.ShuffleSampler(range(N), shuffle=False), "order 'global'"),
    ):
        with pytest.raises(StateError, match=words):
            other.load_state_dict(state)


def test_it_stands_in_a_plain_torch_loader_and_a_batch_sampler():
    sampler = ss.ShuffleSampler(range(N), 2, 1, drop_last=True)
    batches = list(BatchSampler(sampler, 10, drop_last=False))
    sampler.set_epoch(0)
    loader = torch.utils.data.DataLoader(range(N), 10, sampler=sampler)
    assert [batch.tolist() for batch in loader] == batches
    assert len(loader) == 6


def test_it_copies_and_travels():
    sampler = ss.ShuffleSampler(range(N), seed=3)
    assert list(pickle.loads(pickle.dumps(sampler))) == list(sampler)


def test_a_billion_records_cost_nothing():
    sampler = ss.ShuffleSampler(10**9, seed=1)
    assert len(sampler) == 10**9
    iterator = iter(sampler)
    seen = [next(iterator) for _ in range(1000)]
    assert len(set(seen)) == 1000
    assert max(seen) > 9 * 10**8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset": object()}, "a length, or a number of records"),
        ({"dataset": -1}, "dataset=-1"),
        ({"dataset": 5, "remainder": "some"}, "remainder='some'"),
        ({"dataset": 5, "reshuffle": "never"}, "reshuffle='never'"),
        ({"dataset": 5, "num_replicas": 2}, "give both or neither"),
        ({"dataset": 5, "num_replicas": 2, "rank": 2}, "rank 2"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, words):
    with pytest.raises(OptionError, match=words):
        ss.ShuffleSampler(**arguments)
