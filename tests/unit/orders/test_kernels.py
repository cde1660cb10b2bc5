from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
import pytest

from shufflestore.errors import OrderError
from shufflestore.orders.kernels import derive_key, invert, is_warm, permute, permute_range, warm
from shufflestore.orders.keys import OrderKey
from tests.naive import orders as naive

BY_WORD = [
    (1000, 0, 0, "271 882 289 86 487 334 819 159"),
    (65536, 0, 0, "23031 12222 34378 41477 59437 30185 7204 5280"),
    (65537, 0, 0, "44757 28367 54713 25139 8789 21173 725 36564"),
    (1000000, 42, 3, "530541 629354 110766 654096 815932 807235 901003 150585"),
    (1073741825, 1, 1, "598525429 754253497 893100348 987442873 56632392 767461394 770406812 138046250"),
    (
        10**12,
        9223372036854775813,
        17,
        "530637396117 970748060265 261944144231 733674101328 26599876766 46949465619 240791761917 926658024222",
    ),
]
BY_PURPOSE_1 = [
    (1000, 0, 0, "61 174 273 439 882 117 52 308 394 339"),
    (10**6, 42, 3, "336713 786467 107076 495084 707033 990748 309632 997704 891895 706125"),
    (
        10**12,
        2**63 + 5,
        17,
        "911703602919 585613797374 110455263571 728345739751 650451959415 "
        "637724207345 614538432218 217104214319 955522908217 570331862129",
    ),
]
KINDS = [
    (derive_key(1), "one"),
    (derive_key(1000, 5), "table"),
    (derive_key(65_537, 5), "the first network"),
    (derive_key(2**30 + 1, 5), "network"),
    (derive_key(2**62, 5), "the last network"),
]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("length", "seed", "epoch", "ids"), BY_WORD)
def test_the_promised_ids_by_word(length, seed, epoch, ids, compiled):
    wanted = [int(i) for i in ids.split()]
    key = derive_key(length, seed, epoch)
    assert permute(range(8), key, compiled=compiled).tolist() == wanted
    assert invert(wanted, key, compiled=compiled).tolist() == list(range(8))
    assert naive.permute(list(range(8)), length, seed, epoch) == wanted
    assert naive.invert(wanted, length, seed, epoch) == list(range(8))


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("length", "seed", "epoch", "ids"), BY_PURPOSE_1)
def test_the_promised_ids_by_purpose(length, seed, epoch, ids, compiled):
    words = naive.words(seed, epoch, 1)
    key = OrderKey(length, tuple(words))
    wanted = [int(i) for i in ids.split()]
    assert permute(range(10), key, compiled=compiled).tolist() == wanted
    assert naive.permute_words(list(range(10)), length, words) == wanted


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("key", [key for key, _ in KINDS], ids=[name for _, name in KINDS])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64, ">i8"])
def test_every_integer_type_goes_in_and_fresh_int64_comes_out(key, dtype, compiled):
    given = np.array([0], dtype=dtype)
    for call in (permute, invert):
        out = call(given, key, compiled=compiled)
        assert out.dtype == np.int64
        assert out.dtype.isnative
        assert out.flags.owndata
        assert not np.shares_memory(out, given)
        assert out.tolist() == call([0], key).tolist()
    assert given.tolist() == [0]


@pytest.mark.parametrize("compiled", [False, True])
def test_a_strided_or_read_only_array_is_read_and_left_alone(compiled):
    key = derive_key(10**6)
    given = np.arange(20_000)[::-2]
    given.flags.writeable = False
    out = permute(given, key, compiled=compiled)
    assert out.tolist() == permute(given.copy(), key).tolist()
    assert given[0] == 19_999


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("key", [key for key, _ in KINDS], ids=[name for _, name in KINDS])
@pytest.mark.parametrize("call", [permute, invert])
def test_the_first_value_out_of_range_is_named(call, key, compiled):
    noun = "position" if call is permute else "id"
    for bad in (-1, key.length, -(2**63), 2**63 - 1):
        with pytest.raises(OrderError, match=rf"^{noun} {bad} \(entry 2\) is outside \[0, {key.length}\)"):
            call(np.array([0, 0, bad, -7]), key, compiled=compiled)


