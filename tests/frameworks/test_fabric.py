"""Lightning Fabric."""

from __future__ import annotations

import pytest

from tests.frameworks.audit import assert_each_epoch_once, assert_survives_kills

pytestmark = pytest.mark.serial
WARM = ("lightning.fabric",)


def test_a_run_killed_twice_that_goes_on_with_other_ranks_delivers_every_record_exactly_once(ranks, tmp_path):
    assert_survives_kills(ranks, "train_fabric.py", tmp_path, (4, 5, 2))


def test_our_data_is_left_alone_by_setup_dataloaders(ranks, store, tmp_path):
    answers = ranks.answers("tests.frameworks.ranks:fabric", ["native", store], 2, tmp_path)
    assert_each_epoch_once(answers, records=103, step_count=13)
    assert all(answer["is_left_alone"] for answer in answers)


@pytest.mark.parametrize(
    ("what", "sampler"), [("plain", "DistributedSampler"), ("sampler", "ShuffleSampler"), ("rank", "ShuffleSampler")]
)
def test_other_data_is_divided_once_by_fabric_or_by_our_sampler(ranks, store, tmp_path, what, sampler):
    answers = ranks.answers("tests.frameworks.ranks:fabric", [what, store], 2, tmp_path)
    assert_each_epoch_once(answers, records=104, step_count=13)
    for answer in answers:
        assert (answer["sampler"], answer["ours"], answer["is_left_alone"]) == (sampler, True, what != "plain")


def test_fabric_counts_epochs_from_0_and_so_drops_a_later_epochs_position_with_a_warning(ranks, store, tmp_path):
    (answer,) = ranks.answers("tests.frameworks.ranks:fabric_in_a_later_epoch", [store], 0, tmp_path)
    assert answer["lines"] == ["set_epoch(0) drops the loaded position 4 of epoch 1"]
    assert (answer["through"], answer["past"]) == (26, 25)
