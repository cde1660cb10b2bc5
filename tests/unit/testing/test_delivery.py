"""assert_exactly_once passes a loader that delivers every record once, and names what another loses or repeats."""

from __future__ import annotations

import re

import pytest
from torch.utils.data import DataLoader, DistributedSampler

from shufflestore.errors import OptionError
from shufflestore.testing import assert_exactly_once
from tests.unit.testing.peers import BATCH, by_name, hf_buffer, ours, plain, torch_distributed

WORLDS = [{"world_size": world} for world in (1, 2, 3, 4)]


@pytest.fixture(scope="module")
def make_for(tmp_path_factory):
    return ours(tmp_path_factory.mktemp("stores"))


@pytest.mark.parametrize("n", [1, 7, 96, 103])
def test_our_loader_passes_at_any_length_world_and_batch_size(make_for, n):
    topologies = [*WORLDS, {"world_size": 5, "batch_size": 3}, {"world_size": 2, "batch_size": 200}]
    assert_exactly_once(make_for(n), by_name, n, topologies=topologies)


def test_torchs_sampler_passes_where_no_padding_is_needed():
    assert_exactly_once(torch_distributed(96), plain, 96)


def test_torchs_sampler_repeats_what_it_pads_with_and_the_message_says_where():
    words = (
        "^world_size=2, epoch 0: 104 records delivered, 103 expected; "
        r"1 repeated: \d+ \(rank 0 batch 0, rank 1 batch 6\)$"
    )
    with pytest.raises(AssertionError, match=words):
        assert_exactly_once(torch_distributed(103), plain, 103)


def test_dropping_the_last_batch_loses_records_and_the_message_names_them():
    def make(rank, world_size):
        sampler = DistributedSampler(range(103), world_size, rank, shuffle=False)
        return DataLoader(range(103), BATCH, sampler=sampler, drop_last=True)

    with pytest.raises(
        AssertionError, match="96 records delivered, 103 expected; 7 lost: 96, 97, 98, 99, 100, 101, 102$"
    ):
        assert_exactly_once(make, plain, 103)


def test_ranks_that_all_read_everything_are_found():
    with pytest.raises(AssertionError, match="world_size=2, epoch 0: 24 .* 12 repeated: 0 .*, 7 .* and 4 more$"):
        assert_exactly_once(lambda rank, world_size: DataLoader(range(12), 4), plain, 12)


def test_records_that_nobody_expects_are_named():
    with pytest.raises(AssertionError, match=r"1 lost: 5; 1 foreign: 11 \(rank 0 batch 2\)$"):
        assert_exactly_once(lambda rank, world_size: DataLoader([0, 1, 2, 3, 4, 11], 2), plain, 6)


def test_a_foreign_record_alone_is_enough():
    with pytest.raises(AssertionError, match=r"3 records delivered, 2 expected; 1 foreign: 2 \(rank 0 batch 1\)$"):
        assert_exactly_once(lambda rank, world_size: DataLoader([0, 1, 2], 2), plain, 2)


def test_a_later_epoch_is_looked_at_as_well():
    class Once:
        """A generator behind a loader: empty the second time."""

        def __init__(self):
            self.batches = iter([[0, 1], [2]])

        def __iter__(self):
            return self.batches

    make = {"topologies": [{"world_size": 1}]}
    assert_exactly_once(lambda **_: Once(), plain, 3, epochs=1, **make)
    with pytest.raises(AssertionError, match="epoch 1: 0 records delivered, 3 expected; 3 lost: 0, 1, 2$"):
        assert_exactly_once(lambda **_: Once(), plain, 3, **make)


def test_set_epoch_is_called_before_each_epoch():
    class Told:
        """Delivers an epoch once it was told its number, as a stream of a service might."""

        is_told = False

        def set_epoch(self, epoch):
            self.is_told = True

        def __iter__(self):
            told, self.is_told = self.is_told, False
            return iter([[0, 1]] if told else [])

    assert_exactly_once(lambda **_: Told(), plain, 2, epochs=3, topologies=[{}])


def test_a_stream_passes_in_its_later_epochs():
    assert_exactly_once(hf_buffer(60), by_name, 60, epochs=3)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("batch", [[0, 1], []])
def test_a_loader_without_an_end_is_reported_not_waited_for(batch):
    class Endless:
        def __iter__(self):
            while True:
                yield batch

    with pytest.raises(AssertionError, match="lost"):
        assert_exactly_once(lambda **_: Endless(), plain, 3)


def test_ids_may_be_any_integers_in_any_sequence():
    batches = [[10**12, -3], [7]]
    assert_exactly_once(lambda **_: batches, lambda b: (i for i in b), [7, -3, 10**12], topologies=[{}])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"records": 0}, "records: 0 ids"),
        ({"records": [1, 1]}, "records: 2 ids, 1 of them different"),
        ({"topologies": []}, "topologies is empty"),
        ({"topologies": [{"world_size": 0}]}, "world_size 0 is not an integer of at least 1"),
        ({"topologies": [{"world_size": 2, "rank": 0}]}, "names a rank"),
        ({"epochs": 0}, "epochs=0"),
        ({"ids": lambda batch: [0.5]}, r"float64 of shape \(1,\); a flat sequence of integers"),
        ({"ids": lambda batch: [[1], [2]]}, r"int64 of shape \(2, 1\)"),
        ({"make": lambda **_: None}, "NoneType, which cannot be iterated over"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named(change, words):
    given = {"make": lambda **_: [[0]], "ids": plain, "records": 1, **change}
    with pytest.raises(OptionError, match=words):
        assert_exactly_once(given.pop("make"), given.pop("ids"), given.pop("records"), **given)


def test_the_message_stays_short():
    with pytest.raises(AssertionError) as raised:
        assert_exactly_once(lambda **_: [[0]] * 5_000, plain, 10_000)
    assert len(str(raised.value)) < 600
    assert re.search(r"9999 lost: 1, 2, .* and 9991 more; 1 repeated: 0 \(rank 0 batch 0, .* more\)", str(raised.value))
