"""The order is a uniform one as far as these tests see, and the tests are shown to see."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shufflestore.orders.epoch import GlobalOrder
from shufflestore.orders.kernels import warm
from tests.naive import orders as naive
from tests.quality import battery, tails
from tests.quality.candidates import Buffer, FewRounds, Lcg, Numpy, Package

SMALL = battery.SMALL_LENGTHS["small"]
LARGE = battery.LARGE_LENGTHS["small"]


@pytest.mark.parametrize("length", SMALL)
def test_every_short_order_is_as_likely_as_any_other(length):
    assert battery.judge_small(Package(), length, SMALL[length]).failures == ()


@pytest.mark.parametrize("length", LARGE)
def test_long_orders_show_no_pattern(length):
    warm()
    assert battery.judge_large(Package(), length, LARGE[length]).failures == ()


@pytest.mark.parametrize("length", [2, 4, 6, 16, 64, 1000])
def test_the_control_passes_the_same_tests_by_the_same_rule(length):
    assert battery.judge_small(Numpy(), length, SMALL[length]).failures == ()


def test_the_control_passes_the_tests_of_long_orders():
    assert battery.judge_large(Numpy(), 65_537, 2**16).failures == ()


@pytest.mark.parametrize("length", [3, 4, 6, 8, 16, 64, 256])
def test_four_rounds_fail_where_twelve_are_not_needed(length):
    assert battery.judge_small(FewRounds(4), length, SMALL[length]).failures


def test_four_rounds_fail_at_the_first_computed_length():
    verdict = battery.judge_large(FewRounds(4), 65_537, 2**18)
    assert any("lag 256" in name for name in verdict.failures), str(verdict)


@pytest.mark.parametrize("length", [4, 16, 256])
def test_a_linear_congruence_fails_when_short(length):
    assert battery.judge_small(Lcg(), length, 2_000).failures


@pytest.mark.parametrize("length", [65_537, 10**6])
def test_a_linear_congruence_fails_when_long(length):
    assert battery.judge_large(Lcg(), length, 2**14).failures


def test_the_batterys_network_is_the_packages():
    for length in (65_537, 10**6, 10**9):
        positions = np.arange(100)
        assert FewRounds(12).ids(positions, length, 3, 4).tolist() == naive.permute(list(range(100)), length, 3, 4)
    assert FewRounds(12).tables(100, 8, 1).shape == (1, 100)


def label_mix(ids, length, classes=10, batch=256):
    """P-value that batches of label-sorted data hold the labels as independent draws would."""
    labels = (ids * classes // length)[: length // batch * batch].reshape(-1, batch)
    counts = np.stack([(labels == label).sum(axis=1) for label in range(classes)], axis=1)
    each = ((counts - batch / classes) ** 2 / (batch / classes)).sum(axis=1)
    # All batches of an epoch share the records: the mean is (N - batch) / (N - 1) of the chi-square's.
    z = (each.mean() * (length - 1) / (length - batch) - (classes - 1)) * math.sqrt(len(each) / (2 * (classes - 1)))
    return tails.normal(z)


def test_label_sorted_data_is_mixed_by_the_global_order_and_not_by_a_buffer():
    length = 100_000
    for seed in range(3):
        assert label_mix(GlobalOrder(length, seed).ids(np.arange(length)), length) > 1e-5
        assert label_mix(np.random.default_rng(seed).permutation(length), length) > 1e-5
    assert label_mix(Buffer(1_000).order(length, 0, 0), length) < 1e-30


@pytest.mark.parametrize(
    ("p", "exact"),
    [
        (tails.chi_square(3.841458820694124, 1), 0.05),
        (tails.chi_square(18.307038053275146, 10), 0.05),
        (tails.chi_square(1074.6794, 1000), 0.05),
        (tails.chi_square(100, 2), math.exp(-50)),
        (tails.normal(1.959963984540054), 0.05),
        (tails.poisson(0, 3.0), 2 * math.exp(-3)),
        (tails.poisson(2, 0.5), 2 * (1 - 1.5 * math.exp(-0.5))),
    ],
)
def test_the_tails_are_those_of_the_tables(p, exact):
    assert p == pytest.approx(exact, rel=1e-4)


@pytest.mark.campaign
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("candidate", [Package(), Numpy()], ids=lambda candidate: candidate.name)
def test_the_full_battery(candidate):
    warm()
    failed = [str(verdict) for verdict in battery.run(candidate, "full") if verdict.failures]
    assert failed == []
