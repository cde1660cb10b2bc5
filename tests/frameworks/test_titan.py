"""Loops in torchtitan's manner: sharded models, torch.distributed.checkpoint, states keyed by rank."""

from __future__ import annotations

import pytest

from tests.frameworks.audit import assert_each_epoch_once, assert_survives_kills

pytestmark = pytest.mark.serial
WARM = ("torch.distributed.checkpoint", "torch.distributed.fsdp")


def test_a_run_killed_twice_that_goes_on_with_other_ranks_delivers_every_record_exactly_once(ranks, tmp_path):
    assert_survives_kills(ranks, "train_titan.py", tmp_path, (4, 5, 2))


def test_a_state_keyed_by_rank_resumes_the_batches_of_that_rank(ranks, store, tmp_path):
    answers = ranks.answers("tests.frameworks.ranks:keyed", [store], 2, tmp_path)
    assert_each_epoch_once(answers, records=103, step_count=13)
    for answer in answers:
        assert answer["epochs"] == [answer["uninterrupted"]]
