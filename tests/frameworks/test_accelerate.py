"""Hugging Face Accelerate."""

from __future__ import annotations

import pytest

from tests.frameworks.audit import assert_each_epoch_once, assert_survives_kills

pytestmark = pytest.mark.serial
WARM = ("accelerate",)


def test_a_run_killed_twice_that_goes_on_with_other_ranks_delivers_every_record_exactly_once(ranks, tmp_path):
    assert_survives_kills(ranks, "train_accelerate.py", tmp_path, (4, 5, 2), kills=(3, 5))


@pytest.mark.parametrize("dispatch", ["", "dispatch"])
@pytest.mark.parametrize("what", ["native", "sampler", "rank"])
def test_data_that_we_divide_is_left_alone_and_gradients_are_applied_at_the_end(ranks, store, tmp_path, what, dispatch):
    answers = ranks.answers("tests.frameworks.ranks:accelerated", [what, store, dispatch], 2, tmp_path)
    assert_each_epoch_once(answers, records=103, step_count=13)
    for answer in answers:
        assert answer["is_left_alone"]
        assert answer["length"] == 13
        assert answer["steps"] == 2 * [[(i + 1) % 3 == 0 or i == 12 for i in range(13)]]


def test_other_data_is_divided_by_accelerate_which_repeats_records_to_fill_the_last_batch(ranks, store, tmp_path):
    answers = ranks.answers("tests.frameworks.ranks:accelerated", ["plain", store, ""], 2, tmp_path)
    for epoch in range(2):
        ids = [i for answer in answers for batch in answer["epochs"][epoch] for i in batch]
        assert set(ids) == set(range(103))
        assert len(ids) == 104
    assert not any(answer["is_left_alone"] for answer in answers)


def test_metrics_are_gathered_from_every_record_once(ranks, store, tmp_path):
    for answer in ranks.answers("tests.frameworks.ranks:gathered", [store], 2, tmp_path):
        assert sorted(answer["objects"]) == list(range(103))
        assert len(answer["tensors"]) == len(set(answer["tensors"])) == 96
