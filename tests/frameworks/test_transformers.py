"""transformers' Trainer."""

from __future__ import annotations

import pytest

from tests.frameworks.audit import assert_each_epoch_once, assert_survives_kills

pytestmark = pytest.mark.serial
WARM = ("transformers.trainer",)


def test_a_run_killed_twice_that_goes_on_with_other_ranks_delivers_every_record_exactly_once(ranks, tmp_path):
    assert_survives_kills(ranks, "train_transformers.py", tmp_path, (6, 4, 3))


def test_a_loader_of_ours_is_divided_once(ranks, store, tmp_path):
    answers = ranks.answers("tests.frameworks.ranks:transformed", ["native", store], 2, tmp_path)
    assert_each_epoch_once(answers, records=103, step_count=13)


def test_a_data_set_of_ours_in_the_trainers_own_loader_is_divided_by_it(ranks, store, tmp_path):
    answers = ranks.answers("tests.frameworks.ranks:transformed", ["data set", store], 2, tmp_path)
    for epoch in range(2):
        ids = [i for answer in answers for batch in answer["epochs"][epoch] for i in batch]
        assert set(ids) == set(range(103))
        assert len(ids) == 104
