"""lightning."""

from __future__ import annotations

import pytest

from tests.frameworks.audit import assert_survives_kills
from tests.frameworks.launch import Launcher

pytestmark = pytest.mark.serial


@pytest.fixture(scope="module")
def ranks():
    with Launcher("lightning") as launcher:
        yield launcher


def test_a_run_killed_twice_that_goes_on_with_other_ranks_delivers_every_record_exactly_once(ranks, tmp_path):
    assert_survives_kills(ranks, "train_lightning.py", tmp_path, (4, 5, 2))