def test_unsigned_values_beyond_int64_are_refused_by_their_own_value():
    with pytest.raises(OrderError, match=str(2**64 - 1)):
        permute(np.array([0, 2**64 - 1], dtype=np.uint64), derive_key(10))


@pytest.mark.parametrize("given", [[0.0], [True], ["a"], [2**70], [[0, 1]], 3])
def test_what_is_not_a_list_of_integers_is_refused(given):
    with pytest.raises(OrderError):
        permute(given, derive_key(10))


@pytest.mark.parametrize("length", [0, 1, 1000, 10**6])
def test_nothing_asked_is_nothing_answered(length):
    key = derive_key(length)
    for out in (permute([], key), invert([], key), permute_range(0, 0, 1, key)):
        assert out.shape == (0,)
        assert out.dtype == np.int64


def test_the_empty_order_has_no_position_and_the_order_of_one_has_one():
    with pytest.raises(OrderError, match=r"outside \[0, 0\)"):
        permute([0], derive_key(0))
    assert permute([0, 0], derive_key(1)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("start", "stop", "step"),
    [(0, 10, 1), (3, 50, 7), (9, -1, -3), (5, 6, 1), (5, 5, 1), (9, 3, 2), (2**50, 2**51, 2**49)],
)
def test_a_range_of_positions_counts_as_range_does(start, stop, step):
    key = derive_key(2**52 + 1)
    out = permute_range(start, stop, step, key)
    assert out.dtype == np.int64
    assert out.tolist() == permute(np.array(range(start, stop, step), dtype=np.int64), key).tolist()


def test_a_range_counts_exactly_where_floats_do_not():
    key = derive_key(2**62)
    start = 2**62 - 3 * (2**53 + 1)
    assert (
        permute_range(start, 2**62, 2**53 + 1, key).tolist()
        == permute([start, start + 2**53 + 1, start + 2**54 + 2], key).tolist()
    )


@pytest.mark.parametrize(("start", "stop", "step"), [(-1, 5, 1), (0, 1001, 1), (999, -2, -1), (0, 10, 0)])
def test_a_range_that_leaves_the_order_is_refused(start, stop, step):
    with pytest.raises(OrderError):
        permute_range(start, stop, step, derive_key(1000))


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 8191, 8192, 8193, 20_000])
def test_blocks_of_the_kernel_and_of_the_twin_meet_without_a_seam(count):
    # 2**16 + 1 and 70,000 leave the most values outside, so that walking happens in every block.
    for length in (65_537, 70_000, 10**9):
        key = derive_key(length, 9)
        positions = np.arange(count) % length
        ids = permute(positions, key, compiled=True)
        assert np.array_equal(ids, permute(positions, key, compiled=False))
        assert np.array_equal(invert(ids, key, compiled=True), positions)
        assert np.array_equal(invert(ids, key, compiled=False), positions)


def test_warming_twice_costs_nothing_and_is_told():
    warm()
    assert is_warm()
    assert warm() == 0.0


def test_numba_is_loaded_by_warm_alone_and_torch_never():
    script = """
import sys
import shufflestore.distributed, shufflestore.orders.cursor, shufflestore.orders.epoch, shufflestore.orders.random
from shufflestore.orders import kernels
kernels.permute(range(100), kernels.derive_key(10**9))
shufflestore.distributed.resolve()
assert "numba" not in sys.modules, "numba was loaded by a small use"
assert not kernels.is_warm()
assert kernels.warm() > 0
assert "numba" in sys.modules
assert "torch" not in sys.modules and "pyarrow" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_share_one_key():
    warm()
    key, results = derive_key(60_000, 1), []
    wanted = permute(range(60_000), derive_key(60_000, 1)).tolist()

    def work():
        results.append(
            permute(range(60_000), key).tolist() == wanted and invert(wanted, key).tolist() == list(range(60_000))
        )

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 8
