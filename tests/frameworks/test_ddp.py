"""PyTorch's DistributedDataParallel over gloo, on real processes."""

from __future__ import annotations

import pytest

from tests.frameworks.audit import assert_each_epoch_once, assert_survives_kills

pytestmark = pytest.mark.serial
WARM = ()


def test_a_run_killed_twice_that_goes_on_with_other_ranks_delivers_every_record_exactly_once(ranks, tmp_path):
    assert_survives_kills(ranks, "train_ddp.py", tmp_path, (4, 5, 2))


@pytest.mark.parametrize("what", ["native", "sampler", "rank"])
def test_ranks_find_their_own_share_of_every_kind_of_data(ranks, store, tmp_path, what):
    answers = ranks.answers("tests.frameworks.ranks:gloo", [what, store], 3, tmp_path)
    assert_each_epoch_once(answers, records=103, step_count=9)
    assert [answer["length"] for answer in answers] == [9, 9, 9]
