"""Lightning's Trainer."""

from __future__ import annotations

import pytest

from tests.frameworks.audit import assert_each_epoch_once, assert_survives_kills

pytestmark = pytest.mark.serial
WARM = ("lightning",)


def test_a_run_killed_twice_that_goes_on_with_other_ranks_delivers_every_record_exactly_once(ranks, tmp_path):
    assert_survives_kills(ranks, "train_lightning.py", tmp_path, (4, 5, 2))


@pytest.mark.parametrize("where", ["hook", "argument"])
def test_our_data_is_left_alone(ranks, store, tmp_path, where):
    answers = ranks.answers("tests.frameworks.ranks:trainer", ["native", store, where], 2, tmp_path)
    assert_each_epoch_once(answers, records=103, step_count=13)
    for answer in answers:
        assert (answer["sampler"], answer["ours"], answer["is_left_alone"]) == ("ShuffleSampler", True, True)
    predicted = [i for answer in answers for ids in answer["predicted"] for i in ids]
    assert sorted(predicted) == list(range(103))


@pytest.mark.parametrize("where", ["hook", "argument"])
def test_other_data_gets_lightnings_sampler_in_a_loader_of_ours(ranks, store, tmp_path, where):
    answers = ranks.answers("tests.frameworks.ranks:trainer", ["plain", store, where], 2, tmp_path)
    assert_each_epoch_once(answers, records=104, step_count=13)
    for answer in answers:
        assert (answer["sampler"], answer["ours"]) == ("DistributedSampler", True)


@pytest.mark.parametrize("what", ["sampler", "rank"])
def test_other_data_that_is_divided_already_is_left_alone(ranks, store, tmp_path, what):
    answers = ranks.answers("tests.frameworks.ranks:trainer", [what, store, "argument"], 2, tmp_path)
    assert_each_epoch_once(answers, records=104, step_count=13)
    for answer in answers:
        assert (answer["sampler"], answer["ours"], answer["is_left_alone"]) == ("ShuffleSampler", True, True)


def test_the_epoch_after_a_checkpoint_at_an_epochs_end_is_the_next_one(ranks, store, tmp_path):
    arguments = ["native", store, "hook"]
    first = ranks.answers("tests.frameworks.ranks:trainer", [*arguments, "1", "last.ckpt"], 2, tmp_path)
    second = ranks.answers("tests.frameworks.ranks:trainer", [*arguments, "2", "last.ckpt"], 2, tmp_path)
    whole = [{"epochs": one["epochs"] + two["epochs"]} for one, two in zip(first, second, strict=True)]
    assert_each_epoch_once(whole, records=103, step_count=13)
