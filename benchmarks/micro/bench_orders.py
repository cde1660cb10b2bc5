"""What an id costs: the order's kernel and its twin, forward and back, beside those of others.

    python -m pytest benchmarks/micro/bench_orders.py --benchmark-enable --benchmark-group-by=group

Each answer is checked before it is timed. `ns_per_id` in the extra information is the fastest round.
Without `--benchmark-enable` each case runs once, as a test.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from shufflestore.orders.kernels import derive_key, invert, permute, permute_range, warm
from shufflestore.orders.partition import Partition, Topology
from tests.naive import orders as naive

LENGTHS = {"1e6": 10**6, "1e9": 10**9, "1e12": 10**12, "2^30+1": 2**30 + 1}
COUNTS = [4_096, 65_536]
GRAIN = "grain._src.python.experimental.index_shuffle.python.index_shuffle_module"


def note(benchmark, ids):
    """Record the nanoseconds an id took; there are no figures when benchmarks run untimed."""
    benchmark.extra_info["ids"] = ids
    if benchmark.stats:
        benchmark.extra_info["ns_per_id"] = round(benchmark.stats.stats.min / ids * 1e9, 2)


@pytest.fixture(scope="module", autouse=True)
def _warm():
    warm()


@pytest.fixture(params=LENGTHS.values(), ids=LENGTHS.keys())
def key(request):
    return derive_key(request.param, seed=1, epoch=1)


@pytest.fixture(params=COUNTS, ids="{}_ids".format)
def positions(request, key):
    return np.random.default_rng(0).integers(0, key.length, request.param)


def check(positions, ids, key):
    wanted = naive.permute(positions[:20].tolist(), key.length, 1, 1)
    assert ids[:20].tolist() == wanted
    assert np.array_equal(ids, permute(positions, key, compiled=False))


@pytest.mark.benchmark(group="orders: kernel, forward")
def test_permute(benchmark, key, positions):
    check(positions, permute(positions, key, compiled=True), key)
    benchmark(permute, positions, key, compiled=True)
    note(benchmark, positions.size)


@pytest.mark.benchmark(group="orders: kernel, inverse")
def test_invert(benchmark, key, positions):
    ids = permute(positions, key, compiled=True)
    assert np.array_equal(invert(ids, key, compiled=True), positions)
    benchmark(invert, ids, key, compiled=True)
    note(benchmark, positions.size)


@pytest.mark.benchmark(group="orders: kernel, a range of positions")
@pytest.mark.parametrize("count", COUNTS)
def test_permute_range(benchmark, key, count):
    check(np.arange(3, 3 + 8 * count, 8), permute_range(3, 3 + 8 * count, 8, key, compiled=True), key)
    benchmark(permute_range, 3, 3 + 8 * count, 8, key, compiled=True)
    note(benchmark, count)


@pytest.mark.benchmark(group="orders: numpy twin, forward")
def test_permute_by_the_twin(benchmark, key, positions):
    check(positions, permute(positions, key, compiled=False), key)
    benchmark(permute, positions, key, compiled=False)
    note(benchmark, positions.size)


@pytest.mark.benchmark(group="orders: table of a short order")
@pytest.mark.parametrize("length", [1_000, 65_536])
def test_permute_a_short_order(benchmark, length):
    key, positions = derive_key(length), np.random.default_rng(0).integers(0, length, 65_536)
    assert permute(range(8), key).tolist() == naive.permute(list(range(8)), length, 0, 0)
    benchmark(permute, positions, key)
    note(benchmark, positions.size)


@pytest.mark.benchmark(group="orders: begin an epoch")
@pytest.mark.parametrize("length", [65_536, 10**12])
def test_begin_an_epoch(benchmark, length):
    """Key, table where there is one, and the first batch of 256."""
    benchmark(lambda: permute_range(0, 256, 1, derive_key(length, 3, 4)))
    note(benchmark, 256)


@pytest.mark.benchmark(group="orders: a window of positions")
def test_positions_of_a_window(benchmark):
    part = Partition(10**9, 256, Topology(3, 8), "pad")
    positions, ends = part.positions(100, 116)
    assert positions[:2].tolist() == [100 * 256 * 8 + 3, 100 * 256 * 8 + 11]
    assert ends[-1] == 4_096
    benchmark(part.positions, 100, 116)
    note(benchmark, positions.size)


@pytest.mark.benchmark(group="others: a whole permutation of 1e6")
def test_numpy_permutation(benchmark):
    rng = np.random.default_rng(0)
    assert np.array_equal(np.sort(rng.permutation(1000)), np.arange(1000))
    benchmark(rng.permutation, 10**6)
    note(benchmark, 10**6)


@pytest.mark.benchmark(group="others: a whole permutation of 1e6")
def test_torch_randperm(benchmark):
    torch = pytest.importorskip("torch")
    assert torch.equal(torch.randperm(1000).sort().values, torch.arange(1000))
    benchmark(torch.randperm, 10**6)
    note(benchmark, 10**6)


@pytest.mark.benchmark(group="others: a whole permutation of 1e6")
def test_ours_in_one_array(benchmark):
    key = derive_key(10**6)
    assert np.array_equal(np.sort(permute_range(0, 10**6, 1, key)), np.arange(10**6))
    benchmark(permute_range, 0, 10**6, 1, key)
    note(benchmark, 10**6)


@pytest.mark.benchmark(group="others: id by id")
@pytest.mark.parametrize("length", LENGTHS.values(), ids=LENGTHS.keys())
def test_grain_index_shuffle(benchmark, length):
    try:
        grain = importlib.import_module(GRAIN)
    except ImportError as error:
        pytest.skip(f"grain's index_shuffle cannot be imported: {error}")
    ids = [grain.index_shuffle(i, max_index=length - 1, seed=1, rounds=4) for i in range(256)]
    assert len(set(ids)) == 256
    assert 0 <= min(ids) <= max(ids) < length
    benchmark(lambda: [grain.index_shuffle(i, max_index=length - 1, seed=1, rounds=4) for i in range(256)])
    note(benchmark, 256)
