"""shuffle_quality: its expectations are exact, a true shuffle is never told off, every false one is told from it."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import shufflestore as ss
from shufflestore.errors import OptionError
from shufflestore.orders.epoch import make_order
from shufflestore.testing import quality, shuffle_quality
from tests.quality.candidates import Buffer, Lcg
from tests.unit.testing.peers import hf_buffer, ours, torch_distributed, torch_generator

N = 4_096


def order_of(loader, ids) -> list[int]:
    return [int(i) for batch in loader for i in ids(batch)]


# -- the expectations are exact: counted over all orders of so many records ------------------------

ALL = np.array(list(itertools.permutations(range(7))))


def counted(values) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))


def test_the_moments_of_the_correlation_are_those_of_all_orders():
    values = [quality._correlation(order, np.arange(7)) for order in ALL]
    assert counted(values) == pytest.approx((0, (1 / 6) ** 0.5))


def test_the_moments_of_neighbours_are_those_of_all_orders():
    measures = [quality._neighbours(order[None]) for order in ALL]
    assert counted([m.value for m in measures]) == pytest.approx((measures[0].expected, measures[0].deviation))


@pytest.mark.parametrize(("batch", "size"), [(2, 2), (2, 3), (3, 2), (3, 3), (2, 1), (3, 1), (1, 2)])
def test_the_moments_of_block_diversity_are_those_of_all_orders(monkeypatch, batch, size):
    monkeypatch.setattr(quality, "_FEWEST", 0)
    measures = [quality._diversity(order[None], batch, size) for order in ALL]
    found = counted([m.value for m in measures])
    assert found == pytest.approx((measures[0].expected, measures[0].deviation), abs=1e-7)


@pytest.mark.parametrize("batch", [2, 3])
def test_the_moments_of_the_overlap_are_those_of_all_orders(batch):
    first = np.random.default_rng(batch).permutation(7)
    measures = [quality._overlap(np.stack([first, order]), batch) for order in ALL]
    assert counted([m.value for m in measures]) == pytest.approx((measures[0].expected, measures[0].deviation))


def test_the_figures_of_an_order_are_those_of_their_definitions():
    n, batch, size = 131, 16, 10
    orders = [np.random.default_rng(seed).permutation(n) for seed in (1, 2)]
    found = shuffle_quality(orders, batch_size=batch, block_size=size)
    assert found.position_correlation.value == pytest.approx(
        np.mean([np.corrcoef(order, range(n))[0, 1] for order in orders])
    )
    gaps = [abs(int(a) - int(b)) for order in orders for a, b in itertools.pairwise(order)]
    assert found.neighbour_distance.value == pytest.approx(np.mean(gaps) / ((n + 1) / 3))
    distinct = [
        len({i // size for i in order[k * batch : (k + 1) * batch].tolist() if i // size < n // size})
        for order in orders
        for k in range(n // batch)
    ]
    assert found.block_diversity.value == pytest.approx(np.mean(distinct) / (n // size))
    at = [{int(i): place for place, i in enumerate(order)} for order in orders]
    assert found.epoch_correlation.value == pytest.approx(
        np.corrcoef([at[0][i] for i in range(n)], [at[1][i] for i in range(n)])[0, 1]
    )
    mates = [
        {
            frozenset(p)
            for k in range(n // batch)
            for p in itertools.combinations(order[k * batch :][:batch].tolist(), 2)
        }
        for order in orders
    ]
    assert found.epoch_overlap.value == pytest.approx(len(mates[0] & mates[1]) / len(mates[0]))


# -- true shuffles ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "batch", "size"), [(128, 16, None), (128, 16, 1), (130, 16, 65), (1_000, 20, 333), (1_000, 64, 10)]
)
def test_true_shuffles_are_not_told_off_and_z_is_what_it_says(n, batch, size):
    rng = np.random.default_rng(n)
    runs = [
        shuffle_quality([rng.permutation(n), rng.permutation(n)], batch_size=batch, block_size=size)
        for _ in range(1_000)
    ]
    assert all(run.is_like_true_shuffle for run in runs)
    for name in runs[0].measures:
        z = np.array([run.measures[name].z for run in runs])
        assert abs(z.mean()) < 5 / len(z) ** 0.5, name
        # A floor under the deviation makes z smaller where misses are rare, never larger.
        assert z.std() < 1.12, name
        assert z.std() > 0.88 or (name == "block_diversity" and size in (1, 65, 333)), name


@pytest.mark.parametrize("world", [1, 2, 3])
def test_our_order_is_like_a_true_shuffle_in_every_ranks_share(tmp_path_factory, world):
    make = ours(tmp_path_factory.mktemp("stores"))(N, 64)
    for rank in range(world):
        loader = make(rank=rank, world_size=world)
        epochs = [order_of(loader, lambda batch: batch["id"].tolist()) for _ in range(2 if world == 1 else 1)]
        found = shuffle_quality(epochs)
        assert found.is_like_true_shuffle, str(found)
        assert found.record_count == pytest.approx(N / world, abs=1)


def test_torchs_samplers_are_like_a_true_shuffle():
    for make in (torch_generator(N, 64), torch_distributed(N, 64)):
        found = shuffle_quality(order_of(make(), list))
        assert found.is_like_true_shuffle, str(found)


# -- false ones ------------------------------------------------------------------------------------


def worst(found) -> str:
    assert not found.is_like_true_shuffle, str(found)
    return max(found.measures, key=lambda name: abs(found.measures[name].z))


@pytest.mark.parametrize("buffer", [100, 1_000, N // 2])
def test_a_buffer_is_told_from_a_true_shuffle(buffer):
    found = shuffle_quality(Buffer(buffer).order(N, 0, 0))
    assert not found.is_like_true_shuffle
    assert found.position_correlation.value > 0.3
    assert found.position_correlation.z > 20
    assert found.block_diversity.z < -10


def test_the_buffer_of_hugging_face_is_told_from_a_true_shuffle():
    found = shuffle_quality(order_of(hf_buffer(N, 64)(), lambda batch: batch["id"]))
    assert found.block_diversity.z < -20, str(found)


def test_data_sorted_by_label_and_a_buffer_leave_labels_out_of_batches(tmp_path):
    from datasets import Dataset

    labels, n = 10, 5_000
    stream = Dataset.from_dict({"id": list(range(n))}).to_iterable_dataset().shuffle(seed=0, buffer_size=1_000)
    found = shuffle_quality([row["id"] for row in stream], block_size=n // labels)
    assert found.block_diversity.value < 0.6, "batches of 64 hold five or six of the ten labels"
    assert found.block_diversity.z < -100
    ss.convert([{"id": i} for i in range(n)], tmp_path / "store")
    loader = ss.DataLoader(tmp_path / "store", 64, shuffle=True)
    mixed = shuffle_quality(order_of(loader, lambda batch: batch["id"].tolist()), block_size=n // labels)
    assert mixed.is_like_true_shuffle, str(mixed)
    assert mixed.block_diversity.value > 0.99


@pytest.mark.parametrize("inside", [False, True], ids=["kept", "shuffled"])
def test_blocks_that_are_moved_whole_are_told(inside):
    rng = np.random.default_rng(0)
    blocks = rng.permutation(N // 64)[:, None] * 64 + np.arange(64)
    found = shuffle_quality((rng.permuted(blocks, axis=1) if inside else blocks).ravel())
    assert worst(found) in ("block_diversity", "neighbour_distance")


def test_windows_of_half_the_blocks_are_told():
    rng = np.random.default_rng(0)
    blocks = rng.permutation(N // 64)[:, None] * 64 + np.arange(64)
    order = np.concatenate([rng.permutation(half.ravel()) for half in np.split(blocks, 2)])
    assert worst(shuffle_quality(order)) == "block_diversity"


def test_a_linear_congruence_is_told():
    assert worst(shuffle_quality(Lcg().ids(np.arange(N), N, 0, 0)))


def test_no_shuffle_forwards_or_backwards_is_told():
    assert shuffle_quality(range(N)).position_correlation.z == pytest.approx((N - 1) ** 0.5)
    assert shuffle_quality(range(N)[::-1]).position_correlation.z == pytest.approx(-((N - 1) ** 0.5))


def test_the_same_order_in_every_epoch_is_told_though_each_is_a_true_shuffle():
    order = np.random.default_rng(0).permutation(N)
    assert shuffle_quality(order).is_like_true_shuffle
    again = shuffle_quality([order, order])
    assert again.epoch_correlation.value == pytest.approx(1)
    assert again.epoch_overlap.value == 1
    assert not again.is_like_true_shuffle


def test_the_same_batches_in_another_order_are_told_by_the_overlap_alone():
    rng = np.random.default_rng(0)
    batches = rng.permutation(N).reshape(-1, 64)
    found = shuffle_quality([batches.ravel(), rng.permutation(batches).ravel()])
    assert found.epoch_overlap.value == 1
    assert abs(found.position_correlation.z) < 6


# -- the table of docs/testing.md ------------------------------------------------------------------

PAGE = Path(__file__).resolve().parents[3] / "docs/testing.md"
BIG = 65_536


def blocks_moved(epoch, *, window, is_mixed):
    """Blocks of 256 in random order; windows of so many of them are shuffled inside if asked for."""
    rng = np.random.default_rng(epoch)
    windows = (rng.permutation(BIG // 256)[:, None] * 256 + np.arange(256)).reshape(-1, window * 256)
    return (rng.permuted(windows, axis=1) if is_mixed else windows).ravel()


SAME = np.random.default_rng(5).permutation(BIG)
ORDERS = {
    "`shufflestore`, seed 0": lambda epoch: make_order("global", BIG, 0, epoch).ids(np.arange(BIG)),
    "`numpy.random.permutation`": lambda epoch: np.random.default_rng(epoch).permutation(BIG),
    "the same order in both epochs": lambda epoch: SAME,
    "the same batches in another order": lambda epoch: (
        np.random.default_rng(epoch).permutation(SAME.reshape(-1, 64)).ravel()
    ),
    "buffer of 1,000": lambda epoch: Buffer(1_000).order(BIG, 0, epoch),
    "buffer of a quarter": lambda epoch: Buffer(BIG // 4).order(BIG, 0, epoch),
    "buffer of half": lambda epoch: Buffer(BIG // 2).order(BIG, 0, epoch),
    "buffer of nine tenths": lambda epoch: Buffer(BIG * 9 // 10).order(BIG, 0, epoch),
    "blocks of 256 moved whole": lambda epoch: blocks_moved(epoch, window=1, is_mixed=False),
    "blocks of 256 moved, shuffled inside": lambda epoch: blocks_moved(epoch, window=1, is_mixed=True),
    "windows of 32 such blocks, shuffled inside": lambda epoch: blocks_moved(epoch, window=32, is_mixed=True),
    "windows of half of the blocks": lambda epoch: blocks_moved(epoch, window=128, is_mixed=True),
}


@pytest.mark.parametrize("name", ORDERS)
def test_the_table_of_the_page_is_what_is_measured(name):
    measures = shuffle_quality([ORDERS[name](0), ORDERS[name](1)]).measures.values()
    cells = [f"**{m.z:,.0f}**" if abs(m.z) >= quality.THRESHOLD else f"{m.z:.1f}" for m in measures]
    assert f"\n| {name} | {' | '.join(cells)} |\n" in PAGE.read_text("utf-8")


# -- what goes in ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), shift=st.integers(-(2**40), 2**40), factor=st.integers(1, 1_000))
def test_only_the_order_of_storage_counts_not_the_numbers(seed, shift, factor):
    order = np.random.default_rng(seed).permutation(160)
    assert shuffle_quality(order * factor + shift, batch_size=16) == shuffle_quality(order, batch_size=16)


def test_lists_tensors_and_arrays_say_the_same():
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(200), (3, 1)), axis=1)
    expected = shuffle_quality(orders, batch_size=16)
    assert expected.epoch_count == 3
    for given_ids in (orders.tolist(), [torch.from_numpy(o) for o in orders], tuple(orders), torch.from_numpy(orders)):
        assert shuffle_quality(given_ids, batch_size=16) == expected


def test_a_million_records_take_no_loops():
    found = shuffle_quality(np.random.default_rng(0).permutation(10**6))
    assert found.is_like_true_shuffle, str(found)


@pytest.mark.parametrize(
    ("ids", "options", "words"),
    [
        ([], {}, "ids is empty"),
        ([0.5] * 200, {}, "ids is float64 of shape"),
        ([*range(199), 7], {"batch_size": 16}, r"epoch 0 repeats 1 ids, \[7\] among them"),
        ([range(200), range(1, 201)], {"batch_size": 16}, "do not hold the same records"),
        ([range(200), range(201)], {"batch_size": 16}, r"epochs have \[200, 201\] records"),
        (range(200), {}, "batch_size=64 with 200 records"),
        (range(200), {"batch_size": 15}, "batch_size=15"),
        (range(200), {"batch_size": 16, "block_size": 101}, "block_size=101"),
        (range(200), {"batch_size": 16, "block_size": 0}, "block_size=0"),
    ],
)
def test_what_cannot_be_measured_is_named(ids, options, words):
    with pytest.raises(OptionError, match=words):
        shuffle_quality(ids, **options)


def test_the_table_names_the_measures_that_fail():
    table = str(shuffle_quality([range(N), range(N)]))
    assert table.count("no true shuffle") == 5
    assert len(table.splitlines()) == 6
