from __future__ import annotations

import numpy as np
import pytest

from shufflestore.errors import OptionError
from shufflestore.orders.random import record_rng


def test_the_promised_raw_bits():
    # Promised across versions: augmentations of a resumed run must not change with an upgrade.
    assert record_rng(0, 0, 0).bit_generator.random_raw(2).tolist() == [5363429636841470793, 2842786059632901951]
    assert record_rng(42, 3, 10**12).bit_generator.random_raw(2).tolist() == [
        12449532915826530556,
        11800474197354379151,
    ]


def test_the_draws_of_a_record_depend_on_nothing_drawn_before():
    alone = record_rng(1, 2, 3).random(4).tolist()
    for other in range(5):
        record_rng(1, 2, other).random(100)
    np.random.default_rng(0).random(7)
    assert record_rng(1, 2, 3).random(4).tolist() == alone


def test_neighbouring_seeds_epochs_and_records_share_no_stream():
    first = {
        int(record_rng(s, e, r).bit_generator.random_raw()) for s in range(12) for e in range(12) for r in range(12)
    }
    assert len(first) == 12**3


def test_the_draws_over_records_are_uniform_and_uncorrelated():
    draws = np.array([record_rng(7, 0, record).random() for record in range(4000)])
    assert abs(draws.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 4000)
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 5 / np.sqrt(4000)


def test_seeds_are_taken_modulo_two_to_the_64():
    assert record_rng(-1, 0, 0).random() == record_rng(2**64 - 1, 0, 0).random()


@pytest.mark.parametrize(
    ("epoch", "record", "named"), [(-1, 0, "epoch"), (2**64, 0, "epoch"), (0, -1, "record_id"), (0, 2**64, "record_id")]
)
def test_an_epoch_or_record_out_of_range_is_named(epoch, record, named):
    with pytest.raises(OptionError, match=named):
        record_rng(0, epoch, record)
