"""shuffle="blocks": the loader goes by the rolling block order, as exact as the global one and never by itself."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest

import shufflestore as ss
from shufflestore.dataset.dataset import BatchOptions
from shufflestore.errors import OptionError, StateError
from shufflestore.orders import kernels
from shufflestore.orders.blocks import BlockOrder
from shufflestore.testing import assert_epochs_differ, assert_exactly_once, assert_resumes_everywhere

N = 103


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("data") / "store")
    ss.convert([{"x": i, "text": f"record {i}"} for i in range(N)], path)
    return path


def loader_of(data, **options):
    sizes = {} if "state" in options else {"block_records": 8, "open_blocks": 3}
    options.pop("state", None)
    return ss.DataLoader(data, **{"batch_size": 4, "shuffle": "blocks", "seed": 5, **sizes, **options})


def xs(loader):
    return [x for batch in loader for x in batch["x"].tolist()]


def expected(epoch=0, records=8, opened=3, length=N):
    return BlockOrder(length, records, opened, 5, epoch).ids(np.arange(length)).tolist()


def test_epochs_have_the_block_orders_of_their_numbers(store):
    loader = loader_of(store)
    assert [xs(loader) for _ in range(3)] == [expected(epoch) for epoch in range(3)]
    assert len(loader) == 26


def test_payloads_belong_to_their_records(store):
    for batch in loader_of(store, return_ids=True):
        assert batch["x"].tolist() == batch["record_id"].tolist()
        assert batch["text"] == [f"record {i}" for i in batch["x"].tolist()]


def test_it_keeps_the_promises_of_every_order(store):
    def make(rank=0, world_size=1, batch_size=4):
        return loader_of(store, rank=rank, world_size=world_size, batch_size=batch_size)

    def ids(batch):
        return batch["x"].tolist()

    worlds = [{"world_size": world} for world in range(1, 8)]
    assert_exactly_once(make, ids, N, topologies=worlds)
    assert_epochs_differ(make, ids)
    assert_resumes_everywhere(make, ids, N, topologies=[{"world_size": 1}, {"world_size": 3, "batch_size": 7}])


@pytest.mark.parametrize("steps", range(27))
def test_it_goes_on_at_every_step_at_another_batch_and_world_size(store, steps):
    loader = loader_of(store)
    iterator = iter(loader)
    for _ in range(steps):
        next(iterator)
    state = json.loads(json.dumps(loader.state_dict()))
    assert state["order"] == "blocks:8:3"
    shares = []
    for rank in range(2):
        rest = loader_of(store, batch_size=5, rank=rank, world_size=2)
        rest.load_state_dict(state)
        shares.append(xs(rest))
    whole = expected()[4 * steps :]
    assert shares == [whole[0::2], whole[1::2]]


def test_sizes_that_nobody_gave_are_the_states(store):
    loader = loader_of(store)
    next(iter(loader))
    state = loader.state_dict()
    for options in ({}, {"block_records": 8}, {"open_blocks": 3}):
        rest = loader_of(store, state=True, **options)
        rest.load_state_dict(state)
        assert rest.state_dict() == state
        assert xs(rest) == expected()[4:]
        assert xs(rest) == expected(1), "and they stay"


@pytest.mark.parametrize("options", [{"block_records": 9}, {"open_blocks": 4}, {"block_records": 8, "open_blocks": 2}])
def test_sizes_that_were_given_must_be_the_states(store, options):
    loader = loader_of(store)
    next(iter(loader))
    rest = loader_of(store, state=True, **options)
    with pytest.raises(StateError, match="of order 'blocks:8:3', but the order here is 'blocks:"):
        rest.load_state_dict(loader.state_dict())
    assert rest.state_dict()["position"] == 0


@pytest.mark.parametrize(("shuffle", "name"), [(True, "global"), (False, "sequential")])
def test_states_of_other_orders_are_refused_both_ways(store, shuffle, name):
    blocks, other = loader_of(store), ss.DataLoader(store, 4, shuffle=shuffle, seed=5)
    with pytest.raises(StateError, match=f"of order '{name}', but the order here is 'blocks:8:3'"):
        blocks.load_state_dict(other.state_dict())
    with pytest.raises(StateError, match=f"of order 'blocks:8:3', but the order here is '{name}'"):
        other.load_state_dict(blocks.state_dict())


def test_a_copy_goes_on_where_it_was_made(store):
    for options in ({}, {"state": True}):
        loader = loader_of(store, **options)
        whole = xs(loader)
        loader.set_epoch(0)
        iterator = iter(loader)
        next(iterator)
        assert xs(copy.copy(loader)) == whole[4:]


# -- sizes where nobody says -----------------------------------------------------------------------


def test_blocks_of_our_own_data_are_about_a_mebibyte(tmp_path):
    rng = np.random.default_rng(0)
    ss.convert([{"x": rng.bytes(10_000)} for _ in range(300)], tmp_path / "s")
    data = ss.open(tmp_path / "s")
    assert data.block_records == 64, "104 records of 10 kB are a MiB, and 64 the power of two below"
    assert data.select(range(10)).block_records == 64
    assert ss.DataLoader(data, shuffle="blocks").state_dict()["order"] == "blocks:64:64"
    assert ss.DataLoader(data, shuffle="blocks", block_records=7).state_dict()["order"] == "blocks:7:64"
    assert ss.DataLoader(data, shuffle="blocks", open_blocks=7).state_dict()["order"] == "blocks:64:7"


def test_records_of_more_than_a_mebibyte_are_blocks_by_themselves_and_no_records_are_no_trouble(tmp_path):
    ss.convert([{"x": bytes(3_000_000)} for _ in range(3)], tmp_path / "large")
    assert ss.open(tmp_path / "large").block_records == 1
    with ss.Writer(tmp_path / "empty", schema=ss.open(tmp_path / "large").schema):
        pass
    assert ss.open(tmp_path / "empty").block_records >= 1
    assert list(ss.DataLoader(tmp_path / "empty", shuffle="blocks")) == []


def test_a_state_outlives_an_append_that_changes_the_size_nobody_gave(tmp_path):
    store = tmp_path / "s"
    ss.convert([{"x": i, "b": bytes(9_000)} for i in range(200)], store)
    loader = loader_of(store, state=True, columns=["x"])
    whole = xs(loader)
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    ss.convert([{"x": i, "b": bytes(90_000)} for i in range(200, 400)], store, if_exists="append")
    later = loader_of(store, state=True, columns=["x"])
    assert later.state_dict()["order"] != state["order"]
    later.load_state_dict(state)
    assert xs(later) == whole[4:]


def test_other_data_sets_need_the_size():
    with pytest.raises(OptionError, match="needs block_records= here"):
        ss.DataLoader(range(50), 4, shuffle="blocks")
    loader = ss.DataLoader(range(50), 4, shuffle="blocks", block_records=8, seed=5)
    assert [x for batch in loader for x in batch.tolist()] == expected(records=8, opened=64, length=50)


# -- elsewhere -------------------------------------------------------------------------------------


def test_the_sampler_gives_out_the_same_order():
    sampler = ss.ShuffleSampler(50, 1, 0, "blocks", 5, block_records=8, open_blocks=3)
    assert list(sampler) == expected(length=50)
    assert sampler.shuffle is True
    assert sampler.state_dict()["order"] == "blocks:8:3"
    ranks = [ss.ShuffleSampler(50, 2, r, "blocks", 5, block_records=8, open_blocks=3) for r in (0, 1)]
    assert [list(rank) for rank in ranks] == [expected(length=50)[0::2], expected(length=50)[1::2]]
    with pytest.raises(OptionError, match="needs block_records="):
        ss.ShuffleSampler(50, 1, 0, "blocks")


def test_a_loader_goes_by_a_sampler_of_blocks(store):
    data = ss.open(store)
    sampler = ss.ShuffleSampler(data, 1, 0, "blocks", 5, block_records=8, open_blocks=3, remainder="uneven")
    assert xs(ss.DataLoader(data, 4, sampler=sampler)) == expected()


def test_batches_without_torch_have_the_same_order(store):
    data = ss.open(store)
    options = BatchOptions(block_records=8, open_blocks=3)
    for epoch in range(2):
        batches = data.batches(4, "blocks", 5, epoch, options=options)
        assert [x for batch in batches for x in batch["x"].tolist()] == expected(epoch)
    assert sorted(x for batch in data.batches(4, shuffle="blocks") for x in batch["x"].tolist()) == list(range(N))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": "block"}, "shuffle='block'; allowed are"),
        ({"shuffle": True, "block_records": 8}, "block_records=8 goes with shuffle='blocks'"),
        ({"open_blocks": 8}, "open_blocks=8 goes with shuffle='blocks'"),
        ({"shuffle": "blocks", "block_records": 0}, "block_records=0; an integer"),
        ({"shuffle": "blocks", "open_blocks": 2.5}, "open_blocks=2.5; an integer"),
        ({"shuffle": "blocks", "reshuffle": "once"}, "reshuffle='once' keeps one global order"),
    ],
)
def test_what_makes_no_sense_is_refused(store, options, message):
    with pytest.raises(OptionError, match=message):
        ss.DataLoader(store, 4, **options)
    if "reshuffle" not in options:
        sizes = {name: options[name] for name in options.keys() - {"shuffle"}}
        with pytest.raises(OptionError, match=message):
            ss.open(store).batches(4, options.get("shuffle", False), options=BatchOptions(**sizes))


def test_the_kernel_of_families_is_compiled_once_it_pays(store, monkeypatch):
    monkeypatch.setattr("shufflestore.loader.course._COMPILE_BLOCKS_AFTER", 2 * N)
    monkeypatch.setattr(kernels, "_family_kernel", None)
    loader = loader_of(store)
    assert xs(loader) == expected()
    assert kernels._family_kernel is None
    assert [xs(loader) for _ in range(2)] == [expected(1), expected(2)]
    assert kernels._family_kernel is not None
