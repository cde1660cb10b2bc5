"""Exactly once, through the real loader over real files: any length, world, batch, remainder, chain of resumes (A2, A4, A5)."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import shufflestore as ss
from shufflestore.orders.epoch import make_order
from tests.naive import orders as naive
from tests.scenes import SCALE

MOST = 520
LENGTHS = [0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 65, 127, 128, 129, 256, 509, MOST]
REMAINDERS = ["drop", "pad", "uneven"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of very different lengths, empty ones too; every shorter set is a view of their head."""
    folder = tmp_path_factory.mktemp("once") / "data"
    folder.mkdir()
    edges = [0, 0, 1, 1, 40, 41, 300, 300, 512, MOST, MOST]
    schema = pa.schema([("label", pa.int64())])
    for i in range(len(edges) - 1):
        with pa.OSFile(str(folder / f"{i:02}.arrow"), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_table(pa.table({"label": range(edges[i], edges[i + 1])}, schema=schema), max_chunksize=17)
    ss.index(folder)
    with ss.open(folder) as data:
        yield data


def loader_of(data, batch, rank=0, world=1, remainder="uneven", **options):
    return ss.DataLoader(
        data, batch, shuffle=True, format="numpy", return_ids=True, rank=rank, world_size=world, remainder=remainder,
        **options,
    )  # fmt: skip


def taken(loader) -> list[list[int]]:
    found = []
    for batch in loader:
        ids = batch["record_id"].tolist()
        assert batch["label"].tolist() == ids
        found.append(ids)
    return found


# Batches around the edges: divisors, one off, larger than the set.
sizes = st.one_of(st.sampled_from([1, 2, 3, 5, 8, 16, 64, 128, 4_096]), st.integers(1, 600))
worlds = st.one_of(st.sampled_from([1, 2, 3, 4, 8, 64]), st.integers(1, 64))
lengths = st.one_of(st.sampled_from(LENGTHS), st.integers(0, MOST))
seeds = st.integers(0, 2**64 - 1)


def one_epoch(whole, length, world, batch, remainder, seed, epoch) -> None:
    data = whole.select(range(length))
    order = make_order("global", length, seed, epoch).ids(np.arange(length)).tolist() if length else []
    expected = naive.partition(length, batch, world, remainder)
    ranks = sorted({0, world - 1, world // 2, *range(min(world, 3))})
    shares = {}
    for rank in ranks:
        loader = loader_of(data, batch, rank, world, remainder, seed=seed, prefetch_bytes=1 << 10)
        loader.set_epoch(epoch)
        shares[rank] = taken(loader)
        assert len(shares[rank]) == len(loader) == len(expected[rank]), "steps are known before and equal"
        assert shares[rank] == [[order[p] for p in step] for step in expected[rank]]
    if len(ranks) == world:
        every = sorted(i for share in shares.values() for ids in share for i in ids)
        padded = math.ceil(length / (world * batch)) * world * batch
        if remainder == "uneven":
            assert every == list(range(length))
        elif remainder == "drop":
            assert every == sorted(order[: length // (world * batch) * world * batch])
        else:
            assert every == sorted(order[p % length] for p in range(padded))


case = {
    "length": lengths, "world": worlds, "batch": sizes, "remainder": st.sampled_from(REMAINDERS), "seed": seeds,
    "epoch": st.integers(0, 5),
}  # fmt: skip


@settings(max_examples=350, deadline=None)
@given(**case)
@example(length=0, world=3, batch=4, remainder="pad", seed=0, epoch=0)
@example(length=1, world=64, batch=4_096, remainder="pad", seed=1, epoch=0)
@example(length=MOST, world=4, batch=130, remainder="drop", seed=2, epoch=1)
def test_each_rank_delivers_its_share_of_each_epoch_exactly_once(whole, length, world, batch, remainder, seed, epoch):
    one_epoch(whole, length, world, batch, remainder, seed, epoch)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_campaign_each_rank_delivers_its_share_exactly_once(whole):
    cases = 0

    @settings(max_examples=int(20_000 * SCALE), deadline=None)
    @given(**case)
    def run(**chosen) -> None:
        nonlocal cases
        cases += 1
        one_epoch(whole, **chosen)

    run()
    print(f"{cases:,} partitions, 0 lost, 0 extra")


link = st.fixed_dictionaries(
    {
        "world": st.integers(1, 5), "batch": st.integers(1, 40), "steps": st.integers(0, 30),
        "saver": st.integers(0, 4), "in_flight": st.booleans(), "way": st.sampled_from(["state", "iterator", "none"]),
    }
)  # fmt: skip


def chain(whole, length, seed, links) -> int:
    """Save and resume again and again, changing world and batch size; return how many records were delivered."""
    data = whole.select(range(length))
    state, delivered = None, []
    for one in [*links, {"world": 2, "batch": 7, "steps": 10**6, "saver": 0, "in_flight": False, "way": "state"}]:
        world = one["world"]
        loaders = [
            loader_of(data, one["batch"], rank, world, seed=seed, prefetch_bytes=(1 << 20) if one["in_flight"] else 0)
            for rank in range(world)
        ]
        for loader in loaders:
            if state is not None:
                loader.load_state_dict(json.loads(json.dumps(state)))
        assert len({loader.remaining for loader in loaders}) == 1
        steps = min(one["steps"], loaders[0].remaining)
        shares = []
        for loader in loaders:
            iterator = iter(loader)
            shares.append([next(iterator)["record_id"].tolist() for _ in range(steps)])
            if one["way"] == "iterator":
                loader.close()
            elif one["way"] == "none":
                del iterator
        states = [loader.state_dict() for loader in loaders]
        assert all(s == states[0] for s in states), "any rank's state serves all"
        assert len(json.dumps(states[0])) <= 1024
        epoch = states[0]["epoch"]
        for step in range(steps):
            rows = [share[step] for share in shares]
            # Rank r of W has position g + r, g + r + W, ...: dealt back, they are the order.
            delivered += [(epoch, row[k]) for k in range(len(rows[0])) for row in rows if k < len(row)]
        state = states[0]
        if state["position"] == length and one["steps"] < 10**6:
            follower = loader_of(data, 1, seed=seed)
            follower.load_state_dict(state)
            assert taken(follower) == [], "nothing is left of that epoch"
            iter(follower)
            state = follower.state_dict()
            assert (state["epoch"], state["position"]) == (epoch + 1, 0)
    expected = [
        (epoch, i)
        for epoch in range(state["epoch"] + 1)
        for i in make_order("global", length, seed, epoch).ids(np.arange(length)).tolist()
    ]
    assert delivered == expected
    return len(delivered)


@settings(max_examples=120, deadline=None)
@given(length=st.integers(1, 300), seed=st.integers(0, 2**64 - 1), links=st.lists(link, min_size=1, max_size=6))
def test_chains_of_resumes_lose_and_repeat_nothing_and_keep_the_order(whole, length, seed, links):
    chain(whole, length, seed, links)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
def test_campaign_chains_of_resumes(whole):
    chains = records = 0

    @settings(max_examples=int(5_000 * SCALE), deadline=None)
    @given(length=st.integers(1, MOST), seed=st.integers(0, 2**64 - 1), links=st.lists(link, min_size=1, max_size=6))
    def run(length, seed, links) -> None:
        nonlocal chains, records
        chains, records = chains + 1, records + chain(whole, length, seed, links)

    run()
    print(f"{chains:,} chains of resumes, {records:,} records, 0 lost, 0 repeated, order kept")


# -- sorted data -----------------------------------------------------------------------------------

RECORDS, CLASSES, BATCH = 20_000, 10, 200


@pytest.fixture(scope="module")
def by_label(tmp_path_factory):
    file = tmp_path_factory.mktemp("sorted") / "x.arrow"
    table = pa.table({"label": pa.array(np.repeat(np.arange(CLASSES), RECORDS // CLASSES))})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=1_000)
    ss.index(file)
    return file


def misfit(batches: list[np.ndarray]) -> float:
    """Chi-square per degree of freedom of the batches' labels against even ones: about 1 for a true shuffle."""
    each = [((np.bincount(b, minlength=CLASSES) - BATCH / CLASSES) ** 2 / (BATCH / CLASSES)).sum() for b in batches]
    return float(np.mean(each)) / (CLASSES - 1)


def through_a_buffer(labels: np.ndarray, size: int, seed: int) -> list[np.ndarray]:
    """What streaming loaders call shuffle: a reservoir from which a random one makes room for the next."""
    rng = np.random.default_rng(seed)
    buffer, out = labels[:size].tolist(), []
    for label in labels[size:].tolist():
        place = int(rng.integers(size))
        out.append(buffer[place])
        buffer[place] = label
    rng.shuffle(buffer)
    return np.split(np.array(out + buffer), RECORDS // BATCH)


@pytest.mark.parametrize("world", [1, 4])
def test_data_sorted_by_label_comes_mixed_where_a_buffer_of_a_thousand_fails(by_label, world):
    labels = np.repeat(np.arange(CLASSES), RECORDS // CLASSES)
    for seed in range(3):
        batches = []
        for rank in range(world):
            loader = ss.DataLoader(by_label, BATCH, shuffle=True, seed=seed, rank=rank, world_size=world)
            batches += [batch["label"].numpy() for batch in loader]
        assert len(batches) == RECORDS // BATCH
        assert 0.8 < misfit(batches) < 1.2
        assert misfit(through_a_buffer(labels, 1_000, seed)) > 50
